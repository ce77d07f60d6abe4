"""Measures memory at intervals, in a thread, and keeps the highest value."""

import sys
from collections.abc import Callable
from collections.abc import Collection
from logging import getLogger
from threading import TIMEOUT_MAX
from threading import Event
from threading import Thread
from threading import current_thread

import psutil

from ignite_hooks.memory.mark import ByteMark

__all__ = ["SampledMark", "Sampling", "resident_bytes", "unshared_bytes_of_children"]

logger = getLogger(__name__)


class SampledMark(ByteMark):
    """The highest value, in bytes, that was measured since the last reset.

    The value is measured at each reset and each reading. Peaks in between are missed.

    Args:
        measure: returns the present value, in bytes.
    """

    def __init__(self, measure: Callable[[], int]) -> None:
        self._measure = measure
        self._highest = 0

    def open(self) -> None:
        """Forgets earlier values."""
        self._highest = 0

    def reset(self) -> None:
        """Measures the present value, and forgets earlier values."""
        self._highest = self._measure()

    def read(self) -> int:
        """Measures the present value, and returns the highest value since the last reset."""
        self._highest = max(self._highest, self._measure())
        return self._highest


def resident_bytes() -> int:
    """Returns the resident memory of this process, in bytes."""
    rss: int = psutil.Process().memory_info().rss
    return rss


def unshared_bytes_of_children(but: Collection[int] = ()) -> int:
    """Returns the unshared memory of all children, direct and indirect, in bytes.

    Args:
        but: the numbers of the processes that are left out.
    """
    children = psutil.Process().children(recursive=True)
    return sum(_uss(each) for each in children if each.pid not in but)


def _uss(child: psutil.Process) -> int:
    try:
        uss: int = child.memory_full_info().uss
    except psutil.Error:  # the child has ended, or belongs to another user
        return 0
    return uss


class Sampling:
    """A thread that calls ``callback`` at intervals, from ``start()`` to ``stop()``.

    ``stop()`` is final: a ``start()`` after ``stop()`` does nothing.

    Args:
        callback: the function to call.
        every: seconds between two calls.
    """

    def __init__(self, callback: Callable[[], None], every: float) -> None:
        self.every = every
        self._callback = callback
        self._has_failed = False
        self._is_stopped = Event()
        self._thread = Thread(target=self._run, name="ignite_hooks.memory", daemon=True)

    def start(self) -> None:
        """Starts the thread; the first call comes after ``every`` seconds."""
        if not self._is_stopped.is_set():
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread. If ``callback`` is being called, waits until the call returns."""
        self._is_stopped.set()
        # When the interpreter ends, daemon threads no longer run: a `join` would never return.
        is_frozen = sys.is_finalizing()
        if self._thread.is_alive() and self._thread is not current_thread() and not is_frozen:
            self._thread.join()

    def _run(self) -> None:
        # A longer wait than TIMEOUT_MAX would raise an OverflowError.
        while not self._is_stopped.wait(min(self.every, TIMEOUT_MAX)):
            try:
                self._callback()
            except Exception:
                # Only the first failure is logged, not a failure at every interval.
                if not self._has_failed:
                    logger.exception("a sample of memory failed; sampling continues")
                self._has_failed = True
