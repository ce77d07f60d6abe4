"""From plain data to handlers, field by field by their types; pydantic checks what they become."""

import math
from collections.abc import Mapping
from reprlib import Repr
from typing import Any

from pydantic import ValidationError
from pydantic_core import ArgsKwargs

from ignite_hooks.config.kinds import SCALARS
from ignite_hooks.config.kinds import admits_none
from ignite_hooks.config.kinds import choices_of
from ignite_hooks.config.kinds import class_of
from ignite_hooks.config.kinds import fields_of
from ignite_hooks.config.kinds import items_of
from ignite_hooks.config.kinds import members_of
from ignite_hooks.config.kinds import name_of
from ignite_hooks.config.problems import ConfigError
from ignite_hooks.config.problems import Problem
from ignite_hooks.config.problems import at
from ignite_hooks.config.registry import TAG
from ignite_hooks.config.registry import all_tagged
from ignite_hooks.config.registry import tag_of
from ignite_hooks.config.registry import tagged
from ignite_hooks.core.checked_dataclass import message_of
from ignite_hooks.core.rules import did_you_mean

__all__ = ["decode"]

MAX_BITS = 2**13
"""Of an integer: Python does not write more than 4,300 digits unless told to."""

_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def decode(data: Any) -> Any:
    """The handler, or the list or mapping of handlers, that ``data`` describes.

    Raises:
        ConfigError: all that is wrong.
    """
    decoder = _Decoder()
    value = decoder.top(data, "")
    if decoder.problems:
        raise ConfigError(decoder.problems)
    return value


class _Unread:
    """Stands for a value that has a problem."""


_UNREAD = _Unread()


class _Decoder:
    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def top(self, data: Any, path: str) -> Any:
        """A handler, or several."""
        if isinstance(data, Mapping) and isinstance(data.get(TAG), str):
            return self._tagged(data, object, all_tagged(), path)
        if isinstance(data, Mapping):
            for key in data:
                if not isinstance(key, str):
                    return self._problem(path, f"must have strings as keys, got {_short(key)}")
            return {key: self.top(each, at(path, key)) for key, each in data.items()}
        if isinstance(data, list | tuple):
            return [self.top(each, at(path, index)) for index, each in enumerate(data)]
        return self._problem(
            path,
            f"must be a mapping with `{TAG}`, or a list or a mapping of such, got {_short(data)}; "
            f"the settings of a run begin with `{TAG}: run`",
        )

    def value(self, data: Any, kind: Any, path: str) -> Any:
        """What a field of the type ``kind`` is to be given."""
        members = members_of(kind)
        if data is None and admits_none(kind):
            return data
        if len(members) == 1:
            return self._member(data, members[0], path)
        if type(data) in members:
            return data
        tried: list[list[Problem]] = []
        for member in members:
            trial = _Decoder()
            value = trial._member(data, member, path)
            if not trial.problems:
                return value
            tried.append(trial.problems)
        if isinstance(data, Mapping):
            furthest = max(range(len(tried)), key=lambda index: len(tried[index][0].path))
            self.problems += tried[furthest]
            return _UNREAD
        return self._problem(
            path, f"must be {' or '.join(map(name_of, members))}, got {_short(data)}"
        )

    def _member(self, data: Any, kind: Any, path: str) -> Any:
        """The same for a type that is no union."""
        classes = tagged(kind)
        if classes or class_of(kind) is not None:
            return self._tagged(data, kind, classes, path)
        if kind in SCALARS:
            return self._scalar(data, kind, path)
        choices = choices_of(kind)
        if choices is not None:
            if not any(type(each) is type(data) and each == data for each in choices):
                self._problem(path, f"must be {name_of(kind)}, got {_short(data)}")
            return data
        contained = items_of(kind)
        if contained is not None:
            return self._items(data, *contained, path)
        return data

    def _scalar(self, data: Any, kind: type, path: str) -> Any:
        if kind is float and isinstance(data, str) and data in _NOT_FINITE:
            return _NOT_FINITE[data]
        allowed = int | float if kind is float else kind
        if isinstance(data, bool) is not (kind is bool) or not isinstance(data, allowed):
            return self._problem(path, f"must be {name_of(kind)}, got {_short(data)}")
        if isinstance(data, int) and data.bit_length() > MAX_BITS:
            return self._problem(path, f"must have at most {MAX_BITS} bits, got {_short(data)}")
        return data

    def _items(self, data: Any, container: type, kinds: list[Any], path: str) -> Any:
        if container is list and isinstance(data, list | tuple | set | frozenset):
            pairs = list(enumerate(data))
        elif container is dict and isinstance(data, Mapping):
            pairs = list(data.items())
        else:
            expected = "a list" if container is list else "a mapping"
            return self._problem(path, f"must be {expected}, got {_short(data)}")
        found = {}
        for index, (key, each) in enumerate(pairs):
            if container is dict and not isinstance(key, str):
                return self._problem(path, f"must have strings as keys, got {_short(key)}")
            found[key] = self.value(each, kinds[min(index, len(kinds) - 1)], at(path, key))
        if any(each is _UNREAD for each in found.values()):
            return _UNREAD
        return list(found.values()) if container is list else found

    def _tagged(self, data: Any, kind: Any, classes: Mapping[str, type], path: str) -> Any:
        """One of ``classes``, or a ``kind`` if it has fields and no tag says otherwise."""
        own = class_of(kind)
        if not isinstance(data, Mapping):
            with_tag = "" if own is not None else f" with `{TAG}`"
            return self._problem(path, f"must be a mapping{with_tag}, got {_short(data)}")
        if own is not None and (not classes or TAG not in data):
            return self._object(data, own, path)
        tag = data.get(TAG)
        if isinstance(tag, str) and tag in classes:
            return self._object({k: v for k, v in data.items() if k != TAG}, classes[tag], path)
        rule = "be a tag that is registered" if tag not in list(all_tagged()) else "fit here"
        return self._problem(
            at(path, TAG) if TAG in data else path,
            f"`{TAG}` must {rule}, got {_short(tag)}; {did_you_mean(str(tag), classes)}",
        )

    def _object(self, data: Mapping[Any, Any], cls: type, path: str) -> Any:
        """One with these fields; if it cannot be made, all that is wrong with each of them."""
        fields, before = fields_of(cls), len(self.problems)
        problems: dict[str, list[Problem]] = {name: [] for name in fields}
        values = {}
        for name, each in data.items():
            if name not in fields:
                message = f"`{tag_of(cls) or cls.__name__}` has no field {_short(name)}; "
                self._problem(at(path, str(name)), message + did_you_mean(str(name), fields))
                continue
            trial = _Decoder()
            value = trial.value(each, fields[name].kind, at(path, name))
            problems[name] = trial.problems
            # The rule of the class says more about a value than its type does.
            is_at_fault = any(problem.path == at(path, name) for problem in trial.problems)
            if value is not _UNREAD or is_at_fault:
                values[name] = each if value is _UNREAD else value
        made, of_all = self._make(cls, values, problems, path)
        for each in problems.values():
            self.problems += each
        if len(self.problems) == before:
            self.problems += of_all  # else it may be for the want of a field that is not read
        return made if len(self.problems) == before else _UNREAD

    def _make(
        self, cls: type, values: dict[str, Any], problems: dict[str, list[Problem]], path: str
    ) -> tuple[Any, list[Problem]]:
        """Has pydantic make one, and adds to the problems of fields.

        Returns:
            What was made, and problems of no single field.
        """
        of_all: list[Problem] = []
        try:
            # Not by the constructor: its error is a text, and here each part has a path.
            made: Any = cls.__pydantic_validator__.validate_python(ArgsKwargs((), values))  # type: ignore[attr-defined]
            return made, of_all
        except ValidationError as error:
            for each in error.errors(include_url=False):
                name = each["loc"][0] if each["loc"] else None
                if name is None:
                    of_all.append(Problem(path, message_of(each)))
                elif name not in problems:
                    of_all.append(Problem(path, f"{name}: {message_of(each)}"))
                elif each["type"] == "value_error" and not any(
                    problem.path != at(path, name) for problem in problems[name]
                ):
                    problems[name] = [Problem(at(path, name), message_of(each))]
                elif not problems[name]:
                    where = _path_of(each["loc"], values, path)
                    problems[name].append(Problem(where, message_of(each)))
        except (TypeError, ValueError) as error:
            of_all.append(Problem(path, str(error)))
        return _UNREAD, of_all

    def _problem(self, path: str, message: str) -> _Unread:
        self.problems.append(Problem(path, message))
        return _UNREAD


def _path_of(loc: tuple[Any, ...], values: Mapping[str, Any], path: str) -> str:
    """As far as pydantic's path is one of the data; it has names of types in it, too."""
    name, *within = loc
    value: Any = values.get(name)
    path = at(path, name)
    for key in within:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            break
        path = at(path, key)
    return path


def _short(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        return f"an integer of {value.bit_length()} bits"  # Python may refuse to print it
    return _REPR.repr(value)


_REPR = Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80
