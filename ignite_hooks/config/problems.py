"""What is wrong with a configuration: everything at once, each with its path in the data."""

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["ConfigError", "Problem", "at"]

_SHOWN = 20
_WIDTH = 500
_NAME = re.compile(r"[\w-]+")


class Problem(NamedTuple):
    """One thing that is wrong.

    Args:
        path: where it is, ``handlers[1].every_steps`` for instance; "" is the whole.
        message: the rule, what was found, and what to do.
    """

    path: str
    message: str

    def __str__(self) -> str:
        message = _cut(self.message)  # a long value within it; the remedy is at the end
        return f"{self.path}: {message}" if self.path else message


class ConfigError(ValueError):
    """Something cannot be written as data, or data is not what it is to be.

    Args:
        problems: all that is wrong, in the order of the data.
        source: what was read, a file's name for instance.
    """

    def __init__(self, problems: Sequence[Problem], source: str = "") -> None:
        self.problems = tuple(problems)
        self.source = source
        lines = [str(problem) for problem in self.problems[:_SHOWN]]
        if len(self.problems) > _SHOWN:
            lines.append(f"… and {len(self.problems) - _SHOWN} more")
        if source:
            lines = [f"{source}: {line}" for line in lines]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type, tuple[Sequence[Problem], str]]:
        return type(self), (self.problems, self.source)


def at(path: str, key: str | int) -> str:
    """The path of an item, or of a field, of what is at ``path``."""
    if isinstance(key, int):
        whole = f"{path}[{key}]"
    elif not _NAME.fullmatch(key):
        whole = f"{path}[{json.dumps(key, ensure_ascii=False)}]"
    else:
        whole = f"{path}.{key}" if path else key
    return _cut(whole)  # a long key is in the path of each of its items


def _cut(text: str) -> str:
    """The beginning and the end of what is too long."""
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH // 2]} … {text[-_WIDTH // 2 :]}"
