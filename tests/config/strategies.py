"""Strategies of hypothesis for handlers, with any valid values of their fields."""

import math
import types
from pathlib import Path
from typing import Annotated
from typing import Any
from typing import Union
from typing import get_args
from typing import get_origin
from typing import get_type_hints

from hypothesis import assume
from hypothesis import strategies as st

from ignite_hooks.config import ValidationSchedule
from ignite_hooks.config import run_settings
from ignite_hooks.config.registry import registered_classes
from ignite_hooks.core import fields
from ignite_hooks.core.handler import Handler
from ignite_hooks.observe.report import training_report

OURS = {
    tag: cls
    for tag, cls in registered_classes().items()
    if cls.__module__.startswith("ignite_hooks.")
}
"""The registered classes of this package, without those of tests, by their tags."""

counts = st.integers(1, 2**70)
positive = st.floats(0, exclude_min=True, allow_nan=False)
paths = st.text(min_size=1).filter(
    lambda text: "\0" not in text and ":/" not in text and not text.startswith("~")
)


def json_of(leaves):
    """Returns a strategy for plain data with these leaves."""
    return st.recursive(
        leaves,
        lambda items: st.lists(items, max_size=3) | st.dictionaries(st.text(), items, max_size=3),
        max_leaves=6,
    )


LEAVES = st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
FINITE_LEAVES = LEAVES.filter(lambda leaf: leaf not in (math.inf, -math.inf))
JSON = json_of(st.none() | LEAVES)
"""Values for fields that admit everything."""

BY_TYPE = [
    # TOML has no None within a value, and JSON has no infinity where any type is allowed.
    (dict[str, Any], st.dictionaries(st.text(), json_of(FINITE_LEAVES), max_size=3)),
    (fields.Backend, st.sampled_from(["auto", "kernel", "sampler"])),
    (fields.Count, st.integers(0, 9)),
    (fields.Directory, paths | paths.map(Path)),
    (fields.FilePath, paths | paths.map(Path)),
    (fields.Every, counts),
    (fields.Batches, counts),
    (fields.Flag, st.booleans()),
    (fields.FlagInCode, st.just(False)),
    (fields.Fraction, st.floats(0, 1)),
    (fields.Generation, st.integers(0, 2)),
    (fields.GraceSeconds, st.floats(0, allow_infinity=False)),
    (fields.Iterations, counts),
    (fields.Kept, counts | st.just("all")),
    (fields.Limit, positive),
    (fields.MetricName, st.text(min_size=1)),
    (fields.MetricNames, st.sets(st.sampled_from(["fit", "size", "a b"])).map(tuple)),
    (fields.Mode, st.sampled_from(["max", "min"])),
    (fields.NormType, positive),
    (fields.OnBusy, st.sampled_from(["error", "wait"])),
    (fields.OnMissing, st.sampled_from(["error", "start"])),
    (fields.Prefix, st.text()),
    (fields.ProjectName, st.text(min_size=1)),
    (fields.Runtime, st.none()),
    (fields.Function, st.none()),
    (fields.Seconds, st.floats(0, exclude_min=True, allow_infinity=False)),
    (fields.SettingNames, st.sets(st.sampled_from(["lr", "betas", "scheduler"])).map(tuple)),
    (fields.SignalNames, st.lists(st.sampled_from(["SIGTERM", "SIGINT", "SIGUSR1"])).map(tuple)),
    (fields.SourcePath, paths | paths.map(Path)),
    (training_report.PagePath, paths.map(lambda folder: f"{folder}/report.html")),
    (run_settings.Accumulation, counts),
    (run_settings.AgreeEvery, counts),
    (run_settings.MaxCount, counts),
    (run_settings.Precision, st.sampled_from(["no", "fp16", "bf16", "fp8"])),
    (run_settings.SchedulerAt, st.sampled_from(["step", "epoch", "validation"])),
    (run_settings.Seed, st.integers(0, 2**32 - 1)),
]


def strategy_for(annotation):
    """Returns a strategy for the annotation of a field."""
    for known, values in BY_TYPE:
        if annotation == known:
            return values
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return strategy_for(arguments[0])
    if origin in (Union, types.UnionType):
        return st.one_of([strategy_for(each) for each in arguments])
    if origin is tuple and arguments[1:] == (...,):
        return st.lists(strategy_for(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(st.text(), strategy_for(arguments[1]), max_size=3)
    if annotation is type(None):
        return st.none()
    if annotation is Handler:
        subclasses = [each for each in OURS.values() if issubclass(each, Handler)]
        return st.sampled_from(subclasses).flatmap(handlers)
    if annotation is ValidationSchedule or annotation in OURS.values():
        return handlers(annotation)
    if annotation is Any:
        return JSON
    return st.from_type(annotation)


@st.composite
def handlers(draw, cls):
    """Draws an instance of a class, with values that are valid together."""
    annotations = get_type_hints(cls, include_extras=True)
    names = [name for name in cls.__pydantic_fields__ if name in annotations]
    values = {name: draw(strategy_for(annotations[name]), label=name) for name in names}
    try:
        return cls(**values)
    except ValueError as error:
        if any(each["loc"] for each in error.__context__.errors()):
            raise  # a strategy gave a value that is invalid by itself
        assume(False)
