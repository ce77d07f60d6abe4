from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import GradientState
from ignite.engine import Engine
from ignite.engine import Events
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset
from torch.utils.data import TensorDataset

from ignite_hooks import DataFeed
from ignite_hooks import HookContext
from ignite_hooks import OptimizerStep
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_trainer
from ignite_hooks.core.engine import move_to_front
from ignite_hooks.core.handler import attached_handlers
from tests.reference import FakeScaler
from tests.reference import Noisy
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import train_on_windows
from tests.reference import weights
from tests.versions import needs


class WithoutLength:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class Stream(IterableDataset):
    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


def make_samples(batches):
    noisy = Noisy(2 * batches)
    return TensorDataset(noisy.x, noisy.y)


def make_loader(batches):
    return DataLoader(make_samples(batches), batch_size=2)


def make_batches(count):
    return list(make_loader(count))


def make_sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)


def chunks(batches, accumulation):
    numbers = list(range(batches))
    return [numbers[at : at + accumulation] for at in range(0, batches, accumulation)]


def by_windows(windows, batches):
    model = make_model(dropout=0)
    train_on_windows(model, make_sgd(model), batches, windows)
    return weights(model)


def make_engine(accumulation, *, accumulate=False, process=None, scaler=None, **step_arguments):
    """Returns a plain Ignite engine with an OptimizerStep."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    accelerator.scaler = scaler
    model = accelerator.prepare(make_model(dropout=0))

    def train(engine, batch):
        with accelerator.accumulate(model) if accumulate else nullcontext():
            if process is not None:
                process(engine, batch)
            x, y = batch
            loss = F.mse_loss(model(x), y)
            accelerator.backward(loss)
        return loss.detach()

    engine = Engine(train)
    step = OptimizerStep(accelerator, make_sgd(model), **step_arguments)
    attachment = step.attach(engine)
    return SimpleNamespace(
        engine=engine, model=model, accelerator=accelerator, step=step, attachment=attachment
    )


def make_trainer(data, accumulation=1, *, scaler=None, **arguments):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    accelerator.scaler = scaler
    model = make_model(dropout=0)
    return create_supervised_trainer(
        model, make_sgd(model), F.mse_loss, data, accelerator=accelerator, **arguments
    )


def count(engine, event):
    fired = []
    engine.add_event_handler(event, lambda engine: fired.append(engine.state.iteration))
    return fired


def has_no_gradient(model):
    return all(parameter.grad is None for parameter in model.parameters())


def begin_again(data):
    """Moves a feed to its next pass: a feed keeps its position after a run."""
    if isinstance(data, DataFeed):
        data.next_pass()


def release(data):
    """Ends the loaders that are still active: Ignite never exhausts a loader."""
    if isinstance(data, DataFeed):
        data.close()
    for each in GradientState().dataloader_references:
        if each is not None:
            each.end()


# -- windows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [1, 4, 7])
@pytest.mark.parametrize("accumulation", [1, 2, 4, 7])
def test_n_batches_make_ceil_of_n_over_accumulation_steps_an_epoch(accumulation, batches):
    trainer = make_trainer(make_batches(batches), accumulation)
    counted, every_second = [], []
    trainer.add_event_handler(
        TrainEvents.OPTIMIZER_STEP_COMPLETED,
        lambda engine: counted.append(engine.state.optimizer_step),
    )
    trainer.add_event_handler(
        TrainEvents.STEP_COMPLETED(every=2),
        lambda engine: every_second.append(engine.state.optimizer_step),
    )
    trainer.run(max_epochs=2)
    steps = 2 * -(-batches // accumulation)
    assert counted == list(range(1, steps + 1))
    assert every_second == list(range(2, steps + 1, 2))
    assert trainer.state.iteration == 2 * batches


@pytest.mark.parametrize("left", [1, 2, 3])
def test_short_window_steps_once_with_the_mean_loss_gradient(left):
    batches = make_batches(4 + left)
    trainer = make_trainer(batches, accumulation=4)
    gradients = []

    @trainer.on(TrainEvents.OPTIMIZER_STEP_STARTED)
    def compare(engine):
        gradients.append([p.grad.clone() for p in engine.model.parameters()])
        engine.model.zero_grad()
        losses = [F.mse_loss(engine.model(x), y) / left for x, y in batches[4:]]
        expected = [torch.zeros_like(p) for p in engine.model.parameters()]
        for loss in losses:
            parts = torch.autograd.grad(loss, list(engine.model.parameters()))
            expected = [sum_ + part for sum_, part in zip(expected, parts, strict=True)]
        gradients.append(expected)
        for parameter, gradient in zip(engine.model.parameters(), gradients[-2], strict=True):
            parameter.grad = gradient

    trainer.run()
    assert trainer.state.optimizer_step == 2
    assert len(gradients) == 4
    assert all(map(torch.equal, gradients[2], gradients[3]))
    assert torch.equal(weights(trainer.model), by_windows(chunks(4 + left, 4), batches))


DATA = {
    "list": lambda n, accelerator: make_batches(n),
    "loader": lambda n, accelerator: make_loader(n),
    "prepared loader": lambda n, accelerator: accelerator.prepare(make_loader(n)),
    "prepared stream": lambda n, accelerator: accelerator.prepare(
        DataLoader(Stream(make_samples(n)), batch_size=2)
    ),
    "without length": lambda n, accelerator: WithoutLength(make_batches(n)),
    "feed of a loader": lambda n, accelerator: DataFeed(make_loader(n), accelerator),
    "feed of a prepared loader": lambda n, accelerator: DataFeed(
        accelerator.prepare(make_loader(n)), accelerator
    ),
    "feed without length": lambda n, accelerator: DataFeed(
        WithoutLength(make_batches(n)), accelerator
    ),
    "feed of a stream": lambda n, accelerator: DataFeed(
        DataLoader(Stream(make_samples(n)), batch_size=2), accelerator
    ),
}


@pytest.mark.grid(11)
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(
    ("accumulation", "batches"), [(1, 3), (2, 4), (2, 5), (4, 8), (4, 6), (4, 2), (3, 5)]
)
@pytest.mark.parametrize("kind", DATA)
def test_plain_engine_trains_like_the_plain_loop(kind, accumulation, batches, accumulate):
    made = make_engine(accumulation, accumulate=accumulate)
    data = DATA[kind](batches, made.accelerator)
    made.engine.run(data, max_epochs=2)
    release(data)
    expected = by_windows(2 * chunks(batches, accumulation), make_batches(batches))
    if accumulation == 3:
        # accelerator.backward divides by 3; times 3 / 2 at the end rounds twice more.
        torch.testing.assert_close(weights(made.model), expected, rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(weights(made.model), expected)
    assert made.engine.state.optimizer_step == 2 * len(chunks(batches, accumulation))


@pytest.mark.parametrize("is_plain", [True, False])
@pytest.mark.parametrize("accumulate", [False, True])
def test_short_window_of_a_generator_steps_at_epoch_end(accumulate, is_plain):
    made = make_engine(4, accumulate=accumulate)
    made.step.prepared.calls_torch_directly = is_plain
    after_iteration = []
    made.engine.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: after_iteration.append(engine.state.optimizer_step),
    )
    at_epoch = count(made.engine, TrainEvents.OPTIMIZER_STEP_COMPLETED)
    made.engine.run(iter(make_batches(6)), max_epochs=1)
    assert after_iteration == [0, 0, 0, 1, 1, 1]
    assert at_epoch == [4, 6]
    assert torch.equal(weights(made.model), by_windows([[0, 1, 2, 3], [4, 5]], make_batches(6)))


CLOSING = [
    (2, 6, {"epoch_length": 3, "max_epochs": 2}, [[0, 1], [2], [3, 4], [5]]),
    (4, 6, {"epoch_length": 8}, [[0, 1, 2, 3], [4, 5], [0, 1]]),
    (2, 4, {"max_iters": 5}, [[0, 1], [2, 3], [0]]),
    (4, 4, {"max_iters": 6}, [[0, 1, 2, 3], [0, 1]]),
    (4, 4, {"max_iters": 2}, [[0, 1]]),
]


@pytest.mark.parametrize("kind", ["list", "prepared loader", "without length", "prepared stream"])
@pytest.mark.parametrize(("accumulation", "batches", "limits", "windows"), CLOSING)
def test_a_window_closes_where_data_epoch_or_run_end(accumulation, batches, limits, windows, kind):
    trainer = make_trainer(make_batches(1), accumulation)
    trainer.run(DATA[kind](batches, trainer.accelerator), **limits)
    assert trainer.state.optimizer_step == len(windows)
    assert torch.equal(weights(trainer.model), by_windows(windows, make_batches(batches)))


@needs("pytorch-ignite>=0.5.5")
@pytest.mark.grid(4)
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("kind", ["list", "prepared loader", "feed of a prepared loader"])
@pytest.mark.parametrize(("accumulation", "batches", "limits", "windows"), CLOSING)
def test_plain_engine_window_closes_at_end_of_data_epoch_or_run(
    accumulation, batches, limits, windows, kind, accumulate
):
    made = make_engine(accumulation, accumulate=accumulate)
    data = DATA[kind](batches, made.accelerator)
    made.engine.run(data, **limits)
    release(data)
    assert made.engine.state.optimizer_step == len(windows)
    assert torch.equal(weights(made.model), by_windows(windows, make_batches(batches)))


@pytest.mark.parametrize("accumulate", [False, True])
def test_gradients_sync_only_in_the_closing_batch_of_a_window(accumulate):
    seen = []
    made = make_engine(4, accumulate=accumulate)
    for event in (Events.ITERATION_STARTED, Events.ITERATION_COMPLETED):
        made.engine.add_event_handler(
            event, lambda engine: seen.append(made.accelerator.sync_gradients)
        )
    made.engine.run(make_batches(6))
    closing = [False, False, False, True, False, True]
    assert seen[::2] == closing
    made = make_engine(
        4,
        accumulate=accumulate,
        process=lambda *_: seen.append(made.accelerator.sync_gradients),
    )
    seen.clear()
    made.engine.run(make_batches(6))
    assert seen == closing


@pytest.mark.parametrize("is_plain", [True, False])
@pytest.mark.parametrize(
    ("stop", "windows"),
    [("terminate", []), ("terminate_epoch", [[0, 1, 2, 3], [4, 5]])],
)
def test_a_stop_of_a_trainer_drops_the_open_window(stop, windows, is_plain):
    batches = make_batches(6)
    trainer = make_trainer(batches, accumulation=4)
    trainer._optimizer_step.is_plain = is_plain
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda engine: getattr(engine, stop)()
    )
    dropped = []
    trainer.add_event_handler(
        Events.TERMINATE if stop == "terminate" else Events.EPOCH_COMPLETED(once=1),
        lambda engine: dropped.append(engine.state.optimizer_step),
    )
    trainer.run(max_epochs=2)
    assert dropped == [0]
    assert has_no_gradient(trainer.model)
    assert torch.equal(weights(trainer.model), by_windows(windows, batches))


# -- ways out of a hand-made engine -------------------------------------------------------------


@pytest.mark.parametrize("is_plain", [True, False])
@pytest.mark.parametrize("kind", ["list", "feed of a prepared loader"])
def test_terminate_drops_the_open_window_of_a_plain_engine(kind, is_plain):
    made = make_engine(4)
    made.step.prepared.calls_torch_directly = is_plain
    data = DATA[kind](8, made.accelerator)
    made.engine.add_event_handler(
        Events.ITERATION_COMPLETED(once=6), lambda engine: engine.terminate()
    )
    made.engine.run(data)
    release(data)
    assert has_no_gradient(made.model)
    assert made.accelerator.step == 0
    assert made.engine.state.optimizer_step == 1
    assert torch.equal(weights(made.model), by_windows([[0, 1, 2, 3]], make_batches(8)))


@pytest.mark.parametrize("kind", ["list", "feed of a prepared loader"])
def test_windows_are_whole_in_the_epoch_after_terminate_epoch(kind):
    made = make_engine(4)
    data = DATA[kind](6, made.accelerator)
    made.engine.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda engine: engine.terminate_epoch()
    )
    made.engine.run(data, max_epochs=3)
    release(data)
    windows = 2 * [[0, 1, 2, 3], [4, 5]]
    assert torch.equal(weights(made.model), by_windows(windows, make_batches(6)))


@pytest.mark.parametrize("kind", ["list", "feed of a prepared loader"])
def test_finished_plain_engine_restarts_its_counters(kind):
    made = make_engine(4)
    data = DATA[kind](6, made.accelerator)
    for _ in range(2):
        made.engine.run(data)
        assert made.engine.state.optimizer_step == 2
    release(data)
    windows = 2 * [[0, 1, 2, 3], [4, 5]]
    assert torch.equal(weights(made.model), by_windows(windows, make_batches(6)))


@pytest.mark.parametrize("kind", ["list", "feed of a prepared loader"])
def test_plain_engine_continued_to_more_epochs_counts_on(kind):
    made = make_engine(4)
    data = DATA[kind](6, made.accelerator)
    made.engine.run(data)
    made.engine.run(data, max_epochs=2)
    release(data)
    assert made.engine.state.optimizer_step == 4
    windows = 2 * [[0, 1, 2, 3], [4, 5]]
    assert torch.equal(weights(made.model), by_windows(windows, make_batches(6)))


def test_plain_engine_resumed_mid_epoch_closes_its_last_window():
    made = make_engine(4)
    data = make_batches(6)
    made.engine.run(data)
    made.engine.load_state_dict(
        {"iteration": 10, "epoch_length": 6, "max_epochs": 2, "optimizer_step": 3}
    )
    made.step.start_from(3)
    made.engine.state.optimizer_step = 3
    steps = []
    made.engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: steps.append(engine.state.optimizer_step)
    )
    made.engine.run(data)
    assert steps == [3, 4]
    assert torch.equal(weights(made.model), by_windows([[0, 1, 2, 3], [4, 5], [0, 1]], data))


@pytest.mark.parametrize("kind", ["list", "feed of a prepared loader"])
def test_windows_are_whole_on_a_plain_engine_after_terminate(kind):
    made = make_engine(4)
    data = DATA[kind](6, made.accelerator)
    made.engine.add_event_handler(
        Events.ITERATION_COMPLETED(once=3), lambda engine: engine.terminate()
    )
    made.engine.run(data, max_epochs=2)
    begin_again(data)
    made.engine.run(data, max_epochs=2)
    release(data)
    assert made.engine.state.epoch == 2
    assert torch.equal(weights(made.model), by_windows([[0, 1, 2, 3], [4, 5]], make_batches(6)))


@pytest.mark.parametrize("kind", ["list", "feed of a prepared loader"])
@pytest.mark.parametrize("error", [ZeroDivisionError("now"), KeyboardInterrupt(), SystemExit(3)])
def test_failure_drops_the_open_window_before_the_next_run(error, kind):
    def fail(engine, batch):
        if engine.state.iteration == 6 and not failed:
            failed.append(True)
            raise error

    failed = []
    made = make_engine(4, process=fail)
    made.engine.interrupt_resume_enabled = False  # else Ignite's engine never runs again
    data = DATA[kind](8, made.accelerator)
    with pytest.raises(type(error)) as raised:
        made.engine.run(data)
    assert raised.value is error
    assert has_no_gradient(made.model)
    windows = [[0, 1, 2, 3]]
    assert torch.equal(weights(made.model), by_windows(windows, make_batches(8)))
    begin_again(data)
    made.engine.run(data)
    release(data)
    windows += [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert torch.equal(weights(made.model), by_windows(windows, make_batches(8)))


@pytest.mark.parametrize("iteration", [2, 3, 4])
def test_a_failure_that_a_handler_handles_makes_no_step(iteration):
    def fail(engine, batch):
        if engine.state.iteration == iteration:
            raise ZeroDivisionError

    made = make_engine(4, process=fail)
    made.engine.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: None)
    made.engine.run(make_batches(6))
    assert made.engine.state.optimizer_step == 0
    assert has_no_gradient(made.model)
    assert torch.equal(weights(made.model), weights(make_model()))


@pytest.mark.parametrize(
    ("event", "windows"),
    [
        (TrainEvents.OPTIMIZER_STEP_STARTED, [[4, 5, 6, 7], [0, 1, 2, 3]]),
        (TrainEvents.OPTIMIZER_STEP_COMPLETED, [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]),
    ],
)
def test_windows_are_whole_after_a_handled_step_failure(event, windows):
    def fail(engine):
        failing.remove()
        raise ZeroDivisionError

    made = make_engine(4)
    failing = made.engine.add_event_handler(event, fail)
    made.engine.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: None)
    made.engine.run(make_batches(8), max_epochs=2)
    assert torch.equal(weights(made.model), by_windows(windows, make_batches(8)))


def test_interrupted_plain_engine_continues_within_its_window():
    made = make_engine(4)
    data = make_batches(6)
    made.engine.add_event_handler(
        Events.ITERATION_COMPLETED(once=3), lambda engine: engine.interrupt()
    )
    made.engine.run(data)
    assert made.engine.state.iteration == 3
    made.engine.run(data)
    assert torch.equal(weights(made.model), by_windows([[0, 1, 2, 3], [4, 5]], data))


def test_accumulation_may_change_from_window_to_window():
    batches = make_batches(6)
    trainer = make_trainer(batches, accumulation=2)

    @trainer.on(TrainEvents.STEP_COMPLETED)
    def accumulate_more(engine):
        engine.accelerator.gradient_accumulation_steps = 4

    trainer.run()
    assert torch.equal(weights(trainer.model), by_windows([[0, 1], [2, 3, 4, 5]], batches))


# -- max_steps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("max_steps", [1, 2, 3, 4, 5])
def test_max_steps_stops_after_that_step_without_a_half_window(max_steps):
    batches = make_batches(6)
    trainer = make_trainer(batches, accumulation=4)
    trainer.run(max_steps=max_steps)
    windows = (3 * [[0, 1, 2, 3], [4, 5]])[:max_steps]
    assert trainer.state.optimizer_step == max_steps
    assert trainer.state.iteration == sum(map(len, windows))
    assert trainer.state.max_epochs == -(-max_steps // 2)
    assert trainer.stop_reason == "max_steps"
    assert has_no_gradient(trainer.model)
    assert torch.equal(weights(trainer.model), by_windows(windows, batches))


@pytest.mark.parametrize(
    ("limits", "steps", "reason"),
    [
        ({"max_epochs": 2, "max_steps": 3}, 3, "max_steps"),
        ({"max_epochs": 1, "max_steps": 3}, 2, "max_epochs"),
        ({}, 2, "max_epochs"),
    ],
)
def test_first_limit_ends_the_run_and_the_default_is_one_epoch(limits, steps, reason):
    trainer = make_trainer(make_batches(6), accumulation=4)
    trainer.run(**limits)
    assert trainer.state.optimizer_step == steps
    assert trainer.stop_reason == reason


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_max_steps_below_one_is_an_error_before_the_first_batch(value):
    trainer = make_trainer(make_batches(6))
    started = count(trainer, Events.STARTED)
    with pytest.raises(ValueError, match=r"`max_steps` must be an integer >= 1, got .*: leave it"):
        trainer.run(max_steps=value)
    assert not started


def test_skipped_steps_do_not_count_for_max_steps():
    batches = make_batches(4)
    trainer = make_trainer(batches, scaler=FakeScaler(2, 3))
    trainer.run(max_steps=3)
    assert trainer.state.optimizer_step == 3
    assert trainer.state.iteration == 5
    assert torch.equal(weights(trainer.model), by_windows([[0], [3], [0]], batches))


# -- skipped steps ------------------------------------------------------------------------------


def overflowing(count, *numbers):
    batches = make_batches(count)
    return [(x, y * torch.inf) if n in numbers else (x, y) for n, (x, y) in enumerate(batches)]


def test_scaler_overflow_skips_the_step_but_not_the_next_window():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    batches = overflowing(8, 3)
    trainer = make_trainer(
        batches,
        accumulation=2,
        scaler=scaler,
        lr_scheduler=lambda optimizer: ExponentialLR(optimizer, 0.5),
    )
    started = count(trainer, TrainEvents.OPTIMIZER_STEP_STARTED)
    completed = count(trainer, TrainEvents.OPTIMIZER_STEP_COMPLETED)
    cleared = count(trainer, TrainEvents.STEP_COMPLETED)
    scheduled, committed, gradients = [], [], []
    trainer._optimizer_step.timetable.add(1, lambda: scheduled.append(trainer.state.iteration))

    @trainer.on(Events.ITERATION_COMPLETED)
    def record(engine):
        committed.append(engine.state.step_committed)
        gradients.append(has_no_gradient(engine.model))

    trainer.hooks.register(
        "on_step", HookContext(after=lambda engine: gradients.append(has_no_gradient(engine.model)))
    )
    trainer.run()
    model = make_model(dropout=0)
    optimizer = make_sgd(model)
    scheduler = ExponentialLR(optimizer, 0.5)
    windows = [[0, 1], [4, 5], [6, 7]]
    train_on_windows(model, optimizer, batches, windows, after_step=scheduler.step)
    assert torch.equal(weights(trainer.model), weights(model))
    assert scaler.get_scale() == 512
    assert trainer.lr_scheduler.get_last_lr() == scheduler.get_last_lr()
    assert trainer.state.optimizer_step == 3
    assert started == [2, 4, 6, 8]
    assert completed == cleared == scheduled == [2, 6, 8]
    assert committed == [False, True, False, False, False, True, False, True]
    assert gradients[::2] == [False] * 8
    assert gradients[1::2] == [False, True] * 4


@pytest.mark.parametrize("skipped", [(1,), (3,), (1, 2), (2, 4), (1, 2, 3, 4)])
@pytest.mark.parametrize(("accumulation", "batches"), [(1, 4), (2, 7), (4, 14)])
def test_skipped_steps_change_nothing(accumulation, batches, skipped):
    data = make_batches(batches)
    trainer = make_trainer(data, accumulation, scaler=FakeScaler(*skipped))
    trainer.run()
    windows = chunks(batches, accumulation)
    left = [window for number, window in enumerate(windows, 1) if number not in skipped]
    assert torch.equal(weights(trainer.model), by_windows(left, data))
    assert trainer.state.optimizer_step == len(left)


@pytest.mark.parametrize("accumulate", [False, True])
def test_overflow_skips_the_step_on_a_plain_engine(accumulate):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    accelerator.scaler = FakeScaler(2)
    model = accelerator.prepare(make_model(dropout=0))

    def train(engine, batch):
        with accelerator.accumulate(model) if accumulate else nullcontext():
            accelerator.backward(F.mse_loss(model(batch[0]), batch[1]))

    engine = Engine(train)
    OptimizerStep(accelerator, make_sgd(model)).attach(engine)
    engine.run(make_batches(5))
    assert torch.equal(weights(model), by_windows([[0, 1], [4]], make_batches(5)))
    assert engine.state.optimizer_step == 2


def test_the_overflow_of_another_optimizer_skips_nothing():
    batches = make_batches(4)
    trainer = make_trainer(batches, scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    accelerator = trainer.accelerator
    parameter = torch.nn.Parameter(torch.ones(2))
    other = accelerator.prepare(torch.optim.SGD([parameter], lr=1.0))

    @trainer.on(Events.ITERATION_COMPLETED)
    def overflow(engine):
        parameter.grad = torch.full((2,), torch.inf)
        other.step()

    trainer.run()
    assert accelerator.optimizer_step_was_skipped
    assert torch.equal(parameter.detach(), torch.ones(2))
    assert trainer.state.optimizer_step == 4
    assert torch.equal(weights(trainer.model), by_windows(chunks(4, 1), batches))


def test_gradients_are_unscaled_for_the_handlers_before_the_step():
    batches = make_batches(2)
    gradients = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        trainer = make_trainer(batches, accumulation=2, scaler=scaler)
        trainer.add_event_handler(
            TrainEvents.OPTIMIZER_STEP_STARTED,
            lambda engine: gradients.append([p.grad.clone() for p in engine.model.parameters()]),
        )
        trainer.run()
    assert all(map(torch.equal, *gradients))


def test_scaler_continues_after_a_failure_before_the_step():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    batches = make_batches(4)
    trainer = make_trainer(batches, accumulation=2, scaler=scaler)

    def fail(engine):
        failing.remove()
        raise ZeroDivisionError

    failing = trainer.add_event_handler(TrainEvents.OPTIMIZER_STEP_STARTED, fail)
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    trainer.run()
    assert scaler.get_scale() == 1024
    assert torch.equal(weights(trainer.model), by_windows(chunks(4, 2), batches))


# -- what handlers see, and cannot do ----------------------------------------------------------


@pytest.mark.parametrize("is_plain", [True, False])
def test_step_handlers_see_old_and_new_parameters_and_gradient(is_plain):
    batches = make_batches(3)
    trainer = make_trainer(
        batches, accumulation=2, lr_scheduler=lambda optimizer: ExponentialLR(optimizer, 0.5)
    )
    trainer._optimizer_step.prepared.calls_torch_directly = is_plain
    seen = []

    def look(engine):
        state = engine.state
        gradient = None
        if not has_no_gradient(engine.model):
            gradient = torch.cat([p.grad.flatten() for p in engine.model.parameters()])
        lr = engine.optimizer.param_groups[0]["lr"]
        seen.append(
            (weights(engine.model), gradient, state.optimizer_step, state.step_committed, lr)
        )

    for event in (
        TrainEvents.OPTIMIZER_STEP_STARTED,
        TrainEvents.OPTIMIZER_STEP_COMPLETED,
        TrainEvents.STEP_COMPLETED,
    ):
        trainer.add_event_handler(event, look)
    trainer.run()

    model = make_model(dropout=0)
    optimizer = make_sgd(model)
    for number, window in enumerate([[0, 1], [2]]):
        started, completed, cleared = seen[3 * number : 3 * number + 3]
        before = weights(model)
        for index in window:
            x, y = batches[index]
            (F.mse_loss(model(x), y) / len(window)).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        optimizer.param_groups[0]["lr"] = lr = 0.2 * 0.5**number
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(started[0], before)
        assert torch.equal(started[1], gradient)
        assert started[2:] == (number, False, lr)
        assert torch.equal(completed[0], weights(model))
        assert torch.equal(completed[1], gradient)
        assert completed[2:] == (number + 1, True, lr / 2)
        assert torch.equal(cleared[0], weights(model))
        assert cleared[1] is None
        assert cleared[2:] == completed[2:]


FIELDS = {
    "iteration": 77,
    "epoch": 99,
    "optimizer_step": 55,
    "step_committed": True,
    "start_epoch": 9,
    "start_step": 9,
    "output": None,
    "loss": None,
    "model_outputs": None,
}


@pytest.mark.parametrize("values", [FIELDS, dict.fromkeys(FIELDS), dict.fromkeys(FIELDS, -3)])
@pytest.mark.parametrize("limits", [{"max_epochs": 2}, {"max_steps": 4}, {"max_iters": 14}])
def test_counters_written_to_the_state_change_no_step(limits, values):
    batches = make_batches(7)
    trainer = make_trainer(batches, accumulation=4)
    stepped = []
    trainer.optimizer.optimizer.register_step_post_hook(lambda *_: stepped.append(True))

    def spoil(engine, *args, **kwargs):
        vars(engine.state).update(values, metrics={})

    for event in (*Events, *TrainEvents):
        trainer.add_event_handler(event, spoil)
    spoil(trainer)
    trainer.run(**limits)
    assert len(stepped) == 4
    expected = by_windows(2 * chunks(7, 4), batches)
    assert torch.equal(weights(trainer.model), expected)


EVENTS = [
    Events.ITERATION_STARTED,
    Events.ITERATION_COMPLETED,
    Events.EPOCH_COMPLETED,
    TrainEvents.MODEL_FORWARD_STARTED,
    TrainEvents.OPTIMIZER_STEP_STARTED,
    TrainEvents.OPTIMIZER_STEP_COMPLETED,
    TrainEvents.STEP_COMPLETED,
]


@pytest.mark.parametrize("event", EVENTS)
def test_a_handler_that_removes_itself_skips_no_other(event):
    trainer = make_trainer(make_batches(1))
    called = []

    def leave(engine):
        called.append("leave")
        leaving.remove()

    trainer.add_event_handler(event, lambda engine: called.append("first"))
    leaving = trainer.add_event_handler(event, leave)
    trainer.add_event_handler(event, lambda engine: called.append("last"))
    trainer.run(max_epochs=2)
    assert called == ["first", "leave", "last", "first", "last"]


@pytest.mark.parametrize("event", EVENTS)
def test_handler_added_while_firing_is_last_and_doubles_no_other(event):
    trainer = make_trainer(make_batches(1))
    called = []

    def add(engine):
        called.append("add")
        if called.count("add") == 1:
            trainer.add_event_handler(event, lambda engine: called.append("added"))

    trainer.add_event_handler(event, add)
    trainer.add_event_handler(event, lambda engine: called.append("last"))
    trainer.run(max_epochs=2)
    assert called == ["add", "last", "added"] * 2


@pytest.mark.parametrize("event", EVENTS)
def test_removing_a_handler_while_firing_skips_no_other(event):
    trainer = make_trainer(make_batches(1))
    called = []

    def remove(engine):
        called.append("remove")
        other.remove()

    other = trainer.add_event_handler(event, lambda engine: called.append("other"))
    trainer.add_event_handler(event, remove)
    trainer.add_event_handler(event, lambda engine: called.append("last"))
    trainer.run(max_epochs=2)
    assert called == ["other", "remove", "last", "remove", "last"]


# -- attaching ----------------------------------------------------------------------------------


def test_attaching_after_iteration_completed_handlers_warns():
    accelerator = Accelerator(cpu=True)
    engine = Engine(lambda engine, batch: None)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: None)
    with pytest.warns(UserWarning, match="before the step: attach it first"):
        OptimizerStep(accelerator, make_sgd(make_model())).attach(engine)


def test_an_engine_has_one_optimizer_step():
    made = make_engine(1)
    second = OptimizerStep(made.accelerator, make_sgd(make_model()))
    with pytest.raises(ValueError, match=r"`engine` must have one OptimizerStep.*remove\(\)"):
        second.attach(made.engine)
    trainer = make_trainer(make_batches(2))
    for own in attached_handlers(trainer, OptimizerStep):
        own.attachment.remove()
    with pytest.raises(ValueError, match=r"`engine` must not be a trainer, because a trainer has"):
        second.attach(trainer)
    made.attachment.remove()
    second.attach(made.engine)


def test_an_optimizer_step_serves_one_engine_until_it_is_removed():
    made = make_engine(2)
    another = Engine(made.engine._process_function)
    with pytest.raises(ValueError, match=r"attached to one engine.*attached already: make another"):
        made.step.attach(another)
    made.attachment.remove()
    made.step.attach(another)
    another.run(make_batches(3))
    assert torch.equal(weights(made.model), by_windows([[0, 1], [2]], make_batches(3)))


def test_a_removed_optimizer_step_steps_no_more():
    made = make_engine(1)
    made.attachment.remove()
    made.engine.run(make_batches(2))
    assert torch.equal(weights(made.model), weights(make_model()))


def test_optimizer_step_cannot_be_attached_at_an_event():
    made = make_engine(1)
    step = OptimizerStep(made.accelerator, make_sgd(made.model))
    with pytest.raises(ValueError, match=r"`event` must be left out, got .*accumulation"):
        step.attach(Engine(lambda engine, batch: None), Events.EPOCH_COMPLETED)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"optimizer": "SGD"}, TypeError, r"`optimizer` must be a .*Optimizer, got str: pass"),
        ({"scheduler_at": "batch"}, ValueError, r'`scheduler_at` must be "step", .*\'batch\': '),
    ],
)
def test_unusable_arguments_are_named(arguments, error, message):
    given = {"optimizer": make_sgd(make_model()), **arguments}
    with pytest.raises(error, match=message):
        OptimizerStep(Accelerator(cpu=True), **given)


@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_accumulation_below_one_is_named(value):
    accelerator = Accelerator(cpu=True)
    accelerator.gradient_accumulation_steps = value
    with pytest.raises(ValueError, match=rf"gradient_accumulation_steps` must be .*got {value}: "):
        OptimizerStep(accelerator, make_sgd(make_model()))


def test_a_prepared_optimizer_is_used_unchanged():
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare(make_sgd(make_model()))
    assert OptimizerStep(accelerator, optimizer).optimizer is optimizer
    assert accelerator._optimizers == [optimizer]


# Windows of a trainer


@pytest.mark.parametrize(
    ("batches", "accumulation", "sizes"), [(7, 3, [3, 3, 1]), (4, 4, [4]), (3, 1, [1, 1, 1])]
)
def test_window_sizes_follow_the_data_and_are_known_at_opening(batches, accumulation, sizes):
    trainer, seen = make_trainer(batches_of(batches), accumulation=accumulation), []
    window = trainer._optimizer_step.window

    @trainer.on(Events.ITERATION_STARTED)
    def look(engine):
        seen.append((window.size, window.count, window.is_closing))

    trainer.run()
    assert seen == [
        (size, number, number == size) for size in sizes for number in range(1, size + 1)
    ]


@pytest.mark.parametrize(
    ("event", "taken", "steps"),
    [(Events.ITERATION_STARTED(once=3), 2, 2), (Events.ITERATION_COMPLETED(once=3), 3, 2)],
)
def test_step_removed_within_its_own_event_does_nothing_more(event, taken, steps):
    made = make_engine(1)
    made.engine.add_event_handler(event, lambda: made.attachment.remove())
    move_to_front(made.engine, event)
    made.engine.run(make_batches(5))
    assert made.step.window.taken == taken
    assert made.engine.state.optimizer_step == steps


# How long the gradients live


def gradients_at(engine, model, *events):
    """Returns a log of events, and whether gradients exist at each."""
    seen = []
    for event in events:

        def look(engine, *args, event=event, **kwargs):
            seen.append((event.name, not has_no_gradient(model)))

        engine.add_event_handler(event, look)
    return seen


def test_gradients_live_through_the_handlers_of_the_iteration():
    trainer = make_trainer(make_batches(3), accumulation=2)
    events = (Events.ITERATION_COMPLETED, TrainEvents.STEP_COMPLETED, Events.ITERATION_STARTED)
    seen = gradients_at(trainer, trainer.model, *events, Events.ITERATION_COMPLETED)
    trainer.run()
    iteration = [("ITERATION_COMPLETED", True)] * 2
    step = ("STEP_COMPLETED", False)
    assert seen == [
        ("ITERATION_STARTED", False),
        *iteration,
        ("ITERATION_STARTED", True),  # those of the open window
        *iteration,
        step,
        ("ITERATION_STARTED", False),
        *iteration,
        step,
    ]


def test_validation_and_save_see_no_gradients(tmp_path):
    trainer = make_trainer(
        make_batches(2),
        validation=Validation(lambda: None, every_steps=1),
        checkpoint=SaveCheckpoint(tmp_path, every_steps=1),
    )
    events = [each for each in TrainEvents if each.name[:10] in ("VALIDATION", "CHECKPOINT")]
    seen = gradients_at(trainer, trainer.model, *events)
    trainer.run()
    assert len(seen) == 6
    assert not any(are_there for _, are_there in seen)


def test_gradients_of_a_plain_engine_live_until_the_next_batch():
    made = make_engine(2)
    evaluator = Engine(lambda engine, batch: made.model(batch[0]))
    made.engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: evaluator.run(make_batches(2))
    )
    events = (TrainEvents.STEP_COMPLETED, Events.ITERATION_COMPLETED, Events.ITERATION_STARTED)
    seen = gradients_at(made.engine, made.model, *events, Events.EPOCH_COMPLETED)
    made.engine.run(make_batches(3))
    step = [("STEP_COMPLETED", True), ("ITERATION_COMPLETED", True)]
    assert seen == [
        ("ITERATION_STARTED", False),
        ("ITERATION_COMPLETED", True),
        ("ITERATION_STARTED", True),  # those of the open window
        *step,
        ("ITERATION_STARTED", False),
        *step,
        ("EPOCH_COMPLETED", False),
    ]


def test_step_of_a_plain_engine_is_complete_before_other_handlers():
    made, calls = make_engine(1), []
    made.step.timetable.add(1, lambda: calls.append("schedule"))
    for event in (Events.ITERATION_COMPLETED, TrainEvents.STEP_COMPLETED):
        made.engine.add_event_handler(event, lambda engine, name=event.name: calls.append(name))
    made.engine.run(make_batches(2))
    assert calls == ["STEP_COMPLETED", "schedule", "ITERATION_COMPLETED"] * 2


@pytest.mark.parametrize(
    ("event", "method"),
    [
        (Events.ITERATION_STARTED, None),
        (Events.EPOCH_COMPLETED, None),
        (Events.TERMINATE, "terminate"),
        (Events.TERMINATE_SINGLE_EPOCH, "terminate_epoch"),
    ],
    ids=lambda each: getattr(each, "name", None),
)
def test_gradients_of_a_plain_engine_are_zeroed_by_the_next_event(event, method):
    made = make_engine(1)
    before = gradients_at(made.engine, made.model, Events.ITERATION_COMPLETED)
    after = gradients_at(made.engine, made.model, event)
    if method is not None:
        made.engine.add_event_handler(
            Events.ITERATION_COMPLETED(once=1), lambda engine: getattr(engine, method)()
        )
    made.engine.run(make_batches(2))
    assert {are_there for _, are_there in before} == {True}
    assert {are_there for _, are_there in after} == {False}


@pytest.mark.parametrize(
    "way", ["failure", "handled failure", "no EPOCH_COMPLETED", "terminate", "interrupt"]
)
def test_gradients_of_a_plain_engine_are_zeroed_when_its_run_ends(way):
    made = make_engine(1)

    @made.engine.on(Events.ITERATION_COMPLETED)
    def act(engine):
        assert not has_no_gradient(made.model)
        if way == "no EPOCH_COMPLETED":
            engine.terminate_epoch(skip_epoch_completed=True)
        elif way == "terminate":
            engine.terminate(skip_completed=True)
        elif way == "interrupt":
            engine.interrupt()
        else:
            raise ZeroDivisionError

    if way == "handled failure":
        made.engine.add_event_handler(Events.EXCEPTION_RAISED, lambda error: None)
    with pytest.raises(ZeroDivisionError) if way == "failure" else nullcontext():
        made.engine.run(make_batches(1))
    assert has_no_gradient(made.model)


@pytest.mark.parametrize("make", [make_trainer, None], ids=["trainer", "plain"])
def test_a_skipped_step_fires_no_event_and_zeroes_gradients(make):
    batches = make_batches(7)
    if make is None:
        made = make_engine(2, scaler=FakeScaler(2))
        engine, model = made.engine, made.model
    else:
        engine = make_trainer(batches, 2, scaler=FakeScaler(2))
        model = engine.model
    completed = count(engine, TrainEvents.STEP_COMPLETED)
    started = gradients_at(engine, model, Events.ITERATION_STARTED)
    stepped = gradients_at(engine, model, Events.ITERATION_COMPLETED(every=2))
    engine.run(batches)
    assert completed == [2, 6, 7]
    assert [are_there for _, are_there in started] == [False, True] * 3 + [False]
    assert [are_there for _, are_there in stepped] == [True] * 3
    assert torch.equal(weights(model), by_windows([[0, 1], [4, 5], [6]], batches))
