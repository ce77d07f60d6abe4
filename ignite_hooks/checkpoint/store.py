"""A directory of checkpoints: how one is committed, found, verified, kept and removed.

A checkpoint is a folder, ``step_00000500``, with a file ``manifest.json`` that lists all others,
each with its size and hash: ``has_its_files`` and ``find_problems`` compare them with the disk.
While the folder is being filled the manifest is called ``incomplete.json``; its renaming is the
commit. Taking a checkpoint away begins with renaming it back. So at every moment, whatever happens
to the process or the machine, a folder is either a whole checkpoint or none at all.

One process calls ``CheckpointStore``; the others only put their files into the folder.
"""

import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import NamedTuple

from ignite_hooks.checkpoint.durable import make_folder
from ignite_hooks.checkpoint.durable import record_of
from ignite_hooks.checkpoint.durable import sync
from ignite_hooks.checkpoint.manifest import FileRecord
from ignite_hooks.checkpoint.manifest import Manifest

__all__ = [
    "MANIFEST",
    "Checkpoint",
    "CheckpointStore",
    "find_problems",
    "has_its_files",
    "is_checkpoint_name",
    "read_manifest",
]

MANIFEST = "manifest.json"
INCOMPLETE = "incomplete.json"
_MAX_MANIFEST_BYTES = 2**24
_FOLDER_NAME = re.compile(r"step_\d{8,}(-\d+)?")


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
    return _FOLDER_NAME.fullmatch(name) is not None


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        OSError: there is none, or it can not be read.
        ValueError: it is damaged.
    """
    with (folder / MANIFEST).open("rb") as file:
        text = file.read(_MAX_MANIFEST_BYTES + 1)
    if len(text) > _MAX_MANIFEST_BYTES:
        raise ValueError(f"{folder / MANIFEST} has more than {_MAX_MANIFEST_BYTES} bytes")
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


class CheckpointStore:
    """The checkpoints in a directory. What is in there besides is never touched.

    Args:
        directory: need not exist yet.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def checkpoints(self) -> list[Checkpoint]:
        """All that are whole as far as can be seen without reading them, the newest first."""
        found = []
        for folder in self._folders():
            try:
                found.append(Checkpoint(folder, read_manifest(folder)))
            except (OSError, ValueError):
                continue
        return sorted(found, key=lambda each: each.manifest.number, reverse=True)

    def broken(self) -> dict[Path, str]:
        """The folders that are none and have the name of one, and why they are none."""
        found = {}
        for folder in self._folders():
            try:
                read_manifest(folder)
            except OSError:
                is_left_over = (folder / INCOMPLETE).exists()
                found[folder] = "its save was not finished" if is_left_over else "no manifest"
            except ValueError:
                found[folder] = "its manifest is damaged"
        return found

    def damaged(self) -> dict[Path, str]:
        """Those among them that were checkpoints once: no save is going on there, or was."""
        broken = self.broken()
        return {
            folder: why
            for folder, why in broken.items()
            if any(folder.iterdir()) and not (folder / INCOMPLETE).exists()
        }

    def begin(self, step: int) -> Path:
        """Makes an empty folder for a checkpoint, after taking away what a killed save has left.

        If there is a checkpoint of this step already, of a training that was begun anew for
        instance, it stays, and the folder gets a number after its name.
        """
        make_folder(self.directory)
        self._remove_leftovers()
        folder = self.directory / f"step_{step:08d}"
        again = 1
        while folder.exists():
            again += 1
            folder = self.directory / f"step_{step:08d}-{again}"
        folder.mkdir()
        (folder / INCOMPLETE).touch()
        sync(folder)
        sync(self.directory)
        return folder

    def commit(self, folder: Path, manifest: Manifest) -> None:
        """Makes a checkpoint of a folder whose files are all on the disk."""
        incomplete = folder / INCOMPLETE
        incomplete.write_bytes(manifest.dumps())
        sync(incomplete)
        os.replace(incomplete, folder / MANIFEST)
        sync(folder)

    def amend(self, folder: Path, manifest: Manifest) -> None:
        """Replaces the manifest of a checkpoint, whose files stay."""
        amended = folder / INCOMPLETE  # beside a manifest it means nothing
        amended.write_bytes(manifest.dumps())
        sync(amended)
        os.replace(amended, folder / MANIFEST)
        sync(folder)

    def next_number(self) -> int:
        """The number of the checkpoint that is committed next."""
        numbers = [0]
        for folder in self._folders():
            with suppress(FileNotFoundError, ValueError):  # another failure could make it too small
                numbers.append(read_manifest(folder).number)
        return max(numbers) + 1

    def retain(
        self, training: str, keep_last: int | None, keep_best: int, metric: str | None, mode: str
    ) -> None:
        """Takes away all but the newest and the best of a training; those of others stay.

        One that lacks a file, or a part of one, is none of them: it does not count, and goes when
        it is older than the newest that stay.

        Args:
            training: the name that their manifests give to the training.
            keep_last: how many of the newest stay; None for all.
            keep_best: how many of the best by ``metric`` stay in addition. NaN is never among them;
                of equals the newer is the better.
            metric: the name that their manifests must give to the metric.
            mode: "max" or "min".
        """
        if keep_last is None:
            return
        newest_first = [each for each in self.checkpoints() if each.manifest.training == training]
        whole = [each for each in newest_first if has_its_files(each)]
        kept = whole[:keep_last]
        oldest = min((each.manifest.number for each in kept), default=inf)
        kept += _best(whole, metric, mode)[:keep_best]
        for checkpoint in newest_first:
            if checkpoint.manifest.number < oldest and checkpoint not in kept:
                self.remove(checkpoint.folder)

    def remove(self, folder: Path) -> None:
        """Takes a checkpoint away: first it is none any more, and then its files go."""
        os.replace(folder / MANIFEST, folder / INCOMPLETE)
        sync(folder)
        _remove_leftover(folder)

    def discard(self, folder: Path) -> None:
        """Takes away what a failed save has left, as far as that can be done now."""
        with suppress(OSError):
            if (folder / INCOMPLETE).exists():
                _remove_leftover(folder)

    def _remove_leftovers(self) -> None:
        for folder in self._folders():
            if (folder / INCOMPLETE).exists() and not (folder / MANIFEST).exists():
                _remove_leftover(folder)
            _remove_if_empty(folder)  # killed just after it was made, or just before it went

    def _folders(self) -> Iterator[Path]:
        if self.directory.is_dir():
            for path in sorted(self.directory.iterdir()):
                if is_checkpoint_name(path.name) and path.is_dir() and not path.is_symlink():
                    yield path


def _problem(path: Path, name: str, expected: FileRecord) -> str | None:
    try:
        found = record_of(path)
    except OSError as error:
        return f"{name} can not be read ({error.strerror})"
    if found.size != expected.size:
        return f"{name} has {found.size:,} bytes and had {expected.size:,}"
    return None if found == expected else f"{name} has changed since it was written"


def _best(newest_first: list[Checkpoint], metric: str | None, mode: str) -> list[Checkpoint]:
    """Those with a value of ``metric``, the best first."""
    sign = 1 if mode == "min" else -1
    valued = []
    for checkpoint in newest_first:
        value = checkpoint.manifest.metric_value
        if checkpoint.manifest.metric == metric and value is not None and value == value:
            valued.append((sign * value, checkpoint))
    return [checkpoint for _, checkpoint in sorted(valued, key=lambda each: each[0])]


def _remove_leftover(folder: Path) -> None:
    """Removes a folder that is no checkpoint; what a user has put into a whole one stays."""
    incomplete = folder / INCOMPLETE
    try:
        paths = [folder / name for name in Manifest.loads(incomplete.read_bytes()).files]
    except ValueError:  # a save was killed: all in it is of that save
        paths = [path for path in folder.iterdir() if path != incomplete]
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for parent in sorted({path.parent for path in paths} - {folder}, reverse=True):
        _remove_if_empty(parent)
    incomplete.unlink()  # last: what is left of a removal that is killed is known by it
    _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
