"""Looks at checkpoints from the terminal. No tensor is loaded, and nothing is changed.

::

    python -m ignite_hooks.checkpoint list DIR
    python -m ignite_hooks.checkpoint show DIR_OR_CHECKPOINT
    python -m ignite_hooks.checkpoint verify DIR_OR_CHECKPOINT
"""

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from datetime import timezone
from pathlib import Path

from ignite_hooks.checkpoint.candidates import SourceError
from ignite_hooks.checkpoint.source import FolderSource
from ignite_hooks.checkpoint.store import UNFINISHED
from ignite_hooks.checkpoint.store import Checkpoint
from ignite_hooks.checkpoint.store import find_problems
from ignite_hooks.checkpoint.store import has_its_files
from ignite_hooks.checkpoint.store import is_still_there

__all__ = ["main"]

_REMOVED = "removed meanwhile"


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the arguments say; returns the exit status, 1 if anything is broken."""
    parser = argparse.ArgumentParser(
        prog="python -m ignite_hooks.checkpoint",
        description="Looks at checkpoints. No tensor is loaded, and nothing is changed.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, act, text in (
        ("list", _list, "a table of the checkpoints in a directory, the newest first"),
        ("show", _show, "what one checkpoint holds, or the newest in a directory"),
        ("verify", _verify, "reads every file, and says what is not as it was written"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("path", type=Path, help="a directory of checkpoints, or one of them")
        command.set_defaults(act=act)
    options = parser.parse_args(arguments)
    if not os.path.isdir(options.path):  # of a path that may not be looked at, too
        parser.error(f"`path` must be a directory, got {options.path}: is it mounted?")
    try:
        status: int = options.act(options.path)
    except SourceError as error:
        parser.error(str(error))
    return status


def _list(path: Path) -> int:
    checkpoints, broken = _found(path)
    now = datetime.now(timezone.utc)
    rows = [("checkpoint", "step", "epoch", "metric", "size", "age", "state")]
    for folder, manifest in checkpoints:
        metric = "-"
        if manifest.metric is not None and manifest.metric_value is not None:
            metric = f"{manifest.metric} {manifest.metric_value:.6g}"
        state = "complete"
        if not has_its_files(Checkpoint(folder, manifest)):
            is_there = is_still_there(Checkpoint(folder, manifest))
            state = "damaged" if is_there else _REMOVED
        rows.append(
            (
                folder.name,
                str(manifest.step),
                str(manifest.epoch),
                metric,
                _size(sum(file.size for file in manifest.files.values())),
                _age((now - manifest.saved_at).total_seconds()),
                state,
            )
        )
    rows += [(folder.name, "-", "-", "-", "-", "-", why) for folder, why in broken.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    return 0


def _show(path: Path) -> int:
    checkpoints, broken = _found(path)
    if not checkpoints:
        return _none(path, broken)
    folder, manifest = checkpoints[0]
    print(folder)
    for name, value in manifest.model_dump(exclude={"files", "versions"}).items():
        print(f"  {name:<13} {value}")
    for name, version in manifest.versions.items():
        print(f"  {name:<13} {version}")
    for file, record in manifest.files.items():
        print(f"  {_size(record.size):>9}  {file}")
    return 0


def _verify(path: Path) -> int:
    checkpoints, broken = _found(path)
    if not checkpoints and not broken:
        return _none(path, broken)
    # One may be in progress; what was broken off is removed before the next save.
    is_broken = any(why != UNFINISHED for why in broken.values())
    for folder, why in broken.items():
        print(f"{folder.name}: no checkpoint, {why}")
    for checkpoint in checkpoints:
        problems = find_problems(checkpoint)
        if problems and not is_still_there(checkpoint):
            print(f"{checkpoint.folder.name}: {_REMOVED}")
            continue
        is_broken = is_broken or bool(problems)
        for problem in problems or ["every file is as it was written"]:
            print(f"{checkpoint.folder.name}: {problem}")
    return int(is_broken)


def _found(path: Path) -> tuple[list[Checkpoint], dict[Path, str]]:
    """What is in a directory, or is that directory."""
    look = FolderSource(path).find()
    broken = {Path(name): why for name, why in (look.damaged | look.unfinished).items()}
    checkpoints = [Checkpoint(Path(name), manifest) for name, manifest in look.candidates]
    return checkpoints, dict(sorted(broken.items()))


def _none(path: Path, broken: dict[Path, str]) -> int:
    print(f"no checkpoint in {path}", file=sys.stderr)
    for folder, why in broken.items():
        print(f"{folder.name}: {why}", file=sys.stderr)
    return 1


def _size(size: float) -> str:
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.4g} {units[0]}"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


if __name__ == "__main__":
    sys.exit(main())
