"""A thread that calls something again and again."""

import sys
from collections.abc import Callable
from logging import getLogger
from threading import TIMEOUT_MAX
from threading import Event
from threading import Thread
from threading import current_thread

__all__ = ["Sampling"]

logger = getLogger(__name__)


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
