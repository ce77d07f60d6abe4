"""Handlers of Ignite's that do on a trainer what their users may not expect: they are told."""

import warnings
from typing import Any

from ignite.engine import Events
from ignite.engine.events import EventsList
from ignite.handlers import FastaiLRFinder
from ignite.handlers.base_logger import BaseWeightsHandler

from ignite_hooks.events import TrainEvents

__all__ = ["warn_of_gradient_logger", "warn_of_lr_finder"]

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


def warn_of_lr_finder(handler: Any, event: Any, window: int) -> None:
    """Warns of Ignite's finder of learning rates if windows have several batches.

    Args:
        handler: what is attached.
        event: where it is attached; the finder begins at STARTED.
        window: batches in a full window.
    """
    is_finder = isinstance(getattr(handler, "__self__", None), FastaiLRFinder)
    if is_finder and window > 1 and event == Events.STARTED:
        warnings.warn(
            "FastaiLRFinder raises the learning rate after each batch, and a window has "
            f"{window} batches here: the rate acts once a window, so the losses between are those "
            "of an older rate; set gradient_accumulation_steps=1 to find a rate",
            stacklevel=4,
        )
