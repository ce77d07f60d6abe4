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

from ignite_hooks.core.restoring import restored
from ignite_hooks.core.warn_once import warn_once

__all__ = ["automatic_collection_off", "automatic_pauses", "frozen"]


class _Holding:
    """Who holds a change of this process, and what undoes it."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.users: list[object] = []
        self.undo: Callable[[], None] = _nothing


class _Shared:
    """A change of the process that is made by the first who needs it and undone by the last."""

    def __init__(self, look: Callable[[], tuple[Callable[[], None], Callable[[], None]]]) -> None:
        self._look = look  # gives the change, and what undoes it
        self._holding = _Holding()

    @contextmanager
    def held(self) -> Iterator[None]:
        holding, user = self._holding, object()

        def leave() -> None:
            if holding is self._holding:  # else this is a child, and its parent holds the change
                with holding.lock:
                    if holding.users == [user]:
                        holding.undo()
                    holding.users = [each for each in holding.users if each is not user]

        with restored(leave, alone=True):
            with holding.lock:
                if not holding.users:
                    change, holding.undo = self._look()
                    holding.users.append(user)  # before: the change is undone if this breaks off
                    change()
                else:
                    holding.users.append(user)
            yield

    def begin_anew(self) -> Callable[[], None]:
        """In a forked child: nobody holds it. Returns what undoes what the parent has changed."""
        holding, self._holding = self._holding, _Holding()
        return holding.undo if holding.users else _nothing


def _nothing() -> None:
    return None


def _disable() -> tuple[Callable[[], None], Callable[[], None]]:
    return gc.disable, gc.enable if gc.isenabled() else _nothing


_disabled = _Shared(_disable)


def automatic_collection_off() -> AbstractContextManager[None]:
    """A scope without automatic collections. In several at once, the last restores what was."""
    return _disabled.held()


def _freeze() -> tuple[Callable[[], None], Callable[[], None]]:
    if gc.get_freeze_count():
        warn_once(
            "`freeze_after` must find nothing frozen, and does nothing: what was frozen before "
            "would be thawed at the end of the run; leave it out, or call gc.unfreeze() first"
        )
        return _nothing, _nothing

    def change() -> None:
        gc.collect()
        gc.freeze()

    return change, gc.unfreeze


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

    def leave() -> None:
        if listen in gc.callbacks:
            gc.callbacks.remove(listen)

    with restored(leave, alone=True):
        gc.callbacks.append(listen)
        yield


def _is_automatic() -> bool:
    """Whether the collection that starts was not asked for.

    Python starts one when the youngest generation has outgrown its threshold; then none is there
    to be asked for, short of a moment right after ``gc.enable``. With a threshold of 0 it starts
    none.
    """
    return gc.isenabled() and 0 < gc.get_threshold()[0] < gc.get_count()[0]
