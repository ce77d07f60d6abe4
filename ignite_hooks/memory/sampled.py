"""Sampling: a thread that looks again and again, and a mark that is the highest of its looks."""

import sys
from collections.abc import Callable
from logging import getLogger
from threading import TIMEOUT_MAX
from threading import Event
from threading import Thread
from threading import current_thread

import psutil

from ignite_hooks.memory.mark import ByteMark

__all__ = ["SampledMark", "Sampling", "resident", "uss_of_children"]

logger = getLogger(__name__)


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


class Sampling:
    """Calls ``act`` every so many seconds, in a thread of its own, from ``start()`` to ``stop()``.

    Once it is stopped it stays so, ``start()`` or not.
    """

    def __init__(self, act: Callable[[], None], every: float) -> None:
        self.every = every
        self._act = act
        self._has_failed = False
        self._is_over = Event()
        self._thread = Thread(target=self._run, name="ignite_hooks.memory", daemon=True)

    def start(self) -> None:
        """Starts the thread; the first call comes after ``every`` seconds."""
        if not self._is_over.is_set():
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread and waits for its end, which takes no longer than one ``act``."""
        self._is_over.set()
        is_frozen = sys.is_finalizing()  # as daemons are when the interpreter ends
        if self._thread.is_alive() and self._thread is not current_thread() and not is_frozen:
            self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(min(self.every, TIMEOUT_MAX)):
            try:
                self._act()
            except Exception:
                if not self._has_failed:
                    logger.exception("a sample of memory failed; others are taken all the same")
                self._has_failed = True
