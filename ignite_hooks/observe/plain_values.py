"""Converts the values of metrics to plain Python data, which can be shown, written or sent."""

import math
import sys
from collections.abc import Mapping
from numbers import Integral
from numbers import Real
from typing import Any

import numpy as np
import torch

from ignite_hooks.core.rules import short_repr
from ignite_hooks.data.batch import describe_value

__all__ = ["MAX_ELEMENTS", "plain_values"]

MAX_ELEMENTS = 1000  # of a tensor or an array that is converted to a list


def plain_values(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values as numbers, or as lists and dicts of numbers, or as texts.

    A tensor or an array of one element becomes a number. A larger one becomes a list. A tensor, an
    array, a list or a dict of more than ``MAX_ELEMENTS`` elements becomes a text with its size. Any
    other object, and an integer that is too large for a float, becomes a short text. Reading a
    tensor on a device synchronizes with the device.
    """
    return {str(name): _plain_or_text(value) for name, value in metrics.items()}


def _plain_or_text(value: Any) -> Any:
    try:
        return _plain(value)
    except Exception:  # for example a tensor without values, or a list that contains itself
        return short_repr(value)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor | np.ndarray):
        return _plain_array(value)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, Integral):
        number = int(value)
        return number if number.bit_length() < sys.float_info.max_exp else short_repr(number)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping | list | tuple) and len(value) > MAX_ELEMENTS:
        return describe_value(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return short_repr(value)


def _plain_array(value: Any) -> Any:
    """Returns a tensor or an array as a number or as a list; as a text if it is too large."""
    size = math.prod(value.shape)
    if size > MAX_ELEMENTS:
        return describe_value(value)
    try:
        items = value.reshape(()).tolist() if size == 1 else value.tolist()
    except (RuntimeError, NotImplementedError):  # a sparse tensor, or a tensor without values
        return describe_value(value)
    return _plain(items)
