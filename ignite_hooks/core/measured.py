"""The iterations at which validations measured values in ``state.metrics``, to tell stale ones."""

from typing import Any

from ignite_hooks.core.engine import belongings
from ignite_hooks.core.training_engine import AnyEngine

__all__ = ["completed_validations", "forget_validations", "measured_at"]


def measured_at(engine: AnyEngine) -> dict[str, int]:
    """Returns, by name, the iteration at which a validation last measured a metric."""
    iterations: dict[str, int] = belongings(engine).setdefault("measured_at", {})
    return iterations


def completed_validations(engine: AnyEngine) -> set[Any]:
    """Returns the handlers that have validated in this run of training."""
    completed: set[Any] = belongings(engine).setdefault("completed_validations", set())
    return completed


def forget_validations(engine: AnyEngine) -> None:
    """Drops what validations have measured: a new run of training begins, or one is loaded."""
    for name in measured_at(engine):
        engine.state.metrics.pop(name, None)
    measured_at(engine).clear()
    completed_validations(engine).clear()
