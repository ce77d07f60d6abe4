"""Creates accelerators, reads their settings, and edits their lists of prepared objects.

The module uses these private members of Accelerate, and relies on the meaning given here:

- ``Accelerator._models``, ``_optimizers``, ``_dataloaders``: the objects that ``prepare`` of this
  accelerator has returned. Accelerate adds objects to these lists and removes none, until
  ``free_memory()`` replaces the lists with empty ones.
- ``Accelerator._custom_objects``: the objects given to ``register_for_checkpointing``, in the order
  of the calls.
- ``_is_accelerate_prepared``: True on each model, optimizer, scheduler and loader that ``prepare``
  returned; absent or False on all others.
- ``_stop_iteration``: an attribute of ``DataLoaderDispatcher``, the loader whose batches rank 0
  sends to all ranks. It is True if the iteration in progress has reached the end of the data.
- ``AcceleratorState._shared_state``: the state that all accelerators of a process share. Its entry
  ``_mixed_precision`` is the mixed precision of all these accelerators. The entry is absent before
  the first accelerator is created.

``tests/core/test_accelerators.py`` fails when Accelerate changes the meaning of a member.
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
    """Accumulation settings that Accelerate has while a short window is open.

    A window is the batches whose gradients are accumulated for one optimizer step. A short window
    has fewer batches than a full one, for example because the data ends. With these settings
    ``accelerator.backward`` divides the loss by the number of batches in the short window.

    Attributes:
        whole: the settings of a full window, which these settings replace.
        size: the number of batches in the short window.
    """

    def __init__(self, whole: dict[str, Any], size: int) -> None:
        super().__init__(whole, num_steps=size)
        self.whole = whole
        self.size = size


def full_window_settings(gradient_state: GradientState) -> dict[str, Any]:
    """Returns the settings of a full window, even while a ``ShortWindow`` replaces them."""
    settings: dict[str, Any] = gradient_state.plugin_kwargs
    while isinstance(settings, ShortWindow):
        settings = settings.whole
    return settings


def accelerator_or_default(accelerator: Accelerator | None) -> Accelerator:
    """Returns ``accelerator``, or a new accelerator if it is None.

    The new accelerator takes over the present accumulation settings, which all accelerators of a
    process share. A plain ``Accelerator()`` resets the accumulation to 1: if it is created for an
    evaluator, the trainer stops accumulating gradients.

    With several processes, this function also synchronizes ``ignite.distributed`` with the process
    group.

    Raises:
        TypeError: ``accelerator`` is not an Accelerator.
        ValueError: several processes were started, and Accelerate has not connected them.
    """
    if accelerator is not None and not isinstance(accelerator, Accelerator):
        raise TypeError(
            f"`accelerator` must be an accelerate.Accelerator, got {shown_type(accelerator)}: "
            "pass Accelerator(), or Accelerator(cpu=True) for the CPU"
        )
    if accelerator is None:
        accumulation = GradientState().plugin_kwargs
        plugin = GradientAccumulationPlugin(**{"num_steps": 1, **accumulation})
        accelerator = Accelerator(gradient_accumulation_plugin=plugin if accumulation else None)
    _check_connection(accelerator)
    _warn_about_ignored_settings(accelerator)
    if accelerator.num_processes > 1:
        # `sync` is collective, so it is called here, on all ranks. Otherwise Ignite calls it when a
        # process first uses `ignite.distributed`. If only rank 0 does so, for example in a logger,
        # rank 0 waits for the other ranks forever.
        idist.sync()
    return accelerator


def _check_connection(accelerator: Accelerator) -> None:
    """Raises a ValueError if each of several processes would train a model of its own.

    Ignite's metrics would be averaged over these models nevertheless, because torch's process
    group exists.
    """
    started = os.environ.get("WORLD_SIZE", "")  # set by torchrun, or by the script of a job
    if accelerator.num_processes == 1 and started.isdigit() and int(started) > 1:
        raise ValueError(
            f"`accelerator` must connect all processes, got one process, but WORLD_SIZE is "
            f"{started}: each process would train a model of its own. Accelerate connects "
            "processes without GPUs only if it is told to use the CPU: pass "
            "accelerator=Accelerator(cpu=True), or use a machine with GPUs"
        )


def _warn_about_ignored_settings(accelerator: Accelerator) -> None:
    """Warns about settings that Accelerate ignores without a warning of its own."""
    # An Accelerator with an FSDP plugin sets this variable; `accelerate launch` can set it too.
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and is_data_parallel(accelerator):
        warn_once(
            "Accelerate ignores an FSDP plugin on this device: every process trains the whole model"
        )
    if accelerator.num_processes > 1:
        return
    requested = _requested_processes()
    if requested is not None and requested > 1:
        warn_once(
            f"`accelerate launch` was asked for {requested} processes and has started one, because "
            "it starts only one on the CPU of a single machine: start the processes with "
            f"torchrun --nproc_per_node {requested}"
        )


def _requested_processes() -> int | None:
    """Returns the ``--num_processes`` given to ``accelerate launch``; None if none was given."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:  # a variable that the launcher sets
        return None
    # The launcher is the parent of this process; its command line has the number.
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return None
    # "accelerate launch", "accelerate-launch" or "python -m accelerate.commands.launch"
    commands = [n for n, w in enumerate(words) if re.search(r"(^|accelerate\S*)launch(\.py)?$", w)]
    if not commands:  # the launcher has started another program, which has started this process
        return None
    # The launcher's own parser knows where the options of the launcher end and those of the script
    # begin.
    from accelerate.commands.launch import launch_command_parser

    options, _ = launch_command_parser().parse_known_args(words[commands[0] + 1 :])
    requested: int | None = options.num_processes
    return requested


def is_data_parallel(accelerator: Accelerator) -> bool:
    """Returns whether every process has the whole model, as with DDP. FSDP splits the model."""
    distributed_type: str = accelerator.distributed_type.value
    # DDP has one type for each kind of device: MULTI_GPU, MULTI_CPU, MULTI_NPU, …
    return distributed_type == DistributedType.NO.value or distributed_type.startswith("MULTI_")


def broadcasts_buffers(accelerator: Accelerator) -> bool:
    """Returns whether DDP copies the buffers of rank 0 to every rank, as DDP does by default."""
    handler = accelerator.ddp_handler
    return handler is None or handler.broadcast_buffers


def registered_objects(accelerator: Accelerator) -> list[Any]:
    """Returns the objects given to ``accelerator.register_for_checkpointing``, in order."""
    objects: list[Any] = accelerator._custom_objects
    return objects


def collective_timeout(accelerator: Accelerator) -> timedelta | None:
    """Returns the user's timeout for collectives; None if torch's default applies."""
    handler = accelerator.init_handler
    timeout: timedelta | None = None if handler is None else handler.timeout
    return timeout


def prepared_models(accelerator: Accelerator) -> list[torch.nn.Module]:
    """Returns the models that ``accelerator.prepare`` has returned, with their wrappers."""
    return list(accelerator._models)


def prepare_for_owner(
    owner: object, accelerator: Accelerator, prepare: Callable[..., Any], *things: Any
) -> Any:
    """Returns ``prepare(*things)``, and makes ``owner`` an owner of the prepared objects.

    ``prepare`` adds the prepared objects to lists of the accelerator. Without owners, the objects
    would stay on the lists until ``free_memory()``, and the models of all trainers that have used
    the accelerator would stay in memory. An object with owners leaves the lists when all its owners
    have been garbage-collected. Objects that a user has prepared get no owner, and stay.

    Args:
        owner: the object that uses the prepared objects, for example an ``OptimizerStep``. The
            objects on the lists must not refer to ``owner``, because they would keep it alive.
        accelerator: the accelerator that has the lists.
        prepare: ``accelerator.prepare``, or a method for one kind of object, such as
            ``accelerator.prepare_optimizer``.
        things: the arguments of ``prepare``.
    """
    before = _ListsSnapshot(accelerator)
    prepared = prepare(*things)
    results = {*map(id, prepared if isinstance(prepared, tuple) else (prepared,))}
    for thing in _listed_objects(accelerator):
        # A result that was on the lists before may have owners already: `owner` is added to them.
        if id(thing) in results or thing not in before:
            _add_owner(owner, accelerator, thing, is_new=thing not in before)
    return prepared


@contextmanager
def temporarily_listed(accelerator: Accelerator) -> Iterator[None]:
    """Restores the lists of an accelerator after the body, by removing what the body has added."""
    before = _ListsSnapshot(accelerator)
    try:
        yield
    finally:
        for thing in before.added_since():
            _remove_from_lists(accelerator, thing)


def add_loader_owner(owner: object, accelerator: Accelerator, loader: Any) -> None:
    """Adds an owner of a prepared loader, and puts the loader on the accelerator's list.

    See ``prepare_for_owner`` for owners.
    """
    is_new = loader not in _ListsSnapshot(accelerator)
    if is_new:
        accelerator._dataloaders = [*accelerator._dataloaders, loader]
    _add_owner(owner, accelerator, loader, is_new=is_new)


def remove_loader_owner(owner: object, accelerator: Accelerator, loader: Any) -> None:
    """Removes an owner of a loader. A loader without owners leaves the accelerator's list."""
    ownership = _ownership_of(accelerator, loader)
    if ownership is not None:
        ownership.owners = [each for each in ownership.owners if each() is not owner]
        _remove_ownerless(weakref.ref(accelerator))


class _ListsSnapshot:
    """The objects that were on the lists of an accelerator when the snapshot was made.

    The objects are compared by identity, because a module may define its own ``__eq__``. The
    snapshot keeps the objects alive, because Python may give the identity of a freed object to a
    new one.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._things = {id(each): each for each in _listed_objects(accelerator)}

    def __contains__(self, thing: object) -> bool:
        return id(thing) in self._things

    def added_since(self) -> list[Any]:
        """Returns the objects that were added to the lists after the snapshot."""
        return [each for each in _listed_objects(self._accelerator) if each not in self]


class _Ownership:
    """The owners of an object on an accelerator's lists. All references are weak."""

    def __init__(self, thing: Any) -> None:
        self.thing = weakref.ref(thing)
        self.owners: list[weakref.ref[object]] = []

    def has_ended(self) -> bool:
        """Returns whether all owners have been garbage-collected."""
        return all(each() is None for each in self.owners)


# The ownerships of each accelerator, by the identity of the object that is owned. The object itself
# cannot be the key, because a module may define its own ``__eq__``.
_ownerships: "weakref.WeakKeyDictionary[Accelerator, dict[int, _Ownership]]" = (
    weakref.WeakKeyDictionary()
)


def _listed_objects(accelerator: Accelerator) -> list[Any]:
    return [each for name in _LISTS for each in getattr(accelerator, name)]


def _ownership_of(accelerator: Accelerator, thing: Any) -> _Ownership | None:
    ownership = _ownerships.get(accelerator, {}).get(id(thing))
    # The entry may be that of a freed object, whose identity Python has given to `thing`.
    return ownership if ownership is not None and ownership.thing() is thing else None


def _add_owner(owner: object, accelerator: Accelerator, thing: Any, *, is_new: bool) -> None:
    """Adds an owner of an object on the lists, unless a user has put the object there.

    ``is_new`` is True if this package has just put the object on the lists. If an object is neither
    new nor owned, a user has put it there.
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

    As the callback of weak references, this function may be called at any time, even in the middle
    of another call. So each line also works if another call has just removed an entry.
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
    for name in _LISTS:
        things = getattr(accelerator, name)
        if any(each is thing for each in things):
            # The list is replaced, because Accelerate may be iterating over the present list.
            setattr(accelerator, name, [each for each in things if each is not thing])


def is_prepared(obj: object) -> bool:
    """Returns whether an accelerator has prepared ``obj``."""
    return bool(getattr(obj, "_is_accelerate_prepared", False))


def shared_mixed_precision() -> str | None:
    """Returns the mixed precision of this process's accelerators; None before the first one."""
    precision: str | None = AcceleratorState._shared_state.get("_mixed_precision")
    return precision
