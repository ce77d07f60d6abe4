"""Finds contexts that are open during a save and may change the saved state when they exit.

A context is a generator with one ``yield`` that the user has attached to ``on_step`` or
``on_epoch``: the context is open during each step or each epoch, and its code after the ``yield``
runs at the end. A save comes before the end:

- Within an epoch, a checkpoint is saved while the contexts on ``on_step`` are open. The resumed run
  begins with the next step, so it never runs the code after the ``yield`` for the saved step. (The
  contexts on ``on_epoch`` are open, too, but the resumed run enters them again, and runs their code
  when the epoch ends.)
- At the end of an epoch, a checkpoint is saved while the contexts on ``on_epoch`` are open. The
  resumed run begins with the next epoch.

So the checkpoint lacks the changes that the code after the ``yield`` makes, and the resumed run
does not make these changes.

Such a context is reported if its code can reach a saved state: the trainer's model or optimizer, or
an object whose state is in the checkpoint. A timer or the range of a profiler is not reported.
"""

from collections.abc import Iterable
from types import CodeType
from types import FunctionType
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ignite_hooks.checkpoint.report import summarize_names
from ignite_hooks.core.object_graph import ObjectSearch
from ignite_hooks.core.object_graph import is_library_code
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.hooks.context import HookScope
from ignite_hooks.hooks.context import name_of
from ignite_hooks.hooks.event_channels import channels_of

__all__ = ["late_changes"]

_MAX_SEARCHED = 1000  # the largest number of objects that are searched for one context
# Code that names one of these attributes may change the state of the trainer.
_STATE_ATTRIBUTES = {"load_state_dict", "lr_scheduler", "model", "modules", "optimizer"}
_STATEFUL_CLASSES = (torch.nn.Module, Optimizer, LRScheduler)


def late_changes(trainer: TrainingEngine, carried: Iterable[Any]) -> str:
    """Returns a message about the open contexts that may change a saved state on exit.

    Call this function while a checkpoint is saved.

    Args:
        trainer: the trainer.
        carried: the other objects whose states are in the checkpoint, such as handlers.

    Returns:
        The message; an empty string if there is no such context.
    """
    scopes = [each for each in channels_of(trainer).scopes.open if isinstance(each, HookScope)]
    if not scopes:
        return ""
    carried_ids = set(map(id, carried))
    # A save within an epoch comes just before the contexts on `on_step` exit. At the end of an
    # epoch, these contexts have exited already, and the contexts on `on_epoch` are still open.
    is_in_epoch = trainer.place.progress.batches > 0
    names = {
        f"{name_of(each.context)} on {each.channel}"
        for each in scopes
        if each.channel == ("on_step" if is_in_epoch else "on_epoch")
        and each.has_effect_on_exit
        and _reaches_state(each.context, trainer, carried_ids)
    }
    if not names:
        return ""
    return (
        f"{summarize_names(names)} may change a saved state on exit, which comes after the save: "
        "make the change before the `yield`, or at STEP_COMPLETED or EPOCH_COMPLETED"
    )


def _reaches_state(context: Any, trainer: TrainingEngine, carried_ids: set[int]) -> bool:
    """Returns whether a context can reach a saved state, by its code or by the objects it holds."""
    for _, each in ObjectSearch({"context": context}, _MAX_SEARCHED, [trainer, trainer.state]):
        if id(each) in carried_ids or issubclass(type(each), _STATEFUL_CLASSES):
            return True
        is_users = type(each) is FunctionType and not is_library_code(each)
        if is_users and not _STATE_ATTRIBUTES.isdisjoint(_names_in_code(each.__code__)):
            return True
    return False


def _names_in_code(code: CodeType) -> set[str]:
    """Returns the names of globals and attributes that the code of a function uses.

    Functions that are defined within the function are included.
    """
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*map(_names_in_code, inner))
