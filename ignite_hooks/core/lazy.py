"""Public names that are imported on first use, so that importing the package stays fast."""

import sys
from collections.abc import Callable
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__all__ = ["lazy_names"]


def lazy_names(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns ``__getattr__`` and ``__dir__`` for a package that imports its names on first use.

    Python calls these functions of a module as PEP 562 describes. Type checkers do not run them, so
    the package also imports the names under TYPE_CHECKING.

    Args:
        package: the name of the package.
        modules: maps each public name to its module, relative to the package.
    """

    def get(name: str) -> Any:
        if name not in modules:
            message = f"module {package!r} has no attribute {name!r}"
            # Nobody reads the message for a name with an underscore, which Python and tools look
            # up, or for a submodule, which an import statement looks up here before its file.
            if name.startswith("_") or find_spec(f"{package}.{name}") is not None:
                raise AttributeError(message)
            message += f": {_remedy_for(name, modules)}"
            # An import statement, which calls this function from `importlib._bootstrap`, shows the
            # message of an ImportError, but not that of an AttributeError.
            if sys._getframe(1).f_globals.get("__name__") == "importlib._bootstrap":
                raise ImportError(message, name=package)
            raise AttributeError(message)
        value = getattr(import_module(f"{package}.{modules[name]}"), name)
        # The package stores the value, so that Python does not call `get` for this name again.
        setattr(sys.modules[package], name, value)
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return get, list_names


_ELSEWHERE = (
    "ignite_hooks",
    "ignite_hooks.checkpoint",
    "ignite_hooks.config",
    "ignite_hooks.evaluation",
    "ignite_hooks.handlers",
    "ignite_hooks.observe",
    "ignite_hooks.optim",
    "ignite.engine",
    "ignite.handlers",
    "ignite.metrics",
)
"""If a package lacks a name, these packages are searched for the name, in this order."""


def _remedy_for(name: str, modules: Mapping[str, str]) -> str:
    for package in _ELSEWHERE:
        found = import_module(package)
        if name in getattr(found, "__all__", vars(found)):
            return f"write from {package} import {name}"
    # Imported here, because the function is only needed for a wrong name.
    from ignite_hooks.core.rules import did_you_mean

    return did_you_mean(name, modules)
