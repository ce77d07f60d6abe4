"""Opens regular files only, and raises an error for a FIFO, a socket or a device."""

import errno
import io
import os
import stat
from pathlib import Path

__all__ = ["NotRegularFileError", "open_regular"]

# O_NONBLOCK: opening a FIFO returns at once instead of waiting for a writer.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class NotRegularFileError(OSError):
    """An error for a path that leads to a folder, a FIFO, a socket or a device."""


def open_regular(path: Path) -> io.BufferedReader:
    """Opens a regular file to read its bytes.

    At the path of a FIFO, Python's ``open`` would wait for a process that writes to the FIFO,
    perhaps forever. At the path of a device, reading may never end.

    Raises:
        NotRegularFileError: the path does not lead to a regular file.
        OSError: the file cannot be opened.
    """
    return open(path, "rb", opener=_open_regular)


def _open_regular(path: str, _: int) -> int:
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ELOOP):  # a socket, or a cycle of symbolic links
            raise NotRegularFileError(errno.EINVAL, "not a regular file", path) from error
        raise
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise NotRegularFileError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise NotRegularFileError(errno.EINVAL, "not a regular file", path)
