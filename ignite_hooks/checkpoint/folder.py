"""A folder that is a checkpoint: its name, what it says of itself, and whether that is true."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ignite_hooks.checkpoint.durable import record_of
from ignite_hooks.checkpoint.manifest import FileRecord
from ignite_hooks.checkpoint.manifest import Manifest

__all__ = [
    "MANIFEST",
    "Checkpoint",
    "find_problems",
    "has_its_files",
    "is_checkpoint_name",
    "read_manifest",
]

MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 2**24
_FOLDER = re.compile(r"step_\d{8,}(-\d+)?")


class Checkpoint(NamedTuple):
    """A folder that is a checkpoint.

    Args:
        folder: where it is.
        manifest: what it says of itself.
    """

    folder: Path
    manifest: Manifest


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder of this name may be a checkpoint."""
    return _FOLDER.fullmatch(name) is not None


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        OSError: there is none, or it can not be read.
        ValueError: it is damaged.
    """
    with (folder / MANIFEST).open("rb") as file:
        text = file.read(_LARGEST_MANIFEST + 1)
    if len(text) > _LARGEST_MANIFEST:
        raise ValueError(f"{folder / MANIFEST} has more than {_LARGEST_MANIFEST} bytes")
    return Manifest.loads(text)


def has_its_files(checkpoint: Checkpoint) -> bool:
    """Whether each file is there, with its size: what can be told without reading it."""
    folder, manifest = checkpoint
    try:
        return all((folder / n).stat().st_size == f.size for n, f in manifest.files.items())
    except OSError:
        return False


def find_problems(checkpoint: Checkpoint) -> list[str]:
    """What is not as it was written: each file that is missing or damaged, and how."""
    folder, manifest = checkpoint
    with ThreadPoolExecutor() as pool:  # reading and the sums go on at once
        found = pool.map(lambda file: _problem(folder / file[0], *file), manifest.files.items())
        return [problem for problem in found if problem is not None]


def _problem(path: Path, name: str, expected: FileRecord) -> str | None:
    try:
        found = record_of(path)
    except OSError as error:
        return f"{name} can not be read ({error.strerror})"
    if found.size != expected.size:
        return f"{name} has {found.size:,} bytes and had {expected.size:,}"
    return None if found == expected else f"{name} has changed since it was written"
