import pytest
import torch

from ignite_hooks.data.batch import default_prepare_batch


def test_unpack_returns_a_pair_unchanged():
    x, y = {"ids": torch.ones(2)}, [torch.zeros(2)]
    assert default_prepare_batch((x, y))[0] is x
    assert default_prepare_batch([x, y], device=torch.device("cpu"), non_blocking=True)[1] is y


def test_unpack_moves_a_pair_to_the_device():
    x, y = default_prepare_batch(
        ({"ids": torch.ones(2)}, [torch.zeros(2)]), device=torch.device("meta")
    )
    assert x["ids"].device.type == y[0].device.type == "meta"


@pytest.mark.parametrize(
    ("batch", "described"),
    [
        ((1, 2, 3), "tuple of length 3"),
        ([1], "list of length 1"),
        ({"x": 1, "y": 2}, "dict of length 2"),
        (torch.zeros(2, 3), "a tensor of shape (2, 3)"),
        (None, "NoneType"),
        (5, "int"),
    ],
)
def test_unpack_describes_a_batch_that_is_not_a_pair(batch, described):
    with pytest.raises(ValueError, match="a batch must be a pair") as raised:
        default_prepare_batch(batch)
    message = str(raised.value)
    assert f"got {described}:" in message
    assert "prepare_batch=" in message
