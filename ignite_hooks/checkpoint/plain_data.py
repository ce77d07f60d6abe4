"""Converts any value to plain data: a form of bounded size that JSON can hold.

The manifest of a checkpoint contains values from users' code, such as settings. A value that JSON
cannot hold must not make a save fail, and a large value must not make every manifest large.
"""

import math
from collections.abc import Iterator
from collections.abc import Mapping
from enum import Enum
from os import PathLike
from typing import Any

__all__ = ["flattened", "plain_data", "plain_text"]

MAX_TEXT = 200
"""The largest length of a text, in characters."""
MAX_ITEMS = 100
"""The largest number of entries in one list or mapping."""
MAX_DEPTH = 6
"""The largest number of levels of nested containers."""
MAX_VALUES = 2000
"""The largest number of values in all containers together."""

_MAX_EXACT = 2**63  # many readers of JSON have 64 bits for an integer


def plain_data(value: Any, max_text: int = MAX_TEXT) -> Any:
    """Converts a value to None, booleans, numbers, texts, lists, and dicts with texts as keys.

    Numbers that JSON lacks become "NaN", "Infinity" and "-Infinity". An object that has none of
    these forms, such as a model, becomes the name of its class. Its ``repr`` is not used, because a
    ``repr`` can be long, and may show an address that differs in each run. Values beyond the
    bounds, such as ``MAX_ITEMS``, are replaced by "...".

    Args:
        value: the value.
        max_text: the largest length of a text, in characters.
    """
    copied = _copy_if_plain(value)
    return _Converter(max_text).convert(value, MAX_DEPTH) if copied is None else copied


def plain_text(value: object, length: int = MAX_TEXT) -> str:
    """Returns a value as a text of at most ``length`` characters.

    Lone surrogates are escaped, because UTF-8 cannot encode them.
    """
    text = str(value)
    if not text.isascii():
        text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= length else text[: length - 3] + "..."


def flattened(value: Any, name: str = "", separator: str = ".") -> Iterator[tuple[str, Any]]:
    """Yields the values in nested mappings and lists, each with the path of names that leads to it.

    For example, ``{"a": {"b": 1}}`` yields ``("a.b", 1)``. A list that holds only numbers and texts
    is yielded as one value, and so is an empty list or an empty mapping.

    Args:
        value: the value.
        name: the path of ``value`` itself, with which all yielded paths begin.
        separator: the text between two names in a path.
    """
    entries: Any = None
    if isinstance(value, Mapping) and value:
        entries = value.items()
    elif isinstance(value, list | tuple) and any(map(_is_nested, value)):
        entries = enumerate(value)
    if entries is None:
        yield name, value
        return
    for key, each in entries:
        yield from flattened(each, f"{name}{separator}{key}" if name else str(key), separator)


def _copy_if_plain(value: Any) -> dict[str, Any] | None:
    """Returns a copy of ``value`` if it is a dict of plain data within the bounds, otherwise None.

    The settings of a run are usually such a dict. One loop is faster than ``_Converter``.
    """
    if type(value) is not dict:
        return None
    copied = dict(value)
    pending: list[tuple[Any, int]] = [(copied, MAX_DEPTH)]
    remaining = MAX_VALUES
    while pending:
        part, depth = pending.pop()
        remaining -= len(part)
        if len(part) > MAX_ITEMS or remaining < 0 or depth == 0:
            return None
        is_mapping = type(part) is dict
        for key, each in [*(part.items() if is_mapping else enumerate(part))]:
            cls = type(each)
            if cls is dict or cls is list:
                part[key] = inner = cls(each)
                pending.append((inner, depth - 1))
            elif not (
                cls is bool
                or each is None
                or (cls is str and len(each) <= MAX_TEXT and each.isascii())
                or (cls is int and -_MAX_EXACT < each < _MAX_EXACT)
                or (cls is float and each - each == 0)  # neither infinite nor NaN
            ):
                return None
            is_name = type(key) is str and len(key) <= MAX_TEXT and key.isascii()
            if is_mapping and not is_name:
                return None
    return copied


class _Converter:
    """Converts one value to plain data, with at most ``MAX_VALUES`` values in all containers."""

    def __init__(self, max_text: int) -> None:
        self._remaining = MAX_VALUES
        self._max_text = max_text

    def convert(self, value: Any, depth: int) -> Any:
        """Returns the plain form of a value.

        Args:
            value: the value.
            depth: the number of levels of nested containers to convert. Containers that are nested
                deeper become "...".
        """
        try:
            return self._convert(value, depth)
        except Exception:  # a property, a key or an iterator of the user may raise any exception
            return type(value).__name__

    def _convert(self, value: Any, depth: int) -> Any:
        # Enums are checked first, because an enum may be a number or a text as well.
        if isinstance(value, Enum):
            return plain_text(value.name)
        if getattr(value, "ndim", None) == 0:  # a scalar of numpy or torch
            value = value.item()
        if isinstance(value, bool | None):
            return value
        if isinstance(value, int):
            return int(value) if abs(value) < _MAX_EXACT else plain_text(_integer_text(value))
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else _non_finite_text(value)
        if isinstance(value, str | PathLike | complex):
            return plain_text(value, self._max_text)
        if isinstance(value, Mapping):
            return "..." if depth == 0 else self._mapping(value, depth - 1)
        if isinstance(value, list | tuple):
            return "..." if depth == 0 else self._list(value, depth - 1)
        if isinstance(value, set | frozenset):
            return self._convert(sorted(value, key=repr), depth)
        if hasattr(value, "shape") and hasattr(value, "dtype"):
            return plain_text(f"{type(value).__name__} {tuple(value.shape)} {value.dtype}")
        if type(value).__module__ == "torch":  # a dtype, a device
            return plain_text(value)
        return plain_text(getattr(value, "__qualname__", type(value).__name__))

    def _mapping(self, values: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        converted: dict[str, Any] = {}
        for key, value in values.items():
            if len(converted) == MAX_ITEMS or self._remaining <= 0:
                converted["..."] = f"... {len(values) - len(converted)} more"
                break
            self._remaining -= 1
            converted[plain_text(key)] = self.convert(value, depth)
        return converted

    def _list(self, values: Any, depth: int) -> list[Any]:
        converted: list[Any] = []
        for value in values:
            if len(converted) == MAX_ITEMS or self._remaining <= 0:
                converted.append(f"... {len(values) - len(converted)} more")
                break
            self._remaining -= 1
            converted.append(self.convert(value, depth))
        return converted


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple) or hasattr(value, "shape")


def _non_finite_text(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _integer_text(value: int) -> str:
    """Returns the decimal digits of an integer, or its size in bits if it has too many digits."""
    bits = value.bit_length()
    return str(value) if bits < MAX_TEXT * 4 else f"integer of {bits} bits"
