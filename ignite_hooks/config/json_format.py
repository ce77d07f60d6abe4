"""JSON as the standard defines it: without Infinity and NaN, and without duplicate keys."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from ignite_hooks.config.bounds import MAX_DEPTH
from ignite_hooks.config.bounds import depth_error
from ignite_hooks.config.bounds import parse_float
from ignite_hooks.config.problems import duplicate_key_message

__all__ = ["dumps", "loads"]

# Finds the brackets of a text. Strings are found as well, so that brackets in them do not count. A
# string without closing quotes extends to the end of the text.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[][{}]', re.DOTALL)


def dumps(data: Any) -> str:
    """Returns data as JSON. Infinity, -infinity and NaN become "inf", "-inf" and "nan"."""
    return json.dumps(_name_floats(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def loads(text: str) -> Any:
    """Returns the data of a JSON text.

    Raises:
        ValueError: the text is not JSON, or exceeds a limit.
    """
    _check_depth(text)
    return json.loads(
        text,
        object_pairs_hook=_make_object,
        parse_float=parse_float,
        parse_constant=_refuse_constant,
    )


def _check_depth(text: str) -> None:
    """Raises an error if a text is nested too deep.

    This is checked before the text is parsed, because Python's parser is recursive, and a deep text
    could overflow the stack.
    """
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth > MAX_DEPTH:
            raise depth_error()


def _name_floats(data: Any) -> Any:
    """Returns data with strings in place of the floats that JSON cannot write as numbers."""
    if isinstance(data, float) and not math.isfinite(data):
        return str(data)
    if isinstance(data, Mapping):
        return {key: _name_floats(each) for key, each in data.items()}
    if isinstance(data, list):
        return [_name_floats(each) for each in data]
    return data


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object as a dict, and refuses duplicate keys.

    Without this function, Python's parser would keep the last value of a duplicate key.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(duplicate_key_message(key))
        found[key] = value
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(
        f'JSON must have no {name}, which only some readers accept: write "inf", "-inf" or "nan"'
    )
