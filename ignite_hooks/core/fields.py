"""The types of handlers' fields: each names its rule, and the remedy, when a value breaks it."""

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
from ignite_hooks.core.rules import did_you_mean
from ignite_hooks.core.rules import is_count
from ignite_hooks.core.rules import is_integer
from ignite_hooks.core.rules import is_number

__all__ = [
    "AfterTerminate",
    "Backend",
    "Batches",
    "Count",
    "Directory",
    "Every",
    "Flag",
    "Fraction",
    "Generation",
    "GraceSeconds",
    "Iterations",
    "Kept",
    "Limit",
    "MetricName",
    "Mode",
    "NormType",
    "OnBusy",
    "OnMissing",
    "Prefix",
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
    """Refuses a value with a message that has the field, the rule, the value and the remedy.

    Args:
        rule: how it goes on after "must be".
        holds: whether a value keeps the rule.
        remedy: what to do instead.
        may_be_none: whether None is let through, for fields whose type admits it.
    """

    def check(value: Any, info: ValidationInfo) -> Any:
        if (value is None and may_be_none) or holds(value):
            return value
        raise ValueError(f"`{info.field_name}` must be {rule}, got {value!r}; {remedy}")

    return BeforeValidator(check)


def _one_of(first: str, second: str, remedy: str) -> BeforeValidator:
    """Refuses a value that is neither of two words."""
    choices = (first, second)
    return must_be(f'"{first}" or "{second}"', lambda v: v in choices, remedy, may_be_none=False)


_COUNT = WithJsonSchema({"type": "integer", "minimum": 1})
_POSITIVE = WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"const": "inf"}]})

Every = Annotated[
    int, must_be("an integer >= 1", is_count, "leave it out for no such schedule"), _COUNT
]
"""Once in so many steps or epochs."""

Iterations = Annotated[int, must_be("an integer >= 1", is_count, "it counts iterations"), _COUNT]
"""A number of iterations."""

Batches = Annotated[int, must_be("an integer >= 1", is_count, "leave it out for all"), _COUNT]
"""At most so many batches."""

Limit = Annotated[
    float,
    must_be(
        "a number > 0",
        lambda value: is_number(value) and value > 0,
        "leave the clipping out to have none",
    ),
    _POSITIVE,
]
"""What gradients are clipped to."""

Flag = Annotated[
    bool,
    must_be(
        "True or False",
        lambda value: isinstance(value, bool),
        "it is a switch",
        may_be_none=False,
    ),
]
"""On or off."""

Fraction = Annotated[
    float,
    must_be(
        "a number from 0 to 1",
        lambda value: is_number(value) and 0 <= value <= 1,
        "leave it out to have no such condition",
    ),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1}),
]
"""A part of a whole."""

Count = Annotated[
    int,
    must_be(
        "an integer >= 0",
        lambda value: is_integer(value) and value >= 0,
        "0 is none",
        may_be_none=False,
    ),
    WithJsonSchema({"type": "integer", "minimum": 0}),
]
"""How many there are to be, or none."""

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
"""How many of something are kept."""

Mode = Annotated[
    Literal["max", "min"],
    _one_of("max", "min", "it says which value of the metric is the best"),
]
"""Whether more or less is better."""

OnMissing = Annotated[
    Literal["error", "start"],
    _one_of("error", "start", '"start" begins from scratch when there is no checkpoint yet'),
]
"""What to do when there is nothing to go on from."""

AfterTerminate = Annotated[
    Literal["finish", "continue"],
    _one_of(
        "finish", "continue", '"continue" trains on after a run that a handler has ended for good'
    ),
]
"""What to do with a run that a handler, early stopping say, has ended before its limit."""

OnBusy = Annotated[
    Literal["error", "wait"],
    _one_of("error", "wait", '"wait" lets a requeued job begin when the one before has ended'),
]
"""What to do while another run writes to the directory."""

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
"""A generation of Python's garbage collector, and those younger than it."""

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
"""The p of a p-norm."""

Seconds = Annotated[
    float,
    must_be(
        "a finite number of seconds > 0",
        lambda value: is_number(value) and 0 < value <= float_info.max,
        "1.0 is the usual choice",
        may_be_none=False,
    ),
    WithJsonSchema({"type": "number", "exclusiveMinimum": 0}),
]
"""A time between two looks."""

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
"""A time to wait after a signal."""

Backend = Annotated[
    Literal["auto", "kernel", "sampler"],
    must_be(
        'one of "auto", "kernel" and "sampler"',
        lambda value: value in ("auto", "kernel", "sampler"),
        '"auto" takes the best that works',
        may_be_none=False,
    ),
]
"""How resident memory is measured."""

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
"""The key of a value in ``state.metrics``."""

Prefix = Annotated[
    str,
    must_be(
        "a string",
        lambda value: isinstance(value, str),
        '"" is none',
        may_be_none=False,
    ),
]
"""What names begin with."""


def _check_signal_names(names: Any, info: ValidationInfo) -> Any:
    known = sorted(set(Signals.__members__) - {"SIGKILL", "SIGSTOP"})
    remedy = '("SIGTERM",) is the usual choice, () is none'
    if isinstance(names, list | tuple):
        wrong = [name for name in names if name not in known]
        if not wrong:
            return names
        if get_close_matches(str(wrong[0]), known):
            remedy = did_you_mean(str(wrong[0]), known)
    elif isinstance(names, str) and names in known:
        remedy = f"write ({names!r},)"
    raise ValueError(
        f"`{info.field_name}` must be a tuple of names of signals that can be handled, "
        f"got {names!r}; {remedy}"
    )


SignalNames = Annotated[tuple[str, ...], BeforeValidator(_check_signal_names)]
"""Signals of the operating system, by name."""


_NO_SETTINGS = {"defaults", "module", "named_parameters", "param_groups", "params", "process_group"}
_WRAPPED = {"optim", "optimizer", "optimizer_class"}


def _setting_names() -> set[str]:
    """Returns what may be overridden: the settings of all optimizers whose classes are loaded."""
    from torch.optim import Optimizer  # most handlers need not wait for it

    names, kinds = {"scheduler", "requires_grad"}, list(Optimizer.__subclasses__())
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        parameters = inspect.signature(kind).parameters
        if not _WRAPPED & parameters.keys():
            named = (each for each in parameters.values() if each.kind not in _VARIADIC)
            names |= {each.name for each in named} - _NO_SETTINGS
    return names


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _check_setting_names(names: Any, info: ValidationInfo) -> Any:
    is_list = isinstance(names, list | tuple)
    known = _setting_names() if is_list else set()
    wrong = [name for name in names if name not in known] if is_list else [names]
    if is_list and not wrong and len(set(names)) == len(names):
        return names
    remedy = '("lr", "weight_decay") for instance, () is none'
    if is_list and wrong and isinstance(wrong[0], str):
        remedy = did_you_mean(wrong[0], sorted(known))
    raise ValueError(
        f"`{info.field_name}` must be names of settings, each once, got {names!r}; {remedy}"
    )


SettingNames = Annotated[
    tuple[str, ...],
    BeforeValidator(_check_setting_names),
    WithJsonSchema({"type": "array", "items": {"type": "string"}}),
]
"""Settings of an optimizer's groups, "scheduler" and "requires_grad"."""

_PATH = WithJsonSchema({"type": "string", "minLength": 1})


def _is_path(value: Any) -> bool:
    return isinstance(value, str | Path) and value != "" and "\0" not in str(value)


def _made_absolute(
    field: str | None, value: str | Path, absolute: Callable[[str | Path], str | Path]
) -> str | Path:
    """Returns the absolute path as a str where ``value`` is one."""
    try:
        found = absolute(value)
    except ValueError as error:
        raise ValueError(
            f"`{field}` must be a path from a folder that is known, {error}"
        ) from error
    return str(found) if isinstance(value, str) else found


def _absolute_directory(value: str | Path, info: ValidationInfo) -> str | Path:
    url = str(value) if is_url(value) else url_of_path(value)
    if url is None:
        return _made_absolute(info.field_name, value, absolute_path)
    path = path_in_url(url)
    remedy = f"give the path itself, {path!r}"
    if path is None:
        remedy = "writing to URLs is not built yet: write to a local folder, and sync that one"
    rule = "a folder on this machine"
    raise ValueError(f"`{info.field_name}` must be {rule}, got {str(value)!r}; {remedy}")


def _absolute_source(value: str | Path, info: ValidationInfo) -> str | Path:
    url = None if is_url(value) else url_of_path(value)
    if url is None:
        return _made_absolute(info.field_name, value, absolute_source)
    raise ValueError(
        f"`{info.field_name}` must be a path or a URL, got {str(value)!r}, which is neither; "
        f"give the URL as a str, {url!r}"
    )


Directory = Annotated[
    str | Path,
    AfterValidator(_absolute_directory),
    must_be("a path", _is_path, 'a str or a Path, "checkpoints" for instance', may_be_none=False),
    _PATH,
]
"""A folder on this machine. It becomes absolute, with ``~`` expanded; a URL is refused."""

SourcePath = Annotated[
    str | Path,
    AfterValidator(_absolute_source),
    must_be("a path or a URL", _is_path, '"checkpoints" for instance', may_be_none=False),
    _PATH,
]
"""Where checkpoints are looked for. A path becomes absolute, with ``~`` expanded."""

Runtime = Annotated[Any, WithJsonSchema({"type": "null"})]
"""Live objects: they are in no file, and are given in code."""
