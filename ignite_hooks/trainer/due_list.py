"""Callbacks that are deferred until all handlers of an event have returned.

A callback on this list is *due*. The list calls the callbacks in the order of their turns.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

from ignite_hooks.core.training_engine import Turn

__all__ = ["DueList"]

_Entry = tuple[Turn, Callable[[], None]]


class DueList:
    """The deferred callbacks of a trainer: each is called once, after all handlers of an event.

    If a callback raises, this callback and all callbacks after it stay due, and the next run calls
    them first.

    Attributes:
        entries: the callbacks that are due, with their turns, in the order in which they were
            added.
        broken_off: the callbacks that were due when a stop broke off a validation. The next run
            makes them due again.
        on_resume: the same for a run that is resumed from a checkpoint: the numbers of these
            callbacks by name, because callbacks cannot be saved.
    """

    def __init__(self) -> None:
        self.entries: list[_Entry] = []
        self.broken_off: list[_Entry] = []
        self.on_resume: Mapping[str, Any] = {}
        self._current: _Entry | None = None  # the entry that is being called
        self._results: list[None] = []  # the result of ``_current``, once it has returned

    def add(self, callback: Callable[[], None], turn: Turn) -> None:
        """Adds ``callback`` unless it is on the list already; an earlier turn is called earlier."""
        # The callback that is being called is still on the list. If it adds itself, it is called
        # once more, so its present entry is ignored here.
        waiting = (entry for entry in self.entries if entry is not self._current)
        if all(callback != other for _, other in waiting):
            self.entries.append((turn, callback))

    def drop(self, callback: Callable[[], None]) -> None:
        """Removes ``callback``, whether it is due or set aside for the next run."""
        self.entries = [entry for entry in self.entries if entry[1] != callback]
        self.broken_off = [entry for entry in self.broken_off if entry[1] != callback]

    def clear(self) -> None:
        """Removes all callbacks."""
        self.entries = []
        self.broken_off = []
        self.on_resume = {}

    @property
    def is_broken_off(self) -> bool:
        """True if a stop broke off callbacks that the next run has to call."""
        return bool(self.broken_off or self.on_resume)

    def break_off(self) -> None:
        """Sets aside all callbacks that are due now; callbacks added later are called as usual."""
        self.remove_returned()
        self.broken_off, self.entries = [*self.broken_off, *self.entries], []

    def resume(self) -> None:
        """Makes the callbacks that were set aside due again, before callbacks added since."""
        earlier = [callback for _, callback in self.broken_off]
        later = [entry for entry in self.entries if entry[1] not in earlier]
        # One line, so that after an exception (Ctrl-C) the callbacks are either still set aside or
        # due, and never both or neither.
        self.entries, self.broken_off = [*self.broken_off, *later], []

    def call(self) -> None:
        """Calls the callbacks that are due, and the callbacks that they add.

        Each callback is called once. If a callback is added again after its call, the next ``call``
        calls it, so that two callbacks that add each other cannot run for ever.
        """
        called: list[Callable[[], None]] = []
        self.remove_returned()
        while waiting := [entry for entry in self.entries if entry[1] not in called]:
            self._current = entry = min(waiting, key=lambda each: each[0])
            called.append(entry[1])
            # One line, so that after an exception ``_results`` shows whether the callback returned.
            self._results.append(entry[1]())
            self.remove_returned()

    def remove_returned(self) -> None:
        """Removes the callback that was called last if it has returned.

        If the callback raised, it stays on the list. If it also added itself before it raised, it
        stays once, not twice.
        """
        current = self._current
        if self._results:
            self.entries = [entry for entry in self.entries if entry is not current]
        elif current is not None:
            self.entries = [
                each for each in self.entries if each is current or each[1] != current[1]
            ]
        self._current = None
        self._results.clear()
