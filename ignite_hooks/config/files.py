"""Handlers as JSON, YAML and TOML, in strings and in files."""

from pathlib import Path
from secrets import token_hex
from types import ModuleType
from typing import Any

from ignite_hooks.config import json_format
from ignite_hooks.config import toml_format
from ignite_hooks.config import yaml_format
from ignite_hooks.config.bounds import MAX_SIZE
from ignite_hooks.config.bounds import check_size
from ignite_hooks.config.conversion import check_the_same
from ignite_hooks.config.conversion import from_dict
from ignite_hooks.config.conversion import to_dict
from ignite_hooks.config.problems import ConfigError
from ignite_hooks.config.problems import Problem
from ignite_hooks.core.rules import did_you_mean

__all__ = ["dumps", "load", "loads", "save"]

_FORMATS: dict[str, ModuleType] = {"json": json_format, "toml": toml_format, "yaml": yaml_format}
_SUFFIXES = {".json": "json", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml"}


def dumps(obj: Any, format: str = "json", *, exclude_defaults: bool = False) -> str:
    """The text of a handler, of a list or of a mapping of handlers, as ``to_dict`` sees them.

    It can be read again, and that is checked here. In TOML fields that are None are not there.

    Args:
        obj: what is to be written.
        format: "json", "yaml" or "toml".
        exclude_defaults: leave out fields that have their default.

    Raises:
        ConfigError: it is no data, or cannot be written in this format.
        ValueError: there is no such format.
    """
    module = _format(format)
    data = to_dict(obj, exclude_defaults, exclude_none=module is toml_format)
    text: str = module.dumps(data)
    check_the_same(obj, loads(text, format))
    return text


def loads(text: str, format: str) -> Any:
    """The handler, or the list or mapping of handlers, that a text describes.

    Nothing in the text is imported or run. It has at most 1 MiB and a depth of 32; YAML without
    anchors, aliases, merge keys and tags, with plain scalars as YAML 1.2 reads them (``no`` is a
    string, ``1e-3`` a number) and at most 100,000 values; TOML with at most 32 parts in a key; and
    no key twice.

    Args:
        text: what was written.
        format: "json", "yaml" or "toml".

    Raises:
        ConfigError: what is wrong, each with its path in the data.
        TypeError: the text is no string.
        ValueError: there is no such format.
    """
    module = _format(format)
    if not isinstance(text, str):
        raise TypeError(f"`text` must be a str, got {type(text).__name__}: load() reads files")
    check_size(len(text) if len(text) > MAX_SIZE else len(text.encode(errors="replace")))
    if not text.strip():  # TOML takes it for an empty mapping, as what is left of a lost file
        message = "the text must have a mapping or a list, it is empty: was it cut off?"
        raise ConfigError([Problem("", message)])
    try:
        data = module.loads(text)
    except ConfigError:
        raise
    except ValueError as error:
        message = f"it cannot be read as {format.upper()}: {error}"
        raise ConfigError([Problem("", message)]) from error
    return from_dict(data)


def save(obj: Any, path: str | Path, *, exclude_defaults: bool = False) -> None:
    """Writes ``dumps`` of it to a file: whole, or not at all.

    Args:
        obj: what is to be written.
        path: the file; .json, .yaml, .yml or .toml says the format.
        exclude_defaults: leave out fields that have their default.

    Raises:
        ConfigError: it is no data, or cannot be written in this format.
        ValueError: the suffix is of no format.
        OSError: the file cannot be written.
    """
    path = Path(path).expanduser()
    text = dumps(obj, _format_of(path), exclude_defaults=exclude_defaults)
    draft = path.with_name(f".{path.name}.{token_hex(4)}")  # with the rights that new files get
    try:
        with draft.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def load(path: str | Path) -> Any:
    """What ``loads`` makes of a file.

    Args:
        path: the file; .json, .yaml, .yml or .toml says the format.

    Raises:
        ConfigError: what is wrong, each with its path in the data.
        ValueError: the suffix is of no format.
        OSError: the file cannot be read.
    """
    path = Path(path).expanduser()
    format = _format_of(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SIZE + 1)
        check_size(len(content))
        return loads(content.decode("utf-8-sig"), format)
    except ConfigError as error:
        raise ConfigError(error.problems, str(path)) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem("", f"it must be UTF-8: {error}")], str(path)) from error


def _format(name: Any) -> ModuleType:
    if not isinstance(name, str) or name not in _FORMATS:
        raise ValueError(
            f"`format` must be one of {', '.join(_FORMATS)}, got {str(name)[:80]!r}; "
            f"{did_you_mean(str(name)[:80].lower(), _FORMATS)}"
        )
    return _FORMATS[name]


def _format_of(path: Path) -> str:
    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(
            f"`path` must end in one of {', '.join(_SUFFIXES)}, got {path}: the suffix says the "
            "format"
        )
    return _SUFFIXES[path.suffix.lower()]
