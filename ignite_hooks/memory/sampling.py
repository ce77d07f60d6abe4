"""A thread that calls something again and again."""

import sys
from collections.abc import Callable
from threading import Event
from threading import Thread
from threading import current_thread

__all__ = ["Sampling"]


class Sampling:
    """Calls ``act`` every so many seconds, in a thread of its own, from now until ``stop()``."""

    def __init__(self, act: Callable[[], None], every: float) -> None:
        self.every = every
        self._act = act
        self._is_over = Event()
        self._thread = Thread(target=self._run, name="ignite_hooks.memory", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and waits for its end, which takes no longer than one ``act``."""
        self._is_over.set()
        if self._thread is not current_thread() and not sys.is_finalizing():
            self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(self.every):
            self._act()
