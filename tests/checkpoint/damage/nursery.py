"""A fork server for children that tests kill. It has imported already what takes seconds.

As a program it starts one child after another, by commands on its standard input. The child reports
on the standard output, one JSON object a line, and can pause until the test lets it resume.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path
from threading import Timer

PATIENCE = 30
"""Seconds until a child is killed that hangs, for example because a signal does not come."""


class Child:
    """The running child process, as a test sees it."""

    def __init__(self, process):
        self._process = process
        self.pid = self._read()["pid"]
        self.messages = []
        self.status = None

    def wait_for(self, key):
        """Returns the next value reported under ``key``; None if the child ends before."""
        while self.status is None:
            message = self._read()
            self.messages.append(message)
            self.status = message.get("ended")
            if key in message:
                return message[key]
        return None

    def wait(self):
        """Waits for the end; returns the exit status, negative for the signal that killed it."""
        self.wait_for("ended")
        return self.status

    def reported(self, key):
        """Returns all values reported under ``key`` so far."""
        return [message[key] for message in self.messages if key in message]

    def send(self, number=signal.SIGTERM):
        os.kill(self.pid, number)

    def send_to_group(self, number):
        """Signals the process group that the child leads, as a scheduler or a terminal does."""
        os.killpg(self.pid, number)

    def resume(self):
        """Lets the child leave a ``pause``. Signals that were sent before have arrived by then."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def _read(self):
        return json.loads(self._process.stdout.readline())


class Nursery:
    def __init__(self):
        root = Path(__file__).parents[3]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.checkpoint.damage.children"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        )

    @contextmanager
    def child(self, program, *, patience=PATIENCE, **task):
        """Starts a program of ``children``; the child is killed at the end of the block."""
        self._process.stdin.write(json.dumps({"program": program, **task}) + "\n")
        self._process.stdin.flush()
        child = Child(self._process)
        watchdog = Timer(patience, child.send, [signal.SIGKILL])
        watchdog.start()
        try:
            yield child
        finally:
            watchdog.cancel()
            if child.status is None:
                child.send(signal.SIGKILL)
                child.wait()

    def run(self, program, **task):
        """Starts a program of ``children`` and waits for its end."""
        with self.child(program, **task) as child:
            child.wait()
        return child

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def report(**message):
    os.write(1, json.dumps(message).encode() + b"\n")  # unbuffered, so that a kill loses nothing


def pause(place):
    """Reports the place, and waits for ``Child.resume``."""
    report(at=place)
    os.read(0, 1)


def serve(programs):
    while line := sys.stdin.readline():
        task = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                report(pid=os.getpid())
                programs[task.pop("program")](**task)
                status = 0
            except BaseException as error:
                report(failure=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
            finally:
                os._exit(status)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with suppress(ProcessLookupError):  # a fork server and its workers, if it led a group
            os.killpg(pid, signal.SIGKILL)
        report(ended=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
