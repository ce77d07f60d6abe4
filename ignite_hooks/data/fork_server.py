"""Makes a fork server ignore the signals that are sent to the whole process group.

The fork server imports this module when it starts. If a signal ended the server, its workers would
conclude that their main process is dead, and end too.

In each process that the server forks, the former signal handlers are restored. Such a process need
not be a loader worker, and its parent may end it by SIGTERM. Loader workers set their own handlers
afterwards, see ``workers.py``.
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


# True only in a fork server, so that any other process can import this module safely.
if sys.orig_argv[-1].startswith("from multiprocessing.forkserver import main"):
    _ignore_signals()
