"""Ignite's handlers that stop, measure or average, attached to both engines alike."""

import itertools
import time

import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Engine
from ignite.engine import EventEnum
from ignite.engine import Events
from ignite.engine import create_supervised_evaluator
from ignite.handlers import BasicTimeProfiler
from ignite.handlers import EarlyStopping
from ignite.handlers import EMAHandler
from ignite.handlers import EpochOutputStore
from ignite.handlers import HandlersTimeProfiler
from ignite.handlers import TerminateOnNan
from ignite.handlers import TimeLimit
from ignite.handlers import Timer
from ignite.metrics import MeanSquaredError

from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from tests.as_in_ignite.sides import Side
from tests.as_in_ignite.sides import counters
from tests.as_in_ignite.sides import on_both_sides
from tests.as_in_ignite.sides import short_id
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import weights
from tests.versions import needs

# EarlyStopping

STOPPED = [
    # the scores of the epochs, the options, then the epoch at which the run ends
    ([1, 2, 3, 3, 3, 3, 3], {"patience": 2}, 5),
    ([1, 2, 3, 4, 5, 6, 7], {"patience": 1}, 7),
    ([3, 2, 1, 1, 1, 1, 1], {"patience": 3, "mode": "min"}, 6),
    ([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6], {"patience": 2, "threshold": 0.05}, 7),
    ([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6], {"patience": 2, "threshold": 0.25}, 3),
    ([5, 4, 6, 5, 4, 3, 2], {"patience": 3}, 6),
]


@needs("pytorch-ignite>=0.5.5")
@pytest.mark.parametrize(("scores", "options", "epoch"), STOPPED, ids=short_id)
def test_early_stopping_by_an_evaluator(side, scores, options, epoch):
    trainer, coming = side.engine(), iter(scores)
    evaluator = Engine(lambda engine, batch: next(coming))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))
    stopping = EarlyStopping(
        score_function=lambda engine: engine.state.output, trainer=trainer, **options
    )
    evaluator.add_event_handler(Events.COMPLETED, stopping)
    trainer.run(range(2), max_epochs=len(scores))
    assert counters(trainer) == (epoch, 2 * epoch)


def test_early_stopping_by_the_trainers_own_score(side):
    trainer = side.engine()
    stopping = EarlyStopping(
        patience=3, score_function=lambda engine: -engine.state.epoch, trainer=trainer
    )
    stopping.attach(trainer, Events.EPOCH_COMPLETED)
    trainer.run(range(2), max_epochs=10)
    assert counters(trainer) == (4, 8)
    assert (stopping.best_score, stopping.counter) == (-1, 3)


def test_early_stopping_by_the_error_of_an_evaluator():
    def script(side):
        made, errors = side.supervised(lr=0.5), []
        evaluator = side.evaluator(made.model, {"mse": MeanSquaredError()})
        side.validate(made.engine, evaluator, batches_of(8)[6:])
        stopping = EarlyStopping(2, lambda engine: -engine.state.metrics["mse"], made.engine)
        evaluator.add_event_handler(Events.COMPLETED, stopping)
        evaluator.add_event_handler(
            Events.COMPLETED, lambda engine: errors.append(engine.state.metrics["mse"])
        )
        made.engine.run(batches_of(3), max_epochs=20)
        return counters(made.engine), errors, stopping.best_score

    (epoch, _), errors, best_score = on_both_sides(script)
    assert 2 < epoch == len(errors) < 20
    assert best_score == -min(errors)


def test_early_stopping_by_a_result_of_the_validation():
    made, scores = Side("trainer").supervised(), iter([1, 2, 2, 2, 2])
    Validation(lambda engine: {"score": next(scores)}, every_steps=2).attach(made.engine)
    stopping = EarlyStopping(
        2, lambda trainer: trainer.state.metrics["val_score"], trainer=made.engine
    )
    made.engine.add_event_handler(TrainEvents.VALIDATION_COMPLETED, stopping)
    made.engine.run(batches_of(5), max_epochs=2)
    assert counters(made.engine) == (2, 8)
    assert made.engine.stop_reason == "EarlyStopping"


# TerminateOnNan

NAN, INF = float("nan"), float("inf")
LOSSES = [
    ([1.0, 2.0, NAN, 4.0], 3),
    ([1.0, INF, 3.0, 4.0], 2),
    ([torch.tensor(1.0), torch.tensor([1.0, NAN]), 3.0, 4.0], 2),
    ([{"a": 1.0, "b": [2.0, (torch.tensor(INF),)]}, 2.0, 3.0, 4.0], 1),
    ([1.0, "text", torch.tensor(3), 4], 4),
]


@pytest.mark.parametrize(("losses", "iteration"), LOSSES, ids=range(len(LOSSES)))
def test_terminate_on_nan(side, losses, iteration):
    engine = side.engine(lambda batch: losses[batch])
    engine.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
    engine.run(range(4))
    assert counters(engine) == (1, iteration)


# TimeLimit and Timer


def test_a_time_limit_stops_the_run(side, monkeypatch):
    clock = itertools.count(step=10)
    monkeypatch.setattr(time, "time", lambda: next(clock))
    limit = TimeLimit(limit_sec=35)
    monkeypatch.undo()
    engine = side.engine()

    @engine.on(Events.ITERATION_COMPLETED)
    def look(engine):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: next(clock))
            limit(engine)

    engine.run(range(8))
    assert counters(engine) == (1, 4)


def test_a_time_limit_that_is_far_stops_nothing(side):
    engine = side.engine()
    engine.add_event_handler(Events.ITERATION_COMPLETED, TimeLimit(limit_sec=600))
    engine.run(range(8))
    assert counters(engine) == (1, 8)


@pytest.fixture
def ticks(monkeypatch):
    """Replaces the clock of Timer by one that advances when ``ticks`` is called."""
    now = [0.0]
    monkeypatch.setattr("ignite.handlers.timing.perf_counter", lambda: now[0])

    def tick(seconds):
        now[0] += seconds

    return tick


def test_a_timer_measures_between_its_events(side, ticks):
    engine, timer, totals = side.engine(lambda batch: ticks(2)), Timer(average=True), []
    timer.attach(
        engine,
        start=Events.EPOCH_STARTED,
        pause=Events.ITERATION_COMPLETED,
        resume=Events.ITERATION_STARTED,
        step=Events.ITERATION_COMPLETED,
    )
    engine.add_event_handler(Events.GET_BATCH_STARTED, lambda: ticks(100))

    @engine.on(Events.EPOCH_COMPLETED)
    def note():
        totals.append((timer.value(), timer.step_count, timer.total))

    engine.run(range(3), max_epochs=2)
    # The timer runs from EPOCH_STARTED on: the wait for the first batch counts.
    assert totals == [((100 + 3 * 2) / 3, 3.0, 106.0)] * 2


# Profilers


class CustomEvents(EventEnum):
    """A custom event of a user."""

    OWN_OF_PROFILERS = "own_of_profilers"


def nothing(engine):
    pass


def test_the_basic_profiler_measures_each_event(side):
    engine, profiler = side.engine(), BasicTimeProfiler()
    profiler.attach(engine)
    calls = [Events.STARTED, Events.EPOCH_STARTED, Events.ITERATION_STARTED]
    calls += [Events.GET_BATCH_COMPLETED, Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED]
    for event in calls:
        engine.add_event_handler(event, lambda: sum(range(1000)))
    engine.run([0, 1, 2], max_epochs=2)
    results = profiler.get_results()
    handlers = results["event_handlers_stats"]
    for event in calls:
        assert handlers[event.name.replace(".", "_")]["total"] > 0
    assert results["processing_stats"]["total"] > results["processing_stats"]["mean"] > 0
    assert results["dataflow_stats"]["total"] > 0


def test_the_handlers_profiler_counts_each_handler(side):
    engine, profiler = side.engine(), HandlersTimeProfiler()
    engine.register_events(*CustomEvents)
    profiler.attach(engine)
    engine.add_event_handler(Events.ITERATION_STARTED, nothing)
    engine.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: engine.fire_event(CustomEvents.OWN_OF_PROFILERS)
    )
    engine.add_event_handler(CustomEvents.OWN_OF_PROFILERS, nothing)
    engine.run([0, 1, 2, 3], max_epochs=2)
    times = profiler.event_handlers_times
    counted = {
        (event.name, handler): len(each)
        for event, handlers in times.items()
        for handler, each in handlers.items()
        if handler == "nothing"
    }
    assert counted == {
        ("ITERATION_STARTED", "nothing"): 8,
        ("OWN_OF_PROFILERS", "nothing"): 2,
    }
    assert len(profiler.processing_times) == len(profiler.dataflow_times) == 8
    table = profiler.get_results()
    assert ["nothing", "ITERATION_STARTED"] in [row[:2] for row in table]


@pytest.mark.parametrize("profiler", [BasicTimeProfiler, HandlersTimeProfiler])
def test_a_profiler_leaves_the_handlers_as_they_were(side, profiler):
    engine, calls = side.engine(), []
    profiler().attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED(every=2), lambda: calls.append(0))
    for _ in range(2):
        engine.run([0, 1, 2, 3])
    assert len(calls) == 4


def test_the_handlers_profiler_measures_handlers_of_steps():
    made, profiler = Side("trainer").supervised(accumulation=2), HandlersTimeProfiler()
    profiler.attach(made.engine)
    for event in (TrainEvents.STEP_COMPLETED, TrainEvents.MODEL_BACKWARD_COMPLETED):
        made.engine.add_event_handler(event, nothing)
    made.engine.run(batches_of(4), max_epochs=2)
    assert {
        event.name: len(handlers["nothing"])
        for event, handlers in profiler.event_handlers_times.items()
        if "nothing" in handlers
    } == {"STEP_COMPLETED": 4, "MODEL_BACKWARD_COMPLETED": 8}


@pytest.mark.parametrize("profiler", [BasicTimeProfiler, HandlersTimeProfiler])
def test_a_profiler_of_an_evaluator(side, profiler):
    evaluator, profiler = side.evaluator(make_model()), profiler()
    profiler.attach(evaluator)
    evaluator.run(batches_of(3))
    assert len(profiler.processing_times) == len(profiler.dataflow_times) == 3
    assert min(*profiler.processing_times, *profiler.dataflow_times) > 0


# EpochOutputStore


def test_the_outputs_of_each_epoch_are_stored(side):
    engine, stored = side.engine(float), []
    EpochOutputStore(lambda output: 2 * output).attach(engine, "outputs")
    engine.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: stored.append(engine.state.outputs)
    )
    engine.run(range(3), max_epochs=2)
    assert stored == [[0.0, 2.0, 4.0]] * 2


def test_the_outputs_of_an_evaluator_are_stored():
    def script(side):
        made = side.supervised()
        evaluator = side.evaluator(made.model)
        EpochOutputStore(lambda output: output[0].tolist()).attach(evaluator, "outputs")
        side.validate(made.engine, evaluator, batches_of(2))
        made.engine.run(batches_of(3))
        return evaluator.state.outputs

    assert len(on_both_sides(script)) == 2


# Train mode


def modes_in_training(made):
    """Returns a list that grows by the modes of model and dropout in each iteration."""
    seen, dropout = [], made.model[2]

    def note(model, args):
        if torch.is_grad_enabled():
            seen.append((model.training, dropout.training))

    made.model.register_forward_pre_hook(note)
    return seen


@pytest.mark.parametrize("event", [Events.EPOCH_COMPLETED, Events.ITERATION_COMPLETED])
def test_training_is_in_train_mode_after_an_evaluator(side, event):
    made = side.supervised()
    seen = modes_in_training(made)
    evaluator = create_supervised_evaluator(made.model)  # leaves the model in eval mode
    made.engine.add_event_handler(event, lambda: evaluator.run(batches_of(1)))
    made.engine.run(batches_of(2), max_epochs=2)
    assert seen == [(True, True)] * 4


def test_a_submodule_frozen_in_eval_mode(side):
    made = side.supervised()
    made.model[2].eval()
    seen = modes_in_training(made)
    made.engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: made.model.eval())
    made.engine.run(batches_of(2), max_epochs=2)
    is_awake = side.departs("frozen submodules stay in eval mode", ignite=True, ours=False)
    assert seen == [(True, is_awake)] * 4


# EMAHandler


def averages(momentum, every):
    """Returns the averaged weights after four plain SGD steps."""
    model = make_model(0.0)
    optimizer, averaged = torch.optim.SGD(model.parameters(), lr=0.1), weights(model)
    for number, (x, y) in enumerate(batches_of(4), start=1):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        if number % every == 0:
            averaged = (1 - momentum) * averaged + momentum * weights(model)
    return averaged


@pytest.mark.parametrize("every", [1, 2])
def test_averaged_weights(side, every):
    made = side.supervised()
    ema = EMAHandler(made.model, momentum=0.25)
    ema.attach(made.engine, name="momentum", event=Events.ITERATION_COMPLETED(every=every))
    made.engine.run(batches_of(4))
    assert torch.allclose(weights(ema.ema_model), averages(0.25, every), atol=1e-6)
    assert made.engine.state.momentum == 0.25
    assert not any(parameter.requires_grad for parameter in ema.ema_model.parameters())


def test_the_momentum_of_averages_warms_up(side):
    made, seen = side.supervised(), []
    ema = EMAHandler(made.model, momentum=0.1, momentum_warmup=0.5, warmup_iters=3)
    ema.attach(made.engine)
    made.engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.ema_momentum)
    )
    made.engine.run(batches_of(4))
    assert seen == pytest.approx([0.5, 0.3, 0.1, 0.1])


def test_averaged_weights_by_step():
    made = Side("trainer").supervised(accumulation=2)
    ema = EMAHandler(made.model, momentum=0.25)
    ema.attach(made.engine, event=TrainEvents.STEP_COMPLETED)
    averaged = [weights(made.model)]

    @made.engine.on(TrainEvents.STEP_COMPLETED)
    def average(engine):
        averaged.append(0.75 * averaged[-1] + 0.25 * weights(made.model))

    made.engine.run(batches_of(6))
    assert len(averaged) == 4
    assert torch.allclose(weights(ema.ema_model), averaged[-1], atol=1e-7)
