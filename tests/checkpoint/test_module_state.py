import pytest
import torch

from ignite_hooks.checkpoint.module_state import differences_of_module
from ignite_hooks.checkpoint.module_state import give_to_module
from ignite_hooks.checkpoint.module_state import module_file
from ignite_hooks.checkpoint.module_state import read_module


class Odd(torch.nn.Module):
    """Buffers that safetensors can not hold, beside one that it can."""

    def __init__(self):
        super().__init__()
        self.register_buffer("plain", torch.arange(3.0))
        self.register_buffer("wave", torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex128))
        self.register_buffer("sparse", torch.tensor([0.0, 4.0]).to_sparse())


def through_a_file(folder, module, **options):
    name, content, about = module_file("model", module, **options)
    content.write(folder / name)
    return read_module(folder, "model", [name], about), about


@pytest.mark.parametrize("safe_serialization", [True, False])
def test_tensors_of_every_kind_come_back(tmp_path, safe_serialization):
    state, about = through_a_file(tmp_path, Odd(), safe_serialization=safe_serialization)
    other = Odd()
    other.plain.zero_()
    other.wave.zero_()
    assert list(differences_of_module("model", state, other)) == []
    assert give_to_module(other, state, about) == set()
    assert torch.equal(other.plain, torch.arange(3.0))
    assert torch.equal(other.wave, torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex128))
    assert torch.equal(other.sparse.to_dense(), torch.tensor([0.0, 4.0]))


def test_one_that_is_not_there_is_none(tmp_path):
    assert read_module(tmp_path, "loss_fn", ["model.safetensors"], {}) is None
    assert list(differences_of_module("loss_fn", None, Odd())) == [
        "the loss_fn is not in the checkpoint"
    ]


def test_each_difference_is_told(tmp_path):
    state, _ = through_a_file(tmp_path, torch.nn.Linear(2, 3), safe_serialization=True)
    other = torch.nn.Linear(2, 4, bias=False)
    other.register_buffer("more", torch.ones(1))
    assert list(differences_of_module("model", state, other)) == [
        "the model has no bias, the checkpoint has",
        "the model has more, the checkpoint has not",
        "weight had the shape (3, 2), it has (4, 2)",
    ]


def test_what_has_another_number_format_is_told(tmp_path):
    state, about = through_a_file(tmp_path, torch.nn.Linear(2, 3), safe_serialization=True)
    assert give_to_module(torch.nn.Linear(2, 3).bfloat16(), state, about) == {"weight", "bias"}
