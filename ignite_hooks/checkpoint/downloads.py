"""The cache folder of downloaded checkpoints, shared by any number of processes.

::

    step_00000500-0123456789abcdef    a complete checkpoint; its name ends with the manifest's hash
    .download-abcd                    a draft: a download in progress, locked by its process
    .lock                             locked while drafts are created, renamed or cleaned up

A draft has a unique name. It is filled, verified and then renamed, so no process ever sees an
incomplete checkpoint. If several processes download the same checkpoint, all of them use the copy
that is renamed first. The next download removes the drafts of killed processes. On a file system
without locks these drafts stay, because they look like the drafts of running processes.
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

from ignite_hooks.checkpoint.durable import sync_tree
from ignite_hooks.checkpoint.layout import MANIFEST
from ignite_hooks.checkpoint.manifest import Manifest
from ignite_hooks.checkpoint.source_interface import SourceError
from ignite_hooks.checkpoint.store import Checkpoint
from ignite_hooks.checkpoint.store import find_problems
from ignite_hooks.checkpoint.store import read_manifest

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Downloads"]

_LOCK_NAME = ".lock"
_DRAFT_PREFIX = ".download-"


class Downloads:
    """A folder of downloaded checkpoints.

    Args:
        folder: the path of the folder, which the first download creates.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(
        self, name: str, manifest: Manifest, download: Callable[[Path], None], *, verify: bool
    ) -> Checkpoint:
        """Returns a checkpoint from the cache. Downloads the checkpoint first if necessary.

        Args:
            name: the name of the checkpoint.
            manifest: the manifest of the checkpoint.
            download: a function that downloads the files to a given folder. An exception of the
                function is passed on.
            verify: whether to compare the checksums of the files that are in the cache already. If
                False, only the sizes of these files are compared.

        Raises:
            SourceError: the cache folder cannot be written to, or does not have enough space.
        """
        text = manifest.dumps()
        target = self._folder / f"{name}-{xxh3_128_hexdigest(text)[:16]}"
        checkpoint = Checkpoint(target, manifest)
        # If the present copy is damaged, the download replaces it.
        replaceable_identity = _identity(target)
        if replaceable_identity is not None and _is_undamaged(checkpoint, reads=verify):
            return checkpoint
        with self._os_errors_as_source_errors():
            self._folder.mkdir(parents=True, exist_ok=True)
        with self._draft() as draft, self._os_errors_as_source_errors():
            # Checked after `_draft`, which frees the space of downloads that were killed.
            self._check_room(manifest)
            files = draft / "files"
            files.mkdir()
            download(files)
            (files / MANIFEST).write_bytes(text)
            sync_tree(files)
            while not self._move_into_place(files, target, replaceable_identity):
                # Another process has put its copy at `target` first. The other copy is used if it
                # is complete, and replaced otherwise.
                replaceable_identity = _identity(target)
                if replaceable_identity is not None and _is_undamaged(checkpoint):
                    break
        return checkpoint

    def _move_into_place(self, files: Path, target: Path, replaceable_identity: object) -> bool:
        """Renames ``files`` to ``target``, and returns whether this was possible.

        The result is False if another process has put a copy at ``target`` in the meantime.

        Args:
            files: the folder of the new copy.
            target: the path of the checkpoint in the cache.
            replaceable_identity: the ``_identity`` of a damaged copy, which the new copy may
                replace; None if there was no copy.
        """
        with self._locked():
            if _identity(target) not in (None, replaceable_identity):
                return False
            if os.path.lexists(target):
                # The old copy is moved into the folder of the draft, which `_draft` removes. A
                # process that has opened files of the old copy can still read them.
                os.rename(target, files.parent / "replaced")
            os.rename(files, target)
            return True

    def _check_room(self, manifest: Manifest) -> None:
        needed = sum(record.size for record in manifest.files.values())
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise SourceError(
                f"`cache_dir` must have room for the checkpoint of step {manifest.step}, which has "
                f"{needed:,} bytes, got {self._folder} with {free:,} bytes free: free some space "
                "there, or give another folder"
            )

    @contextmanager
    def _draft(self) -> Iterator[Path]:
        """Creates a draft: a locked folder for one download. Removes the folder afterwards."""
        with self._os_errors_as_source_errors(), self._locked() as has_locks:
            if has_locks:
                self._remove_abandoned()
            draft = Path(tempfile.mkdtemp(dir=self._folder, prefix=_DRAFT_PREFIX))
            lock = (draft / _LOCK_NAME).open("wb")
            _lock_file(lock)
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            lock.close()

    def _remove_abandoned(self) -> None:
        """Removes the drafts that are not locked: their processes were killed."""
        for draft in self._folder.glob(f"{_DRAFT_PREFIX}*"):
            with suppress(OSError):  # another process may be removing the same draft
                if (draft / _LOCK_NAME).exists():
                    with (draft / _LOCK_NAME).open("rb+") as lock:
                        if not _lock_file(lock, is_blocking=False):
                            continue
                shutil.rmtree(draft, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Locks the cache folder against other processes; yields whether the lock was acquired."""
        with (self._folder / _LOCK_NAME).open("ab") as lock:
            is_locked = _lock_file(lock)
            try:
                yield is_locked
            finally:
                if is_locked:
                    # Closing the file does not always release the lock: a process that was forked
                    # in the meantime has the file open, too, and would keep the lock.
                    fcntl.flock(lock, fcntl.LOCK_UN)

    @contextmanager
    def _os_errors_as_source_errors(self) -> Iterator[None]:
        """Turns an OSError of the cache folder into a SourceError that names ``cache_dir``."""
        try:
            yield
        except SourceError:  # a subclass of OSError
            raise
        except OSError as error:
            raise SourceError(
                f"`cache_dir` {self._folder} could not be written: {type(error).__name__}: "
                f"{error.strerror}: check its permissions and free space, or give another folder"
            ) from error


def _is_undamaged(checkpoint: Checkpoint, *, reads: bool = True) -> bool:
    """Returns whether a cached checkpoint has the expected manifest and undamaged files.

    Args:
        checkpoint: the folder and the expected manifest.
        reads: whether to read the files and compare checksums; otherwise only sizes are compared.
    """
    try:
        text = read_manifest(checkpoint.folder).dumps()
    except (OSError, ValueError):
        return False
    return text == checkpoint.manifest.dumps() and not find_problems(checkpoint, reads=reads)


def _lock_file(file: IO[bytes], *, is_blocking: bool = True) -> bool:
    """Locks a file against other processes; returns whether the lock was acquired."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if is_blocking else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _identity(path: Path) -> object:
    """Returns a value that identifies the folder at a path; None if there is no folder.

    The value changes when another folder is moved to the path.
    """
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns
