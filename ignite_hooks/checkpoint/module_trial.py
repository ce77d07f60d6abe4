"""Tools for loading on trial: a state is loaded to see if it fits, and the module is then restored.

A trial copies the memory of the module's tensors, which may be large. So a trial is made only for
modules that customize their loading, or that have tensors of a special kind, such as sparse
tensors. For all other modules, names, shapes and dtypes show whether a state fits.
"""

from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

__all__ = ["SourceTracker", "restored_on_exit"]

_CONTAINERS = (dict, OrderedDict, list, set)


class SourceTracker(TorchFunctionMode):
    """Records which tensor of a state each parameter is loaded from.

    The names in the state do not show this: a hook of the module may rename the keys before the
    parameters are loaded. Use the object in a ``with`` statement around the loading.

    Args:
        state: maps names to the tensors of the state.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        super().__init__()
        self._names = {id(value): name for name, value in state.items()}
        self._sources: dict[int, str] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls ``func``. If ``func`` copies from a tensor of the state, records the copy first."""
        if func is torch.Tensor.copy_ and id(args[1]) in self._names:
            self._sources[id(args[0])] = self._names[id(args[1])]
        return func(*args, **(kwargs or {}))

    def source_name(self, parameter: torch.Tensor) -> str | None:
        """Returns the name of the tensor that a parameter was loaded from.

        Returns None if the parameter was not loaded from a tensor of the state.
        """
        return self._sources.get(id(parameter))


@contextmanager
def restored_on_exit(module: torch.nn.Module) -> Iterator[None]:
    """Restores a module and its submodules after the body, also if the body raises an exception.

    The function restores the values, shapes, memory and classes of tensors, the attributes and
    classes of modules, and the elements of attributes that are lists, dicts or sets.
    """
    undo: list[Callable[[], None]] = []
    storages: dict[int, Any] = {}
    seen: set[int] = set()
    for each in module.modules():
        attributes = dict(vars(each))
        containers = [value for value in attributes.values() if type(value) in _CONTAINERS]
        undo += [_container_restorer(container) for container in containers]
        undo.append(_attribute_restorer(each, attributes))
        for tensor in _tensors_among([attributes, *containers]):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                undo.append(_tensor_restorer(tensor, storages))
    try:
        yield
    finally:
        for call in undo:
            call()


def _tensors_among(containers: list[Any]) -> Iterator[torch.Tensor]:
    for container in containers:
        values = container.values() if isinstance(container, dict) else container
        yield from (value for value in values if isinstance(value, torch.Tensor))


def _attribute_restorer(module: torch.nn.Module, attributes: dict[str, Any]) -> Callable[[], None]:
    """Returns a function that restores the class and the attributes of a module."""
    cls = type(module)

    def restore() -> None:
        if type(module) is not cls:  # a lazy module changes its class when it is initialized
            module.__class__ = cls
        vars(module).clear()
        vars(module).update(attributes)

    return restore


def _container_restorer(container: Any) -> Callable[[], None]:
    """Returns a function that restores the elements of a list, a dict or a set."""
    content = container.copy()

    def restore() -> None:
        container.clear()
        if isinstance(container, list):
            container.extend(content)
        else:
            container.update(content)

    return restore


def _tensor_restorer(tensor: torch.Tensor, storages: dict[int, Any]) -> Callable[[], None]:
    """Returns a function that restores a tensor.

    Args:
        tensor: the tensor.
        storages: maps the address of a storage to a copy of the storage, so that a storage that
            several tensors share is copied once. If the mapping lacks the storage of ``tensor``,
            this function adds a copy.
    """
    cls, requires_grad = type(tensor), tensor.requires_grad
    data: torch.Tensor = tensor.data
    memory: tuple[Any, Any] | None = None
    if data.layout != torch.strided:
        data = data.clone()
    elif not is_lazy(tensor) and not tensor.is_meta:
        storage: Any = data.untyped_storage()
        if storage.data_ptr() not in storages:
            storages[storage.data_ptr()] = storage.clone()
        memory = storage, storages[storage.data_ptr()]

    def restore() -> None:
        if type(tensor) is not cls:  # a lazy parameter changes its class when it is initialized
            tensor.__class__ = cls
        if data.layout in (torch.strided, torch.sparse_coo):
            tensor.data = data
        else:  # for a compressed sparse tensor an assignment to `tensor.data` has no effect
            with torch.no_grad():
                tensor.copy_(data)
        if memory is not None:
            storage, copied = memory
            if storage.nbytes() != copied.nbytes():
                storage.resize_(copied.nbytes())
            storage.copy_(copied)
        if tensor.requires_grad != requires_grad:
            tensor.requires_grad = requires_grad  # `requires_grad_` refuses lazy parameters

    return restore
