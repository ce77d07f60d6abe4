"""Text for a terminal: values from a checkpoint cannot steer it, and tables stay in columns.

Names, versions and command lines in a manifest come from the writer of the checkpoint. Printed as
they are, an escape sequence clears the screen, a newline invents a line of the table, and U+202E
turns the rest of the line around.
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
_GAP = "  "


def printable(value: object) -> str:
    """Returns a value as text of one line, as far as standard output can show it.

    Control and format characters, line ends of all kinds, surrogates and what the encoding of
    standard output lacks are written as escape sequences of Python.
    """
    text = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode()
        for each in str(value)
    )
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # a replaced stream may have none
    return text.encode(encoding, "backslashreplace").decode(encoding)


def shortened(text: str, length: int) -> str:
    """Returns a text without its middle if it has more than ``length`` characters."""
    if len(text) <= length:
        return text
    tail = (length - 3) // 2
    return f"{text[: length - 3 - tail]}...{text[len(text) - tail :]}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table, each column as wide as its widest cell."""
    widths = [max(map(_columns, column)) for column in zip(*rows, strict=True)]
    return [_line(row, widths) for row in rows]


def size_text(size: int) -> str:
    """Returns a number of bytes, however large, with four digits and a unit."""
    power = min(max(size.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    number = float(Decimal(size) / 1024**power)  # a division of integers may overflow
    return f"{number:.4g} {_UNITS[power]}"


def age_text(then: datetime, now: datetime) -> str:
    """Returns the time from ``then`` to ``now`` in its largest unit; UTC where no zone is given."""
    if then.utcoffset() is None:
        then = then.replace(tzinfo=timezone.utc)
    seconds = (now - then).total_seconds()
    lengths = {"d": 86400, "h": 3600, "min": 60, "s": 1}
    unit = next((unit for unit, length in lengths.items() if abs(seconds) >= 2 * length), "s")
    text = f"{abs(seconds) // lengths[unit]:.0f} {unit}"
    return f"in {text}" if seconds <= -1 else text


def _line(row: Iterable[str], widths: Iterable[int]) -> str:
    cells = (cell + " " * (width - _columns(cell)) for cell, width in zip(row, widths, strict=True))
    return _GAP.join(cells).rstrip()


def _columns(text: str) -> int:
    """Returns how many columns of a terminal a text takes: CJK characters take two, marks none."""
    return sum(
        0 if unicodedata.combining(each) else 1 + (unicodedata.east_asian_width(each) in "FW")
        for each in text
    )
