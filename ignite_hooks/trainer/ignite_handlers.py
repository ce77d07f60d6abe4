"""Warnings about handlers of Ignite that behave differently on a trainer than users expect."""

import warnings
from typing import Any

from ignite.engine import Events
from ignite.engine.events import EventsList
from ignite.handlers import FastaiLRFinder
from ignite.handlers.base_logger import BaseWeightsHandler

from ignite_hooks.events import TrainEvents

__all__ = ["warn_of_gradient_logger", "warn_of_lr_finder"]

_EVENTS_WITH_GRADIENTS = (
    TrainEvents.MODEL_BACKWARD_COMPLETED,
    TrainEvents.OPTIMIZER_STEP_STARTED,
    TrainEvents.OPTIMIZER_STEP_COMPLETED,
    Events.ITERATION_COMPLETED,
)


def warn_of_gradient_logger(handler: Any, event: Any) -> None:
    """Warns if ``handler`` logs gradients, but no gradients exist at ``event``."""
    if not isinstance(handler, BaseWeightsHandler):
        return
    # Several loggers of Ignite (TensorBoard, ClearML, …) have a GradsScalarHandler or a
    # GradsHistHandler of their own. Only their names tell these classes from the handlers that log
    # weights, because all have the same base classes.
    if not any(base.__name__.startswith("Grads") for base in type(handler).__mro__):
        return
    events = event if isinstance(event, EventsList) else [event]
    gradientless = [
        each for each in events if all(each != other for other in _EVENTS_WITH_GRADIENTS)
    ]
    if gradientless:
        warnings.warn(
            f"{type(handler).__name__} at {gradientless[0]} finds no gradients and logs nothing: a "
            "trainer zeroes the gradients when the handlers of ITERATION_COMPLETED have returned; "
            "attach the handler to TrainEvents.OPTIMIZER_STEP_COMPLETED, where the accumulated "
            "gradients exist",
            stacklevel=4,
        )


def warn_of_lr_finder(handler: Any, event: Any, window_size: int) -> None:
    """Warns if ``handler`` belongs to Ignite's FastaiLRFinder and gradients are accumulated.

    Args:
        handler: the handler that is being attached.
        event: the event that ``handler`` is attached to.
        window_size: the number of batches in a full window. The gradients of these batches are
            accumulated for one optimizer step.
    """
    # FastaiLRFinder attaches several bound methods, but only one of them to STARTED. Only the
    # attachment of this one warns, so the user gets one warning.
    is_finder = isinstance(getattr(handler, "__self__", None), FastaiLRFinder)
    if is_finder and window_size > 1 and event == Events.STARTED:
        warnings.warn(
            "FastaiLRFinder raises the learning rate after each batch, but an optimizer step is "
            f"made only once in {window_size} batches here, so most losses are recorded with a "
            "rate that no step has used; set gradient_accumulation_steps=1 to find a rate",
            stacklevel=4,
        )
