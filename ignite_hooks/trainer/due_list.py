"""Callbacks that are deferred until all handlers of an event have returned.

A callback is *due* while it is on the list. Each callback has a *turn* (``Turn``), which gives its
place in the order of the calls: callbacks with an earlier turn are called earlier.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

from ignite_hooks.core.training_engine import Turn

__all__ = ["DueList"]

_Entry = tuple[Turn, Callable[[], None]]


class DueList:
    """The deferred callbacks of a trainer, called when all handlers of an event have returned.

    If a callback raises an exception, this callback and the callbacks that have not been called yet
    stay on the list, and the next run calls them first.

    Attributes:
        entries: the callbacks that are due, with their turns, in the order in which they were
            added.
        broken_off: the entries that ``break_off`` has set aside. The next run in this process puts
            them back into ``entries``.
        on_resume: the numbers of the callbacks that were due in a loaded checkpoint. For example,
            ``{"validations": [1]}`` means the second callback of the kind "validations" (see
            ``core/due_on_resume.py``). Empty as soon as the resumed run has put these callbacks on
            the list.
    """

    def __init__(self) -> None:
        self.entries: list[_Entry] = []
        self.broken_off: list[_Entry] = []
        self.on_resume: Mapping[str, Any] = {}
        self._current: _Entry | None = None  # the entry that is being called
        self._results: list[None] = []  # has one entry if ``_current`` has returned

    def add(self, callback: Callable[[], None], turn: Turn) -> None:
        """Adds ``callback`` with its turn, unless the callback is on the list already."""
        # While a callback is being called, its entry is still on the list. This entry is ignored
        # here, so that a callback can add itself for the next ``call``.
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
        """True if callbacks are set aside for the next run to call."""
        return bool(self.broken_off or self.on_resume)

    def break_off(self) -> None:
        """Sets aside all callbacks on the list, for the next run.

        Callbacks that are added later are called as usual.
        """
        self.remove_returned()
        self.broken_off, self.entries = [*self.broken_off, *self.entries], []

    def resume(self) -> None:
        """Moves the callbacks that were set aside to the beginning of the list."""
        earlier = [callback for _, callback in self.broken_off]
        later = [entry for entry in self.entries if entry[1] not in earlier]
        # One statement changes both lists. So after Ctrl-C each callback is in exactly one of them.
        self.entries, self.broken_off = [*self.broken_off, *later], []

    def call(self) -> None:
        """Calls the callbacks on the list, including those that are added during the calls.

        Each callback is called at most once. If a callback that was called is added again, the new
        entry stays on the list for the next ``call``. Otherwise two callbacks that add each other
        would be called for ever.
        """
        called: list[Callable[[], None]] = []
        self.remove_returned()
        while waiting := [entry for entry in self.entries if entry[1] not in called]:
            self._current = entry = min(waiting, key=lambda each: each[0])
            called.append(entry[1])
            # One statement makes the call and notes its return, so that after Ctrl-C ``_results``
            # shows whether the callback has returned.
            self._results.append(entry[1]())
            self.remove_returned()

    def remove_returned(self) -> None:
        """Removes the entry of the callback that was called last, if this callback has returned.

        If the callback raised an exception instead, the entry stays on the list. If the callback
        had added itself once more before the exception, the second entry is removed.
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
