"""Durable writes: files and folders that survive a power loss, and checksums of files."""

import errno
import os
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from xxhash import xxh3_128

from ignite_hooks.checkpoint.manifest import FileRecord
from ignite_hooks.checkpoint.regular_file import open_regular
from ignite_hooks.core.warn_once import warn_once

__all__ = ["copy_file_mode", "file_record", "make_folder", "sync", "sync_tree"]

_CHUNK_BYTES = 2**20
# Windows refuses to sync a file that was opened for reading only.
_FILE_SYNC_FLAGS = os.O_RDWR if sys.platform == "win32" else os.O_RDONLY
_FOLDER_SYNC_UNSUPPORTED = {
    errno.EACCES,  # Windows opens no folder; elsewhere a folder may be written to and not read
    errno.EPERM,
    errno.EISDIR,
    errno.EINVAL,  # SMB, and some file systems in user space
    errno.EBADF,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
}
"""Error numbers of file systems that cannot sync folders; EIO and ENOSPC remain errors."""


def sync(path: Path) -> None:
    """Waits until the content of a file, or the list of names of a folder, is on the disk.

    Where the file system cannot sync folders, the function warns once and returns.
    """
    is_folder = os.path.isdir(path)
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else _FILE_SYNC_FLAGS)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in _FOLDER_SYNC_UNSUPPORTED:
            raise
        warn_once(
            f"the file system of the checkpoints cannot sync folders ({error.strerror}): a power "
            "loss may lose the newest checkpoint, and keep_last=2 or more leaves an older one; the "
            "end of the process alone loses none"
        )


def make_folder(folder: Path) -> None:
    """Creates a folder and its missing parents, and syncs the parent of each new folder."""
    if os.path.isdir(folder):
        return
    # The entry of a new folder is durable only once its parent is synced.
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in made:
        sync(each.parent)


def sync_tree(folder: Path) -> None:
    """Syncs all files and folders in a folder, and the folder itself last."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            sync_tree(path)
        else:
            sync(path)
    sync(folder)


def copy_file_mode(model: Path, paths: Iterable[Path]) -> None:
    """Gives files the access mode of ``model``, a file that was created with the usual ``open``.

    safetensors creates files that only their owner may read. The mode is copied from a file because
    the umask cannot be read without changing it for all threads, and because the default ACL of a
    folder overrides the umask.
    """
    mode = stat.S_IMODE(os.stat(model).st_mode)
    for path in paths:
        if stat.S_IMODE(os.stat(path).st_mode) != mode:
            with suppress(OSError):  # some file systems have no modes; the save is worth more
                path.chmod(mode)


def file_record(path: Path) -> FileRecord:
    """Returns the size and the XXH3 checksum of a file.

    XXH3 is faster than reading from memory. It detects damage; it does not prove the origin of a
    file.
    """
    checksum, size = xxh3_128(), 0
    with open_regular(path) as file:
        # A buffer of a whole chunk would take longer to zero than a small file takes to read.
        buffer = bytearray(min(_CHUNK_BYTES, os.fstat(file.fileno()).st_size + 1))
        view = memoryview(buffer)
        while count := file.readinto(buffer):
            checksum.update(view[:count])
            size += count
    return FileRecord(size=size, checksum=checksum.hexdigest())
