"""Draws the picture of the loop from the drawing in the docstring of ``ignite_hooks.events``.

::

    python -m tests.draw_loop     # writes docs/images/loop.svg and docs/images/loop_dark.svg

The picture has the lines of the drawing, in their order. A channel is a box: its upper edge is
where the drawing has ┐, and its lower edge is where the drawing has ┘.
"""

import re
import textwrap
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from xml.sax.saxutils import escape

from ignite.engine import Events

from ignite_hooks import TrainEvents
from ignite_hooks import events

IMAGES = Path(__file__).parents[1] / "docs" / "images"
FONT_SIZE = 11
ROW_HEIGHT = 17
WIDTH = 380  # about that of a phone, so that the text need not be read at a smaller size
LEFT = 14  # of the text of the outermost box
STEP = 11  # by which a box, or an indented line, is further right than the one around it
EDGE = 6  # between the right edges of two boxes, one within the other
LETTER = {"event": 0.602 * FONT_SIZE, "text": 0.54 * FONT_SIZE}  # at least the mean width
KINDS = {each.name: "ignite" for each in Events} | {each.name: "ours" for each in TrainEvents}
CONTINUED = 24  # a line that is indented this much continues the note in the line above
LEGEND = {
    "ignite": "an event of Ignite",
    "ours": "an event of this package, in TrainEvents",
    "channel": "a channel, open from its upper edge to its lower edge",
}
FONTS = {
    "text": "system-ui, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif",
    "event": "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace",
}


@dataclass
class Theme:
    """The colors of the picture.

    Attributes:
        boxes: the colors of boxes, the outermost first.
    """

    text: str
    note: str
    ignite: str
    ours: str
    channel: str
    edge: str
    boxes: tuple[str, ...]


THEMES = {
    "loop.svg": Theme(
        text="#1f2328",
        note="#59636e",
        ignite="#0550ae",
        ours="#953800",
        channel="#59636e",
        edge="#b7c3d0",
        boxes=("#fafbfc", "#f2f6fa", "#e8eff6", "#dde8f2", "#ffffff"),
    ),
    "loop_dark.svg": Theme(
        text="#e6edf3",
        note="#a3adb8",
        ignite="#79c0ff",
        ours="#ffa657",
        channel="#a3adb8",
        edge="#46505c",
        boxes=("#14181e", "#191f27", "#202832", "#28323e", "#14181e"),
    ),
}


@dataclass
class Row:
    """A line of the drawing.

    Attributes:
        indent: how far the line is indented, in the steps of the drawing.
        text: the left column.
        note: the column to the right of ``text``.
        channel: the channel that opens at this line, or None.
    """

    indent: int
    text: str
    note: str = ""
    channel: str | None = None


@dataclass
class Box:
    """A channel, with the rows and the boxes within it."""

    channel: str
    indent: int
    parts: "list[Row | Box]" = field(default_factory=list)


def drawing():
    """Returns the drawing of the loop."""
    text = events.__doc__.split("::\n\n")[1].split("\nThree words")[0]
    return textwrap.dedent(text).strip()


def parsed(text):
    """Returns the boxes of a drawing, within one box that is not drawn."""
    outermost = Box("", -1)
    boxes = [outermost]
    for line in text.splitlines():
        channel, mark = ([*re.findall(r"(on_\w+) ([┐┘])$", line)] or [("", "")])[0]
        body = line.removesuffix(f"{channel} {mark}").rstrip()
        indent = len(body) - len(body.lstrip())
        parts = boxes[-1].parts
        if indent > CONTINUED:
            parts[-1].note += f" {body.strip()}"
            continue
        words, *notes = re.split(" {2,}", body.strip(), maxsplit=1)
        row = Row(indent // 2, words, *notes)
        if mark == "┐":
            boxes.append(Box(channel, row.indent, [row]))
            row.channel = channel
            parts.append(boxes[-1])
        elif not words.startswith("end of "):  # the lower edge of a box says this
            parts.append(row)
        if mark == "┘":
            assert boxes.pop().channel == channel
    assert boxes == [outermost]
    return outermost


class Picture:
    """The lines of an SVG file, as far as they are drawn."""

    def __init__(self, theme):
        self.theme, self.height = theme, 1
        self.lines: list[str] = []

    def box(self, box, depth=0):
        top, place = self.height, len(self.lines)
        left, right = LEFT + STEP * box.indent - 8, WIDTH - 1 - EDGE * depth
        for part in box.parts:
            if isinstance(part, Row):
                self.row(part, right)
            else:
                self.height += 4
                self.box(part, depth + 1)
        self.height += 6
        size = f'width="{right - left}" height="{self.height - top}" rx="5"'
        color = self.theme.boxes[min(depth, len(self.theme.boxes) - 1)]
        style = f'fill="{color}" stroke="{self.theme.edge}"'
        self.lines.insert(place, f'<rect x="{left}" y="{top}" {size} {style}/>')
        self.height += 3

    def row(self, row, right):
        left = LEFT + STEP * row.indent
        if row.channel:
            top = self.height + ROW_HEIGHT - 3
            self.text(right - 7, top, row.channel, "channel", 'text-anchor="end"')
        self.wrapped(row.text, left, right - left - 8, "text")
        repeated = "\N{CLOCKWISE OPEN CIRCLE ARROW} " if row.note.startswith("for each ") else ""
        self.wrapped(repeated + row.note, left + STEP, right - left - STEP - 8, "note")

    def wrapped(self, text, left, width, kind):
        """Draws a text in as many lines as it needs."""
        for line in lines_of(text, width):
            self.height += ROW_HEIGHT
            self.text(left, self.height - 3, line, kind)

    def text(self, x, y, text, kind, more=""):
        words = "".join(
            f'<tspan class="{KINDS[each]}">{each}</tspan>' if each in KINDS else escape(each)
            for each in re.split(r"(\w+)", text)
        )
        more = f" {more}" if more else ""
        self.lines.append(f'<text x="{x:g}" y="{y}" class="{kind}"{more}>{words}</text>')

    def legend(self):
        self.height += 4
        for kind, text in LEGEND.items():
            self.height += ROW_HEIGHT
            color = getattr(self.theme, kind)
            square = f'x="7" y="{self.height - 12}" width="10" height="10" rx="2"'
            fill = f'fill="{self.theme.boxes[2]}" stroke="{self.theme.edge}"'
            fill = fill if kind == "channel" else f'fill="{color}"'
            self.lines.append(f"<rect {square} {fill}/>")
            self.text(23, self.height - 3, text, "note")


def lines_of(text, width):
    """Returns the lines of a text that is at most ``width`` pixels wide."""
    lines, left = [], 0
    for word in text.split():
        size = LETTER["event" if word in KINDS else "text"] * len(word)
        if left >= size and lines:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
            left = width
        left -= size + LETTER["text"]
    return lines


def picture(theme):
    """Returns the picture of the loop as SVG.

    Args:
        theme: the colors.
    """
    drawn = Picture(theme)
    for box in parsed(drawing()).parts:
        drawn.box(box)
    drawn.legend()
    styles = [
        f"text {{ font: {FONT_SIZE}px {FONTS['text']}; fill: {theme.text} }}",
        f".note {{ fill: {theme.note} }}",
        f".channel {{ font-family: {FONTS['event']}; fill: {theme.channel} }}",
        f".ignite, .ours {{ font-family: {FONTS['event']}; font-weight: 600 }}",
        f".ignite {{ fill: {theme.ignite} }}",
        f".ours {{ fill: {theme.ours} }}",
    ]
    size = f'viewBox="0 0 {WIDTH} {drawn.height + 6}" width="{WIDTH}" height="{drawn.height + 6}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        "<title>The events of the loop, in their order, and the channels around them</title>",
        "<style>",
        *styles,
        "</style>",
        *drawn.lines,
        "</svg>",
    ]
    return "".join(f"{line}\n" for line in parts)


def main():
    for name, theme in THEMES.items():
        (IMAGES / name).write_text(picture(theme), encoding="utf-8")


if __name__ == "__main__":
    main()
