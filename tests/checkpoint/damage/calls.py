"""Calls to the system that a save is made of: seen before they happen, and made to fail.

Python tells its audit hooks of all but fsync, and a hook can forbid the call. A hook stays for
good: this one does nothing while nobody listens.
"""

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_KINDS = {
    "open": "open",
    "os.mkdir": "mkdir",
    "os.rename": "rename",
    "os.remove": "unlink",
    "os.rmdir": "rmdir",
}
_listeners = []


class Call(NamedTuple):
    kind: str
    path: Path
    target: Path | None = None


def _hear(event, arguments):
    if _listeners and event in _KINDS and isinstance(arguments[0], str | os.PathLike):
        kind = _KINDS[event]
        target = Path(arguments[1]) if kind == "rename" else None
        for listener in _listeners:
            listener(Call(kind, Path(arguments[0]), target))


sys.addaudithook(_hear)


@contextmanager
def calls_within(directory, listener):
    """Has ``listener`` called before each call on what is in ``directory``, or is it."""
    fsync = os.fsync

    def only_ours(call):
        if f"{call.path}/".startswith(f"{directory}/"):
            listener(call)

    def heard(descriptor):
        only_ours(Call("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    _listeners.append(only_ours)
    os.fsync = heard
    try:
        yield
    finally:
        os.fsync = fsync
        _listeners.remove(only_ours)
