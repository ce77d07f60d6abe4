"""Functions that inspect the wrappers, tensors and attributes of torch modules and optimizers.

The state of a module or an optimizer is the result of its method ``state_dict``.

The private members of torch, with the meaning on which this module relies:

- ``OptimizedModule`` of ``torch._dynamo.eval_frame``: the class of a module that ``torch.compile``
  returns; its child ``_orig_mod`` is the module that was compiled.
- ``_checkpoint_wrapped_module``: the child of a wrapper for activation checkpointing.
- ``Module._load_from_state_dict``, ``Module._save_to_state_dict``: the methods that load and save a
  module without its children. Subclasses may override them.
- ``_load_state_dict_pre_hooks``, ``_load_state_dict_post_hooks``, ``_state_dict_hooks``,
  ``_state_dict_pre_hooks``: the hooks that torch calls before and after loading and saving.
- ``_modules``, ``_parameters``, ``_buffers``: the children, parameters and buffers of a module by
  name. A name that is registered without a value is mapped to None.
- ``_non_persistent_buffers_set``: the names of the buffers that are not part of the state.
- ``_compiled_call_impl``: an attribute that ``Module.compile`` sets. It is torch's own, not the
  user's.
- ``weight_orig``, ``weight_g``: the parameters from which ``spectral_norm`` and ``weight_norm``
  compute an attribute ``weight``.

``tests/core/test_torch_modules.py`` fails when torch changes the meaning of a member.
"""

import sys
from collections.abc import Iterable
from functools import cache
from itertools import repeat
from typing import Any

import torch

from ignite_hooks.core.rules import shown_type

__all__ = [
    "attributes_of_optimizer",
    "attributes_outside_state",
    "check_model",
    "empty_buffers",
    "has_custom_loading",
    "has_custom_state",
    "has_wrappers",
    "persistent_tensors",
    "tensors_in",
    "unsaved_buffers",
    "unwrap_module",
    "wrapped_child",
]

_WRAPPERS = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
_CHECKPOINT_WRAPPED = "_checkpoint_wrapped_module"
# The methods that a class overrides to load or save its state in its own way.
_STATE_METHODS = ("_load_from_state_dict", "_save_to_state_dict", "set_extra_state", "state_dict")
_STATE_HOOKS = (
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
)

# The names of torch's own attributes in the installed version. All others belong to the user.
_MODULE_ATTRIBUTES = frozenset(vars(torch.nn.Module())) | {"_compiled_call_impl"}


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
    """Returns the name of the child that ``module`` wraps; None if it is not a wrapper.

    Wrappers are ``DistributedDataParallel``, ``DataParallel``, the modules that ``torch.compile``
    returns, and the wrappers for activation checkpointing. A user's module with a child called
    ``module`` is not a wrapper.
    """
    if isinstance(module, _WRAPPERS):
        return "module"
    if isinstance(module, _compiled_classes()):
        return "_orig_mod"
    return _CHECKPOINT_WRAPPED if _CHECKPOINT_WRAPPED in module._modules else None


def has_wrappers(modules: Iterable[torch.nn.Module]) -> bool:
    """Returns whether at least one of ``modules`` is a wrapper."""
    wrapper_types = (*_WRAPPERS, *_compiled_classes())
    # A list is faster than `any` with a generator.
    found = [
        each
        for each in modules
        if isinstance(each, wrapper_types) or _CHECKPOINT_WRAPPED in each._modules
    ]
    return bool(found)


def _compiled_classes() -> tuple[type, ...]:
    """Returns the class of compiled modules; an empty tuple if no module has been compiled."""
    # Importing `torch._dynamo.eval_frame` takes seconds. `torch.compile` imports it, so before this
    # import there are no compiled modules.
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return () if dynamo is None else (dynamo.OptimizedModule,)


def unwrap_module(module: torch.nn.Module) -> torch.nn.Module:
    """Returns the module without the wrappers around it, if there are any."""
    while (name := wrapped_child(module)) is not None:
        module = module.get_submodule(name)
    return module


def has_custom_loading(module: torch.nn.Module, *, is_root: bool = False) -> bool:
    """Returns whether a hook or an overridden method takes part in loading or saving ``module``.

    Such a module may accept a state whose names and shapes differ from its own, or refuse a state
    whose names and shapes are the same. The children of the module are not considered.

    Args:
        module: the module.
        is_root: whether ``load_state_dict`` is called on the module itself, and not on a parent.
            Torch does not call ``load_state_dict`` of the children. So if ``is_root`` is False, an
            overridden ``load_state_dict`` does not count.
    """
    if any(map(getattr, repeat(module), _STATE_HOOKS)):
        return True
    methods = (*_STATE_METHODS, "load_state_dict") if is_root else _STATE_METHODS
    overrides: bool = _overrides(type(module), methods)  # type: ignore[arg-type]
    # A user may also have replaced a method on the object.
    return overrides or not vars(module).keys().isdisjoint(methods)


@cache
def _overrides(kind: type, methods: tuple[str, ...]) -> bool:
    """Returns whether a class overrides at least one of ``methods``.

    A method that ``torch.nn.modules`` defines does not count as an override.
    """
    found = (getattr(kind, method) for method in methods)
    return not all(method.__module__.startswith("torch.nn.modules.") for method in found)


def persistent_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns the parameters and persistent buffers of a module and its children, by name."""
    found: dict[str, torch.Tensor] = dict(module.named_parameters())
    for path, each in module.named_modules():
        non_persistent = each._non_persistent_buffers_set
        for name, buffer in each.named_buffers(recurse=False):
            if name not in non_persistent:
                found[f"{path}.{name}" if path else name] = buffer
    return found


def tensors_in(*modules: torch.nn.Module) -> dict[int, torch.Tensor]:
    """Returns the parameters and buffers of modules and their children, by their ``id``.

    This function is faster than torch's ``parameters()`` and ``buffers()``, which take several
    Python calls for each module.
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


def has_custom_state(module: torch.nn.Module) -> bool:
    """Returns whether a hook or an overridden method decides what is in the state of a module."""
    names = ("get_extra_state", "state_dict", "_save_to_state_dict")
    return bool(module._state_dict_hooks) or _overrides(type(module), names)  # type: ignore[arg-type]


def attributes_outside_state(module: torch.nn.Module) -> dict[str, Any]:
    """Returns the attributes of a module that are not in its state, except torch's own."""
    # The names of the attributes that `spectral_norm` and `weight_norm` compute at each forward
    # pass, such as "weight".
    computed = {
        name.removesuffix(end)
        for name in module._parameters
        for end in ("_orig", "_g")
        if name.endswith(end)
    }
    own = {
        name: value
        for name, value in vars(module).items()
        if name not in _MODULE_ATTRIBUTES and name not in computed
    }
    return own | unsaved_buffers(module)


def unsaved_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns the non-persistent buffers of a module, but not those of its children, by name."""
    buffers = module._buffers
    names = module._non_persistent_buffers_set
    found = ((name, buffers.get(name)) for name in sorted(names))
    return {name: buffer for name, buffer in found if buffer is not None}


def attributes_of_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns the attributes of an optimizer that are not in its state, except torch's own."""
    attributes, own = vars(optimizer).items(), _own_attributes_of_optimizers()
    return {name: value for name, value in attributes if name not in own}


@cache
def _own_attributes_of_optimizers() -> frozenset[str]:
    """Returns the names of torch's own attributes of an optimizer in the installed version."""
    # The first optimizer of a process imports `torch._dynamo`, which takes half a second. So none
    # is created while this package is imported.
    by_schedulers = {"step", "_opt_called", "_step_count"}  # they wrap the method `step`
    return frozenset(vars(torch.optim.SGD([torch.zeros(1)]))) | by_schedulers


def empty_buffers(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Returns the modules that have a persistent buffer with the value None, by the buffer's name.

    A state has no entry for such a buffer. The module may set the buffer later, for example on
    first use.
    """
    return {
        f"{path}.{name}" if path else name: each
        for path, each in module.named_modules()
        for name, buffer in each._buffers.items()
        if buffer is None and name not in each._non_persistent_buffers_set
    }
