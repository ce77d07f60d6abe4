"""Changes that are always undone: at the end of their own scope, or else at the end of the run.

A change is, for example, a module that is set to evaluation mode during a validation. A scope is a
``with`` block that makes a change and undoes it at its end. But a signal may interrupt the end of
the scope. Or the scope is in a suspended generator, which a traceback keeps alive after the run. So
the callback that undoes a change is noted before the change is made. When the run ends, the trainer
calls the callbacks that have not been called yet. If a signal interrupts these calls too, the
trainer calls the rest when the next run begins.
"""

import threading
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import contextmanager

__all__ = ["UndoStack", "undo_on_exit"]

Undo = Callable[[], None]


class UndoStack(AbstractContextManager["UndoStack", None]):
    """The changes of one run that are not undone yet, as the callbacks that undo them.

    The stack is a context manager around the run. ``undo_on_exit`` adds a change to the
    ``UndoStack`` that the present thread has entered last.
    """

    def __init__(self) -> None:
        self._callbacks: list[Undo] = []
        self._outer: UndoStack | None = None

    def __enter__(self) -> "UndoStack":
        outer = getattr(_innermost, "changes", None)
        # If `outer` is this object, an earlier exit was interrupted before it could restore
        # `_innermost.changes`. Then `_outer` still has the correct value.
        if outer is not self:
            self._outer = outer
        _innermost.changes = self
        return self

    def __exit__(self, *failure: object) -> None:
        if getattr(_innermost, "changes", None) is self:
            _innermost.changes = self._outer
            self._outer = None

    @property
    def pending(self) -> tuple[Undo, ...]:
        """The callbacks of all changes that are not undone yet, in the order of the changes."""
        return (*self._callbacks,)

    def undo_all(self, but: Collection[Undo] = ()) -> None:
        """Undoes all changes, the last one first, except those whose callbacks are in ``but``."""
        # Callbacks are compared by identity, because different callbacks may be equal, for example
        # two bound methods of one object.
        while left := [each for each in self._callbacks if not any(each is other for other in but)]:
            self.call(left[-1], out_of_order=True)

    def push(self, undo: Undo) -> None:
        """Notes ``undo``, the callback that undoes a change, before the change is made."""
        self._callbacks.append(undo)

    def call(self, undo: Undo, *, out_of_order: bool) -> None:
        """Undoes a change, if it is not undone yet. An interrupted call may be repeated.

        Args:
            undo: the callback that undoes the change.
            out_of_order: whether to undo this change only. If False, the changes that were made
                later are undone first, because their scopes should have ended earlier.
        """
        while any(undo is each for each in self._callbacks):
            callback = undo if out_of_order else self._callbacks[-1]
            callback()
            # The callback is removed after its call, so that a callback that was interrupted is
            # called again.
            self._callbacks = [each for each in self._callbacks if each is not callback]


# The attribute `changes` is the stack that this thread has entered last. Each thread has its own
# attribute, because runs in several threads are independent of each other.
_innermost = threading.local()


@contextmanager
def undo_on_exit(undo: Undo, *, out_of_order: bool = False) -> Iterator[None]:
    """Calls ``undo`` after the body, which makes a change.

    Args:
        undo: undoes the change. It may be called a second time if its first call was interrupted.
        out_of_order: whether to undo this change only, even if changes that were made later are not
            undone yet. If False, the later changes are undone first. True is needed for a scope
            that may end before scopes that were entered later, for example a scope in the generator
            of a feed, which can be closed at any time.
    """
    # Outside a run there is no stack, so this body gets a stack of its own.
    changes: UndoStack = getattr(_innermost, "changes", None) or UndoStack()
    changes.push(undo)
    try:
        yield
    finally:
        changes.call(undo, out_of_order=out_of_order)
