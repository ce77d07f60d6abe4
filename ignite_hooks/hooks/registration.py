"""What takes off again what was registered."""

from collections.abc import Callable
from contextlib import AbstractContextManager

__all__ = ["Registration"]


class Registration(AbstractContextManager["Registration", None]):
    """One or several contexts in a set, until ``remove()``. In a ``with``, until its end."""

    def __init__(self, remove: Callable[[], None]) -> None:
        self._remove = remove

    def remove(self) -> None:
        """Takes off this registration and no other. A second time does nothing."""
        self._remove()

    def __exit__(self, *failure: object) -> None:
        self.remove()
