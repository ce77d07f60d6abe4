"""Imported by a fork server as it starts: the server outlives signals to the process group.

Workers whose server has died take their main process for dead, and end. The processes that the
server forks get back what it had found: they may be of any kind, and their parents end them by
SIGTERM. Loader workers then ignore signals by themselves, see ``workers.py``.
"""

import os
import signal
import sys
from typing import Any

__all__: list[str] = []

_NAMES = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")  # it ignores SIGINT by itself


def _outlive() -> None:
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    found: dict[int, Any] = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}

    def restore() -> None:
        for number, handler in found.items():
            signal.signal(number, handler)

    os.register_at_fork(after_in_child=restore)


if sys.orig_argv[-1].startswith("from multiprocessing.forkserver import main"):
    _outlive()
