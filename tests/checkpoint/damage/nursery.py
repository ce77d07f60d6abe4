"""Processes that may be killed, forked from one that has imported all that takes seconds.

Run as a program it starts one child after another, as it is told on its standard input. The child
says what it does on the standard output, a JSON object on each line, and can wait for a word.
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
"""Seconds until a child is killed that waits for a signal which does not come, or has no end."""


class Child:
    """The child that is running, as the test sees it."""

    def __init__(self, process):
        self._process = process
        self.pid = self._read()["pid"]
        self.heard = []
        self.status = None

    def until(self, key):
        """What it tells under ``key`` next; None if it ends before."""
        while self.status is None:
            message = self._read()
            self.heard.append(message)
            self.status = message.get("ended")
            if key in message:
                return message[key]
        return None

    def wait(self):
        """Its exit status, negative for the signal that killed it."""
        self.until("ended")
        return self.status

    def told(self, key):
        """All that it has told under ``key``."""
        return [message[key] for message in self.heard if key in message]

    def send(self, number=signal.SIGTERM):
        os.kill(self.pid, number)

    def send_to_group(self, number):
        """As a scheduler signals a job, or a terminal what runs in it. The child leads a group."""
        os.killpg(self.pid, number)

    def go_on(self):
        """Lets it leave a ``pause``. A signal that was sent before has come by then."""
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
        """Starts one of ``children``; it does not outlive the block."""
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
        """The same to its end."""
        with self.child(program, **task) as child:
            child.wait()
        return child

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def tell(**message):
    os.write(1, json.dumps(message).encode() + b"\n")  # which a kill cannot take back


def pause(where):
    """Tells where it is, and waits for ``go_on``."""
    tell(at=where)
    os.read(0, 1)


def serve(programs):
    while line := sys.stdin.readline():
        task = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                tell(pid=os.getpid())
                programs[task.pop("program")](**task)
                status = 0
            except BaseException as error:
                tell(failure=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
            finally:
                os._exit(status)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with suppress(ProcessLookupError):  # a fork server and its workers, if it led a group
            os.killpg(pid, signal.SIGKILL)
        tell(ended=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
