"""Bounds of a configuration: of its size, its depth, its numbers and how often a key is there."""

import math
from collections.abc import Mapping
from typing import Any

from ignite_hooks.config.problems import ConfigError
from ignite_hooks.config.problems import Problem

__all__ = ["MAX_DEPTH", "MAX_SIZE", "check_depth", "check_size", "finite", "too_deep", "twice"]

MAX_SIZE = 2**20
"""Bytes of a text."""

MAX_DEPTH = 32
"""Lists and mappings, one within the other."""


def check_size(size: int) -> None:
    """Raises a ConfigError if a text has too many bytes."""
    if size > MAX_SIZE:
        raise ConfigError(
            [Problem("", f"the text must be at most {MAX_SIZE} bytes, got {size}: is it data?")]
        )


def check_depth(data: Any) -> None:
    """Raises a ConfigError if data is too deep, as what contains itself is."""
    level = [data]
    for _ in range(MAX_DEPTH + 1):
        containers = [x for x in level if isinstance(x, Mapping | list | tuple | set | frozenset)]
        if not containers:
            return
        within: dict[int, Any] = {}  # once each: what contains itself twice grows at each level
        for each in containers:
            parts = each.values() if isinstance(each, Mapping) else each
            within.update((id(part), part) for part in parts)
        level = list(within.values())
    raise too_deep()


def too_deep() -> ConfigError:
    """The error."""
    message = f"lists and mappings must be at most {MAX_DEPTH} deep, these are deeper: flatten them"
    return ConfigError([Problem("", message)])


def twice(key: str) -> str:
    """The message for a key that is given twice."""
    return f"a key must be there once, {key[:80]!r} is given twice: remove one"


def finite(text: str) -> float:
    """Returns the float that the digits of a number stand for.

    Raises:
        ValueError: it is too large, and would be read as inf.
    """
    number = float(text)
    if math.isinf(number) and "inf" not in text.lower():
        raise ValueError(f"a number must be at most 1.8e308, got {text[:80]}: inf says what it is")
    return number
