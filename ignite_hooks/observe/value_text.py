"""Converts values to short texts for people: numbers, durations, sizes, and values of any type."""

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

__all__ = ["NUMBER_WIDTH", "duration_text", "number_text", "one_line", "size_text", "value_text"]

NUMBER_WIDTH = 7  # characters of most numbers, such as "3.12e-4"
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def number_text(number: float) -> str:
    """Returns a number with four significant digits at most, for example "0.9861" or "3.1e-4"."""
    size = abs(number)
    if isinstance(number, float) and not math.isfinite(number):
        return str(float(number))
    if size >= 1e6 or 0 < size < 0.01:
        # A Decimal, because an integer may be too large for a float.
        digits, exponent = f"{Decimal(number):.2e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    if isinstance(number, int):
        return str(number)
    if size == 0:
        return "0.0"
    decimals = max(0, 3 - max(0, math.floor(math.log10(size))))
    # Below 1, four decimals, so that the points of a column are under each other.
    return f"{number:.{4 if size < 1 else decimals}f}"


def duration_text(seconds: float) -> str:
    """Returns a duration, for example "4.2 s", "3:07" (minutes), "2:03:07", "1 d 2:03:07"."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    days, rest = divmod(total, 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    clock = f"{hours}:{minutes:02}:{rest:02}" if days or hours else f"{minutes}:{rest:02}"
    return f"{days} d {clock}" if days else clock


def size_text(size: float) -> str:
    """Returns a number of bytes in a unit that suits it, for example "1.45 GiB"."""
    power = 0
    while size >= 1000 and power < len(_UNITS) - 1:
        size, power = size / 1024, power + 1
    decimals = 0 if size >= 100 or power == 0 else 1 if size >= 10 else 2
    return f"{size:.{decimals}f} {_UNITS[power]}"


def value_text(value: Any) -> str:
    """Returns a plain value, as ``plain_values`` makes them, in one line."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int | float):
        return number_text(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {value_text(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(value_text, value)) + "]"
    return one_line(str(value))


def one_line(text: str) -> str:
    """Returns a text with a space for each character that is not printable, such as a newline."""
    return "".join(each if each.isprintable() else " " for each in text)
