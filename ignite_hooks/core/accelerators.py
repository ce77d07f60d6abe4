"""The accelerator where none is given, what one holds, and what processes agree on."""

from typing import Any

import ignite.distributed as idist
import torch
from accelerate import Accelerator
from accelerate.state import GradientState
from accelerate.utils import GradientAccumulationPlugin

__all__ = ["accelerator_or_default", "registered_objects", "smallest_of_all"]


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
