"""The result that ``compare_checkpoints`` returns: the differences of two checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from typing import NamedTuple

__all__ = ["Comparison", "Difference", "Part", "Row"]


class Row(NamedTuple):
    """An entry that differs between two manifests: its name and its value in each manifest."""

    name: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Difference:
    """A tensor or another value that differs between two checkpoints.

    Attributes:
        name: the name of the value within its part, for example the name of a parameter.
        norm: the Euclidean norm of the difference between two tensors, over the elements that are
            finite in both; None if the values cannot be subtracted.
        relative: ``norm`` divided by the norm of the first checkpoint's tensor; infinite if the
            first tensor is zero and the second is not; None if ``norm`` is None.
        note: a text that describes a difference that ``norm`` does not show: for example in shape,
            in dtype, or in elements that are not finite.
        is_structural: whether only one checkpoint has the value, or the two tensors have different
            shapes or layouts.
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
        differences: the values that differ, sorted: structural differences first, then those that
            have no norm or have a note, then the others. In each of these kinds, the largest norm
            comes first.
    """

    count: int
    differences: list[Difference]


@dataclass(frozen=True)
class Comparison:
    """The differences between two checkpoints.

    Attributes:
        parts: maps the name of a part, such as a module, the optimizer or a handler, to the
            comparison of this part.
        rows: maps the name of a section of the manifests, such as "counters" or "settings", to the
            entries of this section that differ.
    """

    parts: Mapping[str, Part]
    rows: Mapping[str, list[Row]]

    @property
    def is_equal(self) -> bool:
        """True if no value differs. The run's id and the time of the save are not compared."""
        return not any(part.differences for part in self.parts.values()) and not any(
            self.rows.values()
        )
