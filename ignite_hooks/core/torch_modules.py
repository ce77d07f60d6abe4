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

``tests/core/test_torch_modules.py`` fails when one of them changes its meaning.
"""

import sys
from collections.abc import Iterable
from functools import cache
from itertools import repeat

import torch

__all__ = [
    "empty_buffers",
    "has_own_loading",
    "has_wrappers",
    "parts_to_save",
    "tensors_in",
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


def empty_buffers(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Returns the names of the persistent buffers that are None so far, and whose they are."""
    return {
        f"{path}.{name}" if path else name: each
        for path, each in module.named_modules()
        for name, buffer in each._buffers.items()
        if buffer is None and name not in each._non_persistent_buffers_set
    }
