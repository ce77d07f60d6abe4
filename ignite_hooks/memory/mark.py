"""High-water marks, which hold the highest value since their last reset; and units of memory."""

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
    """The highest value of something since the last reset. A process has one mark of each kind."""

    zero: Reading
    """A reading below all others."""

    higher: Callable[[Reading, Reading], Reading]
    """Returns the higher of two readings."""

    def open(self) -> None:
        """Acquires the resources for reading the mark, such as file descriptors."""

    def close(self) -> None:
        """Releases the resources."""

    @abstractmethod
    def reset(self) -> None:
        """Lowers the mark to the present value."""

    @abstractmethod
    def read(self) -> Reading:
        """Returns the highest value since the last reset."""


class ByteMark(Mark[int]):
    """A mark of one number of bytes."""

    zero = 0
    higher = staticmethod(max)
