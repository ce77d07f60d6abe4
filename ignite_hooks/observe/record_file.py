"""The file of a record: whole lines only, written by one run at a time."""

import errno
import os
import warnings
import weakref
from contextlib import suppress
from pathlib import Path

from ignite_hooks.checkpoint.lock import try_flock
from ignite_hooks.observe.record_lines import MAGIC

__all__ = ["RecordFile"]

MAX_WAITING_LINES = 10_000
"""The number of lines that are kept in memory while the file cannot be written."""

TAIL_BYTES = 256
"""The number of bytes by which the end of a record is recognized."""

READ_BYTES = 2**20

_REMOVED = "the file was removed or replaced"
# O_APPEND: each write goes to the end of the file. Windows would convert line ends in text mode.
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)


class RecordFile:
    """A file to which lines are appended, one write for each line.

    A line is in the file when ``append`` returns, so the end of the process cannot lose or split
    it. A write can fail, for example on a full disk. The part that was written is then cut off, one
    warning is given, and the line stays in memory until a later write succeeds.

    From ``open`` to ``close`` the file has a ``flock``, which excludes other runs. The kernel
    releases the ``flock`` when the process ends. A file system without ``flock`` excludes nobody.

    Args:
        path: the path of the file.

    Attributes:
        waiting: the lines that are not in the file yet. It is always the same list.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting: list[bytes] = []
        self._descriptor: int | None = None
        self._inode: tuple[int, int] | None = None  # of the file that was written last
        # The length of the lines of this run, in bytes. If a signal breaks off a write, the size of
        # the file shows which of the waiting lines were written.
        self._length = 0
        self._tail = b""  # the end of these lines, to recognize them
        self._has_warned = False

    @property
    def has_lines_of_this_run(self) -> bool:
        """Returns whether the file is the one that this object has written, with all its lines."""
        if self._descriptor is None:
            return False
        # A new file may get the inode of a file that was removed.
        is_same = _inode_of(os.fstat(self._descriptor)) == self._inode
        return is_same and self._read_at(self._length - len(self._tail)).startswith(self._tail)

    def check(self) -> None:
        """Creates the folder, and tests whether the file can be written.

        Raises:
            ValueError: the file cannot be written, or is not a record.
        """
        existed = self.path.exists()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if existed and not self.path.is_file():
                raise ValueError(
                    f"`path` must be a file, got {self.path}, which is "
                    f"{'a folder' if self.path.is_dir() else 'no regular file'}: add the name of "
                    "the file, for example metrics.jsonl"
                )
            descriptor = os.open(self.path, _FLAGS, 0o666)
            try:
                head = os.read(descriptor, len(MAGIC))
            finally:
                os.close(descriptor)
            if not (existed or head):  # another run may have begun a record in the meantime
                self.path.unlink()
        except OSError as error:
            raise self._unwritable(error) from error
        if not (head.startswith(MAGIC) or MAGIC.startswith(head)):
            raise ValueError(
                f"`path` must be a record of MetricsLog or a new file, got {self.path}, which has "
                "other contents: give another path"
            )

    def open(self) -> None:
        """Opens and locks the file; creates it if it is missing.

        Raises:
            RuntimeError: another run writes to the file.
            ValueError: the file cannot be opened.
        """
        if self._descriptor is not None:
            return
        _open_files.add(self)
        try:
            while not self._try_to_open():
                self.close()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise self._unwritable(error) from error
            raise

    def _try_to_open(self) -> bool:
        """Opens and locks the file. Returns False if another run has just renamed the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, _FLAGS, 0o666)
        if try_flock(self._descriptor) is False:
            raise RuntimeError(
                f"`path` must be written by one run at a time, and another run writes to "
                f"{self.path}: end that run, or give each run its own path"
            )
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Closes the file and releases the lock."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        # The end of a run closes the file, but Ctrl-C can break off this end.
        self.close()

    def read(self) -> bytes:
        """Returns the whole lines of the file."""
        content = self._read_at(0)
        return content[: content.rfind(b"\n") + 1]

    def cut(self, length: int) -> None:
        """Cuts the file to ``length`` bytes. The lines that follow are those of this run."""
        assert self._descriptor is not None
        found = os.fstat(self._descriptor)
        if found.st_size > length:
            os.ftruncate(self._descriptor, length)
        self._inode, self._length = _inode_of(found), length
        self._tail = self._read_at(max(0, length - TAIL_BYTES))
        self.waiting.clear()

    def move_away(self) -> Path:
        """Renames the file to a free name such as ``metrics.1.jsonl``, and opens a new file.

        Returns:
            The new path of the old file.
        """
        number = 1
        while (free := self.path.with_suffix(f".{number}{self.path.suffix}")).exists():
            number += 1
        if os.name == "nt":  # Windows does not rename an open file
            self.close()
        os.rename(self.path, free)
        self.close()
        self.open()
        return free

    def append(self, line: bytes) -> None:
        """Appends a line. Between two runs, the file is opened for this line only."""
        self.waiting.append(line)
        self.write_waiting()

    def write_waiting(self) -> bool:
        """Writes the lines in memory, and returns whether all of them are in the file now."""
        if not self.waiting:
            return True
        is_open = self._descriptor is not None
        try:
            if not (is_open or self.path.exists()):
                raise FileNotFoundError(errno.ENOENT, _REMOVED)
            self.open()
            self._write()
        except (OSError, RuntimeError, ValueError) as error:
            del self.waiting[:-MAX_WAITING_LINES]
            self._warn(error)
            return False
        else:
            return True
        finally:
            if not is_open:
                self.close()

    def sync(self) -> None:
        """Waits until the lines are on the disk, so that a power loss does not lose them."""
        if self._descriptor is not None:
            with suppress(OSError):  # the next write reports the problem
                os.fsync(self._descriptor)

    def _write(self) -> None:
        descriptor = self._descriptor
        assert descriptor is not None
        # A name that leads to another file, or to none, raises an error here.
        if _inode_of(os.stat(self.path)) != self._inode:
            raise FileNotFoundError(errno.ENOENT, _REMOVED)
        size = os.fstat(descriptor).st_size
        self._forget_written(descriptor, size)
        # A signal may break off this method after the write. The next call then finds the size.
        written = os.write(descriptor, b"".join(self.waiting))
        self._forget_written(descriptor, self._length + written)
        if self.waiting:  # a full disk accepts a part of the bytes
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _forget_written(self, descriptor: int, size: int) -> None:
        """Removes the lines that are in the file from ``waiting``; cuts off a part of a line.

        Args:
            descriptor: the open file.
            size: the size of the file.
        """
        while self.waiting and self._length + len(self.waiting[0]) <= size:
            self._tail = self.waiting[0][-TAIL_BYTES:]
            self._length += len(self.waiting.pop(0))
        if size > self._length:
            os.ftruncate(descriptor, self._length)
        self._length = min(self._length, size)  # smaller if somebody has shortened the file

    def _read_at(self, start: int) -> bytes:
        """Returns the bytes of the file from ``start`` on."""
        assert self._descriptor is not None
        os.lseek(self._descriptor, start, os.SEEK_SET)
        parts = []
        while part := os.read(self._descriptor, READ_BYTES):
            parts.append(part)
        return b"".join(parts)

    def _unwritable(self, error: OSError) -> ValueError:
        return ValueError(
            f"`path` must be a file that can be written, got {self.path} "
            f"({type(error).__name__}: {error}): give another path, or make this one writable"
        )

    def _warn(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"the record {self.path} cannot be written ({error}): training continues; the last "
                f"{MAX_WAITING_LINES:,} lines are kept in memory, and are written when this is "
                "possible again, but are lost if the process ends before",
                stacklevel=2,
            )


def _inode_of(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


_open_files: "weakref.WeakSet[RecordFile]" = weakref.WeakSet()


def _close_all_in_child() -> None:
    """Closes the files in a forked process, such as a worker of a loader.

    A file that stays open in the forked process would keep the ``flock`` after the end of the run.
    """
    for file in tuple(_open_files):
        with suppress(OSError):
            file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all_in_child)
