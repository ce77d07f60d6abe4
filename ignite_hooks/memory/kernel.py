"""Linux's own high-water marks of resident memory: of this process, and of its children.

The kernel keeps, for each process, the most memory it has had resident, ``VmHWM`` in
``/proc/<pid>/status``; a "5" written to ``/proc/<pid>/clear_refs`` lowers it to what is resident
now (see proc(5)). It is kept where memory is taken and given back, so no peak escapes it, however
short, and this process needs no thread to watch it. The kernel counts pages in batches for each
processor, which is what a mark can be off by.
"""

import os
from collections.abc import Iterator
from mmap import PAGESIZE
from mmap import mmap
from pathlib import Path
from threading import Lock

import psutil

from ignite_hooks.core.scopes import note
from ignite_hooks.memory.mark import KIB
from ignite_hooks.memory.mark import ByteMark

__all__ = ["KernelChildrenMark", "KernelMark", "proc_field", "why_no_kernel_mark"]

try:
    from mmap import MAP_ANONYMOUS
    from mmap import MAP_PRIVATE
    from resource import RUSAGE_THREAD
    from resource import getrusage
except ImportError:  # not a Unix: the mark is never opened there
    pass


_FILES = {"clear_refs": os.O_WRONLY, "status": os.O_RDONLY, "statm": os.O_RDONLY}
_SPIKE = 4 * 2**20
_BALLAST = 2**18  # twice the batch of pages that the kernel counts at once


class KernelMark(ByteMark):
    """The mark of this process, in bytes.

    ``getrusage`` tells it for a tenth of what ``status`` costs, but never less than a floor, the
    mark of the program that this one has replaced. What is above the lowest that it has ever told
    is above the floor, and so it is the mark. Else, if as much as it tells is resident now, that is
    the mark. Else ``status`` is read.

    So the lowest is looked for when the mark is opened, before a ballast is taken, which keeps what
    is told above it, and again, where the mark has just been reset, if ``status`` had to be read.
    """

    _lowest = float("inf")

    def __init__(self) -> None:
        self._open_files: dict[str, int] = {}
        self._ballast: mmap | None = None
        self._looks_for_lowest = True

    def open(self) -> None:
        """Opens the files. They stay this process's: a child must open its own."""
        try:
            for name, flags in _FILES.items():
                self._open_files[name] = os.open(f"/proc/self/{name}", flags)
            self._looks_for_lowest = True
            self.reset()
            self._ballast = _taken(_BALLAST)
        except OSError as error:
            self.close()
            note(error, 'The kernel\'s mark needs this file; backend="sampler" does without it.')
            raise

    def close(self) -> None:
        """Closes what is open."""
        ballast, self._ballast = self._ballast, None
        if ballast is not None:
            ballast.close()
        while self._open_files:
            os.close(self._open_files.popitem()[1])

    def reset(self) -> None:
        """Lowers the mark to what is resident now."""
        os.write(self._open_files["clear_refs"], b"5")
        if self._looks_for_lowest:
            self._looks_for_lowest = False
            KernelMark._lowest = min(self._lowest, getrusage(RUSAGE_THREAD).ru_maxrss * KIB)

    def read(self) -> int:
        """The most that was resident since the last reset."""
        # The mark is that of the process here too, and no threads have to be counted for it.
        told = getrusage(RUSAGE_THREAD).ru_maxrss * KIB
        if told > self._lowest:
            return told
        KernelMark._lowest = told
        resident = int(os.pread(self._open_files["statm"], 2**8, 0).split()[1]) * PAGESIZE
        if resident >= told:
            return resident
        self._looks_for_lowest = True
        return self.from_status()

    def from_status(self) -> int:
        """The same, without the shortcuts."""
        return proc_field(os.pread(self._open_files["status"], 2**16, 0), b"VmHWM")


def _taken(size: int) -> mmap:
    block = mmap(-1, size, MAP_PRIVATE | MAP_ANONYMOUS)
    block.write(bytes(size))
    return block


def why_no_kernel_mark() -> str | None:
    """Why the mark cannot be used in this process; None if a reset was seen to lower it once."""
    with _proof.lock:  # two at once would each see the reset of the other
        if not _proof.was_given:
            refusal = _refusal()
            if refusal is not None:  # which may pass, if it is a want of descriptors for instance
                return refusal
            _proof.was_given = True
    return None


class _Proof:
    """Whether it was proved in this process that the mark falls."""

    def __init__(self) -> None:
        self.was_given = False
        self.renew_lock()

    def renew_lock(self) -> None:
        self.lock = Lock()


_proof = _Proof()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_proof.renew_lock)


def _refusal() -> str | None:
    mark = KernelMark()
    try:
        mark.open()
        _taken(_SPIKE).close()
        before = mark.from_status()
        mark.reset()
        falls = mark.from_status() < before
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        mark.close()
    return None if falls else "a write to /proc/self/clear_refs does not lower VmHWM"


class KernelChildrenMark(ByteMark):
    """The sum over the living children, direct and indirect, of their own marks, in bytes.

    A forked child shares most of its pages with its parent, where they are counted already. Of each
    child's mark the part that it shares now is taken off: ``VmHWM - (Rss - private pages)``. The
    marks of those that are there at a reset are lowered; one that is born later has a mark of its
    own time. A child that has ended has none: it counts as far as it was read before.
    """

    def reset(self) -> None:
        """Lowers the mark of each child that is there to what is resident in it."""
        for folder in _children():
            try:
                (folder / "clear_refs").write_bytes(b"5")
            except OSError:  # it has ended, or belongs to another user
                continue

    def read(self) -> int:
        """The sum of the marks of those that are there."""
        return sum(map(_own_mark, _children()))


def _children() -> Iterator[Path]:
    return (Path("/proc", str(child.pid)) for child in psutil.Process().children(recursive=True))


def _own_mark(folder: Path) -> int:
    """The mark of one child without what it shares; 0 when it has ended."""
    try:
        shared = _shared(folder)
        return proc_field((folder / "status").read_bytes(), b"VmHWM") - shared
    except (OSError, ValueError):
        return 0


def _shared(folder: Path) -> int:
    try:
        pages = (folder / "smaps_rollup").read_bytes()
    except PermissionError:  # a program of another user, which shares nothing with this one
        return 0
    private = sum(proc_field(pages, name) for name in (b"Private_Clean", b"Private_Dirty"))
    return proc_field(pages, b"Rss") - private


def proc_field(text: bytes, name: bytes) -> int:
    """The first field ``name`` in ``text``, in bytes; a ValueError if there is none."""
    start = text.index(name + b":") + len(name) + 1
    return int(text[start : text.index(b"kB", start)]) * KIB
