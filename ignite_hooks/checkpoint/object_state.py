"""Captures and restores the state of a single object, such as a handler, for a checkpoint.

For most objects ``state_dict`` and ``load_state_dict`` are called. Four types need more:

- A module is saved with its flags: which parameters are frozen, and which submodules are in eval
  mode. It is also saved with the names of the tensors that it shares with the trainer's modules
  (the model, and a loss function with a state). For example, the averaged model of Ignite's
  ``EMAHandler`` can share the buffers of the model.
- The states of torch's and Ignite's schedulers may hold functions. Functions are not saved: after
  a resume the scheduler has the functions that the present script has given to it.
- Ignite's ``EpochOutputStore`` has a state, but lacks ``state_dict`` and ``load_state_dict``.
- The state of Ignite's ``Checkpoint`` names the files that it has written. Files that are missing
  now are left out when this state is loaded.
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
from ignite_hooks.checkpoint.module_state import flags_of
from ignite_hooks.checkpoint.module_state import load_into_module
from ignite_hooks.checkpoint.module_state import module_differences
from ignite_hooks.checkpoint.plain_names import PlainNames
from ignite_hooks.core.training_engine import TrainingEngine

__all__ = ["StatefulObject", "has_module", "plain_state"]

# A value of one of these types is always kept in the state of a scheduler. Any other value is left
# out if it cannot be saved.
_DATA_TYPES = (bool, int, float, str, type(None), list, tuple, dict, torch.Tensor)
_SCHEDULER_CLASSES = (LRScheduler, BaseParamScheduler, ParamGroupScheduler)


class StatefulObject:
    """Captures and restores the state of one object.

    Args:
        obj: the object.
        trainer: the trainer. Its modules may share memory with the object.

    Attributes:
        missing: the reason why the last call of ``load_state_dict`` could not restore the whole
            state; an empty string if the whole state was restored.
    """

    def __init__(self, obj: Any, trainer: TrainingEngine) -> None:
        self._object = obj
        self._trainer = trainer
        self.missing = ""

    @property
    def class_name(self) -> str:
        """The name of the object's class."""
        return type(self._object).__name__

    @property
    def is_module(self) -> bool:
        """True if the object is a module."""
        return isinstance(self._object, torch.nn.Module)

    def state_dict(self) -> Any:
        """Returns the state of the object. The tensors in the state are not copies."""
        obj = self._object
        if isinstance(obj, torch.nn.Module):
            state = obj.state_dict()
            versions, names = getattr(state, "_metadata", {}), PlainNames(obj)
            return {
                "module": names.plain_state(state),
                # torch keeps the versions of submodules in the attribute `_metadata` of the dict.
                "metadata": {k: dict(value) for k, value in names.plain_state(versions).items()},
                "flags": flags_of(obj, names),
                "shared": _shared_tensors(obj, self._trainer),
            }
        if isinstance(obj, EpochOutputStore):
            return {"data": list(obj.data)}
        return plain_state(obj)

    def load_state_dict(self, state: Any) -> None:
        """Loads a state into the object, and leaves ``state`` itself unchanged."""
        obj, self.missing = self._object, ""
        if isinstance(obj, torch.nn.Module):
            _load_module(obj, state, self._trainer)
            return
        # The object is given a copy of the state. The object may change its argument or keep a
        # reference to it, and the caller may load the original state once more.
        state = copy.deepcopy(state)
        if isinstance(obj, EpochOutputStore):
            obj.data = state["data"]
            return
        if isinstance(obj, _SCHEDULER_CLASSES):
            state = _restore_dropped(state, obj.state_dict())
        elif isinstance(obj, Checkpoint):
            state, self.missing = _forget_missing_files(obj, state)
        obj.load_state_dict(state)

    def differences(self, name: str, state: Any) -> Iterator[str]:
        """Yields the reasons why a module cannot load a state. Yields nothing for other objects.

        Args:
            name: the name of the object, for messages.
            state: the state.
        """
        if isinstance(self._object, torch.nn.Module):
            if has_module(state):
                yield from module_differences(name, state["module"], self._object)
            else:
                yield (
                    f"the {name} is a {self.class_name}, but its state in {TRAINER} is not the "
                    "state of a module"
                )


def has_module(state: Any) -> bool:
    """Returns whether a captured state is the state of a module."""
    return isinstance(state, Mapping) and "module" in state


def plain_state(obj: Any) -> Any:
    """Returns the state of an object that has ``state_dict``.

    Functions, and other values that cannot be saved, are left out of the state of a scheduler.
    """
    state = obj.state_dict()
    return _drop_unsavable(state) if isinstance(obj, _SCHEDULER_CLASSES) else state


def _load_module(module: torch.nn.Module, state: Any, trainer: TrainingEngine) -> None:
    """Loads the state of a module that may share tensors with the trainer's modules.

    After loading, the module shares exactly the tensors that it shared when its state was saved.
    There is one exception: two tensors whose shapes differ now are not shared.
    """
    trainer_tensors, shared = _trainer_tensors(trainer), state["shared"]
    shared_now = _shared_tensors(module, trainer)
    for name, tensor in _named_tensors(module):
        source = trainer_tensors.get(shared.get(name, ""))
        if source is not None and source.shape == tensor.shape:
            tensor.data = source.data  # they were one tensor when the state was saved
        elif name in shared_now:  # without a copy, loading would also change the trainer's module
            tensor.data = tensor.data.clone()
    load_into_module(module, state["module"], state)


def _shared_tensors(module: torch.nn.Module, trainer: TrainingEngine) -> dict[str, str]:
    """Returns the tensors that a module shares with the trainer's modules.

    The keys are the names in ``module``, the values are the names in the trainer's modules.
    """
    sources = {_memory_key(tensor): name for name, tensor in _trainer_tensors(trainer).items()}
    named = [(name, sources.get(_memory_key(tensor))) for name, tensor in _named_tensors(module)]
    return {name: source for name, source in named if source is not None}


def _trainer_tensors(trainer: TrainingEngine) -> dict[str, torch.Tensor]:
    modules = trainer.modules.items()
    return {
        f"{module_name}.{name}": tensor
        for module_name, module in modules
        for name, tensor in _named_tensors(module)
    }


def _named_tensors(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _memory_key(tensor: torch.Tensor) -> Any:
    """Returns a key that is equal for tensors that view the same memory in the same way."""
    has_memory = type(tensor) in (torch.Tensor, torch.nn.Parameter) and not tensor.is_meta
    # Tensors without an address of their own are compared by identity.
    if not has_memory or tensor.layout != torch.strided or not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _drop_unsavable(state: Any) -> Any:
    """Returns a state without the values that cannot be saved.

    Only entries of dicts are left out; the elements of lists and tuples stay.
    """
    if type(state) in (dict, OrderedDict):
        return {
            key: _drop_unsavable(each) for key, each in state.items() if not _is_unsavable(each)
        }
    if type(state) in (list, tuple):
        return type(state)(map(_drop_unsavable, state))
    return state


def _is_unsavable(value: Any) -> bool:
    return not isinstance(value, _DATA_TYPES) and not plain_part({"": value})


def _restore_dropped(state: Any, current: Any) -> Any:
    """Returns a copy of a saved state, completed with the values that ``_drop_unsavable`` left out.

    These values are taken from ``current``, the current state of the object.
    """
    if type(state) in (dict, OrderedDict) and isinstance(current, Mapping):
        merged = {key: _restore_dropped(value, current.get(key)) for key, value in state.items()}
        return {**current, **merged}
    is_list = type(state) in (list, tuple) and type(state) is type(current)
    # `_drop_unsavable` keeps all elements of lists, so an element of the saved list belongs to the
    # element at the same position in the current list.
    if is_list and len(state) == len(current):
        return type(state)(map(_restore_dropped, state, current))
    return state


def _forget_missing_files(handler: Checkpoint, state: Any) -> tuple[Any, str]:
    """Removes the names of missing files from the state of Ignite's ``Checkpoint``.

    When the handler saves a new file, it deletes its oldest file. The deletion would raise an error
    if the oldest file is missing. A file is missing, for example, if the run continues on another
    machine, or if the user has deleted the file.

    Returns:
        The state without the missing files, and a message about these files. The message is empty
        if no file is missing.
    """
    if not isinstance(handler.save_handler, DiskSaver):
        return state, ""
    folder = Path(handler.save_handler.dirname)
    # "_saved" is a list with a pair for each file: the priority, and the name of the file.
    existing = [each for each in state["_saved"] if (folder / each[1]).exists()]
    missing_count = len(state["_saved"]) - len(existing)
    if not missing_count:
        return state, ""
    return {**state, "_saved": existing}, (
        f"{missing_count} of {len(state['_saved'])} files are not in {folder}, "
        "so they no longer count for `n_saved`"
    )
