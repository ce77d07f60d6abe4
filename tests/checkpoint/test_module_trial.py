"""Tests that a trial restores a module: values, shapes, memory, attributes, class."""

import pytest
import torch

from ignite_hooks.checkpoint.digest import digest_of
from ignite_hooks.checkpoint.module_trial import SourceTracker
from ignite_hooks.checkpoint.module_trial import restored_on_exit


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.tied = torch.nn.Linear(2, 2, bias=False)
        self.tied.weight = self.layer.weight
        self.register_buffer("grows", torch.ones(2))
        self.register_buffer("left_out", torch.ones(2), persistent=False)
        self.register_buffer("view", self.left_out[1:])
        self.register_buffer("sparse", torch.eye(2).to_sparse())
        self.register_buffer("expanded", torch.ones(1).expand(3))
        self.register_buffer("none", None)
        self.lazy = torch.nn.LazyLinear(2)
        self.seen = [1]
        self.counts = {"a": 1}
        self.kinds = {1}
        self.memory = torch.ones(2)
        self.number = 1


def change_values(model):
    for tensor in (*model.layer.parameters(), model.left_out, model.memory, model.grows):
        tensor.fill_(7)


def change_data(model):
    model.sparse.mul_(5)
    for tensor in (model.layer.weight, model.expanded, model.view):
        tensor.data = torch.full((5,), 3.0)


def resize(model):
    model.grows.resize_(100).fill_(7)
    model.left_out.resize_(0)


def replace(model):
    model.layer.weight = torch.nn.Parameter(torch.zeros(4, 4))
    model.none = torch.zeros(1)
    model.tied = torch.nn.Linear(3, 3)
    del model.grows
    model.new = torch.nn.Linear(1, 1)


def materialize(model):
    model.lazy(torch.ones(1, 3))
    assert type(model.lazy) is torch.nn.Linear


def change_attributes(model):
    model.seen.append(2)
    model.counts["b"] = model.number = 2
    model.kinds.clear()
    model.memory = None
    model.register_forward_hook(print)
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad = False


def fail(model):
    change_values(model)
    raise OverflowError


def full_state(model):
    tensors = [*model.parameters(), *model.buffers(), model.memory]
    return (
        digest_of(model.state_dict()),
        [id(each) for each in (*model.modules(), *tensors)],
        [(type(each), each.requires_grad) for each in tensors],
        [type(each) for each in model.modules()],
        digest_of([each for each in tensors if type(each) is torch.Tensor]),
        (list(model.seen), dict(model.counts), set(model.kinds), model.number, model.none),
        [each.training for each in model.modules()],
        len(model._forward_hooks),
        model.view.data_ptr() - model.left_out.data_ptr(),
        model.tied.weight is model.layer.weight,
    )


@pytest.mark.parametrize(
    "change",
    [change_values, change_data, resize, replace, materialize, change_attributes, fail],
)
@torch.no_grad()
def test_a_module_is_restored_after_a_trial(change):
    model = Model()
    before = full_state(model)
    try:
        with restored_on_exit(model):
            change(model)
    except OverflowError:
        assert change is fail
    assert full_state(model) == before
    model.lazy(torch.ones(1, 3))


def test_the_source_of_a_parameter_is_the_copied_tensor():
    layer, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    state = {"former": torch.ones(2, 2), "bias": torch.ones(2)}
    with SourceTracker(state) as sources, torch.no_grad():
        layer.weight.copy_(state["former"])
        layer.bias.copy_(torch.ones(2))
    assert sources.source_name(layer.weight) == "former"
    assert sources.source_name(layer.bias) is None
    assert sources.source_name(other.weight) is None
