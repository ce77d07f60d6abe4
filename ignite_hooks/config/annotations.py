"""Functions that tell from the annotation of a field which values the field may have."""

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
    "allowed_values",
    "container_and_items",
    "dataclass_or_none",
    "describe_values",
    "fields_of",
    "is_class",
    "union_members",
    "unwrap",
]

SCALARS = {bool: "True or False", int: "an integer", float: "a number", str: "a string"}
"""Maps each scalar type to the words that messages use for its values."""


class ConfigField(NamedTuple):
    """A field of a handler.

    Attributes:
        annotation: the type of the field's values.
        is_required: whether the field has no default.
        default: the default, or None if there is none.
    """

    annotation: Any
    is_required: bool
    default: Any


def fields_of(cls: type) -> Mapping[str, ConfigField]:
    """Returns the fields that the constructor of a pydantic dataclass takes, in their order."""
    return _cached_fields(cls)


@cache
def _cached_fields(cls: Any) -> Mapping[str, ConfigField]:
    # `fields_of` itself has no `cache`, because mypy refuses `type[T]` as an argument then.
    found = {}
    for name, info in cls.__pydantic_fields__.items():
        if info.init is not False:
            default = info.get_default(call_default_factory=True)
            is_required = default is PydanticUndefined
            if is_required:
                default = None
            found[name] = ConfigField(info.annotation, is_required, default)
    return types.MappingProxyType(found)  # read-only, because all callers get the same object


def unwrap(annotation: Any) -> Any:
    """Returns the type behind ``Annotated``, a ``NewType``, a type variable or an alias."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        elif isinstance(annotation, TypeVar):
            annotation = annotation.__bound__ or Any
        elif hasattr(annotation, "__value__"):  # an alias: type X = …
            annotation = annotation.__value__
        else:
            return annotation


def union_members(annotation: Any) -> list[Any]:
    """Returns the members of a union, without None. Any other type counts as a single member."""
    annotation = unwrap(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for each in get_args(annotation) for member in union_members(each)]
    return [] if annotation in (None, type(None)) else [annotation]


def admits_none(annotation: Any) -> bool:
    """Returns whether an annotation names None as a value.

    ``Any``, which admits None without naming it, does not count.
    """
    annotation = unwrap(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return any(admits_none(each) for each in get_args(annotation))
    return annotation in (None, type(None)) or (
        get_origin(annotation) is Literal and None in get_args(annotation)
    )


def container_and_items(annotation: Any) -> tuple[type, list[Any]] | None:
    """Returns the container that represents a type in plain data, and the annotations of its items.

    Returns:
        A container and a list of annotations; None for a type that is not a container. The
        container is ``list`` for a sequence, tuple or set, and ``dict`` for a mapping. The
        annotations are those of the items, or of the values of a mapping. A ``tuple[int, str]`` has
        one annotation for each position, any other container has a single annotation.
    """
    origin, arguments = get_origin(annotation) or annotation, list(get_args(annotation))
    if not isinstance(origin, type):
        return None
    if issubclass(origin, Mapping):
        return dict, arguments[1:] or [Any]
    if origin is tuple and arguments[1:] != [...]:
        return list, arguments or [Any]
    # Strings and bytes are collections too, of characters and integers.
    if issubclass(origin, Collection) and not issubclass(origin, str | bytes | bytearray):
        return list, arguments[:1] or [Any]
    return None


def is_class(annotation: Any) -> TypeGuard[type]:
    """Returns whether an annotation is a class that ``issubclass`` accepts.

    ``list[int]``, for example, is not such a class.
    """
    # On Python 3.10 isinstance(list[int], type) is True, and issubclass(…, list[int]) raises.
    return isinstance(annotation, type) and get_origin(annotation) is None


def dataclass_or_none(annotation: Any) -> type | None:
    """Returns the annotation if it is a pydantic dataclass, else None.

    In plain data, an instance of a dataclass is a mapping.
    """
    return annotation if is_class(annotation) and is_pydantic_dataclass(annotation) else None


def allowed_values(annotation: Any) -> list[Any] | None:
    """Returns the values of a Literal or an Enum, as plain data; None for any other type."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if is_class(annotation) and issubclass(annotation, Enum):
        return [each.value for each in annotation]
    return None


def describe_values(annotation: Any) -> str:
    """Returns the words that describe the values of a type in messages, such as "an integer"."""
    values = allowed_values(annotation)
    if values is not None:
        return f"one of {', '.join(map(repr, values))}"
    container = container_and_items(annotation)
    if container is not None:
        return "a list" if container[0] is list else "a mapping"
    return SCALARS.get(annotation) or f"a {getattr(annotation, '__name__', annotation)}"
