"""Converts handlers to plain data, and compares handlers by their content."""

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

from ignite_hooks.config.annotations import dataclass_or_none
from ignite_hooks.config.annotations import fields_of
from ignite_hooks.config.bounds import MAX_DEPTH
from ignite_hooks.config.bounds import depth_error
from ignite_hooks.config.problems import config_error
from ignite_hooks.config.problems import join_path
from ignite_hooks.config.registry import TAG
from ignite_hooks.config.registry import not_data_message
from ignite_hooks.config.registry import tag_of
from ignite_hooks.core.handler import Handler

__all__ = ["Encoder", "equal", "first_difference"]

_MISSING = object()  # stands for an item that only one of two compared containers has
_PLAIN_TYPES = (bool, int, str)  # bool comes before int, because a bool is an int too


class Encoder:
    """Converts handlers to plain data.

    Args:
        exclude_defaults: whether to leave out fields that have their default.
        exclude_none: whether to leave out fields that are None.
    """

    def __init__(self, *, exclude_defaults: bool, exclude_none: bool) -> None:
        self._exclude_defaults = exclude_defaults
        self._exclude_none = exclude_none

    def encode(
        self, value: Any, path: str = "", *, is_in_field: bool = False, depth: int = 0
    ) -> Any:
        """Returns the data of one value.

        Args:
            value: a handler, a container of handlers, or the value of a field.
            path: the path of the value in the data, for messages.
            is_in_field: whether the value is the value of a field, or a part of such a value.
                Outside of fields, a value must be a handler, or a list or mapping of handlers.
            depth: the number of containers and handlers around the value.

        Raises:
            ConfigError: the value, or a part of it, is not plain data.
        """
        if depth > MAX_DEPTH:  # the value may contain itself
            raise depth_error()
        within: dict[str, Any] = {"is_in_field": is_in_field, "depth": depth + 1}
        cls = dataclass_or_none(type(value))
        # A tag names the class of a handler in the data. A dataclass that is not a handler needs no
        # tag if it is in a field, because the annotation of the field names the class.
        is_part = is_in_field and not isinstance(value, Handler)
        if cls is not None and (tag_of(cls) is not None or is_part):
            return self._encode_fields(value, cls, path, depth)
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    raise config_error(f"keys must be strings, got {key!r}: make it a string", path)
            return {str(k): self.encode(v, join_path(path, k), **within) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.encode(v, join_path(path, i), **within) for i, v in enumerate(value)]
        if not is_in_field or isinstance(value, Handler | type):
            raise config_error(not_data_message(type(value)), path)
        return _encode_scalar(value, path)

    def _encode_fields(self, value: Any, cls: type, path: str, depth: int) -> dict[str, Any]:
        tag = tag_of(cls)
        data = {} if tag is None else {TAG: tag}
        for name, field in fields_of(cls).items():
            each = getattr(value, name)
            # `==` would compare handlers by identity, so `equal` compares their contents.
            is_default = not field.is_required and equal(each, field.default)
            is_left_out = (is_default and self._exclude_defaults) or (
                each is None and self._exclude_none
            )
            if not is_left_out:
                data[name] = self.encode(
                    each, join_path(path, name), is_in_field=True, depth=depth + 1
                )
        return data


def _encode_scalar(value: Any, path: str) -> Any:
    if isinstance(value, Enum):
        return _encode_scalar(value.value, path)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and not _is_unicode(value):
        raise config_error(
            f"it must be Unicode text, which UTF-8 can write, got {value[:80]!a}", path
        )
    for scalar in (int, float, str):
        if isinstance(value, scalar):
            return scalar(value)  # subclasses, such as numpy.float64, become the plain type
    if isinstance(value, set | frozenset):
        # The items are sorted, so that equal sets give the same text. They are sorted by their
        # `repr`, because items of different types cannot be compared.
        return sorted((_encode_scalar(each, path) for each in value), key=repr)
    if isinstance(value, PurePath):
        return _encode_scalar(str(value), path)
    if isinstance(value, date | time | timedelta):
        return to_jsonable_python(value)
    raise config_error(
        f"it must be plain data, got a {type(value).__name__}: leave it out here, and give it in "
        "code, for example to RunSettings.build()",
        path,
    )


def _is_unicode(text: str) -> bool:
    """Returns whether a text can be encoded in UTF-8. A lone surrogate cannot be encoded.

    If the name of a file is not valid UTF-8, Python represents the invalid bytes by surrogates.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def equal(a: Any, b: Any) -> bool:
    """Returns whether two handlers have the same content.

    Two lists or two mappings of handlers can be compared too.

    ``==`` compares handlers by identity, so two handlers with the same settings are not equal. This
    function compares the classes and all fields. A NaN equals a NaN, a path equals its string, and
    a list equals a tuple with the same items. 1, 1.0 and True are three different values. Two
    objects that are not plain data are equal if they are the same object, or if they have the same
    class and ``==`` returns True.
    """
    return first_difference(a, b) is None


def first_difference(a: Any, b: Any, path: str = "") -> str | None:
    """Returns the path of the first difference between two values, or None if they are equal."""
    if a is b:
        return None
    cls = dataclass_or_none(type(a))
    if cls is not None and type(b) is cls:
        pairs: Iterable[tuple[Any, Any, Any]]
        pairs = ((name, getattr(a, name), getattr(b, name)) for name in fields_of(cls))
    elif isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = {**dict.fromkeys(a), **dict.fromkeys(b)}  # a set would have no order
        pairs = ((str(key), a.get(key, _MISSING), b.get(key, _MISSING)) for key in keys)
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
        both = enumerate(zip_longest(a, b, fillvalue=_MISSING))
        pairs = ((index, *each) for index, each in both)
    else:
        return None if _are_equal_scalars(a, b) else path
    for key, one, other in pairs:
        difference = first_difference(one, other, join_path(path, key))
        if difference is not None:
            return difference
    return None


def _are_equal_scalars(a: Any, b: Any) -> bool:
    a, b = (str(each) if isinstance(each, PurePath) else each for each in (a, b))
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, Enum) or not isinstance(a, _PLAIN_TYPES):
        try:
            return type(a) is type(b) and bool(a == b)
        except Exception:  # == of tensors and arrays has a result for each element
            return False
    return _plain_type(a) is _plain_type(b) and bool(a == b)


def _plain_type(value: Any) -> type | None:
    return next((each for each in _PLAIN_TYPES if isinstance(value, each)), None)
