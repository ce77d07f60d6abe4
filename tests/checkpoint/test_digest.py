import copy
from collections import namedtuple

import numpy as np
import torch

from ignite_hooks.checkpoint.digest import digest_of

NOT_THE_SAME = [
    torch.tensor([1.0, 2.0]),
    torch.tensor([1.0, 2.5]),
    torch.tensor([[1.0, 2.0]]),
    torch.tensor([1.0, 2.0], dtype=torch.float64),
    torch.tensor([1, 2], dtype=torch.bfloat16),
    torch.tensor(1.0),
    torch.tensor([]),
    torch.tensor(True),
    np.array([1.0, 2.0], dtype=np.float16),
    np.array([1.0, 2.5], dtype=np.float16),
    [1, 2],
    [[1], 2],
    [1, [2]],
    [12],
    ["1", "2"],
    {"a": 1},
    {"a": 2},
    {"b": 1},
    {"a": {"a": 1}},
    None,
    0,
    0.0,
    -0.0,
    False,
    "",
    b"",
    1j,
    slice(1),
    set(),
    {1},
    {1, 2},
    namedtuple("Pair", "x y")(1, 3),
]


def test_different_values_have_different_digests():
    sums = [digest_of(value) for value in NOT_THE_SAME]
    assert len(set(sums)) == len(NOT_THE_SAME)
    assert sums == [digest_of(copy.deepcopy(value)) for value in NOT_THE_SAME]


def test_the_order_of_a_set_does_not_matter():
    assert digest_of({"a", "b", "c", 1}) == digest_of(frozenset([1, "c", "b", "a"]))


def test_digest_of_nan_equals_itself():
    assert digest_of(torch.tensor(float("nan"))) == digest_of(torch.tensor(float("nan")))


class Holder:
    def __init__(self, value):
        self.value = value


def test_digest_of_an_object_follows_its_attributes():
    assert digest_of(Holder(torch.ones(2))) == digest_of(Holder(torch.ones(2)))
    assert digest_of(Holder(torch.ones(2))) != digest_of(Holder(torch.zeros(2)))
