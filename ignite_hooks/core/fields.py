"""Types for the fields of handlers. The type of a field checks each value given to the field.

The error about a wrong value names the field, the rule, the value and the remedy. A field that may
be left out is written as ``every_steps: Every | None = None``. True and False do not count as
numbers.
"""

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from signal import Signals
from sys import float_info
from typing import Annotated
from typing import Any
from typing import Literal

from pydantic import AfterValidator
from pydantic import BeforeValidator
from pydantic import ValidationInfo
from pydantic import WithJsonSchema

from ignite_hooks.core.paths import absolute_path
from ignite_hooks.core.paths import absolute_source
from ignite_hooks.core.paths import is_url
from ignite_hooks.core.paths import path_in_url
from ignite_hooks.core.paths import url_of_path
from ignite_hooks.core.rules import conversion_hint
from ignite_hooks.core.rules import did_you_mean
from ignite_hooks.core.rules import is_count
from ignite_hooks.core.rules import is_integer
from ignite_hooks.core.rules import is_number
from ignite_hooks.core.rules import short_repr

__all__ = [
    "AfterTerminate",
    "Backend",
    "Batches",
    "Count",
    "Directory",
    "Every",
    "FilePath",
    "Flag",
    "FlagInCode",
    "Fraction",
    "Function",
    "Generation",
    "GraceSeconds",
    "Iterations",
    "Kept",
    "Limit",
    "MetricName",
    "MetricNames",
    "Mode",
    "NormType",
    "OnBusy",
    "OnMissing",
    "Prefix",
    "ProjectName",
    "Runtime",
    "Seconds",
    "SettingNames",
    "SignalNames",
    "SourcePath",
    "must_be",
]


def must_be(
    rule: str, holds: Callable[[Any], bool], remedy: str, may_be_none: bool = True
) -> BeforeValidator:
    """Returns a validator for a field type of your own.

    ::

        Even = Annotated[int, must_be("even", lambda value: value % 2 == 0, "double it")]

    If a field ``size: Even`` has the value 3, the error is "`size` must be even, got 3; double it".

    Args:
        rule: the words that follow "must be" in the message.
        holds: returns whether a value obeys the rule. It is called before pydantic has checked the
            type, so it must accept a value of any type.
        remedy: the words that tell what to do instead.
        may_be_none: whether None skips the check by ``holds``. If True, the annotation of the field
            decides whether None is accepted.
    """

    def check(value: Any, info: ValidationInfo) -> Any:
        if (value is None and may_be_none) or holds(value):
            return value
        shown = f"{short_repr(value)}{conversion_hint(value, holds)}"
        raise ValueError(f"`{info.field_name}` must be {rule}, got {shown}; {remedy}")

    # The validator runs before pydantic's own check, which would convert True or "1" to 1.
    return BeforeValidator(check)


def _one_of(first: str, second: str, remedy: str) -> BeforeValidator:
    """Returns a validator that accepts one of two strings."""
    choices = (first, second)
    return must_be(f'"{first}" or "{second}"', lambda v: v in choices, remedy, may_be_none=False)


# Pydantic cannot make JSON Schemas from validator functions, so most types below repeat their rule
# as a schema.
_COUNT = WithJsonSchema({"type": "integer", "minimum": 1})
_POSITIVE = WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"const": "inf"}]})

Every = Annotated[
    int,
    must_be("an integer >= 1", is_count, "leave it out to have no such schedule"),
    _COUNT,
]
"""An interval of a schedule, in steps or epochs: an integer >= 1."""

Iterations = Annotated[int, must_be("an integer >= 1", is_count, "it counts iterations"), _COUNT]
"""A number of iterations: an integer >= 1."""

Batches = Annotated[
    int,
    must_be("an integer >= 1", is_count, "leave it out for all batches"),
    _COUNT,
]
"""The maximum number of batches to use: an integer >= 1."""

Limit = Annotated[
    float,
    must_be(
        "a number > 0",
        lambda value: is_number(value) and value > 0,
        "leave the clipping out to have none",
    ),
    _POSITIVE,
]
"""The limit that gradients are clipped to: a number > 0, or inf."""

Flag = Annotated[
    bool,
    must_be(
        "True or False",
        lambda value: isinstance(value, bool),
        "it is a switch",
        may_be_none=False,
    ),
]
"""A switch: True or False. 0 and 1 are refused."""

DATA_CONTEXT = object()
"""The context of pydantic's validation if the values come from plain data, such as a file."""


def _refuse_in_data(value: bool, info: ValidationInfo) -> bool:
    if value and info.context is DATA_CONTEXT:
        raise ValueError(
            f"`{info.field_name}` must be set in code, because a settings file may come from a "
            "stranger, got True; leave it out of the file, and set it with "
            f"ignite_hooks.config.replace(handler, {info.field_name}=True)"
        )
    return value


FlagInCode = Annotated[Flag, AfterValidator(_refuse_in_data), WithJsonSchema({"const": False})]
"""A switch that only code can turn on. In a configuration file it is False or left out."""

Fraction = Annotated[
    float,
    must_be(
        "a number from 0 to 1",
        lambda value: is_number(value) and 0 <= value <= 1,
        "leave it out to have no such condition",
    ),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1}),
]
"""A fraction: a number from 0 to 1, both included."""

Count = Annotated[
    int,
    must_be(
        "an integer >= 0",
        lambda value: is_integer(value) and value >= 0,
        "0 means none",
        may_be_none=False,
    ),
    WithJsonSchema({"type": "integer", "minimum": 0}),
]
"""A number of objects: an integer >= 0."""

Kept = Annotated[
    int | Literal["all"],
    must_be(
        'an integer >= 1, or "all"',
        lambda value: is_count(value) or (isinstance(value, str) and value == "all"),
        "3 is the usual choice",
        may_be_none=False,
    ),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "all"}]}),
]
"""The number of the newest or the best checkpoints to keep: an integer >= 1, or "all"."""

Mode = Annotated[
    Literal["max", "min"],
    _one_of("max", "min", "it says which value of the metric is the best"),
]
"""The direction in which a metric improves: "max" or "min"."""

OnMissing = Annotated[
    Literal["error", "start"],
    _one_of("error", "start", '"start" begins from scratch when there is no checkpoint yet'),
]
"""The behavior if there is no checkpoint to resume from: "error", or "start" from scratch."""

AfterTerminate = Annotated[
    Literal["finish", "continue"],
    _one_of("finish", "continue", '"continue" resumes a run even if a handler has ended it'),
]
"""The behavior if a handler, such as early stopping, had ended the run before its limit.

"finish": the resumed run ends at once. "continue": the resumed run trains on to its limit.
"""

OnBusy = Annotated[
    Literal["error", "wait"],
    _one_of("error", "wait", '"wait" waits until the other run has ended'),
]
"""The behavior if another run is writing to the directory: "error", or "wait" until it ends."""

Generation = Annotated[
    int,
    must_be(
        "0, 1 or 2",
        lambda value: is_integer(value) and 0 <= value <= 2,
        "2 is a full collection",
        may_be_none=False,
    ),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 2}),
]
"""The oldest generation that Python's garbage collector collects: 0, 1 or 2."""

NormType = Annotated[
    float,
    must_be(
        "a number > 0 or inf",
        lambda value: is_number(value) and value > 0,
        "2.0 is the Euclidean norm, inf the largest absolute value",
        may_be_none=False,
    ),
    _POSITIVE,
]
"""The p of a p-norm: a number > 0, or inf."""

Seconds = Annotated[
    float,
    must_be(
        "a finite number of seconds > 0",
        # The upper bound excludes inf, and integers too large for a float.
        lambda value: is_number(value) and 0 < value <= float_info.max,
        "write 60.0 for one minute",
        may_be_none=False,
    ),
    WithJsonSchema({"type": "number", "exclusiveMinimum": 0}),
]
"""A duration in seconds: a finite number > 0."""

GraceSeconds = Annotated[
    float,
    must_be(
        "a finite number of seconds >= 0",
        lambda value: is_number(value) and 0 <= value <= float_info.max,
        "5.0 is the usual choice",
        may_be_none=False,
    ),
    WithJsonSchema({"type": "number", "minimum": 0}),
]
"""A duration in seconds that may be zero: a finite number >= 0."""

Backend = Annotated[
    Literal["auto", "kernel", "sampler"],
    must_be(
        'one of "auto", "kernel" and "sampler"',
        lambda value: value in ("auto", "kernel", "sampler"),
        '"auto" takes the best that works',
        may_be_none=False,
    ),
]
"""The way to measure the peak of resident memory: "auto", "kernel" or "sampler"."""

MetricName = Annotated[
    str,
    must_be(
        "a string that is not empty",
        lambda value: isinstance(value, str) and value != "",
        "leave it out for the usual name",
        may_be_none=False,
    ),
    WithJsonSchema({"type": "string", "minLength": 1}),
]
"""A key of ``state.metrics``: a string that is not empty."""

MetricNames = Annotated[
    tuple[str, ...],
    must_be(
        "a tuple or list of different strings that are not empty",
        lambda value: (
            isinstance(value, tuple | list)
            and all(isinstance(each, str) and each for each in value)
            and len({*value}) == len(value)
        ),
        'write ("a", "b") for two names, or ("a",) for one',
    ),
    WithJsonSchema(
        {"type": "array", "items": {"type": "string", "minLength": 1}, "uniqueItems": True}
    ),
]
"""Names of metrics: a tuple or list of different strings, none of them empty."""

Prefix = Annotated[
    str,
    must_be(
        "a string",
        lambda value: isinstance(value, str),
        '"" means no prefix',
        may_be_none=False,
    ),
]
"""A prefix of names: a string, which may be empty."""

ProjectName = Annotated[
    str,
    must_be(
        "a string that is not empty",
        lambda value: isinstance(value, str) and value != "",
        "the trackers show the run under this name",
        may_be_none=False,
    ),
    WithJsonSchema({"type": "string", "minLength": 1}),
]
"""The name of a project in an experiment tracker: a string that is not empty."""


_UNCATCHABLE = {"SIGKILL", "SIGSTOP"}  # a process cannot set a handler for these signals


def _check_signal_names(names: Any, info: ValidationInfo) -> Any:
    known = sorted(set(Signals.__members__) - _UNCATCHABLE)
    remedy = '("SIGTERM",) is the usual choice, () means none'
    if isinstance(names, list | tuple):
        wrong = [name for name in names if name not in known]
        if not wrong:
            return names
        if wrong[0] not in _UNCATCHABLE and get_close_matches(str(wrong[0]), known):
            remedy = did_you_mean(str(wrong[0]), known)
    elif isinstance(names, str) and names in known:
        remedy = f"write ({names!r},)"
    raise ValueError(
        f"`{info.field_name}` must be a tuple of names of signals that can be handled, "
        f"got {names!r}; {remedy}"
    )


SignalNames = Annotated[tuple[str, ...], BeforeValidator(_check_signal_names)]
"""Signals of the operating system: a tuple or list of names, for example ("SIGTERM",).

SIGKILL and SIGSTOP are refused, as they cannot be handled.
"""


# Parameters of optimizers' constructors that are not settings. A setting is an entry of an
# optimizer's parameter groups, such as "lr".
_NOT_SETTINGS = {
    "defaults",
    "module",
    "named_parameters",
    "param_groups",
    "params",
    "process_group",
}
# The names of constructor parameters that take another optimizer. A class with such a parameter
# wraps that optimizer, and has no settings itself.
_WRAPPED_OPTIMIZER = {"optim", "optimizer", "optimizer_class"}
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _known_settings() -> set[str]:
    """Returns the names of the settings of all optimizers whose classes are loaded."""
    from torch.optim import (
        Optimizer,
    )  # imported here, because torch is slow to import and most handlers do not need it

    names, classes = {"scheduler", "requires_grad"}, list(Optimizer.__subclasses__())
    while classes:
        cls = classes.pop()
        classes += cls.__subclasses__()
        parameters = inspect.signature(cls).parameters
        if not _WRAPPED_OPTIMIZER & parameters.keys():
            named = (each for each in parameters.values() if each.kind not in _VARIADIC)
            names |= {each.name for each in named} - _NOT_SETTINGS
    return names


def _check_setting_names(names: Any, info: ValidationInfo) -> Any:
    is_list = isinstance(names, list | tuple)
    # `known` is a list, because a set would raise an error for a given name that is unhashable.
    known = sorted(_known_settings()) if is_list else []
    wrong = [name for name in names if name not in known] if is_list else [names]
    if is_list and not wrong and len(set(names)) == len(names):
        return names
    remedy = 'for example ("lr", "weight_decay"); () means none'
    if is_list and wrong and isinstance(wrong[0], str):
        remedy = did_you_mean(wrong[0], known)
    raise ValueError(
        f"`{info.field_name}` must be names of settings, each once, got {names!r}; {remedy}"
    )


SettingNames = Annotated[
    tuple[str, ...],
    BeforeValidator(_check_setting_names),
    WithJsonSchema({"type": "array", "items": {"type": "string"}}),
]
"""Names of settings: a tuple or list without duplicates, for example ("lr", "weight_decay").

A name must be "scheduler", "requires_grad", or a setting of the parameter groups of an optimizer
whose class is loaded.
"""

_PATH = WithJsonSchema({"type": "string", "minLength": 1})


def _is_path(value: Any) -> bool:
    return isinstance(value, str | Path) and value != "" and "\0" not in str(value)


def _make_absolute(
    field: str | None, value: str | Path, absolute: Callable[[str | Path], str | Path]
) -> str | Path:
    """Returns ``absolute(value)``, as a str if ``value`` is a str, else as a Path."""
    try:
        found = absolute(value)
    except ValueError as error:
        # The message of `error` begins with "got", and continues the sentence.
        raise ValueError(f"`{field}` must be a path that can be made absolute, {error}") from error
    return str(found) if isinstance(value, str) else found


def _absolute_local(kind: str) -> AfterValidator:
    """Returns a validator that makes a path absolute, and refuses a URL.

    Args:
        kind: "folder" or "file", for the message.
    """

    def check(value: str | Path, info: ValidationInfo) -> str | Path:
        url = str(value) if is_url(value) else url_of_path(value)
        if url is None:
            return _make_absolute(info.field_name, value, absolute_path)
        path = path_in_url(url)
        remedy = f"give the path itself, {path!r}"
        if path is None:
            remedy = (
                f"writing to URLs is not built yet: write to a local {kind}, and copy that {kind}"
            )
        rule = f"a {kind} on this machine"
        raise ValueError(f"`{info.field_name}` must be {rule}, got {str(value)!r}; {remedy}")

    return AfterValidator(check)


def _absolute_source(value: str | Path, info: ValidationInfo) -> str | Path:
    url = None if is_url(value) else url_of_path(value)
    if url is None:
        return _make_absolute(info.field_name, value, absolute_source)
    raise ValueError(
        f"`{info.field_name}` must be a path or a URL, got {str(value)!r}, which is neither; "
        f"give the URL as a str, {url!r}"
    )


Directory = Annotated[
    str | Path,
    _absolute_local("folder"),
    must_be("a path", _is_path, 'a str or a Path, for example "checkpoints"', may_be_none=False),
    _PATH,
]
"""A folder on this machine: a str or Path that is not empty.

The path becomes absolute, with ``~`` expanded. A URL is refused.
"""

FilePath = Annotated[
    str | Path,
    _absolute_local("file"),
    must_be(
        "a path", _is_path, 'a str or a Path, for example "run/metrics.jsonl"', may_be_none=False
    ),
    _PATH,
]
"""A file on this machine: a str or Path that is not empty.

The path becomes absolute, with ``~`` expanded. A URL is refused.
"""

SourcePath = Annotated[
    str | Path,
    AfterValidator(_absolute_source),
    must_be("a path or a URL", _is_path, 'for example "checkpoints"', may_be_none=False),
    _PATH,
]
"""The path or the URL of checkpoints to read. A path is a str or Path, a URL is a str.

The value must not be empty. A path becomes absolute, with ``~`` expanded.
"""

Function = Annotated[
    Callable[[Any], Any],
    must_be("a function", callable, "give a function of one argument in code, for example len"),
    WithJsonSchema({"type": "null"}),
]
"""A function of one argument, given in code. In a configuration file the field is left out."""

Runtime = Annotated[Any, WithJsonSchema({"type": "null"})]
"""Any object, given in code. In a configuration file the field is None or left out."""
