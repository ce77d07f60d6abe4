"""What modules and the optimizer keep outside their states: a counter, a memory, a cached mask.

A ``state_dict`` has the parameters and the persistent buffers of a module. An attribute that a
forward pass changes, or a buffer with ``persistent=False``, begins anew in the process that
resumes, and the report names it. So does that of a loss function, of the modules that
``batch_processor`` calls or handlers hold, and of an optimizer of a user's class. A module that
saves in a way of its own, by ``get_extra_state`` for instance, is taken to save all that it needs.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from ignite_hooks.checkpoint.report import some
from ignite_hooks.checkpoint.unsaved import UNKNOWN
from ignite_hooks.checkpoint.unsaved import digest_of_value
from ignite_hooks.checkpoint.unsaved import stored_by_user
from ignite_hooks.core.engine import belongings
from ignite_hooks.core.object_graph import is_of_library
from ignite_hooks.core.torch_modules import attributes_beside_state
from ignite_hooks.core.torch_modules import attributes_of_optimizer
from ignite_hooks.core.torch_modules import has_own_state
from ignite_hooks.core.torch_modules import tensors_in
from ignite_hooks.core.torch_modules import unsaved_buffers
from ignite_hooks.core.training_engine import TrainingEngine

__all__ = ["note_attributes", "unsaved_attributes"]

_HANDLER = "handler "
_OF_MODULES = (
    "register tensors as buffers, and return other values from get_extra_state(); what each "
    "forward() sets before it is read needs nothing"
)
_REMEDIES = {
    "model": _OF_MODULES,
    "handlers": _OF_MODULES,
    "optimizer": "keep the value in `state` or in a group of parameters, which are saved",
}
Holder = tuple[str, Callable[[], Any]]
Values = dict[str, dict[str, Any]]


def note_attributes(trainer: TrainingEngine) -> None:
    """Notes the values that a run begins with, of what was not noted in this process yet."""
    _ = trainer.generators  # searches what is there now
    noted = _noted(trainer)
    for path, values in _values(trainer):
        noted.setdefault(path, values)


def unsaved_attributes(trainer: TrainingEngine) -> dict[str, str]:
    """Returns what has changed and is in no state, by the part of the report that it belongs to.

    Looked at are the objects of the last search for ``trainer.generators``, which a save makes.
    """
    noted = _noted(trainer)
    changed: dict[str, list[str]] = {part: [] for part in _REMEDIES}
    for path, values in _values(trainer):
        before = noted.setdefault(path, values)
        holder = path.removeprefix(_HANDLER)
        part = "handlers" if holder != path else "model"
        if path.partition(".")[0] == "optimizer":
            part = "optimizer"
        changed[part] += [
            f"{holder}.{name}" if name else holder
            for name, value in values.items()
            if before.get(name) != value or value == UNKNOWN
        ]
    return {
        part: f"in no state_dict(), and changed: {some(paths)}; {_REMEDIES[part]}"
        for part, paths in changed.items()
        if paths
    }


def _noted(trainer: TrainingEngine) -> Values:
    noted: Values = belongings(trainer).setdefault("attributes_at_beginning", {})
    return noted


def _values(trainer: TrainingEngine) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields what can be compared of each object: a path, and digests by name."""
    memory: set[int] = set()
    holders = _holders(trainer)
    for path, get in holders:
        attributes = _attributes(get())
        if any(_tensors_in(value) for value in attributes.values()) and not memory:
            memory = _memory_of_states(trainer, holders)
        yield (
            path,
            {
                name: digest_of_value(value)
                for name, value in attributes.items()
                if not _is_in(memory, value)
            },
        )


def _holders(trainer: TrainingEngine) -> list[Holder]:
    """Returns the objects to look at, chosen again only if the search has found others."""
    searched = trainer.searched
    known = belongings(trainer).get("attribute_holders")
    if known is None or known[0] is not searched:
        known = belongings(trainer)["attribute_holders"] = searched, list(_chosen(searched))
    holders: list[Holder] = known[1]
    return holders


def _chosen(searched: Mapping[str, Callable[[], Any]]) -> Iterator[Holder]:
    """Yields the modules, and what of users' classes is within one, or within the optimizer."""
    outer: dict[str, bool] = {}  # modules, and whether they save in a way of their own
    for path, get in searched.items():
        thing, root = get(), path.partition(".")[0]
        if root == "scheduler":
            continue
        if issubclass(type(thing), torch.nn.Module):
            if root.startswith(_HANDLER) and not tensors_in(thing):
                continue  # it is compared as any object of a handler is
            outer[path] = has_own_state(thing)
        elif issubclass(type(thing), Optimizer):
            outer[path] = type(thing).state_dict is not Optimizer.state_dict
        owner = next((above for above in _upwards(path) if above in outer), None)
        if owner is not None and not outer[owner]:
            yield path, get


def _upwards(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]


def _attributes(thing: Any) -> dict[str, Any]:
    """Returns what an object stores and no state has, by name."""
    kind = type(thing)
    if issubclass(kind, torch.nn.Module):
        is_users = not is_of_library(kind)
        return attributes_beside_state(thing) if is_users else dict(unsaved_buffers(thing))
    if issubclass(kind, Optimizer):
        return {} if is_of_library(kind) else attributes_of_optimizer(thing)
    return dict(stored_by_user(thing) or ())


def _memory_of_states(trainer: TrainingEngine, holders: list[Holder]) -> set[int]:
    """Returns where the tensors are that the states of modules have."""
    of_handlers = [get() for path, get in holders if path.startswith(_HANDLER)]
    modules = [each for each in of_handlers if issubclass(type(each), torch.nn.Module)]
    states = [module.state_dict() for module in (*trainer.modules.values(), *modules)]
    return {place for state in states for each in state.values() for place in _tensors_in(each)}


def _is_in(memory: set[int], value: Any) -> bool:
    """Returns whether a value is a tensor, or some tensors, that a state has."""
    places = _tensors_in(value)
    return bool(places) and memory.issuperset(places)


def _tensors_in(value: Any) -> list[int]:
    """Returns where a tensor is, or where those of a list are."""
    if isinstance(value, list | tuple):
        return [place for each in value for place in _tensors_in(each)]
    is_dense = isinstance(value, torch.Tensor) and value.layout == torch.strided
    return [value.untyped_storage().data_ptr()] if is_dense and not value.is_meta else []
