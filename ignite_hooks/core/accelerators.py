"""Accelerators: the default one, agreement of processes, and members that Accelerate keeps private.

The private members used here, and what they are taken to mean:

- ``Accelerator._models``: the models prepared with this accelerator, as ``prepare`` returned them.
- ``Accelerator._custom_objects``: the objects given to ``register_for_checkpointing``, in order.
- ``_is_accelerate_prepared``: True on each model, optimizer, scheduler and loader that ``prepare``
  returned; missing or False on all others.
- ``_stop_iteration``, on a loader that dispatches its batches: whether the iteration in progress
  has met the end of the data.
- ``AcceleratorState._shared_state``: what the accelerators of a process share; its entry
  ``_mixed_precision`` is their precision, and is missing before the first of them is made.

``tests/core/test_accelerators.py`` fails when one of them changes its meaning.
"""

from typing import Any

import ignite.distributed as idist
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.state import GradientState
from accelerate.utils import GradientAccumulationPlugin

__all__ = [
    "ITERATION_FLAGS",
    "ShortWindow",
    "accelerator_or_default",
    "is_prepared",
    "prepared_models",
    "registered_objects",
    "shared_mixed_precision",
    "smallest_of_all",
    "whole_accumulation",
]

ITERATION_FLAGS = ("end_of_dataloader", "remainder", "iteration", "_stop_iteration")
"""Attributes of a prepared loader that describe the one iteration it is in."""


class ShortWindow(dict[str, Any]):
    """Accelerate's settings of accumulation while a window of fewer batches is open.

    They are swapped in for ``whole``, so that ``accelerator.backward`` divides by ``size``.
    """

    def __init__(self, whole: dict[str, Any], size: int) -> None:
        super().__init__(whole, num_steps=size)
        self.whole = whole
        self.size = size


def whole_accumulation(gradient_state: GradientState) -> dict[str, Any]:
    """Returns the settings of accumulation of a full window, whichever window is open."""
    settings: dict[str, Any] = gradient_state.plugin_kwargs
    while isinstance(settings, ShortWindow):
        settings = settings.whole
    return settings


def accelerator_or_default(accelerator: Accelerator | None) -> Accelerator:
    """``accelerator``, or a new one with the settings of those there are; Ignite told of it.

    All accelerators of a process share one state, and ``Accelerator()`` sets its accumulation
    back to 1: made for an evaluator, it would end the accumulation of a trainer.
    """
    if accelerator is not None and not isinstance(accelerator, Accelerator):
        raise TypeError(
            f"`accelerator` must be an accelerate.Accelerator, got {type(accelerator).__name__}: "
            "pass Accelerator(cpu=True) for the CPU, or leave it out"
        )
    if accelerator is None:
        accumulation = GradientState().plugin_kwargs
        plugin = GradientAccumulationPlugin(**{"num_steps": 1, **accumulation})
        accelerator = Accelerator(gradient_accumulation_plugin=plugin if accumulation else None)
    if accelerator.num_processes > 1:
        # Collective, so here, where all processes are: later a logger on one of them would hang.
        idist.sync()
    return accelerator


def registered_objects(accelerator: Accelerator) -> list[Any]:
    """Returns what was given to ``accelerator.register_for_checkpointing``, in that order."""
    objects: list[Any] = accelerator._custom_objects
    return objects


def smallest_of_all(number: int, accelerator: Accelerator) -> int:
    """The smallest ``number`` of all processes. Collective."""
    mine = torch.tensor([number], device=accelerator.device)
    return int(accelerator.gather(mine).min())


def prepared_models(accelerator: Accelerator) -> list[torch.nn.Module]:
    """Returns the models that were prepared with ``accelerator``, as it prepared them."""
    return list(accelerator._models)


def is_prepared(obj: object) -> bool:
    """Returns whether an accelerator has prepared ``obj``."""
    return bool(getattr(obj, "_is_accelerate_prepared", False))


def shared_mixed_precision() -> str | None:
    """Returns the mixed precision of this process's accelerators, or None before the first."""
    precision: str | None = AcceleratorState._shared_state.get("_mixed_precision")
    return precision
