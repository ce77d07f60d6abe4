"""Handlers as JSON, YAML and TOML, in strings and in files."""

from pathlib import Path
from secrets import token_hex
from types import ModuleType
from typing import Any
from typing import TypeVar
from typing import overload

from ignite_hooks.config import json_format
from ignite_hooks.config import toml_format
from ignite_hooks.config import yaml_format
from ignite_hooks.config.bounds import MAX_SIZE
from ignite_hooks.config.bounds import check_size
from ignite_hooks.config.conversion import check_round_trip
from ignite_hooks.config.conversion import from_dict
from ignite_hooks.config.conversion import to_dict
from ignite_hooks.config.problems import ConfigError
from ignite_hooks.config.problems import Problem
from ignite_hooks.config.problems import config_error
from ignite_hooks.config.registry import tag_of
from ignite_hooks.core.rules import did_you_mean

__all__ = ["dumps", "load", "loads", "save"]

T = TypeVar("T")

_FORMATS: dict[str, ModuleType] = {"json": json_format, "toml": toml_format, "yaml": yaml_format}
_SUFFIXES = {".json": "json", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml"}


def dumps(obj: Any, format: str = "json", *, exclude_defaults: bool = False) -> str:
    """Returns the text of a handler, or of a list or mapping of handlers.

    Before ``dumps`` returns the text, it reads the text back and compares the result with ``obj``.
    In TOML, fields that are None are left out, because TOML has no None.

    Args:
        obj: the handler or handlers, as for ``to_dict``.
        format: "json", "yaml" or "toml".
        exclude_defaults: whether to leave out fields that have their default.

    Raises:
        ConfigError: a value is not plain data, or cannot be written in this format.
        ValueError: the format is unknown.
    """
    module = _format_module(format)
    data = to_dict(obj, exclude_defaults, exclude_none=module is toml_format)
    text: str = module.dumps(data)
    check_round_trip(obj, loads(text, format))
    return text


@overload
def loads(text: str, format: str) -> Any: ...


@overload
def loads(text: str, format: str, expected: type[T]) -> T: ...


def loads(text: str, format: str, expected: type[Any] = object) -> Any:
    """Returns the handler, or the list or mapping of handlers, that a text describes.

    Nothing in the text is imported or run. These limits hold:

    - a text has at most 1 MiB, at most 32 levels of lists and mappings, and no duplicate keys;
    - a YAML text has at most 100,000 values, and no anchors, aliases, merge keys or tags. Plain
      scalars are read as in YAML 1.2: ``no`` is a string, ``1e-3`` a number;
    - a key in a TOML text has at most 32 parts.

    Args:
        text: the text.
        format: "json", "yaml" or "toml".
        expected: the class that the text must describe, for example ``RunSettings``.

    Raises:
        ConfigError: the text is invalid, or describes something else than ``expected``. The error
            has all problems with their paths in the data.
        TypeError: the text is not a string.
        ValueError: the format is unknown.
    """
    module = _format_module(format)
    if not isinstance(text, str):
        raise TypeError(f"`text` must be a str, got {type(text).__name__}: load() reads files")
    # The limit is a number of bytes. A character takes at least one byte, so a text with more than
    # MAX_SIZE characters is too large, and need not be encoded to count its bytes.
    check_size(len(text) if len(text) > MAX_SIZE else len(text.encode(errors="replace")))
    # An empty text may come from a file that was cut off, so it is an error. The TOML parser would
    # accept it as an empty mapping.
    if not text.strip():
        raise config_error(
            "the text must have a mapping or a list, got an empty text: check that the file was "
            "written completely"
        )
    try:
        data = module.loads(text)
    except ConfigError:
        raise
    except ValueError as error:
        raise config_error(f"it cannot be read as {format.upper()}: {error}") from error
    found = from_dict(data)
    if not isinstance(found, expected):
        tag = tag_of(expected)
        remedy = f": set its `type` to {tag!r}" if tag else ""
        raise config_error(
            f"it must describe a {expected.__name__}, got a {type(found).__name__}{remedy}"
        )
    return found


def save(obj: Any, path: str | Path, *, exclude_defaults: bool = False) -> None:
    """Writes handlers to a file, in the same form as ``dumps`` writes them to a string.

    If the save fails, an existing file at ``path`` is unchanged.

    Args:
        obj: the handler or handlers, as for ``to_dict``.
        path: the file. Its suffix gives the format: .json, .yaml, .yml or .toml.
        exclude_defaults: whether to leave out fields that have their default.

    Raises:
        ConfigError: a value is not plain data, or cannot be written in this format.
        ValueError: the suffix is unknown.
        OSError: the file cannot be written.
    """
    path = Path(path).expanduser()
    text = dumps(obj, _format_of_suffix(path), exclude_defaults=exclude_defaults)
    # The text is written to a temporary file, which then replaces the file at `path`. `tempfile` is
    # not used, because only the owner may read the files that it makes.
    temporary = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@overload
def load(path: str | Path) -> Any: ...


@overload
def load(path: str | Path, expected: type[T]) -> T: ...


def load(path: str | Path, expected: type[Any] = object) -> Any:
    """Reads handlers from a file. The limits of ``loads`` hold.

    Args:
        path: the file. Its suffix gives the format: .json, .yaml, .yml or .toml.
        expected: the class that the file must describe, for example ``RunSettings``.

    Raises:
        ConfigError: the file is invalid, or describes something else than ``expected``. The error
            has all problems with their paths in the data.
        ValueError: the suffix is unknown.
        OSError: the file cannot be read.
    """
    path = Path(path).expanduser()
    format = _format_of_suffix(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SIZE + 1)
        check_size(len(content))
        # Editors on Windows write a BOM.
        return loads(content.decode("utf-8-sig"), format, expected)
    except ConfigError as error:
        raise ConfigError(error.problems, str(path)) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem("", f"it must be UTF-8: {error}")], str(path)) from error


def _format_module(name: Any) -> ModuleType:
    if not isinstance(name, str) or name not in _FORMATS:
        shown = str(name)[:80]  # if the arguments are swapped, `name` is the whole text
        raise ValueError(
            f"`format` must be one of {', '.join(_FORMATS)}, got {shown!r}; "
            f"{did_you_mean(shown.lower(), _FORMATS)}"
        )
    return _FORMATS[name]


def _format_of_suffix(path: Path) -> str:
    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(
            f"`path` must end in one of {', '.join(_SUFFIXES)}, got {path}: write the "
            "settings in one of these formats, run.yaml for example"
        )
    return _SUFFIXES[path.suffix.lower()]
