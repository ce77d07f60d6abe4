"""Public names that are imported on first use, so that nobody waits for what they do not use."""

import sys
from collections.abc import Callable
from collections.abc import Mapping
from importlib import import_module
from typing import Any

__all__ = ["lazy_names"]


def lazy_names(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns ``__getattr__`` and ``__dir__`` of a package that imports names on first use.

    See PEP 562. A type checker runs neither: it needs the imports under TYPE_CHECKING.

    Args:
        package: the name of the package.
        modules: the module of each public name, relative to the package.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)  # so that this is called once per name
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return get, list_names
