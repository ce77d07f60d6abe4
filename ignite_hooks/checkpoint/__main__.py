"""A command line that lists, shows, verifies, exports and compares checkpoints.

::

    python -m ignite_hooks.checkpoint list SOURCE
    python -m ignite_hooks.checkpoint show SOURCE [--which best]
    python -m ignite_hooks.checkpoint verify SOURCE
    python -m ignite_hooks.checkpoint export SOURCE [--which best] [--part model] OUT.safetensors
    python -m ignite_hooks.checkpoint diff A B [--which best] [--all]

Each of SOURCE, A and B is a source: a directory of checkpoints, a single checkpoint, or the URL of
either. The commands never change a source and never unpickle a file.

The exit status is 0 for success. It is 1 if a checkpoint is damaged or missing, or if ``diff``
finds a difference. It is 2 if an argument is invalid or a source cannot be read.
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

from ignite_hooks.checkpoint.choice import best_of_each_run
from ignite_hooks.checkpoint.choice import select_checkpoints
from ignite_hooks.checkpoint.differences import Part
from ignite_hooks.checkpoint.manifest import Manifest
from ignite_hooks.checkpoint.plain_data import flattened
from ignite_hooks.checkpoint.source import source_at
from ignite_hooks.checkpoint.source_interface import CheckpointCandidate
from ignite_hooks.checkpoint.source_interface import Listing
from ignite_hooks.checkpoint.source_interface import Source
from ignite_hooks.checkpoint.source_interface import SourceError
from ignite_hooks.checkpoint.store import UNFINISHED
from ignite_hooks.checkpoint.store import Checkpoint
from ignite_hooks.checkpoint.store import find_problems
from ignite_hooks.checkpoint.store import has_all_files
from ignite_hooks.checkpoint.store import is_still_there
from ignite_hooks.checkpoint.terminal import age_text
from ignite_hooks.checkpoint.terminal import printable
from ignite_hooks.checkpoint.terminal import shortened
from ignite_hooks.checkpoint.terminal import size_text
from ignite_hooks.checkpoint.terminal import table
from ignite_hooks.core.paths import is_url

__all__ = ["main"]

_REMOVED = "removed meanwhile"
_MAX_CELL_LENGTH = 40  # characters of a cell in the table of `list`
_MAX_NAME_LENGTH = 60  # characters of a name, a value or a note in the other tables
_MAX_DIFFERENCES = 10  # differences of one part or section; `diff --all` shows all of them
# The titles of two sections in the output of `diff`. Any other section has its name as its title.
_SECTION_TITLES = {
    "contents": "contents that only one checkpoint has",
    "files": "files, compared by checksum",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name, and returns the exit status."""
    parser = _make_parser()
    options = parser.parse_args(arguments)
    try:
        with _warnings_on_stderr():
            status: int = options.run(options)
    except BrokenPipeError:
        raise  # a reader such as `head` has closed the pipe; _run_as_program handles the error
    except (ImportError, OSError, ValueError) as error:
        _print_error(f"error: {error}")
        return 2
    return status


def _make_parser() -> argparse.ArgumentParser:
    """Builds the parser. The parsed option ``run`` is the function that runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m ignite_hooks.checkpoint",
        description="Inspects checkpoints, without changing or unpickling any of their files.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    source = "a directory of checkpoints, a single checkpoint, or the URL of either"

    def command(name: str, run: Any, text: str, *places: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        for place in places:
            added.add_argument(place.lower(), metavar=place, help=source)
        added.set_defaults(run=run)
        return added

    command(
        "list", _list_checkpoints, "lists the checkpoints in a table, the newest first", "SOURCE"
    )
    show = command("show", _show_checkpoint, "shows what one checkpoint contains", "SOURCE")
    verify = command(
        "verify", _verify_checkpoints, "reads all files and names the damaged ones", "SOURCE"
    )
    export = command("export", _export_part, "writes weights to a safetensors file", "SOURCE")
    diff = command("diff", _diff_checkpoints, "compares two checkpoints", "A", "B")
    export.add_argument("path", metavar="OUT.safetensors", type=Path, help="the file to write")
    export.add_argument("--part", default="model", help="model, loss_fn, also/ema, and so on")
    export.add_argument("--force", action="store_true", help="replace OUT if it exists")
    diff.add_argument("--all", action="store_true", help="list all differences")
    for each, default in ((show, "last"), (export, "best"), (diff, "last")):
        each.add_argument(
            "--which",
            type=_parse_which,
            default=default,
            help=f"best, last, a step or a name (default: {default})",
        )
    for each in (verify, export, diff):
        each.add_argument("--cache-dir", type=Path, help="a folder to download a URL to")
    return parser


def _parse_which(text: str) -> int | str:
    """Returns the value of ``--which``: an int if it is a step, else the text itself."""
    return int(text) if text.isascii() and text.isdigit() else text


def _list_checkpoints(options: argparse.Namespace) -> int:
    source, listing = _open_source(options.source)
    now = datetime.now(timezone.utc)
    # A candidate is a checkpoint of which only the manifest has been read. A candidate contains
    # dicts and cannot be hashed, so the set holds ids.
    best = {id(each) for each in best_of_each_run(listing.candidates).values()}
    runs = _short_names([each.manifest.training for each in listing.candidates])
    rows: list[Sequence[str]] = [
        ("checkpoint", "step", "epoch", "metric", "size", "age", "run", "state")
    ]
    for candidate in listing.candidates:
        name, manifest = candidate
        # `list` downloads no files, so it does not check the files of a remote checkpoint.
        cells = (
            manifest.step,
            manifest.epoch,
            _metric_text(manifest) + (" (best)" if id(candidate) in best else ""),
            size_text(sum(file.size for file in manifest.files.values())),
            age_text(manifest.saved_at, now),
            runs[manifest.training],
            "not looked at" if source.makes_copies else _state_text(_local_checkpoint(candidate)),
        )
        rows.append(
            (_folder_name(name), *(shortened(printable(cell), _MAX_CELL_LENGTH) for cell in cells))
        )
    for name, why in _broken_folders(listing):
        # Each of the six columns from "step" to "run" gets a "-".
        rows.append((_folder_name(name), *"------", printable(why)))
    _print_lines(*table(rows))
    return 0


def _show_checkpoint(options: argparse.Namespace) -> int:
    source, listing = _open_source(options.source)
    if not listing.candidates:
        return _report_no_checkpoint(options.source, listing)
    chosen = select_checkpoints(listing.candidates, options.which, source, options.source)
    name, manifest = chosen[0]
    _print_lines(printable(name))
    facts = {
        "run": manifest.training,
        "number": manifest.number,
        "saved": _saved_text(manifest.saved_at),
        "step": manifest.step,
        "epoch": manifest.epoch,
        "iteration": manifest.iteration,
        "passes": manifest.data_pass,
        "batches": f"{manifest.batches} of the pass that is not complete",
        "processes": manifest.world_size,
        "global batch": _or_unknown(manifest.global_batch),
        "metric": _metric_text(manifest),
        "ended by": manifest.ended_by or "-",
        "layout": manifest.version,
    }
    _print_lines(*_two_columns(facts))
    command = printable(shlex.join(manifest.command_line)) or "not recorded"
    _print_lines("", "command line", *_wrapped_lines(command, "  "))
    settings = dict(flattened(manifest.settings)) if manifest.settings else {}
    contents = {kind: ", ".join(names) for kind, names in manifest.contents.items()}
    sizes = {file: size_text(record.size) for file, record in manifest.files.items()}
    for title, pairs in (
        ("settings", settings),
        ("contents", contents),
        ("versions", manifest.versions),
        ("files", sizes),
    ):
        _print_lines("", title, *(_two_columns(pairs) or ["  not recorded"]))
    return 0


def _verify_checkpoints(options: argparse.Namespace) -> int:
    source, listing = _open_source_to_read(options.source, options.cache_dir)
    if not (listing.candidates or listing.damaged or listing.unfinished):
        return _report_no_checkpoint(options.source, listing)
    # A folder whose save is not finished does not count as damaged: the save may be in progress. If
    # the save was interrupted, the next save removes the folder.
    is_broken = any(why != UNFINISHED for _, why in _broken_folders(listing))
    _print_lines(
        *(
            f"{_folder_name(name)}: not a checkpoint, {printable(why)}"
            for name, why in _broken_folders(listing)
        )
    )
    for candidate in listing.candidates:
        problems = _problems_of(source, candidate)
        # A running job may have removed the checkpoint while this command read its files.
        if problems and not source.still_has(candidate):
            _print_lines(f"{_folder_name(candidate.name)}: {_REMOVED}")
            continue
        is_broken = is_broken or bool(problems)
        for problem in problems or ["all files are intact"]:
            _print_lines(f"{_folder_name(candidate.name)}: {printable(problem)}")
    return int(is_broken)


def _export_part(options: argparse.Namespace) -> int:
    # Imported here, because the module imports torch, which most commands do not need.
    from ignite_hooks.checkpoint.weights import export_weights

    if os.path.lexists(options.path) and not options.force:
        raise ValueError(f"{options.path} exists already: give another name, or add --force")
    entry = export_weights(
        options.source,
        options.path,
        which=options.which,
        part=options.part,
        cache_dir=options.cache_dir,
    )
    metric = "" if entry.metric_value is None else f", {entry.metric} {entry.metric_value:.6g}"
    best = ", the best" if entry.is_best else ""
    _print_lines(
        printable(
            f"{options.part} of {entry.path} (step {entry.step}, epoch {entry.epoch}"
            f"{metric}{best}) is in {options.path}"
        )
    )
    return 0


def _diff_checkpoints(options: argparse.Namespace) -> int:
    # Imported here, because the module imports torch, which most commands do not need.
    from ignite_hooks.checkpoint.comparison import compare_checkpoints

    checkpoints = [_fetch_verified(place, options) for place in (options.a, options.b)]
    _print_lines(
        *(printable(f"{a}  {each.folder}") for a, each in zip("AB", checkpoints, strict=True))
    )
    comparison = compare_checkpoints(*checkpoints)
    limit = None if options.all else _MAX_DIFFERENCES
    for name, part in comparison.parts.items():
        _print_lines(*_part_lines(name, part, limit))
    for section, rows in comparison.rows.items():
        if rows:
            _print_lines("", _SECTION_TITLES.get(section, section))
            cells = [("", "A", "B"), *rows[:limit]]
            _print_lines(*_indented(table([[_cell_text(cell) for cell in row] for row in cells])))
            _print_lines(*_omitted_line(len(rows), limit))
    if comparison.is_equal:
        _print_lines("", "no difference")
    return int(not comparison.is_equal)


def _fetch_verified(place: str, options: argparse.Namespace) -> Checkpoint:
    """Selects a checkpoint of a source by ``--which``, verifies all its files, and returns it."""
    source, listing = _open_source_to_read(place, options.cache_dir)
    candidate = select_checkpoints(listing.candidates, options.which, source, place)[0]
    try:
        return source.fetch(candidate, verify=True)
    except SourceError:
        raise
    except ValueError as error:
        raise ValueError(f"{candidate.name} is damaged: {error}") from error


def _part_lines(name: str, part: Part, limit: int | None) -> Iterator[str]:
    """Yields the lines that describe the differences of one part, for example of the model."""
    if not part.differences:
        if part.count:
            yield from ("", f"{printable(name)}: {part.count} values, bit for bit equal")
        return
    yield from ("", f"{printable(name)}: {len(part.differences)} of {part.count} values differ")
    rows: list[Sequence[str]] = [("relative", "absolute", "name", "")]
    for each in part.differences[:limit]:
        numbers = ("-" if n is None else f"{n:.4g}" for n in (each.relative, each.norm))
        rows.append(
            (*numbers, _cell_text(each.name), shortened(printable(each.note), _MAX_NAME_LENGTH))
        )
    yield from _indented(table(rows))
    yield from _omitted_line(len(part.differences), limit)


def _open_source(place: str, cache_dir: Path | None = None) -> tuple[Source, Listing]:
    """Returns a source and the listing of its checkpoints. Only their manifests are read.

    Args:
        place: the path or URL of the source.
        cache_dir: the folder to which the files of a remote checkpoint are downloaded; None if the
            command needs manifests only, and downloads no files.
    """
    if not is_url(place) and not os.path.isdir(place):
        # The message does not say that the directory is missing: isdir() is also False if this
        # process may not enter a parent folder.
        raise ValueError(f"`source` must be a directory, got {place}: is it mounted?")
    source = source_at(place if is_url(place) else Path(place), cache_dir or Path(os.devnull))
    return source, source.find()


def _open_source_to_read(place: str, cache_dir: Path | None) -> tuple[Source, Listing]:
    """Does the same as ``_open_source``, for a command that reads the files of checkpoints.

    Raises:
        ValueError: the source is a URL, and there is no ``cache_dir`` to download files to.
    """
    if cache_dir is None and is_url(place):
        raise ValueError(f"`--cache-dir` must be given for a URL, got none for {place}")
    return _open_source(place, cache_dir)


def _broken_folders(listing: Listing) -> list[tuple[str, str]]:
    """Returns the damaged and unfinished folders, sorted by path.

    Each entry is a pair: the path, and the reason why the folder is not a checkpoint.
    """
    return sorted((listing.damaged | listing.unfinished).items())


def _local_checkpoint(candidate: CheckpointCandidate) -> Checkpoint:
    return Checkpoint(Path(candidate.name), candidate.manifest)


def _state_text(checkpoint: Checkpoint) -> str:
    if has_all_files(checkpoint):
        return "complete"
    return "damaged" if is_still_there(checkpoint) else _REMOVED


def _problems_of(source: Source, candidate: CheckpointCandidate) -> list[str]:
    """Returns a text for each missing or damaged file of a checkpoint.

    For a remote checkpoint, the files are downloaded, and there is at most one text.
    """
    if not source.makes_copies:
        return find_problems(_local_checkpoint(candidate))
    try:
        source.fetch(candidate, verify=True)
    except SourceError:
        raise
    except ValueError as error:
        return [str(error)]
    return []


def _report_no_checkpoint(place: str, listing: Listing) -> int:
    """Prints that a source has no checkpoint, and what is wrong with each of its folders.

    Returns:
        The exit status.
    """
    _print_error(f"no checkpoint in {place}")
    for name, why in _broken_folders(listing):
        _print_error(f"{PurePath(name).name}: {why}")
    return 1


def _metric_text(manifest: Manifest) -> str:
    if manifest.metric is None or manifest.metric_value is None:
        return "-"
    name = shortened(printable(manifest.metric), _MAX_CELL_LENGTH // 2)
    return f"{name} {manifest.metric_value:.6g}"


def _folder_name(path: str) -> str:
    return printable(PurePath(path).name or path)


def _short_names(runs: Iterable[str]) -> dict[str, str]:
    """Maps each identifier of a run to a short prefix of the identifier.

    All prefixes have 8 characters, or more if two runs have the same first 8 characters.
    """
    names = dict.fromkeys(runs)
    length = next(n for n in count(8) if len({name[:n] for name in names}) == len(names))
    return {name: name[:length] for name in names}


def _two_columns(values: Mapping[str, Any]) -> list[str]:
    """Returns the lines of a table of names and values; long values take several lines."""
    names = {name: _cell_text(name) for name in values}
    # table() strips the spaces at the end of a line. The column "|" keeps the spaces that pad the
    # names, and is removed below.
    heads = table([[f"  {shown}", "|"] for shown in names.values()]) if names else []
    lines = []
    for head, value in zip(heads, values.values(), strict=True):
        lines += _wrapped_lines(printable(value), head[:-1])
    return lines


def _wrapped_lines(text: str, head: str) -> list[str]:
    """Puts ``head`` before a text, and returns the lines, wrapped at the width of the terminal.

    If the output is not a terminal, for example a pipe to ``grep``, the text stays on one line, so
    that ``grep`` finds words that would otherwise be on two lines.
    """
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


def _omitted_line(found: int, limit: int | None) -> list[str]:
    return [f"  and {found - limit} more (--all)"] if limit is not None and found > limit else []


def _cell_text(value: Any) -> str:
    return shortened(printable(value), _MAX_NAME_LENGTH)


def _saved_text(then: datetime) -> str:
    age = age_text(then, datetime.now(timezone.utc))
    zone = "" if then.tzinfo is not None else " without a time zone"
    return (
        f"{then.isoformat(' ', 'seconds')}{zone} ({age if age.startswith('in ') else f'{age} ago'})"
    )


def _or_unknown(value: object) -> object:
    return "not known" if value is None else value


def _print_lines(*lines: str) -> None:
    for line in lines:
        print(line)


def _print_error(text: str) -> None:
    print(printable(text), file=sys.stderr)


@contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """Prints warnings to stderr as plain lines, without the file and the line of the code."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        _print_error(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _run_as_program() -> int:
    """Runs the command and returns its exit status, even if stdout cannot be written to.

    If the reader of a pipe has closed the pipe, as ``head`` does, no error message is printed.
    """
    try:
        status = main()
        if sys.stdout is not None:  # stdout is None if the shell has closed it with ">&-"
            sys.stdout.flush()
    except OSError as error:
        # The interpreter flushes stdout again at exit. This flush must not fail and print a second
        # error, so it goes to /dev/null.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 141  # 128 + SIGPIPE, the status that a shell reports
        _print_error(f"error: {error}")
        return 2
    return status


if __name__ == "__main__":
    sys.exit(_run_as_program())
