"""The state of one object that a checkpoint carries: how it is captured, and given back.

Most objects have ``state_dict`` and ``load_state_dict``, and are asked. Three kinds need more:

- a module is saved with its flags, as the model is, and with the names of those tensors that are
  views of the model's: Ignite's ``EMAHandler`` lets the buffers of its model be those of the model;
- schedulers of torch and Ignite may have functions in their states, which stay as they are;
- Ignite's ``EpochOutputStore`` has a state and no methods for it.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.handlers import Checkpoint
from ignite.handlers import DiskSaver
from ignite.handlers import EpochOutputStore
from ignite.handlers import ParamGroupScheduler
from ignite.handlers.param_scheduler import BaseParamScheduler
from torch.optim.lr_scheduler import LRScheduler

from ignite_hooks.checkpoint.contents import plain_part
from ignite_hooks.checkpoint.layout import TRAINER
from ignite_hooks.checkpoint.module_state import differences_of_module
from ignite_hooks.checkpoint.module_state import flags_of
from ignite_hooks.checkpoint.module_state import give_to_module
from ignite_hooks.checkpoint.plain_names import PlainNames
from ignite_hooks.core.training_engine import TrainingEngine

__all__ = ["Member", "has_module", "plain_state"]

_DATA = (bool, int, float, str, type(None), list, tuple, dict, torch.Tensor)
_SCHEDULERS = (LRScheduler, BaseParamScheduler, ParamGroupScheduler)


class Member:
    """An object with a state, as a checkpoint carries it.

    Args:
        thing: the object.
        trainer: the trainer, whose modules may share memory with it.
    """

    def __init__(self, thing: Any, trainer: TrainingEngine) -> None:
        self._thing = thing
        self._trainer = trainer
        self.missing = ""
        """What could not be restored by the last ``load_state_dict``, if anything."""

    @property
    def kind(self) -> str:
        """The name of the object's class."""
        return type(self._thing).__name__

    @property
    def is_module(self) -> bool:
        """Whether the object is a module, which is compared first and not rolled back."""
        return isinstance(self._thing, torch.nn.Module)

    def state_dict(self) -> Any:
        """Returns the state; its tensors are those of the object."""
        thing = self._thing
        if isinstance(thing, torch.nn.Module):
            state = thing.state_dict()
            versions, names = getattr(state, "_metadata", {}), PlainNames(thing)
            return {
                "module": names.plain_state(state),
                "metadata": {k: dict(value) for k, value in names.plain_state(versions).items()},
                "flags": flags_of(thing, names),
                "shared": _shared(thing, self._trainer),
            }
        if isinstance(thing, EpochOutputStore):
            return {"data": list(thing.data)}
        return plain_state(thing)

    def load_state_dict(self, state: Any) -> None:
        """Gives the object a copy of a state."""
        thing, self.missing = self._thing, ""
        if isinstance(thing, torch.nn.Module):
            _give_to_module(thing, state, self._trainer)
            return
        state = copy.deepcopy(state)
        if isinstance(thing, EpochOutputStore):
            thing.data = state["data"]
            return
        if isinstance(thing, _SCHEDULERS):
            state = _completed(state, thing.state_dict())
        elif isinstance(thing, Checkpoint):
            state, self.missing = _of_files_that_exist(thing, state)
        thing.load_state_dict(state)

    def differences(self, name: str, state: Any) -> Iterator[str]:
        """Yields what keeps a state from being that of a module; of other objects it is not known.

        Args:
            name: of the object.
            state: the state.
        """
        if isinstance(self._thing, torch.nn.Module):
            if has_module(state):
                yield from differences_of_module(name, state["module"], self._thing)
            else:
                yield f"the {name} has no state of a module in {TRAINER}, it is a {self.kind}"


def has_module(state: Any) -> bool:
    """Returns whether a state that was captured is that of a module."""
    return isinstance(state, Mapping) and "module" in state


def plain_state(thing: Any) -> Any:
    """Returns the state of an object, of a scheduler without the functions in it."""
    state = thing.state_dict()
    return _without_code(state) if isinstance(thing, _SCHEDULERS) else state


def _give_to_module(module: torch.nn.Module, state: Any, trainer: TrainingEngine) -> None:
    theirs, shared = _named_tensors(trainer), state["shared"]
    shared_now = _shared(module, trainer)
    for name, tensor in _tensors(module):
        source = theirs.get(shared.get(name, ""))
        if source is not None and source.shape == tensor.shape:
            tensor.data = source.data
        elif name in shared_now:  # else loading would write to the model
            tensor.data = tensor.data.clone()
    give_to_module(module, state["module"], state)


def _shared(module: torch.nn.Module, trainer: TrainingEngine) -> dict[str, str]:
    """Returns, by name, which tensors of a module are in the memory of one of the trainer's."""
    theirs = {_place(tensor): name for name, tensor in _named_tensors(trainer).items()}
    named = [(name, theirs.get(_place(tensor))) for name, tensor in _tensors(module)]
    return {name: source for name, source in named if source is not None}


def _named_tensors(trainer: TrainingEngine) -> dict[str, torch.Tensor]:
    modules = trainer.modules.items()
    return {f"{of}.{name}": tensor for of, each in modules for name, tensor in _tensors(each)}


def _tensors(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _place(tensor: torch.Tensor) -> Any:
    has_memory = type(tensor) in (torch.Tensor, torch.nn.Parameter) and not tensor.is_meta
    if not has_memory or tensor.layout != torch.strided or not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _without_code(state: Any) -> Any:
    """Returns a state without the values in its dictionaries that could not be saved."""
    if type(state) in (dict, OrderedDict):
        return {key: _without_code(each) for key, each in state.items() if not _is_code(each)}
    if type(state) in (list, tuple):
        return type(state)(map(_without_code, state))
    return state


def _is_code(value: Any) -> bool:
    return not isinstance(value, _DATA) and not plain_part({"": value})


def _completed(state: Any, current: Any) -> Any:
    """Returns a state with what ``_without_code`` has left out, as it is now."""
    if type(state) in (dict, OrderedDict) and isinstance(current, Mapping):
        own = {key: _completed(value, current.get(key)) for key, value in state.items()}
        return {**current, **own}
    is_list = type(state) in (list, tuple) and type(state) is type(current)
    if is_list and len(state) == len(current):
        return type(state)(map(_completed, state, current))
    return state


def _of_files_that_exist(handler: Checkpoint, state: Any) -> tuple[Any, str]:
    """Returns the state of Ignite's handler without files that are not there, and what is said.

    The handler removes the oldest of its files when it saves a new one, and fails if that file is
    gone: on a new node, say, or after the folder was cleaned up.
    """
    if not isinstance(handler.save_handler, DiskSaver):
        return state, ""
    folder = Path(handler.save_handler.dirname)
    saved = [each for each in state["_saved"] if (folder / each[1]).exists()]
    gone = len(state["_saved"]) - len(saved)
    if not gone:
        return state, ""
    return {**state, "_saved": saved}, (
        f"{gone} of {len(state['_saved'])} files are not in {folder}, and are not counted any more"
    )
