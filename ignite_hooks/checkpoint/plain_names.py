"""Plain names of parameters and submodules, without the names that wrappers add.

``torch.compile`` and ``DistributedDataParallel`` put a module into another, and its parameters get
longer names: ``_orig_mod.weight``, ``layer.module.weight``. A checkpoint has the names of the plain
model, so that a checkpoint of a compiled model can be loaded into a plain one, and vice versa.
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
    """The plain names of a module's parameters, buffers and submodules.

    The module may be wrapped, or have wrapped children. Its parts are looked up once, so an
    instance is for short use: it does not see later changes of the module.

    Args:
        module: the module.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._plain_paths: dict[str, str] = {}  # plain paths by the actual paths of modules
        self._actual_paths: dict[str, str] = {}
        self._has_wrappers = has_wrappers([each for _, each in self.modules])
        if not self._has_wrappers:
            return
        wrapped_names: dict[str, str | None] = {}
        # A module that is there under two paths has two plain names.
        for path, each in module.named_modules(remove_duplicate=False):
            wrapped_names[path] = wrapped_child(each)
            parent, _, name = path.rpartition(".")
            if not path:
                plain = ""
            elif wrapped_names[parent] == name:  # the module within a wrapper
                plain = self._plain_paths[parent]
            else:
                plain = _join_path(self._plain_paths[parent], name)
            self._plain_paths[path] = plain
            # A wrapper and the module within have one plain path. The module comes last, and wins.
            self._actual_paths[plain] = path

    @cached_property
    def modules(self) -> list[tuple[str, torch.nn.Module]]:
        """The module and all submodules, with their paths in the module."""
        return list(self._module.named_modules())

    @cached_property
    def parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """The parameters, with their names in the module."""
        return list(self._module.named_parameters())

    def plain(self, name: str) -> str:
        """Returns the plain name of a parameter, a buffer or a submodule."""
        return _translate(name, self._plain_paths) if self._has_wrappers else name

    def actual(self, name: str) -> str:
        """Returns the name in the module of a parameter, buffer or submodule, by its plain name."""
        return _translate(name, self._actual_paths) if self._has_wrappers else name

    def plain_state(self, state: Mapping[str, ValueT]) -> dict[str, ValueT]:
        """Returns a state, or another mapping by names, with plain names."""
        if not self._has_wrappers:
            return dict(state)
        return {_translate(name, self._plain_paths): value for name, value in state.items()}

    def actual_state(self, state: Mapping[str, Any], own_names: Iterable[str]) -> dict[str, Any]:
        """Returns a state with plain names under the names that the module loads.

        Args:
            state: the state.
            own_names: the names in the module's own state. An entry without such a name may be
                renamed, or refused, when it is loaded.
        """
        if not self._has_wrappers:
            return dict(state)
        own_by_plain = {self.plain(name): name for name in own_names}
        return {own_by_plain.get(name) or self.actual(name): value for name, value in state.items()}

    def actual_metadata(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the versions of submodules by actual path, from those by plain path."""
        if not self._has_wrappers:
            return dict(metadata)
        return {
            path: metadata[name] for path, name in self._plain_paths.items() if name in metadata
        }


def _translate(name: str, paths: Mapping[str, str]) -> str:
    """Replaces the longest path of a module that ``name`` begins with."""
    path, rest = name, ""
    while path not in paths:
        path, _, last = path.rpartition(".")
        rest = _join_path(last, rest)
    return _join_path(paths[path], rest)


def _join_path(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name
