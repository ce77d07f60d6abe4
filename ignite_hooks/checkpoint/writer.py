"""A thread that writes one thing at a time, and loses no error."""

from collections.abc import Callable
from threading import Thread

__all__ = ["Writer"]


class Writer:
    """Does one act at a time in a thread. The interpreter waits for it before it ends."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Whether the last act is being done."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, act: Callable[[], None]) -> None:
        """Begins ``act``; the one before must have been waited for."""
        self._thread = Thread(target=self._do, args=[act], name="ignite_hooks.checkpoint")
        self._thread.start()

    def wait(self) -> bool:
        """Returns when it is done, whether there was one; raises what it has raised."""
        thread = self._thread
        if thread is None:
            return False
        thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        return True

    def _do(self, act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as error:
            self._error = error
