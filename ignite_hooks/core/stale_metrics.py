"""Notes about validations, by which stale values in ``state.metrics`` are recognized."""

from typing import Any

from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.training_engine import AnyEngine

__all__ = ["completed_validations", "forget_validations", "measured_at"]


def measured_at(engine: AnyEngine) -> dict[str, int]:
    """Returns the iteration at which a validation last measured each metric, by its name."""
    iterations: dict[str, int] = engine_storage(engine).setdefault("measured_at", {})
    return iterations


def completed_validations(engine: AnyEngine) -> set[Any]:
    """Returns the handlers that have completed a validation in this run."""
    completed: set[Any] = engine_storage(engine).setdefault("completed_validations", set())
    return completed


def forget_validations(engine: AnyEngine) -> None:
    """Removes the metrics and all notes of validations, for a new run or one that is loaded."""
    for name in measured_at(engine):
        engine.state.metrics.pop(name, None)
    measured_at(engine).clear()
    completed_validations(engine).clear()
