"""A module as a file: how it is taken, read, compared and given back.

A module's ``state_dict`` leaves out which parameters are frozen and which submodules are in eval
mode. Those flags are saved and restored with it.
"""

from collections import OrderedDict
from collections import defaultdict
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ignite_hooks.checkpoint.contents import Content
from ignite_hooks.checkpoint.contents import Objects
from ignite_hooks.checkpoint.contents import Tensors
from ignite_hooks.checkpoint.contents import load_objects
from ignite_hooks.checkpoint.layout import module_files

__all__ = [
    "differences_of_module",
    "flags_of",
    "give_to_module",
    "module_file",
    "read_module",
    "set_flags",
]


def module_file(
    name: str, module: torch.nn.Module, *, safe_serialization: bool
) -> tuple[str, Content, dict[str, Any]]:
    """The file of a module, its content, and what is to be known besides to read it."""
    state: dict[str, Any] = module.state_dict()
    versions = getattr(state, "_metadata", {})
    about: dict[str, Any] = {
        "metadata": {key: dict(value) for key, value in versions.items()},
        "flags": flags_of(module),
    }
    safe_file, pickle_file = module_files(name)
    if not safe_serialization:
        return pickle_file, Objects(dict(state), f"the {name}"), about
    tensors = {key: value for key, value in state.items() if _fits(value)}
    aliases = _aliases(tensors)
    about["aliases"] = aliases
    about["extra"] = {key: value for key, value in state.items() if key not in tensors}
    kept = {key: tensor for key, tensor in tensors.items() if key not in aliases}
    return safe_file, Tensors(_apart(kept)), about


def read_module(
    folder: Path, name: str, files: Collection[str], about: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The state of a module, its tensors still in the file; None if the checkpoint has none.

    Raises:
        ValueError: the file can not be read, or holds code.
    """
    safe_file, pickle_file = module_files(name)
    if pickle_file in files:
        state: dict[str, Any] = load_objects(folder / pickle_file, mapped=True)
        return state
    if safe_file not in files or not about:
        return None
    try:
        tensors = load_file(folder / safe_file)
    except SafetensorError as error:
        raise ValueError(f"{safe_file} can not be read ({error})") from error
    aliases = {alias: tensors[first] for alias, first in about["aliases"].items()}
    return {**tensors, **aliases, **about["extra"]}


def differences_of_module(
    name: str, theirs: Mapping[str, Any] | None, module: torch.nn.Module
) -> Iterator[str]:
    """What keeps a state from being this module's: names and shapes."""
    ours = module.state_dict()
    if theirs is None:
        yield f"the {name} is not in the checkpoint"
        return
    for key in sorted({*ours, *theirs}):
        if key not in ours:
            yield f"the {name} has no {key}, the checkpoint has"
        elif key not in theirs:
            yield f"the {name} has {key}, the checkpoint has not"
        elif not key.endswith("_extra_state") and _shape(theirs[key]) != _shape(ours[key]):
            yield f"{key} had the shape {_shape(theirs[key])}, it has {_shape(ours[key])}"


def give_to_module(
    module: torch.nn.Module, state: Mapping[str, Any], about: Mapping[str, Any]
) -> set[str]:
    """Loads it; returns what had another number format."""
    before = {key: getattr(value, "dtype", None) for key, value in module.state_dict().items()}
    versioned = OrderedDict(state)
    versioned._metadata = about["metadata"]  # type: ignore[attr-defined]
    module.load_state_dict(versioned)
    set_flags(module, about["flags"])
    return {key for key, value in state.items() if getattr(value, "dtype", None) != before[key]}


def flags_of(module: torch.nn.Module) -> dict[str, list[str]]:
    """Returns the names of the frozen parameters and of the submodules in eval mode."""
    return {
        "frozen": [name for name, each in module.named_parameters() if not each.requires_grad],
        "eval": [name for name, each in module.named_modules() if not each.training],
    }


def set_flags(module: torch.nn.Module, flags: Mapping[str, Any]) -> None:
    """Sets what ``flags_of`` has returned for a module that was built the same way."""
    for name, parameter in module.named_parameters():
        is_trained = name not in flags["frozen"]
        if parameter.requires_grad != is_trained:
            parameter.requires_grad_(is_trained)
    for name, each in module.named_modules():
        each.training = name not in flags["eval"]


def _fits(value: Any) -> bool:
    """Whether safetensors can hold it."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and not (value.is_complex() or value.is_quantized)
    )


def _aliases(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Of tensors that are one and the same, tied weights say, all but the first: which it is."""
    first: dict[Any, str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        where = tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
        if tensor.numel() and first.setdefault(where, name) != name:
            aliases[name] = first[where]
    return aliases


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same, with a copy of each that shares memory with another in part."""
    sharing = defaultdict(list)
    for name, tensor in tensors.items():
        sharing[tensor.device, tensor.untyped_storage().data_ptr()].append(name)
    copied = {name for names in sharing.values() for name in names[1:]}
    return {n: tensor.clone() if n in copied else tensor for n, tensor in tensors.items()}


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None
