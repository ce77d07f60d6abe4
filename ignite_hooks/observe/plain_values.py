"""Converts the values of metrics to plain Python data, which can be shown, written or sent."""

import math
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

    A tensor or an array of one element becomes a number. A larger one becomes a list, or a text
    with its shape if it has more than ``MAX_ELEMENTS`` elements. Any other object becomes a short
    text. Reading a tensor on a device synchronizes with the device.
    """
    return {str(name): _plain(value) for name, value in metrics.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return _plain_array(value)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        return plain_values(value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return short_repr(value)


def _plain_array(value: Any) -> Any:
    """Returns a tensor or an array as a number or as a list; as a text if it is too large."""
    shape = tuple(value.shape)
    size = math.prod(shape)
    if size > MAX_ELEMENTS:
        return describe_value(value)
    try:
        items = value.reshape(()).tolist() if size == 1 else value.tolist()
    except (RuntimeError, NotImplementedError):  # a sparse tensor, or a tensor without values
        return describe_value(value)
    return _plain(items)
