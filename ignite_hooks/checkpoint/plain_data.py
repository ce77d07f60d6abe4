"""Plain data: any value as JSON can hold it, in a bounded length.

A manifest describes a run by values of users' code. One that JSON cannot hold must not make a save
fail, and a large one must not make every manifest large.
"""

import math
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from enum import Enum
from itertools import islice
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
    return _Conversion().of(value, MAX_DEPTH)


def plain_text(value: object, length: int = MAX_TEXT) -> str:
    """Returns a text of at most so many characters; lone surrogates, which UTF-8 lacks, escaped."""
    text = str(value).encode(errors="backslashreplace").decode()
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


class _Conversion:
    """The conversion of one value, which counts the values in it."""

    def __init__(self) -> None:
        self._left = MAX_VALUES

    def of(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if self._left < 0:
            return "..."
        try:
            return self._converted(value, depth)
        except Exception:  # a user's property, key or iterator
            return type(value).__name__

    def _converted(self, value: Any, depth: int) -> Any:
        if isinstance(value, Enum):  # first: it may be a number or a text too
            return plain_text(value.name)
        if getattr(value, "ndim", None) == 0:  # a scalar of numpy's or torch's
            value = value.item()
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return int(value) if abs(value) < _MAX_EXACT else plain_text(_digits(value))
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else _not_finite(value)
        if isinstance(value, str | PathLike | complex):
            return plain_text(value)
        if isinstance(value, Mapping):
            return self._mapping(value, depth)
        if isinstance(value, list | tuple | set | frozenset):
            return self._list(value, depth)
        if hasattr(value, "shape") and hasattr(value, "dtype"):
            return plain_text(f"{type(value).__name__} {tuple(value.shape)} {value.dtype}")
        if type(value).__module__ == "torch":  # a dtype, a device
            return plain_text(value)
        return plain_text(getattr(value, "__qualname__", type(value).__name__))

    def _mapping(self, values: Mapping[Any, Any], depth: int) -> Any:
        if depth == 0:
            return "..."
        shown = islice(values.items(), MAX_ITEMS)
        found = {plain_text(key): self.of(each, depth - 1) for key, each in shown}
        return {**found, "...": _more(len(values))} if len(values) > MAX_ITEMS else found

    def _list(self, values: Any, depth: int) -> Any:
        if depth == 0:
            return "..."
        is_ordered = isinstance(values, list | tuple)
        ordered: Iterable[Any] = values if is_ordered else sorted(values, key=repr)
        found = [self.of(each, depth - 1) for each in islice(ordered, MAX_ITEMS)]
        return [*found, _more(len(values))] if len(values) > MAX_ITEMS else found


def _is_no_scalar(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple) or hasattr(value, "shape")


def _more(count: int) -> str:
    return f"... {count - MAX_ITEMS} more"


def _not_finite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _digits(value: int) -> str:
    """Returns the decimal digits of an integer, or its size: Python refuses very long ones."""
    bits = value.bit_length()
    return str(value) if bits < MAX_TEXT * 4 else f"integer of {bits} bits"
