"""The system calls of a save: listeners see each call before it happens, and can make it fail.

Python calls its audit hooks before each of them but fsync, and an exception in a hook prevents the
call. An audit hook cannot be removed, so this one does nothing while there are no listeners.
"""

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_OPERATIONS = {
    "open": "open",
    "os.mkdir": "mkdir",
    "os.rename": "rename",
    "os.remove": "unlink",
    "os.rmdir": "rmdir",
}
_listeners = []


class Call(NamedTuple):
    operation: str
    path: Path
    target: Path | None = None


def _audit_hook(event, arguments):
    if _listeners and event in _OPERATIONS and isinstance(arguments[0], str | os.PathLike):
        operation = _OPERATIONS[event]
        target = Path(arguments[1]) if operation == "rename" else None
        for listener in _listeners:
            listener(Call(operation, Path(arguments[0]), target))


sys.addaudithook(_audit_hook)


@contextmanager
def calls_within(directory, listener):
    """Calls ``listener`` before each system call on ``directory`` or on a path within it."""
    fsync = os.fsync

    def filtered(call):
        if f"{call.path}/".startswith(f"{directory}/"):
            listener(call)

    def listening_fsync(descriptor):
        filtered(Call("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    _listeners.append(filtered)
    os.fsync = listening_fsync
    try:
        yield
    finally:
        os.fsync = fsync
        _listeners.remove(filtered)
