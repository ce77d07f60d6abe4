"""Differences between two checkpoints, which ``compared`` finds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from typing import NamedTuple

__all__ = ["Comparison", "Difference", "Part", "Row"]


class Row(NamedTuple):
    """A value that differs, with the value of each checkpoint."""

    name: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Difference:
    """A tensor, or another value in a state, that differs.

    Args:
        name: its name in the part.
        norm: the Euclidean norm of the difference, over all elements that are finite in both; None
            where there is nothing to subtract.
        relative: the same divided by the norm of the first.
        note: what differs besides: shapes, dtypes, elements that are not finite in one of the two.
        is_structural: whether it is in one of the two only, or has another shape or kind.
    """

    name: str
    norm: float | None = None
    relative: float | None = None
    note: str = ""
    is_structural: bool = False


@dataclass(frozen=True)
class Part:
    """A part of a state.

    Args:
        count: how many values were compared.
        differences: those that differ, the largest first.
    """

    count: int
    differences: list[Difference]


@dataclass(frozen=True)
class Comparison:
    """All that differs between two checkpoints.

    Args:
        parts: modules, optimizer, handlers and so on, by name.
        rows: differences of the manifests, by section.
    """

    parts: Mapping[str, Part]
    rows: Mapping[str, list[Row]]

    @property
    def is_equal(self) -> bool:
        """Returns whether nothing differs but which run it was, and when it was saved."""
        return not any(part.differences for part in self.parts.values()) and not any(
            self.rows.values()
        )
