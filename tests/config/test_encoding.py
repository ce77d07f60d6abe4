import math
from dataclasses import field
from datetime import date
from datetime import timedelta
from enum import Enum
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic.dataclasses import dataclass
from torch.utils.data import DataLoader

from ignite_hooks import ClearCache
from ignite_hooks import GradientClipping
from ignite_hooks import HookContext
from ignite_hooks import Hooks
from ignite_hooks import OptimizerStep
from ignite_hooks import SaveCheckpoint
from ignite_hooks import Validation
from ignite_hooks.config import ConfigError
from ignite_hooks.config import RunSettings
from ignite_hooks.config import ValidationSchedule
from ignite_hooks.config import equal
from ignite_hooks.config.encoding import Encoder
from ignite_hooks.config.encoding import first_difference
from ignite_hooks.core.handler import Handler
from tests.ids import stable_id
from tests.reference import make_trainer


class Color(str, Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


@dataclass
class Inner:
    x: Any = None


def encoded(value, **options):
    """Returns the data of a value in a field."""
    options = {"exclude_defaults": False, "exclude_none": False, **options}
    (found,) = Encoder(**options).encode(Inner(value), is_in_field=True).values()
    return found


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (3, 3),
        (2.5, 2.5),
        (math.inf, math.inf),
        (np.float64(2.5), 2.5),
        ("a", "a"),
        (Path("a/b"), "a/b"),
        (Color.RED, "red"),
        (Level.LOW, 1),
        ((1, (2,)), [1, [2]]),
        ({3, 1, 2}, [1, 2, 3]),
        ({"type": "a", "b": {"c": (1,)}}, {"type": "a", "b": {"c": [1]}}),
        (date(2020, 1, 2), "2020-01-02"),
        (timedelta(seconds=90), "PT1M30S"),
        (Inner(Inner(1)), {"x": {"x": 1}}),
        (ClearCache(every_steps=3), {"type": "clear_cache", "every_steps": 3}),
    ],
    ids=stable_id,
)
def test_plain_data_is_written_unchanged(value, expected):
    found = encoded(value, exclude_defaults=True)
    assert found == expected
    assert type(found) is type(expected)


def test_handler_data_has_tag_first_then_fields_in_order():
    data = Encoder(exclude_defaults=False, exclude_none=False).encode(
        RunSettings(grad_clip=GradientClipping(max_norm=1), validation=ValidationSchedule())
    )
    assert list(data)[:3] == ["type", "seed", "mixed_precision"]
    assert data["grad_clip"] == {
        "type": "gradient_clipping",
        "max_norm": 1.0,
        "clip_value": None,
        "norm_type": 2.0,
    }
    assert list(data["validation"]) == [
        "every_steps",
        "every_epochs",
        "at_start",
        "prefix",
        "max_batches",
    ]


def test_defaults_and_none_can_be_left_out():
    settings = RunSettings(max_epochs=3, checkpoint=SaveCheckpoint("/a", keep_last=1))
    short = Encoder(exclude_defaults=True, exclude_none=False).encode(settings)
    assert short == {
        "type": "run",
        "max_epochs": 3,
        "checkpoint": {"type": "save_checkpoint", "directory": "/a", "keep_last": 1},
    }
    without = Encoder(exclude_defaults=False, exclude_none=True).encode(settings)
    assert without["scheduler_at"] == "step"
    assert without["checkpoint"]["mode"] == "max"
    assert "seed" not in without
    assert "metric" not in without["checkpoint"]


def test_none_values_are_written():
    assert encoded([None]) == [None]
    assert encoded(None) is None


def test_default_of_a_factory_is_left_out():
    @dataclass
    class Made:
        numbers: list[float] = field(default_factory=lambda: [math.nan])

    encoder = Encoder(exclude_defaults=True, exclude_none=False)
    assert encoder.encode(Made(), is_in_field=True) == {}
    assert encoder.encode(Made([1.0]), is_in_field=True) == {"numbers": [1.0]}


def loader():
    return DataLoader([1, 2])


@pytest.mark.parametrize(
    ("value", "path", "type_name"),
    [
        (torch.nn.Linear(1, 1), "x", "a Linear"),
        (loader(), "x", "a DataLoader"),
        (lambda: None, "x", "a function"),
        ([1, {"a": torch.zeros(2)}], "x[1].a", "a Tensor"),
        (np.zeros(2), "x", "a ndarray"),
        (b"ab", "x", "a bytes"),
        (1j, "x", "a complex"),
        (iter([1]), "x", "a list_iterator"),
    ],
    ids=stable_id,
)
def test_error_for_an_object_has_its_path_and_a_remedy(value, path, type_name):
    with pytest.raises(ConfigError, match="must be plain data, got") as raised:
        encoded(value)
    (problem,) = raised.value.problems
    assert problem.path == path
    assert type_name in problem.message
    assert "RunSettings.build()" in problem.message


@pytest.mark.parametrize("value", ["a\udcff", Path("a\udcff")], ids=ascii)
def test_text_must_be_unicode(value):
    with pytest.raises(ConfigError, match=r"^x: it must be Unicode text.*'a\\udcff'"):
        encoded(value)


def test_keys_must_be_strings():
    with pytest.raises(ConfigError, match=r"x\.a: keys must be strings, got 1: make it a string"):
        encoded({"a": {1: 2}})


def optimizer_step():
    trainer = make_trainer()
    return OptimizerStep(trainer.accelerator, torch.optim.SGD(trainer.model.parameters(), 1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Validation(lambda: None), "`evaluate` and `data` are objects: write the schedule"),
        (optimizer_step, "`accelerator`, `optimizer` and `lr_scheduler` are objects"),
        (Hooks, "its contexts are functions: register the contexts in code"),
        (lambda: HookContext(after=print), "`before` and `after` are functions"),
    ],
    ids=["Validation", "OptimizerStep", "Hooks", "HookContext"],
)
def test_handler_holding_objects_is_refused_with_a_remedy(make, words):
    handler = make()
    for value in (handler, [handler], {"a": handler}):
        with pytest.raises(ConfigError, match="cannot be written as data") as raised:
            Encoder(exclude_defaults=False, exclude_none=False).encode(value)
        assert words in str(raised.value)
    if isinstance(handler, Handler):
        with pytest.raises(ConfigError, match=r"^x: a .* cannot be written as data"):
            encoded(handler)


@pytest.mark.parametrize("value", [None, 3, "text", ClearCache, Inner()], ids=stable_id)
def test_top_level_must_be_handlers(value):
    with pytest.raises(ConfigError, match="its class has no tag"):
        Encoder(exclude_defaults=False, exclude_none=False).encode(value)


def test_self_containing_data_is_too_deep():
    nested = []
    nested += [nested, nested]
    with pytest.raises(ConfigError, match="at most 32 deep"):
        encoded(nested)
    with pytest.raises(ConfigError, match="at most 32 deep"):
        Encoder(exclude_defaults=False, exclude_none=False).encode(nested)
    inner = Inner()
    inner.x = inner
    with pytest.raises(ConfigError, match="at most 32 deep"):
        encoded(inner)


# Comparing.


class Shade(Enum):
    RED = 1
    GREEN = 2


def evaluate(model):
    return {}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (ClearCache(every_steps=3), ClearCache(every_steps=3)),
        ([ClearCache()], (ClearCache(),)),
        ({"a": ClearCache(), "b": 1}, {"b": 1, "a": ClearCache()}),
        (math.nan, float("nan")),
        (np.float64(2.0), 2.0),
        ("a/b", Path("a/b")),
        (Shade.RED, Shade.RED),
        (Validation(evaluate, every_steps=1), Validation(evaluate, every_steps=1)),
        ({1, 2}, {2, 1}),
    ],
    ids=stable_id,
)
def test_equal_accepts_the_same_content(a, b):
    assert a is not b or isinstance(a, Enum)
    assert equal(a, b)
    assert equal(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (ClearCache(), ClearCache(every_steps=3)),
        (ClearCache(), GradientClipping(max_norm=1.0)),
        ([1], [1, 1]),
        ({"a": None}, {}),
        (1, 1.0),
        (1, True),
        (0.0, False),
        ("1", 1),
        (None, 0),
        (Shade.RED, Shade.GREEN),
        (Shade.RED, 1),
        ({"a": 1}, [1]),
        (Validation(evaluate), Validation(lambda: None)),
        (torch.zeros(2), torch.zeros(2)),
        (np.zeros(2), np.zeros(2)),
        (math.nan, 1.0),
        ({1}, [1]),
    ],
    ids=stable_id,
)
def test_equal_rejects_other_content(a, b):
    assert not equal(a, b)
    assert not equal(b, a)


def test_handlers_with_equal_fields_are_not_equal():
    assert ClearCache() != ClearCache()


def test_first_difference_is_a_path():
    one = RunSettings(handlers=[ClearCache(), ClearCache(every_steps=1)])
    other = RunSettings(handlers=[ClearCache(), ClearCache(every_steps=2)])
    assert first_difference(one, other) == "handlers[1].every_steps"
    assert first_difference([one], [other]) == "[0].handlers[1].every_steps"
    assert first_difference({"a b": [1, 2]}, {"a b": [1]}) == '["a b"][1]'
    assert first_difference(SaveCheckpoint("a"), SaveCheckpoint("b")) == "directory"
    assert first_difference(1, 2) == ""
    assert first_difference(one, one) is None
