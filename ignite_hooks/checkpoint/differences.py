"""The result of a comparison of two checkpoints, as ``compare_checkpoints`` returns it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from typing import NamedTuple

__all__ = ["Comparison", "Difference", "Part", "Row"]


class Row(NamedTuple):
    """An entry of a manifest that differs, with its value in each checkpoint."""

    name: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Difference:
    """A tensor or another value of a state that differs.

    Args:
        name: the name of the value in its part.
        norm: the Euclidean norm of the difference, over all elements that are finite in both; None
            if the values cannot be subtracted.
        relative: ``norm`` divided by the norm of the first.
        note: other differences: shapes, dtypes, elements that are not finite in one of the two.
        is_structural: whether only one of the two has the value, or the shapes or layouts differ.
    """

    name: str
    norm: float | None = None
    relative: float | None = None
    note: str = ""
    is_structural: bool = False


@dataclass(frozen=True)
class Part:
    """The comparison of one part of a checkpoint, the model or the optimizer for example.

    Args:
        count: the number of values that were compared.
        differences: the values that differ, the largest difference first.
    """

    count: int
    differences: list[Difference]


@dataclass(frozen=True)
class Comparison:
    """The differences between two checkpoints.

    Args:
        parts: the comparison of each module, the optimizer, each handler and so on, by name.
        rows: the differences of the manifests, by section.
    """

    parts: Mapping[str, Part]
    rows: Mapping[str, list[Row]]

    @property
    def is_equal(self) -> bool:
        """Returns whether no value differs; the run and the time of the save may do so."""
        return not any(part.differences for part in self.parts.values()) and not any(
            self.rows.values()
        )
