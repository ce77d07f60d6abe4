"""Converts numbers, durations, times and names to texts for people.

``web/texts.js`` writes numbers and durations by the same rules.
"""

import re
from datetime import datetime
from datetime import timezone
from decimal import ROUND_HALF_UP
from decimal import Context
from decimal import Decimal
from typing import TYPE_CHECKING
from typing import Any

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = [
    "breakable",
    "count_text",
    "duration_text",
    "file_name",
    "growth_text",
    "number_text",
    "parsed_time",
    "percent_text",
    "time_text",
    "unit_text",
    "value_text",
]

MAX_NUMBER_LENGTH = 10
"""Numbers in settings that are written with more characters are rounded."""

# JavaScript rounds half up, other than the formats of Python.
_THREE_DIGITS, _FOUR_DIGITS = (Context(digits, ROUND_HALF_UP) for digits in (3, 4))

MEMORY_QUANTITIES = ("resident memory", "memory of worker processes", "device memory")
"""The quantities of ``GrowthWatch`` that are in bytes."""


def number_text(value: float | None) -> str:
    """Returns a number with four significant digits: "12,345", "0.9861", "1.23e-4", "1.2e7".

    Integers below a million have all their digits. None, which is a number that is not finite,
    becomes a dash.
    """
    if value is None:
        return "–"
    exact, size = Decimal(value), abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        digits, exponent = f"{_THREE_DIGITS.plus(exact):.2e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    rounded = exact.quantize(1, ROUND_HALF_UP) if size >= 1000 else _FOUR_DIGITS.plus(exact)
    return f"{float(rounded):,}".removesuffix(".0")


def count_text(count: int | None) -> str:
    """Returns an integer with all its digits, for example a step; a dash for None."""
    return "–" if count is None else f"{count:,}"


def duration_text(seconds: float) -> str:
    """Returns a duration, for example "4.2 s", "3 min 07 s", "1 h 05 min", "2 d 3 h"."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02} s"
    minutes = total // 60
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes // 1440} d {minutes // 60 % 24} h"


def percent_text(share: float) -> str:
    """Returns a share of 1 in percent, with one decimal below 10 %."""
    percent = 100 * share
    if 0 < percent < 0.05:
        return "< 0.1 %"
    return f"{percent:.1f} %" if 0 < percent < 9.95 else f"{percent:.0f} %"


def time_text(time: str) -> str:
    """Returns a time of day in ISO format as "2026-11-30 01:20 UTC"; another text as it is."""
    parsed = parsed_time(time)
    return time if parsed is None else f"{parsed:%Y-%m-%d %H:%M} UTC"


def parsed_time(time: str | None) -> datetime | None:
    """Returns a time of day in ISO format, in UTC; None if the text is something else."""
    try:
        # Python 3.10 does not read the "Z".
        parsed = datetime.fromisoformat((time or "").replace("Z", "+00:00"))
    except ValueError:
        return None
    if parsed.tzinfo is None:
        return parsed.replace(tzinfo=timezone.utc)
    try:
        return parsed.astimezone(timezone.utc)
    except OverflowError:
        return None


def value_text(value: Any) -> str:
    """Returns the value of a setting. Numbers have up to six digits after the leading zeros."""
    if value is None:
        return "–"
    if isinstance(value, float):
        exact = repr(value)
        return exact if len(exact) <= MAX_NUMBER_LENGTH else f"{value:.6g}"
    return str(value)


def unit_text(unit: str) -> str:
    """Returns a unit as it stands after a number: "/s" instead of "1/s"."""
    return unit[1:] if unit.startswith("1/") else unit


def growth_text(rate: float, name: str) -> str:
    """Returns the rate of a quantity of ``GrowthWatch``; that of a memory in MiB."""
    if name in MEMORY_QUANTITIES:
        return f"{number_text(rate / 2**20)} MiB"
    return number_text(rate)


def file_name(path: str) -> str:
    """Returns the last part of a path of any system."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path


def breakable(text: str) -> "Markup":
    """Returns a name as HTML that browsers may break after "/" and "_"."""
    from markupsafe import Markup
    from markupsafe import escape

    return Markup(re.sub(r"([/_])", r"\1<wbr>", str(escape(text))))  # entities have neither
