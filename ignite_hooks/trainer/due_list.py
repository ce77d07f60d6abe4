"""Callbacks that wait until all handlers of an event have returned."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

from ignite_hooks.core.training_engine import Turn

__all__ = ["DueList"]

_Entry = tuple[Turn, Callable[[], None]]


class DueList:
    """Callbacks that are due when all handlers of an event have returned, each to be called once.

    One that fails stays due, with those after it: the next run calls them first.

    Attributes:
        entries: what is due, in the order in which it was asked for.
        broken_off: what a stop broke off, for the next run.
        on_resume: the names of what a stop broke off in the run that is resumed.
    """

    def __init__(self) -> None:
        self.entries: list[_Entry] = []
        self.broken_off: list[_Entry] = []
        self.on_resume: Mapping[str, Any] = {}
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
        self.broken_off = [entry for entry in self.broken_off if entry[1] != callback]

    def clear(self) -> None:
        """Drops all of them."""
        self.entries = []
        self.broken_off = []
        self.on_resume = {}

    @property
    def is_broken_off(self) -> bool:
        """True if a stop broke off what is to be made up by the next run."""
        return bool(self.broken_off or self.on_resume)

    def break_off(self) -> None:
        """Sets aside what is due, but for what is asked for from now on."""
        self.settle()
        self.broken_off, self.entries = [*self.broken_off, *self.entries], []

    def resume(self) -> None:
        """Makes due again what was set aside."""
        earlier = [callback for _, callback in self.broken_off]
        later = [entry for entry in self.entries if entry[1] not in earlier]
        # One line: an exception before leaves it set aside, and one after leaves it due.
        self.entries, self.broken_off = [*self.broken_off, *later], []

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
