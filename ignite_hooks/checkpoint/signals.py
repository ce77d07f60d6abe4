"""Signals that ask a run to end well: noted, and obeyed at the next step boundary."""

import signal
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

__all__ = ["StopSignals"]


class StopSignals(AbstractContextManager["StopSignals", None]):
    """Notes the first of some signals while it is entered; a second does what it did before.

    Off the main thread, where Python lets nobody handle signals, it notes nothing. A handler that
    was not set from Python can not be put back, and is left alone.

    Args:
        names: names of signals, "SIGTERM" for instance.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.received: str | None = None
        self._names = {int(signal.Signals[name]): name for name in names}
        self._found: dict[int, Any] = {}
        self._depth = 0

    def __enter__(self) -> "StopSignals":
        self._depth += 1
        if self._depth > 1:
            return self
        if threading.current_thread() is threading.main_thread():
            for number in self._names:
                found = signal.getsignal(number)
                if found is not None:
                    self._found[number] = found
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *failure: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._put_back_all()

    def forget(self) -> None:
        """Begins without a signal."""
        self.received = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        outer = getattr(self._found.get(number), "__self__", None)
        self.received = self._names[number]
        self._put_back_all()
        if isinstance(outer, StopSignals):  # the same signal asks both to end
            outer._note(number, frame)

    def _put_back_all(self) -> None:
        for number in tuple(self._found):
            self._put_back(number)

    def _put_back(self, number: int) -> None:
        found = self._found.pop(number)
        if signal.getsignal(number) == self._note:  # else someone has set another meanwhile
            signal.signal(number, found)
