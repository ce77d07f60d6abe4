"""What the children of this process have taken beside it, by the kernel's own marks (Linux)."""

from collections.abc import Iterator
from pathlib import Path

import psutil

from ignite_hooks.memory.mark import ByteMark
from ignite_hooks.memory.proc_field import proc_field

__all__ = ["KernelChildrenMark"]


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
