"""Loading a state into a module to see whether the module takes it, with the module as it was then.

Only a module whose own code has a say in its loading is tried: its tensors are copied meanwhile.
For all others names and shapes tell, and nothing is copied.
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

__all__ = ["Sources", "put_back"]

_CONTAINERS = (dict, OrderedDict, list, set)


class Sources(TorchFunctionMode):
    """Notes which of some tensors each parameter is loaded from: the two may differ in name."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        super().__init__()
        self._names = {id(value): name for name, value in state.items()}
        self._found: dict[int, str] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Notes a copy, and has torch make it."""
        if func is torch.Tensor.copy_ and id(args[1]) in self._names:
            self._found[id(args[0])] = self._names[id(args[1])]
        return func(*args, **(kwargs or {}))

    def of(self, parameter: torch.Tensor) -> str | None:
        """Returns the name of the tensor that a parameter is loaded from, if one was."""
        return self._found.get(id(parameter))


@contextmanager
def put_back(module: torch.nn.Module) -> Iterator[None]:
    """Restores a module, with all that is in it, when the body is left, however it is left.

    Tensors get the values, the shapes and the memory that they had; attributes, and lists, dicts
    and sets that are attributes, what they held.
    """
    undo: list[Callable[[], None]] = []
    storages: dict[int, Any] = {}
    seen: set[int] = set()
    for each in module.modules():
        attributes = dict(vars(each))
        containers = [value for value in attributes.values() if type(value) in _CONTAINERS]
        undo += [_refilling(container) for container in containers]
        undo.append(_attributes_of(each, attributes))
        for tensor in _tensors_in([attributes, *containers]):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                undo.append(_tensor(tensor, storages))
    try:
        yield
    finally:
        for call in undo:
            call()


def _tensors_in(containers: list[Any]) -> Iterator[torch.Tensor]:
    for container in containers:
        values = container.values() if isinstance(container, dict) else container
        yield from (value for value in values if isinstance(value, torch.Tensor))


def _attributes_of(module: torch.nn.Module, attributes: dict[str, Any]) -> Callable[[], None]:
    kind = type(module)

    def restore() -> None:
        if type(module) is not kind:
            module.__class__ = kind
        vars(module).clear()
        vars(module).update(attributes)

    return restore


def _refilling(container: Any) -> Callable[[], None]:
    content = container.copy()

    def restore() -> None:
        container.clear()
        if isinstance(container, list):
            container.extend(content)
        else:
            container.update(content)

    return restore


def _tensor(tensor: torch.Tensor, storages: dict[int, Any]) -> Callable[[], None]:
    kind, is_trained = type(tensor), tensor.requires_grad
    data: torch.Tensor = tensor.data
    memory: tuple[Any, Any] | None = None
    if data.layout != torch.strided:
        data = data.clone()
    elif not is_lazy(tensor) and not tensor.is_meta:
        storage: Any = data.untyped_storage()
        if storage.data_ptr() not in storages:  # several tensors may lie in one
            storages[storage.data_ptr()] = storage.clone()
        memory = storage, storages[storage.data_ptr()]

    def restore() -> None:
        if type(tensor) is not kind:
            tensor.__class__ = kind
        if data.layout in (torch.strided, torch.sparse_coo):
            tensor.data = data
        else:  # setting the data of compressed ones changes nothing
            with torch.no_grad():
                tensor.copy_(data)
        if memory is not None:
            now, before = memory
            if now.nbytes() != before.nbytes():
                now.resize_(before.nbytes())
            now.copy_(before)
        if tensor.requires_grad != is_trained:
            tensor.requires_grad = is_trained  # the method refuses lazy ones

    return restore
