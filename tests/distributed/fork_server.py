"""Starts the ranks of test programs as torchrun does, by forks of a process after all imports.

A rank that imports torch, Accelerate and Ignite itself takes seconds before its first line. This
server imports them once. For each program it forks an agent, and the agent forks the ranks, keeps
the store where they meet, ends them when their time is over, and looks for what they leave behind.

A request is a line of JSON on the standard input. The reply is a file of JSON, and a line on the
standard output when it is there. The server ends with its standard input.

Unlike those of torchrun, these ranks share the seed of hashes: a set of strings has the same order
on all of them.
"""

import atexit
import contextlib
import faulthandler
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import psutil
from torch.distributed import TCPStore

# What programs import, but for the programs: some change a module for all that comes after.
WARM = (
    "accelerate",
    "ignite.engine",
    "ignite.handlers",
    "ignite.metrics",
    "ignite_hooks",
    "ignite_hooks.checkpoint.resume",
    "pytest",
    "sklearn.metrics",
    "tests.distributed.programs.checks",
    "tests.reference",
    "torch.distributed.fsdp",
    "torchdata.stateful_dataloader",
)
# Earlier ones may hang in the child of a fork: see `let_threads_settle`.
FORKS_SAFELY = (3, 10, 15) <= sys.version_info < (3, 11) or sys.version_info >= (3, 11, 10)
POLL_SECONDS = 0.01
GRACE_SECONDS = 2  # for other ranks when one has failed, and for what ends with its parent
DUMP_SECONDS = 0.5  # in which ranks that hang, and their workers, print where they are


def serve():
    for module in WARM:
        importlib.import_module(module)
    for line in sys.stdin:
        if (threads := psutil.Process().num_threads()) > 1:
            sys.exit(f"a process that forks must have one thread, got {threads}")
        if (agent := os.fork()) == 0:
            supervise(**json.loads(line))
        os.waitpid(agent, 0)
        print(flush=True)


def supervise(program, arguments, count, limit, environment, logs):
    """Forks the ranks and waits for them, in the agent; does not return.

    Args:
        program: the path of the script.
        arguments: those of the script.
        count: the number of ranks.
        limit: in seconds.
        environment: of the ranks, to which that of torchrun is added.
        logs: the folder of their outputs, rank_0.log and so on, and of the reply.
    """
    meeting = socket.create_server(("127.0.0.1", 0))
    port = meeting.getsockname()[1]
    ranks = []
    for rank in range(count):
        if (child := os.fork()) == 0:
            meeting.close()
            os.environ.clear()
            os.environ.update(environment, **variables_of_torchrun(rank, count, port))
            become_rank(program, arguments, Path(logs) / f"rank_{rank}.log")
        ranks.append(child)
    # The store has threads: it begins after the forks. Ranks that are earlier wait in its socket.
    # Up to torch 2.6, libuv's store cannot begin on a socket.
    store = TCPStore(
        "127.0.0.1",
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=meeting.detach(),
        use_libuv=False,
    )
    codes, is_late = wait_for(ranks, limit)
    reply = {"codes": codes, "is_late": is_late, "left": end_what_is_left(ranks)}
    del store
    (Path(logs) / "reply.json").write_text(json.dumps(reply))
    os._exit(0)


def variables_of_torchrun(rank, count, port):
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "ROLE_RANK": str(rank),
        "ROLE_NAME": "default",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "GROUP_WORLD_SIZE": "1",
        "ROLE_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    }


def become_rank(program, arguments, log):
    """Runs the program as the main module, and ends as an interpreter does; does not return."""
    os.setsid()
    with open(os.devnull) as nothing, log.open("w") as output:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    faulthandler.register(signal.SIGUSR1)
    if not FORKS_SAFELY:
        os.register_at_fork(before=let_threads_settle)
    random.seed()
    np.random.seed()
    sys.argv = [program, *arguments]
    code = 1
    try:
        runpy.run_path(program, run_name="__main__")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        end_interpreter(code)


def let_threads_settle():
    """Waits until no other thread of this process has run between two looks.

    In the child of a fork, earlier versions of CPython wait for a lock of the interpreter that
    another thread may have held at the fork (issue 112275, solved in 3.10.15, 3.11.10 and 3.12).
    gloo's threads take this lock, without the GIL, when they release a tensor after a collective,
    so that about one of 20,000 loader workers hung at its start on a machine under load.
    """
    before = None
    for _ in range(1000):  # a thread that computes all the time does not take the lock
        now = status_of_other_threads()
        if now == before and not any("R (running)" in each for each in now.values()):
            return
        before = now
        os.sched_yield()


def status_of_other_threads():
    """Returns what Linux says of each, with its state and how often it has stopped running."""
    found, own = {}, str(threading.get_native_id())
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # the thread has ended
            if task.name != own:
                found[task.name] = (task / "status").read_text()
    return found


def end_interpreter(code):
    """Ends the threads and runs what is registered for the end, as ``sys.exit`` would, but does
    not take down each module: that takes longer than many a program."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait_for(ranks, limit):
    """Returns the exit code of each rank, negative for a signal, and whether the time was over."""
    codes, is_late = dict.fromkeys(ranks), False
    end = time.monotonic() + limit
    while None in codes.values():
        for rank in ranks:
            if codes[rank] is None and (ended := os.waitpid(rank, os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(ended[1])
                if codes[rank]:
                    end = min(end, time.monotonic() + GRACE_SECONDS)
        is_unwanted = bool(select.select([0], [], [], POLL_SECONDS)[0])  # the test is gone
        if is_unwanted or time.monotonic() > end:
            is_late = not any(codes.values())
            running = [rank for rank in ranks if codes[rank] is None]
            for process in processes_of(running):  # a rank that hangs may wait for its worker
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGUSR1)
            time.sleep(DUMP_SECONDS)
            for rank in running:
                os.kill(rank, signal.SIGKILL)
                codes[rank] = os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1])
    return list(codes.values()), is_late


def end_what_is_left(ranks):
    """Kills and returns the processes that ranks have started and that did not end with them."""
    end = time.monotonic() + GRACE_SECONDS
    while (left := processes_of(ranks)) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    said = []
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            said.append(f"{process.pid} {' '.join(process.cmdline())}")
            process.kill()
    while processes_of(ranks):
        time.sleep(POLL_SECONDS)
    return said


def processes_of(sessions):
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


if __name__ == "__main__":
    if os.fork():  # a child of the tests would be in what they measure of their children
        os._exit(0)
    serve()
