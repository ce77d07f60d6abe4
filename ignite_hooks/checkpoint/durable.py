"""Files that are on the disk when it is said so, and sums that tell when they are no more."""

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

__all__ = ["give_mode_of", "make_folder", "record_of", "sync", "sync_tree"]

_CHUNK = 2**20
# Windows refuses to sync a file that was opened for reading only.
_TO_SYNC = os.O_RDWR if sys.platform == "win32" else os.O_RDONLY
_NOT_FOR_FOLDERS = {
    errno.EACCES,  # Windows opens no folder; elsewhere a folder may be written to and not read
    errno.EPERM,
    errno.EISDIR,
    errno.EINVAL,  # SMB, and some file systems in user space
    errno.EBADF,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
}
"""What a file system answers that cannot sync folders. EIO and ENOSPC are failures of the disk."""


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk.

    Warns once, and goes on, where the file system cannot sync folders.
    """
    is_folder = os.path.isdir(path)
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else _TO_SYNC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in _NOT_FOR_FOLDERS:
            raise
        warn_once(
            f"the file system of the checkpoints cannot sync folders ({error.strerror}): a power "
            "loss may lose the newest checkpoint, and keep_last=2 or more leaves an older one; the "
            "end of the process alone loses none"
        )


def make_folder(folder: Path) -> None:
    """Makes a folder, and those that it is to be in, unless they are there; on the disk, too."""
    if os.path.isdir(folder):
        return
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in made:
        sync(each.parent)


def sync_tree(folder: Path) -> None:
    """The same for all within a folder, and for the folder last."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            sync_tree(path)
        else:
            sync(path)
    sync(folder)


def give_mode_of(model: Path, paths: Iterable[Path]) -> None:
    """Gives files the access mode of ``model``, a file that was made as any is, by the umask.

    safetensors makes files that only their owner may read. The umask itself cannot be read without
    changing it for all threads, and a default ACL of the folder counts instead of it.
    """
    mode = stat.S_IMODE(os.stat(model).st_mode)
    for path in paths:
        if stat.S_IMODE(os.stat(path).st_mode) != mode:
            with suppress(OSError):  # a file system without modes is no reason to lose the save
                path.chmod(mode)


def record_of(path: Path) -> FileRecord:
    """The size and the checksum of a file. XXH3 is faster than memory, and no proof of origin."""
    checksum, size = xxh3_128(), 0
    with open_regular(path) as file:
        # Clearing a whole chunk takes longer than reading a small file.
        buffer = bytearray(min(_CHUNK, os.fstat(file.fileno()).st_size + 1))
        view = memoryview(buffer)
        while count := file.readinto(buffer):
            checksum.update(view[:count])
            size += count
    return FileRecord(size=size, checksum=checksum.hexdigest())
