"""JSON as the standard has it: no Infinity, no NaN, no key twice."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from ignite_hooks.config.bounds import MAX_DEPTH
from ignite_hooks.config.bounds import finite
from ignite_hooks.config.bounds import too_deep
from ignite_hooks.config.bounds import twice

__all__ = ["dumps", "loads"]

_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[][{}]', re.DOTALL)


def dumps(data: Any) -> str:
    """The text; floats that JSON has no numbers for are the strings "inf", "-inf" and "nan"."""
    return json.dumps(_with_strings(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def loads(text: str) -> Any:
    """The data.

    Raises:
        ValueError: it is no JSON, or more than is allowed.
    """
    _check_depth(text)
    return json.loads(
        text, object_pairs_hook=_unique, parse_float=finite, parse_constant=_no_constant
    )


def _check_depth(text: str) -> None:
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth > MAX_DEPTH:
            raise too_deep()


def _with_strings(data: Any) -> Any:
    if isinstance(data, float) and not math.isfinite(data):
        return str(data)
    if isinstance(data, Mapping):
        return {key: _with_strings(each) for key, each in data.items()}
    if isinstance(data, list):
        return [_with_strings(each) for each in data]
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(twice(key))
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(
        f'JSON must have no {name}, which only some readers take: write "inf", "-inf" or "nan"'
    )
