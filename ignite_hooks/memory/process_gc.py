"""Changes to Python's garbage collector that several runs can share."""

import gc
import os
import sys
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import contextmanager
from threading import Lock
from time import perf_counter
from typing import Any

from ignite_hooks.core.undo_stack import undo_on_exit
from ignite_hooks.core.warn_once import warn_once

__all__ = ["automatic_collection_off", "automatic_pauses", "frozen", "observed_collections"]


class _ChangeState:
    """The users of a change in this process, and the function that undoes the change.

    Each user is an ``object()`` that stands for one ``with`` block that needs the change.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self.users: list[object] = []
        self.undo: Callable[[], None] = _do_nothing


class _SharedChange:
    """A change to the process, such as ``gc.disable()``, that several ``with`` blocks may need.

    The first block makes the change, and the last block to end undoes the change.

    Args:
        prepare: is called directly before the change is made. It returns two functions. The first
            one makes the change, and the second one undoes it.
    """

    def __init__(
        self, prepare: Callable[[], tuple[Callable[[], None], Callable[[], None]]]
    ) -> None:
        self._prepare = prepare
        self._state = _ChangeState()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps the change in effect for the body."""
        state, user = self._state, object()

        def end() -> None:
            # In a forked child, `forget_in_child` has replaced `self._state`. This user belongs to
            # the parent, and must not undo a change in the child.
            if state is self._state:
                with state.lock:
                    if state.users == [user]:
                        state.undo()
                    state.users = [each for each in state.users if each is not user]

        # `out_of_order` is True, because overlapping `with` blocks may end in any order.
        with undo_on_exit(end, out_of_order=True):
            with state.lock:
                if not state.users:
                    change, state.undo = self._prepare()
                    # The user is added before the change is made. So if a signal handler raises an
                    # exception in the middle of the change, the change is still undone.
                    state.users.append(user)
                    change()
                else:
                    state.users.append(user)
            yield

    def forget_in_child(self) -> Callable[[], None]:
        """Forgets all users. This method is called in a forked child.

        Returns:
            A function that undoes the change in the child. It does nothing if there was no change.
        """
        state, self._state = self._state, _ChangeState()
        return state.undo if state.users else _do_nothing


def _do_nothing() -> None:
    return None


def _prepare_disabling() -> tuple[Callable[[], None], Callable[[], None]]:
    return gc.disable, gc.enable if gc.isenabled() else _do_nothing


_disabled = _SharedChange(_prepare_disabling)


def automatic_collection_off() -> AbstractContextManager[None]:
    """Returns a context manager that turns automatic garbage collections off.

    If several such context managers are open, the setting is restored when the last one ends.
    """
    return _disabled.held()


def _prepare_freezing() -> tuple[Callable[[], None], Callable[[], None]]:
    # gc.unfreeze() would also unfreeze objects that other code has frozen. So if there are any,
    # nothing is frozen here.
    if _are_objects_frozen():
        warn_once(
            "`freeze_after` needs a process without frozen objects, but other code has frozen "
            "some: the handler freezes nothing, because the end of the run would unfreeze those "
            "objects too; "
            "leave `freeze_after` out, or call gc.unfreeze() before the run"
        )
        return _do_nothing, _do_nothing

    def change() -> None:
        gc.collect()
        gc.freeze()

    return change, gc.unfreeze


def _are_objects_frozen() -> bool:
    """Returns whether some code has called ``gc.freeze()``.

    In Python 3.12 a full collection freezes immortal objects (PEP 683), so a count above 0 is not
    enough. Only ``gc.freeze()`` freezes the dict ``sys.modules``, which is not immortal. After
    that, ``gc.get_objects()`` does not return the dict.
    """
    return gc.get_freeze_count() > 0 and all(each is not sys.modules for each in gc.get_objects())


_frozen = _SharedChange(_prepare_freezing)


def frozen() -> AbstractContextManager[None]:
    """Returns a context manager in which garbage collections skip all objects that exist already.

    At its start, the context manager makes a full collection and then freezes all objects that
    remain. If other code has frozen objects already, the context manager warns and does nothing.
    """
    return _frozen.held()


def _begin_in_child() -> None:
    _disabled.forget_in_child()()  # so that loader workers collect their own garbage
    # The returned function is not called, so that frozen objects stay frozen. A collection would
    # write to their memory pages, which the child shares with its parent, and so copy the pages.
    _frozen.forget_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)


@contextmanager
def automatic_pauses(report: Callable[[float], Any]) -> Iterator[None]:
    """Calls ``report(seconds)`` after each automatic collection in the body."""
    began: list[float] = []

    def measure(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and _is_automatic():
            began.append(perf_counter())
        elif phase == "stop" and began:
            report(perf_counter() - began.pop())

    with observed_collections(measure):
        yield


@contextmanager
def observed_collections(callback: Callable[[str, dict[str, int]], None]) -> Iterator[None]:
    """Calls ``callback`` as a function in ``gc.callbacks``, as long as the body runs."""

    def end() -> None:
        if callback in gc.callbacks:  # absent if an exception came before the append
            gc.callbacks.remove(callback)

    with undo_on_exit(end, out_of_order=True):
        gc.callbacks.append(callback)
        yield


def _is_automatic() -> bool:
    """Returns whether the collection that starts now is automatic, and not a ``gc.collect()``.

    When an automatic collection starts, the youngest generation has more objects than its
    threshold. At a ``gc.collect()`` this generation has no more than that, except directly after
    ``gc.enable()``: such a ``gc.collect()`` may count as automatic. With a threshold of 0 Python
    never collects by itself.
    """
    return gc.isenabled() and 0 < gc.get_threshold()[0] < gc.get_count()[0]
