"""When a value in ``state.metrics`` was measured: one of earlier weights says nothing of these."""

from ignite_hooks.core.engine import belongings
from ignite_hooks.core.training_engine import AnyEngine

__all__ = ["measured_at"]


def measured_at(engine: AnyEngine) -> dict[str, int]:
    """The iteration at which a validation has last measured each name. Others are not in it."""
    iterations: dict[str, int] = belongings(engine).setdefault("measured_at", {})
    return iterations
