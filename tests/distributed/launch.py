"""Starts a program on several gloo processes, and reads the findings of each."""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
END_SECONDS = 30  # beyond the limit of a program, in which its processes are ended


class Findings:
    """The findings that the processes have written, by check."""

    def __init__(self, folder, log, count=2):
        self.folder, self.log, self.count = folder, log, count

    def of(self, check):
        """Returns one finding for each process; fails with the output of all if one is missing."""
        files = [self.folder / f"{check}.{rank}.json" for rank in range(self.count)]
        if not all(file.exists() for file in files):
            pytest.fail(f"{check} did not come to its end:\n{self.log}")
        findings = [json.loads(file.read_text()) for file in files]
        failures = [
            f"rank {rank}: {finding['failure']}"
            for rank, finding in enumerate(findings)
            if "failure" in finding
        ]
        if failures:
            pytest.fail("\n".join([f"{check} failed:", *failures, self.log]))
        return findings


def on_two_processes(program, folder, limit=60):
    """Runs programs/<program>.py; ``limit`` is in seconds."""
    return on_processes(program, folder, count=2, limit=limit)


def on_processes(program, folder, *arguments, count, limit=60):
    """Runs programs/<program>.py on ``count`` ranks, which have the environment of torchrun.

    The program is given the folder, and then ``arguments``.

    They are forked from a process that has imported what programs do. A rank that does not end
    well and in time, or that leaves a process behind, is a failure.
    """
    with tempfile.TemporaryDirectory() as logs:
        request = {
            "program": path_of(program),
            "arguments": [str(folder), *arguments],
            "count": count,
            "limit": limit,
            "environment": environment(),
            "logs": logs,
        }
        reply = answer(request)
        log = "\n".join(
            f"rank {rank} ended with {code} and wrote:\n{text_of(logs, rank)[-12_000:]}"
            for rank, code in enumerate(reply["codes"])
        )
    if reply["left"]:
        pytest.fail(f"{program} left processes behind: {reply['left']}\n{log}")
    if reply["is_late"]:
        pytest.fail(f"{program} took longer than {limit} s.\n{log}")
    if any(reply["codes"]):
        pytest.fail(f"{program} failed:\n{log}")
    return Findings(folder, log, count)


def with_torchrun(program, folder, limit=60):
    """Runs programs/<program>.py on two processes as users do.

    Each process imports everything itself, which takes seconds, and has its own hash seed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    command += [path_of(program), str(folder)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    try:
        log, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        log, _ = process.communicate()
        log += f"\nIt took longer than {limit} s."
    return Findings(folder, log[-8000:])


def path_of(program):
    return str(HERE / "programs" / f"{program}.py")


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def text_of(logs, rank):
    file = Path(logs) / f"rank_{rank}.log"
    return file.read_text(errors="replace") if file.exists() else ""


@cache
def fork_server():
    """Returns the fork server of this process, which ends with the process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.distributed.fork_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    process.wait()  # what serves is its child, which has no parent then
    atexit.register(process.communicate)
    return process


def answer(request):
    server = fork_server()
    with suppress(BrokenPipeError):  # it ended before, which is told below
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
    file = Path(request["logs"]) / "reply.json"
    select.select([server.stdout], [], [], request["limit"] + END_SECONDS)
    server.stdout.readline()
    if not file.exists():
        os.killpg(server.pid, signal.SIGKILL)
        fork_server.cache_clear()
        pytest.fail(f"the fork server gave no answer for {request['program']}")
    return json.loads(file.read_text())
