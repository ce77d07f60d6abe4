"""What waits until all handlers of a moment have returned."""

from collections.abc import Callable

__all__ = ["Postponed"]

Act = Callable[[], None]


class Postponed:
    """Acts to be done once each, those with a smaller turn first."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, Act]] = []

    def add(self, act: Act, turn: int) -> None:
        """Adds ``act`` unless it waits already."""
        if all(act is not other for _, other in self.waiting):
            self.waiting.append((turn, act))

    def clear(self) -> None:
        """Forgets all."""
        self.waiting = []

    def do(self) -> None:
        """Does what waits now."""
        waiting, self.waiting = self.waiting, []
        for _, act in sorted(waiting, key=lambda entry: entry[0]):
            act()
