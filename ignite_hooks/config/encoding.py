"""From handlers to plain data."""

from collections.abc import Mapping
from datetime import date
from datetime import time
from datetime import timedelta
from enum import Enum
from pathlib import PurePath
from typing import Any

from pydantic_core import to_jsonable_python

from ignite_hooks.config.bounds import MAX_DEPTH
from ignite_hooks.config.bounds import too_deep
from ignite_hooks.config.comparing import equal
from ignite_hooks.config.kinds import class_of
from ignite_hooks.config.kinds import fields_of
from ignite_hooks.config.problems import ConfigError
from ignite_hooks.config.problems import Problem
from ignite_hooks.config.problems import at
from ignite_hooks.config.registry import TAG
from ignite_hooks.config.registry import tag_of
from ignite_hooks.config.registry import why_it_is_no_data
from ignite_hooks.core.handler import Handler

__all__ = ["Encoder"]


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
