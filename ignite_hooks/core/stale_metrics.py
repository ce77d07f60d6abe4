"""Stores which validations have completed, and when they measured their metrics.

These notes show which values in ``state.metrics`` are stale: measured with earlier weights.
``measured_at`` and ``completed_validations`` return the stored dict and set, not copies. Callers
add items to them.
"""

from typing import Any

import numpy as np
import torch

from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.training_engine import AnyEngine

__all__ = ["completed_validations", "forget_validations", "measured_at", "version_of"]


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


def version_of(value: Any) -> Any:
    """Returns the version of ``value``, which differs if the object was changed in place.

    The version is None if there is nothing to compare, for example for a float. For most tensors
    the version is a counter on the host, so this function does not synchronize with the device.
    """
    if isinstance(value, torch.Tensor) and not value.is_inference():
        return value._version  # torch counts the in-place changes of each tensor
    # Inference tensors and numpy arrays have no such counter, so their version is a copy of the
    # value. Only values with one element are copied, because a larger copy would cost time.
    if isinstance(value, torch.Tensor):
        return value.clone() if value.numel() == 1 else None
    return value.copy() if isinstance(value, np.ndarray) and value.size == 1 else None
