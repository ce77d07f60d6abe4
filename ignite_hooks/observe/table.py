"""A table that grows by one row at a time, and fits the width of a terminal."""

from collections.abc import Iterable
from collections.abc import Iterator
from typing import NamedTuple

from ignite_hooks.observe.value_text import one_line

__all__ = ["Cell", "Table"]

_GAP = "  "
_LONGEST_IN_COLUMN = 12  # characters of a value; a longer value is shown below its row
_LONGEST_VALUE = 200  # characters of a value that is shown below its row
_ROWS_PER_HEADER = 25  # the titles are repeated, because earlier ones scroll out of sight


class Cell(NamedTuple):
    """A value in a row.

    Attributes:
        name: identifies the column.
        text: the value as text.
        title: the words above the column. They are set in one or two lines.
        importance: if not all columns fit, those with the smallest numbers are shown.
        width: the smallest width of the column, so that later values fit, too.
    """

    name: str
    text: str
    title: tuple[str, ...]
    importance: int
    width: int = 0


class Table:
    """Sets rows into columns, and repeats the titles of the columns when they change.

    The columns are chosen by the values of the first row. If a later row has a value that needs
    another column or more space, the columns are chosen again, and their titles are repeated.
    Values that do not fit into the width are listed below the row, each with its name.
    """

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}  # all columns so far, in order
        self._shown: dict[str, _Column] = {}  # the columns that fit
        self._width = 0
        self._rows = 0  # since the titles were last shown

    def add(self, row: Iterable[Cell], width: int) -> list[str]:
        """Returns the lines of a row, with the titles of the columns before it if needed.

        Args:
            row: the values, in the order in which they are shown.
            width: the number of characters in a line.
        """
        cells = {cell.name: cell for cell in row}
        lines: list[str] = []
        has_changed = self._update_columns(cells.values()) or width != self._width
        if has_changed or self._rows >= _ROWS_PER_HEADER:
            self._width, self._rows = width, 0
            self._shown = self._columns_that_fit(width)
            lines += self._titles()
        self._rows += 1
        texts = [
            (cells[name].text if name in cells else "").rjust(column.width)
            for name, column in self._shown.items()
        ]
        lines.append(_GAP.join(texts).rstrip())
        others = [cell for cell in cells.values() if cell.name not in self._shown]
        return lines + list(_paragraph(others, width))

    def _update_columns(self, cells: Iterable[Cell]) -> bool:
        """Adds columns for new values, and widens columns; returns whether a column changed."""
        has_changed, before = False, ""
        for cell in cells:
            if len(cell.text) > _LONGEST_IN_COLUMN:
                continue
            column = self._columns.get(cell.name)
            if column is None:
                self._insert_after(before, cell)
                has_changed = True
            elif len(cell.text) > column.width:
                self._columns[cell.name] = column._replace(width=len(cell.text))
                has_changed = has_changed or cell.name in self._shown
            before = cell.name
        return has_changed

    def _insert_after(self, name: str, cell: Cell) -> None:
        """Adds a column for ``cell`` after the column ``name``, or as the last column."""
        columns = list(self._columns.items())
        place = list(self._columns).index(name) + 1 if name in self._columns else len(columns)
        columns.insert(place, (cell.name, _Column.of(cell)))
        self._columns = dict(columns)

    def _columns_that_fit(self, width: int) -> dict[str, "_Column"]:
        left, fitting = width + len(_GAP), set()
        for name, column in sorted(self._columns.items(), key=lambda each: each[1].importance):
            if column.width + len(_GAP) <= left:
                left -= column.width + len(_GAP)
                fitting.add(name)
        return {name: column for name, column in self._columns.items() if name in fitting}

    def _titles(self) -> Iterator[str]:
        for line in range(2):
            texts = [each.titles[line].rjust(each.width) for each in self._shown.values()]
            if any(map(str.strip, texts)):
                yield _GAP.join(texts).rstrip()


class _Column(NamedTuple):
    """The place of a value in each row.

    Attributes:
        titles: the upper and the lower line of the title.
        width: the number of characters.
        importance: as in ``Cell``.
    """

    titles: tuple[str, str]
    width: int
    importance: int

    @classmethod
    def of(cls, cell: Cell) -> "_Column":
        """Returns the column for a value."""
        titles = _in_two_lines(cell.title)
        return cls(titles, max(cell.width, len(cell.text), *map(len, titles)), cell.importance)


def _in_two_lines(words: tuple[str, ...]) -> tuple[str, str]:
    """Returns the words in two lines, so that the longer line is as short as possible."""
    ways = [(" ".join(words[:cut]), " ".join(words[cut:])) for cut in range(len(words))]
    return min(ways, key=lambda way: max(map(len, way)))


def _paragraph(cells: Iterable[Cell], width: int) -> Iterator[str]:
    """Yields lines that list values with their names, indented."""
    indent, line = " " * 4, ""
    for cell in cells:
        text = cell.text.strip()
        if len(text) > _LONGEST_VALUE:
            text = f"{text[: _LONGEST_VALUE - 1]}…"
        part = f"{one_line(cell.name)} {text}"
        if line and len(indent) + len(line) + len(_GAP) + len(part) > width:
            yield indent + line
            line = ""
        line = f"{line}{_GAP}{part}" if line else part
        while len(indent) + len(line) > width:  # a single value that is longer than a line
            yield indent + line[: width - len(indent)]
            line = line[width - len(indent) :]
    if line:
        yield indent + line
