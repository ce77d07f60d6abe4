"""Ignite's loggers of gradients, at an event where a trainer has none."""

import warnings
from typing import Any

from ignite.engine import Events
from ignite.engine.events import EventsList
from ignite.handlers.base_logger import BaseWeightsHandler

from ignite_hooks.events import TrainEvents

__all__ = ["warn_of_gradient_logger"]

_WITH_GRADIENTS = (
    TrainEvents.MODEL_BACKWARD_COMPLETED,
    TrainEvents.OPTIMIZER_STEP_STARTED,
    TrainEvents.OPTIMIZER_STEP_COMPLETED,
    Events.ITERATION_COMPLETED,
)


def warn_of_gradient_logger(handler: Any, event: Any) -> None:
    """Warns if ``handler`` logs gradients and will find none at ``event``: it would log nothing."""
    if not isinstance(handler, BaseWeightsHandler):
        return
    if not any(kind.__name__.startswith("Grads") for kind in type(handler).__mro__):
        return
    events = event if isinstance(event, EventsList) else [event]
    without = [each for each in events if all(each != other for other in _WITH_GRADIENTS)]
    if without:
        warnings.warn(
            f"{type(handler).__name__} at {without[0]} finds no gradients, and logs nothing: a "
            "trainer zeroes them when the handlers of ITERATION_COMPLETED have returned; attach it "
            "to TrainEvents.OPTIMIZER_STEP_COMPLETED, where they are whole",
            stacklevel=4,
        )
