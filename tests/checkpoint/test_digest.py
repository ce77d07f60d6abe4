import copy
from collections import namedtuple

import numpy as np
import pytest
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


def test_digest_of_a_set_ignores_its_order():
    assert digest_of({"a", "b", "c", 1}) == digest_of(frozenset([1, "c", "b", "a"]))


def test_digest_of_nan_equals_itself():
    assert digest_of(torch.tensor(float("nan"))) == digest_of(torch.tensor(float("nan")))


class Holder:
    def __init__(self, value):
        self.value = value


def test_digest_of_an_object_follows_its_attributes():
    assert digest_of(Holder(torch.ones(2))) == digest_of(Holder(torch.ones(2)))
    assert digest_of(Holder(torch.ones(2))) != digest_of(Holder(torch.zeros(2)))


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_tensors_of_all_layouts_and_dtypes_have_a_digest():
    wave = torch.tensor([1 + 2j, 3 - 1j])
    values = [
        wave,
        wave.conj(),
        wave.conj().imag,
        torch.eye(2).to_sparse(),
        torch.eye(2).to_sparse_csr(),
        torch.eye(3).to_sparse(),
        torch.ones(2, dtype=torch.float8_e4m3fn),
        torch.nn.parameter.UninitializedParameter(),
    ]
    assert len({digest_of(value) for value in values}) == len(values) - 1
    assert digest_of(values[3]) == digest_of(values[4])  # the same values
    assert digest_of(wave.conj()) == digest_of(wave.conj().resolve_conj())


def test_tensor_can_be_resized_after_its_digest():
    tensor = torch.ones(2)
    digest_of(tensor)
    assert tensor.resize_(100).numel() == 100
