"""Requests to stop a run, as far as they concern what can be broken off: a validation."""

from collections.abc import Callable
from dataclasses import dataclass

from ignite_hooks.core.engine import belongings
from ignite_hooks.core.training_engine import AnyEngine

__all__ = ["BrokenOff", "StopWatch", "add_stop_watch", "stop_watches"]


class BrokenOff(Exception):
    """A validation was not begun, or was broken off, because its run is to stop."""


@dataclass(frozen=True)
class StopWatch:
    """Tells whether a run is asked to stop, and obeys.

    Attributes:
        is_asked: returns whether this process was asked; called after each batch of an evaluator.
        any_of: sets each of some flags that any process has set; None with one process.
        obey: saves the state and ends the run, once a validation was broken off.
    """

    is_asked: Callable[[], bool]
    any_of: Callable[..., list[bool]] | None
    obey: Callable[[], None]


def add_stop_watch(engine: AnyEngine, watch: StopWatch) -> Callable[[], None]:
    """Adds ``watch`` to those of ``engine``; returns what undoes it."""
    watches = _watches(engine)
    watches.append(watch)
    return lambda: watches.remove(watch)


def stop_watches(engine: AnyEngine) -> tuple[StopWatch, ...]:
    """Returns the watches of ``engine``."""
    return (*_watches(engine),)


def _watches(engine: AnyEngine) -> list[StopWatch]:
    watches: list[StopWatch] = belongings(engine).setdefault("stop_watches", [])
    return watches
