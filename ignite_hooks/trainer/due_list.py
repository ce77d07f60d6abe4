"""Callbacks that wait until all handlers of an event have returned."""

from collections.abc import Callable

from ignite_hooks.core.training_engine import Turn

__all__ = ["DueList"]

_Entry = tuple[Turn, Callable[[], None]]


class DueList:
    """Callbacks that are due when all handlers of an event have returned, each to be called once.

    One that fails stays due, with those after it: the next run calls them first.
    """

    def __init__(self) -> None:
        self.entries: list[_Entry] = []
        self._called: _Entry | None = None
        self._results: list[None] = []  # of that one, when it has returned

    def add(self, callback: Callable[[], None], turn: Turn) -> None:
        """Adds ``callback`` unless it is there already; an earlier turn is called earlier."""
        waiting = (entry for entry in self.entries if entry is not self._called)
        if all(callback != other for _, other in waiting):
            self.entries.append((turn, callback))

    def drop(self, callback: Callable[[], None]) -> None:
        """Drops one."""
        self.entries = [entry for entry in self.entries if entry[1] != callback]

    def clear(self) -> None:
        """Drops all of them."""
        self.entries = []

    def call(self) -> None:
        """Calls what is due, and what becomes due meanwhile; who asks again waits."""
        called: list[Callable[[], None]] = []
        self.settle()
        while waiting := [entry for entry in self.entries if entry[1] not in called]:
            self._called = entry = min(waiting, key=lambda each: each[0])
            called.append(entry[1])
            self._results.append(entry[1]())  # one line: it has returned if there is a result
            self.settle()

    def settle(self) -> None:
        """Takes off the callback that has returned; one that broke off stays, once."""
        called = self._called
        if self._results:
            self.entries = [entry for entry in self.entries if entry is not called]
        elif called is not None:
            self.entries = [each for each in self.entries if each is called or each[1] != called[1]]
        self._called = None
        self._results.clear()
