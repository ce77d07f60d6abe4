"""Plain names of parameters and submodules, without the names that wrappers add.

``torch.compile`` and ``DistributedDataParallel`` wrap a module. The wrapper makes the names of the
module's parameters longer, for example ``_orig_mod.weight`` or ``layer.module.weight``. These long
names are called actual names. The plain names, in this example ``weight`` and ``layer.weight``, are
the names in the model without wrappers. A checkpoint has the plain names. So a checkpoint of a
compiled model can be loaded into a model that is not compiled, and vice versa.
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

    The module may be wrapped, or have wrapped submodules. The names are looked up once, so this
    object does not notice later changes of the module. Create a new object for each use.

    Args:
        module: the module.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._plain_paths: dict[str, str] = {}  # maps the actual path of a module to its plain path
        self._actual_paths: dict[str, str] = {}  # maps the plain path of a module to its actual one
        self._has_wrappers = has_wrappers([each for _, each in self.modules])
        if not self._has_wrappers:
            return
        wrapped_names: dict[str, str | None] = {}
        # A submodule that has two paths is visited on both paths, so that the names on each path
        # can be translated.
        for path, each in module.named_modules(remove_duplicate=False):
            wrapped_names[path] = wrapped_child(each)
            parent, _, name = path.rpartition(".")
            if not path:
                plain = ""
            elif wrapped_names[parent] == name:  # the parent is a wrapper of this module
                plain = self._plain_paths[parent]
            else:
                plain = _join_path(self._plain_paths[parent], name)
            self._plain_paths[path] = plain
            # A wrapper and the module in it have the same plain path. The module comes later, so in
            # the end the plain path leads to the module.
            self._actual_paths[plain] = path

    @cached_property
    def modules(self) -> list[tuple[str, torch.nn.Module]]:
        """The module and all submodules, each with its actual path."""
        return list(self._module.named_modules())

    @cached_property
    def parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """The parameters, each with its actual name."""
        return list(self._module.named_parameters())

    def plain(self, name: str) -> str:
        """Returns the plain name of the parameter, buffer or submodule with this actual name."""
        return _translate(name, self._plain_paths) if self._has_wrappers else name

    def actual(self, name: str) -> str:
        """Returns the actual name of the parameter, buffer or submodule with this plain name."""
        return _translate(name, self._actual_paths) if self._has_wrappers else name

    def plain_state(self, state: Mapping[str, ValueT]) -> dict[str, ValueT]:
        """Returns a mapping, such as a state, with its keys translated to plain names.

        Args:
            state: the mapping, with actual names as keys.
        """
        if not self._has_wrappers:
            return dict(state)
        return {_translate(name, self._plain_paths): value for name, value in state.items()}

    def actual_state(self, state: Mapping[str, Any], own_names: Iterable[str]) -> dict[str, Any]:
        """Returns a state with the names that the module's ``load_state_dict`` expects.

        Args:
            state: the state, with plain names.
            own_names: the names in the module's own ``state_dict``. Each name replaces the key of
                ``state`` that is its plain name. Any other key, for example of a parameter that the
                module has renamed, is translated with ``actual``. The module's loading code may
                then rename the entry, or refuse it.
        """
        if not self._has_wrappers:
            return dict(state)
        own_by_plain = {self.plain(name): name for name in own_names}
        return {own_by_plain.get(name) or self.actual(name): value for name, value in state.items()}

    def actual_metadata(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the metadata of submodules, such as their versions, by actual path.

        Args:
            metadata: maps the plain path of a submodule to its entry in ``state_dict()._metadata``.
        """
        if not self._has_wrappers:
            return dict(metadata)
        return {
            path: metadata[name] for path, name in self._plain_paths.items() if name in metadata
        }


def _translate(name: str, paths: Mapping[str, str]) -> str:
    """Returns ``name`` with the path at its beginning replaced.

    Args:
        name: a name that begins with the path of a module.
        paths: maps the path of a module to the path that replaces it. The longest path that fits
            is used.
    """
    path, rest = name, ""
    while path not in paths:
        path, _, last = path.rpartition(".")
        rest = _join_path(last, rest)
    return _join_path(paths[path], rest)


def _join_path(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name
