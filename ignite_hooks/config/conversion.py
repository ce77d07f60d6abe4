"""Handlers as plain data and back; a checked copy of one."""

import dataclasses
from typing import Any
from typing import TypeVar

from ignite_hooks.config.bounds import check_depth
from ignite_hooks.config.decoding import decode
from ignite_hooks.config.encoding import Encoder
from ignite_hooks.config.encoding import first_difference
from ignite_hooks.config.kinds import fields_of
from ignite_hooks.config.problems import ConfigError
from ignite_hooks.config.problems import Problem
from ignite_hooks.core.rules import did_you_mean

__all__ = ["check_the_same", "from_dict", "replace", "to_dict"]

HandlerT = TypeVar("HandlerT")


def to_dict(handler: Any, exclude_defaults: bool = False, exclude_none: bool = False) -> Any:
    """A handler as plain data: ``{"type": "gradient_clipping", "max_norm": 1.0, …}``.

    A list of handlers becomes a list, a mapping of handlers by name a dict. Keys are in the order
    of the fields. ``from_dict`` makes an equal handler of it, and that is checked here, so that
    what has become invalid since it was made is not written either.

    Args:
        handler: a handler, ``RunSettings``, or what was registered; a list or a mapping of such.
        exclude_defaults: leave out fields that have their default.
        exclude_none: leave out fields that are None.

    Raises:
        ConfigError: it holds what is no data, or what would not come back as it is.
    """
    encoder = Encoder(exclude_defaults=exclude_defaults, exclude_none=exclude_none)
    data = encoder.encode(handler)
    check_the_same(handler, from_dict(data))
    return data


def from_dict(data: Any) -> Any:
    """The handler, or the list or the mapping of handlers, that ``to_dict`` has made data of.

    ``type`` says which class a mapping is of, one of this package's or one that was registered:
    nothing else is looked up, imported or run. Where a field can be of one class it may be left
    out. A value must be of its field's type: no string is a number but "inf", "-inf" and "nan".

    Raises:
        ConfigError: data is not what it is to be: all that is wrong, with the paths.
    """
    check_depth(data)
    return decode(data)


def replace(handler: HandlerT, **changes: Any) -> HandlerT:
    """A copy of a handler with some fields changed, checked as a new one is.

    Raises:
        TypeError: there is no such field.
        ValueError: the class refuses the values.
    """
    fields = fields_of(type(handler))
    for name in changes:
        if name not in fields:
            raise TypeError(
                f"`changes` must be fields of {type(handler).__name__}, got `{name}`; "
                f"{did_you_mean(name, fields)}"
            )
    return dataclasses.replace(handler, **changes)  # type: ignore[type-var]


def check_the_same(before: Any, after: Any) -> None:
    """Raises a ConfigError if what was written does not come back."""
    path = first_difference(before, after)
    if path is not None:
        raise ConfigError(
            [
                Problem(
                    path,
                    "it would not come back as it is: give the field a type that says what it is, "
                    "float for inf, tuple for a tuple, a registered class for a handler",
                )
            ]
        )
