"""TOML: what is None is left out, and a key has few parts."""

import re
import sys
from collections.abc import Mapping
from typing import Any

import tomli_w

from ignite_hooks.config.bounds import MAX_DEPTH
from ignite_hooks.config.bounds import finite
from ignite_hooks.config.bounds import too_deep
from ignite_hooks.config.problems import ConfigError
from ignite_hooks.config.problems import Problem
from ignite_hooks.config.problems import at

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["dumps", "loads"]

MAX_PARTS = 32
"""Of a dotted key. tomllib takes memory by their square: 1.5 GB for a key of 39 KB."""

_TOKEN = re.compile(r"""#[^\n]*|\"{3}|'{3}|["'.,=\n]|[][{}]""")
_CLOSES = {
    '"': re.compile(r'\\.|"|\n', re.DOTALL),
    '"""': re.compile(r'\\.|"{3,5}', re.DOTALL),
    "'": re.compile(r"'|\n"),
    "'''": re.compile(r"'{3,5}"),
}


def dumps(data: Any) -> str:
    """The text.

    Raises:
        ConfigError: the whole is a list, or None is somewhere else than in a field.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(
            [
                Problem(
                    "", "TOML must have a mapping at its top, got a list: give names, or use YAML"
                )
            ]
        )
    _check_nothing_is_none(data, "")
    return tomli_w.dumps(data)


def loads(text: str) -> Any:
    """The data.

    Raises:
        ValueError: it is no TOML, or more than is allowed.
    """
    _check_nesting(text)
    return tomllib.loads(text, parse_float=finite)


def _check_nesting(text: str) -> None:
    """Strings and comments apart, dots are in keys and numbers, and brackets nest."""
    place = dots = depth = 0
    while (token := _TOKEN.search(text, place)) is not None:
        kind, place = token[0], token.end()
        if kind in _CLOSES:
            place = _end_of_string(text, place, kind)
        elif kind == ".":
            dots += 1
        elif not kind.startswith("#"):
            dots = 0
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(kind, 0)
        if dots >= MAX_PARTS:
            line = text.count("\n", 0, place) + 1
            raise ValueError(f"a key must have at most {MAX_PARTS} parts, line {line} has more")
        if depth > MAX_DEPTH:
            raise too_deep()


def _end_of_string(text: str, place: int, opening: str) -> int:
    while (token := _CLOSES[opening].search(text, place)) is not None:
        place = token.end()
        if not token[0].startswith("\\"):
            return place
    return len(text)


def _check_nothing_is_none(data: Any, path: str) -> None:
    if data is None:
        raise ConfigError(
            [Problem(path, "TOML must have no None within a value: use YAML or JSON")]
        )
    pairs = data.items() if isinstance(data, Mapping) else ()
    for key, each in enumerate(data) if isinstance(data, list) else pairs:
        _check_nothing_is_none(each, at(path, key))
