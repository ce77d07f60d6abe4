"""Runs a function on several ranks, which are forked from this process after all imports."""

import faulthandler
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
from accelerate.state import AcceleratorState
from accelerate.state import GradientState
from accelerate.state import PartialState


class Outcome(NamedTuple):
    """The result of one rank."""

    exit_code: int
    found: object  # what the function has returned; None if it did not
    output: str


def on_ranks(function, folder, *, exit_codes=(0, 0), limit=40):
    """Calls ``function(rank)`` on as many ranks as there are exit codes, over gloo.

    The test fails, with the output of all, if a rank ends with another exit code, if one takes
    longer than ``limit`` seconds, or if it leaves a process behind.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ends = {}  # of a pipe that a rank and its descendants hold open
    for rank in range(len(exit_codes)):
        read_end, write_end = os.pipe()
        with warnings.catch_warnings():
            _ignore_threads()
            pid = os.fork()
        if pid == 0:
            _be_rank(function, Path(folder), rank, len(exit_codes), port, limit)
        os.close(write_end)
        ends[read_end] = pid
    leftover = _wait_for(dict(ends), limit)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ends.values()]
    outcomes = [_outcome(Path(folder), rank, code) for rank, code in enumerate(codes)]
    if leftover or tuple(codes) != tuple(exit_codes):
        problem = "processes were left" if leftover else f"exit codes {codes}"
        logs = "".join(f"\n--- rank {i}\n{each.output}" for i, each in enumerate(outcomes))
        pytest.fail(f"{problem} (of ranks {leftover}){logs}")
    return outcomes


def _ignore_threads():
    """Ignores the warning of Python 3.12 and later about a fork in a process with threads."""
    warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)


def _wait_for(ends, limit):
    """Returns the process groups that had to be killed."""
    until = time.monotonic() + limit
    while ends:
        ready, _, _ = select.select(list(ends), [], [], max(0, until - time.monotonic()))
        if not ready:
            break
        for end in ready:
            os.close(end)
            del ends[end]
    for end, pid in ends.items():
        os.close(end)
        os.killpg(pid, signal.SIGKILL)
    return list(ends.values())


def _outcome(folder, rank, code):
    found = folder / f"{rank}.json"
    output = (folder / f"{rank}.log").read_text()
    return Outcome(code, json.loads(found.read_text()) if found.exists() else None, output)


def _be_rank(function, folder, rank, size, port, limit):
    code = 1
    try:
        os.setpgid(0, 0)
        with open(folder / f"{rank}.log", "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        _ignore_threads()  # loader workers are forked beside the threads of gloo
        faulthandler.dump_traceback_later(limit - 2, file=sys.stderr)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        threads = {"OMP_NUM_THREADS": 1}  # Accelerate warns if it is not said
        settings = {**address, **ranks, **threads}
        os.environ.update({name: str(value) for name, value in settings.items()})
        found = function(rank)
        (folder / f"{rank}.json").write_text(json.dumps(found))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
