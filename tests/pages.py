"""Runs the code of Markdown pages, and compares what it prints with what the pages show.

::

    python -m tests.pages docs/guides/*.md          # run, and print what differs
    python -m tests.pages --write docs/index.md     # run, and write what is printed into the page

The blocks of a page run in order, in one process (``tests.page_process``), in a folder that
contains only ``examples``, a link to the examples. The language of a block says what happens:

- ``python``: the code runs. Later blocks see its names.
- ``output``: what the block directly before it prints, including warnings and the last line of an
  exception. A block without an output may print anything but these.
- ``console``: the lines after ``$`` are commands, and the other lines are what they print to
  stdout, including warnings of Python. If a command fails, also what it prints to stderr.
- ``sh``: the commands run.
- ``text``, ``diff``, ``yaml``, ``toml``, ``json`` and MyST's directives: nothing happens.

In an output, a line ``…`` stands for any number of lines without a warning, an exception or a
failure, and ``…`` in a line for any text. Whole numbers have to be equal. Other numbers are
compared with a tolerance of 1 %, because sums of floats differ between processors. Comments in the
line before a block change this:

- ``<!-- file: train.py -->``: the block is written to this file, and does not run by itself.
- ``<!-- needs: tensorboard -->``: without these packages, the page ends here.
- ``<!-- not run: reason -->``: the block is for readers only.
- ``<!-- numbers: 10% -->``, ``<!-- numbers: any -->``: the tolerance of all numbers in the output.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field
from difflib import unified_diff
from importlib.util import find_spec
from itertools import takewhile
from math import inf
from math import isclose
from pathlib import Path

from tests.page_process import PROBLEM

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"(?P<comments>(?:^<!-- [^\n]* -->\n)*)^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
COMMENT = re.compile(r"<!-- (file|needs|not run|numbers): (.*) -->")
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
RUNNABLE = ("python", "console", "sh")
LANGUAGES = (*RUNNABLE, "output", "text", "yaml", "toml", "json", "diff")
TOLERANCE = 0.01
HOME = "/home/you"  # what outputs show instead of the folder in which the page has run
GAP = "…"
LIMIT_SECONDS = 300


@dataclass
class Step:
    """One thing to run, and what the page shows of its output.

    Attributes:
        kind: "python", "shell" or "file".
        code: the code, the command or the content of the file.
        name: the file, or the page and the line, for tracebacks.
        shown: the output on the page; None if the page shows none.
        tolerance: the relative tolerance of the numbers in the output.
        place: where ``shown`` begins and ends in the text of the page.
    """

    kind: str
    code: str
    name: str
    shown: str | None = None
    tolerance: float = TOLERANCE
    place: tuple[int, int] | None = None


@dataclass
class Page:
    """The steps of a page, in the order in which they run.

    Attributes:
        path: the file.
        text: its content.
        steps: the steps.
        end: where and why the page ends early; None if all of it runs.
    """

    path: Path
    text: str = field(init=False)
    steps: list[Step] = field(init=False, default_factory=list)
    end: str | None = field(init=False, default=None)

    def __post_init__(self):
        self.text = self.path.read_text(encoding="utf-8")
        found = [*BLOCK.finditer(self.text)]
        fences = len(re.findall(r"^\s*(?:```|~~~)", self.text, re.MULTILINE))
        if fences != 2 * len(found):
            raise ValueError(f"{self.path.name}: a code block is indented or not closed")
        options = sum(len(COMMENT.findall(block["comments"])) for block in found)
        if options != len(COMMENT.findall(self.text)):
            raise ValueError(
                f"{self.path.name}: a comment for a block is not in the line before it"
            )
        before = None  # the step of the block before, if that has one
        for block in found:
            options, count = dict(COMMENT.findall(block["comments"])), len(self.steps)
            missing = [name for name in options.get("needs", "").split() if not find_spec(name)]
            if missing:
                self.end = f"up to line {self._line(block)}, which needs {', '.join(missing)}"
                break
            if "not run" not in options:
                self._add(block, options, before)
            before = self.steps[-1] if len(self.steps) > count else None

    def _line(self, block):
        return self.text.count("\n", 0, block.start("code")) + 1

    def _add(self, block, options, before):
        line = self._line(block)
        language, code, name = block["language"], block["code"], f"{self.path.name}:{line}"
        if not language.startswith("{") and language not in LANGUAGES:
            raise ValueError(f"{name}: use one of {', '.join(LANGUAGES)}, not {language!r}")
        if "file" in options:
            self.steps.append(Step("file", code, options["file"]))
        elif language == "python":
            self.steps.append(Step("python", code, name))
        elif language == "sh":
            self.steps.append(Step("shell", code, name))
        elif language == "console":
            self._add_commands(block, name, options)
        elif language == "output":
            if before is None or before.kind == "file" or before.shown is not None:
                raise ValueError(f"{name}: an output needs a block before it that prints it")
            before.shown, before.place = code, block.span("code")
            before.tolerance = tolerance_of(options)

    def _add_commands(self, block, name, options):
        if not block["code"].startswith("$ "):
            raise ValueError(f"{name}: a console block must begin with a command, after `$ `")
        for found in re.finditer(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block["code"], re.MULTILINE):
            start, end = (position + block.start("code") for position in found.span(2))
            self.steps.append(
                Step("shell", found[1], name, found[2], tolerance_of(options), (start, end))
            )

    def run(self, folder):
        """Runs the steps, and returns what each of them has printed.

        Args:
            folder: the folder to run in.
        """
        Path(folder, "examples").symlink_to(ROOT / "examples")
        steps = [{"kind": s.kind, "code": s.code, "name": s.name} for s in self.steps]
        with tempfile.TemporaryDirectory() as exchange:
            exchange_file = Path(exchange, "steps.json")  # the process removes it at its end
            exchange_file.write_text(json.dumps(steps), encoding="utf-8")
            environment = {
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "COLUMNS": "88",
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            }
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.page_process", exchange_file],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # so that the processes that a page leaves can be killed
            )
            try:
                process.wait(LIMIT_SECONDS)
            except subprocess.TimeoutExpired:
                pass
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            files = [Path(exchange, f"{number}.txt") for number in range(len(steps))]
            texts = [file.read_text(encoding="utf-8") for file in files if file.exists()]
            is_complete = not exchange_file.exists()
        texts = [text.replace(str(Path(folder).resolve()), HOME) for text in texts]
        if not is_complete:
            raise RuntimeError(
                f"{self.path.name} ended early, with {process.returncode}, after {texts}"
            )
        return texts

    def differences(self, outputs):
        """Returns the lines of a diff from what the page shows to what its steps have printed."""
        lines = []
        for step, printed in zip(self.steps, outputs, strict=True):
            # A block without an output may print anything but problems.
            shown = GAP if step.shown is None else step.shown
            if not is_same(shown, printed, step.tolerance):
                texts = _lines(step.shown or ""), _lines(printed.replace(PROBLEM, ""))
                names = f"{step.name} (shown)", f"{step.name} (printed)"
                lines += unified_diff(*texts, *names, lineterm="")
        return lines

    def write(self, outputs):
        """Writes what the steps have printed into the page, but for outputs with ``…``."""
        text = self.text
        for step, printed in reversed([*zip(self.steps, outputs, strict=True)]):
            if step.shown is not None and GAP not in step.shown:
                start, end = step.place
                lines = _lines(printed.replace(PROBLEM, ""))
                text = text[:start] + "".join(f"{line}\n" for line in lines) + text[end:]
        self.path.write_text(text, encoding="utf-8")


def tolerance_of(options):
    given = options.get("numbers", f"{TOLERANCE:.0%}")
    return inf if given == "any" else float(given.removesuffix("%")) / 100


def is_same(shown, printed, tolerance):
    """Returns whether an output is the one that a page shows.

    Args:
        shown: the output on the page.
        printed: what was printed.
        tolerance: the relative tolerance of numbers; infinity if any number will do.
    """
    return _are_same_lines(_lines(shown), _lines(printed), tolerance)


def _are_same_lines(shown, printed, tolerance):
    if not shown:
        return not printed
    first, *rest = shown
    if first == GAP:
        # A gap ends before the first problem.
        hidden = [*takewhile(lambda line: not line.startswith(PROBLEM), printed)]
        ends = (printed[start:] for start in range(len(hidden) + 1))
        return any(_are_same_lines(rest, end, tolerance) for end in ends)
    return (
        bool(printed)
        and _is_same_line(first, printed[0].removeprefix(PROBLEM), tolerance)
        and _are_same_lines(rest, printed[1:], tolerance)
    )


def _lines(text):
    lines = [line.rstrip() for line in text.splitlines()]
    return [line for line in lines if line]


def _is_same_line(shown, printed, tolerance):
    words = (re.escape(word) for word in NUMBER.sub("\0", shown).split())
    pattern = r"\s+".join(words).replace(GAP, ".*").replace("\0", f"({NUMBER.pattern})")
    match = re.fullmatch(pattern, printed.strip())
    if match is None:
        return False
    found = match.groups()
    pairs = zip(NUMBER.findall(shown), found, strict=True)
    return tolerance == inf or all(_is_same_number(*pair, tolerance) for pair in pairs)


def _is_same_number(shown, printed, tolerance):
    numbers = [float(each.replace(",", "")) for each in (shown, printed)]
    are_whole = not {".", "e"} & {*shown, *printed}
    return isclose(*numbers, rel_tol=0 if are_whole and tolerance == TOLERANCE else tolerance)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m tests.pages", description=__doc__.split("\n")[0]
    )
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE")
    parser.add_argument("--write", action="store_true", help="write what is printed into the pages")
    given = parser.parse_args(arguments)
    different = False
    for path in given.pages:
        page = Page(path)
        with tempfile.TemporaryDirectory() as folder:
            outputs = page.run(folder)
        if given.write:
            page.write(outputs)
            page = Page(path)
        lines = page.differences(outputs)
        result = "differs" if lines else "as shown"
        print(", ".join([f"{path}: {result}", *([page.end] if page.end else [])]), *lines, sep="\n")
        different |= bool(lines)
    return int(different)


if __name__ == "__main__":
    sys.exit(main())
