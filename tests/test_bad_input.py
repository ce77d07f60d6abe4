"""Wrong arguments raise an error with a remedy before the first batch."""

import functools
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events
from ignite.handlers import LRScheduler as IgniteScheduler
from ignite.handlers import Timer
from ignite.metrics import MeanSquaredError
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from ignite_hooks import DataFeed
from ignite_hooks import GradientClipping
from ignite_hooks import OptimizerStep
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import weights


class CountedBatches(list):
    """Batches that count how many of them were given."""

    given = 0

    def __iter__(self):
        for batch in super().__iter__():
            self.given += 1
            yield batch


def batches():
    return CountedBatches(batches_of(3))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def lbfgs(model):
    return torch.optim.LBFGS(model.parameters())


class NeedsLoss(torch.optim.SGD):
    def step(self, closure=None, *, loss, **more):
        pass


def cpu():
    return Accelerator(cpu=True)


def forward_and_loss(model, batch):
    x, y = batch
    return (outputs := model(x)), F.mse_loss(outputs, y)


def frozen_model():
    return make_model().requires_grad_(False)


def evaluator():
    return create_supervised_evaluator(make_model(), {"mse": MeanSquaredError()}, accelerator=cpu())


def train(data, *, run=None, **options):
    """Builds a trainer with the options and runs it.

    Args:
        data: the batches.
        run: the arguments of ``run``.
        options: arguments of the factory; ``optimizer`` can be a function of the model.
    """
    model = options.pop("model", None) or make_model()
    optimizer = options.pop("optimizer", sgd)
    options = {"loss_fn": F.mse_loss, "data": data, "accelerator": cpu(), **options}
    trainer = create_supervised_trainer(
        model, optimizer(model) if callable(optimizer) else optimizer, **options
    )
    trainer.run(**(run or {}))


def no_metrics():
    return {}


def validate(data, *args, **options):
    train(data, validation=Validation(*args, **options))


def attach_twice(data, make):
    model = make_model()
    trainer = create_supervised_trainer(model, sgd(model), F.mse_loss, data, accelerator=cpu())
    for _ in range(2):
        make(trainer).attach(trainer)
    trainer.run()


def clip_without_step(data):
    engine = Engine(lambda engine, batch: None)
    GradientClipping(max_norm=1.0).attach(engine)
    engine.run(data)


def step_for_two_engines(data):
    step = OptimizerStep(cpu(), sgd(make_model()))
    for _ in range(2):
        step.attach(Engine(lambda engine, batch: None))


def step_at_an_event(data):
    engine = Engine(lambda engine, batch: None)
    OptimizerStep(cpu(), sgd(make_model())).attach(engine, Events.EPOCH_COMPLETED)


def validate_the_model_of_a_plain_engine(data):
    engine = Engine(lambda engine, batch: None)
    Validation(lambda model: {}, every_epochs=1).attach(engine)
    engine.run(data)


def validate_with_itself(data):
    model = make_model()
    trainer = create_supervised_trainer(model, sgd(model), F.mse_loss, data, accelerator=cpu())
    Validation(trainer, batches(), every_epochs=1).attach(trainer)
    trainer.run()


# Each case: a function of the batches, the type of the error, and parts of its message, which has
# the argument, the rule, the value received (if there is one), and the remedy.
BEFORE_THE_FIRST_BATCH = {
    "no loss": (
        lambda data: train(data, loss_fn=None),
        ValueError,
        (
            "exactly one of `loss_fn` and `batch_processor`",
            "neither",
            "loss_fn=torch.nn.functional",
        ),
    ),
    "two losses": (
        lambda data: train(data, batch_processor=forward_and_loss),
        ValueError,
        ("exactly one of `loss_fn` and `batch_processor`", "got both", "as batch_processor"),
    ),
    "loss_fn that cannot be called": (
        lambda data: train(data, loss_fn="mse"),
        TypeError,
        ("`loss_fn`", "must be a function or a module", "got str", "create_supervised_trainer("),
    ),
    "loss_fn that is a class": (
        lambda data: train(data, loss_fn=torch.nn.MSELoss),
        TypeError,
        ("`loss_fn`", "MSELoss"),
    ),
    "batch_processor that cannot be called": (
        lambda data: train(data, loss_fn=None, batch_processor=[forward_and_loss]),
        TypeError,
        ("`batch_processor`", "must be a function or a module", "got list", "the order is"),
    ),
    "batch_processor with prepare_batch": (
        lambda data: train(
            data,
            loss_fn=None,
            batch_processor=forward_and_loss,
            prepare_batch=lambda batch, **_: batch,
        ),
        ValueError,
        ("`prepare_batch`", "must not be given with `batch_processor`", "call `prepare_batch`"),
    ),
    "batch_processor with model_fn": (
        lambda data: train(
            data,
            loss_fn=None,
            batch_processor=forward_and_loss,
            model_fn=lambda model, x: model(x),
        ),
        ValueError,
        ("`model_fn`", "must not be given with `batch_processor`", "call `model_fn`"),
    ),
    "batch_processor with model_transform": (
        lambda data: train(
            data, loss_fn=None, batch_processor=forward_and_loss, model_transform=torch.tanh
        ),
        ValueError,
        ("`model_transform`", "must not be given with `batch_processor`", "call `model_transform`"),
    ),
    "no data": (
        lambda data: train(None),
        ValueError,
        ("`data`", "must be given", "got None", "pass a DataLoader"),
    ),
    "empty list": (
        lambda data: train([]),
        ValueError,
        ("`data`", "at least one", "no batch", "check the list"),
    ),
    "empty list for the run": (
        lambda data: train(data, run={"data": []}),
        ValueError,
        ("`data`", "at least one", "no batch", "check the list"),
    ),
    "empty loader": (
        lambda data: train(DataLoader(TensorDataset(torch.ones(0)), 2)),
        ValueError,
        ("`data`", "at least one", "no batch", "check the DataLoader"),
    ),
    "loader that drops its only batch": (
        lambda data: train(DataLoader(TensorDataset(torch.ones(3)), 4, drop_last=True)),
        ValueError,
        ("`data`", "at least one", "no batch", "check the DataLoader"),
    ),
    "empty generator": (
        lambda data: train(each for each in ()),
        ValueError,
        ("`data`", "at least one", "no batch", "check the generator"),
    ),
    "data that cannot be iterated": (
        lambda data: train(5),
        TypeError,
        ("`data`", "must be an iterable of batches", "got int", "pass a DataLoader"),
    ),
    "empty feed": (
        lambda data: DataFeed([]),
        ValueError,
        ("`data`", "at least one", "no batch", "check the list"),
    ),
    "no clip limit": (
        lambda data: train(data, grad_clip=GradientClipping()),
        ValueError,
        ("exactly one of `max_norm` and `clip_value`", "max_norm=None", "max_norm=1.0 is"),
    ),
    "two clip limits": (
        lambda data: train(data, grad_clip=GradientClipping(max_norm=2, clip_value=3)),
        ValueError,
        ("exactly one of `max_norm` and `clip_value`", "clip_value=3.0", "max_norm=1.0 is"),
    ),
    **{
        f"{name} {value}": (
            lambda data, name=name, value=value: train(
                data, grad_clip=GradientClipping(**{name: value})
            ),
            ValueError,
            (f"`{name}`", "must be a number > 0", f"got {value!r}", "leave the clipping out"),
        )
        for name in ("max_norm", "clip_value")
        for value in (-1.0, 0, math.nan, -math.inf, "1", True)
    },
    **{
        f"norm_type {value}": (
            lambda data, value=value: train(
                data, grad_clip=GradientClipping(max_norm=1.0, norm_type=value)
            ),
            ValueError,
            ("`norm_type`", "must be a number > 0 or inf", f"got {value!r}", "2.0 is the"),
        )
        for value in (0, -2.0, math.nan, "inf")
    },
    "clipper with a misspelt field": (
        lambda data: GradientClipping(maxnorm=1.0),
        TypeError,
        ("`GradientClipping` has no argument `maxnorm`", "did you mean `max_norm`?"),
    ),
    "grad_clip that is a number": (
        lambda data: train(data, grad_clip=1.0),
        TypeError,
        ("`grad_clip`", "float", "GradientClipping(max_norm="),
    ),
    "second clipper": (
        lambda data: attach_twice(data, lambda trainer: GradientClipping(max_norm=1.0)),
        ValueError,
        ("at most one GradientClipping", "got a second one", "remove()"),
    ),
    "clipper in handlers and as grad_clip": (
        lambda data: train(
            data,
            grad_clip=GradientClipping(max_norm=1.0),
            handlers=[GradientClipping(clip_value=1.0)],
        ),
        ValueError,
        ("at most one GradientClipping", "got a second one", "as `grad_clip` or in `handlers`"),
    ),
    "clipper on an engine that does not step": (
        clip_without_step,
        ValueError,
        ("must have an OptimizerStep", "got none", "attach OptimizerStep(accelerator, optimizer)"),
    ),
    "second OptimizerStep": (
        lambda data: attach_twice(data, lambda t: OptimizerStep(t.accelerator, t.optimizer)),
        ValueError,
        ("`engine` must not be a trainer", "has an OptimizerStep already", "to the factory"),
    ),
    "OptimizerStep of two engines": (
        step_for_two_engines,
        ValueError,
        ("one engine", "attached already", "make another"),
    ),
    "OptimizerStep at an event": (
        step_at_an_event,
        ValueError,
        ("`event`", "must be left out", "EPOCH_COMPLETED", "gradient_accumulation_steps"),
    ),
    "scheduler_at": (
        lambda data: train(data, scheduler_at="batch"),
        ValueError,
        ("`scheduler_at`", 'must be "step", "epoch" or "validation"', "got 'batch'"),
    ),
    "scheduler of another optimizer": (
        lambda data: train(data, lr_scheduler=StepLR(sgd(make_model()), 1)),
        ValueError,
        ("`lr_scheduler`", "must be built on `optimizer`", "another SGD", "callable"),
    ),
    "scheduler made for another optimizer": (
        lambda data: train(data, lr_scheduler=lambda _: StepLR(sgd(make_model()), 1)),
        ValueError,
        ("`lr_scheduler`", "must be built on `optimizer`", "another SGD", "callable"),
    ),
    "scheduler that needs a metric": (
        lambda data: train(data, lr_scheduler=ReduceLROnPlateau),
        ValueError,
        ("`scheduler_at`", "with a ReduceLROnPlateau", 'got "step"', 'scheduler_at="validation"'),
    ),
    "scheduler without its metric": (
        lambda data: train(data, lr_scheduler=ReduceLROnPlateau, scheduler_at="validation"),
        ValueError,
        ("`scheduler_metric` must be given as a text", "got None", "val_loss"),
    ),
    "metric without a scheduler": (
        lambda data: train(data, scheduler_metric="val_loss"),
        ValueError,
        ("`scheduler_metric` must be left out", "got 'val_loss' with None", "take no metric"),
    ),
    "endless validation": (
        lambda data: Validation(Engine(lambda e, b: None), itertools.count(), every_epochs=1),
        ValueError,
        ("`max_batches` must be given", "of unknown length", "a count", "largest number"),
    ),
    "scheduler of Ignite": (
        lambda data: train(data, lr_scheduler=IgniteScheduler(StepLR(sgd(make_model()), 1))),
        TypeError,
        ("`lr_scheduler`", "must be a torch scheduler", "got Ignite's", "add_event_handler"),
    ),
    "scheduler that is a number": (
        lambda data: train(data, lr_scheduler=0.1),
        TypeError,
        ("`lr_scheduler`", "must be a torch", "got float", "pass StepLR"),
    ),
    "callable that returns no scheduler": (
        lambda data: train(data, lr_scheduler=lambda optimizer: None),
        TypeError,
        ("`lr_scheduler`", "must be a torch", "got NoneType", "pass StepLR"),
    ),
    "model without trainable parameters": (
        lambda data: train(data, model=frozen_model()),
        ValueError,
        ("`model`", "must have trainable parameters", "none out of 4", "set requires_grad"),
    ),
    "model without parameters": (
        lambda data: train(data, model=torch.nn.ReLU(), optimizer=sgd(make_model())),
        ValueError,
        ("`model`", "must have trainable parameters", "none out of 0", "ReLU"),
    ),
    "model that is a function": (
        lambda data: train(data, model=lambda x: x, optimizer=sgd(make_model())),
        TypeError,
        ("`model`", "must be a torch.nn.Module", "got function"),
    ),
    "models in a list": (
        lambda data: train(data, model=[make_model()], optimizer=sgd(make_model())),
        TypeError,
        ("`model`", "must be a torch.nn.Module", "got list", "torch.nn.ModuleDict"),
    ),
    "optimizer of another model": (
        lambda data: train(data, optimizer=sgd(make_model())),
        ValueError,
        ("`optimizer`", "must hold only parameters of `model`", "4 of 4", "model.parameters()"),
    ),
    "optimizer that is None": (
        lambda data: train(data, optimizer=None),
        TypeError,
        ("`optimizer`", "must be a torch.optim.Optimizer", "got NoneType", "torch.optim.SGD("),
    ),
    "optimizer that is a class": (
        lambda data: train(data, optimizer=lambda model: torch.optim.SGD),
        TypeError,
        (
            "`optimizer`",
            "must be a torch.optim.Optimizer",
            "got the class SGD",
            "one, SGD(",
        ),
    ),
    "optimizer with a closure": (
        lambda data: train(data, optimizer=lbfgs),
        TypeError,
        ("`optimizer` must step without", "LBFGS.step() needs `closure`", "use an optimizer that"),
    ),
    "prepared optimizer with a closure": (
        lambda data: train(data, optimizer=lambda model: cpu().prepare(lbfgs(model))),
        TypeError,
        ("`optimizer` must step without", "LBFGS.step() needs `closure`", "use an optimizer that"),
    ),
    "optimizer with a required keyword, without a trainer": (
        lambda data: OptimizerStep(cpu(), NeedsLoss(make_model().parameters())),
        TypeError,
        ("`optimizer` must step without", "NeedsLoss.step() needs `loss`", "use an optimizer that"),
    ),
    "accelerator that is a device": (
        lambda data: train(data, accelerator="cpu"),
        TypeError,
        ("`accelerator`", "accelerate.Accelerator", "str"),
    ),
    "handler without attach": (
        lambda data: train(data, handlers=[Timer(), print]),
        TypeError,
        ("`handlers`", "must have attach(engine)", "handlers[1]", "add_event_handler"),
    ),
    "handler that is a class": (
        lambda data: train(data, handlers=[GradientClipping]),
        TypeError,
        ("`handlers`", "handlers[0]", "GradientClipping"),
    ),
    "one handler instead of several": (
        lambda data: train(data, handlers=GradientClipping(max_norm=1.0)),
        TypeError,
        ("`handlers`", "GradientClipping", "["),
    ),
    **{
        f"{name} {value}": (
            lambda data, name=name, value=value: train(data, run={name: value}),
            ValueError,
            (f"`{name}`", "must be an integer >= 1", f"got {value!r}", "leave it out"),
        )
        for name in ("max_steps", "max_epochs", "max_iters", "epoch_length")
        for value in (0, -1, 1.5, True, "3")
    },
    "epochs and iterations": (
        lambda data: train(data, run={"max_epochs": 1, "max_iters": 2}),
        ValueError,
        ("only one of `max_epochs` and `max_iters`", "1 and 2", "leave one out"),
    ),
    **{
        f"{name} {value}": (
            lambda data, name=name, value=value: validate(data, no_metrics, **{name: value}),
            ValueError,
            (f"`{name}`", "must be an integer >= 1", f"got {value!r}", "leave it out"),
        )
        for name in ("every_steps", "every_epochs")
        for value in (0, -1, 1.5, True, "3", math.nan)
    },
    "at_start that is a number": (
        lambda data: validate(data, no_metrics, at_start=1),
        ValueError,
        ("at_start", "True or False"),
    ),
    "prefix that is a number": (
        lambda data: validate(data, no_metrics, every_epochs=1, prefix=3),
        ValueError,
        ("prefix", "string"),
    ),
    "validation without schedule": (
        lambda data: validate(data, evaluator(), batches()),
        ValueError,
        ("`every_steps`, `every_epochs` and `at_start`", "must have a schedule", "every_epochs=1"),
    ),
    "validation with at_start=False alone": (
        lambda data: validate(data, no_metrics, at_start=False),
        ValueError,
        ("`every_steps`, `every_epochs` and `at_start`", "must have a schedule", "every_epochs=1"),
    ),
    "evaluator without data": (
        lambda data: validate(data, evaluator(), every_epochs=1),
        ValueError,
        ("`data`", "must be given with an evaluator", "got None", "Validation(evaluator, loader"),
    ),
    "evaluator without named data": (
        lambda data: validate(data, evaluator(), {}, every_epochs=1),
        ValueError,
        ("`data`", "must be given with an evaluator", "got {}", "Validation(evaluator, loader"),
    ),
    "evaluator with a name without data": (
        lambda data: validate(data, evaluator(), {"test": None}, every_epochs=1),
        ValueError,
        ("`data`", "test", "None"),
    ),
    "evaluator with empty data": (
        lambda data: validate(data, evaluator(), [], every_epochs=1),
        ValueError,
        ("`data`", "at least one"),
    ),
    "evaluator with empty data under a name": (
        lambda data: validate(data, evaluator(), {"test": []}, every_epochs=1),
        ValueError,
        ("`data`", "at least one"),
    ),
    "evaluator with data that cannot be iterated": (
        lambda data: validate(data, evaluator(), 5, every_epochs=1),
        (TypeError, ValueError),
        ("`data`", "must be an iterable of batches", "got int"),
    ),
    "callable with data": (
        lambda data: validate(data, no_metrics, batches(), every_epochs=1),
        ValueError,
        ("`data`", "must be left out with a callable", "read the data inside the callable"),
    ),
    "model instead of an evaluator": (
        lambda data: validate(data, make_model(), batches(), every_epochs=1),
        (TypeError, ValueError),
        ("`evaluate`", "create_supervised_evaluator(model"),
    ),
    "loader instead of an evaluator": (
        lambda data: validate(data, batches(), every_epochs=1),
        TypeError,
        (
            "`evaluate`",
            "must be an engine or a callable",
            "got CountedBatches",
            "the order is Validation(evaluator, loader)",
        ),
    ),
    "callable with two arguments": (
        lambda data: validate(data, lambda model, loader: {}, every_epochs=1),
        TypeError,
        ("`evaluate`", "must take no argument or the model", "(model, loader)", "lambda model:"),
    ),
    "callable with a keyword argument": (
        lambda data: validate(data, lambda *, loader: {}, every_epochs=1),
        TypeError,
        ("`evaluate`", "must take no argument or the model", "(loader)", "lambda model:"),
    ),
    "partial that leaves two arguments": (
        lambda data: validate(data, functools.partial(lambda a, b, c: {}, 1), every_epochs=1),
        TypeError,
        ("`evaluate`", "must take no argument or the model", "(b, c)", "lambda model:"),
    ),
    "callable without signature": (
        lambda data: validate(data, min, every_epochs=1),
        (TypeError, ValueError),
        ("`evaluate`", "min"),
    ),
    "model of a plain engine": (
        validate_the_model_of_a_plain_engine,
        ValueError,
        ("`evaluate`", "takes the model", "has none", "lambda: evaluate(model)"),
    ),
    "trainer as its own evaluator": (
        validate_with_itself,
        (TypeError, ValueError),
        ("`evaluate`", "create_supervised_evaluator"),
    ),
    "validation that is an evaluator": (
        lambda data: train(data, validation=evaluator()),
        TypeError,
        ("`validation`", "Evaluator", "Validation("),
    ),
    "misspelt field of a validation": (
        lambda data: validate(data, no_metrics, every_epoch=1),
        TypeError,
        ("`Validation` has no argument `every_epoch`", "did you mean `every_epochs`"),
    ),
    "evaluator of a function": (
        lambda data: create_supervised_evaluator(lambda x: x, accelerator=cpu()),
        TypeError,
        ("`model`", "must be a torch.nn.Module", "got function"),
    ),
    "metric that is a function": (
        lambda data: create_supervised_evaluator(
            make_model(), {"mse": F.mse_loss}, accelerator=cpu()
        ),
        TypeError,
        ("`metrics`", "must hold Ignite metrics", "got function for 'mse'", "Accuracy()"),
    ),
    "metrics in a list": (
        lambda data: create_supervised_evaluator(
            make_model(), [MeanSquaredError()], accelerator=cpu()
        ),
        TypeError,
        ("`metrics`", "list"),
    ),
    "accelerator of an evaluator that is a device": (
        lambda data: create_supervised_evaluator(make_model(), accelerator="cpu"),
        TypeError,
        ("`accelerator`", "accelerate.Accelerator", "str"),
    ),
}


@pytest.mark.parametrize("case", BEFORE_THE_FIRST_BATCH.values(), ids=BEFORE_THE_FIRST_BATCH)
def test_bad_input_is_reported_before_the_first_batch(case):
    call, kind, fragments = case
    data = batches()
    with pytest.raises(kind) as raised:
        call(data)
    assert data.given == 0
    message = str(raised.value)
    assert [fragment for fragment in fragments if fragment not in message] == []


def returning(value):
    return {"loss_fn": None, "batch_processor": value}


AT_THE_FIRST_BATCH = {
    "None": (returning(lambda model, batch: None), TypeError, ("tuple (outputs", "NoneType")),
    "loss alone": (
        returning(lambda model, batch: forward_and_loss(model, batch)[1]),
        TypeError,
        ("`batch_processor` must return a tuple (outputs, loss)", "a tensor of shape ()", "return"),
    ),
    "tuple of three": (
        returning(lambda model, batch: (1, *forward_and_loss(model, batch))),
        TypeError,
        ("`batch_processor` must return a tuple (outputs, loss)", "tuple of length 3"),
    ),
    "dict": (
        returning(lambda model, batch: {"loss": forward_and_loss(model, batch)[1]}),
        TypeError,
        ("`batch_processor` must return a tuple (outputs, loss)", "dict of length 1"),
    ),
    "swapped": (
        returning(lambda model, batch: forward_and_loss(model, batch)[::-1]),
        ValueError,
        ("`batch_processor` must be a scalar", "shape (2, 2)", "(outputs, loss)"),
    ),
    "swapped, with a dict": (
        returning(lambda model, batch: (forward_and_loss(model, batch)[1], {})),
        TypeError,
        ("`batch_processor` must be a tensor", "got dict", "(outputs, loss)"),
    ),
    "number as loss": (
        returning(lambda model, batch: (1, 2.0)),
        TypeError,
        ("`batch_processor` must be a tensor", "got float", "return"),
    ),
    "loss per sample": (
        {"loss_fn": lambda y_pred, y: (y_pred - y).square().mean(dim=1)},
        ValueError,
        ("`loss_fn` must be a scalar", "shape (2,)", ".mean()"),
    ),
    "loss without element": (
        {"loss_fn": lambda y_pred, y: y_pred[:0]},
        ValueError,
        ("`loss_fn` must be a scalar", "shape (0, 2)", ".mean()"),
    ),
    "detached loss": (
        {"loss_fn": lambda y_pred, y: F.mse_loss(y_pred, y).detach()},
        ValueError,
        ("`loss_fn` must require grad", "does not", ".detach()"),
    ),
    "loss as number": (
        {"loss_fn": lambda y_pred, y: F.mse_loss(y_pred, y).item()},
        TypeError,
        ("`loss_fn` must be a tensor", "got float"),
    ),
    "detached loss of a batch_processor": (
        returning(lambda model, batch: (1, forward_and_loss(model, batch)[1].detach())),
        ValueError,
        ("`batch_processor` must require grad", "does not", ".detach()"),
    ),
    "batch of three": (
        {"data": [(torch.ones(2, 4), torch.ones(2, 2), torch.ones(2))]},
        ValueError,
        ("a batch must be a pair (x, y)", "tuple of length 3", "prepare_batch=lambda"),
    ),
    "batch that is a dict": (
        {"data": [{"x": torch.ones(2, 4), "y": torch.ones(2, 2)}]},
        ValueError,
        ("a batch must be a pair (x, y)", "dict of length 2", "`batch_processor`"),
    ),
}


@pytest.mark.parametrize("case", AT_THE_FIRST_BATCH.values(), ids=AT_THE_FIRST_BATCH)
def test_bad_batch_or_loss_is_reported_at_the_first_batch(case):
    options, kind, fragments = case
    data, model = CountedBatches(options.pop("data", batches())), make_model()
    before = weights(model)
    trainer = create_supervised_trainer(
        model, sgd(model), data=data, accelerator=cpu(), **{"loss_fn": F.mse_loss, **options}
    )
    with pytest.raises(kind) as raised:
        trainer.run()
    assert data.given == 1
    assert (trainer.state.iteration, trainer.state.optimizer_step) == (0, 0)
    assert torch.equal(weights(model), before)
    assert all(p.grad is None for p in model.parameters())
    message = str(raised.value)
    assert [fragment for fragment in fragments if fragment not in message] == []


def test_a_prepared_optimizer_of_another_model_is_an_error():
    accelerator = cpu()
    model = make_model()
    optimizer = accelerator.prepare(sgd(make_model()))
    with pytest.raises(ValueError, match="`optimizer` must hold only parameters of `model`"):
        create_supervised_trainer(model, optimizer, F.mse_loss, batches(), accelerator=accelerator)
