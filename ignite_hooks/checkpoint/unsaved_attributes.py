"""Finds attributes of modules and optimizers that a run changes and no checkpoint saves.

A ``state_dict`` has the parameters and the persistent buffers of a module. It does not have other
attributes, such as a counter that each forward pass changes, nor buffers with ``persistent=False``.
After a resume, these attributes and buffers have their initial values again, and the report of the
resume names them. This file examines the model, loss functions, modules that ``batch_processor``
calls, modules that handlers hold, and optimizers of a user's class. A module that customizes its
saving, for example by ``get_extra_state``, is assumed to save all that it needs.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from ignite_hooks.checkpoint.report import summarize_names
from ignite_hooks.checkpoint.unsaved import UNKNOWN
from ignite_hooks.checkpoint.unsaved import digest_of_value
from ignite_hooks.checkpoint.unsaved import stored_by_user
from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.object_graph import is_library_code
from ignite_hooks.core.torch_modules import attributes_of_optimizer
from ignite_hooks.core.torch_modules import attributes_outside_state
from ignite_hooks.core.torch_modules import has_custom_state
from ignite_hooks.core.torch_modules import tensors_in
from ignite_hooks.core.torch_modules import unsaved_buffers
from ignite_hooks.core.training_engine import TrainingEngine

__all__ = ["record_initial_attributes", "unsaved_attributes"]

# The path of an object that a handler holds begins with this prefix.
_HANDLER_PREFIX = "handler "
# What the user can do about changed attributes of a module. The text ends the message about them.
_MODULE_REMEDY = (
    "register tensors as buffers, and return other values from get_extra_state(); an attribute "
    "that each forward() sets before reading it need not be saved"
)
# Maps a part of the ResumeReport to the remedy in the message about this part.
_REMEDIES = {
    "model": _MODULE_REMEDY,
    "handlers": _MODULE_REMEDY,
    "optimizer": "keep the value in `state` or in a group of parameters, which are saved",
}
# The path of an object that has attributes, and a function that returns the object.
Holder = tuple[str, Callable[[], Any]]
# Maps the path of an object to a mapping from the names of its unsaved attributes to digests.
Values = dict[str, dict[str, Any]]


def record_initial_attributes(trainer: TrainingEngine) -> None:
    """Records the present values of the unsaved attributes as their initial values.

    If the initial values of an object were recorded earlier in this process, they are kept.
    """
    # Reading `generators` searches the objects of the run. _holders() uses the objects found.
    _ = trainer.generators
    initial = _initial_values(trainer)
    for path, values in _current_values(trainer):
        initial.setdefault(path, values)


def unsaved_attributes(trainer: TrainingEngine) -> dict[str, str]:
    """Returns messages about unsaved attributes that have changed since they were recorded.

    The result maps the name of a part of the ``ResumeReport`` to the message. This function
    examines the objects that the last search for random generators has found.
    """
    initial = _initial_values(trainer)
    changed: dict[str, list[str]] = {part: [] for part in _REMEDIES}
    for path, values in _current_values(trainer):
        before = initial.setdefault(path, values)
        holder = path.removeprefix(_HANDLER_PREFIX)
        part = "handlers" if holder != path else "model"
        if path.partition(".")[0] == "optimizer":
            part = "optimizer"
        changed[part] += [
            f"{holder}.{name}" if name else holder
            for name, value in values.items()
            if before.get(name) != value or value == UNKNOWN
        ]
    return {
        part: f"in no state_dict(), and changed: {summarize_names(paths)}; {_REMEDIES[part]}"
        for part, paths in changed.items()
        if paths
    }


def _initial_values(trainer: TrainingEngine) -> Values:
    """Returns the digests of the initial values, to which callers add those of new objects."""
    initial: Values = engine_storage(trainer).setdefault("attributes_at_beginning", {})
    return initial


def _current_values(trainer: TrainingEngine) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the path of each object and a mapping from its unsaved attributes to digests."""
    saved_storages: set[int] = set()
    holders = _holders(trainer)
    for path, get in holders:
        attributes = _unsaved_values(get())
        # An attribute may be a tensor that shares its storage with a tensor in a state. Such an
        # attribute counts as saved. The storages in the states are looked up only if an attribute
        # is a tensor, which is rare.
        if any(_storage_pointers(value) for value in attributes.values()) and not saved_storages:
            saved_storages = _saved_storages(trainer, holders)
        yield (
            path,
            {
                name: digest_of_value(value)
                for name, value in attributes.items()
                if not _is_saved(saved_storages, value)
            },
        )


def _holders(trainer: TrainingEngine) -> list[Holder]:
    """Returns the objects whose unsaved attributes are compared with their initial values.

    The result is kept until the next search for random generators.
    """
    searched = trainer.searched_objects
    cached = engine_storage(trainer).get("attribute_holders")
    if cached is None or cached[0] is not searched:
        cached = engine_storage(trainer)["attribute_holders"] = (
            searched,
            list(_select_holders(searched)),
        )
    holders: list[Holder] = cached[1]
    return holders


def _select_holders(searched: Mapping[str, Callable[[], Any]]) -> Iterator[Holder]:
    """Yields modules, the optimizer, and the objects within them.

    A module or optimizer that customizes its saving is left out, with the objects within it.

    Args:
        searched: maps the path of an object to a function that returns the object.
    """
    # Maps the path of a module or an optimizer to True if the object customizes its saving.
    has_custom_state_at: dict[str, bool] = {}
    for path, get in searched.items():
        obj, root = get(), path.partition(".")[0]
        if root == "scheduler":  # the state_dict() of a scheduler has its attributes
            continue
        if issubclass(type(obj), torch.nn.Module):
            if root.startswith(_HANDLER_PREFIX) and not tensors_in(obj):
                # This module has no tensors. `unsaved.py` compares it like any object of a handler.
                continue
            has_custom_state_at[path] = has_custom_state(obj)
        elif issubclass(type(obj), Optimizer):
            has_custom_state_at[path] = type(obj).state_dict is not Optimizer.state_dict
        # A module or an optimizer is compared if it does not customize its saving. Any other object
        # is compared if the innermost module or optimizer around it is compared.
        owner = next(
            (above for above in _path_and_parents(path) if above in has_custom_state_at), None
        )
        if owner is not None and not has_custom_state_at[owner]:
            yield path, get


def _path_and_parents(path: str) -> Iterator[str]:
    """Yields the path of an object, then the paths of the objects around it, innermost first."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _unsaved_values(obj: Any) -> dict[str, Any]:
    """Returns the attributes of an object that its ``state_dict`` does not have, by name.

    If the object is a module of a library, the result has only its non-persistent buffers. If it is
    an optimizer of a library, the result is empty.
    """
    cls = type(obj)
    if issubclass(cls, torch.nn.Module):
        is_user_class = not is_library_code(cls)
        return attributes_outside_state(obj) if is_user_class else dict(unsaved_buffers(obj))
    if issubclass(cls, Optimizer):
        return {} if is_library_code(cls) else attributes_of_optimizer(obj)
    return dict(stored_by_user(obj) or ())


def _saved_storages(trainer: TrainingEngine, holders: list[Holder]) -> set[int]:
    """Returns the addresses of the storages of all tensors in the states of modules."""
    handler_modules = [get() for path, get in holders if path.startswith(_HANDLER_PREFIX)]
    modules = [each for each in handler_modules if issubclass(type(each), torch.nn.Module)]
    states = [module.state_dict() for module in (*trainer.modules.values(), *modules)]
    return {
        pointer
        for state in states
        for each in state.values()
        for pointer in _storage_pointers(each)
    }


def _is_saved(saved_storages: set[int], value: Any) -> bool:
    """Returns whether a value is a tensor, or a list of tensors, whose storages are all saved."""
    pointers = _storage_pointers(value)
    return bool(pointers) and saved_storages.issuperset(pointers)


def _storage_pointers(value: Any) -> list[int]:
    """Returns the addresses of the storages of a tensor, or of the tensors in a list.

    For any other value, the result is empty.
    """
    if isinstance(value, list | tuple):
        return [pointer for each in value for pointer in _storage_pointers(each)]
    is_dense = isinstance(value, torch.Tensor) and value.layout == torch.strided
    return [value.untyped_storage().data_ptr()] if is_dense and not value.is_meta else []
