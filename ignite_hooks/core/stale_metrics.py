"""Notes about validations, by which stale values in ``state.metrics`` are recognized.

A value is stale if it was measured with earlier weights. ``measured_at`` and
``completed_validations`` return the stored dict and set, not copies. Callers write notes to them.
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
    """Removes all notes, and removes the metrics that validations have measured.

    The trainer calls this function before a run starts from scratch. A resume calls this function
    before it loads the saved metrics.
    """
    for name in measured_at(engine):
        engine.state.metrics.pop(name, None)
    measured_at(engine).clear()
    completed_validations(engine).clear()
