"""Signals that ask a run to end well: noted, and obeyed at the next step boundary."""

import signal
import threading
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ignite_hooks.core.held_signals import handler_of
from ignite_hooks.core.held_signals import replace_handler
from ignite_hooks.core.restoring import restored

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
        self._users: list[object] = []

    def __enter__(self) -> "StopSignals":
        self._enter(object())
        return self

    def __exit__(self, *failure: object) -> None:
        self._leave(self._users[-1])

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Notes signals in the body, and leaves none of its handlers even if it breaks off."""
        user = object()
        with restored(lambda: self._leave(user), alone=True):
            self._enter(user)
            yield

    def _enter(self, user: object) -> None:
        self._users.append(user)
        if len(self._users) > 1:
            return
        if threading.current_thread() is threading.main_thread():
            for number in self._names:
                found = handler_of(number)
                if found is not None:
                    self._found[number] = found
                    replace_handler(number, self._note)

    def _leave(self, user: object) -> None:
        if self._users == [user]:
            self._put_back_all()
        self._users = [each for each in self._users if each is not user]

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
        if handler_of(number) == self._note:  # else someone has set another meanwhile
            replace_handler(number, self._found[number])
        del self._found[number]
