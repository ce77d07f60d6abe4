"""Callbacks by step, at the cost of one comparison per step while none is due."""

from collections.abc import Callable

__all__ = ["Timetable"]

Callback = Callable[[], None]


class Timetable:
    """A table of callbacks, each of which is called every so many steps.

    The callbacks of one step are called in the order in which they were added.

    Attributes:
        next_due: the next step at which a callback is due. The owner compares the number of steps
            with this number, and calls ``call_due`` when the number of steps has reached it.
    """

    NEVER = 2**63  # an integer, so that the comparison with `next_due` needs no special case

    def __init__(self) -> None:
        self._entries: list[tuple[int, Callback, bool]] = []  # (every, callback, is_note)
        # (callback, is_note) for the callbacks that are due and have not been called yet.
        self._due: list[tuple[Callback, bool]] = []
        self._step = 0
        self.next_due = self.NEVER

    @property
    def callbacks(self) -> list[Callback]:
        """All callbacks, in the order in which they were added."""
        return [callback for _, callback, _ in self._entries]

    def add(self, every: int, callback: Callback, *, is_note: bool = False) -> None:
        """Calls ``callback`` at each multiple of ``every`` steps.

        Args:
            every: the number of steps.
            callback: is called without arguments.
            is_note: whether ``callback`` only notes that work is due. A callback that an exception
                has broken off is called again only if this is True.
        """
        self._entries.append((every, callback, is_note))
        self._update_next_due()

    def drop(self, callback: Callback) -> None:
        """Removes ``callback``, if it is there."""
        # By identity, because equal callbacks, such as bound methods of one object, are separate.
        self._entries = [entry for entry in self._entries if entry[1] is not callback]
        self._update_next_due()

    def start_from(self, step: int) -> None:
        """Sets the number of completed steps, and forgets callbacks that are still due."""
        self._due = []
        self._step = step
        self._update_next_due()

    def call_due(self, step: int) -> None:
        """Calls the callbacks that an earlier call has left over, and then those due at ``step``.

        If a callback fails, the callbacks after it are left over for the next call. The failed
        callback is not called again, unless it only notes that work is due.
        """
        if step > self._step:
            new = [(call, is_note) for every, call, is_note in self._entries if step % every == 0]
            self._due, self._step = self._due + new, step
        try:
            while self._due:
                callback, is_note = self._due[0]
                if is_note:
                    callback()
                    del self._due[0]
                else:
                    # On one line. A signal handler can raise an exception only between two lines,
                    # so the callback is then either still due or has begun.
                    self._due.pop(0)[0]()
        finally:
            self._update_next_due()

    def _update_next_due(self) -> None:
        after = self._step + 1
        multiples = (-(-after // every) * every for every, *_ in self._entries)  # rounded up
        self.next_due = self._step if self._due else min(multiples, default=self.NEVER)
