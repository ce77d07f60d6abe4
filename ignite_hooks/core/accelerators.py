"""Accelerators: the default one, their settings, and all uses of Accelerate's private members.

The private members, and what they are taken to mean:

- ``Accelerator._models``, ``_optimizers``, ``_dataloaders``: what was prepared with this
  accelerator, as ``prepare`` returned it. Accelerate adds to these lists; only ``free_memory()``,
  which begins new ones, takes anything off them.
- ``Accelerator._custom_objects``: the objects given to ``register_for_checkpointing``, in order.
- ``_is_accelerate_prepared``: True on each model, optimizer, scheduler and loader that ``prepare``
  returned; absent or False on all others.
- ``_stop_iteration``, on a loader that dispatches its batches: whether the iteration in progress
  has reached the end of the data.
- ``AcceleratorState._shared_state``: the state that all accelerators of a process share; its entry
  ``_mixed_precision`` is their precision, and is absent before the first accelerator is created.

``tests/core/test_accelerators.py`` fails when Accelerate changes what one means.
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
    "add_loader_owner",
    "broadcasts_buffers",
    "collective_timeout",
    "full_window_settings",
    "is_data_parallel",
    "is_prepared",
    "prepare_for_owner",
    "prepared_models",
    "registered_objects",
    "remove_loader_owner",
    "shared_mixed_precision",
    "temporarily_listed",
]

_LISTS = ("_models", "_optimizers", "_dataloaders")

ITERATION_FLAGS = ("end_of_dataloader", "remainder", "iteration", "_stop_iteration")
"""Attributes of a prepared loader that describe its current iteration over the data."""


class ShortWindow(dict[str, Any]):
    """Accelerate's accumulation settings while a window of fewer batches is open.

    They replace the settings of a full window, which are kept as ``whole``, so that
    ``accelerator.backward`` divides the loss by ``size``.
    """

    def __init__(self, whole: dict[str, Any], size: int) -> None:
        super().__init__(whole, num_steps=size)
        self.whole = whole
        self.size = size


def full_window_settings(gradient_state: GradientState) -> dict[str, Any]:
    """Returns the accumulation settings of a full window, also while a short one is open."""
    settings: dict[str, Any] = gradient_state.plugin_kwargs
    while isinstance(settings, ShortWindow):
        settings = settings.whole
    return settings


def accelerator_or_default(accelerator: Accelerator | None) -> Accelerator:
    """Returns ``accelerator``, or a new one with the settings of the existing ones.

    All accelerators of a process share one state, and a plain ``Accelerator()`` resets its
    accumulation to 1: created for an evaluator, it would end the accumulation of a trainer. With
    several processes, ``ignite.distributed`` is synchronized with the process group too.

    Raises:
        TypeError: ``accelerator`` is not an Accelerator.
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
    _warn_about_ignored_settings(accelerator)
    if accelerator.num_processes > 1:
        # Ignite would otherwise do this on first use. It is collective, so that a logger that only
        # one process has would wait for the others for ever. Here all processes take part.
        idist.sync()
    return accelerator


def _warn_about_ignored_settings(accelerator: Accelerator) -> None:
    """Warns about settings that Accelerate was given and ignores without a warning."""
    # Accelerate sets this variable if it is given an FSDP plugin; its launcher sets it too.
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and is_data_parallel(accelerator):
        warn_once(
            "Accelerate ignores an FSDP plugin on this device: every process trains the whole model"
        )
    requested = _requested_processes() if accelerator.num_processes == 1 else None
    if requested is not None and requested > 1:
        warn_once(
            f"`accelerate launch` was asked for {requested} processes and has started one, as it "
            "does on the CPU of one machine: start them with torchrun --nproc_per_node "
            f"{requested}"
        )


def _requested_processes() -> int | None:
    """Returns the ``--num_processes`` of ``accelerate launch``, or None if it was not used."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:  # a variable that the launcher sets
        return None
    # The launcher is the parent of this process; its command line has the number.
    try:
        command = " ".join(psutil.Process(os.getppid()).cmdline())
    except psutil.Error:
        return None
    found = re.search(r"accelerate.*launch.* --num[_-]processes[ =](\d+)", command)
    return int(found[1]) if found else None


def is_data_parallel(accelerator: Accelerator) -> bool:
    """Returns whether every process has the whole model, as with DDP; FSDP and others split it."""
    distributed_type: str = accelerator.distributed_type.value
    # MULTI_GPU, MULTI_CPU, MULTI_NPU, …: one for each kind of device, all of them DDP.
    return distributed_type == DistributedType.NO.value or distributed_type.startswith("MULTI_")


def broadcasts_buffers(accelerator: Accelerator) -> bool:
    """Returns whether DDP copies the buffers of rank 0 to every rank, which is its default."""
    handler = accelerator.ddp_handler
    return handler is None or handler.broadcast_buffers


def registered_objects(accelerator: Accelerator) -> list[Any]:
    """Returns the objects given to ``accelerator.register_for_checkpointing``, in order."""
    objects: list[Any] = accelerator._custom_objects
    return objects


def collective_timeout(accelerator: Accelerator) -> timedelta | None:
    """Returns the timeout of collectives that the user set; None for torch's default."""
    handler = accelerator.init_handler
    timeout: timedelta | None = None if handler is None else handler.timeout
    return timeout


def prepared_models(accelerator: Accelerator) -> list[torch.nn.Module]:
    """Returns the models that ``accelerator.prepare`` has returned, with their wrappers."""
    return list(accelerator._models)


def prepare_for_owner(
    owner: object, accelerator: Accelerator, prepare: Callable[..., Any], *things: Any
) -> Any:
    """Returns ``prepare(*things)``, and ties what it adds to the accelerator's lists to ``owner``.

    Accelerate keeps the objects on these lists until ``free_memory()``, so that the models of all
    trainers with one accelerator would stay in memory. An object that this call adds is removed
    once ``owner`` and all other owners of the object are garbage-collected. Objects that a user has
    prepared stay.

    Args:
        owner: the user of the objects. No object on these lists may refer to it.
        accelerator: the accelerator that has the lists.
        prepare: ``accelerator.prepare``, or one of its parts.
        things: the arguments of ``prepare``.
    """
    before = _ListsSnapshot(accelerator)
    prepared = prepare(*things)
    results = {*map(id, prepared if isinstance(prepared, tuple) else (prepared,))}
    for thing in _listed_objects(accelerator):
        # Results that were there before may belong to another owner here: then both own them.
        if id(thing) in results or thing not in before:
            _add_owner(owner, accelerator, thing, is_new=thing not in before)
    return prepared


@contextmanager
def temporarily_listed(accelerator: Accelerator) -> Iterator[None]:
    """Removes what the body adds to the lists of an accelerator, after the body."""
    before = _ListsSnapshot(accelerator)
    try:
        yield
    finally:
        for thing in before.added_since():
            _remove_from_lists(accelerator, thing)


def add_loader_owner(owner: object, accelerator: Accelerator, loader: Any) -> None:
    """Adds a prepared loader to the accelerator's list, if it is not there, with an owner."""
    is_new = loader not in _ListsSnapshot(accelerator)
    if is_new:
        accelerator._dataloaders = [*accelerator._dataloaders, loader]
    _add_owner(owner, accelerator, loader, is_new=is_new)


def remove_loader_owner(owner: object, accelerator: Accelerator, loader: Any) -> None:
    """Removes an owner of a loader, and the loader from the list if it has no other owner."""
    ownership = _ownership_of(accelerator, loader)
    if ownership is not None:
        ownership.owners = [each for each in ownership.owners if each() is not owner]
        _remove_ownerless(weakref.ref(accelerator))


class _ListsSnapshot:
    """The objects that were on the lists of an accelerator when the snapshot was made.

    The objects are compared by identity, because a module may define equality differently. The
    snapshot keeps them alive, as the identity of one that is gone may become that of a new object.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._things = {id(each): each for each in _listed_objects(accelerator)}

    def __contains__(self, thing: object) -> bool:
        return id(thing) in self._things

    def added_since(self) -> list[Any]:
        """Returns the objects that were added since."""
        return [each for each in _listed_objects(self._accelerator) if each not in self]


class _Ownership:
    """The owners of an object on an accelerator's lists. It keeps neither owners nor object."""

    def __init__(self, thing: Any) -> None:
        self.thing = weakref.ref(thing)
        self.owners: list[weakref.ref[object]] = []

    def has_ended(self) -> bool:
        """Returns whether all owners are gone."""
        return all(each() is None for each in self.owners)


# By the identities of the objects: a module may define equality differently.
_ownerships: "weakref.WeakKeyDictionary[Accelerator, dict[int, _Ownership]]" = (
    weakref.WeakKeyDictionary()
)


def _listed_objects(accelerator: Accelerator) -> list[Any]:
    return [each for name in _LISTS for each in getattr(accelerator, name)]


def _ownership_of(accelerator: Accelerator, thing: Any) -> _Ownership | None:
    ownership = _ownerships.get(accelerator, {}).get(id(thing))
    # The identity may have been that of another object, which is gone.
    return ownership if ownership is not None and ownership.thing() is thing else None


def _add_owner(owner: object, accelerator: Accelerator, thing: Any, *, is_new: bool) -> None:
    """Adds an owner of an object on the lists, unless a user has put the object there.

    An object that was there before (``is_new`` is False) and has no owner is the user's.
    """
    ownership = _ownership_of(accelerator, thing)
    if ownership is None:
        if not is_new:
            return
        ownership = _ownerships.setdefault(accelerator, {})[id(thing)] = _Ownership(thing)
    if all(each() is not owner for each in ownership.owners):
        remove = functools.partial(_remove_ownerless, weakref.ref(accelerator))
        ownership.owners.append(weakref.ref(owner, remove))


def _remove_ownerless(accelerator_ref: "weakref.ref[Accelerator]", owner: object = None) -> None:
    """Removes the objects without owners from the lists of an accelerator.

    Any garbage collection may call this function, as the callback of a weak reference, and so in
    the middle of another call of it.
    """
    accelerator = accelerator_ref()
    if accelerator is None:
        return
    ownerships = _ownerships.get(accelerator, {})
    for key in list(ownerships):
        ownership = ownerships.get(key)
        if ownership is not None and ownership.has_ended():
            ownerships.pop(key, None)
            _remove_from_lists(accelerator, ownership.thing())


def _remove_from_lists(accelerator: Accelerator, thing: Any) -> None:
    """Removes an object from the lists of an accelerator."""
    for name in _LISTS:
        things = getattr(accelerator, name)
        if any(each is thing for each in things):
            # A new list: Accelerate may be iterating over the present one.
            setattr(accelerator, name, [each for each in things if each is not thing])


def is_prepared(obj: object) -> bool:
    """Returns whether an accelerator has prepared ``obj``."""
    return bool(getattr(obj, "_is_accelerate_prepared", False))


def shared_mixed_precision() -> str | None:
    """Returns the mixed precision of this process's accelerators; None before the first one."""
    precision: str | None = AcceleratorState._shared_state.get("_mixed_precision")
    return precision
