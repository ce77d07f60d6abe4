import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ignite_hooks import GradientClipping
from ignite_hooks import create_supervised_trainer
from ignite_hooks.checks import check_arguments
from ignite_hooks.checks import check_unused
from tests.reference import Noisy
from tests.reference import make_model


def sgd(*modules):
    return torch.optim.SGD([p for module in modules for p in module.parameters()], lr=0.1)


def check(model=None, optimizer=None, loss_fn=F.mse_loss, batch_processor=None, handlers=()):
    model = make_model() if model is None else model
    optimizer = sgd(model) if optimizer is None else optimizer
    check_arguments(model, optimizer, loss_fn, batch_processor, handlers)


def test_what_is_right_passes():
    check()
    check(loss_fn=torch.nn.MSELoss())
    check(loss_fn=None, batch_processor=lambda model, batch: None)
    check(handlers=[GradientClipping(max_norm=1.0)])


def test_an_optimizer_of_a_part_of_the_model_passes():
    model = make_model()
    check(model, sgd(model[0]))


def test_an_optimizer_of_a_loss_module_too_passes():
    model, loss_fn = make_model(), torch.nn.BCEWithLogitsLoss()
    loss_fn.scale = torch.nn.Parameter(torch.ones(1))
    check(model, sgd(model, loss_fn), loss_fn)


def test_parameters_of_a_loss_that_is_no_module_are_not_the_models():
    model, other = make_model(), make_model()
    with pytest.raises(ValueError, match="`optimizer` must hold parameters of `model`") as raised:
        check(model, sgd(model, other), lambda y_pred, y: F.mse_loss(other(y_pred), y))
    assert "4 of its 8 are not" in str(raised.value)


def test_a_model_with_one_trainable_parameter_passes():
    model = make_model().requires_grad_(False)
    model[0].bias.requires_grad_(True)
    check(model)


def test_a_trainable_loss_does_not_make_a_frozen_model_trainable():
    loss_fn = make_model()
    with pytest.raises(ValueError, match="`model` must have trainable parameters"):
        check(make_model().requires_grad_(False), sgd(loss_fn), loss_fn)


def test_a_prepared_optimizer_passes():
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model := make_model(), sgd(model))
    check(model, optimizer)


def test_a_parameter_that_was_replaced_after_the_optimizer_was_made_is_noticed():
    model = make_model()
    optimizer = sgd(model)
    model[3] = torch.nn.Linear(8, 2)
    with pytest.raises(ValueError, match=r"2 of its 4 are not: make it from model\.parameters\(\)"):
        check(model, optimizer)


def test_the_handler_without_attach_is_named():
    with pytest.raises(TypeError, match=r"handlers\[1\] is a function") as raised:
        check(handlers=[GradientClipping(max_norm=1.0), test_what_is_right_passes])
    assert "trainer.add_event_handler(event, function)" in str(raised.value)


def test_nothing_is_prepared_when_an_argument_is_wrong():
    accelerator, model = Accelerator(cpu=True), make_model()
    with pytest.raises(ValueError, match="`loss_fn`"):
        create_supervised_trainer(
            model, sgd(model), data=DataLoader(Noisy(), 2), accelerator=accelerator
        )
    assert accelerator._models == accelerator._optimizers == accelerator._dataloaders == []


@pytest.mark.parametrize("name", ["prepare_batch", "model_fn", "model_transform"])
def test_functions_that_a_batch_processor_would_never_call_are_refused(name):
    functions = dict.fromkeys(("prepare_batch", "model_fn", "model_transform"), (print, print))
    check_unused(lambda model, batch: None, **functions)
    functions[name] = (len, print)
    check_unused(None, **functions)
    with pytest.raises(ValueError, match=f"`{name}` must not be given with `batch_processor`"):
        check_unused(lambda model, batch: None, **functions)
