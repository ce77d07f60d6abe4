"""Reads annotations of fields. For example, a field ``int | None`` may be an integer or None."""

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
    """A field of a handler, or of another dataclass.

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
    # `fields_of` itself has no cache, because mypy accepts no `type[T]` as the argument of a cached
    # function.
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
    """Returns the type behind ``Annotated``, a ``NewType``, a type variable or an alias.

    For example, the type behind ``Annotated[int, "seconds"]`` is ``int``.
    """
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
    """Returns the members of a union, without None: ``int | str | None`` has ``int`` and ``str``.

    A type that is not a union is its own single member.
    """
    annotation = unwrap(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for each in get_args(annotation) for member in union_members(each)]
    return [] if annotation in (None, type(None)) else [annotation]


def admits_none(annotation: Any) -> bool:
    """Returns whether an annotation names None as a value, as ``int | None`` does.

    The result for ``Any`` is False, although ``Any`` admits None: it does not name None.
    """
    annotation = unwrap(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return any(admits_none(each) for each in get_args(annotation))
    return annotation in (None, type(None)) or (
        get_origin(annotation) is Literal and None in get_args(annotation)
    )


def container_and_items(annotation: Any) -> tuple[type, list[Any]] | None:
    """Returns how a container type is written in plain data, and the annotations of its items.

    Plain data, for example the content of a YAML file, have only lists and dicts. So a set is
    written as a list.

    Returns:
        A class and a list of annotations; None for a type that is not a container. For example,
        ``set[int]`` gives ``list`` and ``[int]``, ``tuple[int, str]`` gives ``list`` and
        ``[int, str]``, and ``Mapping[str, float]`` gives ``dict`` and ``[float]``. Items without an
        annotation get ``Any``: ``list`` gives ``list`` and ``[Any]``.
    """
    origin, arguments = get_origin(annotation) or annotation, list(get_args(annotation))
    if not isinstance(origin, type):
        return None
    if issubclass(origin, Mapping):
        return dict, arguments[1:] or [Any]
    if origin is tuple and arguments[1:] != [...]:
        return list, arguments or [Any]
    # Strings and bytes are collections too, but in plain data they are single values.
    if issubclass(origin, Collection) and not issubclass(origin, str | bytes | bytearray):
        return list, arguments[:1] or [Any]
    return None


def is_class(annotation: Any) -> TypeGuard[type]:
    """Returns whether an annotation is a class that ``issubclass`` accepts.

    For example, ``list`` is such a class, and ``list[int]`` is not.
    """
    # On Python 3.10 isinstance(list[int], type) is True, and issubclass(…, list[int]) raises.
    return isinstance(annotation, type) and get_origin(annotation) is None


def dataclass_or_none(annotation: Any) -> type | None:
    """Returns the annotation if it is a pydantic dataclass, else None.

    In plain data, an instance of such a dataclass is a mapping of its fields to their values.
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
    """Returns the words by which messages describe the values of a type, such as "an integer"."""
    values = allowed_values(annotation)
    if values is not None:
        return f"one of {', '.join(map(repr, values))}"
    container = container_and_items(annotation)
    if container is not None:
        return "a list" if container[0] is list else "a mapping"
    return SCALARS.get(annotation) or f"a {getattr(annotation, '__name__', annotation)}"
