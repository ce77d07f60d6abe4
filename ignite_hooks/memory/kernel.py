"""Linux's high-water marks of resident memory: of this process, and of its children.

For each process the kernel keeps the highest resident memory since the last reset. This value is
the *high-water mark*, or *mark* for short. It is ``VmHWM`` in ``/proc/<pid>/status``. Writing "5"
to ``/proc/<pid>/clear_refs`` resets the mark: it lowers the mark to the memory that is resident now
(see proc(5)).

The kernel updates the mark when memory is taken and released. So the mark contains every peak,
however short, and no thread has to sample the memory. Each processor counts pages in batches, and
the mark may be wrong by the size of such a batch.
"""

import os
from collections.abc import Iterator
from mmap import PAGESIZE
from mmap import mmap
from pathlib import Path
from threading import Lock

import psutil

from ignite_hooks.core.scopes import add_note
from ignite_hooks.memory.mark import KIB
from ignite_hooks.memory.mark import ByteMark

__all__ = ["KernelChildrenMark", "KernelMark", "proc_field", "why_no_kernel_mark"]

try:
    from mmap import MAP_ANONYMOUS
    from mmap import MAP_PRIVATE
    from resource import RUSAGE_THREAD
    from resource import getrusage
except ImportError:  # on systems other than Unix, where the mark is never opened
    pass


_FILES = {"clear_refs": os.O_WRONLY, "status": os.O_RDONLY, "statm": os.O_RDONLY}
_TRIAL_BYTES = 4 * 2**20  # allocated and freed by the trial that shows whether a reset works
_BALLAST_BYTES = 2**18  # twice the size of the batches in which a processor counts pages


class KernelMark(ByteMark):
    """The high-water mark of this process, in bytes.

    ``getrusage`` is ten times as fast as a read of ``status``. It reports the mark or a floor,
    whichever is higher. The floor is the mark of the program that this process ran before its last
    ``exec``. The floor is not known, but it is at most the lowest value ever reported. So ``read``
    checks each value that ``getrusage`` reports:

    1. If the value is above the lowest value, it is the mark.
    2. Otherwise, if the memory that is resident now is at least the value, the resident memory is
       the mark, because the mark is never above the value, and never below the resident memory.
    3. Otherwise the mark is read from ``status``.

    To make the first case frequent, ``open`` updates the lowest value, and then allocates a block
    of memory (the ballast), which keeps later values above the lowest one. If ``read`` has used
    ``status``, the next ``reset`` updates the lowest value too.
    """

    # An attribute of the class, because the floor is the same for all objects in the process.
    _lowest_reported = float("inf")

    def __init__(self) -> None:
        self._open_files: dict[str, int] = {}
        self._ballast: mmap | None = None
        self._updates_lowest_at_reset = True

    def open(self) -> None:
        """Opens the files of this process in ``/proc``.

        A forked child must call ``open`` again, because it inherits the files of its parent.
        """
        try:
            for name, flags in _FILES.items():
                self._open_files[name] = os.open(f"/proc/self/{name}", flags)
            self._updates_lowest_at_reset = True
            self.reset()
            self._ballast = _allocate(_BALLAST_BYTES)
        except OSError as error:
            self.close()
            add_note(
                error, 'The kernel\'s mark needs this file; backend="sampler" does not need it.'
            )
            raise

    def close(self) -> None:
        """Closes the files and releases the ballast; may be called in any state."""
        ballast, self._ballast = self._ballast, None
        if ballast is not None:
            ballast.close()
        while self._open_files:
            os.close(self._open_files.popitem()[1])

    def reset(self) -> None:
        """Lowers the mark to the memory that is resident now."""
        os.write(self._open_files["clear_refs"], b"5")
        if self._updates_lowest_at_reset:
            self._updates_lowest_at_reset = False
            KernelMark._lowest_reported = min(
                self._lowest_reported, getrusage(RUSAGE_THREAD).ru_maxrss * KIB
            )

    def read(self) -> int:
        """Returns the highest resident memory since the last reset."""
        # RUSAGE_THREAD, like RUSAGE_SELF, gives the mark of the whole process. RUSAGE_THREAD is
        # faster: for RUSAGE_SELF the kernel also adds up the times of all threads.
        reported = getrusage(RUSAGE_THREAD).ru_maxrss * KIB
        if reported > self._lowest_reported:
            return reported
        KernelMark._lowest_reported = reported
        resident = int(os.pread(self._open_files["statm"], 2**8, 0).split()[1]) * PAGESIZE
        if resident >= reported:
            return resident
        self._updates_lowest_at_reset = True
        return self.from_status()

    def from_status(self) -> int:
        """Returns the mark from ``/proc/self/status``, without the shortcuts of ``read``."""
        return proc_field(os.pread(self._open_files["status"], 2**16, 0), b"VmHWM")


def _allocate(size: int) -> mmap:
    """Allocates ``size`` bytes and writes to all of them, so that they are resident."""
    block = mmap(-1, size, MAP_PRIVATE | MAP_ANONYMOUS)
    block.write(bytes(size))
    return block


def why_no_kernel_mark() -> str | None:
    """Returns the reason why the kernel's mark cannot be used in this process; None if it can.

    A trial shows whether a reset lowers the mark. After one successful trial, later calls make no
    trial.
    """
    with _reset_trial.lock:  # two trials at the same time would disturb each other
        if not _reset_trial.has_succeeded:
            refusal = _try_reset()
            # The next call tries again: the cause may pass, for example a lack of file descriptors.
            if refusal is not None:
                return refusal
            _reset_trial.has_succeeded = True
    return None


class _ResetTrial:
    """The state of the trial that shows whether a reset lowers the mark in this process."""

    def __init__(self) -> None:
        self.has_succeeded = False
        self.renew_lock()

    def renew_lock(self) -> None:
        self.lock = Lock()


_reset_trial = _ResetTrial()

if hasattr(os, "register_at_fork"):
    # If another thread of the parent holds the lock at the fork, nothing releases it in the child.
    os.register_at_fork(after_in_child=_reset_trial.renew_lock)


def _try_reset() -> str | None:
    """Tries a reset; returns None if it lowers the mark, otherwise the reason why it does not."""
    mark = KernelMark()
    try:
        mark.open()
        _allocate(_TRIAL_BYTES).close()
        before = mark.from_status()
        mark.reset()
        is_lowered = mark.from_status() < before
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        mark.close()
    return None if is_lowered else "a write to /proc/self/clear_refs does not lower VmHWM"


class KernelChildrenMark(ByteMark):
    """The sum of the high-water marks of the living children, direct and indirect, in bytes.

    A forked child shares most of its pages with its parent, whose mark counts these pages already.
    So the memory that the child shares at the time of the reading is subtracted from its mark:
    ``VmHWM - (Rss - private pages)``.

    A reset lowers the marks of the children that exist. The mark of a child that starts later
    covers the whole life of the child. When a child ends, its mark is lost, so its peak counts only
    if the mark was read before.
    """

    def reset(self) -> None:
        """Lowers the mark of each child to the memory that is resident in it now."""
        for folder in _children():
            try:
                (folder / "clear_refs").write_bytes(b"5")
            except OSError:  # the child has ended, or belongs to another user
                continue

    def read(self) -> int:
        """Returns the sum of the marks of the children that exist."""
        return sum(map(_unshared_mark, _children()))


def _children() -> Iterator[Path]:
    """Yields the folders in ``/proc`` of all children, direct and indirect."""
    return (Path("/proc", str(child.pid)) for child in psutil.Process().children(recursive=True))


def _unshared_mark(folder: Path) -> int:
    """Returns the mark of one child without its shared memory; 0 if the child has ended."""
    try:
        shared = _shared_bytes(folder)
        return proc_field((folder / "status").read_bytes(), b"VmHWM") - shared
    except (OSError, ValueError):
        return 0


def _shared_bytes(folder: Path) -> int:
    """Returns the resident memory that a process shares with others."""
    try:
        pages = (folder / "smaps_rollup").read_bytes()
    except PermissionError:  # the process of another user, which shares nothing with this one
        return 0
    private = sum(proc_field(pages, name) for name in (b"Private_Clean", b"Private_Dirty"))
    return proc_field(pages, b"Rss") - private


def proc_field(text: bytes, name: bytes) -> int:
    """Returns the value of the first field ``name`` in ``text``, in bytes.

    Raises:
        ValueError: there is no such field.
    """
    start = text.index(name + b":") + len(name) + 1
    return int(text[start : text.index(b"kB", start)]) * KIB
