import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from ignite.engine import Engine
from ignite.engine import Events
from ignite.handlers import FastaiLRFinder
from ignite.handlers.param_scheduler import LinearCyclicalScheduler
from ignite.handlers.param_scheduler import LRScheduler as IgniteLRScheduler
from ignite.metrics import Average
from torch.optim.lr_scheduler import ChainedScheduler
from torch.optim.lr_scheduler import ExponentialLR
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.lr_scheduler import LinearLR
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.lr_scheduler import SequentialLR

from ignite_hooks import OptimizerStep
from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_trainer
from ignite_hooks.core.held_signals import HeldSignals
from ignite_hooks.optim.lr_scheduler import SchedulerDriver
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
    trainer._optimizer_step.prepared.calls_torch_directly = is_plain
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
    trainer._optimizer_step.prepared.calls_torch_directly = is_plain
    seen = record_lr(trainer, TrainEvents.OPTIMIZER_STEP_STARTED, trainer.optimizer)
    trainer.run(max_epochs=2)
    assert seen == [0.2, 0.1, 0.05, 0.025]


@pytest.mark.parametrize(
    ("scheduler_at", "expected"),
    [("step", [0.2, 0.1, 0.05, 0.025]), ("epoch", [0.2, 0.2, 0.1, 0.1])],
)
def test_a_scheduler_prepared_with_accelerate_is_used_unchanged(scheduler_at, expected):
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


def test_epoch_scheduler_comes_after_validation_before_handlers():
    validated = []

    def validate():
        validated.append(trainer.optimizer.param_groups[0]["lr"])

    trainer = make_trainer(halving, "epoch", validation=Validation(validate, every_steps=2))
    stepped = record_lr(trainer, TrainEvents.OPTIMIZER_STEP_COMPLETED, trainer.optimizer)
    at_epoch = record_lr(trainer, Events.EPOCH_COMPLETED, trainer.optimizer)
    trainer.run(max_epochs=2)
    assert stepped == [0.2, 0.2, 0.1, 0.1]
    assert at_epoch == [0.1, 0.05]
    assert validated == [0.2, 0.1]


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


# A scheduler that is given a metric


def by_plateau(optimizer):
    return ReduceLROnPlateau(optimizer, factor=0.5, patience=0)


def measure(model):
    (x, y), *_ = make_batches(4)[3:]
    with torch.no_grad():
        return F.mse_loss(model(x), y).item()


def plateau_by_hand(scheduler_at, epochs=6):
    """Returns the weights after a hand-written loop, and the rate of each of its steps."""
    model, rates = make_model(dropout=0), []
    optimizer = make_sgd(model)
    scheduler = by_plateau(optimizer)

    def after_step():
        rates.append(optimizer.param_groups[0]["lr"])
        if scheduler_at == "validation":
            scheduler.step(measure(model))

    for _ in range(epochs):
        train_on_windows(model, optimizer, make_batches(), WINDOWS, after_step=after_step)
        if scheduler_at == "epoch":
            scheduler.step(measure(model))
    assert 2 < len(set(rates)) < len(rates)
    return weights(model), rates


def validation_for(scheduler_at, model, **options):
    every = {"every_epochs": 1} if scheduler_at == "epoch" else {"every_steps": 1}
    return Validation(lambda: {"loss": measure(model)}, **every, **options)


@pytest.mark.parametrize("built", ["from a callable", "on the raw optimizer", "prepared"])
@pytest.mark.parametrize("scheduler_at", ["epoch", "validation"])
def test_plateau_scheduler_trains_like_the_plain_loop(scheduler_at, built):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = make_model(dropout=0)
    optimizer = make_sgd(model)
    scheduler = by_plateau if built == "from a callable" else by_plateau(optimizer)
    if built == "prepared":
        optimizer, scheduler = accelerator.prepare(optimizer, scheduler)
    trainer = create_supervised_trainer(
        model,
        optimizer,
        F.mse_loss,
        make_batches(),
        accelerator=accelerator,
        lr_scheduler=scheduler,
        scheduler_at=scheduler_at,
        scheduler_metric="val_loss",
        validation=validation_for(scheduler_at, model, at_start=True),
    )
    seen = record_lr(trainer, TrainEvents.OPTIMIZER_STEP_STARTED, trainer.optimizer)
    trainer.run(max_epochs=6)
    expected, rates = plateau_by_hand(scheduler_at)
    assert seen == rates
    assert torch.equal(weights(model), expected)


def make_plain_engine():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = make_model(dropout=0)
    engine = Engine(
        lambda engine, batch: accelerator.backward(F.mse_loss(model(batch[0]), batch[1]))
    )
    return engine, model, accelerator


@pytest.mark.parametrize("scheduler_at", ["epoch", "validation"])
def test_plateau_scheduler_moves_on_a_plain_engine(scheduler_at):
    engine, model, accelerator = make_plain_engine()
    validation = validation_for(scheduler_at, model)
    step = OptimizerStep(accelerator, make_sgd(model), by_plateau, scheduler_at, "val_loss")
    step.attach(engine)
    validation.attach(engine)
    seen = record_lr(engine, TrainEvents.OPTIMIZER_STEP_STARTED, step.optimizer)
    engine.run(make_batches(), max_epochs=6)
    expected, rates = plateau_by_hand(scheduler_at)
    assert seen == rates
    assert torch.equal(weights(model), expected)


def make_plateau_trainer(scheduler_metric="val_loss", scheduler_at="epoch", **arguments):
    return make_trainer(by_plateau, scheduler_at, scheduler_metric=scheduler_metric, **arguments)


def test_plateau_scheduler_can_follow_a_metric_of_ignite():
    trainer, values = make_plateau_trainer("average"), []
    Average(output_transform=lambda loss: loss.item()).attach(trainer, "average")

    @trainer.on(Events.EPOCH_COMPLETED)
    def note(engine):
        values.append(engine.state.metrics["average"])

    trainer.run(max_epochs=3)
    assert trainer.lr_scheduler.best == min(values)
    assert len(values) == trainer.lr_scheduler.last_epoch == 3


def test_plateau_scheduler_can_follow_a_metric_of_a_handler():
    given = []

    class Noting(ReduceLROnPlateau):
        def step(self, metrics, epoch=None):
            given.append(metrics)
            super().step(metrics)

    trainer = make_trainer(Noting, "epoch", scheduler_metric="mine")
    trainer.state.metrics["mine"] = 9.0
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(mine=float(e.state.epoch))
    )
    trainer.run(max_epochs=3)
    assert given == [1.0, 2.0, 3.0]


def test_validation_at_start_moves_no_scheduler():
    trainer = make_trainer(
        halving, "validation", validation=Validation(lambda: None, every_epochs=1, at_start=True)
    )
    seen = record_lr(trainer, TrainEvents.OPTIMIZER_STEP_STARTED, trainer.optimizer)
    trainer.run(max_epochs=2)
    assert seen == [0.2, 0.2, 0.1, 0.1]


def test_validation_without_the_metric_does_not_move_the_plateau():
    trainer = make_plateau_trainer(
        scheduler_at="validation",
        validation=Validation(lambda: {"loss": 1.0}, every_epochs=1, at_start=True),
    )
    Validation(lambda: {"other": 1.0}).attach(trainer, TrainEvents.STEP_COMPLETED)
    trainer.run(max_epochs=3)
    assert trainer.lr_scheduler.last_epoch == 3


def test_metric_of_a_validation_still_to_come_is_waited_for():
    trainer = make_plateau_trainer(
        scheduler_at="validation", validation=Validation(lambda: {"other": 1.0}, every_steps=1)
    )
    Validation(lambda: {"loss": 1.0}, every_epochs=1).attach(trainer)
    trainer.run(max_epochs=2)
    assert trainer.state.validation == 4
    assert trainer.lr_scheduler.last_epoch == 2


@pytest.mark.parametrize("scheduler_at", ["epoch", "validation"])
@pytest.mark.parametrize(
    ("given", "remedy"),
    [("val_lss", "did you mean `val_loss`?"), ("f1", "there are `val_loss`, `val_accuracy`")],
)
def test_a_missing_metric_error_names_the_existing_ones(given, remedy, scheduler_at):
    trainer = make_plateau_trainer(
        given,
        scheduler_at,
        validation=Validation(lambda: {"loss": 1.0, "accuracy": 0.5}, every_epochs=1),
    )
    message = rf"`scheduler_metric` must be one of state.metrics .*got '{given}': {remedy}"
    with pytest.raises(ValueError, match=message):
        trainer.run()


def test_a_stale_metric_is_refused_at_the_end_of_an_epoch():
    trainer = make_plateau_trainer(
        validation=Validation(lambda: {"loss": 1.0}, every_epochs=2, at_start=True)
    )
    message = (
        r"measured at the end of each epoch, 'val_loss' was last measured at iteration {}, and "
        r'the epoch ends at iteration {}: use scheduler_at="validation", or validate each epoch'
    )
    with pytest.raises(ValueError, match=message.format(0, 3)):
        trainer.run()
    trainer = make_plateau_trainer()
    attachment = Validation(lambda: {"loss": 1.0}, every_epochs=1).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), attachment.remove)
    with pytest.raises(ValueError, match=message.format(3, 6)):
        trainer.run(max_epochs=2)


def test_new_run_forgets_where_the_epochs_of_the_last_one_began():
    trainer = make_plateau_trainer(validation=Validation(lambda: {"loss": 1.0}, every_epochs=1))
    for _ in range(2):
        trainer.run(max_epochs=1)
    assert trainer.lr_scheduler.last_epoch == 2


@pytest.mark.parametrize(
    ("lr_scheduler", "scheduler_at", "metric", "message"),
    [
        (by_plateau, "step", "val_loss", '`scheduler_at` must be "epoch" or "validation" .*"step"'),
        (by_plateau, "epoch", None, "`scheduler_metric` must be given .*None: name one of"),
        (by_plateau, "validation", None, "`scheduler_metric` must be given .*None: name one of"),
        (halving, "epoch", "val_loss", "must be left out unless .*'val_loss' with ExponentialLR"),
        (None, "step", "val_loss", "must be left out unless .*got 'val_loss' with None"),
    ],
)
def test_only_a_plateau_scheduler_takes_a_metric(lr_scheduler, scheduler_at, metric, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(lr_scheduler, scheduler_at, scheduler_metric=metric)


def test_a_scheduler_of_another_optimizer_is_refused():
    message = r"`lr_scheduler` must be built on `optimizer`, .* another SGD: build the"
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
def test_an_object_that_is_not_a_scheduler_is_refused(given, kind):
    message = rf"`lr_scheduler` must be a torch\S* .*got .*{kind}.*: (pass StepLR|.*attach it with)"
    with pytest.raises(TypeError, match=message):
        make_step(given)


def test_scheduler_at_must_be_step_or_epoch_or_validation():
    message = r'`scheduler_at` must be "step", "epoch" or "validation", got \'batch\''
    with pytest.raises(ValueError, match=message):
        make_trainer(halving, "batch")


def test_class_needing_more_arguments_is_refused_with_a_remedy():
    optimizer = torch.optim.SGD(make_model().parameters(), lr=0.1)
    with pytest.raises(
        TypeError, match=r"the class StepLR, which takes more .*pass lambda optimizer: StepLR\("
    ):
        SchedulerDriver(torch.optim.lr_scheduler.StepLR, optimizer, "step", None, HeldSignals())
    driver = SchedulerDriver(
        torch.optim.lr_scheduler.ConstantLR, optimizer, "step", None, HeldSignals()
    )
    assert driver.lr_scheduler.optimizer is optimizer


# A scheduler that is moved by another too


def warnings_of(action):
    """Returns the warnings of ``action`` about the scheduler."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(each.message) for each in caught if "`lr_scheduler`" in str(each.message)]


def step_it(trainer):
    trainer.lr_scheduler.step()


@pytest.mark.parametrize(
    ("scheduler_at", "event", "moves"),
    [
        ("step", Events.ITERATION_COMPLETED, "from 2 to 3"),
        ("step", TrainEvents.OPTIMIZER_STEP_STARTED, "from 2 to 3"),
        ("step", TrainEvents.STEP_COMPLETED, "from 1 to 2"),
        ("step", Events.EPOCH_COMPLETED, "from 2 to 3"),
        ("epoch", TrainEvents.STEP_COMPLETED, "from 3 to 5"),
        ("validation", TrainEvents.STEP_COMPLETED, "from 3 to 5"),
    ],
)
def test_a_scheduler_that_the_user_moves_too_warns_once(scheduler_at, event, moves):
    validation = Validation(lambda model: {}, every_epochs=1)
    trainer = make_trainer(halving, scheduler_at, validation=validation)
    trainer.add_event_handler(event, step_it)
    (message,) = warnings_of(lambda: trainer.run(max_epochs=3))
    assert f"stepped after each {scheduler_at} already" in message
    assert f"`last_epoch` {moves} in between, so the learning" in message
    assert "Remove the other call of lr_scheduler.step()" in message
    assert warnings_of(lambda: trainer.run(max_epochs=4)) == []


@pytest.mark.parametrize("make", [halving, lambda o: OneCycleLR(o, max_lr=0.5, total_steps=99)])
def test_a_scheduler_wrapped_by_ignite_too_warns(make):
    trainer = make_trainer(make)
    wrapped = IgniteLRScheduler(trainer.lr_scheduler)
    trainer.add_event_handler(Events.ITERATION_STARTED, wrapped)
    assert len(warnings_of(lambda: trainer.run(max_epochs=2))) == 1


def test_a_prepared_scheduler_moved_in_the_loop_warns():
    accelerator = Accelerator(cpu=True)
    model = make_model(dropout=0)
    optimizer = make_sgd(model)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, halving(optimizer))
    engine = Engine(lambda engine, batch: (accelerator.backward(model(batch[0]).sum()), step()))

    def step():
        scheduler.step()

    OptimizerStep(accelerator, optimizer, scheduler).attach(engine)
    assert len(warnings_of(lambda: engine.run(make_batches()))) == 1


def train_again(trainer):
    trainer.run(max_epochs=1)


def go_back(trainer):
    first = copy.deepcopy(trainer.lr_scheduler.state_dict())
    trainer.run(max_epochs=1)
    trainer.lr_scheduler.load_state_dict(first)


def load_a_later_state(trainer):
    """Loads the state of a run that went further, as from a checkpoint of Ignite."""
    further = make_trainer(halving)
    further.run(max_epochs=3)
    trainer.run(max_epochs=1)
    trainer.load_state_dict(further.state_dict())
    trainer.lr_scheduler.load_state_dict(further.lr_scheduler.state_dict())
    trainer.run(max_epochs=5)


def set_the_rate(trainer):
    def halve(trainer):
        trainer.optimizer.param_groups[0]["lr"] /= 2

    trainer.add_event_handler(Events.ITERATION_COMPLETED, halve)
    trainer.add_event_handler(
        Events.ITERATION_STARTED, LinearCyclicalScheduler(trainer.optimizer, "lr", 0.1, 0.2, 10)
    )


def find_the_rate(trainer):
    finder = FastaiLRFinder()
    to_save = {"model": trainer.model, "optimizer": trainer.optimizer}
    with finder.attach(trainer, to_save=to_save, num_iter=2, end_lr=1.0) as with_finder:
        with_finder.run(trainer.state.dataloader)


def fail_in_the_scheduler(trainer):
    trainer.run(max_epochs=1)
    scheduler = trainer.lr_scheduler
    get_lr = scheduler.get_lr
    scheduler.get_lr = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.run(max_epochs=2)
    scheduler.get_lr = get_lr


@pytest.mark.parametrize(
    "action",
    [train_again, go_back, load_a_later_state, set_the_rate, find_the_rate, fail_in_the_scheduler],
)
def test_a_scheduler_that_only_the_trainer_moves_is_silent(action):
    trainer = make_trainer(halving)
    assert warnings_of(lambda: (action(trainer), trainer.run(max_epochs=6))) == []


def test_a_resumed_scheduler_does_not_warn(tmp_path):
    make_trainer(halving, checkpoint=SaveCheckpoint(tmp_path)).run(max_epochs=3)
    trainer = make_trainer(halving)
    trainer.run(max_epochs=1)
    ResumeCheckpoint(tmp_path).attach(trainer)
    assert warnings_of(lambda: trainer.run(max_epochs=5)) == []


def test_a_chained_scheduler_without_a_count_does_not_warn():
    trainer = make_trainer(lambda optimizer: ChainedScheduler([halving(optimizer)]))
    trainer.add_event_handler(TrainEvents.STEP_COMPLETED, step_it)
    assert warnings_of(trainer.run) == []


# A schedule that ends before the run


def one_cycle(steps):
    return lambda optimizer: OneCycleLR(optimizer, 0.2, total_steps=steps)


def after(warmup, steps):
    return lambda optimizer: SequentialLR(
        optimizer, [LinearLR(optimizer), one_cycle(steps)(optimizer)], [warmup]
    )


def before(steps, milestone):
    return lambda optimizer: SequentialLR(
        optimizer, [one_cycle(steps)(optimizer), LinearLR(optimizer)], [milestone]
    )


def among(steps):
    return lambda optimizer: ChainedScheduler([halving(optimizer), one_cycle(steps)(optimizer)])


ENDS = [  # an epoch has 3 batches, and windows of 2: it has 2 steps
    (one_cycle(4), "step", {"max_steps": 4}, True),
    (one_cycle(4), "step", {"max_steps": 5}, False),
    (one_cycle(4), "step", {"max_epochs": 2}, True),
    (one_cycle(4), "step", {"max_epochs": 3}, False),
    (one_cycle(4), "step", {"max_iters": 6}, True),
    (one_cycle(4), "step", {"max_iters": 7}, False),
    (one_cycle(4), "step", {"max_steps": 4, "max_epochs": 9}, True),
    (one_cycle(4), "step", {"max_steps": 9, "max_epochs": 2}, True),
    (one_cycle(2), "epoch", {"max_epochs": 2}, True),
    (one_cycle(2), "epoch", {"max_epochs": 3}, False),
    (one_cycle(2), "epoch", {"max_steps": 5}, True),
    (one_cycle(2), "epoch", {"max_steps": 6}, False),
    (one_cycle(2), "epoch", {"max_iters": 8}, True),
    (one_cycle(2), "epoch", {"max_iters": 9}, False),
    (after(2, 4), "step", {"max_steps": 6}, True),
    (after(2, 4), "step", {"max_steps": 7}, False),
    (before(4, 5), "step", {"max_steps": 9}, True),
    (before(4, 6), "step", {"max_steps": 9}, False),
    (before(4, 6), "step", {"max_steps": 4}, True),
    (among(4), "step", {"max_steps": 4}, True),
    (among(4), "step", {"max_steps": 5}, False),
]


@pytest.mark.parametrize("row", ENDS)
@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_a_schedule_must_last_as_long_as_the_run(row, monkeypatch):
    schedule, at, limits, lasts = row
    trainer = make_trainer(schedule, at)
    if lasts:
        trainer.run(**limits)
        return
    with pytest.raises(ValueError, match="`lr_scheduler` must last as long as the run"):
        trainer.run(**limits)
    assert trainer.state.iteration == 0
    # Without the check the same run fails in its middle.
    monkeypatch.setattr(SchedulerDriver, "check_length", lambda *arguments: None)
    trainer = make_trainer(schedule, at)
    with pytest.raises(ValueError, match="Tried to step"):
        trainer.run(**limits)
    assert trainer.state.iteration > 0


def test_the_error_names_the_length_that_is_needed():
    trainer = make_trainer(one_cycle(4))
    trainer.run(max_steps=3)
    with pytest.raises(ValueError, match=r"total_steps=4 that can be moved 1 more times") as error:
        trainer.run(max_steps=9)
    assert "this run (max_steps=9) moves it 6 times, after each step" in str(error.value)
    assert "give the scheduler total_steps=9" in str(error.value)
    trainer.run(max_steps=4)  # the run can still be continued


def test_a_run_of_unknown_length_is_not_refused():
    class Stream:
        def __iter__(self):
            return iter(make_batches())

    trainer = make_trainer(one_cycle(1))
    with pytest.raises(ValueError, match="Tried to step"):
        trainer.run(Stream(), max_epochs=1)
    assert trainer.state.optimizer_step > 0


def test_a_resumed_run_is_checked_with_the_steps_that_are_left(tmp_path):
    make_trainer(one_cycle(6), checkpoint=SaveCheckpoint(tmp_path)).run(max_steps=4)
    trainer = make_trainer(one_cycle(6), resume_from=tmp_path)
    trainer.run(max_steps=6)
    trainer = make_trainer(one_cycle(6), resume_from=tmp_path)
    with pytest.raises(ValueError, match=r"2 more times, and this run \(max_steps=9\) moves it 5"):
        trainer.run(max_steps=9)
    resume = ResumeCheckpoint(tmp_path, override=("scheduler",))
    trainer = make_trainer(one_cycle(9), resume_from=resume)
    with pytest.warns(UserWarning, match="total_steps is 9 in the script, 6 in the checkpoint"):
        trainer.run(max_steps=9)
    assert trainer.state.optimizer_step == 9


def test_a_prepared_schedule_that_accelerate_ends_is_no_error():
    accelerator = Accelerator(cpu=True)
    model = make_model(dropout=0)
    model, optimizer = accelerator.prepare(model, make_sgd(model))
    scheduler = accelerator.prepare(one_cycle(2)(optimizer))
    trainer = create_supervised_trainer(
        model,
        optimizer,
        F.mse_loss,
        make_batches(),
        accelerator=accelerator,
        lr_scheduler=scheduler,
    )
    trainer.run(max_steps=4)
    assert trainer.state.optimizer_step == 4
