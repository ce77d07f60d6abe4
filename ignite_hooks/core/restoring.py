"""Changes that are undone for sure: by their own scope, or else by the run that they were made in.

The ``finally`` of a scope may be interrupted, and the generator of a scope may be left suspended in
a traceback and end much later. So each change is noted, with what undoes it, before it is made: a
run that ends, or the next one, undoes what is left.
"""

import threading
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import contextmanager

__all__ = ["Changes", "restored"]

Undo = Callable[[], None]


class Changes(AbstractContextManager["Changes", None]):
    """The changes made in one run and not undone yet. ``restored`` notes them in the body."""

    def __init__(self) -> None:
        self._undo: list[Undo] = []
        self._outer: Changes | None = None

    def __enter__(self) -> "Changes":
        outer = getattr(_present, "changes", None)
        if outer is not self:  # else it was left by an exit that broke off
            self._outer = outer
        _present.changes = self
        return self

    def __exit__(self, *failure: object) -> None:
        if getattr(_present, "changes", None) is self:
            _present.changes = self._outer
            self._outer = None

    @property
    def present(self) -> tuple[Undo, ...]:
        """What would undo those that were made up to now."""
        return (*self._undo,)

    def undo(self, but: Collection[Undo] = ()) -> None:
        """Undoes them, the last one first, but for those that are undone by ``but``."""
        while left := [each for each in self._undo if not any(each is other for other in but)]:
            self.end(left[-1], alone=True)

    def begin(self, undo: Undo) -> None:
        """Notes a change that is about to be made."""
        self._undo.append(undo)

    def end(self, undo: Undo, *, alone: bool) -> None:
        """Undoes a change, unless that was done; a call that breaks off may be repeated.

        Args:
            undo: undoes the change.
            alone: leave those that were made later; else they are left over, and are undone before.
        """
        while any(undo is each for each in self._undo):
            last = undo if alone else self._undo[-1]
            last()
            self._undo = [each for each in self._undo if each is not last]


_present = threading.local()


@contextmanager
def restored(undo: Undo, *, alone: bool = False) -> Iterator[None]:
    """Calls ``undo`` after the body, which makes the change.

    Args:
        undo: undoes the change; it may be called a second time if it broke off.
        alone: for a scope of a generator that may end while scopes within are still open.
    """
    changes: Changes = getattr(_present, "changes", None) or Changes()
    changes.begin(undo)
    try:
        yield
    finally:
        changes.end(undo, alone=alone)
