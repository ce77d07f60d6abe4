"""A table of callbacks by step. A step at which no callback is due costs one comparison."""

from collections.abc import Callable
from operator import attrgetter
from typing import NamedTuple

__all__ = ["Timetable"]

Callback = Callable[[], None]


class _Entry(NamedTuple):
    """A callback in the table, with the arguments of ``Timetable.add``."""

    every: int
    callback: Callback
    is_note: bool
    is_last: bool


class Timetable:
    """A table of callbacks, each of which is called at the multiples of its interval in steps.

    Callbacks that are due at the same step are called in the order in which they were added. Those
    that were added with ``is_last=True`` come after all others.

    Attributes:
        next_due: the next step at which a callback is due; ``NEVER`` if the table is empty. After
            each step, the owner of the table compares its number of steps with ``next_due``. When
            the number reaches ``next_due``, the owner calls ``call_due``.
    """

    NEVER = 2**63  # a number and not None, so that the owner can always compare

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        # (callback, is_note) for the callbacks that are due and have not been called yet.
        self._due: list[tuple[Callback, bool]] = []
        self._step = 0
        self.next_due = self.NEVER

    @property
    def callbacks(self) -> list[Callback]:
        """All callbacks, in the order in which they were added."""
        return [entry.callback for entry in self._entries]

    def add(
        self, every: int, callback: Callback, *, is_note: bool = False, is_last: bool = False
    ) -> None:
        """Calls ``callback`` at each multiple of ``every`` steps.

        Args:
            every: the number of steps.
            callback: is called without arguments.
            is_note: whether ``callback`` does no work, and only notes that work is due. If an
                exception breaks off such a callback, the next ``call_due`` calls it again. Any
                other callback is not called again, because it may have done a part of its work.
            is_last: whether ``callback`` is called after the callbacks without ``is_last``.
        """
        self._entries.append(_Entry(every, callback, is_note, is_last))
        self._entries.sort(key=attrgetter("is_last"))  # keeps the order of equal entries
        self._update_next_due()

    def drop(self, callback: Callback) -> None:
        """Removes ``callback``, if it is there."""
        # Callbacks are compared by identity, because two entries may have equal callbacks: each
        # access to a bound method makes a new object, which is equal to the others.
        self._entries = [entry for entry in self._entries if entry.callback is not callback]
        self._update_next_due()

    def start_from(self, step: int) -> None:
        """Sets the number of completed steps, and drops the calls that are still due."""
        self._due = []
        self._step = step
        self._update_next_due()

    def call_due(self, step: int) -> None:
        """Calls the callbacks that are due at ``step``.

        If a callback raises an exception, the next ``call_due`` first calls the callbacks that are
        left. The failed callback is among them only if it was added with ``is_note=True``.
        """
        if step > self._step:
            new = [
                (each.callback, each.is_note) for each in self._entries if step % each.every == 0
            ]
            self._due, self._step = self._due + new, step
        try:
            while self._due:
                callback, is_note = self._due[0]
                if is_note:
                    callback()
                    del self._due[0]
                else:
                    # One line removes the callback and calls it, because a signal handler can raise
                    # an exception only between two lines. So wherever Ctrl-C comes, the callback
                    # either is still due or has begun.
                    self._due.pop(0)[0]()
        finally:
            self._update_next_due()

    def _update_next_due(self) -> None:
        after = self._step + 1
        # The first multiple of each interval that is not below `after`.
        multiples = (-(-after // each.every) * each.every for each in self._entries)
        self.next_due = self._step if self._due else min(multiples, default=self.NEVER)
