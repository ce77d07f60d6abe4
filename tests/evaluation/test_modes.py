import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from ignite_hooks.evaluation.modes import gradients_kept
from ignite_hooks.evaluation.modes import modes_kept
from ignite_hooks.evaluation.modes import without_ddp
from tests.reference import make_model


def modes(model):
    return [module.training for module in model.modules()]


def mixed_model():
    model = torch.nn.Sequential(make_model(), make_model(), torch.nn.BatchNorm1d(2))
    model[1].eval()
    model[1][2].train()
    return model


@pytest.mark.parametrize("change", [torch.nn.Module.eval, torch.nn.Module.train])
@pytest.mark.parametrize("failing", [False, True])
def test_the_mode_of_each_submodule_is_restored(change, failing):
    model = mixed_model()
    before = modes(model)
    try:
        with modes_kept(model):
            change(model)
            assert modes(model) != before
            if failing:
                raise ArithmeticError
    except ArithmeticError:
        assert failing
    assert modes(model) == before


def test_modes_are_restored_without_calling_train_or_eval():
    class Counting(torch.nn.Linear):
        calls = 0

        def train(self, mode=True):
            self.calls += 1
            return super().train(mode)

    model = torch.nn.Sequential(Counting(2, 2))
    with modes_kept(model):
        model[0].training = False
    assert model[0].calls == 0
    assert model[0].training


def test_a_submodule_that_was_added_or_removed_does_no_harm():
    model = mixed_model()
    removed, was = model[0], modes(model[0])
    with modes_kept(model):
        model.eval()
        model[0] = torch.nn.Linear(4, 2)
        model[0].eval()
    assert modes(removed) == was
    assert not model[0].training


def test_scopes_within_each_other_restore_what_each_found():
    model = mixed_model()
    outermost = modes(model)
    with modes_kept(model):
        model.eval()
        with modes_kept(model):
            model.train()
        assert not any(modes(model))
    assert modes(model) == outermost


@pytest.mark.parametrize("failing", [False, True])
def test_gradients_and_grad_mode_are_restored(failing):
    model = make_model(0.0)
    model[0](torch.ones(1, 4)).sum().backward()
    before = [parameter.grad for parameter in model.parameters()]
    values = [None if grad is None else grad.clone() for grad in before]
    try:
        with gradients_kept(model):
            assert all(parameter.grad is None for parameter in model.parameters())
            model(torch.ones(1, 4)).sum().backward()
            torch.set_grad_enabled(False)
            if failing:
                raise ArithmeticError
    except ArithmeticError:
        assert failing
    assert torch.is_grad_enabled()
    for parameter, grad, value in zip(model.parameters(), before, values, strict=True):
        assert parameter.grad is grad
        assert grad is None or torch.equal(grad, value)


def test_disabled_gradients_stay_disabled():
    with torch.no_grad():
        with gradients_kept(make_model()):
            torch.set_grad_enabled(True)
        assert not torch.is_grad_enabled()


def test_without_ddp_the_module_is_returned_unchanged():
    model = make_model()
    assert without_ddp(model) is model


def test_only_the_ddp_wrapper_is_removed(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = make_model()
        assert without_ddp(DistributedDataParallel(model)) is model
        holder = torch.nn.DataParallel(model)
        assert without_ddp(holder) is holder
    finally:
        torch.distributed.destroy_process_group()
