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

    See PEP 562. Type checkers run neither function. For them, the package also imports the names
    under TYPE_CHECKING.

    Args:
        package: the name of the package.
        modules: maps each public name to its module, relative to the package.
    """

    def get(name: str) -> Any:
        if name not in modules:
            message = f"module {package!r} has no attribute {name!r}"
            # Two kinds of names need no remedy. Names with an underscore are asked for by Python
            # itself and by tools. The name of a submodule is asked for by an import statement,
            # which calls this function before it looks for the file of the submodule.
            if name.startswith("_") or find_spec(f"{package}.{name}") is not None:
                raise AttributeError(message)
            message += f": {_remedy_for(name, modules)}"
            # An import statement replaces the message of an AttributeError by its own, which has no
            # remedy. It shows the message of an ImportError unchanged. Only import statements call
            # this function from `importlib._bootstrap`.
            if sys._getframe(1).f_globals.get("__name__") == "importlib._bootstrap":
                raise ImportError(message, name=package)
            raise AttributeError(message)
        value = getattr(import_module(f"{package}.{modules[name]}"), name)
        # Stored in the package, because Python calls `get` only for names that are not there.
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
    "ignite_hooks.optim",
    "ignite.engine",
    "ignite.handlers",
    "ignite.metrics",
)
"""The packages that are searched for a name that another package lacks, in this order."""


def _remedy_for(name: str, modules: Mapping[str, str]) -> str:
    for package in _ELSEWHERE:
        found = import_module(package)
        if name in getattr(found, "__all__", vars(found)):
            return f"write from {package} import {name}"
    # Imported here, because it is needed for a wrong name only.
    from ignite_hooks.core.rules import did_you_mean

    return did_you_mean(name, modules)
