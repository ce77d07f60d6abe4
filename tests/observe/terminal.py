"""A terminal of this process, whose screen tests can read."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from contextlib import contextmanager

import pyte

LIMIT_SECONDS = 120  # in which a process must end


class Terminal:
    """A terminal that sys.stdout and sys.stderr write to.

    Attributes:
        output: the bytes that were written, complete when the terminal is closed.
    """

    def __init__(self, columns, rows):
        self.columns, self.rows = columns, rows
        self.output = b""

    @property
    def screen(self):
        """The lines on the screen, those that have scrolled out included."""
        return self.after(self.output)

    def after(self, output):
        """Returns the lines on the screen after a part of the output."""
        screen = pyte.Screen(self.columns, self.rows)
        pyte.ByteStream(screen).feed(output)
        assert not screen.cursor.hidden
        return [line.rstrip() for line in screen.display[: screen.cursor.y + 1]]

    @property
    def bars(self):
        """All bars that were drawn, in their order."""
        lines = self.output.decode(errors="replace").replace("\r\n", "\n").split("\n")
        return [text.rstrip() for line in lines for text in line.split("\r")[1:] if "%" in text]


@contextmanager
def terminal(monkeypatch, columns=80, rows=200, encoding="utf-8"):
    """Opens a terminal, and connects sys.stdout and sys.stderr to it during the body."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    opened = Terminal(columns, rows)
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read():
        while True:
            try:
                data = os.read(reader, 65536)
            except OSError:  # the other end was closed
                return
            opened.output += data

    thread = threading.Thread(target=read)
    thread.start()
    streams = [os.fdopen(os.dup(writer), "w", encoding=encoding) for _ in range(2)]
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            yield opened
    finally:
        for stream in streams:
            assert "write" not in vars(stream)
            stream.close()
        os.close(writer)
        thread.join()
        os.close(reader)


@contextmanager
def process_in_terminal(command, columns=80, rows=200):
    """Starts a process in a terminal; yields the process, the terminal, and a function.

    The function reads what the process writes, until a text was written or the process has ended.
    """
    opened = Terminal(columns, rows)
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen(
        command,
        stdin=writer,
        stdout=writer,
        stderr=writer,
        env=environment,
        start_new_session=True,
        # A shell that starts the tests in the background makes them ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    before = termios.tcgetattr(writer)

    def read(until=None):
        deadline = time.monotonic() + LIMIT_SECONDS
        while until is None or until not in opened.output:
            assert time.monotonic() < deadline, "the process has not ended in time"
            if process.poll() is not None and not select.select([reader], [], [], 0)[0]:
                return
            if select.select([reader], [], [], 1)[0]:
                opened.output += os.read(reader, 65536)

    try:
        yield process, opened, read
        assert termios.tcgetattr(writer) == before
    finally:
        process.kill()
        process.wait()
        os.close(writer)
        os.close(reader)
