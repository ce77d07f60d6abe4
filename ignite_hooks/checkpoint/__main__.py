"""Looks at checkpoints from the terminal, compares two, and writes the weights of one to a file.

::

    python -m ignite_hooks.checkpoint list SOURCE
    python -m ignite_hooks.checkpoint show SOURCE [--which best]
    python -m ignite_hooks.checkpoint verify SOURCE
    python -m ignite_hooks.checkpoint export SOURCE [--which best] [--part model] OUT.safetensors
    python -m ignite_hooks.checkpoint diff A B [--which best] [--all]

A source is a directory of checkpoints, one of them, or a URL of either. Nothing in it is changed,
and nothing is unpickled. The exit status is 0 if all is well, 1 if something is damaged, missing or
different, and 2 for arguments and sources that cannot be used.
"""

import argparse
import os
import shlex
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from datetime import datetime
from datetime import timezone
from itertools import count
from pathlib import Path
from pathlib import PurePath
from typing import Any

from ignite_hooks.checkpoint.candidates import Candidate
from ignite_hooks.checkpoint.candidates import Look
from ignite_hooks.checkpoint.candidates import Source
from ignite_hooks.checkpoint.candidates import SourceError
from ignite_hooks.checkpoint.choice import best_of_each_run
from ignite_hooks.checkpoint.choice import chosen
from ignite_hooks.checkpoint.differences import Part
from ignite_hooks.checkpoint.manifest import Manifest
from ignite_hooks.checkpoint.plain_data import flattened
from ignite_hooks.checkpoint.source import source_at
from ignite_hooks.checkpoint.store import UNFINISHED
from ignite_hooks.checkpoint.store import Checkpoint
from ignite_hooks.checkpoint.store import find_problems
from ignite_hooks.checkpoint.store import has_its_files
from ignite_hooks.checkpoint.store import is_still_there
from ignite_hooks.checkpoint.terminal import age_text
from ignite_hooks.checkpoint.terminal import printable
from ignite_hooks.checkpoint.terminal import shortened
from ignite_hooks.checkpoint.terminal import size_text
from ignite_hooks.checkpoint.terminal import table
from ignite_hooks.core.paths import is_url

__all__ = ["main"]

_REMOVED = "removed meanwhile"
_MAX_CELL = 40
_MAX_NAME = 60
_MAX_DIFFERENCES = 10
_TITLES = {"contents": "contents that one lacks", "files": "files, compared by checksum"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the arguments say, and returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        with _warnings_on_stderr():
            status: int = options.act(options)
    except BrokenPipeError:
        raise
    except (ImportError, OSError, ValueError) as error:
        _complain(f"error: {error}")
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ignite_hooks.checkpoint",
        description="Looks at checkpoints. Nothing in them is changed, and nothing is unpickled.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    source = "a directory of checkpoints, one of them, or the URL of either"

    def command(name: str, act: Any, text: str, *places: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        for place in places:
            added.add_argument(place.lower(), metavar=place, help=source)
        added.set_defaults(act=act)
        return added

    command("list", _list, "a table of the checkpoints, the newest first", "SOURCE")
    show = command("show", _show, "what one checkpoint says of itself", "SOURCE")
    verify = command("verify", _verify, "reads each file, and names those that changed", "SOURCE")
    export = command("export", _export, "writes weights into a file of safetensors", "SOURCE")
    diff = command("diff", _diff, "what differs between two checkpoints", "A", "B")
    export.add_argument("path", metavar="OUT.safetensors", type=Path, help="the file to write")
    export.add_argument("--part", default="model", help="model, loss_fn, also/ema, and so on")
    export.add_argument("--force", action="store_true", help="replace a file that is there")
    diff.add_argument("--all", action="store_true", help="all differences, not the largest alone")
    for each, default in ((show, "last"), (export, "best"), (diff, "last")):
        each.add_argument(
            "--which",
            type=_which,
            default=default,
            help=f"best, last, a step or a name; {default} if not given",
        )
    for each in (verify, export, diff):
        each.add_argument("--cache-dir", type=Path, help="where a URL is downloaded to")
    return parser


def _which(text: str) -> int | str:
    """Returns a step as a number, and what else ``--which`` names as it is."""
    return int(text) if text.isascii() and text.isdigit() else text


def _list(options: argparse.Namespace) -> int:
    source, look = _found(options.source)
    now = datetime.now(timezone.utc)
    best = {id(each) for each in best_of_each_run(look.candidates).values()}
    runs = _short_names([each.manifest.training for each in look.candidates])
    rows: list[Sequence[str]] = [
        ("checkpoint", "step", "epoch", "metric", "size", "age", "run", "state")
    ]
    for candidate in look.candidates:
        name, manifest = candidate
        cells = (
            manifest.step,
            manifest.epoch,
            _metric(manifest) + (" (best)" if id(candidate) in best else ""),
            size_text(sum(file.size for file in manifest.files.values())),
            age_text(manifest.saved_at, now),
            runs[manifest.training],
            "not looked at" if source.makes_copies else _state(_local(candidate)),
        )
        rows.append((_name(name), *(shortened(printable(cell), _MAX_CELL) for cell in cells)))
    for name, why in _broken(look):
        rows.append((_name(name), *"------", printable(why)))
    _say(*table(rows))
    return 0


def _show(options: argparse.Namespace) -> int:
    source, look = _found(options.source)
    if not look.candidates:
        return _none(options.source, look)
    name, manifest = chosen(look.candidates, options.which, source, options.source)[0]
    _say(printable(name))
    facts = {
        "run": manifest.training,
        "number": manifest.number,
        "saved": _saved(manifest.saved_at),
        "step": manifest.step,
        "epoch": manifest.epoch,
        "iteration": manifest.iteration,
        "passes": manifest.data_pass,
        "batches": f"{manifest.batches} of the pass that is not complete",
        "processes": manifest.world_size,
        "global batch": _or_unknown(manifest.global_batch),
        "metric": _metric(manifest),
        "ended by": manifest.ended_by or "-",
        "layout": manifest.version,
    }
    _say(*_pairs(facts))
    command = printable(shlex.join(manifest.command_line)) or "not recorded"
    _say("", "command line", *_wrapped(command, "  "))
    settings = dict(flattened(manifest.settings)) if manifest.settings else {}
    contents = {kind: ", ".join(names) for kind, names in manifest.contents.items()}
    sizes = {file: size_text(record.size) for file, record in manifest.files.items()}
    for title, pairs in (
        ("settings", settings),
        ("contents", contents),
        ("versions", manifest.versions),
        ("files", sizes),
    ):
        _say("", title, *(_pairs(pairs) or ["  not recorded"]))
    return 0


def _verify(options: argparse.Namespace) -> int:
    source, look = _found_to_read(options.source, options.cache_dir)
    if not (look.candidates or look.damaged or look.unfinished):
        return _none(options.source, look)
    # One may be in progress; what was broken off is removed before the next save.
    is_broken = any(why != UNFINISHED for _, why in _broken(look))
    _say(*(f"{_name(name)}: no checkpoint, {printable(why)}" for name, why in _broken(look)))
    for candidate in look.candidates:
        problems = _problems(source, candidate)
        if problems and not source.still_has(candidate):
            _say(f"{_name(candidate.name)}: {_REMOVED}")
            continue
        is_broken = is_broken or bool(problems)
        for problem in problems or ["every file is as it was written"]:
            _say(f"{_name(candidate.name)}: {printable(problem)}")
    return int(is_broken)


def _export(options: argparse.Namespace) -> int:
    from ignite_hooks.checkpoint.weights import export_weights  # only here: it imports torch

    if os.path.lexists(options.path) and not options.force:
        raise ValueError(f"{options.path} is there already: give another name, or say --force")
    entry = export_weights(
        options.source,
        options.path,
        which=options.which,
        part=options.part,
        cache_dir=options.cache_dir,
    )
    metric = "" if entry.metric_value is None else f", {entry.metric} {entry.metric_value:.6g}"
    best = ", the best" if entry.is_best else ""
    _say(
        printable(
            f"{options.part} of {entry.path} (step {entry.step}, epoch {entry.epoch}"
            f"{metric}{best}) is in {options.path}"
        )
    )
    return 0


def _diff(options: argparse.Namespace) -> int:
    from ignite_hooks.checkpoint.comparison import compared  # only here: it imports torch

    checkpoints = [_whole(place, options) for place in (options.a, options.b)]
    _say(*(printable(f"{a}  {each.folder}") for a, each in zip("AB", checkpoints, strict=True)))
    comparison = compared(*checkpoints)
    most = None if options.all else _MAX_DIFFERENCES
    for name, part in comparison.parts.items():
        _say(*_part_lines(name, part, most))
    for section, rows in comparison.rows.items():
        if rows:
            _say("", _TITLES.get(section, section))
            cells = [("", "A", "B"), *rows[:most]]
            _say(*_indented(table([[_cell(cell) for cell in row] for row in cells])))
            _say(*_more(len(rows), most))
    if comparison.is_equal:
        _say("", "no difference")
    return int(not comparison.is_equal)


def _whole(place: str, options: argparse.Namespace) -> Checkpoint:
    """Returns the chosen checkpoint of a source, each file as it was written."""
    source, look = _found_to_read(place, options.cache_dir)
    candidate = chosen(look.candidates, options.which, source, place)[0]
    try:
        return source.fetch(candidate, verify=True)
    except SourceError:
        raise
    except ValueError as error:
        raise ValueError(f"{candidate.name} is damaged: {error}") from error


def _part_lines(name: str, part: Part, most: int | None) -> Iterator[str]:
    """Yields the lines on one part of the state."""
    if not part.differences:
        if part.count:
            yield from ("", f"{printable(name)}: {part.count} values, bit for bit equal")
        return
    yield from ("", f"{printable(name)}: {len(part.differences)} of {part.count} values differ")
    rows: list[Sequence[str]] = [("relative", "absolute", "name", "")]
    for each in part.differences[:most]:
        numbers = ("-" if n is None else f"{n:.4g}" for n in (each.relative, each.norm))
        rows.append((*numbers, _cell(each.name), shortened(printable(each.note), _MAX_NAME)))
    yield from _indented(table(rows))
    yield from _more(len(part.differences), most)


def _found(place: str, cache_dir: Path | None = None) -> tuple[Source, Look]:
    """Looks into a source. Nothing is downloaded, so that a URL needs no folder for that yet."""
    if not is_url(place) and not os.path.isdir(place):  # of a path that may not be looked at, too
        raise ValueError(f"`source` must be a directory, got {place}: is it mounted?")
    source = source_at(place if is_url(place) else Path(place), cache_dir or Path(os.devnull))
    return source, source.find()


def _found_to_read(place: str, cache_dir: Path | None) -> tuple[Source, Look]:
    if cache_dir is None and is_url(place):
        raise ValueError(f"`--cache-dir` must be given for a URL, got none for {place}")
    return _found(place, cache_dir)


def _broken(look: Look) -> list[tuple[str, str]]:
    return sorted((look.damaged | look.unfinished).items())


def _local(candidate: Candidate) -> Checkpoint:
    return Checkpoint(Path(candidate.name), candidate.manifest)


def _state(checkpoint: Checkpoint) -> str:
    if has_its_files(checkpoint):
        return "complete"
    return "damaged" if is_still_there(checkpoint) else _REMOVED


def _problems(source: Source, candidate: Candidate) -> list[str]:
    """Reads each file of a checkpoint, which is downloaded first if it is elsewhere."""
    if not source.makes_copies:
        return find_problems(_local(candidate))
    try:
        source.fetch(candidate, verify=True)
    except SourceError:
        raise
    except ValueError as error:
        return [str(error)]
    return []


def _none(place: str, look: Look) -> int:
    _complain(f"no checkpoint in {place}")
    for name, why in _broken(look):
        _complain(f"{PurePath(name).name}: {why}")
    return 1


def _metric(manifest: Manifest) -> str:
    if manifest.metric is None or manifest.metric_value is None:
        return "-"
    return f"{shortened(printable(manifest.metric), _MAX_CELL // 2)} {manifest.metric_value:.6g}"


def _name(path: str) -> str:
    return printable(PurePath(path).name or path)


def _short_names(runs: Iterable[str]) -> dict[str, str]:
    """Returns the beginnings of identifiers, as long as it takes to tell them apart."""
    names = dict.fromkeys(runs)
    length = next(n for n in count(8) if len({name[:n] for name in names}) == len(names))
    return {name: name[:length] for name in names}


def _pairs(values: Mapping[str, Any]) -> list[str]:
    """Returns names and values in two columns; long values fill several lines."""
    names = {name: _cell(name) for name in values}
    heads = table([[f"  {shown}", "|"] for shown in names.values()]) if names else []
    lines = []
    for head, value in zip(heads, values.values(), strict=True):
        lines += _wrapped(printable(value), head[:-1])
    return lines


def _wrapped(text: str, head: str) -> list[str]:
    """Returns a text behind a head, in lines as wide as the terminal, if there is one."""
    width = shutil.get_terminal_size((0, 0)).columns
    if not width:
        return [head + text]
    return textwrap.wrap(
        text,
        max(width, len(head) + 20),
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    ) or [head]


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _more(found: int, most: int | None) -> list[str]:
    return [f"  and {found - most} more (--all)"] if most is not None and found > most else []


def _cell(value: Any) -> str:
    return shortened(printable(value), _MAX_NAME)


def _saved(then: datetime) -> str:
    age = age_text(then, datetime.now(timezone.utc))
    zone = "" if then.tzinfo is not None else " without a time zone"
    return (
        f"{then.isoformat(' ', 'seconds')}{zone} ({age if age.startswith('in ') else f'{age} ago'})"
    )


def _or_unknown(value: object) -> object:
    return "not known" if value is None else value


def _say(*lines: str) -> None:
    for line in lines:
        print(line)


def _complain(text: str) -> None:
    print(printable(text), file=sys.stderr)


@contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """Shows warnings as lines of text, without a place in the code."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        _complain(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _run() -> int:
    """Runs the command; a reader that has closed the pipe, ``head`` for instance, ends it."""
    try:
        status = main()
        if sys.stdout is not None:  # closed by the shell
            sys.stdout.flush()
    except OSError as error:
        # The interpreter flushes once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 141  # as a shell says of a program that SIGPIPE has ended
        _complain(f"error: {error}")
        return 2
    return status


if __name__ == "__main__":
    sys.exit(_run())
