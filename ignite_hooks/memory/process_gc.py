"""Python's garbage collector, as several runs at once may change it and the last puts it back."""

import gc
import os
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import contextmanager
from threading import Lock
from time import perf_counter
from typing import Any

from ignite_hooks.core.warn_once import warn_once

__all__ = ["automatic_collection_off", "automatic_pauses", "frozen"]


class _Holding:
    """Who holds a change of this process, and what undoes it."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.users = 0
        self.undo: Callable[[], None] = _nothing


class _Shared:
    """A change of the process that is made by the first who needs it and undone by the last."""

    def __init__(self, change: Callable[[], Callable[[], None]]) -> None:
        self._change = change
        self._holding = _Holding()

    @contextmanager
    def held(self) -> Iterator[None]:
        holding = self._holding
        with holding.lock:
            if not holding.users:
                holding.undo = self._change()
            holding.users += 1
        try:
            yield
        finally:
            if holding is self._holding:  # else this is a child, and its parent holds the change
                with holding.lock:
                    holding.users -= 1
                    if not holding.users:
                        holding.undo()

    def begin_anew(self) -> Callable[[], None]:
        """In a forked child: nobody holds it. Returns what undoes what the parent has changed."""
        holding, self._holding = self._holding, _Holding()
        return holding.undo if holding.users else _nothing


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


def _begin_in_child() -> None:
    _disabled.begin_anew()()  # loader workers collect their own garbage
    _frozen.begin_anew()  # what is frozen stays so, which keeps its pages shared


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)


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
    to be asked for, short of a moment right after ``gc.enable``. With a threshold of 0 it starts
    none.
    """
    return gc.isenabled() and 0 < gc.get_threshold()[0] < gc.get_count()[0]
