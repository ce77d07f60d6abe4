"""Limits of a configuration: the size of its text, its nesting, and its floats.

A text beyond these limits is refused, because reading it could take too much time or memory, or
overflow the stack.
"""

import math
from collections.abc import Mapping
from typing import Any

from ignite_hooks.config.problems import ConfigError
from ignite_hooks.config.problems import config_error

__all__ = ["MAX_DEPTH", "MAX_SIZE", "check_depth", "check_size", "depth_error", "parse_float"]

MAX_SIZE = 2**20
"""The largest size of a text, in bytes."""

MAX_DEPTH = 32
"""The largest number of lists and mappings that are nested in one another."""


def check_size(size: int) -> None:
    """Raises a ConfigError if a text has more bytes than are allowed."""
    if size > MAX_SIZE:
        raise config_error(
            f"the text must be at most {MAX_SIZE} bytes, got {size}: check that it is a "
            "configuration"
        )


def check_depth(data: Any) -> None:
    """Raises a ConfigError if data is nested too deep.

    Data that contains itself is always nested too deep.
    """
    # The check goes level by level. A recursive check could overflow Python's stack.
    level = [data]
    for _ in range(MAX_DEPTH + 1):
        containers = [x for x in level if isinstance(x, Mapping | list | tuple | set | frozenset)]
        if not containers:
            return
        # Each object is taken only once. Otherwise a list that contains itself twice would double
        # the number of objects at each level.
        within: dict[int, Any] = {}
        for each in containers:
            parts = each.values() if isinstance(each, Mapping) else each
            within.update((id(part), part) for part in parts)
        level = list(within.values())
    raise depth_error()


def depth_error() -> ConfigError:
    """Returns the error for data that is nested too deep."""
    return config_error(
        f"lists and mappings must be nested at most {MAX_DEPTH} deep, got more: flatten them"
    )


def parse_float(text: str) -> float:
    """Returns the float that a text stands for.

    Raises:
        ValueError: the text is not a number, or the number is too large for a float. Python itself
            would read such a number as inf, without an error.
    """
    number = float(text)
    if math.isinf(number) and "inf" not in text.lower():
        raise ValueError(
            f"a number must be at most 1.8e308, got {text[:80]}: write inf if infinity is meant"
        )
    return number
