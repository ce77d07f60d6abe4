"""Requests to stop a run. A validation checks for requests after each batch, to break off early."""

from collections.abc import Callable
from dataclasses import dataclass

from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.training_engine import AnyEngine

__all__ = ["StopMonitor", "ValidationStopped", "add_stop_monitor", "stop_monitors"]


class ValidationStopped(Exception):
    """Breaks off a validation, or keeps it from beginning, because the training run is to stop."""


@dataclass(frozen=True)
class StopMonitor:
    """A source of requests to stop a run, such as a signal.

    Attributes:
        is_asked: returns whether this process has a request to stop. A validation calls this
            function after each batch.
        any_of: takes flags, and returns for each flag whether any process has set it. The call is
            collective. The attribute is None if there is a single process.
        obey: saves the state and ends the run. The trainer calls this function after it has broken
            off a validation.
    """

    is_asked: Callable[[], bool]
    any_of: Callable[..., list[bool]] | None
    obey: Callable[[], None]


def add_stop_monitor(engine: AnyEngine, monitor: StopMonitor) -> Callable[[], None]:
    """Adds a source of requests to ``engine``, and returns a function that removes the source."""
    monitors = _monitors(engine)
    monitors.append(monitor)
    return lambda: monitors.remove(monitor)


def stop_monitors(engine: AnyEngine) -> tuple[StopMonitor, ...]:
    """Returns the sources of requests of ``engine``, in the order in which they were added."""
    return (*_monitors(engine),)


def _monitors(engine: AnyEngine) -> list[StopMonitor]:
    monitors: list[StopMonitor] = engine_storage(engine).setdefault("stop_monitors", [])
    return monitors
