"""torch modules: wrappers around one, and modules that load a state in a way of their own.

The members that torch keeps private, and what they are taken to mean:

- ``OptimizedModule`` of ``torch._dynamo.eval_frame``: the class of what ``torch.compile`` makes of
  a module, which is its child ``_orig_mod``.
- ``_checkpoint_wrapped_module``: the child of a wrapper for activation checkpointing.
- ``Module._load_from_state_dict``, ``Module._save_to_state_dict``: load and save a module without
  its children; classes override them.
- ``_load_state_dict_pre_hooks``, ``_load_state_dict_post_hooks``, ``_state_dict_hooks``,
  ``_state_dict_pre_hooks``: the hooks of a module around these.
- ``_modules``: the children of a module by name.
- ``_parameters``: the parameters of a module by name, None for one that is registered without.
- ``_buffers``: the buffers of a module by name; one that is registered without a value is None.
- ``_non_persistent_buffers_set``: the names of the buffers that a state leaves out on purpose.
- the attributes of a new ``Module`` and of a new optimizer, and ``_compiled_call_impl``: torch's.
- ``weight_orig``, ``weight_g``: the parameters that torch computes an attribute ``weight`` from.

``tests/core/test_torch_modules.py`` fails when one of them changes its meaning.
"""

import sys
from collections.abc import Iterable
from functools import cache
from itertools import repeat
from typing import Any

import torch

from ignite_hooks.core.rules import shown_type

__all__ = [
    "attributes_beside_state",
    "attributes_of_optimizer",
    "check_model",
    "empty_buffers",
    "has_own_loading",
    "has_own_state",
    "has_wrappers",
    "parts_to_save",
    "tensors_in",
    "unsaved_buffers",
    "unwrapped",
    "wrapped_child",
]

_WRAPPERS = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
_RECHECKED = "_checkpoint_wrapped_module"
_METHODS = ("_load_from_state_dict", "_save_to_state_dict", "set_extra_state", "state_dict")
_HOOKS = (
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
)

_OF_TORCH = frozenset(vars(torch.nn.Module())) | {"_compiled_call_impl"}
_OF_OPTIMIZER = frozenset(vars(torch.optim.SGD([torch.zeros(1)]))) | {
    *("step", "_opt_called", "_step_count"),  # of schedulers, which wrap the method
}


def check_model(model: Any, remedy: str) -> None:
    """Raises a TypeError if the argument ``model`` is not a module.

    Args:
        model: the value of the argument.
        remedy: what to do instead, for the message.
    """
    if not isinstance(model, torch.nn.Module):
        if isinstance(model, type) and issubclass(model, torch.nn.Module):
            remedy = f"make one, {model.__name__}(…)"
        raise TypeError(f"`model` must be a torch.nn.Module, got {shown_type(model)}: {remedy}")


def wrapped_child(module: torch.nn.Module) -> str | None:
    """Returns the name of the child that ``module`` is a mere wrapper of; None for other modules.

    Wrappers are what ``torch.compile`` makes of a module, ``DistributedDataParallel``,
    ``DataParallel``, and those of activation checkpointing. A module of a user with a child called
    ``module`` is not one.
    """
    if isinstance(module, _WRAPPERS):
        return "module"
    if isinstance(module, _compiled_classes()):
        return "_orig_mod"
    return _RECHECKED if _RECHECKED in module._modules else None


def has_wrappers(modules: Iterable[torch.nn.Module]) -> bool:
    """Returns whether one of some modules is a wrapper."""
    kinds = (*_WRAPPERS, *_compiled_classes())
    found = [e for e in modules if isinstance(e, kinds) or _RECHECKED in e._modules]
    return bool(found)


def _compiled_classes() -> tuple[type, ...]:
    # Importing it takes seconds; nothing is compiled unless somebody has.
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return () if dynamo is None else (dynamo.OptimizedModule,)


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """Returns the module that is in the wrappers around it, if there are any."""
    while (name := wrapped_child(module)) is not None:
        module = module.get_submodule(name)
    return module


def has_own_loading(module: torch.nn.Module, *, is_root: bool = False) -> bool:
    """Returns whether names and shapes do not tell if ``module`` takes a state.

    Its class or a hook has a say in how the module, without its children, is loaded or saved.

    Args:
        module: the module.
        is_root: whether its ``load_state_dict`` is called, which is not called of children.
    """
    if any(map(getattr, repeat(module), _HOOKS)):
        return True
    methods = (*_METHODS, "load_state_dict") if is_root else _METHODS
    overrides: bool = _overrides(type(module), methods)  # type: ignore[arg-type]
    return overrides or not vars(module).keys().isdisjoint(methods)


@cache
def _overrides(kind: type, methods: tuple[str, ...]) -> bool:
    """Returns whether a class has methods that are not those of torch's own modules."""
    found = (getattr(kind, method) for method in methods)
    return not all(method.__module__.startswith("torch.nn.modules.") for method in found)


def parts_to_save(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns the parameters and persistent buffers of a module and its children, by name."""
    found: dict[str, torch.Tensor] = dict(module.named_parameters())
    for path, each in module.named_modules():
        left_out = each._non_persistent_buffers_set
        for name, buffer in each.named_buffers(recurse=False):
            if name not in left_out:
                found[f"{path}.{name}" if path else name] = buffer
    return found


def tensors_in(*modules: torch.nn.Module) -> dict[int, torch.Tensor]:
    """Returns the parameters and buffers of modules and their children, by identity.

    This is one call; torch's methods take several for each module.
    """
    found: dict[int, torch.Tensor] = {}
    waiting: list[torch.nn.Module | None] = [*modules]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            waiting += each._modules.values()
            held = (*each._parameters.values(), *each._buffers.values())
            found |= {id(tensor): tensor for tensor in held if tensor is not None}
    return found


def has_own_state(module: torch.nn.Module) -> bool:
    """Returns whether a module adds to its state, or leaves out of it, by code of its own."""
    names = ("get_extra_state", "state_dict", "_save_to_state_dict")
    return bool(module._state_dict_hooks) or _overrides(type(module), names)  # type: ignore[arg-type]


def attributes_beside_state(module: torch.nn.Module) -> dict[str, Any]:
    """Returns the attributes of a module that its state leaves out, without torch's own."""
    computed = {
        name.removesuffix(end)
        for name in module._parameters
        for end in ("_orig", "_g")
        if name.endswith(end)
    }
    own = {n: each for n, each in vars(module).items() if n not in _OF_TORCH and n not in computed}
    return own | unsaved_buffers(module)


def unsaved_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns the buffers of a module without its children that its state leaves out, by name."""
    buffers = module._buffers
    names = module._non_persistent_buffers_set
    found = ((name, buffers.get(name)) for name in sorted(names))
    return {name: buffer for name, buffer in found if buffer is not None}


def attributes_of_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns the attributes of an optimizer that its state leaves out, without torch's own."""
    return {n: each for n, each in vars(optimizer).items() if n not in _OF_OPTIMIZER}


def empty_buffers(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Returns the names of the persistent buffers that are None so far, and whose they are."""
    return {
        f"{path}.{name}" if path else name: each
        for path, each in module.named_modules()
        for name, buffer in each._buffers.items()
        if buffer is None and name not in each._non_persistent_buffers_set
    }
