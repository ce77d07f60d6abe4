"""Commits, lists, verifies, prunes and removes the checkpoints in a directory.

A checkpoint is a folder, for example ``step_00000500``. Its file ``manifest.json`` lists all other
files with their sizes and hashes. ``has_all_files`` and ``find_problems`` compare this list with
the files on the disk. While the folder is being filled, the manifest is called ``incomplete.json``.
A commit renames the file to ``manifest.json``, and a removal begins by renaming it back. So a
folder with a ``manifest.json`` is a complete checkpoint, even if the process or the machine has
crashed during a save or a removal.

A user may have moved the folder of a checkpoint, and left a symbolic link in its place. In this
case a removal deletes only the link: nothing outside the directory is ever changed.

If a run has several processes, only rank 0 changes the directory through ``CheckpointStore``. The
other ranks only write their own files into the folder that rank 0 has created.
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

from ignite_hooks.checkpoint.durable import file_record
from ignite_hooks.checkpoint.durable import make_folder
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
    "has_all_files",
    "is_checkpoint_name",
    "is_still_there",
    "read_manifest",
]

# A larger manifest.json is damaged, or belongs to another program. It is not read as a whole,
# because it could fill the memory.
MAX_MANIFEST_BYTES = 2**24
_FOLDER_NAME = re.compile(r"step_\d{8,}(-\d+)?")
# The reason that CheckpointStore.broken() gives for a folder whose save or removal is not finished.
UNFINISHED = "its save, or its removal, is not finished"

logger = getLogger(__name__)


class Checkpoint(NamedTuple):
    """A folder that is a checkpoint.

    Attributes:
        folder: the path of the folder.
        manifest: the content of its ``manifest.json``.
    """

    folder: Path
    manifest: Manifest


class _HasManifest(Protocol):
    """An object with the manifest of a checkpoint."""

    @property
    def manifest(self) -> Manifest:
        """The manifest."""


_WithManifest = TypeVar("_WithManifest", bound=_HasManifest)


def is_checkpoint_name(name: str) -> bool:
    """Returns whether a name is that of a checkpoint's folder, for example ``step_00000500``."""
    return _FOLDER_NAME.fullmatch(name) is not None


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a folder.

    Raises:
        OSError: the manifest is absent or cannot be read.
        ValueError: the manifest is damaged.
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
    """Returns whether a folder still is the same checkpoint as when its manifest was read.

    Call this function if a file of the checkpoint could not be read. False means that the
    checkpoint has been removed or replaced, so the file may have been deleted with it. True means
    that the file is damaged. A removal cannot have deleted it, because a removal renames the
    manifest before it deletes any file.
    """
    try:
        # The manifests are compared as text, because a metric may be NaN, and NaN != NaN.
        return read_manifest(checkpoint.folder).dumps() == checkpoint.manifest.dumps()
    except OSError as error:
        # These errors show that the folder has been removed. Any other error may be temporary.
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
    except ValueError:  # the manifest is damaged, but still there
        return True


def has_all_files(checkpoint: Checkpoint) -> bool:
    """Returns whether each file in the manifest exists with its listed size. No file is read."""
    return not find_problems(checkpoint, reads=False)


def find_problems(checkpoint: Checkpoint, *, reads: bool = True) -> list[str]:
    """Returns a text for each file of a checkpoint that is missing or damaged.

    Args:
        checkpoint: the checkpoint.
        reads: whether to read the files and compare hashes; otherwise only sizes are compared.
    """
    folder, manifest = checkpoint

    def problem_of(name: str) -> str | None:
        expected = manifest.files[name]
        problem = _check_size(folder / name, name, expected)
        if problem is None and reads:
            problem = _check_content(folder / name, name, expected)
        return problem

    if not reads:
        return [problem for problem in map(problem_of, manifest.files) if problem is not None]
    with ThreadPoolExecutor() as pool:  # files are read and hashed in parallel, without the GIL
        found = pool.map(problem_of, manifest.files)
        return [problem for problem in found if problem is not None]


class CheckpointStore:
    """The checkpoints in a directory. Other files in the directory are never touched.

    Args:
        directory: the path of the directory; ``begin`` creates it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # Maps a folder to the version of its manifest file (inode, size and times) and the content
        # of the file.
        self._manifest_cache: dict[Path, tuple[tuple[int, ...], Manifest]] = {}

    def checkpoints(self) -> list[Checkpoint]:
        """Returns the checkpoints, the newest first. Only their manifests are read.

        A folder whose manifest is missing or cannot be read is left out.
        """
        found = []
        for folder in self._checkpoint_folders():
            with suppress(OSError, ValueError):
                found.append(Checkpoint(folder, self._manifest_of(folder)))
        return sorted(found, key=lambda each: each.manifest.number, reverse=True)

    def broken(self) -> dict[Path, str]:
        """Returns the folders that look like checkpoints but are none, with the reasons.

        Such a folder has the name of a checkpoint. It has at least one file of a checkpoint, or
        cannot be read.
        """
        found = {folder: _find_defect(folder) for folder in self._checkpoint_folders()}
        return {folder: why for folder, why in found.items() if why is not None}

    def damaged(self) -> dict[Path, str]:
        """Returns the result of ``broken`` without the unfinished saves and removals."""
        return {folder: why for folder, why in self.broken().items() if why != UNFINISHED}

    def begin(self, step: int) -> Path:
        """Removes the remains of saves that were killed, and creates a folder for a new checkpoint.

        If a folder of this name exists already, for example from the same step of an earlier run,
        the existing folder stays, and a number is appended to the name of the new folder.
        """
        make_folder(self.directory)
        self._remove_leftovers()
        for attempt in count(1):
            folder = self.directory / (f"step_{step:08d}" + (f"-{attempt}" if attempt > 1 else ""))
            with suppress(FileExistsError):
                folder.mkdir()
                break
        try:
            # If this save is killed, the next save finds incomplete.json, and removes the folder.
            (folder / INCOMPLETE).touch()
            sync(folder)
            sync(self.directory)
        except OSError:
            self.discard(folder)
            raise
        return folder

    def commit(self, folder: Path, manifest: Manifest) -> None:
        """Turns a folder into a checkpoint. Its files must have been synced to the disk before."""
        incomplete = folder / INCOMPLETE
        incomplete.write_bytes(manifest.dumps())
        sync(incomplete)
        os.replace(incomplete, folder / MANIFEST)
        sync(folder)

    def amend(self, folder: Path, manifest: Manifest) -> None:
        """Replaces the manifest of a checkpoint; its other files are not touched."""
        # If this process is killed before the rename, incomplete.json stays in the folder. The
        # folder still counts as complete, because it has a manifest.json.
        amended = folder / INCOMPLETE
        amended.write_bytes(manifest.dumps())
        sync(amended)
        os.replace(amended, folder / MANIFEST)
        sync(folder)

    def next_number(self) -> int:
        """Returns the number for the next checkpoint: one more than the largest so far."""
        numbers = [0]
        for folder in self._checkpoint_folders():
            # A folder without a manifest, or with a damaged one, is not a checkpoint. If permission
            # is denied, the folder belongs to another user. Any other error is raised. If it were
            # ignored, the largest number could be missed, and the next checkpoint would count as
            # older than an existing one.
            with suppress(FileNotFoundError, PermissionError, ValueError):
                numbers.append(self._manifest_of(folder).number)
        return max(numbers) + 1

    def retain(
        self, training: str, keep_last: int | None, keep_best: int, metric: str | None, mode: str
    ) -> None:
        """Removes old checkpoints of one run, and keeps the newest and the best checkpoints.

        The checkpoints of other runs stay. A checkpoint with a missing or truncated file is
        damaged, and does not count as one of the newest or best. It is removed if it is older than
        all of the ``keep_last`` newest checkpoints.

        Args:
            training: the identifier of the run in the manifests.
            keep_last: the number of newest checkpoints to keep; None for all.
            keep_best: the number of best checkpoints by ``metric`` to keep in addition. A value of
                NaN is never the best. Of two checkpoints with equal values the newer is better.
            metric: the name of the metric in the manifests.
            mode: "max" or "min".
        """
        if keep_last is None:
            return
        newest_first = [each for each in self.checkpoints() if each.manifest.training == training]
        kept = list(islice(filter(has_all_files, newest_first), keep_last))
        # `oldest` is computed before the best checkpoints are added to `kept`. Otherwise an old
        # best checkpoint would protect all checkpoints after it.
        oldest = min((each.manifest.number for each in kept), default=inf)
        kept += islice(filter(has_all_files, best_first(newest_first, metric, mode)), keep_best)
        failures = []
        for checkpoint in newest_first:
            if checkpoint.manifest.number < oldest and checkpoint not in kept:
                try:
                    self.remove(checkpoint.folder)
                except OSError as error:
                    # The error is raised after the loop, so that the other old checkpoints are
                    # removed first.
                    failures.append(error)
        if failures:
            raise failures[0]

    def remove(self, folder: Path) -> None:
        """Removes a checkpoint: first its manifest is renamed, then its files are deleted.

        If the folder is a symbolic link, only the link is removed.
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
        self._manifest_cache.pop(folder, None)

    def discard(self, folder: Path) -> None:
        """Removes the remains of a failed save.

        If the remains cannot be removed, no error is raised, and the next save tries again.
        """
        with suppress(OSError):
            if _is_unfinished(folder):
                _remove_leftover(folder)
            else:
                _remove_if_empty(folder)

    def _manifest_of(self, folder: Path) -> Manifest:
        """Returns the manifest of a folder. The file is read again only if it has changed.

        A manifest is always replaced as a whole, so a changed file has another inode or time.
        """
        try:
            status = os.stat(folder / MANIFEST)
        except OSError:
            return read_manifest(folder)  # raises an error that says why there is no manifest
        version = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        cached = self._manifest_cache.get(folder)
        if cached is None or cached[0] != version:
            cached = self._manifest_cache[folder] = version, read_manifest(folder)
        return cached[1]

    def _remove_leftovers(self) -> None:
        """Removes the remains of saves and removals whose process was killed."""
        for folder in self._checkpoint_folders():
            if os.path.lexists(folder / MANIFEST) or folder.is_symlink():
                continue
            if not _is_unfinished(folder):
                # A process that is killed after mkdir() or before rmdir() leaves an empty folder.
                with suppress(OSError):
                    _remove_if_empty(folder)
                continue
            try:
                _remove_leftover(folder)
            except OSError as error:
                warnings.warn(
                    f"the remains of an interrupted save or removal, {folder}, could not be "
                    f"removed: {error}",
                    stacklevel=2,
                )

    def _checkpoint_folders(self) -> Iterator[Path]:
        """Yields the folders, and links to folders, that have the name of a checkpoint.

        Each folder is yielded only once, even if several links point to it.
        """
        if not os.path.isdir(self.directory):
            return
        with os.scandir(self.directory) as entries:
            named = {each.path: each for each in entries if is_checkpoint_name(each.name)}
        links = {path for path, each in named.items() if each.is_symlink()}
        folders = [path for path in sorted(named) if os.path.isdir(path)]
        # A link to a folder in `found` is not yielded.
        found = {os.path.realpath(path) for path in folders if links and path not in links}
        for path in folders:
            if path in links:
                target = os.path.realpath(path)
                if target in found:
                    continue
                found.add(target)
            yield Path(path)


def _check_size(path: Path, name: str, expected: FileRecord) -> str | None:
    try:
        status = os.stat(path)
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    if stat.S_ISDIR(status.st_mode):
        return f"{name} cannot be read ({os.strerror(errno.EISDIR)})"
    if not stat.S_ISREG(status.st_mode):
        return f"{name} cannot be read (not a regular file)"
    if status.st_size != expected.size:
        size = f"{status.st_size:,} bytes"
        return f"{name} has {size}, but had {expected.size:,} when it was saved"
    return None


def _check_content(path: Path, name: str, expected: FileRecord) -> str | None:
    try:
        found = file_record(path)
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return None if found == expected else f"{name} has changed since it was written"


def best_first(
    newest_first: Sequence[_WithManifest], metric: str | None, mode: str
) -> list[_WithManifest]:
    """Returns the checkpoints that have a value of ``metric``, the best first.

    Checkpoints with a value of NaN are left out. Of equal values the newer comes first.

    Args:
        newest_first: objects with the manifests of checkpoints.
        metric: the name of the metric in the manifests.
        mode: "max" or "min".
    """
    sign = 1 if mode == "min" else -1
    valued = []
    for checkpoint in newest_first:
        value = checkpoint.manifest.metric_value
        if checkpoint.manifest.metric == metric and value is not None and value == value:  # not NaN
            valued.append((sign * value, checkpoint))
    return [checkpoint for _, checkpoint in sorted(valued, key=lambda each: each[0])]


def _find_defect(folder: Path) -> str | None:
    """Returns the reason why a folder is an incomplete or damaged checkpoint.

    Returns None if the folder is a checkpoint, or has no file of a checkpoint. A save or a removal
    may be in progress, so the folder may change while this function examines it.
    """
    try:
        if _has_manifest(folder):
            read_manifest(folder)
            return None
        names = os.listdir(folder)
    except FileNotFoundError:  # the folder was removed while it was examined
        return None
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except ValueError:
        return "its manifest is damaged"
    # A save may have added the manifest after the first check, so it is checked again.
    if MANIFEST in names:
        return None if _has_manifest(folder) else "its manifest is not a file"
    if INCOMPLETE in names:
        return UNFINISHED
    return "no manifest" if any(map(OWN_FILE.fullmatch, names)) else None


def _has_manifest(folder: Path) -> bool:
    """Returns whether a folder has a manifest that is a regular file.

    Raises:
        PermissionError: the folder cannot be entered.
    """
    try:
        return stat.S_ISREG((folder / MANIFEST).stat().st_mode)
    except PermissionError:
        raise
    except OSError:
        return False


def _is_unfinished(folder: Path) -> bool:
    """Returns whether a folder is left from a save or a removal that is not finished."""
    try:
        is_file = stat.S_ISREG((folder / INCOMPLETE).lstat().st_mode)
    except OSError:
        return False
    return is_file and not os.path.lexists(folder / MANIFEST)


def _remove_leftover(folder: Path) -> None:
    """Removes a folder that an unfinished save or removal has left.

    After an unfinished save all files in the folder are removed. After an unfinished removal only
    the files that the manifest lists are removed, because a user may have put other files into the
    complete checkpoint.
    """
    incomplete = folder / INCOMPLETE
    with incomplete.open("rb") as file:
        text = file.read(MAX_MANIFEST_BYTES)
    # incomplete.json is deleted last, after the other deletions are synced to the disk. If this
    # process is killed earlier, incomplete.json still lists the files that have to be deleted.
    try:
        names = list(Manifest.loads(text).files)
    except ValueError:
        # The list of files is missing or cut off, so a save has not finished. All files in the
        # folder come from that save.
        _remove_all(folder)
        # If sync() fails, for example because the disk is full, the removal continues. At worst, a
        # power loss brings deleted files back.
        with suppress(OSError):
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
            shutil.rmtree(path)  # does not follow links
        elif path.name != INCOMPLETE:
            path.unlink()


def _remove_listed(folder: Path, names: list[str]) -> None:
    """Removes the files with these names, and the sub-folders that become empty."""
    root, parents = Path(os.path.realpath(folder)), set()
    for name in names:
        path = folder / name
        # If a user has edited the manifest, or a sub-folder is a link, a name may lead out of the
        # folder. Such a name is skipped.
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
    """Removes an empty folder; returns False if the folder is not empty."""
    if any(folder.iterdir()):
        return False
    folder.rmdir()
    return True
