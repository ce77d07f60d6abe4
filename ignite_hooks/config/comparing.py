"""Whether two handlers say the same, and where they do not."""

import math
from collections.abc import Iterable
from collections.abc import Mapping
from enum import Enum
from itertools import zip_longest
from pathlib import PurePath
from typing import Any

from ignite_hooks.config.kinds import class_of
from ignite_hooks.config.kinds import fields_of
from ignite_hooks.config.problems import at

__all__ = ["equal", "first_difference"]

_NOTHING = object()


def equal(a: Any, b: Any) -> bool:
    """Whether two handlers, or lists or mappings of them, have the same content.

    Handlers themselves compare by identity: two that are alike must stay two. Here classes and all
    fields are compared. A NaN is equal to a NaN, a path to the string that it is, a list to a
    tuple; 1, 1.0 and True are three. Objects that are no data are equal if they are the same.
    """
    return first_difference(a, b) is None


def first_difference(a: Any, b: Any, path: str = "") -> str | None:
    """The path of the first place where they differ; None if there is none."""
    if a is b:
        return None
    cls = class_of(type(a))
    if cls is not None and type(b) is cls:
        pairs: Iterable[tuple[Any, Any, Any]]
        pairs = ((name, getattr(a, name), getattr(b, name)) for name in fields_of(cls))
    elif isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = {**dict.fromkeys(a), **dict.fromkeys(b)}
        pairs = ((str(key), a.get(key, _NOTHING), b.get(key, _NOTHING)) for key in keys)
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
        both = enumerate(zip_longest(a, b, fillvalue=_NOTHING))
        pairs = ((index, *each) for index, each in both)
    else:
        return None if _is_same(a, b) else path
    for key, one, other in pairs:
        difference = first_difference(one, other, at(path, key))
        if difference is not None:
            return difference
    return None


def _is_same(a: Any, b: Any) -> bool:
    a, b = (str(each) if isinstance(each, PurePath) else each for each in (a, b))
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, Enum) or not isinstance(a, _PLAIN):
        try:
            return type(a) is type(b) and bool(a == b)
        except Exception:  # tensors and arrays, which have no one answer
            return False
    return _plain_kind(a) is _plain_kind(b) and bool(a == b)


def _plain_kind(value: Any) -> type | None:
    return next((kind for kind in _PLAIN if isinstance(value, kind)), None)


_PLAIN = (bool, int, str)
