"""Decoding of plain data to handlers, field by field, guided by the annotations of the fields.

Pydantic makes the handlers and checks their values. The decoder finds the class of each handler by
the value of the key ``type``, and collects all problems with their paths. It also refuses values
that pydantic would convert, for example the string "1" for a number.
"""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ArgsKwargs

from ignite_hooks.config.annotations import SCALARS
from ignite_hooks.config.annotations import admits_none
from ignite_hooks.config.annotations import allowed_values
from ignite_hooks.config.annotations import container_and_items
from ignite_hooks.config.annotations import dataclass_or_none
from ignite_hooks.config.annotations import describe_values
from ignite_hooks.config.annotations import fields_of
from ignite_hooks.config.annotations import union_members
from ignite_hooks.config.problems import ConfigError
from ignite_hooks.config.problems import Problem
from ignite_hooks.config.problems import join_path
from ignite_hooks.config.registry import TAG
from ignite_hooks.config.registry import registered_classes
from ignite_hooks.config.registry import registered_subclasses
from ignite_hooks.config.registry import tag_of
from ignite_hooks.core.checked_dataclass import error_message
from ignite_hooks.core.fields import DATA_CONTEXT
from ignite_hooks.core.rules import did_you_mean
from ignite_hooks.core.rules import short_repr

__all__ = ["decode"]

MAX_BITS = 2**13
"""The largest number of bits in an integer. Such an integer has up to 2,467 decimal digits.

Messages print integers, and by default Python refuses to print more than 4,300 digits.
"""

_SPECIAL_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}

_INVALID = object()  # the result for an invalid value; not None, which is a valid value


def decode(data: Any) -> Any:
    """Returns the handler, or the list or mapping of handlers, that ``data`` describes.

    Raises:
        ConfigError: the data is invalid. The error has all problems.
    """
    decoder = _Decoder()
    value = decoder.decode_handlers(data, "")
    if decoder.problems:
        raise ConfigError(decoder.problems)
    return value


class _Decoder:
    """Decodes data and collects the problems.

    The methods return the decoded value. For invalid data they add a problem to ``problems``, and
    return either ``_INVALID`` or the unchanged data. So only ``problems`` shows whether the data is
    valid.
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def decode_handlers(self, data: Any, path: str) -> Any:
        """Decodes a handler, or a list or mapping of handlers."""
        if isinstance(data, Mapping) and isinstance(data.get(TAG), str):
            return self._decode_mapping(data, object, registered_classes(), path)
        if isinstance(data, Mapping):
            for key in data:
                if not isinstance(key, str):
                    return self._refuse(path, "must have strings as keys", key)
            return {k: self.decode_handlers(each, join_path(path, k)) for k, each in data.items()}
        if isinstance(data, list | tuple):
            return [self.decode_handlers(v, join_path(path, i)) for i, v in enumerate(data)]
        return self._add_problem(
            path,
            f"must be a mapping with `{TAG}`, or a list or mapping of such mappings, got "
            f"{short_repr(data)}; the settings of a run begin with `{TAG}: run`",
        )

    def decode_value(self, data: Any, annotation: Any, path: str) -> Any:
        """Decodes the value of a field that has this annotation."""
        members = union_members(annotation)
        if data is None and admits_none(annotation):
            return data
        if len(members) == 1:
            return self._decode_member(data, members[0], path)
        # The annotation is a union. A member that is exactly the type of the data is preferred to
        # the other members. For example, with float | str the string "inf" stays a string.
        if type(data) in members:
            return data
        tried: list[list[Problem]] = []
        for member in members:
            trial = _Decoder()  # the problems of a trial count only if no member accepts the value
            value = trial._decode_member(data, member, path)
            if not trial.problems:
                return value
            tried.append(trial.problems)
        if isinstance(data, Mapping) and tried:
            # The member whose first problem lies deepest in the data was most likely meant, so the
            # problems of this member are reported.
            deepest = max(range(len(tried)), key=lambda index: len(tried[index][0].path))
            self.problems += tried[deepest]
            return _INVALID
        expected = " or ".join(map(describe_values, members)) or "None"
        return self._refuse(path, f"must be {expected}", data)

    def _decode_member(self, data: Any, annotation: Any, path: str) -> Any:
        """Decodes the value of a field whose annotation is not a union."""
        classes = registered_subclasses(annotation)
        if classes or dataclass_or_none(annotation) is not None:
            return self._decode_mapping(data, annotation, classes, path)
        if annotation in SCALARS:
            return self._decode_scalar(data, annotation, path)
        values = allowed_values(annotation)
        if values is not None:
            # Types are compared too, because True == 1 == 1.0.
            if not any(type(each) is type(data) and each == data for each in values):
                self._refuse(path, f"must be {describe_values(annotation)}", data)
            return data
        container = container_and_items(annotation)
        if container is not None:
            return self._decode_items(data, *container, path)
        return data  # a value of another type, for example Path or Any, is checked by pydantic

    def _decode_scalar(self, data: Any, scalar: type, path: str) -> Any:
        if scalar is float and isinstance(data, str) and data in _SPECIAL_FLOATS:
            return _SPECIAL_FLOATS[data]
        allowed = int | float if scalar is float else scalar
        # In Python a bool is an int. In a configuration, 1 for True or True for 1 is a mistake.
        if isinstance(data, bool) is not (scalar is bool) or not isinstance(data, allowed):
            return self._refuse(path, f"must be {describe_values(scalar)}", data)
        if isinstance(data, int) and data.bit_length() > MAX_BITS:
            return self._refuse(path, f"must have at most {MAX_BITS} bits", data)
        return data

    def _decode_items(self, data: Any, container: type, items: list[Any], path: str) -> Any:
        """Decodes a container.

        Args:
            data: the data of the container.
            container: ``list`` or ``dict``.
            items: the annotations of the items. The last one holds for all further items too.
            path: the path of the container in the data.
        """
        if container is list and isinstance(data, list | tuple | set | frozenset):
            pairs = list(enumerate(data))
        elif container is dict and isinstance(data, Mapping):
            pairs = list(data.items())
        else:
            expected = "a list" if container is list else "a mapping"
            return self._refuse(path, f"must be {expected}", data)
        found = {}
        for index, (key, each) in enumerate(pairs):
            if container is dict and not isinstance(key, str):
                return self._refuse(path, "must have strings as keys", key)
            annotation = items[min(index, len(items) - 1)]
            found[key] = self.decode_value(each, annotation, join_path(path, key))
        if any(each is _INVALID for each in found.values()):
            return _INVALID
        return list(found.values()) if container is list else found

    def _decode_mapping(
        self, data: Any, annotation: Any, classes: Mapping[str, type], path: str
    ) -> Any:
        """Decodes an instance of a dataclass.

        The value of the key ``type``, called the tag, names the class, which is one of ``classes``.
        Without a tag, or with empty ``classes``, the class is the annotation if that is a
        dataclass.

        Args:
            data: the data of the instance.
            annotation: the annotation of the field, which is not a union.
            classes: the registered classes that are allowed here, by tag.
            path: the path of the instance in the data.
        """
        default = dataclass_or_none(annotation)
        if not isinstance(data, Mapping):
            with_tag = "" if default is not None else f" with `{TAG}`"
            return self._refuse(path, f"must be a mapping{with_tag}", data)
        if default is not None and (not classes or TAG not in data):
            return self._decode_fields(data, default, path)
        tag = data.get(TAG)
        if isinstance(tag, str) and tag in classes:
            fields = {name: each for name, each in data.items() if name != TAG}
            return self._decode_fields(fields, classes[tag], path)
        # A list is searched, because `tag` may be an unhashable value.
        is_known = tag in list(registered_classes())
        rule = "name a class that is allowed here" if is_known else "be a tag that is registered"
        return self._add_problem(
            join_path(path, TAG) if TAG in data else path,
            f"`{TAG}` must {rule}, got {short_repr(tag)}; {did_you_mean(str(tag), classes)}",
        )

    def _decode_fields(self, data: Mapping[Any, Any], cls: type, path: str) -> Any:
        """Makes an instance of ``cls`` from the data of its fields."""
        fields = fields_of(cls)
        found: list[Problem] = []
        by_field: dict[str, list[Problem]] = {name: [] for name in fields}
        values = {}
        for name, each in data.items():
            field_path = join_path(path, str(name))
            if name not in fields:
                message = f"`{tag_of(cls) or cls.__name__}` has no field {short_repr(name)}; "
                found.append(Problem(field_path, message + did_you_mean(str(name), fields)))
                continue
            trial = _Decoder()
            value = trial.decode_value(each, fields[name].annotation, field_path)
            by_field[name] = trial.problems
            # A value of a wrong type is passed to pydantic too. If the field has a rule of its own
            # (`must_be`), the message of the rule says more than the decoder's message about the
            # type. A value is not passed if only a part of it is wrong, such as an item of a list.
            is_at_fault = any(problem.path == field_path for problem in trial.problems)
            if value is not _INVALID or is_at_fault:
                values[name] = each if value is _INVALID else value
        instance, general = _construct(cls, values, by_field, path)
        for problems in by_field.values():
            found += problems
        # General problems belong to no single field, for example a combination that is not allowed.
        # An invalid field may cause them, so they are reported only if all fields are valid.
        self.problems += found or general
        return _INVALID if found or general else instance

    def _refuse(self, path: str, rule: str, value: Any) -> object:
        """Notes that a value breaks a rule, and returns ``_INVALID``."""
        return self._add_problem(path, f"{rule}, got {short_repr(value)}")

    def _add_problem(self, path: str, message: str) -> Any:
        self.problems.append(Problem(path, message))
        return _INVALID


def _construct(
    cls: type, values: dict[str, Any], by_field: dict[str, list[Problem]], path: str
) -> tuple[Any, list[Problem]]:
    """Makes an instance with pydantic, and collects the problems that pydantic finds.

    Args:
        cls: the class of the instance.
        values: maps the names of fields to their values.
        by_field: maps the name of each field to its problems. New problems are added here.
        path: the path of the instance in the data.

    Returns:
        The instance or ``_INVALID``, and the problems that do not belong to a single field.
    """
    general: list[Problem] = []
    try:
        # The validator is called instead of the constructor, because the validator's error has the
        # path of each problem. The constructor's error has only a text.
        validator: Any = cls.__pydantic_validator__  # type: ignore[attr-defined]
        instance = validator.validate_python(ArgsKwargs((), values), context=DATA_CONTEXT)
        return instance, general
    except ValidationError as error:
        for each in error.errors(include_url=False):
            name = each["loc"][0] if each["loc"] else None
            if name is None:
                general.append(Problem(path, error_message(each)))
            elif name not in by_field:
                general.append(Problem(path, f"{name}: {error_message(each)}"))
            elif each["type"] == "value_error" and all(
                problem.path == join_path(path, name) for problem in by_field[name]
            ):
                # The value breaks the rule of the field. The message of the rule replaces the
                # decoder's message about the type, if there is one.
                by_field[name] = [Problem(join_path(path, name), error_message(each))]
            elif not by_field[name]:
                data_path = _data_path(each["loc"], values, path)
                by_field[name].append(Problem(data_path, error_message(each)))
    except (TypeError, ValueError) as error:  # raised by __post_init__
        general.append(Problem(path, str(error)))
    return _INVALID, general


def _data_path(loc: tuple[Any, ...], values: Mapping[str, Any], path: str) -> str:
    """Returns the path in the data for ``loc``, the location that pydantic gives for a problem.

    A location consists of keys and indices, and may also have names of types, for example of the
    member of a union. The path ends before the first part of the location that is not in the data.
    """
    name, *within = loc
    value: Any = values.get(name)
    path = join_path(path, name)
    for key in within:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            break
        path = join_path(path, key)
    return path
