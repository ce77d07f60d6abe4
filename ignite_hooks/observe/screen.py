"""Writes lines to a stream, and in a terminal or a notebook also shows a bar below the lines.

The bar is one of tqdm. To be imported on first use only, because tqdm is an optional package.

Whatever others print while a bar is shown must be neither garbled nor lost. So the method ``write``
of ``sys.stdout`` and ``sys.stderr`` is replaced meanwhile: it hides the bar, writes the text, and
shows the bar again. The method is replaced, and not the stream, because handlers of ``logging``
keep the stream that they were given.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tqdm import tqdm

__all__ = ["Screen"]

_DEFAULT_COLUMNS = 100  # of a file, a pipe or a notebook, which have no width
_FEWEST_COLUMNS = 20
# Replacements for characters that the encoding of a stream may lack. All others become "?".
_PLAIN_CHARACTERS = str.maketrans({"×": "x", "…": "~", "–": "-"})


class _Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """A bar that starts no thread. tqdm's thread would be there when loaders fork workers."""

    monitor_interval = 0


class Screen:
    """A stream of text, with a bar below it if the stream can redraw a line.

    A stream that cannot be written to, for example because its terminal is closed, raises no error:
    the screen writes nothing more.

    Args:
        stream: the stream; None if the process has none.

    Attributes:
        has_bar: whether the stream can redraw a line. If not, ``show_bar`` does nothing.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._is_broken = stream is None
        self.has_bar = not self._is_broken and _can_redraw(stream)
        self._bar: _Bar | None = None
        self._is_bar_visible = False
        # The method from before it is replaced: the lines of the screen are no text of others.
        self._write: Callable[[str], Any] = _original_write(stream)

    @property
    def width(self) -> int:
        """The number of characters in a line: by ``COLUMNS``, or else by the terminal."""
        columns = os.environ.get("COLUMNS", "")
        found = int(columns) if columns.isdecimal() else 0
        if not found:
            with suppress(AttributeError, OSError, ValueError):  # no file, or not a terminal
                found = os.get_terminal_size(self._stream.fileno()).columns
        # A terminal may begin a new line after the last column, so one column stays free.
        return max(_FEWEST_COLUMNS, (found or _DEFAULT_COLUMNS) - self.has_bar)

    def write_lines(self, lines: list[str]) -> None:
        """Writes lines above the bar, and above the bars of other screens."""
        text = self._encodable("".join(f"{line}\n" for line in lines))

        def write(text: str) -> None:
            self._write(text)
            self._stream.flush()

        def write_between_bars() -> None:
            begin = "\n" if _terminal.is_line_open and self.has_bar else ""
            _terminal.write_between_bars(write, begin + text)

        self._attempt(write_between_bars)

    def show_bar(self, done: int, total: int | None, text: str) -> None:
        """Shows the bar, or updates it.

        Args:
            done: the number of steps.
            total: the number of steps at the end of the bar; None shows the text without a bar.
            text: follows the bar in the same line.
        """
        if not self.has_bar:
            return
        text = self._encodable(text).replace("{", "{{").replace("}", "}}")
        form = text if total is None else f"{{percentage:3.0f}}% |{{bar}}| {text}"
        looks = {"total": total, "bar_format": form, "ncols": self.width}

        def show() -> None:
            if self._bar is None:
                # With a delay, the constructor does not draw the bar. `nrows` is given, because
                # tqdm draws no bar in a terminal that reports no height.
                self._bar = _Bar(file=self._stream, leave=False, delay=1.0, nrows=20, **looks)
                self._bar.delay = 0.0
                _terminal.join(self)
            for name, value in {**looks, "n": done}.items():
                setattr(self._bar, name, value)
            self._redraw()

        self._attempt(show)

    def close(self) -> None:
        """Removes the bar. May be called in any state, and a second time."""
        # The streams of others get their methods back also if the bar cannot be removed.
        self.hide_bar()
        _terminal.leave(self)
        bar, self._bar = self._bar, None
        if bar is not None:
            # Also if the stream is broken, because tqdm keeps a list of all open bars.
            with suppress(OSError, ValueError):
                bar.close()

    def hide_bar(self) -> None:
        """Clears the line of the bar."""
        self._attempt(self._hide)

    def redraw_bar(self) -> None:
        """Draws the bar again, unless a line of others is not complete."""
        self._attempt(self._redraw)

    def _hide(self) -> None:
        if self._bar is not None and self._is_bar_visible:
            self._is_bar_visible = False
            self._bar.clear(nolock=True)
            self._stream.flush()

    def _redraw(self) -> None:
        if self._bar is not None and not _terminal.is_line_open:
            self._is_bar_visible = True
            self._bar.refresh(nolock=True)

    def _attempt(self, write: Callable[[], None]) -> None:
        """Calls ``write``, unless the stream is broken."""
        if self._is_broken:
            return
        try:
            # tqdm's lock, because bars of others are in the same terminal.
            with _Bar.get_lock():
                write()
        except BlockingIOError:  # a terminal that is not ready now may be ready for the next text
            pass
        except (OSError, ValueError):  # ValueError is what a closed stream raises
            self._is_broken = True

    def _encodable(self, text: str) -> str:
        """Returns ``text`` without the characters that the stream cannot encode."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            plain = text.translate(_PLAIN_CHARACTERS)
            return plain.encode(encoding, "replace").decode(encoding)
        return text


class _Terminal:
    """The terminal of this process, with all screens that show a bar in it.

    Attributes:
        is_line_open: whether others have written a line that is not complete yet. Bars stay hidden
            until it is complete.
    """

    def __init__(self) -> None:
        self._screens: list[Screen] = []
        self._undo: list[Callable[[], None]] = []
        self._process = os.getpid()
        self.is_line_open = False

    def join(self, screen: Screen) -> None:
        """Adds a screen; with the first one, replaces the method ``write`` of the streams."""
        self._screens.append(screen)
        if len(self._screens) == 1:
            self._process, self.is_line_open = os.getpid(), False
            for stream in {id(each): each for each in (sys.stdout, sys.stderr)}.values():
                if stream is not None and _can_redraw(stream):
                    self._replace_write(stream)

    def leave(self, screen: Screen) -> None:
        """Removes a screen, if it is there; with the last one, restores the streams."""
        self._screens = [each for each in self._screens if each is not screen]
        while not self._screens and self._undo:
            self._undo[-1]()
            self._undo.pop()

    def _replace_write(self, stream: Any) -> None:
        earlier = vars(stream).get("write") if hasattr(stream, "__dict__") else None
        original = stream.write

        def write(text: str) -> Any:
            # Bars of tqdm that others show move the cursor, and restore it.
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if not self._screens or caller.partition(".")[0] == "tqdm" or not text:
                return original(text)
            if os.getpid() != self._process:
                return self._write_in_child(original, text)
            return self.write_between_bars(original, text)

        def restore() -> None:
            # If others have replaced the method since, it stays, and only passes the text on.
            if vars(stream).get("write") is write:
                if earlier is None:
                    del stream.write
                else:
                    stream.write = earlier

        write.original = original  # type: ignore[attr-defined]
        with suppress(AttributeError):  # a stream whose methods cannot be replaced
            self._undo.append(restore)
            stream.write = write

    def write_between_bars(self, write: Callable[[str], Any], text: str) -> Any:
        """Calls ``write`` with a text while the bars are hidden."""
        with _Bar.get_lock():
            for screen in self._screens:
                screen.hide_bar()
            result = write(text)
            self.is_line_open = not text.endswith("\n")
            for screen in self._screens:
                screen.redraw_bar()
        return result

    def _write_in_child(self, write: Callable[[str], Any], text: str) -> Any:
        """Writes the text of a forked process, such as the worker of a loader.

        The bar is that of the parent, which draws it again. No lock is taken, because a thread of
        the parent may have held it at the fork.
        """
        clear_line = "" if self.is_line_open else "\r\x1b[K"
        self.is_line_open = not text.endswith("\n")
        return write(clear_line + text)


_terminal = _Terminal()


def _original_write(stream: Any) -> Any:
    """Returns the method ``write`` of a stream from before this module replaced it."""
    write = getattr(stream, "write", None)
    return getattr(write, "original", write)


def _can_redraw(stream: Any) -> bool:
    """Returns whether a line can be overwritten: in a terminal, and in the output of a notebook."""
    if type(stream).__module__.partition(".")[0] == "ipykernel":
        return True
    if os.environ.get("TERM") == "dumb":
        return False
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # no such method, or the stream is closed
        return False
