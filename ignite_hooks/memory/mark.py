"""What a high-water mark is: the highest that something has been, until it is reset."""

from abc import ABC
from abc import abstractmethod
from collections.abc import Callable
from typing import Generic
from typing import TypeVar

__all__ = ["ByteMark", "Mark", "Reading"]

Reading = TypeVar("Reading")


class Mark(ABC, Generic[Reading]):
    """The highest that something has been since the last reset. A process has one of each kind."""

    nothing: Reading
    """What is below every reading."""

    higher: Callable[[Reading, Reading], Reading]
    """Tells the higher of two readings."""

    def open(self) -> None:
        """Takes what it needs of the process, descriptors say."""

    def close(self) -> None:
        """Gives that back."""

    @abstractmethod
    def reset(self) -> None:
        """Lowers the mark to what is in use now."""

    @abstractmethod
    def read(self) -> Reading:
        """The highest since the last reset."""


class ByteMark(Mark[int]):
    """A mark of one number of bytes."""

    nothing = 0
    higher = staticmethod(max)
