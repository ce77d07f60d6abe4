"""The events of a run, of which many in a row become one mark."""

from typing import NamedTuple

from ignite_hooks.observe.report.page_data import Mark
from ignite_hooks.observe.report.page_data import MarkKind
from ignite_hooks.observe.report.positions import Epochs
from ignite_hooks.observe.report.positions import LinePosition

__all__ = ["ThinnedMarks"]

_PLURALS: dict[MarkKind, str] = {
    "validation": "validations",
    "checkpoint": "checkpoints",
    "skip": "skipped steps",
    "resume": "resumes",
    "stop": "stops",
    "error": "errors",
}


class _Mark(NamedTuple):
    """A mark: one event, or several of a kind in a row, described by the last of them."""

    number: int  # counts the events of all kinds
    text: str
    at: LinePosition
    events: int


class ThinnedMarks:
    """The marks of a run. If a kind has too many, each two in a row become one.

    Args:
        max_marks: the largest number of marks of a kind.
    """

    def __init__(self, max_marks: int) -> None:
        self._max_marks = max_marks
        self._marks: dict[MarkKind, list[_Mark]] = {}
        self._widths: dict[MarkKind, int] = {}  # the number of events for a mark
        self._number = 0

    def add(self, kind: MarkKind, text: str, at: LinePosition) -> None:
        """Adds an event."""
        marks, width = self._marks.setdefault(kind, []), self._widths.setdefault(kind, 1)
        self._number += 1
        earlier = marks.pop().events if marks and marks[-1].events < width else 0
        marks.append(_Mark(self._number, text, at, earlier + 1))
        if len(marks) > self._max_marks:
            last = marks[-1:] if len(marks) % 2 else []
            pairs = zip(marks[::2], marks[1::2], strict=False)
            merged = [other._replace(events=one.events + other.events) for one, other in pairs]
            self._marks[kind], self._widths[kind] = [*merged, *last], 2 * width

    def as_data(self, epochs: Epochs) -> list[Mark]:
        """Returns the marks of a page, in the order of their events."""
        marks = [(kind, mark) for kind, marks in self._marks.items() for mark in marks]
        return [
            {
                "kind": kind,
                "text": _text(kind, mark),
                "at": epochs.position(mark.at),
                "count": mark.events,
            }
            for kind, mark in sorted(marks, key=lambda each: each[1].number)
        ]


def _text(kind: MarkKind, mark: _Mark) -> str:
    if mark.events == 1:
        return mark.text
    return f"{mark.events:,} {_PLURALS[kind]}, the last: {mark.text}"
