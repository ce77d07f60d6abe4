"""A directory of checkpoints: how one is committed, found, verified, kept and removed.

A checkpoint is a folder, ``step_00000500``, with a file ``manifest.json`` that lists all others,
each with its size and hash: ``has_its_files`` and ``find_problems`` compare them with the disk.
While the folder is being filled the manifest is called ``incomplete.json``; its renaming is the
commit. Taking a checkpoint away begins with renaming it back. So at every moment, whatever happens
to the process or the machine, a folder is either a whole checkpoint or none at all.

A checkpoint may have been moved elsewhere, with a symbolic link left in its place. Taking it away
removes the link: nothing outside the directory is ever changed.

One process calls ``CheckpointStore``; the others only put their files into the folder.
"""

import errno
import os
import re
import shutil
import stat
import warnings
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from itertools import islice
from logging import getLogger
from math import inf
from pathlib import Path
from typing import NamedTuple
from typing import Protocol
from typing import TypeVar

from ignite_hooks.checkpoint.durable import make_folder
from ignite_hooks.checkpoint.durable import record_of
from ignite_hooks.checkpoint.durable import sync
from ignite_hooks.checkpoint.layout import INCOMPLETE
from ignite_hooks.checkpoint.layout import MANIFEST
from ignite_hooks.checkpoint.layout import OWN_FILE
from ignite_hooks.checkpoint.manifest import FileRecord
from ignite_hooks.checkpoint.manifest import Manifest
from ignite_hooks.checkpoint.regular_file import NotRegularFileError
from ignite_hooks.checkpoint.regular_file import open_regular

__all__ = [
    "MAX_MANIFEST_BYTES",
    "UNFINISHED",
    "Checkpoint",
    "CheckpointStore",
    "best_first",
    "find_problems",
    "has_its_files",
    "is_checkpoint_name",
    "is_still_there",
    "read_manifest",
]

MAX_MANIFEST_BYTES = 2**24
_FOLDER_NAME = re.compile(r"step_\d{8,}(-\d+)?")
UNFINISHED = "its save, or its removal, is not finished"

logger = getLogger(__name__)


class Checkpoint(NamedTuple):
    """A folder that is a checkpoint.

    Args:
        folder: where it is.
        manifest: what it says of itself.
    """

    folder: Path
    manifest: Manifest


class _HasManifest(Protocol):
    """Whatever has the manifest of a checkpoint."""

    @property
    def manifest(self) -> Manifest:
        """The manifest."""


_Found = TypeVar("_Found", bound=_HasManifest)


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder of this name may be a checkpoint."""
    return _FOLDER_NAME.fullmatch(name) is not None


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is damaged.
    """
    try:
        with open_regular(folder / MANIFEST) as file:
            text = file.read(MAX_MANIFEST_BYTES + 1)
    except NotRegularFileError as error:
        raise ValueError(f"{folder / MANIFEST} is not a file") from error
    if len(text) > MAX_MANIFEST_BYTES:
        raise ValueError(f"{folder / MANIFEST} has more than {MAX_MANIFEST_BYTES} bytes")
    return Manifest.loads(text)


def is_still_there(checkpoint: Checkpoint) -> bool:
    """Returns whether the folder has not been removed, or replaced, since its manifest was read.

    A removal renames the manifest before it touches a file. So all files that were opened before
    this returned True were whole, and a file that fails after it returned False is not damaged.
    """
    try:
        # As text, because a metric that is NaN does not equal itself.
        return read_manifest(checkpoint.folder).dumps() == checkpoint.manifest.dumps()
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
    except ValueError:
        return True


def has_its_files(checkpoint: Checkpoint) -> bool:
    """Whether each file is there, with its size: what can be told without reading it."""
    return not find_problems(checkpoint, reads=False)


def find_problems(checkpoint: Checkpoint, *, reads: bool = True) -> list[str]:
    """What is not as it was written: each file that is missing or damaged, and how.

    Args:
        checkpoint: the checkpoint.
        reads: whether the files are read; else their kinds and sizes are looked at.
    """
    folder, manifest = checkpoint

    def problem_of(name: str) -> str | None:
        expected = manifest.files[name]
        problem = _problem_of_size(folder / name, name, expected)
        if problem is None and reads:
            problem = _problem_of_content(folder / name, name, expected)
        return problem

    if not reads:
        return [problem for problem in map(problem_of, manifest.files) if problem is not None]
    with ThreadPoolExecutor() as pool:  # reading and the sums go on at once
        found = pool.map(problem_of, manifest.files)
        return [problem for problem in found if problem is not None]


class CheckpointStore:
    """The checkpoints in a directory. What is in there besides is never touched.

    Args:
        directory: need not exist yet.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._known: dict[Path, tuple[tuple[int, ...], Manifest]] = {}

    def checkpoints(self) -> list[Checkpoint]:
        """All that are whole as far as can be seen without reading them, the newest first."""
        found = []
        for folder in self._folders():
            with suppress(OSError, ValueError):
                found.append(Checkpoint(folder, self._manifest_of(folder)))
        return sorted(found, key=lambda each: each.manifest.number, reverse=True)

    def broken(self) -> dict[Path, str]:
        """The folders that are none and have the name of one, and why they are none."""
        found = {folder: _why_broken(folder) for folder in self._folders()}
        return {folder: why for folder, why in found.items() if why is not None}

    def damaged(self) -> dict[Path, str]:
        """Those among them that were checkpoints once: no save is going on there, or was."""
        return {folder: why for folder, why in self.broken().items() if why != UNFINISHED}

    def begin(self, step: int) -> Path:
        """Makes an empty folder for a checkpoint, after taking away what a killed save has left.

        If there is something of that name already, the same step of a training that was begun anew
        for instance, it stays, and the folder gets a number after its name.
        """
        make_folder(self.directory)
        self._remove_leftovers()
        for again in count(1):
            folder = self.directory / (f"step_{step:08d}" + (f"-{again}" if again > 1 else ""))
            with suppress(FileExistsError):
                folder.mkdir()
                break
        try:
            (folder / INCOMPLETE).touch()
            sync(folder)
            sync(self.directory)
        except OSError:
            self.discard(folder)
            raise
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
            # No checkpoint, or one of somebody else's. Another failure could make it too small.
            with suppress(FileNotFoundError, PermissionError, ValueError):
                numbers.append(self._manifest_of(folder).number)
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
        kept = list(islice(filter(has_its_files, newest_first), keep_last))
        oldest = min((each.manifest.number for each in kept), default=inf)
        kept += islice(filter(has_its_files, best_first(newest_first, metric, mode)), keep_best)
        failures = []
        for checkpoint in newest_first:
            if checkpoint.manifest.number < oldest and checkpoint not in kept:
                try:
                    self.remove(checkpoint.folder)
                except OSError as error:  # one that cannot go does not keep the others
                    failures.append(error)
        if failures:
            raise failures[0]

    def remove(self, folder: Path) -> None:
        """Takes a checkpoint away: first it is none any more, and then its files go.

        Of one that is a symbolic link the link goes, and what it leads to stays as it is.
        """
        if folder.is_symlink():
            target = os.path.realpath(folder)
            folder.unlink()
            sync(self.directory)
            logger.info("the link %s was removed, and the checkpoint %s stays", folder, target)
        else:
            os.replace(folder / MANIFEST, folder / INCOMPLETE)
            sync(folder)
            _remove_leftover(folder)
        self._known.pop(folder, None)

    def discard(self, folder: Path) -> None:
        """Takes away what a failed save has left, as far as that can be done now."""
        with suppress(OSError):
            if _is_left_over(folder):
                _remove_leftover(folder)
            else:
                _remove_if_empty(folder)

    def _manifest_of(self, folder: Path) -> Manifest:
        """Reads a manifest, once: a changed one is another file, as it is replaced as a whole."""
        try:
            status = os.stat(folder / MANIFEST)
        except OSError:
            return read_manifest(folder)  # an error that says why
        version = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        known = self._known.get(folder)
        if known is None or known[0] != version:
            known = self._known[folder] = version, read_manifest(folder)
        return known[1]

    def _remove_leftovers(self) -> None:
        for folder in self._folders():
            if os.path.lexists(folder / MANIFEST) or folder.is_symlink():
                continue
            if not _is_left_over(folder):
                with suppress(OSError):  # killed just after it was made, or just before it went
                    _remove_if_empty(folder)
                continue
            try:
                _remove_leftover(folder)
            except OSError as error:
                warnings.warn(
                    f"the rest of a save or a removal that was broken off, {folder}, could not be "
                    f"removed: {error}",
                    stacklevel=2,
                )

    def _folders(self) -> Iterator[Path]:
        """Those whose names are of checkpoints, links to folders included, each folder once."""
        if not os.path.isdir(self.directory):
            return
        with os.scandir(self.directory) as entries:
            named = {each.path: each for each in entries if is_checkpoint_name(each.name)}
        links = {path for path, each in named.items() if each.is_symlink()}
        folders = [path for path in sorted(named) if os.path.isdir(path)]
        found = {os.path.realpath(path) for path in folders if links and path not in links}
        for path in folders:
            if path in links:
                target = os.path.realpath(path)
                if target in found:
                    continue
                found.add(target)
            yield Path(path)


def _problem_of_size(path: Path, name: str, expected: FileRecord) -> str | None:
    try:
        status = os.stat(path)
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    if stat.S_ISDIR(status.st_mode):
        return f"{name} cannot be read ({os.strerror(errno.EISDIR)})"
    if not stat.S_ISREG(status.st_mode):
        return f"{name} cannot be read (not a regular file)"
    if status.st_size != expected.size:
        return f"{name} has {status.st_size:,} bytes and had {expected.size:,}"
    return None


def _problem_of_content(path: Path, name: str, expected: FileRecord) -> str | None:
    try:
        found = record_of(path)
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return None if found == expected else f"{name} has changed since it was written"


def best_first(newest_first: Sequence[_Found], metric: str | None, mode: str) -> list[_Found]:
    """Returns those with a value of ``metric``, the best first; of equals the newer comes first.

    Args:
        newest_first: checkpoints with their manifests.
        metric: the name that a manifest must give to the metric.
        mode: "max" or "min".
    """
    sign = 1 if mode == "min" else -1
    valued = []
    for checkpoint in newest_first:
        value = checkpoint.manifest.metric_value
        if checkpoint.manifest.metric == metric and value is not None and value == value:
            valued.append((sign * value, checkpoint))
    return [checkpoint for _, checkpoint in sorted(valued, key=lambda each: each[0])]


def _why_broken(folder: Path) -> str | None:
    """Returns why a folder is no checkpoint; None if it is one, or has nothing of one.

    A save or a removal may go on there, so that each look is at one moment.
    """
    try:
        if _has_manifest(folder):
            read_manifest(folder)
            return None
        names = os.listdir(folder)
    except FileNotFoundError:  # it was removed meanwhile
        return None
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except ValueError:
        return "its manifest is damaged"
    if MANIFEST in names:
        return None if _has_manifest(folder) else "its manifest is not a file"
    if INCOMPLETE in names:
        return UNFINISHED
    return "no manifest" if any(map(OWN_FILE.fullmatch, names)) else None


def _has_manifest(folder: Path) -> bool:
    """Returns whether a file is in the manifest's place; opening a FIFO there would wait for ever.

    Raises:
        PermissionError: the folder may not be entered.
    """
    try:
        return stat.S_ISREG((folder / MANIFEST).stat().st_mode)
    except PermissionError:
        raise
    except OSError:
        return False


def _is_left_over(folder: Path) -> bool:
    """Returns whether a save, or a removal, was broken off there."""
    try:
        is_file = stat.S_ISREG((folder / INCOMPLETE).lstat().st_mode)
    except OSError:
        return False
    return is_file and not os.path.lexists(folder / MANIFEST)


def _remove_leftover(folder: Path) -> None:
    """Removes a folder that is no checkpoint; what a user has put into a whole one stays."""
    incomplete = folder / INCOMPLETE
    with incomplete.open("rb") as file:
        text = file.read(MAX_MANIFEST_BYTES)
    # Synced before the list goes: by it the rest of a removal that is broken off is known.
    try:
        names = list(Manifest.loads(text).files)
    except ValueError:  # a save was killed: all in it is of that save
        _remove_all(folder)
        with suppress(OSError):  # the disk may be full, and there is nothing to lose
            sync(folder)
    else:
        _remove_listed(folder, names)
        sync(folder)
    incomplete.unlink()
    if _remove_if_empty(folder):
        sync(folder.parent)
    else:
        sync(folder)


def _remove_all(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)  # follows no link
        elif path.name != INCOMPLETE:
            path.unlink()


def _remove_listed(folder: Path, names: list[str]) -> None:
    """Removes files of these names, and sub-folders that are empty then."""
    root, parents = Path(os.path.realpath(folder)), set()
    for name in names:
        path = folder / name
        # A list may come from elsewhere, and a sub-folder may be a link to elsewhere.
        is_flat = path.parent == folder
        is_within = is_flat or Path(os.path.realpath(path.parent)) == (root / name).parent
        if is_within and (path.is_symlink() or not path.is_dir()):
            with suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
            if not is_flat:
                parents |= {each for each in path.parents if folder in each.parents}
    for parent in sorted(parents, reverse=True):
        if parent.is_dir() and not _remove_if_empty(parent):
            sync(parent)


def _remove_if_empty(folder: Path) -> bool:
    """Removes a folder, or returns False if something is in it."""
    if any(folder.iterdir()):
        return False
    folder.rmdir()
    return True
