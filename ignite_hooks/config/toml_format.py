"""Reads and writes TOML.

TOML has no None, so ``dumps`` refuses data that contains a None. ``loads`` limits the number of
parts of a key and the depth of the data. Otherwise a small file could take much memory, or overflow
the stack.
"""

import re
import sys
from collections.abc import Mapping
from typing import Any

import tomli_w

from ignite_hooks.config.bounds import MAX_DEPTH
from ignite_hooks.config.bounds import depth_error
from ignite_hooks.config.bounds import parse_float
from ignite_hooks.config.problems import config_error
from ignite_hooks.config.problems import join_path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["dumps", "loads"]

MAX_PARTS = 32
"""The largest number of parts of a dotted key; ``a.b.c`` has three.

The memory that tomllib takes grows with the square of the number of parts: 1.5 GB for a key of
39 KB.
"""

_TOKEN = re.compile(r"""#[^\n]*|\"{3}|'{3}|["'.,=\n]|[][{}]""")

# The keys are the quotes that begin a string. A value matches the end of such a string, or an
# escaped character within it. A multi-line string may end with up to five quotes: up to two quotes
# of the content, and the three that end the string.
_STRING_ENDS = {
    '"': re.compile(r'\\.|"|\n', re.DOTALL),
    '"""': re.compile(r'\\.|"{3,5}', re.DOTALL),
    "'": re.compile(r"'|\n"),
    "'''": re.compile(r"'{3,5}"),
}


def dumps(data: Any) -> str:
    """Returns data as TOML.

    Raises:
        ConfigError: the data is a list, or contains a None.
    """
    if not isinstance(data, Mapping):
        raise config_error(
            "TOML must have a mapping at its top, got a list: give each handler a name, or use YAML"
        )
    _check_no_none(data, "")
    return tomli_w.dumps(data)


def loads(text: str) -> Any:
    """Returns the data of a TOML text.

    Raises:
        ValueError: the text is not TOML, or exceeds a limit.
    """
    _check_keys_and_depth(text)
    return tomllib.loads(text, parse_float=parse_float)


def _check_keys_and_depth(text: str) -> None:
    """Raises an error for a key with too many parts, and for a text that is nested too deep.

    Outside of strings and comments, only keys and numbers contain dots, and a number has at most
    one. So the dots are counted, and the count begins again at each ``,``, ``=``, bracket and line
    break. A high count means that a key has too many parts.
    """
    position = dots = depth = 0
    while (match := _TOKEN.search(text, position)) is not None:
        token, position = match[0], match.end()
        if token in _STRING_ENDS:
            position = _end_of_string(text, position, token)
        elif token == ".":
            dots += 1
        elif not token.startswith("#"):
            dots = 0
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token, 0)
        if dots >= MAX_PARTS:
            line = text.count("\n", 0, position) + 1
            raise ValueError(f"a key must have at most {MAX_PARTS} parts, line {line} has more")
        if depth > MAX_DEPTH:
            raise depth_error()


def _end_of_string(text: str, position: int, opening: str) -> int:
    while (match := _STRING_ENDS[opening].search(text, position)) is not None:
        position = match.end()
        if not match[0].startswith("\\"):
            return position
    return len(text)


def _check_no_none(data: Any, path: str) -> None:
    if data is None:
        raise config_error("TOML must have no None within a value: use YAML or JSON", path)
    pairs = data.items() if isinstance(data, Mapping) else ()
    for key, each in enumerate(data) if isinstance(data, list) else pairs:
        _check_no_none(each, join_path(path, key))
