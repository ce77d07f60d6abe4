"""Requests to stop a run, for validations, which can be broken off between two batches."""

from collections.abc import Callable
from dataclasses import dataclass

from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.training_engine import AnyEngine

__all__ = ["StopMonitor", "ValidationStopped", "add_stop_monitor", "stop_monitors"]


class ValidationStopped(Exception):
    """Raised when a validation does not begin, or is broken off, because its run is to stop."""


@dataclass(frozen=True)
class StopMonitor:
    """A source of requests to stop a run, such as a signal, with the functions to follow them.

    Attributes:
        is_asked: returns whether this process has a request. It is called after each batch of an
            evaluator.
        any_of: takes flags, and returns for each whether any process has set it. A collective; None
            with one process.
        obey: saves the state and ends the run, after a validation was broken off.
    """

    is_asked: Callable[[], bool]
    any_of: Callable[..., list[bool]] | None
    obey: Callable[[], None]


def add_stop_monitor(engine: AnyEngine, watch: StopMonitor) -> Callable[[], None]:
    """Adds a source of requests to ``engine``, and returns a function that removes it."""
    watches = _watches(engine)
    watches.append(watch)
    return lambda: watches.remove(watch)


def stop_monitors(engine: AnyEngine) -> tuple[StopMonitor, ...]:
    """Returns the sources of requests of ``engine``, in the order in which they were added."""
    return (*_watches(engine),)


def _watches(engine: AnyEngine) -> list[StopMonitor]:
    watches: list[StopMonitor] = engine_storage(engine).setdefault("stop_monitors", [])
    return watches
