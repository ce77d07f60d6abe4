import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from ignite.engine import Engine
from ignite.engine import Events
from ignite.handlers.param_scheduler import LinearCyclicalScheduler
from ignite.handlers.param_scheduler import LRScheduler as IgniteLRScheduler
from torch.optim.lr_scheduler import ExponentialLR
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ignite_hooks import OptimizerStep
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_trainer
from ignite_hooks.optim.lr_scheduler import scheduler_for
from tests.reference import Noisy
from tests.reference import make_model
from tests.reference import train_on_windows
from tests.reference import weights

WINDOWS = [[0, 1], [2]]


def make_batches(count=3):
    noisy = Noisy(2 * count)
    return [(noisy.x[at : at + 2], noisy.y[at : at + 2]) for at in range(0, 2 * count, 2)]


def make_sgd(model, lr=0.2):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def halving(optimizer):
    return ExponentialLR(optimizer, 0.5)


def make_trainer(lr_scheduler, scheduler_at="step", is_plain=True, **arguments):
    model = make_model(dropout=0)
    trainer = create_supervised_trainer(
        model,
        make_sgd(model),
        F.mse_loss,
        make_batches(),
        accelerator=Accelerator(cpu=True, gradient_accumulation_steps=2),
        lr_scheduler=lr_scheduler,
        scheduler_at=scheduler_at,
        **arguments,
    )
    trainer._optimizer_step.prepared.is_plain = is_plain
    return trainer


def record_lr(engine, event, optimizer):
    seen = []
    engine.add_event_handler(event, lambda engine: seen.append(optimizer.param_groups[0]["lr"]))
    return seen


def make_step(lr_scheduler, optimizer=None):
    return OptimizerStep(Accelerator(cpu=True), optimizer or make_sgd(make_model()), lr_scheduler)


@pytest.mark.parametrize("is_plain", [True, False])
@pytest.mark.parametrize(
    "make_scheduler",
    [
        halving,
        lambda optimizer: LambdaLR(optimizer, lambda step: 0.9**step),
        lambda optimizer: OneCycleLR(optimizer, max_lr=0.5, total_steps=5),
    ],
)
def test_scheduler_callable_gets_the_prepared_optimizer(make_scheduler, is_plain):
    given = []

    def make(optimizer):
        given.append(optimizer)
        return make_scheduler(optimizer)

    trainer = make_trainer(make, is_plain=is_plain)
    assert given == [trainer.optimizer]
    assert type(trainer.optimizer) is AcceleratedOptimizer
    trainer.run(max_epochs=2)
    model = make_model(dropout=0)
    optimizer = make_sgd(model)
    scheduler = make_scheduler(optimizer)
    train_on_windows(model, optimizer, make_batches(), 2 * WINDOWS, after_step=scheduler.step)
    assert torch.equal(weights(trainer.model), weights(model))
    assert trainer.lr_scheduler.get_last_lr() == scheduler.get_last_lr()


@pytest.mark.parametrize("is_plain", [True, False])
@pytest.mark.parametrize("built_on", ["raw", "prepared"])
def test_scheduler_on_raw_or_prepared_optimizer_moves_each_step(built_on, is_plain):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = make_model(dropout=0)
    optimizer = make_sgd(model)
    if built_on == "prepared":
        model, optimizer = accelerator.prepare(model, optimizer)
    trainer = create_supervised_trainer(
        model,
        optimizer,
        F.mse_loss,
        make_batches(),
        accelerator=accelerator,
        lr_scheduler=halving(optimizer),
    )
    trainer._optimizer_step.prepared.is_plain = is_plain
    seen = record_lr(trainer, TrainEvents.OPTIMIZER_STEP_STARTED, trainer.optimizer)
    trainer.run(max_epochs=2)
    assert seen == [0.2, 0.1, 0.05, 0.025]


@pytest.mark.parametrize(
    ("scheduler_at", "expected"),
    [("step", [0.2, 0.1, 0.05, 0.025]), ("epoch", [0.2, 0.2, 0.1, 0.1])],
)
def test_a_scheduler_prepared_with_accelerate_is_used_as_it_is(scheduler_at, expected):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = make_model(dropout=0)
    optimizer = make_sgd(model)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, halving(optimizer))
    trainer = create_supervised_trainer(
        model,
        optimizer,
        F.mse_loss,
        make_batches(),
        accelerator=accelerator,
        lr_scheduler=scheduler,
        scheduler_at=scheduler_at,
    )
    assert type(trainer.lr_scheduler) is AcceleratedScheduler
    assert trainer.lr_scheduler is scheduler
    seen = record_lr(trainer, TrainEvents.OPTIMIZER_STEP_STARTED, trainer.optimizer)
    trainer.run(max_epochs=2)
    assert seen == expected
    assert accelerator._schedulers == [scheduler]


def test_step_scheduler_moves_after_the_step_before_its_handlers():
    trainer = make_trainer(halving)
    optimizer = trainer.optimizer
    assert record_lr(trainer, TrainEvents.OPTIMIZER_STEP_STARTED, optimizer) == []
    started = record_lr(trainer, TrainEvents.OPTIMIZER_STEP_STARTED, optimizer)
    completed = record_lr(trainer, TrainEvents.OPTIMIZER_STEP_COMPLETED, optimizer)
    trainer.run()
    assert started == [0.2, 0.1]
    assert completed == [0.1, 0.05]


def test_epoch_scheduler_precedes_epoch_handlers_and_validation():
    validated = []

    def validate():
        validated.append(trainer.optimizer.param_groups[0]["lr"])

    trainer = make_trainer(halving, "epoch", validation=Validation(validate, every_steps=2))
    stepped = record_lr(trainer, TrainEvents.OPTIMIZER_STEP_COMPLETED, trainer.optimizer)
    at_epoch = record_lr(trainer, Events.EPOCH_COMPLETED, trainer.optimizer)
    trainer.run(max_epochs=2)
    assert stepped == [0.2, 0.2, 0.1, 0.1]
    assert at_epoch == validated == [0.1, 0.05]


def test_epoch_scheduler_moves_at_epoch_end_of_a_plain_engine():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = make_model(dropout=0)

    def train(engine, batch):
        accelerator.backward(F.mse_loss(model(batch[0]), batch[1]))

    engine = Engine(train)
    step = OptimizerStep(accelerator, make_sgd(model), halving, "epoch")
    step.attach(engine)
    seen = record_lr(engine, TrainEvents.OPTIMIZER_STEP_STARTED, step.optimizer)
    engine.run(iter(make_batches()), max_epochs=1)
    engine.state.max_epochs = None
    engine.run(make_batches(), max_epochs=2)
    # The late step of the short window comes before the scheduler's.
    assert seen == [0.2, 0.2, 0.1, 0.1, 0.05, 0.05]


@pytest.mark.parametrize(
    "scheduler",
    [
        ReduceLROnPlateau,
        lambda o: ReduceLROnPlateau(o),
        ReduceLROnPlateau(make_sgd(torch.nn.Linear(1, 1))),
    ],
)
def test_reduce_lr_on_plateau_is_refused_with_the_remedy(scheduler):
    message = r"`lr_scheduler` must move without a metric, got ReduceLROnPlateau: .*VALIDATION_COMP"
    with pytest.raises(ValueError, match=message):
        make_step(scheduler)


def test_the_remedy_for_reduce_lr_on_plateau_works():
    trainer = make_trainer(None, validation=Validation(lambda: {"loss": 1.0}, every_epochs=1))
    scheduler = ReduceLROnPlateau(trainer.optimizer, factor=0.5, patience=0)
    trainer.add_event_handler(
        TrainEvents.VALIDATION_COMPLETED,
        lambda engine: scheduler.step(engine.state.metrics["val_loss"]),
    )
    trainer.run(max_epochs=2)
    assert trainer.optimizer.param_groups[0]["lr"] == 0.1


def test_a_scheduler_of_another_optimizer_is_refused():
    message = r"`lr_scheduler` must be built on the optimizer .*another SGD: build it on that"
    other = make_sgd(make_model())
    accelerator = Accelerator(cpu=True)
    prepared_optimizer, prepared = accelerator.prepare(other, halving(other))
    for scheduler in (halving(other), prepared, halving(prepared_optimizer), lambda _: prepared):
        with pytest.raises(ValueError, match=message):
            make_step(scheduler)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: LinearCyclicalScheduler(o, "lr", 0.1, 0.2, 10),
        lambda o: IgniteLRScheduler(halving(o)),
    ],
)
def test_a_scheduler_of_ignite_is_refused_with_the_remedy(make):
    optimizer = make_sgd(make_model())
    scheduler = make(optimizer)
    message = (
        rf"`lr_scheduler` must be a torch scheduler, got Ignite's {type(scheduler).__name__}.*: "
        r"attach it with trainer.add_event_handler"
    )
    with pytest.raises(TypeError, match=message):
        make_step(scheduler, optimizer)


def test_the_remedy_for_a_scheduler_of_ignite_works():
    trainer = make_trainer(None)
    scheduler = LinearCyclicalScheduler(trainer.optimizer.optimizer, "lr", 0.4, 0.1, 8)
    trainer.add_event_handler(TrainEvents.OPTIMIZER_STEP_STARTED, scheduler)
    seen = record_lr(trainer, TrainEvents.OPTIMIZER_STEP_STARTED, trainer.optimizer)
    trainer.run(max_epochs=2)
    assert seen == pytest.approx([0.4, 0.325, 0.25, 0.175])


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("cosine", "str"),
        (0.1, "float"),
        (lambda optimizer: None, "NoneType"),
        (lambda optimizer: 0.1, "float"),
        (type, "type"),
        (lambda optimizer: optimizer.param_groups, "list"),
        (lambda optimizer: make_sgd(make_model()), "SGD"),
        (lambda optimizer: LinearCyclicalScheduler(optimizer, "lr", 0, 1, 10), "LinearCyclical"),
    ],
)
def test_object_that_is_no_scheduler_is_refused(given, kind):
    message = rf"`lr_scheduler` must be a torch\S* .*got .*{kind}.*: (pass StepLR|.*attach it with)"
    with pytest.raises(TypeError, match=message):
        make_step(given)


def test_scheduler_at_must_be_step_or_epoch():
    with pytest.raises(
        ValueError, match=r'`scheduler_at` must be "step" or "epoch", got \'batch\''
    ):
        make_trainer(halving, "batch")


def test_class_needing_more_arguments_is_refused_with_a_remedy():
    optimizer = torch.optim.SGD(make_model().parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"StepLR needs more .*pass lambda optimizer: StepLR\("):
        scheduler_for(optimizer, torch.optim.lr_scheduler.StepLR)
    assert scheduler_for(optimizer, torch.optim.lr_scheduler.ConstantLR).optimizer is optimizer
