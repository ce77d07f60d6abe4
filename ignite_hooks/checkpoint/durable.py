"""Files that are on the disk when it is said so, and sums that tell when they are no more."""

import os
from pathlib import Path

from xxhash import xxh3_128

from ignite_hooks.checkpoint.manifest import FileRecord

__all__ = ["make_folder", "record_of", "sync", "sync_tree"]

_CHUNK = 2**20


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Makes a folder, and those that it is to be in, unless they are there; on the disk, too."""
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


def record_of(path: Path) -> FileRecord:
    """The size and the checksum of a file. XXH3 is faster than memory, and no proof of origin."""
    checksum, size, buffer = xxh3_128(), 0, bytearray(_CHUNK)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            checksum.update(view[:count])
            size += count
    return FileRecord(size=size, checksum=checksum.hexdigest())
