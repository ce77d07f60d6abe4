"""The lines of a record: how they are written, read, and cut back to an earlier iteration.

A record is a text file with one JSON object in each line, in strict JSON. docs/concepts/record.md
describes the keys. ``VERSION`` is the version of this format.
"""

import json
import math
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any
from typing import BinaryIO
from typing import NamedTuple

from ignite_hooks.core.rules import is_integer
from ignite_hooks.core.rules import is_number

__all__ = [
    "HEADERS",
    "MAGIC",
    "REPORTS",
    "VERSION",
    "Kept",
    "Line",
    "decoded",
    "encoded",
    "keep_lines",
    "number_in",
    "split_lines",
    "stream_lines",
    "writer_of_newer_format",
]

MAGIC = b'{"format": '
"""The first bytes of every record."""

VERSION = 1
"""The version of the format. A reader refuses a record with a higher version."""

REPORTS = ("step", "validation", "epoch", "end")
"""The events of the lines that have metrics."""

HEADERS = ("start", "resume")
"""The events of the lines that begin a run, or the rest of a run, and describe the program."""

MAX_LINE_BYTES = 2**23
"""The length from which ``stream_lines`` takes a line as damaged, to bound its memory."""

_ENCODER = json.JSONEncoder(allow_nan=False)
_DECODER = json.JSONDecoder()
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Line(NamedTuple):
    """A line of a record.

    Attributes:
        number: the number of the line, counted from 1.
        raw: the bytes, with the line end.
        content: the object in the line, which has an "event"; None if the line is damaged.
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


def number_in(value: Any) -> float | None:
    """Returns a value of a metric as a float; None if the value is not a number.

    True and False are not numbers. An integer that is too large for a float is infinite.

    Args:
        value: the value as it is in a line, in which "NaN" is a text.
    """
    if type(value) is float:  # almost all values
        return value
    number = decoded(value) if isinstance(value, str) else value
    if not is_number(number):
        return None
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def writer_of_newer_format(content: dict[str, Any]) -> str | None:
    """Returns the version of the package that wrote a line, if its format is newer than VERSION.

    Returns None for a line that this version can read.
    """
    version = content.get("format", VERSION)
    if content["event"] not in HEADERS or not is_integer(version) or version <= VERSION:
        return None
    versions = content.get("versions")
    written_by = versions.get("ignite-hooks") if isinstance(versions, dict) else None
    return written_by if isinstance(written_by, str) else "a newer version"


def split_lines(content: bytes) -> Iterator[Line]:
    """Yields the lines of a record. A last line without a line end is left out."""
    for number, raw in enumerate(content.split(b"\n")[:-1], 1):
        yield Line(number, raw + b"\n", _parsed(raw))


def stream_lines(file: BinaryIO) -> Iterator[Line]:
    """Yields the lines of a record like ``split_lines``, and reads the file line by line."""
    number = 0
    while raw := file.readline(MAX_LINE_BYTES):
        number += 1
        content = _parsed(raw)
        while not raw.endswith(b"\n"):
            raw, content = file.readline(MAX_LINE_BYTES), None
            if not raw:  # the last line, which is being written
                return
        yield Line(number, raw, content)


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
        # Faster than json.loads, which tries other encodings than UTF-8.
        content = _DECODER.decode(raw.decode())
    except (ValueError, RecursionError):  # no JSON, no UTF-8, or lists nested very deep
        return None
    has_event = isinstance(content, dict) and isinstance(content.get("event"), str)
    return content if has_event else None
