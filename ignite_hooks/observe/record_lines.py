"""The lines of a record: how they are written, read, and cut back to an earlier iteration.

A record is a text file with one JSON object in each line, in strict JSON. docs/watching.md
describes the keys. ``VERSION`` is the version of this format.
"""

import json
import math
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

__all__ = [
    "HEADERS",
    "REPORTS",
    "VERSION",
    "Kept",
    "Line",
    "decoded",
    "encoded",
    "keep_lines",
    "split_lines",
]

VERSION = 1
"""The version of the format. A reader refuses a record with a higher version."""

REPORTS = ("step", "validation", "epoch", "end")
"""The events of the lines that have metrics."""

HEADERS = ("start", "resume")
"""The events of the lines that begin a run, or the rest of a run, and describe the program."""

_ENCODER = json.JSONEncoder(allow_nan=False)
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Line(NamedTuple):
    """A line of a record.

    Attributes:
        number: the number of the line, counted from 1.
        raw: the bytes, with the line end.
        content: the object in the line; None if the line is damaged.
    """

    number: int
    raw: bytes
    content: dict[str, Any] | None


class Kept(NamedTuple):
    """The result of cutting a record back.

    Attributes:
        lines: the lines that are kept, in order.
        cut: the lines that are cut, in order.
        reports: the number of reports among the kept lines.
        writers: the ids of the runs that may have written the state after the kept reports: the run
            that wrote the last of them, and those that resumed since. Empty without a header.
    """

    lines: list[Line]
    cut: list[Line]
    reports: int
    writers: set[Any]


def encoded(line: dict[str, Any]) -> bytes:
    """Returns a line as bytes. Numbers that JSON lacks become "NaN", "Infinity", "-Infinity"."""
    try:
        text = _ENCODER.encode(line)
    except ValueError:  # a number that JSON lacks
        text = _ENCODER.encode(_strict(line))
    return text.encode() + b"\n"


def decoded(value: Any) -> Any:
    """Returns a value of a metric as it was before it was written."""
    if isinstance(value, str):
        return _NOT_FINITE.get(value, value)
    if isinstance(value, list):
        return [decoded(each) for each in value]
    if isinstance(value, dict):
        return {key: decoded(each) for key, each in value.items()}
    return value


def split_lines(content: bytes) -> Iterator[Line]:
    """Yields the lines of a record. A last line without a line end is left out."""
    for number, raw in enumerate(content.split(b"\n")[:-1], 1):
        yield Line(number, raw + b"\n", _parsed(raw))


def keep_lines(lines: Iterable[Line], iteration: int, reports: int | None = None) -> Kept:
    """Cuts a record back to the state after ``iteration``.

    All lines up to this iteration are kept, also those of a stop. Of a checkpoint, the iteration is
    that of the saved state.

    Args:
        lines: the lines of the record.
        iteration: the number of iterations.
        reports: the number of reports to keep at most; None if the iteration alone decides.
    """
    kept = Kept([], [], 0, set())
    writer: Any = None
    for line in lines:
        content = line.content or {}
        event = content.get("event")
        made_at = content.get("iteration", 0)
        if event == "checkpoint":
            made_at = content.get("checkpoint", {}).get("iteration", made_at)
        is_kept = bool(made_at <= iteration)
        if event in REPORTS and reports is not None:
            is_kept = is_kept and kept.reports < reports
        if not is_kept:
            kept.cut.append(line)
            continue
        kept.lines.append(line)
        if event in HEADERS:
            writer = content.get("run")
            kept.writers.add(writer)
        elif event in REPORTS:
            kept = kept._replace(reports=kept.reports + 1)
            kept.writers.clear()
            kept.writers.add(writer)
    return kept


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _strict(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_strict(each) for each in value]
    return value


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(raw)
    except ValueError:  # no JSON, or no UTF-8
        return None
    return content if isinstance(content, dict) else None
