import json
import math
from enum import Enum
from enum import IntEnum
from pathlib import PurePosixPath
from types import MappingProxyType

import numpy as np
import pytest
import torch

from ignite_hooks.checkpoint.plain_data import MAX_ITEMS
from ignite_hooks.checkpoint.plain_data import flattened
from ignite_hooks.checkpoint.plain_data import plain_data
from ignite_hooks.checkpoint.plain_data import plain_text
from tests.ids import stable_id


class Color(Enum):
    RED = 1


class Level(IntEnum):
    LOW = 1


class Unreadable:
    @property
    def ndim(self):
        raise RuntimeError("not now")


def nested(depth):
    return [nested(depth - 1)] if depth else 1


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (0.5, 0.5),
        ("text", "text"),
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        (10**20, "100000000000000000000"),
        pytest.param(10**5000, "integer of 16610 bits", id="10**5000"),
        ("\ud800", "\\ud800"),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.float64("nan"), "NaN"),
        (torch.tensor(0.5), 0.5),
        (torch.zeros(2, 3), "Tensor (2, 3) torch.float32"),
        (np.zeros(2), "ndarray (2,) float64"),
        (torch.float16, "torch.float16"),
        (torch.device("cpu"), "cpu"),
        (Color.RED, "RED"),
        (Level.LOW, "LOW"),
        (PurePosixPath("a/b"), "a/b"),
        (1j, "1j"),
        ((0.9, 0.999), [0.9, 0.999]),
        ([math.nan, {"a": -math.inf}, 10**20], ["NaN", {"a": "-Infinity"}, str(10**20)]),
        ({"b", "a"}, ["a", "b"]),
        (MappingProxyType({1: {Color.RED: 2}}), {"1": {"Color.RED": 2}}),
        (torch.nn.functional.relu, "relu"),
        (Color, "Color"),
        (object(), "object"),
        (Unreadable(), "Unreadable"),
    ],
    ids=stable_id,
)
def test_any_value_becomes_data_that_json_holds(value, plain):
    found = plain_data(value)
    assert found == plain
    assert type(found) is type(plain)
    assert json.loads(json.dumps(found, allow_nan=False)) == plain
    assert plain_data(found) == found


@pytest.mark.parametrize(
    "value",
    [
        ["x" * 10**6] * 10**4,
        {str(i): [0] * 1000 for i in range(1000)},
        nested(500),
        [[[[0] * 99] * 99] * 99] * 99,
        {str(i): {str(j): {str(k): 0 for k in range(99)} for j in range(99)} for i in range(99)},
    ],
    ids=["texts", "mapping", "depth", "product", "product of mappings"],
)
def test_large_data_is_bounded(value):
    text = json.dumps(plain_data(value))
    assert "..." in text
    assert len(text) < 100_000


def test_circular_references_end():
    circle = []
    circle.append(circle)
    assert "..." in json.dumps(plain_data(circle))


def test_elements_left_out_of_a_list_are_counted():
    assert plain_data(list(range(MAX_ITEMS + 5)))[-1] == "... 5 more"
    assert plain_data(dict.fromkeys(range(MAX_ITEMS + 5)))["..."] == "... 5 more"


def test_long_text_is_cut():
    assert plain_text("abcdefgh", 6) == "abc..."


def test_nested_data_is_flattened_to_named_values():
    data = {"optimizer": {"groups": [{"lr": 1, "betas": [0.9, 0.99]}, {"lr": 2}]}, "none": {}}
    assert dict(flattened(data)) == {
        "optimizer.groups.0.lr": 1,
        "optimizer.groups.0.betas": [0.9, 0.99],
        "optimizer.groups.1.lr": 2,
        "none": {},
    }
