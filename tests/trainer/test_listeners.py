"""Ignite's own loggers, profilers and handlers see the true values on a trainer."""

import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Engine
from ignite.engine import Events
from ignite.handlers import BasicTimeProfiler
from ignite.handlers import Checkpoint
from ignite.handlers import DiskSaver
from ignite.handlers import EMAHandler
from ignite.handlers import HandlersTimeProfiler
from ignite.handlers import global_step_from_engine
from ignite.metrics import RunningAverage

from ignite_hooks import ClearCache
from ignite_hooks import GarbageCollector
from ignite_hooks import GradientClipping
from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from tests.reference import batches_of
from tests.reference import make_trainer
from tests.reference import weights


def by_ignite(model):
    """Ignite's own supervised trainer, written out: it steps, and zeroes in the next iteration."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(engine, batch):
        optimizer.zero_grad()
        loss = F.mse_loss(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss.item()

    return Engine(step)


# Steps, metrics and names of events


@pytest.mark.parametrize(("every", "n_saved"), [(6, 2), (4, None), (3, None)])
def test_ignites_checkpoint_works_as_on_ignites_engine(tmp_path, every, n_saved):
    names = []
    for engine in (make_trainer(accumulation=4), Engine(lambda engine, batch: None)):
        folder = tmp_path / str(len(names))
        saver = Checkpoint(
            {"model": torch.nn.Linear(1, 1)},
            DiskSaver(folder),
            n_saved=n_saved,
            global_step_transform=global_step_from_engine(engine),
        )
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=every), saver)
        engine.run(batches_of(24), max_epochs=1)
        names.append(sorted(path.name for path in folder.iterdir()))
    assert names[0] == names[1]


def test_handlers_by_step_see_the_metrics_of_their_own_step():
    trainer, seen = make_trainer(batches_of(4), accumulation=2), []
    number = lambda output: float(trainer.state.iteration)  # noqa: E731
    trainer.add_event_handler(
        TrainEvents.STEP_COMPLETED, lambda engine: seen.append(engine.state.metrics["number"])
    )
    RunningAverage(output_transform=number, alpha=1e-9).attach(trainer, "number")
    trainer.run()
    assert seen == pytest.approx([2, 4])


def test_the_filter_of_step_completed_counts_steps():
    trainer, seen = make_trainer(batches_of(8), accumulation=2), []
    trainer.add_event_handler(
        TrainEvents.STEP_COMPLETED(every=2), lambda engine: seen.append(engine.state.iteration)
    )
    trainer.run()
    assert seen == [4, 8]


# Averaging


@pytest.mark.parametrize("event", [Events.ITERATION_COMPLETED, TrainEvents.STEP_COMPLETED])
def test_averaged_weights_are_validated_at_their_own_step(event):
    trainer = make_trainer(batches_of(4))
    ema = EMAHandler(trainer.model, momentum=0.5)
    validated = []
    Validation(lambda: validated.append(weights(ema.ema_model)), every_steps=1).attach(trainer)
    ema.attach(trainer, event=event)
    trainer.run()
    model = make_trainer().model
    reference, expected = by_ignite(model), []
    reference_average = EMAHandler(model, momentum=0.5)
    reference_average.attach(reference, event=Events.ITERATION_COMPLETED)
    reference.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: expected.append(weights(reference_average.ema_model))
    )
    reference.run(batches_of(4))
    assert all(torch.equal(a, b) for a, b in zip(validated, expected, strict=True))


def test_an_averaging_handler_misses_no_step_after_a_failure():
    averaged = []
    for fails in (False, True):
        trainer = make_trainer(batches_of(4))
        ema = EMAHandler(trainer.model, momentum=0.5)
        if fails:
            trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: 1 / 0)
        ema.attach(trainer, event=TrainEvents.STEP_COMPLETED)
        if fails:
            with pytest.raises(ZeroDivisionError):
                trainer.run(max_epochs=1)
        trainer.run(max_epochs=1)
        averaged.append(weights(ema.ema_model))
    assert torch.equal(*averaged)


# An evaluator in a handler of the user, and saves in a handler


def test_gradients_live_through_an_evaluator_in_a_handler():
    trainer, norms = make_trainer(batches_of(3), grad_clip=GradientClipping(max_norm=9.0)), []
    evaluator = create_supervised_evaluator(trainer.model, accelerator=trainer.accelerator)

    @trainer.on(Events.ITERATION_COMPLETED)
    def evaluate(engine):
        evaluator.run(batches_of(2))
        gradients = torch.cat([each.grad.flatten() for each in trainer.model.parameters()])
        norms.append((gradients.norm().item(), engine.state.metrics["grad_norm"].item()))

    trainer.run()
    assert all(after == pytest.approx(before) for after, before in norms)
    without = make_trainer(batches_of(3), grad_clip=GradientClipping(max_norm=9.0))
    without.run()
    assert torch.equal(weights(trainer.model), weights(without.model))


SAVES = [
    (Events.ITERATION_STARTED(once=3), (2, 4)),
    (TrainEvents.MODEL_BACKWARD_COMPLETED(once=3), (2, 4)),
    (Events.ITERATION_COMPLETED(once=3), (2, 4)),
    (TrainEvents.OPTIMIZER_STEP_STARTED(once=1), (2, 4)),
    (TrainEvents.OPTIMIZER_STEP_COMPLETED(once=2), (2, 4)),
    (Events.ITERATION_COMPLETED(once=4), (2, 4)),
    (TrainEvents.STEP_COMPLETED(once=2), (2, 4)),
    (TrainEvents.VALIDATION_STARTED(once=2), (2, 4)),
    (TrainEvents.VALIDATION_COMPLETED(once=2), (2, 4)),
    (TrainEvents.STEP_COMPLETED(once=3), (3, 6)),
    (Events.EPOCH_COMPLETED(once=1), (3, 6)),
]


@pytest.mark.parametrize(("event", "counters"), SAVES)
def test_a_save_in_a_handler_is_of_the_next_step_boundary(tmp_path, event, counters):
    def make():
        return make_trainer(
            batches_of(6), accumulation=2, validation=Validation(lambda: None, every_steps=1)
        )

    unbroken = make()
    unbroken.run(max_epochs=2)
    trainer, seen = make(), []
    save = SaveCheckpoint(tmp_path)
    trainer.add_event_handler(event, save)
    trainer.add_event_handler(
        TrainEvents.CHECKPOINT_SAVED,
        lambda e: seen.append((e.state.optimizer_step, e.state.iteration)),
    )
    trainer.run(max_epochs=2)
    assert seen == [counters]
    resumed = make()
    ResumeCheckpoint(tmp_path).attach(resumed)
    resumed.run()
    assert torch.equal(weights(resumed.model), weights(unbroken.model))


# Profilers


class Clock:
    """A clock for Ignite's timers, in seconds, which only ``take`` advances."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def take(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("ignite.handlers.timing.perf_counter", clock)
    return clock


@pytest.mark.parametrize("schedule", [{"every_epochs": 1}, {"every_steps": 2}, {"at_start": True}])
def test_the_time_of_validations_is_in_the_profile_of_handlers(clock, schedule):
    trainer = make_trainer(batches_of(4))
    Validation(lambda: clock.take(5), **schedule).attach(trainer)
    profiler = HandlersTimeProfiler()
    profiler.attach(trainer)
    trainer.run()
    rows = [row for row in profiler.get_results() if row[2] != "not triggered"]
    spent = sum(row[2] for row in rows if row[0] == "Validation")
    total = sum(row[2] for row in rows if row[0] == "Total")
    assert spent == total == 5 * trainer.state.validation > 0


@pytest.mark.parametrize(
    ("schedule", "event", "total"),
    [({"every_epochs": 1}, "EPOCH_COMPLETED", 7), ({"at_start": True}, "STARTED", 5)],
)
def test_the_time_of_validations_is_in_the_basic_profile(clock, schedule, event, total):
    trainer = make_trainer(batches_of(4))
    profiler = BasicTimeProfiler()
    profiler.attach(trainer)
    Validation(lambda: clock.take(5), **schedule).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: clock.take(2))
    trainer.run()
    assert profiler.get_results()["event_handlers_stats"][event]["total"] == total


def test_handlers_of_started_are_in_the_basic_profile_as_on_ignites_engine(clock):
    totals = []
    for engine in (make_trainer(), Engine(lambda engine, batch: None)):
        profiler = BasicTimeProfiler()
        engine.add_event_handler(Events.STARTED, lambda: clock.take(3))
        profiler.attach(engine)
        engine.run(batches_of(2))
        totals.append(profiler.get_results()["event_handlers_stats"]["STARTED"]["total"])
    assert totals == [3, 3]


def test_profilers_show_readable_handler_names(tmp_path):
    trainer = make_trainer(
        batches_of(4),
        grad_clip=GradientClipping(max_norm=1.0),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1),
        scheduler_at="epoch",
        validation=Validation(lambda: None, every_steps=1, every_epochs=1, at_start=True),
        checkpoint=SaveCheckpoint(tmp_path, every_steps=2, every_epochs=1),
        handlers=[ClearCache(every_steps=1), GarbageCollector(every_epochs=1, freeze_after=1)],
    )
    profiler = HandlersTimeProfiler()
    profiler.attach(trainer)
    trainer.run()
    names = {row[0] for row in profiler.get_results()} - {"Total", "Processing", "Dataflow"}
    assert names == {
        "OptimizerStep",
        "Validation",
        "SaveCheckpoint",
        "ClearCache",
        "GarbageCollector",
    }
