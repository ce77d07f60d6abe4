"""Makes a fork server ignore the signals that are sent to the whole process group.

A fork server is the process from which ``multiprocessing`` forks new processes, if the start method
is "forkserver". The server imports this module when it starts. The server is the parent of the
loader workers that it forks. When the server ends, these workers take the main process for dead,
and end too.

The server restores the former signal handlers in each process that it forks, because not all of
these processes are loader workers. For example, a ``multiprocessing.Pool`` ends its processes by
SIGTERM. Loader workers set their own handlers afterwards, see ``workers.py``.
"""

import os
import signal
import sys
from typing import Any

__all__: list[str] = []

# SIGINT is missing here because Python's fork server ignores it already.
_NAMES = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")


def _ignore_signals() -> None:
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    found: dict[int, Any] = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}

    def restore() -> None:
        for number, handler in found.items():
            signal.signal(number, handler)

    os.register_at_fork(after_in_child=restore)


# The condition is true only in a fork server. In any other process the import changes nothing.
if sys.orig_argv[-1].startswith("from multiprocessing.forkserver import main"):
    _ignore_signals()
