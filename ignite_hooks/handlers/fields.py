"""The types of handlers' fields: each says its rule, and what to do, when it is broken."""

from collections.abc import Callable
from pathlib import Path
from signal import Signals
from sys import float_info
from typing import Annotated
from typing import Any

from pydantic import BeforeValidator
from pydantic import ConfigDict
from pydantic import ValidationInfo

__all__ = [
    "Backend",
    "Count",
    "Directory",
    "Every",
    "Flag",
    "Fraction",
    "Generation",
    "Iterations",
    "Kept",
    "Limit",
    "MetricName",
    "Mode",
    "NormType",
    "OnMissing",
    "Seconds",
    "SignalNames",
    "handler_config",
]

handler_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


def _must_be(
    rule: str, holds: Callable[[Any], bool], remedy: str, may_be_none: bool = True
) -> BeforeValidator:
    def check(value: Any, info: ValidationInfo) -> Any:
        if (value is None and may_be_none) or holds(value):
            return value
        raise ValueError(f"`{info.field_name}` must be {rule}, got {value!r}; {remedy}")

    return BeforeValidator(check)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


Every = Annotated[int, _must_be("an integer >= 1", _is_count, "leave it out for no such schedule")]
"""Once in so many steps or epochs."""

Iterations = Annotated[int, _must_be("an integer >= 1", _is_count, "it counts iterations")]
"""A number of iterations."""

Limit = Annotated[
    float,
    _must_be(
        "a number > 0",
        lambda value: _is_number(value) and value > 0,
        "leave the clipping out to have none",
    ),
]
"""What gradients are clipped to."""

Flag = Annotated[
    bool,
    _must_be(
        "True or False",
        lambda value: isinstance(value, bool),
        "it is a switch",
        may_be_none=False,
    ),
]
"""On or off."""

Fraction = Annotated[
    float,
    _must_be(
        "a number from 0 to 1",
        lambda value: _is_number(value) and 0 <= value <= 1,
        "leave it out to have no such condition",
    ),
]
"""A part of a whole."""

Count = Annotated[
    int,
    _must_be(
        "an integer >= 0",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
        "0 is none",
        may_be_none=False,
    ),
]
"""How many there are to be, or none."""

Kept = Annotated[int, _must_be("an integer >= 1, or None", _is_count, "None is all")]
"""How many of something are kept."""

Mode = Annotated[
    str,
    _must_be(
        '"max" or "min"',
        lambda value: value in ("max", "min"),
        "it says which value of the metric is the best",
        may_be_none=False,
    ),
]
"""Whether more or less is better."""

OnMissing = Annotated[
    str,
    _must_be(
        '"error" or "start"',
        lambda value: value in ("error", "start"),
        '"start" begins from scratch when there is no checkpoint yet',
        may_be_none=False,
    ),
]
"""What to do when there is nothing to go on from."""

Generation = Annotated[
    int,
    _must_be(
        "0, 1 or 2",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2,
        "2 is a full collection",
        may_be_none=False,
    ),
]
"""A generation of Python's garbage collector, and those younger than it."""

NormType = Annotated[
    float,
    _must_be(
        "a number > 0 or inf",
        lambda value: _is_number(value) and value > 0,
        "2.0 is the Euclidean norm, inf the largest absolute value",
        may_be_none=False,
    ),
]
"""The p of a p-norm."""

Seconds = Annotated[
    float,
    _must_be(
        "a finite number of seconds > 0",
        lambda value: _is_number(value) and 0 < value <= float_info.max,
        "1.0 is the usual choice",
        may_be_none=False,
    ),
]
"""A time between two looks."""

Backend = Annotated[
    str,
    _must_be(
        'one of "auto", "kernel" and "sampler"',
        lambda value: value in ("auto", "kernel", "sampler"),
        '"auto" takes the best that works',
        may_be_none=False,
    ),
]
"""How resident memory is measured."""

MetricName = Annotated[
    str,
    _must_be(
        "a string that is not empty",
        lambda value: isinstance(value, str) and value != "",
        "leave it out for the usual name",
        may_be_none=False,
    ),
]
"""The key of a value in ``state.metrics``."""


def _are_signals(names: Any) -> bool:
    return isinstance(names, list | tuple) and all(
        isinstance(name, str) and name in Signals.__members__ and name not in ("SIGKILL", "SIGSTOP")
        for name in names
    )


SignalNames = Annotated[
    tuple[str, ...],
    _must_be(
        "names of signals that can be handled",
        _are_signals,
        '("SIGTERM",) is the usual choice, () is none',
        may_be_none=False,
    ),
]
"""Signals of the operating system, by name."""

Directory = Annotated[
    str | Path,
    _must_be(
        "a path",
        lambda value: isinstance(value, str | Path) and value != "",
        'a str or a Path, "checkpoints" for instance',
        may_be_none=False,
    ),
]
"""A folder on this machine."""
