"""Accelerators: the default one, agreement of processes, and members that Accelerate keeps private.

The private members used here, and what they are taken to mean:

- ``Accelerator._models``, ``_optimizers``, ``_dataloaders``: what was prepared with this
  accelerator, as ``prepare`` returned it. Accelerate adds to these lists; only ``free_memory()``,
  which begins new ones, takes anything off them.
- ``Accelerator._custom_objects``: the objects given to ``register_for_checkpointing``, in order.
- ``_is_accelerate_prepared``: True on each model, optimizer, scheduler and loader that ``prepare``
  returned; missing or False on all others.
- ``_stop_iteration``, on a loader that dispatches its batches: whether the iteration in progress
  has met the end of the data.
- ``AcceleratorState._shared_state``: what the accelerators of a process share; its entry
  ``_mixed_precision`` is their precision, and is missing before the first of them is made.

``tests/core/test_accelerators.py`` fails when one of them changes its meaning.
"""

import functools
import os
import re
import weakref
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import ignite.distributed as idist
import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.state import GradientState
from accelerate.utils import DistributedType
from accelerate.utils import GradientAccumulationPlugin

from ignite_hooks.core.rules import shown_type
from ignite_hooks.core.warn_once import warn_once

__all__ = [
    "ITERATION_FLAGS",
    "ShortWindow",
    "accelerator_or_default",
    "broadcasts_buffers",
    "is_data_parallel",
    "is_prepared",
    "list_loader",
    "prepared_for",
    "prepared_models",
    "registered_objects",
    "shared_mixed_precision",
    "timeout_of",
    "unlist_loader",
    "unlisted",
    "whole_accumulation",
]

_LISTS = ("_models", "_optimizers", "_dataloaders")

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
            f"`accelerator` must be an accelerate.Accelerator, got {shown_type(accelerator)}: "
            "pass Accelerator(cpu=True) for the CPU, or leave it out"
        )
    if accelerator is None:
        accumulation = GradientState().plugin_kwargs
        plugin = GradientAccumulationPlugin(**{"num_steps": 1, **accumulation})
        accelerator = Accelerator(gradient_accumulation_plugin=plugin if accumulation else None)
    _warn_of_ignored_settings(accelerator)
    if accelerator.num_processes > 1:
        # Collective, so here, where all processes are: later a logger on one of them would hang.
        idist.sync()
    return accelerator


def _warn_of_ignored_settings(accelerator: Accelerator) -> None:
    """Warns of what Accelerate was asked for and leaves out without a word."""
    # Set by Accelerate if it is given a plugin, and by its launcher.
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and is_data_parallel(accelerator):
        warn_once(
            "Accelerate ignores an FSDP plugin on this device: every process trains the whole model"
        )
    asked = _asked_processes() if accelerator.num_processes == 1 else None
    if asked is not None and asked > 1:
        warn_once(
            f"`accelerate launch` was asked for {asked} processes and has started one, as it does "
            f"on the CPU of one machine: start them with torchrun --nproc_per_node {asked}"
        )


def _asked_processes() -> int | None:
    """Returns the number of processes that Accelerate's launcher was asked for, if it was used."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:  # which the launcher sets
        return None
    try:
        command = " ".join(psutil.Process(os.getppid()).cmdline())
    except psutil.Error:
        return None
    found = re.search(r"accelerate.*launch.* --num[_-]processes[ =](\d+)", command)
    return int(found[1]) if found else None


def is_data_parallel(accelerator: Accelerator) -> bool:
    """Returns whether every process has the whole model; it is split otherwise."""
    kind: str = accelerator.distributed_type.value
    return kind == DistributedType.NO.value or kind.startswith("MULTI_")


def broadcasts_buffers(accelerator: Accelerator) -> bool:
    """Returns whether every rank works with the buffers of rank 0, as DDP does by default."""
    handler = accelerator.ddp_handler
    return handler is None or handler.broadcast_buffers


def registered_objects(accelerator: Accelerator) -> list[Any]:
    """Returns what was given to ``accelerator.register_for_checkpointing``, in that order."""
    objects: list[Any] = accelerator._custom_objects
    return objects


def timeout_of(accelerator: Accelerator) -> timedelta | None:
    """Returns how long a collective may take, as the user gave it; None for torch's default."""
    handler = accelerator.init_handler
    timeout: timedelta | None = None if handler is None else handler.timeout
    return timeout


def prepared_models(accelerator: Accelerator) -> list[torch.nn.Module]:
    """Returns the models that were prepared with ``accelerator``, as it prepared them."""
    return list(accelerator._models)


def prepared_for(
    owner: object, accelerator: Accelerator, prepare: Callable[..., Any], *things: Any
) -> Any:
    """Returns ``prepare(*things)``, a call that adds to the lists of an accelerator.

    What it adds there is taken off when ``owner`` is gone, and every other owner of the same
    object. What a user has prepared stays.

    Args:
        owner: what uses the objects. Nothing on these lists may refer to it.
        accelerator: whose lists they are.
        prepare: ``accelerator.prepare``, or one of its parts.
        things: its arguments.
    """
    before = _Listed(accelerator)
    prepared = prepare(*things)
    results = {*map(id, prepared if isinstance(prepared, tuple) else (prepared,))}
    for thing in _listed(accelerator):
        if id(thing) in results or not before.has(thing):
            _lend(owner, accelerator, thing, is_new=not before.has(thing))
    return prepared


@contextmanager
def unlisted(accelerator: Accelerator) -> Iterator[None]:
    """What the body adds to the lists of an accelerator is taken off them after it."""
    before = _Listed(accelerator)
    try:
        yield
    finally:
        for thing in before.added():
            _take_off(accelerator, thing)


def list_loader(owner: object, accelerator: Accelerator, loader: Any) -> None:
    """Has a prepared loader on the accelerator's list, at least as long as ``owner`` is there."""
    is_new = not _Listed(accelerator).has(loader)
    if is_new:
        accelerator._dataloaders = [*accelerator._dataloaders, loader]
    _lend(owner, accelerator, loader, is_new=is_new)


def unlist_loader(owner: object, accelerator: Accelerator, loader: Any) -> None:
    """Takes a loader off the list if it is there for ``owner`` alone."""
    loan = _loan_of(accelerator, loader)
    if loan is not None:
        loan.owners = [each for each in loan.owners if each() is not owner]
        _settle(weakref.ref(accelerator))


class _Listed:
    """What was on the lists of an accelerator at one time, all of which is kept."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._things = {id(each): each for each in _listed(accelerator)}

    def has(self, thing: object) -> bool:
        """Returns whether ``thing`` was among it."""
        return id(thing) in self._things

    def added(self) -> list[Any]:
        """Returns what has come since."""
        return [each for each in _listed(self._accelerator) if not self.has(each)]


class _Loan:
    """An object that is on an accelerator's lists for some owners, none of which it keeps."""

    def __init__(self, thing: Any) -> None:
        self.thing = weakref.ref(thing)
        self.owners: list[weakref.ref[object]] = []

    def is_over(self) -> bool:
        """Returns whether all owners are gone."""
        return all(each() is None for each in self.owners)


# By identity: a module may define what equality is.
_loans: "weakref.WeakKeyDictionary[Accelerator, dict[int, _Loan]]" = weakref.WeakKeyDictionary()


def _listed(accelerator: Accelerator) -> list[Any]:
    return [each for name in _LISTS for each in getattr(accelerator, name)]


def _loan_of(accelerator: Accelerator, thing: Any) -> _Loan | None:
    loan = _loans.get(accelerator, {}).get(id(thing))
    return loan if loan is not None and loan.thing() is thing else None


def _lend(owner: object, accelerator: Accelerator, thing: Any, *, is_new: bool) -> None:
    """Notes an owner of an object that is ours; what was there before, unlent, is a user's."""
    loan = _loan_of(accelerator, thing)
    if loan is None:
        if not is_new:
            return
        loan = _loans.setdefault(accelerator, {})[id(thing)] = _Loan(thing)
    if all(each() is not owner for each in loan.owners):
        settle = functools.partial(_settle, weakref.ref(accelerator))
        loan.owners.append(weakref.ref(owner, settle))


def _settle(of_accelerator: "weakref.ref[Accelerator]", owner: object = None) -> None:
    """Takes off what no owner is left of. It may be called by any garbage collection."""
    accelerator = of_accelerator()
    if accelerator is None:
        return
    loans = _loans.get(accelerator, {})
    for key in list(loans):
        loan = loans.get(key)
        if loan is not None and loan.is_over():
            loans.pop(key, None)
            _take_off(accelerator, loan.thing())


def _take_off(accelerator: Accelerator, thing: Any) -> None:
    """Replaces the lists: Accelerate may be going through one of them now."""
    for name in _LISTS:
        things = getattr(accelerator, name)
        if any(each is thing for each in things):
            setattr(accelerator, name, [each for each in things if each is not thing])


def is_prepared(obj: object) -> bool:
    """Returns whether an accelerator has prepared ``obj``."""
    return bool(getattr(obj, "_is_accelerate_prepared", False))


def shared_mixed_precision() -> str | None:
    """Returns the mixed precision of this process's accelerators, or None before the first."""
    precision: str | None = AcceleratorState._shared_state.get("_mixed_precision")
    return precision
