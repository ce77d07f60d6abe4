"""High-water marks: the highest that something has been until a reset; and units of memory."""

from abc import ABC
from abc import abstractmethod
from collections.abc import Callable
from typing import Generic
from typing import TypeVar

__all__ = ["KIB", "MIB", "ByteMark", "Mark", "Reading"]

KIB = 2**10
MIB = 2**20

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
