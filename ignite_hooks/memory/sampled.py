"""A high-water mark for where the kernel's can not be had: the highest that was seen."""

from collections.abc import Callable

import psutil

from ignite_hooks.memory.mark import ByteMark

__all__ = ["SampledMark", "resident", "uss_of_children"]


class SampledMark(ByteMark):
    """The most that any look has found, in bytes. Between two looks it is blind."""

    def __init__(self, look: Callable[[], int]) -> None:
        self._look = look
        self._highest = 0

    def open(self) -> None:
        """Forgets what was before."""
        self._highest = 0

    def reset(self) -> None:
        """Looks, and forgets what was before."""
        self._highest = self._look()

    def read(self) -> int:
        """Looks, and tells the highest since the last reset."""
        self._highest = max(self._highest, self._look())
        return self._highest


def resident() -> int:
    """The resident memory of this process, in bytes."""
    rss: int = psutil.Process().memory_info().rss
    return rss


def uss_of_children() -> int:
    """The memory that the children of this process, direct and indirect, share with nobody."""
    return sum(map(_uss, psutil.Process().children(recursive=True)))


def _uss(child: psutil.Process) -> int:
    try:
        uss: int = child.memory_full_info().uss
    except psutil.Error:  # it has ended, or belongs to another user
        return 0
    return uss
