"""Tests that each argument of Ignite's factories works, or an error says what replaces it."""

import inspect
import re

import accelerate
import accelerate.utils
import ignite.engine
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

import ignite_hooks
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import weights

FACTORIES = ["create_supervised_trainer", "create_supervised_evaluator"]

# Values of the arguments that exist in Ignite only.
ONLY_IN_IGNITE = {
    "device": ["cpu", torch.device("cpu"), None],
    "non_blocking": [True, False],
    "deterministic": [True],
    "amp_mode": ["amp", None],
    "scaler": [True],
    "gradient_accumulation_steps": [4],
}


def parameters_of(factory, module):
    return inspect.signature(getattr(module, factory)).parameters


def call(factory, *args, **kwargs):
    """Calls our factory with the arguments that Ignite's requires, and others."""
    model = make_model(dropout=0)
    if factory == "create_supervised_trainer":
        required = [model, torch.optim.SGD(model.parameters(), lr=0.1), F.mse_loss]
    else:
        required = [model]
    return getattr(ignite_hooks, factory)(*required, *args, **kwargs)


CASES = [
    (factory, name)
    for factory in FACTORIES
    for name in parameters_of(factory, ignite.engine)
    if name not in ("model", "optimizer", "loss_fn")  # all tests give them, in Ignite's order
]


@pytest.mark.parametrize(("factory", "name"), CASES)
def test_each_argument_of_ignite_works_or_is_explained(factory, name):
    if name in parameters_of(factory, ignite_hooks):
        default = parameters_of(factory, ignite.engine)[name].default
        call(factory, **{name: default})
        return
    for value in ONLY_IN_IGNITE[name]:
        with pytest.raises(TypeError) as raised:
            call(factory, **{name: value})
        message = str(raised.value)
        assert message.startswith(f"{factory}() has no argument `{name}`, got {value!r}: ")
        assert "Accelerator(" in message or "set_seed" in message


@pytest.mark.parametrize("name", ONLY_IN_IGNITE)
def test_the_remedy_can_be_copied(name):
    with pytest.raises(TypeError) as raised:
        call("create_supervised_trainer", **{name: True})
    message = str(raised.value).replace("fp16", "bf16")  # fp16 needs a GPU
    names = {**vars(accelerate.utils), "accelerate": accelerate, "Accelerator": Accelerator}
    for code in re.findall(r"[\w.]+\((?:[^()]|\([^()]*\))*\)", message.partition(": ")[2]):
        eval(code, names)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_a_device_at_its_position_in_ignite_is_explained(device):
    with pytest.raises(TypeError, match=r"`data` must be .*`device`.*Accelerator\(cpu=True\)"):
        call("create_supervised_trainer", device)
    with pytest.raises(TypeError, match=r"got 3: .*order they are `device`: .*Accelerator\(cpu"):
        getattr(ignite_hooks, FACTORIES[1])(make_model(), {}, device)


def test_arguments_in_the_order_of_ignite_are_explained():
    with pytest.raises(TypeError) as raised:
        call("create_supervised_trainer", "cpu", True, print)
    message = str(raised.value)
    assert "takes 4 positional arguments, got 6: pass the others by name" in message
    assert "In Ignite's order they are `device`: the accelerator has the device" in message
    assert "`non_blocking`: the accelerator moves the batches" in message
    assert message.endswith("`prepare_batch`: pass prepare_batch=…")


def test_more_arguments_than_ignite_has_are_counted():
    with pytest.raises(TypeError, match="takes 2 positional arguments, got 20: pass the others"):
        call("create_supervised_evaluator", *range(19))


@pytest.mark.parametrize(
    ("factory", "name", "meant"),
    [
        ("create_supervised_trainer", "acelerator", "accelerator"),
        ("create_supervised_trainer", "gradient_clip", "grad_clip"),
        ("create_supervised_evaluator", "metric", "metrics"),
    ],
)
def test_a_misspelt_argument_is_corrected(factory, name, meant):
    with pytest.raises(TypeError, match=f"has no argument `{name}`, .* did you mean .*`{meant}`"):
        call(factory, **{name: None})


@pytest.mark.parametrize("factory", FACTORIES)
def test_the_signature_takes_no_argument_of_any_name(factory):
    kinds = {each.kind for each in parameters_of(factory, ignite_hooks).values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize(
    "transform",
    [
        lambda x, y, y_pred, loss: loss.item(),
        lambda x, y, y_pred, loss: (y_pred.sum().item(), y.sum().item()),
        lambda x, y, y_pred, loss: {"loss": loss.item(), "size": len(x)},
    ],
)
def test_outputs_are_those_of_ignite(transform):
    found = []
    for module, options in ((ignite.engine, {}), (ignite_hooks, {"accelerator": None})):
        model = make_model(dropout=0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = module.create_supervised_trainer(
            model, optimizer, F.mse_loss, output_transform=transform, **options
        )
        outputs = []
        trainer.add_event_handler(
            ignite.engine.Events.ITERATION_COMPLETED,
            lambda engine, outputs=outputs: outputs.append(engine.state.output),
        )
        trainer.run(batches_of(3), max_epochs=2)
        found.append((outputs, weights(model).tolist()))
    assert found[0] == found[1]
