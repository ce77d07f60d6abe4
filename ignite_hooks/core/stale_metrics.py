"""Stores which validations have completed, and when they measured their metrics.

These notes show which values in ``state.metrics`` are stale: measured with earlier weights.
``measured_at`` and ``completed_validations`` return the stored dict and set, not copies. Callers
add items to them.
"""

from typing import Any

from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.training_engine import AnyEngine

__all__ = ["completed_validations", "forget_validations", "measured_at"]


def measured_at(engine: AnyEngine) -> dict[str, int]:
    """Returns a dict that maps a metric's name to the iteration at which it was last measured.

    Metrics that were not measured by a validation are not in the dict.
    """
    iterations: dict[str, int] = engine_storage(engine).setdefault("measured_at", {})
    return iterations


def completed_validations(engine: AnyEngine) -> set[Any]:
    """Returns the ``Validation`` handlers that have completed a validation in this run."""
    completed: set[Any] = engine_storage(engine).setdefault("completed_validations", set())
    return completed


def forget_validations(engine: AnyEngine) -> None:
    """Clears the stored dict and set, and removes the metrics that validations have measured."""
    for name in measured_at(engine):
        engine.state.metrics.pop(name, None)
    measured_at(engine).clear()
    completed_validations(engine).clear()
