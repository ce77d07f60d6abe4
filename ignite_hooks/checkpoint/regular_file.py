"""Opening what should be a file: a FIFO, a socket or a device in its place is not waited for."""

import errno
import io
import os
import stat
from pathlib import Path

__all__ = ["NotRegularFileError", "open_regular"]

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class NotRegularFileError(OSError):
    """The path is that of a folder, FIFO, socket or device, which is not read."""


def open_regular(path: Path) -> io.BufferedReader:
    """Opens a regular file to read its bytes.

    Opening a FIFO would wait for a writer, for ever perhaps, and a device may never end.

    Raises:
        NotRegularFileError: the path is that of something else.
        OSError: the file cannot be opened.
    """
    return open(path, "rb", opener=_open_regular)


def _open_regular(path: str, _: int) -> int:
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ELOOP):  # a socket, or links in a circle
            raise NotRegularFileError(errno.EINVAL, "not a regular file", path) from error
        raise
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise NotRegularFileError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise NotRegularFileError(errno.EINVAL, "not a regular file", path)
