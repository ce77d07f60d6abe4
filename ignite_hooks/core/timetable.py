"""Who acts at which step, at the cost of one comparison a step while nobody is due."""

from collections.abc import Callable

__all__ = ["Timetable"]

Act = Callable[[], None]


class Timetable:
    """Calls each of its entries every so many steps, those of one step in order of attachment.

    ``next_due`` is the first step at which anything has to be done. Its owner compares the number
    of steps with it and calls ``act`` when that is reached, however many entries wait.
    """

    NEVER = 2**63

    def __init__(self) -> None:
        self._entries: list[tuple[int, Act]] = []
        self._step = 0
        self.next_due = self.NEVER

    def add(self, every: int, act: Act) -> Callable[[], None]:
        """Has ``act`` called at each multiple of ``every``; returns what takes it out again."""
        entry = (every, act)
        self._entries.append(entry)
        self._look_up()

        def remove() -> None:
            self._entries = [other for other in self._entries if other is not entry]
            self._look_up()

        return remove

    def start_from(self, step: int) -> None:
        """Says that ``step`` is done; what comes next is due after it."""
        self._step = step
        self._look_up()

    def act(self, step: int) -> None:
        """Calls what is due at ``step``."""
        due = [act for every, act in self._entries if step % every == 0]
        self.start_from(step)
        for act in due:
            act()

    def _look_up(self) -> None:
        after = self._step + 1
        self.next_due = min((-(-after // n) * n for n, _ in self._entries), default=self.NEVER)
