"""Functions that sync files and folders to the disk, and compute the checksums of files."""

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
    errno.EACCES,  # Windows cannot open folders; elsewhere the permission to read may be missing
    errno.EPERM,
    errno.EISDIR,
    errno.EINVAL,  # raised by SMB and by some file systems in user space
    errno.EBADF,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
}
"""The values of ``errno`` that mean: this file system cannot sync folders.

If syncing a folder fails with one of these values, ``sync`` warns, and does not raise the error.
"""


def sync(path: Path) -> None:
    """Waits until the content of a file, or the list of the names in a folder, is on the disk.

    If the file system cannot sync folders, the function warns once and returns.
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
            "loss may lose the newest checkpoint (a crash of the process loses none); give "
            "keep_last=2 or more, so that an older checkpoint is left after a power loss"
        )


def make_folder(folder: Path) -> None:
    """Creates a folder and its missing parents, and waits until they are on the disk."""
    if os.path.isdir(folder):
        return
    # A new folder is durable only after the folder that contains it has been synced.
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
    """Gives files the access mode of another file, ``model``.

    The file ``model`` must have been created with the usual ``open``.

    safetensors creates files that only their owner may read. The usual mode is not computed from
    the umask: to read the umask, a process has to change it for all its threads, and a default ACL
    of the folder would override it.
    """
    mode = stat.S_IMODE(os.stat(model).st_mode)
    for path in paths:
        if stat.S_IMODE(os.stat(path).st_mode) != mode:
            with suppress(OSError):  # some file systems have no modes; the save must not fail then
                path.chmod(mode)


def file_record(path: Path) -> FileRecord:
    """Returns the size and the XXH3 checksum of a file.

    The checksum detects damage. It does not prove who has written the file, because XXH3 is a fast
    hash, and not a cryptographic one.
    """
    checksum, size = xxh3_128(), 0
    with open_regular(path) as file:
        # `bytearray` fills the buffer with zeros. For a small file, filling a buffer of 1 MiB would
        # take longer than reading the file, so a small file gets a small buffer.
        buffer = bytearray(min(_CHUNK_BYTES, os.fstat(file.fileno()).st_size + 1))
        view = memoryview(buffer)
        while count := file.readinto(buffer):
            checksum.update(view[:count])
            size += count
    return FileRecord(size=size, checksum=checksum.hexdigest())
