import math
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch

from ignite_hooks import ClearCache
from ignite_hooks import GradientClipping
from ignite_hooks import SaveCheckpoint
from ignite_hooks import Validation
from ignite_hooks.config import RunSettings
from ignite_hooks.config import equal
from ignite_hooks.config.comparing import first_difference
from tests.ids import stable_id


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
def test_the_same_content_is_equal(a, b):
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
def test_other_content_is_not(a, b):
    assert not equal(a, b)
    assert not equal(b, a)


def test_handlers_themselves_stay_two():
    assert ClearCache() != ClearCache()


def test_the_first_difference_is_told_by_its_path():
    one = RunSettings(handlers=[ClearCache(), ClearCache(every_steps=1)])
    other = RunSettings(handlers=[ClearCache(), ClearCache(every_steps=2)])
    assert first_difference(one, other) == "handlers[1].every_steps"
    assert first_difference([one], [other]) == "[0].handlers[1].every_steps"
    assert first_difference({"a b": [1, 2]}, {"a b": [1]}) == '["a b"][1]'
    assert first_difference(SaveCheckpoint("a"), SaveCheckpoint("b")) == "directory"
    assert first_difference(1, 2) == ""
    assert first_difference(one, one) is None
