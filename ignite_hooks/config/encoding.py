"""Handlers as plain data, and the comparison of two of them."""

import math
from collections.abc import Iterable
from collections.abc import Mapping
from datetime import date
from datetime import time
from datetime import timedelta
from enum import Enum
from itertools import zip_longest
from pathlib import PurePath
from typing import Any

from pydantic_core import to_jsonable_python

from ignite_hooks.config.bounds import MAX_DEPTH
from ignite_hooks.config.bounds import too_deep
from ignite_hooks.config.kinds import class_of
from ignite_hooks.config.kinds import fields_of
from ignite_hooks.config.problems import ConfigError
from ignite_hooks.config.problems import Problem
from ignite_hooks.config.problems import at
from ignite_hooks.config.registry import TAG
from ignite_hooks.config.registry import tag_of
from ignite_hooks.config.registry import why_it_is_no_data
from ignite_hooks.core.handler import Handler

__all__ = ["Encoder", "equal", "first_difference"]

_NOTHING = object()
_PLAIN = (bool, int, str)


class Encoder:
    """Makes plain data of handlers, with what is asked to be left out left out.

    Args:
        exclude_defaults: leave out fields that have their default.
        exclude_none: leave out fields that are None.
    """

    def __init__(self, *, exclude_defaults: bool, exclude_none: bool) -> None:
        self._exclude_defaults = exclude_defaults
        self._exclude_none = exclude_none

    def encode(
        self, value: Any, path: str = "", *, is_in_field: bool = False, depth: int = 0
    ) -> Any:
        """The data of one value.

        Raises:
            ConfigError: something in it is no data.
        """
        if depth > MAX_DEPTH:  # it may contain itself
            raise too_deep()
        within: dict[str, Any] = {"is_in_field": is_in_field, "depth": depth + 1}
        cls = class_of(type(value))
        is_part = is_in_field and not isinstance(value, Handler)  # whose class the field tells
        if cls is not None and (tag_of(cls) is not None or is_part):
            return self._fields(value, cls, path, depth)
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    raise _error(path, f"keys must be strings, got {key!r}: write it as one")
            return {str(k): self.encode(v, at(path, k), **within) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.encode(v, at(path, index), **within) for index, v in enumerate(value)]
        if not is_in_field or isinstance(value, Handler | type):
            raise _error(path, why_it_is_no_data(type(value)))
        return _scalar(value, path)

    def _fields(self, value: Any, cls: type, path: str, depth: int) -> dict[str, Any]:
        tag = tag_of(cls)
        data = {} if tag is None else {TAG: tag}
        for name, field in fields_of(cls).items():
            each = getattr(value, name)
            is_default = not field.is_required and equal(each, field.default)
            is_left_out = (is_default and self._exclude_defaults) or (
                each is None and self._exclude_none
            )
            if not is_left_out:
                data[name] = self.encode(each, at(path, name), is_in_field=True, depth=depth + 1)
        return data


def _scalar(value: Any, path: str) -> Any:
    if isinstance(value, Enum):
        return _scalar(value.value, path)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and not _is_unicode(value):
        raise _error(path, f"it must be Unicode text, which UTF-8 can write, got {value[:80]!a}")
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, set | frozenset):
        return sorted((_scalar(each, path) for each in value), key=repr)
    if isinstance(value, PurePath):
        return _scalar(str(value), path)
    if isinstance(value, date | time | timedelta):
        return to_jsonable_python(value)
    raise _error(
        path,
        f"it must be plain data, got a {type(value).__name__}: leave it out here, and give it in "
        "code, to RunSettings.build() for instance",
    )


def _is_unicode(text: str) -> bool:
    """Whether it has no lone surrogates, as names of files may have that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _error(path: str, message: str) -> ConfigError:
    return ConfigError([Problem(path, message)])


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
