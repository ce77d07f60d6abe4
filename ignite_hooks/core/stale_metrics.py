"""Notes about validations, by which stale values in ``state.metrics`` are recognized.

A value is stale if it was measured with earlier weights.
"""

from typing import Any

from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.training_engine import AnyEngine

__all__ = ["completed_validations", "forget_validations", "measured_at"]


def measured_at(engine: AnyEngine) -> dict[str, int]:
    """Returns a mapping from the name of a metric to the iteration of its last measurement.

    The mapping has the metrics that validations have measured.
    """
    iterations: dict[str, int] = engine_storage(engine).setdefault("measured_at", {})
    return iterations


def completed_validations(engine: AnyEngine) -> set[Any]:
    """Returns the handlers that have completed a validation in this run."""
    completed: set[Any] = engine_storage(engine).setdefault("completed_validations", set())
    return completed


def forget_validations(engine: AnyEngine) -> None:
    """Removes all notes, and the metrics that validations have measured.

    This is called before a run starts from scratch, and when the state of a run is loaded.
    """
    for name in measured_at(engine):
        engine.state.metrics.pop(name, None)
    measured_at(engine).clear()
    completed_validations(engine).clear()
