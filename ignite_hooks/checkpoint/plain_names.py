"""Names of parameters and submodules without those of wrappers.

``torch.compile`` and ``DistributedDataParallel`` put a module into another, and its parameters get
longer names: ``_orig_mod.weight``, ``layer.module.weight``. A checkpoint has the names of the plain
model, so that one that was written with compiled blocks can be loaded without, and vice versa.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from functools import cached_property
from typing import Any
from typing import TypeVar

import torch

from ignite_hooks.core.torch_modules import has_wrappers
from ignite_hooks.core.torch_modules import wrapped_child

__all__ = ["PlainNames"]

ValueT = TypeVar("ValueT")


class PlainNames:
    """The plain names of all that is in a module, which may be wrapped, or have wrapped children.

    What is in the module is looked up once: names are asked for and thrown away.

    Args:
        module: the module.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._plain: dict[str, str] = {}  # the paths of modules
        self._actual: dict[str, str] = {}
        self._has_wrappers = has_wrappers([each for _, each in self.modules])
        if not self._has_wrappers:
            return
        wrapped: dict[str, str | None] = {}
        for path, each in module.named_modules(remove_duplicate=False):
            wrapped[path] = wrapped_child(each)
            parent, _, name = path.rpartition(".")
            if not path:
                plain = ""
            elif wrapped[parent] == name:
                plain = self._plain[parent]
            else:
                plain = _joined(self._plain[parent], name)
            self._plain[path] = plain
            self._actual[plain] = path  # of a wrapper and what is in it, the latter: it comes later

    @cached_property
    def modules(self) -> list[tuple[str, torch.nn.Module]]:
        """The module and all within, by their paths in the module."""
        return list(self._module.named_modules())

    @cached_property
    def parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """The parameters, by their names in the module."""
        return list(self._module.named_parameters())

    def plain(self, name: str) -> str:
        """Returns the plain name of a parameter, a buffer or a submodule."""
        return _translated(name, self._plain) if self._has_wrappers else name

    def actual(self, name: str) -> str:
        """Returns the name in the module of what has this plain name."""
        return _translated(name, self._actual) if self._has_wrappers else name

    def plain_state(self, state: Mapping[str, ValueT]) -> dict[str, ValueT]:
        """Returns a state, or what else is known by names, with plain names."""
        if not self._has_wrappers:
            return dict(state)
        return {_translated(name, self._plain): value for name, value in state.items()}

    def actual_state(self, state: Mapping[str, Any], own: Iterable[str]) -> dict[str, Any]:
        """Returns a state with plain names as the module takes it.

        Args:
            state: the state.
            own: the names in the module's own state. What has none of them may be renamed, or
                refused, when it is loaded.
        """
        if not self._has_wrappers:
            return dict(state)
        known = {self.plain(name): name for name in own}
        return {known.get(name) or self.actual(name): value for name, value in state.items()}

    def actual_metadata(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Returns versions of modules by plain path, as the module takes them."""
        if not self._has_wrappers:
            return dict(metadata)
        return {path: metadata[name] for path, name in self._plain.items() if name in metadata}


def _translated(name: str, paths: Mapping[str, str]) -> str:
    """Replaces the longest path of a module that the name begins with."""
    path, rest = name, ""
    while path not in paths:
        path, _, last = path.rpartition(".")
        rest = _joined(last, rest)
    return _joined(paths[path], rest)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name
