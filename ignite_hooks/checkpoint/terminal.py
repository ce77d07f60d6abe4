"""Text for a terminal: values without control characters, and tables with aligned columns.

A manifest has names, versions and command lines, which any author of a checkpoint can choose. If
such a text were printed unchanged, an escape sequence in it could clear the screen, a newline could
fake a row of a table, and the character U+202E would reverse the rest of the line.
"""

import sys
import unicodedata
from collections.abc import Iterable
from collections.abc import Sequence
from datetime import datetime
from datetime import timezone
from decimal import Decimal

__all__ = ["age_text", "printable", "shortened", "size_text", "table"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_COLUMN_GAP = "  "


def printable(value: object) -> str:
    """Returns a value as one line of text that standard output can print.

    The following characters are replaced by escape sequences, as in Python's string literals:
    control and format characters, line ends of all kinds, surrogates, and characters that the
    encoding of standard output does not have.
    """
    text = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode()
        for each in str(value)
    )
    # A stream that replaces standard output, for example in a test, may have no encoding.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def shortened(text: str, length: int) -> str:
    """Returns ``text``, with dots in place of its middle if it is longer than ``length``."""
    if len(text) <= length:
        return text
    tail = (length - 3) // 2
    return f"{text[: length - 3 - tail]}...{text[len(text) - tail :]}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table, each column as wide as its widest cell."""
    widths = [max(map(_display_width, column)) for column in zip(*rows, strict=True)]
    return [_format_row(row, widths) for row in rows]


def size_text(size: int) -> str:
    """Returns a number of bytes as text, with four significant digits and a unit."""
    power = min(max(size.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    number = float(Decimal(size) / 1024**power)  # for huge integers, `/` raises an OverflowError
    return f"{number:.4g} {_UNITS[power]}"


def age_text(then: datetime, now: datetime) -> str:
    """Returns the time from ``then`` to ``now`` as text: "90 min", or "in 90 min" for the future.

    The text uses the largest unit (days, hours, minutes or seconds) in which the time is at least
    2: 90 minutes are less than 2 hours, so their unit is minutes. A time under 2 seconds is given
    in seconds. A ``then`` without a time zone is taken as UTC.
    """
    if then.utcoffset() is None:
        then = then.replace(tzinfo=timezone.utc)
    seconds = (now - then).total_seconds()
    lengths = {"d": 86400, "h": 3600, "min": 60, "s": 1}
    unit = next((unit for unit, length in lengths.items() if abs(seconds) >= 2 * length), "s")
    text = f"{abs(seconds) // lengths[unit]:.0f} {unit}"
    return f"in {text}" if seconds <= -1 else text


def _format_row(row: Iterable[str], widths: Iterable[int]) -> str:
    cells = (
        cell + " " * (width - _display_width(cell)) for cell, width in zip(row, widths, strict=True)
    )
    return _COLUMN_GAP.join(cells).rstrip()


def _display_width(text: str) -> int:
    """Returns the width of a text in columns.

    A wide character, for example a Chinese one, takes two columns, and a combining mark takes none.
    """
    return sum(
        0 if unicodedata.combining(each) else 1 + (unicodedata.east_asian_width(each) in "FW")
        for each in text
    )
