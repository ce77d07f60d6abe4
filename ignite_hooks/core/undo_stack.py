"""Changes that are always undone: at the end of their own scope, or else at the end of the run.

The end of a scope may fail to undo a change: a signal may interrupt the ``finally`` of the scope,
or a traceback may keep the generator of the scope suspended until much later. So the callback that
undoes a change is noted before the change is made. When the run ends, or else when the next run
begins, the callbacks that have not been called yet are called.
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
        # If `outer` is this object, an interrupted exit has left it there, and `_outer` is still
        # correct.
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
        # By identity: two callbacks may be equal, such as bound methods of one object.
        while left := [each for each in self._callbacks if not any(each is other for other in but)]:
            self.call(left[-1], out_of_order=True)

    def push(self, undo: Undo) -> None:
        """Notes a change that is about to be made, by the callback that undoes it."""
        self._callbacks.append(undo)

    def call(self, undo: Undo, *, out_of_order: bool) -> None:
        """Undoes a change that is not undone yet. A call that was interrupted may be repeated.

        Args:
            undo: the callback that undoes the change.
            out_of_order: whether to undo this change only. If False, the changes that were made
                later are undone first, because their scopes should have ended earlier.
        """
        while any(undo is each for each in self._callbacks):
            callback = undo if out_of_order else self._callbacks[-1]
            callback()
            # Removed after the call: a callback that was interrupted is called again.
            self._callbacks = [each for each in self._callbacks if each is not callback]


_innermost = threading.local()  # runs in several threads are independent of each other


@contextmanager
def undo_on_exit(undo: Undo, *, out_of_order: bool = False) -> Iterator[None]:
    """Calls ``undo`` after the body, which makes a change.

    Args:
        undo: undoes the change. It may be called a second time if its first call was interrupted.
        out_of_order: whether to undo this change only, even if changes that were made later are not
            undone yet. A scope that may end before the scopes within it, as a scope in a generator
            may, needs True.
    """
    # Outside a run there is no stack, and nothing would call callbacks that are left over. A new
    # stack for this body is enough.
    changes: UndoStack = getattr(_innermost, "changes", None) or UndoStack()
    changes.push(undo)
    try:
        yield
    finally:
        changes.call(undo, out_of_order=out_of_order)
