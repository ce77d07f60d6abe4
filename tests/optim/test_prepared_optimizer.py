import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType

from ignite_hooks.optim.prepared_optimizer import PreparedOptimizer
from tests.reference import make_model
from tests.reference import weights


class Wrapped(AcceleratedOptimizer):
    """A subclass of Accelerate's optimizer, about which nothing is known."""


def make(is_plain=None, scaler=None):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    accelerator.scaler = scaler
    model = make_model(dropout=0)
    prepared = PreparedOptimizer(accelerator, torch.optim.SGD(model.parameters(), lr=0.1))
    if is_plain is not None:
        prepared.calls_torch_directly = is_plain
    return model, prepared


def backward(model, prepared, window_size=1):
    x, y = torch.ones(3, 4), torch.ones(3, 2)
    prepared.backward(F.mse_loss(model(x), y), window_size)


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_torch_is_called_directly_where_accelerate_adds_nothing():
    accelerator = Accelerator(cpu=True)
    assert make()[1].calls_torch_directly
    assert not make(scaler=torch.amp.GradScaler("cpu"))[1].calls_torch_directly
    unknown = Wrapped(torch.optim.SGD(make_model().parameters(), lr=0.1))
    unknown._is_accelerate_prepared = True
    assert not PreparedOptimizer(accelerator, unknown).calls_torch_directly


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA"])
def test_accelerate_is_called_where_it_shards_or_compiles(kind):
    accelerator = Accelerator(cpu=True)
    optimizer = AcceleratedOptimizer(torch.optim.SGD(make_model().parameters(), lr=0.1))
    optimizer._is_accelerate_prepared = True  # what preparing needs is not installed
    accelerator.state.distributed_type = DistributedType[kind]
    prepared = PreparedOptimizer(accelerator, optimizer)
    assert not prepared.calls_torch_directly
    assert not prepared.is_data_parallel


@pytest.mark.parametrize("kind", ["NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU"])
def test_torch_is_called_directly_for_a_replicated_model(kind):
    accelerator = Accelerator(cpu=True, device_placement=False)
    accelerator.state.distributed_type = DistributedType[kind]
    optimizer = torch.optim.SGD(make_model().parameters(), lr=0.1)
    assert PreparedOptimizer(accelerator, optimizer).calls_torch_directly


def test_accelerate_is_called_for_lomo():
    accelerator = Accelerator(cpu=True)
    accelerator.has_lomo_optimizer = True
    optimizer = torch.optim.SGD(make_model().parameters(), lr=0.1)
    assert not PreparedOptimizer(accelerator, optimizer).calls_torch_directly


@pytest.mark.parametrize("window_size", [1, 3, 4])
def test_both_paths_give_the_same_bits(window_size):
    results = []
    for is_plain in (True, False):
        model, prepared = make(is_plain)
        for _ in range(window_size):
            backward(model, prepared, window_size)
        results.append([gradients(model)])
        prepared.step()
        assert prepared.has_changed_parameters()
        results[-1].append(weights(model))
        prepared.zero_grad()
        assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("is_plain", [True, False])
def test_the_accumulation_of_the_accelerator_is_unchanged(is_plain):
    model, prepared = make(is_plain)
    backward(model, prepared, window_size=3)
    assert prepared.accelerator.gradient_accumulation_steps == 4
    with pytest.raises(RuntimeError):
        prepared.backward(torch.ones(()), 3)
    assert prepared.accelerator.gradient_accumulation_steps == 4


def test_missing_gradients_are_not_scaled():
    model, prepared = make()
    backward(model, prepared)
    before = gradients(model)
    prepared.scale(2.0)
    assert torch.equal(gradients(model), 2 * before)
    prepared.zero_grad()
    prepared.scale(2.0)


@pytest.mark.parametrize("is_plain", [True, False])
def test_gradients_are_cleared_within_a_window_too(is_plain):
    model, prepared = make(is_plain)
    backward(model, prepared)
    prepared.accelerator.sync_gradients = False
    prepared.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_step_not_taken_leaves_the_scaler_ready_and_unchanged():
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    model, prepared = make(scaler=scaler)
    for _ in range(2):
        backward(model, prepared)
        prepared.unscale()
        prepared.zero_grad()
        assert scaler.get_scale() == 8.0
    backward(model, prepared)
    prepared.unscale()
    prepared.step()
    assert prepared.has_changed_parameters()
    assert scaler.get_scale() == 16.0


def test_an_overflow_is_not_a_step():
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    model, prepared = make(scaler=scaler)
    before = weights(model)
    backward(model, prepared)
    next(model.parameters()).grad[0] = torch.inf
    prepared.step()
    assert not prepared.has_changed_parameters()
    assert torch.equal(weights(model), before)
