"""What the annotation of a field says of its values."""

import types
from collections.abc import Collection
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Annotated
from typing import Any
from typing import Literal
from typing import NamedTuple
from typing import NewType
from typing import TypeGuard
from typing import TypeVar
from typing import Union
from typing import get_args
from typing import get_origin

from pydantic.dataclasses import is_pydantic_dataclass
from pydantic_core import PydanticUndefined

__all__ = [
    "SCALARS",
    "ConfigField",
    "admits_none",
    "bare",
    "choices_of",
    "class_of",
    "fields_of",
    "is_class",
    "items_of",
    "members_of",
    "name_of",
]

SCALARS = {bool: "True or False", int: "an integer", float: "a number", str: "a string"}
"""What they are called in messages."""


class ConfigField(NamedTuple):
    """One field of a handler.

    Args:
        kind: its annotation.
        is_required: whether it has no default.
        default: that, or None.
    """

    kind: Any
    is_required: bool
    default: Any


def fields_of(cls: type) -> Mapping[str, ConfigField]:
    """The fields of a pydantic dataclass that its constructor takes, in their order."""
    return _fields_of(cls)


@cache
def _fields_of(cls: Any) -> Mapping[str, ConfigField]:
    found = {}
    for name, info in cls.__pydantic_fields__.items():
        if info.init is not False:
            default = info.get_default(call_default_factory=True)
            is_required = default is PydanticUndefined
            kind = info.annotation
            found[name] = ConfigField(kind, is_required, None if is_required else default)
    return types.MappingProxyType(found)


def bare(kind: Any) -> Any:
    """An annotation without what is said about it, and without other names for it."""
    while True:
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        elif isinstance(kind, NewType):
            kind = kind.__supertype__
        elif isinstance(kind, TypeVar):
            kind = kind.__bound__ or Any
        elif hasattr(kind, "__value__"):  # type X = …
            kind = kind.__value__
        else:
            return kind


def members_of(kind: Any) -> list[Any]:
    """Of a union what it is of, else the kind itself; without None."""
    kind = bare(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return [member for each in get_args(kind) for member in members_of(each)]
    return [] if kind in (None, type(None)) else [kind]


def admits_none(kind: Any) -> bool:
    """Whether None is a value of it, of those that need saying so: what admits all does not count.

    A field whose default is None admits it, whatever else.
    """
    kind = bare(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return any(admits_none(each) for each in get_args(kind))
    return kind in (None, type(None)) or (get_origin(kind) is Literal and None in get_args(kind))


def items_of(kind: Any) -> tuple[type, list[Any]] | None:
    """Of a kind that contains others: whether it is a list or a dict, and of what.

    Returns:
        None for other kinds. A ``tuple[int, str]`` has a kind for each place; in all others there
        is one, that of the items or of the values.
    """
    origin, arguments = get_origin(kind) or kind, list(get_args(kind))
    if not isinstance(origin, type):
        return None
    if issubclass(origin, Mapping):
        return dict, arguments[1:] or [Any]
    if origin is tuple and arguments[1:] != [...]:
        return list, arguments or [Any]
    if issubclass(origin, Collection) and not issubclass(origin, str | bytes | bytearray):
        return list, arguments[:1] or [Any]
    return None


def is_class(kind: Any) -> TypeGuard[type]:
    """Returns whether a kind is a class that ``issubclass`` takes; ``list[int]`` is not."""
    # On Python 3.10 isinstance(list[int], type) is True, and issubclass(…, list[int]) raises.
    return isinstance(kind, type) and get_origin(kind) is None


def class_of(kind: Any) -> type | None:
    """The class of an annotation whose values have fields of their own, if it is one."""
    return kind if is_class(kind) and is_pydantic_dataclass(kind) else None


def choices_of(kind: Any) -> list[Any] | None:
    """The values of a Literal or an Enum as data has them; None for other kinds."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    if is_class(kind) and issubclass(kind, Enum):
        return [each.value for each in kind]
    return None


def name_of(kind: Any) -> str:
    """What a value of it is called in a message."""
    choices = choices_of(kind)
    if choices is not None:
        return f"one of {', '.join(map(repr, choices))}"
    contained = items_of(kind)
    if contained is not None:
        return "a list" if contained[0] is list else "a mapping"
    return SCALARS.get(kind) or f"a {getattr(kind, '__name__', kind)}"
