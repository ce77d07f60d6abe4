"""Python's garbage collector, as several runs at once may change it and the last puts it back."""

import gc
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import contextmanager
from threading import Lock
from time import perf_counter
from typing import Any

from ignite_hooks.warn_once import warn_once

__all__ = ["automatic_collection_off", "automatic_pauses", "frozen"]


class _Shared:
    """A change of the process that is made by the first who needs it and undone by the last."""

    def __init__(self, change: Callable[[], Callable[[], None]]) -> None:
        self._change = change
        self._undo: Callable[[], None] = _nothing
        self._users = 0
        self._lock = Lock()

    @contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            if not self._users:
                self._undo = self._change()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._undo()


def _nothing() -> None:
    return None


def _disable() -> Callable[[], None]:
    was_enabled = gc.isenabled()
    gc.disable()
    return gc.enable if was_enabled else _nothing


_disabled = _Shared(_disable)


def automatic_collection_off() -> AbstractContextManager[None]:
    """A scope without automatic collections. In several at once, the last restores what was."""
    return _disabled.held()


def _freeze() -> Callable[[], None]:
    if gc.get_freeze_count():
        warn_once(
            "`freeze_after` must find nothing frozen, and does nothing: what was frozen before "
            "would be thawed at the end of the run; leave it out, or call gc.unfreeze() first"
        )
        return _nothing
    gc.collect()
    gc.freeze()
    return gc.unfreeze


_frozen = _Shared(_freeze)


def frozen() -> AbstractContextManager[None]:
    """A scope in which no collection looks at the objects that there were at its beginning.

    It begins with a full collection. What another had frozen before stays frozen, and then nothing
    is added to it: ``gc.unfreeze`` knows no difference.
    """
    return _frozen.held()


@contextmanager
def automatic_pauses(note: Callable[[float], Any]) -> Iterator[None]:
    """A scope in which ``note(seconds)`` is called after each automatic collection."""
    began: list[float] = []

    def listen(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and _is_automatic():
            began.append(perf_counter())
        elif phase == "stop" and began:
            note(perf_counter() - began.pop())

    gc.callbacks.append(listen)
    try:
        yield
    finally:
        gc.callbacks.remove(listen)


def _is_automatic() -> bool:
    """Whether the collection that starts was not asked for.

    Python starts one when the youngest generation has outgrown its threshold; then none is there
    to be asked for, short of a moment right after ``gc.enable``.
    """
    return gc.isenabled() and gc.get_count()[0] > gc.get_threshold()[0]
