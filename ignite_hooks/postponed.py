"""What waits until all handlers of a moment have returned."""

from collections.abc import Callable

__all__ = ["Postponed"]

Act = Callable[[], None]


class Postponed:
    """Acts to be done once each, those with a smaller turn first."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Act]] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, act: Act, turn: int) -> None:
        """Adds ``act`` unless it waits already."""
        if all(act is not other for _, other in self._waiting):
            self._waiting.append((turn, act))

    def clear(self) -> None:
        """Forgets all."""
        self._waiting = []

    def do(self) -> None:
        """Does what waits now."""
        waiting, self._waiting = self._waiting, []
        for _, act in sorted(waiting, key=lambda entry: entry[0]):
            act()
