"""The result that ``compare_checkpoints`` returns: the differences of two checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from typing import NamedTuple

__all__ = ["Comparison", "Difference", "Part", "Row"]


class Row(NamedTuple):
    """An entry that differs between two manifests: its name and its value in each."""

    name: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Difference:
    """A tensor or another value that differs between two checkpoints.

    Attributes:
        name: the name of the value in its part.
        norm: the Euclidean norm of the difference between two tensors, over the elements that are
            finite in both; None if the values cannot be subtracted.
        relative: ``norm`` divided by the norm of the first checkpoint's tensor.
        note: a text that describes differences other than ``norm``: for example in shape, in dtype,
            or in elements that are not finite.
        is_structural: whether the value is in one checkpoint only, or the shapes or layouts differ.
    """

    name: str
    norm: float | None = None
    relative: float | None = None
    note: str = ""
    is_structural: bool = False


@dataclass(frozen=True)
class Part:
    """The comparison of one part of two checkpoints, for example of the model or the optimizer.

    Attributes:
        count: the number of values that were compared.
        differences: the values that differ, the largest difference first.
    """

    count: int
    differences: list[Difference]


@dataclass(frozen=True)
class Comparison:
    """The differences between two checkpoints.

    Attributes:
        parts: the comparison of each module, the optimizer, each handler and so on, by name.
        rows: the differences of the manifests, by section: "counters", "settings" and so on.
    """

    parts: Mapping[str, Part]
    rows: Mapping[str, list[Row]]

    @property
    def is_equal(self) -> bool:
        """Returns whether all values are equal. The run and the time of the save do not count."""
        return not any(part.differences for part in self.parts.values()) and not any(
            self.rows.values()
        )
