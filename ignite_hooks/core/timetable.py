"""Callbacks by step, at the cost of one comparison a step while none is due."""

from collections.abc import Callable

__all__ = ["Timetable"]

Callback = Callable[[], None]


class Timetable:
    """Calls each of its callbacks every so many steps, those of one step in order of attachment.

    Attributes:
        next_due: the first step at which a callback is due. The owner compares the number of steps
            with it, and calls ``call_due`` when it is reached, however many callbacks wait.
    """

    NEVER = 2**63

    def __init__(self) -> None:
        self._entries: list[tuple[int, Callback, bool]] = []
        self._due: list[tuple[Callback, bool]] = []
        self._step = 0
        self.next_due = self.NEVER

    @property
    def callbacks(self) -> list[Callback]:
        """All callbacks, in the order in which they were added."""
        return [callback for _, callback, _ in self._entries]

    def add(self, every: int, callback: Callback, *, is_note: bool = False) -> None:
        """Has ``callback`` called at each multiple of ``every``.

        Args:
            every: the number of steps.
            callback: the callback.
            is_note: whether it only notes what is due; then it is called again if it broke off.
        """
        self._entries.append((every, callback, is_note))
        self._look_up()

    def drop(self, callback: Callback) -> None:
        """Drops ``callback``, if it is there; a second call does nothing."""
        self._entries = [other for other in self._entries if other[1] is not callback]
        self._look_up()

    def start_from(self, step: int) -> None:
        """Sets the step that is done; what comes next is due after it."""
        self._due = []
        self._step = step
        self._look_up()

    def call_due(self, step: int) -> None:
        """Calls what is due at ``step``, and what an earlier call has left because one failed.

        A callback that fails is not called again unless it is a note, and those after it are called
        the next time.
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
                    self._due.pop(0)[0]()  # taken and begun in one line
        finally:
            self._look_up()

    def _look_up(self) -> None:
        after = self._step + 1
        multiples = (-(-after // every) * every for every, *_ in self._entries)
        self.next_due = self._step if self._due else min(multiples, default=self.NEVER)
