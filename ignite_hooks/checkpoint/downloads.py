"""The folder that checkpoints are downloaded to, shared by any number of processes.

::

    step_00000500-0123456789abcdef    a whole checkpoint; the digits are the hash of its manifest
    .download-abcd                    a download, locked by the process that makes it
    .lock                             held while a name is given or taken away

A download is filled under a unique name, verified, and renamed. So no process sees a part of one.
Of several processes that download the same checkpoint, all use the copy that is renamed first.
Where the file system has no locks, nothing of killed downloads is cleaned up.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path
from typing import IO

from xxhash import xxh3_128_hexdigest

from ignite_hooks.checkpoint.candidates import SourceError
from ignite_hooks.checkpoint.durable import sync_tree
from ignite_hooks.checkpoint.layout import MANIFEST
from ignite_hooks.checkpoint.manifest import Manifest
from ignite_hooks.checkpoint.store import Checkpoint
from ignite_hooks.checkpoint.store import find_problems
from ignite_hooks.checkpoint.store import read_manifest

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Downloads"]

_LOCK = ".lock"
_DRAFT = ".download-"


class Downloads:
    """A folder of downloaded checkpoints.

    Args:
        folder: need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(
        self, name: str, manifest: Manifest, download: Callable[[Path], None], *, verify: bool
    ) -> Checkpoint:
        """Returns the checkpoint of that manifest; it is downloaded unless it is there.

        Args:
            name: of the checkpoint.
            manifest: its manifest.
            download: fills a folder with the files; what it raises is raised.
            verify: whether a checkpoint that is there is read and compared with its checksums.

        Raises:
            SourceError: the folder cannot be written, or has no room.
        """
        text = manifest.dumps()
        target = self._folder / f"{name}-{xxh3_128_hexdigest(text)[:16]}"
        checkpoint = Checkpoint(target, manifest)
        damaged = _identity(target)
        if damaged is not None and _is_whole(checkpoint, reads=verify):
            return checkpoint
        with self._explained():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._check_room(manifest)
        with self._draft() as draft, self._explained():
            files = draft / "files"
            files.mkdir()
            download(files)
            (files / MANIFEST).write_bytes(text)
            sync_tree(files)
            while not self._take_place(files, target, damaged):
                # Another process was faster: what is there now is not what was damaged.
                damaged = _identity(target)
                if damaged is not None and _is_whole(checkpoint):
                    break
        return checkpoint

    def _take_place(self, files: Path, target: Path, damaged: object) -> bool:
        """Renames the files to the target, unless another process has replaced what was there."""
        with self._locked():
            if _identity(target) not in (None, damaged):
                return False
            if os.path.lexists(target):
                # A process that has its files open can still read them.
                os.rename(target, files.parent / "replaced")
            os.rename(files, target)
            return True

    def _check_room(self, manifest: Manifest) -> None:
        needed = sum(record.size for record in manifest.files.values())
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise SourceError(
                f"`cache_dir` must have room for the checkpoint of step {manifest.step}, which has "
                f"{needed:,} bytes, got {self._folder} with {free:,} bytes free: remove what is "
                "not needed there, or give another folder"
            )

    @contextmanager
    def _draft(self) -> Iterator[Path]:
        """Makes a folder for one download and removes it; if killed, another process removes it."""
        with self._explained(), self._locked() as has_locks:
            if has_locks:
                self._remove_abandoned()
            draft = Path(tempfile.mkdtemp(dir=self._folder, prefix=_DRAFT))
            lock = (draft / _LOCK).open("wb")
            _lock(lock)
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            lock.close()

    def _remove_abandoned(self) -> None:
        """Removes the drafts of processes that were killed. All that live have theirs locked."""
        for draft in self._folder.glob(f"{_DRAFT}*"):
            with suppress(OSError):
                if (draft / _LOCK).exists():
                    with (draft / _LOCK).open("rb+") as lock:
                        if not _lock(lock, waits=False):
                            continue
                shutil.rmtree(draft, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Keeps other processes out; yields whether the file system can do that."""
        with (self._folder / _LOCK).open("ab") as lock:
            is_locked = _lock(lock)
            try:
                yield is_locked
            finally:
                if is_locked:
                    # Closing is not enough: a process forked meanwhile has the file open, too.
                    fcntl.flock(lock, fcntl.LOCK_UN)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except SourceError:
            raise
        except OSError as error:
            raise SourceError(
                f"`cache_dir` {self._folder} could not be written: {type(error).__name__}: "
                f"{error.strerror}: check its permissions and its free space, or give another one"
            ) from error


def _is_whole(checkpoint: Checkpoint, *, reads: bool = True) -> bool:
    try:
        text = read_manifest(checkpoint.folder).dumps()
    except (OSError, ValueError):
        return False
    return text == checkpoint.manifest.dumps() and not find_problems(checkpoint, reads=reads)


def _lock(file: IO[bytes], *, waits: bool = True) -> bool:
    """Locks a file against other processes; returns whether that was possible."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _identity(path: Path) -> object:
    """Identifies a folder among all that have its name one after another; None if it is absent."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns
