"""Contexts that are open during a save, and may change on their way out what it has saved.

A save is taken within ``on_step``, or at the end of an epoch within ``on_epoch``. A context of
these channels that does something after its ``yield`` does it after the save, and a resumed run
does not repeat it. The report names a context whose way out can reach a state: the trainer's model
or optimizer, or an object that the checkpoint carries. A timer or a profiler's range is not named.
"""

from collections.abc import Iterable
from types import CodeType
from types import FunctionType
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ignite_hooks.checkpoint.report import some
from ignite_hooks.core.object_graph import ObjectSearch
from ignite_hooks.core.object_graph import is_of_library
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.hooks.context import HookScope
from ignite_hooks.hooks.context import name_of
from ignite_hooks.hooks.event_channels import channels_of

__all__ = ["late_changes"]

_MAX_OBJECTS = 1000
_OF_TRAINER = {"load_state_dict", "lr_scheduler", "model", "modules", "optimizer"}
_STATES = (torch.nn.Module, Optimizer, LRScheduler)


def late_changes(trainer: TrainingEngine, carried: Iterable[Any]) -> str:
    """Returns which open contexts may change a state after this save; "" if there are none.

    Args:
        trainer: the trainer.
        carried: the objects whose states the checkpoint has besides the trainer's own.
    """
    scopes = [each for each in channels_of(trainer).scopes.open if isinstance(each, HookScope)]
    if not scopes:
        return ""
    known = set(map(id, carried))
    is_in_epoch = trainer.place.progress.batches > 0
    names = {
        f"{name_of(each.context)} on {each.channel}"
        for each in scopes
        if each.channel == ("on_step" if is_in_epoch else "on_epoch")
        and each.acts_on_way_out
        and _reaches_state(each.context, trainer, known)
    }
    if not names:
        return ""
    return (
        f"{some(names)} may change a state on its way out, which comes after the save: do that "
        "before the `yield`, or at STEP_COMPLETED or EPOCH_COMPLETED"
    )


def _reaches_state(context: Any, trainer: TrainingEngine, known: set[int]) -> bool:
    for _, each in ObjectSearch({"context": context}, _MAX_OBJECTS, [trainer, trainer.state]):
        if id(each) in known or issubclass(type(each), _STATES):
            return True
        is_users = type(each) is FunctionType and not is_of_library(each)
        if is_users and not _OF_TRAINER.isdisjoint(_names_in(each.__code__)):
            return True
    return False


def _names_in(code: CodeType) -> set[str]:
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*map(_names_in, inner))
