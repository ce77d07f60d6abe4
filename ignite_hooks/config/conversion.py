"""Conversion of handlers to plain data and back, and checked copies of handlers."""

import dataclasses
from typing import Any
from typing import TypeVar

from ignite_hooks.config.annotations import fields_of
from ignite_hooks.config.bounds import check_depth
from ignite_hooks.config.decoding import decode
from ignite_hooks.config.encoding import Encoder
from ignite_hooks.config.encoding import first_difference
from ignite_hooks.config.problems import config_error
from ignite_hooks.core.rules import did_you_mean

__all__ = ["check_round_trip", "from_dict", "replace", "to_dict"]

HandlerT = TypeVar("HandlerT")


def to_dict(handler: Any, exclude_defaults: bool = False, exclude_none: bool = False) -> Any:
    """Returns a handler as plain data: ``{"type": "gradient_clipping", "max_norm": 1.0, …}``.

    A list of handlers becomes a list, a mapping of handlers by name becomes a dict. Keys are in the
    order of the fields. ``to_dict`` checks that ``from_dict`` makes an equal handler from the data.
    So a handler whose values have become invalid since its construction is refused.

    Args:
        handler: a handler, ``RunSettings``, or an instance of a class that was registered with
            ``register``; or a list or mapping of such objects.
        exclude_defaults: whether to leave out fields that have their default.
        exclude_none: whether to leave out fields that are None.

    Raises:
        ConfigError: a value is not plain data, or would not be read back as the same value.
    """
    encoder = Encoder(exclude_defaults=exclude_defaults, exclude_none=exclude_none)
    data = encoder.encode(handler)
    check_round_trip(handler, from_dict(data))
    return data


def from_dict(data: Any) -> Any:
    """Returns the handler, or the list or mapping of handlers, that plain data describes.

    One handler is a mapping in which the key ``type`` names the class of the handler. The class
    must belong to this package, or must have been registered with ``register``. No other class is
    looked up, imported or run. If a field of a handler allows only one class, the mapping for this
    field may leave ``type`` out. A value must have the type of its field. Strings are not converted
    to numbers, except "inf", "-inf" and "nan".

    Raises:
        ConfigError: the data is invalid. The error has all problems with their paths.
    """
    check_depth(data)
    return decode(data)


def replace(handler: HandlerT, **changes: Any) -> HandlerT:
    """Returns a copy of a handler with some fields changed. The copy is checked like a new handler.

    Raises:
        TypeError: a name in ``changes`` is not a field of the handler.
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


def check_round_trip(before: Any, after: Any) -> None:
    """Raises a ConfigError if a handler differs from the handler that was read back.

    Args:
        before: the handler that was written, or several handlers.
        after: the handler or handlers that were read back.
    """
    path = first_difference(before, after)
    if path is not None:
        raise config_error(
            "the value must be the same after writing and reading, but would differ: give the "
            "field a type that fits the value (float for inf, tuple for a tuple, a registered "
            "class for a handler)",
            path,
        )
