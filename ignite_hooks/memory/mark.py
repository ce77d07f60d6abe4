"""High-water marks of memory, and units of memory.

A high-water mark, or *mark* for short, holds the highest value of a quantity since its last reset.
An example is the largest resident memory of the process. The Linux kernel and the allocator
of a device keep such marks, one of each kind for the whole process.
"""

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
    """A high-water mark: the highest value of a quantity since the last reset.

    A process has only one mark of each kind, so a reset affects all code that reads this mark.
    """

    zero: Reading
    """The lowest possible reading."""

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
    """A mark whose readings are numbers of bytes."""

    zero = 0
    higher = staticmethod(max)
