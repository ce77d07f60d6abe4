"""Plain data: any value as JSON can hold it, in a bounded length.

A manifest describes a run by values of users' code. One that JSON cannot hold must not make a save
fail, and a large one must not make every manifest large.
"""

import math
from collections.abc import Iterator
from collections.abc import Mapping
from enum import Enum
from os import PathLike
from typing import Any

__all__ = ["flattened", "plain_data", "plain_text"]

MAX_TEXT = 200
"""Characters of a text."""
MAX_ITEMS = 100
"""Entries of a list or a mapping."""
MAX_DEPTH = 6
"""Containers within each other."""
MAX_VALUES = 2000
"""Values in all."""

_MAX_EXACT = 2**63  # what every reader of JSON reads back as the same integer


def plain_data(value: Any) -> Any:
    """Returns a value as None, booleans, numbers, texts, lists and dicts with texts for keys.

    Numbers that JSON lacks become "NaN", "Infinity" and "-Infinity". Objects become the names of
    their classes: their own ``repr`` may have any length, and addresses that differ in each run.
    What is beyond the bounds is left out, and "..." stands in its place.
    """
    copied = _copy_if_plain(value)
    return _Conversion().of(value, MAX_DEPTH) if copied is None else copied


def plain_text(value: object, length: int = MAX_TEXT) -> str:
    """Returns a text of at most so many characters; lone surrogates, which UTF-8 lacks, escaped."""
    text = str(value)
    if not text.isascii():
        text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= length else text[: length - 3] + "..."


def flattened(value: Any, name: str = "", separator: str = ".") -> Iterator[tuple[str, Any]]:
    """Yields the values in nested mappings and lists, with the names on the way to each.

    A list of numbers and texts is one value, and so is an empty list or mapping.
    """
    within: Any = None
    if isinstance(value, Mapping) and value:
        within = value.items()
    elif isinstance(value, list | tuple) and any(map(_is_no_scalar, value)):
        within = enumerate(value)
    if within is None:
        yield name, value
        return
    for key, each in within:
        yield from flattened(each, f"{name}{separator}{key}" if name else str(key), separator)


def _copy_if_plain(value: Any) -> dict[str, Any] | None:
    """Returns a copy of a mapping that is plain data within the bounds; None for all else.

    Settings are, and this is one call, however much is in them.
    """
    if type(value) is not dict:
        return None
    whole = dict(value)
    waiting: list[tuple[Any, int]] = [(whole, MAX_DEPTH)]
    left = MAX_VALUES
    while waiting:
        part, depth = waiting.pop()
        left -= len(part)
        if len(part) > MAX_ITEMS or left < 0 or depth == 0:
            return None
        is_mapping = type(part) is dict
        for key, each in [*(part.items() if is_mapping else enumerate(part))]:
            kind = type(each)
            if kind is dict or kind is list:
                part[key] = inner = kind(each)
                waiting.append((inner, depth - 1))
            elif not (
                kind is bool
                or each is None
                or (kind is str and len(each) <= MAX_TEXT and each.isascii())
                or (kind is int and -_MAX_EXACT < each < _MAX_EXACT)
                or (kind is float and each - each == 0)  # neither infinite nor NaN
            ):
                return None
            is_name = type(key) is str and len(key) <= MAX_TEXT and key.isascii()
            if is_mapping and not is_name:
                return None
    return whole


class _Conversion:
    """The conversion of one value, which counts the values in it."""

    def __init__(self) -> None:
        self._left = MAX_VALUES

    def of(self, value: Any, depth: int) -> Any:
        """Returns the plain form of a value that has containers of that depth in it at most."""
        try:
            return self._converted(value, depth)
        except Exception:  # a user's property, key or iterator
            return type(value).__name__

    def _converted(self, value: Any, depth: int) -> Any:
        if isinstance(value, Enum):  # first: it may be a number or a text too
            return plain_text(value.name)
        if getattr(value, "ndim", None) == 0:  # a scalar of numpy's or torch's
            value = value.item()
        if isinstance(value, bool | None):
            return value
        if isinstance(value, int):
            return int(value) if abs(value) < _MAX_EXACT else plain_text(_digits(value))
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else _not_finite(value)
        if isinstance(value, str | PathLike | complex):
            return plain_text(value)
        if isinstance(value, Mapping):
            return "..." if depth == 0 else self._mapping(value, depth - 1)
        if isinstance(value, list | tuple):
            return "..." if depth == 0 else self._list(value, depth - 1)
        if isinstance(value, set | frozenset):
            return self._converted(sorted(value, key=repr), depth)
        if hasattr(value, "shape") and hasattr(value, "dtype"):
            return plain_text(f"{type(value).__name__} {tuple(value.shape)} {value.dtype}")
        if type(value).__module__ == "torch":  # a dtype, a device
            return plain_text(value)
        return plain_text(getattr(value, "__qualname__", type(value).__name__))

    def _mapping(self, values: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            if len(found) == MAX_ITEMS or self._left <= 0:
                found["..."] = f"... {len(values) - len(found)} more"
                break
            self._left -= 1
            found[plain_text(key)] = self.of(value, depth)
        return found

    def _list(self, values: Any, depth: int) -> list[Any]:
        found: list[Any] = []
        for value in values:
            if len(found) == MAX_ITEMS or self._left <= 0:
                found.append(f"... {len(values) - len(found)} more")
                break
            self._left -= 1
            found.append(self.of(value, depth))
        return found


def _is_no_scalar(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple) or hasattr(value, "shape")


def _not_finite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _digits(value: int) -> str:
    """Returns the decimal digits of an integer, or its size: Python refuses very long ones."""
    bits = value.bit_length()
    return str(value) if bits < MAX_TEXT * 4 else f"integer of {bits} bits"
