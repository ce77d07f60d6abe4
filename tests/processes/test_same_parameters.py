import pytest
import torch

from ignite_hooks.processes.same_parameters import SameParameters


def digest(tensor):
    return SameParameters.digest({"a": tensor, "b": torch.ones(3)})


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.complex64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (6,), (2, 3)])
def test_each_changed_element_changes_the_digest(dtype, shape):
    tensor = torch.arange(6).remainder(5).add(1)[: max(1, torch.Size(shape).numel())]
    tensor = tensor.view(shape).to(dtype)
    for index in range(tensor.numel()):
        other = tensor.clone()
        other.view(-1)[index] += 1
        assert digest(other) != digest(tensor)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_even_number_of_changes_changes_the_digest(dtype):
    ones = torch.ones(4, dtype=dtype)
    digests = {digest(ones * factor) for factor in (0.0, -0.0, 1.0, -1.0, 2.0, 0.3, torch.nan)}
    assert len(digests) == 7


def test_order_of_parameters_changes_the_digest():
    one, other = torch.ones(3), torch.zeros(3)
    assert SameParameters.digest({"a": one, "b": other}) != SameParameters.digest(
        {"a": other, "b": one}
    )


def test_strides_do_not_change_the_digest():
    tensor = torch.arange(6.0).view(2, 3)
    assert digest(tensor) == digest(tensor.t().contiguous().t())
    assert SameParameters.digest({"a": torch.empty(0)}) == (1, 0)
