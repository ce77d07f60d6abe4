"""Errors of a configuration: all problems at once, each with its path in the data."""

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["ConfigError", "Problem", "config_error", "duplicate_key_message", "join_path"]

_MAX_SHOWN = 20
_MAX_LENGTH = 500
_NAME = re.compile(r"[\w-]+")


class Problem(NamedTuple):
    """A problem of a configuration.

    Attributes:
        path: the place in the data, for example ``handlers[1].every_steps``; "" for the whole data.
        message: the rule, the value received, and the remedy.
    """

    path: str
    message: str

    def __str__(self) -> str:
        message = _shorten(self.message)
        return f"{self.path}: {message}" if self.path else message


class ConfigError(ValueError):
    """Raised if a handler cannot be written as data, or if data is invalid.

    Args:
        problems: all problems, in the order of the data.
        source: where the data comes from, for example the name of a file.
    """

    def __init__(self, problems: Sequence[Problem], source: str = "") -> None:
        self.problems = tuple(problems)
        self.source = source
        lines = [str(problem) for problem in self.problems[:_MAX_SHOWN]]
        if len(self.problems) > _MAX_SHOWN:
            lines.append(f"… and {len(self.problems) - _MAX_SHOWN} more")
        if source:
            lines = [f"{source}: {line}" for line in lines]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type, tuple[Sequence[Problem], str]]:
        # Without this method, unpickling would pass the text of the error as `problems`.
        return type(self), (self.problems, self.source)


def config_error(message: str, path: str = "") -> ConfigError:
    """Returns the error for a single problem."""
    return ConfigError([Problem(path, message)])


def duplicate_key_message(key: str) -> str:
    """Returns the message for a key that a mapping has twice."""
    return f"a key must be unique in its mapping, {key[:80]!r} is given twice: remove one"


def join_path(path: str, key: str | int) -> str:
    """Returns the path of ``key``, which is an item or a field of the value at ``path``."""
    if isinstance(key, int):
        joined = f"{path}[{key}]"
    elif not _NAME.fullmatch(key):
        joined = f"{path}[{json.dumps(key, ensure_ascii=False)}]"
    else:
        joined = f"{path}.{key}" if path else key
    # A key is repeated in the paths of all items below it. If a key of half a megabyte has 30,000
    # items below it, their paths would take gigabytes without a limit.
    return _shorten(joined)


def _shorten(text: str) -> str:
    """Returns a text, without its middle if it is too long.

    The end of the text is kept, because messages end with the remedy.
    """
    half = _MAX_LENGTH // 2
    return text if len(text) <= _MAX_LENGTH else f"{text[:half]} … {text[-half:]}"
