import gc
import sys
import time
import warnings
from contextlib import suppress
from unittest import mock

import pytest
import torch
from accelerate.state import GradientState
from ignite.engine import Engine
from ignite.engine import Events
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks.core import engine
from ignite_hooks.trainer import loop
from ignite_hooks.trainer import run_position
from ignite_hooks.trainer.loop import DueList
from ignite_hooks.trainer.loop import RequestFlag
from tests.ids import stable_id
from tests.reference import NO_DATA
from tests.reference import WITHIN_THE_DATA
from tests.reference import Repeatable
from tests.reference import assert_clean
from tests.reference import augmented
from tests.reference import batches_of
from tests.reference import make_trainer
from tests.reference import position
from tests.reference import record
from tests.reference import samples
from tests.reference import seed
from tests.reference import shuffled
from tests.reference import trained
from tests.reference import weights
from tests.versions import needs

DATA = {"list": lambda: batches_of(5), "shuffled": shuffled}


# Ignite's own events


def at(event, callback):
    """Returns a function that attaches ``callback`` to ``event`` of an engine."""
    return lambda engine: engine.add_event_handler(event, callback)


SAME_AS_IGNITE = {
    "one epoch": (None, {}),
    "three epochs": (None, {"max_epochs": 3}),
    "iterations to the end of an epoch": (None, {"max_iters": 8}),
    "iterations to the middle of an epoch": (None, {"max_iters": 6}),
    "short epochs": (None, {"epoch_length": 3, "max_epochs": 3}),
    "long epochs": (None, {"epoch_length": 6, "max_epochs": 2}),
    "very long epochs": (None, {"epoch_length": 11, "max_epochs": 2}),
    "terminate at the start": (at(Events.STARTED, Engine.terminate), {}),
    "terminate at the start of an epoch": (
        at(Events.EPOCH_STARTED(once=2), Engine.terminate),
        {"max_epochs": 3},
    ),
    "terminate when data is asked for": (
        at(Events.GET_BATCH_STARTED(once=3), Engine.terminate),
        {"max_epochs": 3},
    ),
    "terminate when data is there": (
        at(Events.GET_BATCH_COMPLETED(once=3), Engine.terminate),
        {"max_epochs": 3},
    ),
    "terminate before an iteration": (
        at(Events.ITERATION_STARTED(once=6), Engine.terminate),
        {"max_epochs": 3},
    ),
    "terminate after an iteration": (
        at(Events.ITERATION_COMPLETED(once=6), Engine.terminate),
        {"max_epochs": 3},
    ),
    "terminate after an epoch": (
        at(Events.EPOCH_COMPLETED(once=2), Engine.terminate),
        {"max_epochs": 3},
    ),
    "terminate after the last epoch": (
        at(Events.EPOCH_COMPLETED(once=2), Engine.terminate),
        {"max_epochs": 2},
    ),
    "terminate and skip COMPLETED": (
        at(Events.ITERATION_COMPLETED(once=6), lambda engine: engine.terminate(True)),
        {"max_epochs": 3},
    ),
    "terminate at the end": (at(Events.COMPLETED, Engine.terminate), {"max_epochs": 2}),
    "end an epoch when data is there": (
        at(Events.GET_BATCH_COMPLETED(once=2), Engine.terminate_epoch),
        {"max_epochs": 3},
    ),
    "end an epoch before an iteration": (
        at(Events.ITERATION_STARTED(once=2), Engine.terminate_epoch),
        {"max_epochs": 3},
    ),
    "end an epoch after an iteration": (
        at(Events.ITERATION_COMPLETED(once=6), Engine.terminate_epoch),
        {"max_epochs": 3},
    ),
    "end an epoch after its last iteration": (
        at(Events.ITERATION_COMPLETED(once=4), Engine.terminate_epoch),
        {"max_epochs": 2},
    ),
    "end an epoch and skip EPOCH_COMPLETED": (
        at(Events.ITERATION_COMPLETED(once=2), lambda engine: engine.terminate_epoch(True)),
        {"max_epochs": 3},
    ),
    "end an epoch that is complete": (
        at(Events.EPOCH_COMPLETED(once=1), Engine.terminate_epoch),
        {"max_epochs": 2},
    ),
    "end every epoch": (
        at(Events.ITERATION_COMPLETED(every=2), Engine.terminate_epoch),
        {"max_epochs": 3},
    ),
    "other data of the same length": (
        at(Events.ITERATION_COMPLETED(once=2), lambda engine: engine.set_data(batches_of(4))),
        {"max_epochs": 2, "epoch_length": 4},
    ),
    "shorter data": (
        at(Events.ITERATION_COMPLETED(once=2), lambda engine: engine.set_data(batches_of(2))),
        {"max_epochs": 2, "epoch_length": 4},
    ),
    "longer data": (
        at(Events.ITERATION_COMPLETED(once=2), lambda engine: engine.set_data(batches_of(9))),
        {"max_epochs": 2, "epoch_length": 4},
    ),
}


@needs("pytorch-ignite>=0.5.5")
@pytest.mark.parametrize(("prepare", "limits"), SAME_AS_IGNITE.values(), ids=SAME_AS_IGNITE.keys())
@pytest.mark.parametrize("accumulation", [1, 3])
def test_ignites_events_fire_where_ignite_fires_them(prepare, limits, accumulation):
    engine = Engine(lambda engine, batch: None)
    trainer = make_trainer(accumulation=accumulation)
    seen = {}
    for each in (engine, trainer):
        seen[each] = record(each, WITHIN_THE_DATA)
        if prepare is not None:
            prepare(each)
        each.run(batches_of(4), **limits)
    assert seen[trainer] == seen[engine]
    assert trainer.state.epoch == engine.state.epoch
    if not engine.should_terminate:  # a stop drops the open window
        assert trainer.state.iteration == engine.state.iteration


@pytest.mark.parametrize("event", [Events.STARTED, Events.EPOCH_STARTED])
def test_terminate_epoch_before_an_epoch_is_an_error(event):
    trainer = make_trainer(batches_of(4))
    trainer.add_event_handler(event, Engine.terminate_epoch)
    with pytest.raises(RuntimeError, match="call it at ITERATION_STARTED"):
        trainer.run()
    assert_clean(trainer)


def test_length_of_terminated_epoch_is_not_the_data_length():
    trainer = make_trainer()
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), Engine.terminate_epoch)
    lengths = []
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: lengths.append(engine.state.epoch_length)
    )
    trainer.run(Repeatable(batches_of(5)), max_epochs=2)
    assert lengths == [None, 5]


def test_the_times_of_epochs_and_run_are_in_the_state():
    trainer = make_trainer(batches_of(3))
    trainer.run()
    assert trainer.state.times["COMPLETED"] >= trainer.state.times["EPOCH_COMPLETED"] > 0


def test_times_include_the_handlers_of_their_events(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    trainer, within = make_trainer(batches_of(2)), {}

    @trainer.on(Events.EPOCH_COMPLETED | Events.COMPLETED)
    def note(engine):
        name = engine.last_event_name.name
        within[name] = engine.state.times[name]

    trainer.run()
    assert len(within) == 2
    for name, seconds in within.items():
        assert 0 < seconds < trainer.state.times[name]


# Failures


class Failure(Exception):
    pass


def fail_once(error, when=lambda *args: True):
    """A function that raises ``error`` the first time ``when`` says so."""
    done = []

    def fail(*args):
        if not done and when(*args):
            done.append(True)
            raise error

    return fail


def assert_leaves_unchanged(trainer, error, **limits):
    with pytest.raises(type(error)) as caught:
        trainer.run(**limits)
    assert caught.value is error
    assert trainer.stop_reason == "exception"
    assert_clean(trainer)


class FailingAt(torch.nn.Module):
    """A module that calls ``callback`` in its forward, or in its backward."""

    def __init__(self, callback, in_backward):
        super().__init__()
        self.callback, self.in_backward = callback, in_backward

    def forward(self, x):
        if not self.in_backward:
            self.callback()
        elif torch.is_grad_enabled():
            x = x * 1
            x.register_hook(lambda grad: self.callback())
        return x


ERRORS = [Failure("broken"), KeyboardInterrupt(), SystemExit(3), OSError(28, "full")]


def trainer_that_fails(place, error, number, accumulation, data):
    """A trainer that raises ``error`` once, in batch ``number``, counted from 1, at ``place``."""
    batches = []
    fail = fail_once(error, lambda *args: len(batches) == number)
    options = {"accumulation": accumulation}
    if place == "loss":

        def loss_fn(y_pred, y):
            fail()
            return torch.nn.functional.mse_loss(y_pred, y)

        options["loss_fn"] = loss_fn
    seed()
    trainer = make_trainer(data, **options)
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: batches.append(1))
    if place in ("forward", "backward"):
        trainer.model.append(FailingAt(fail, place == "backward"))
    elif place != "loss":
        trainer.add_event_handler(place, fail)
    return trainer


def assert_no_more_happens_after(trainer, error, **limits):
    """Nothing that changes anything happens between the failure and the end of ``run``."""
    failed_with = []
    after = []
    trainer.add_event_handler(Events.EXCEPTION_RAISED, rethrow(failed_with))
    for event in (
        Events.ITERATION_COMPLETED,
        Events.EPOCH_COMPLETED,
        Events.COMPLETED,
        Events.TERMINATE,
        *TrainEvents,
    ):
        trainer.add_event_handler(
            event, lambda engine, name=event.name: after.append(name) if failed_with else None
        )
    assert_leaves_unchanged(trainer, error, **limits)
    assert failed_with == [error]
    assert after == []


def rethrow(seen):
    def handler(engine, error):
        seen.append(error)
        raise error

    return handler


@pytest.mark.grid(7)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "place",
    [
        "forward",
        "backward",
        "loss",
        Events.STARTED,
        Events.EPOCH_STARTED,
        Events.GET_BATCH_STARTED,
        Events.GET_BATCH_COMPLETED,
        Events.ITERATION_STARTED,
        Events.ITERATION_COMPLETED,
        Events.EPOCH_COMPLETED,
        Events.COMPLETED,
        *(event for event in TrainEvents if event is not TrainEvents.CHECKPOINT_SAVED),
    ],
    ids=lambda place: getattr(place, "name", place),
)
def test_failure_leaves_run_unchanged_without_side_effects(place, error):
    validation = Validation(lambda: None, every_steps=1, every_epochs=1, at_start=True)
    trainer = make_trainer(batches_of(4), accumulation=2, validation=validation)
    if place == "loss":
        trainer = make_trainer(batches_of(4), accumulation=2, loss_fn=fail_once(error))
    elif place in ("forward", "backward"):
        trainer.model.append(FailingAt(fail_once(error), place == "backward"))
    else:
        trainer.add_event_handler(place, fail_once(error))
    before = weights(trainer.model)
    assert_no_more_happens_after(trainer, error)
    steps = trainer.state.optimizer_step
    assert torch.equal(weights(trainer.model), before) == (steps == 0)
    after = weights(trainer.model)
    gc.collect()
    assert torch.equal(weights(trainer.model), after)


@pytest.mark.parametrize(
    ("place", "steps"),
    [
        ("forward", 1),
        ("backward", 1),
        (TrainEvents.OPTIMIZER_STEP_STARTED, 1),
        (TrainEvents.OPTIMIZER_STEP_COMPLETED, 2),
        (TrainEvents.STEP_COMPLETED, 2),
        (Events.ITERATION_COMPLETED, 2),
    ],
    ids=stable_id,
)
def test_a_failure_rolls_back_to_the_last_step_boundary(place, steps):
    error = Failure()
    trainer = trainer_that_fails(place, error, 4, 2, batches_of(5))
    assert_leaves_unchanged(trainer, error)
    assert trainer.state.optimizer_step == steps
    assert trainer.state.iteration == 2 * steps
    assert trainer.feed.position == (0, 2 * steps)


PLACES = [
    "forward",
    "backward",
    "loss",
    Events.ITERATION_STARTED,
    Events.ITERATION_COMPLETED,
    TrainEvents.OPTIMIZER_STEP_STARTED,
    TrainEvents.OPTIMIZER_STEP_COMPLETED,
    TrainEvents.STEP_COMPLETED,
]


@pytest.mark.grid(3)
@pytest.mark.parametrize("make_data", DATA.values(), ids=DATA)
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: getattr(place, "name", place))
def test_failure_in_any_batch_does_not_change_final_weights(place, accumulation, make_data):
    expected, unbroken = trained(make_data, accumulation=accumulation)
    failed = 0
    for number in range(1, 11):
        error = Failure(number)
        trainer = trainer_that_fails(place, error, number, accumulation, make_data())
        with suppress(Failure):
            trainer.run(max_epochs=2)
        if trainer.stop_reason == "exception":
            failed += 1
            assert_clean(trainer)
            trainer.run()
        assert torch.equal(weights(trainer.model), expected)
        assert trainer.place.progress == unbroken.place.progress
        assert trainer.state.optimizer_step == unbroken.state.optimizer_step
        assert trainer.state.epoch == unbroken.state.epoch
        assert trainer.stop_reason == "max_epochs"
    assert failed == (10 if accumulation == 1 or not is_of_step(place) else 4)


def is_of_step(place):
    return str(getattr(place, "name", "")).startswith(("OPTIMIZER", "STEP"))


@pytest.mark.grid(3)
@pytest.mark.parametrize("make_data", DATA.values(), ids=DATA)
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(
    "event",
    [
        Events.STARTED,
        Events.EPOCH_STARTED,
        Events.GET_BATCH_STARTED,
        Events.GET_BATCH_COMPLETED,
        Events.EPOCH_COMPLETED,
    ],
    ids=lambda event: event.name,
)
def test_failure_between_batches_does_not_change_final_weights(event, accumulation, make_data):
    expected, unbroken = trained(make_data, accumulation=accumulation)
    count = []
    record_all = make_trainer(make_data(), accumulation=accumulation)
    record_all.add_event_handler(event, lambda: count.append(1))
    record_all.run(max_epochs=2)
    for number in range(1, len(count) + 1):
        times = []
        fail = fail_once(KeyboardInterrupt(), lambda *args: len(times) == number)  # noqa: B023
        seed()
        trainer = make_trainer(make_data(), accumulation=accumulation)
        trainer.add_event_handler(event, times.append, 1)
        trainer.add_event_handler(event, fail)
        with pytest.raises(KeyboardInterrupt):
            trainer.run(max_epochs=2)
        assert_clean(trainer)
        if trainer.place.progress != unbroken.place.progress:
            trainer.run()
        assert torch.equal(weights(trainer.model), expected)
        assert trainer.place.progress == unbroken.place.progress


class Broken(TensorDataset):
    """A data set that fails once, at its n-th sample, counted from 1."""

    def __init__(self, size, number, error):
        super().__init__(*samples(size).tensors)
        self.number, self.error, self.given = number, error, 0

    def __getitem__(self, index):
        self.given += 1
        if self.given == self.number:
            raise self.error
        return super().__getitem__(index)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("error", [Failure("bad sample"), KeyboardInterrupt()], ids=stable_id)
def test_a_failure_in_the_data_set_loses_no_batch(accumulation, error):
    expected, unbroken = trained(shuffled, accumulation=accumulation)
    for number in range(1, 21):
        seed()
        loader = DataLoader(Broken(10, number, error), batch_size=2, shuffle=True)
        trainer = make_trainer(loader, accumulation=accumulation)
        assert_leaves_unchanged(trainer, error, max_epochs=2)
        trainer.run()
        assert torch.equal(weights(trainer.model), expected)
        assert trainer.place.progress == unbroken.place.progress


def test_failure_after_failure_ends_in_the_same_weights():
    expected, _ = trained(shuffled, accumulation=2)
    seed()
    trainer = make_trainer(shuffled(), accumulation=2)
    failures = iter(range(100))

    @trainer.on(Events.ITERATION_COMPLETED)
    def fail_every_other_time():
        if next(failures) % 2:
            raise Failure

    for _ in range(30):
        try:
            trainer.run(max_epochs=2)
        except Failure:
            continue
        break
    assert trainer.stop_reason == "max_epochs"
    assert torch.equal(weights(trainer.model), expected)


def test_a_generator_that_cannot_repeat_batches_is_an_error():
    batches = batches_of(6)
    trainer, order = make_trainer(accumulation=3), []
    trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: order.append(position(batches, engine.state.batch))
    )
    trainer.add_event_handler(Events.ITERATION_STARTED(once=5), fail_once(Failure()))
    with (
        pytest.warns(UserWarning, match="an iterator, which cannot give the last 2 batches again"),
        pytest.raises(Failure),
    ):
        trainer.run((batch for batch in batches), max_epochs=1)
    trainer.run()
    assert order == [0, 1, 2, 3, 4, 5]
    assert trainer.stop_reason == "max_epochs"


def test_a_generator_that_stops_at_a_step_boundary_loses_nothing():
    expected, _ = trained(lambda: batches_of(6), epochs=1, accumulation=2)
    trainer = make_trainer(accumulation=2)
    trainer.run((batch for batch in batches_of(6)), max_epochs=1, max_steps=1)
    trainer.run(max_steps=9)
    assert torch.equal(weights(trainer.model), expected)


@pytest.mark.parametrize("number", [2, 4])
def test_validation_due_at_a_failure_comes_first_in_the_next_run(number):
    validation = Validation(lambda: None, every_steps=1)
    trainer, validated = make_trainer(batches_of(4), validation=validation), []
    trainer.add_event_handler(
        TrainEvents.VALIDATION_STARTED, lambda engine: validated.append(engine.state.iteration)
    )
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, fail_once(Failure(), lambda e: e.state.iteration == number)
    )
    with pytest.raises(Failure):
        trainer.run(max_epochs=2)
    trainer.run()
    assert validated == [*range(1, 9)]


def test_new_data_after_a_stop_starts_over_even_if_it_fails():
    new = batches_of(4)
    trainer, order = make_trainer(), []
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), Engine.terminate)
    trainer.run(batches_of(4))
    trainer.add_event_handler(Events.GET_BATCH_COMPLETED, fail_once(Failure()))
    with pytest.raises(Failure):
        trainer.run(new)
    trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: order.append(position(new, engine.state.batch))
    )
    trainer.run()
    assert order == [0, 1, 2, 3]


@pytest.mark.parametrize("leave", [Engine.terminate, lambda engine: 1 / 0], ids=["stop", "failure"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_data_set_just_before_the_run_ends_starts_over(leave, accumulation):
    new, order = batches_of(6), []
    trainer = make_trainer(batches_of(6), accumulation=accumulation)

    def set_data_and_leave(engine):
        engine.set_data(new)
        leave(engine)

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), set_data_and_leave)
    with suppress(ZeroDivisionError):
        trainer.run()
    trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: order.append(position(new, engine.state.batch))
    )
    trainer.run()
    assert order == [0, 1, 2, 3, 4, 5]  # the epoch ends with the pass over them


# EXCEPTION_RAISED


@pytest.mark.parametrize(
    "event", [Events.STARTED, Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED, Events.COMPLETED]
)
def test_exception_raised_handler_is_called_once_and_ends_run(event):
    error, seen = Failure(), []
    trainer = make_trainer(batches_of(3))
    trainer.add_event_handler(event, fail_once(error))
    names = record(trainer, [Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED])
    trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: seen.append(error))
    state = trainer.run(max_epochs=2)
    assert state is trainer.state
    assert seen == [error]
    assert trainer.stop_reason == "exception"
    fired_before = {
        "STARTED": [],
        "ITERATION_COMPLETED": ["EPOCH_STARTED"],
        "EPOCH_COMPLETED": ["EPOCH_STARTED"],
        "COMPLETED": [*["EPOCH_STARTED", "EPOCH_COMPLETED"] * 2],
    }
    assert [name for name, *_ in names] == fired_before[event.name]
    assert_clean(trainer)


def test_reraising_exception_handler_passes_the_same_object():
    error, seen = Failure(), []
    trainer = make_trainer(batches_of(3))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, fail_once(error))
    trainer.add_event_handler(Events.EXCEPTION_RAISED, rethrow(seen))
    assert_leaves_unchanged(trainer, error)
    assert seen == [error]


def test_a_handler_of_exception_raised_may_raise_another():
    error, other = Failure(), OSError("log")
    trainer = make_trainer(batches_of(3))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, fail_once(error))

    @trainer.on(Events.EXCEPTION_RAISED)
    def fail(engine, error):
        raise other

    assert_leaves_unchanged(trainer, other)
    assert other.__context__ is error


def test_exception_raised_fires_inside_the_open_scopes():
    trainer = make_trainer(batches_of(4), accumulation=2)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), fail_once(Failure()))
    seen = []

    @trainer.on(Events.EXCEPTION_RAISED)
    def look(engine, error):
        seen.append((engine.state.iteration, engine.state.batch is not None))
        seen.append(any(p.grad is not None for p in engine.model.parameters()))

    trainer.run()
    assert seen == [(3, True), True]
    assert trainer.state.iteration == 2


def test_a_removed_exception_handler_handles_nothing():
    error = Failure()
    trainer = make_trainer(batches_of(3))
    trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: None).remove()
    trainer.add_event_handler(Events.ITERATION_COMPLETED, fail_once(error))
    assert_leaves_unchanged(trainer, error)


def test_training_continues_after_a_handled_failure():
    expected, _ = trained(shuffled)
    seed()
    trainer = make_trainer(shuffled())
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), fail_once(Failure()))
    trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: None)
    trainer.run(max_epochs=2)
    trainer.run()
    assert trainer.stop_reason == "max_epochs"
    assert torch.equal(weights(trainer.model), expected)


# Stops


@pytest.mark.grid(3)
@pytest.mark.parametrize("make_data", DATA.values(), ids=DATA)
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(
    "event",
    [
        Events.GET_BATCH_COMPLETED,
        Events.ITERATION_STARTED,
        TrainEvents.MODEL_BACKWARD_COMPLETED,
        Events.ITERATION_COMPLETED,
    ],
    ids=lambda event: event.name,
)
def test_stop_at_any_batch_does_not_change_final_weights(event, accumulation, make_data):
    expected, unbroken = trained(make_data, accumulation=accumulation)
    for number in range(1, 11):
        seed()
        trainer = make_trainer(make_data(), accumulation=accumulation)
        times = []
        trainer.add_event_handler(event, times.append, 1)
        trainer.add_event_handler(
            event,
            lambda engine: engine.terminate() if len(times) == number else None,  # noqa: B023
        )
        trainer.run(max_epochs=2)
        assert trainer.stop_reason == "terminate"
        assert_clean(trainer)
        if trainer.state.iteration < 10:
            trainer.run()
            assert trainer.stop_reason == "max_epochs"
        assert torch.equal(weights(trainer.model), expected)
        assert trainer.place.progress == unbroken.place.progress


@pytest.mark.parametrize("accumulation", [1, 3])
def test_stop_at_a_step_boundary_is_exact_despite_randomness(accumulation):
    expected, unbroken = trained(augmented, accumulation=accumulation, dropout=0.5)
    for number in range(1, unbroken.state.optimizer_step + 1):
        seed()
        trainer = make_trainer(augmented(), accumulation=accumulation, dropout=0.5)
        trainer.add_event_handler(
            TrainEvents.OPTIMIZER_STEP_COMPLETED(once=number), Engine.terminate
        )
        trainer.run(max_epochs=2)
        assert trainer.state.optimizer_step == number
        if number < unbroken.state.optimizer_step:
            trainer.run()
        assert torch.equal(weights(trainer.model), expected)


@pytest.mark.parametrize("event", [Events.STARTED, Events.EPOCH_STARTED, Events.EPOCH_COMPLETED])
def test_a_stop_between_epochs_changes_no_bit(event):
    expected, _ = trained(augmented, dropout=0.5)
    seed()
    trainer = make_trainer(augmented(), dropout=0.5)
    handler = trainer.add_event_handler(event, Engine.terminate)
    trainer.run(max_epochs=2)
    handler.remove()
    trainer.run()
    assert torch.equal(weights(trainer.model), expected)


# Handlers that come and go


def test_handler_removing_itself_skips_no_other():
    trainer, calls = make_trainer(batches_of(2)), []

    def first():
        calls.append("first")
        handle.remove()

    handle = trainer.add_event_handler(TrainEvents.STEP_COMPLETED, first)
    trainer.add_event_handler(TrainEvents.STEP_COMPLETED, lambda: calls.append("second"))
    trainer.run()
    assert calls == ["first", "second", "second"]


NEEDS_ARGUMENTS = (Events.EXCEPTION_RAISED, Events.TERMINATE_SINGLE_EPOCH)


@pytest.mark.parametrize(
    "event",
    [event for event in (*Events, *TrainEvents) if event not in NEEDS_ARGUMENTS],
    ids=lambda event: event.name,
)
def test_handlers_changed_while_firing_keep_the_others_turns(event):
    trainer = make_trainer()
    calls = []

    def leave(*args):
        calls.append("leave")
        leaving.remove()
        if later.handler() is not None and trainer.has_event_handler(last):
            later.remove()

    def come(*args):
        calls.append("come")
        trainer.add_event_handler(event, lambda *args: calls.append("new"))

    def last(*args):
        calls.append("last")

    leaving = trainer.add_event_handler(event, leave)
    coming = trainer.add_event_handler(event, come)
    later = trainer.add_event_handler(event, last)
    trainer._fire(event)
    assert calls == ["leave", "come", "last", "new"]
    coming.remove()
    trainer._fire(event)
    assert calls == ["leave", "come", "last", "new", "new"]


@pytest.mark.parametrize("event", [Events.STARTED, TrainEvents.STEP_COMPLETED])
def test_handler_added_while_firing_is_called_last_and_from_then_on(event):
    trainer, calls = make_trainer(), []

    def come():
        calls.append("come")
        trainer.add_event_handler(event, lambda: calls.append("new"))

    coming = trainer.add_event_handler(event, come)
    trainer.fire_event(event)
    assert calls == ["come", "new"]
    coming.remove()
    trainer.fire_event(event)
    assert calls == ["come", "new", "new"]


# Interruption and Ctrl-C


def test_a_failure_after_an_interruption_unwinds_as_any():
    expected, _ = trained(shuffled, accumulation=3)
    seed()
    trainer = make_trainer(shuffled(), accumulation=3)
    error = Failure()
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), trainer.interrupt)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), fail_once(error))
    trainer.run(max_epochs=2)
    assert_leaves_unchanged(trainer, error)
    trainer.run()
    assert torch.equal(weights(trainer.model), expected)


class InterruptAt:
    """Raises KeyboardInterrupt before the n-th line that is run in some files."""

    def __init__(self, number, files):
        self.left, self.files = number, files

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.trace)

    def __exit__(self, *failure):
        sys.settrace(self.before)

    def trace(self, frame, event, argument):
        if frame.f_code.co_filename not in self.files:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self.trace


@pytest.mark.exhaustive
def test_ctrl_c_between_any_two_lines_loses_no_batch():
    def in_order():
        return DataLoader(samples(4), batch_size=2)

    expected, unbroken = trained(in_order, accumulation=2)
    files = {module.__file__ for module in (loop, run_position)}
    lines, wrong = 0, []
    while not wrong or wrong[-1] != "the end":
        lines += 1
        trainer = make_trainer(in_order(), accumulation=2)
        interrupt = InterruptAt(lines, files)
        with suppress(KeyboardInterrupt), interrupt:
            trainer.run(max_epochs=2)
        if trainer.place.progress.epochs < 2:
            trainer.run(max_epochs=2)
        same = torch.equal(weights(trainer.model), expected)
        if not same or trainer.place.progress != unbroken.place.progress:
            wrong.append(lines)
        if interrupt.left > 0:
            wrong.append("the end")
    assert lines > 100
    assert wrong == ["the end"]


# Batches, data that ends, stops and interruptions


# Batches, and data that ends


@needs("pytorch-ignite>=0.5.5")
@pytest.mark.parametrize(
    "limits",
    [
        {"max_epochs": 3},
        {"max_iters": 8},
        {"max_epochs": 2, "epoch_length": 3},
        {"max_epochs": 2, "epoch_length": 6},
        {"max_epochs": 2, "epoch_length": 9},
    ],
    ids=stable_id,
)
def test_the_end_of_the_data_is_fired_where_ignite_fires_it(limits):
    engine = Engine(lambda engine, batch: None)
    trainer = make_trainer()
    seen = {each: record(each, Events) for each in (engine, trainer)}
    for each in seen:
        each.run(batches_of(4), **limits)
    assert seen[trainer] == seen[engine]


@pytest.mark.parametrize("epoch_length", [2, 3, 5])
def test_new_data_at_exhaustion_is_used_as_in_ignite(epoch_length):
    batches = [batches_of(3) for _ in range(9)]
    known = [batch for each in batches for batch in each]
    engine = Engine(lambda engine, batch: None)
    trainer = make_trainer()
    seen = {}
    for each in (engine, trainer):
        data, order = iter(batches), []

        @each.on(Events.DATALOADER_STOP_ITERATION)
        def set_next(engine, data=data):
            engine.set_data(iter(next(data)))

        @each.on(Events.ITERATION_STARTED)
        def note(engine, order=order):
            order.append(position(known, engine.state.batch))

        each.run(iter(next(data)), max_epochs=3, epoch_length=epoch_length)
        seen[each] = order
    assert seen[trainer] == seen[engine]


@needs("pytorch-ignite>=0.5.5")
@pytest.mark.parametrize("limits", [{}, {"max_epochs": 3}, {"max_iters": 5}])
def test_without_data_the_events_are_those_of_ignite(limits):
    engine = Engine(lambda engine, batch: None)
    trainer = make_trainer(**NO_DATA)
    seen = {each: record(each, Events) for each in (engine, trainer)}
    for each in seen:
        each.run(epoch_length=3, **limits)
        assert each.state.batch is None
    assert seen[trainer] == seen[engine]
    assert trainer.state.dataloader is None


def test_a_run_without_data_continues_in_mid_epoch():
    trainer = make_trainer(**NO_DATA)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), Engine.terminate)
    trainer.run(epoch_length=4, max_epochs=2)
    trainer.run()
    assert (trainer.state.iteration, trainer.state.epoch) == (8, 2)


def test_stop_iteration_of_a_handler_is_not_the_end_of_data():
    trainer = make_trainer(batches_of(3))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: next(iter(())))
    with pytest.raises((StopIteration, RuntimeError)):
        trainer.run()
    assert trainer.state.iteration == 2


# An epoch that is ended


def test_terminate_single_epoch_handlers_get_the_batch_count():
    trainer = make_trainer(batches_of(4))
    batch_counts = []
    trainer.add_event_handler(
        Events.TERMINATE_SINGLE_EPOCH,
        lambda engine, iter_counter: batch_counts.append(iter_counter),
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=3), Engine.terminate_epoch)
    trainer.run(max_epochs=2)
    assert batch_counts == [3, 3]


def test_after_an_ended_epoch_the_next_pass_begins():
    batches = batches_of(4)
    trainer, order = make_trainer(batches), []
    trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: order.append(position(batches, engine.state.batch))
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), Engine.terminate_epoch)
    trainer.run(max_epochs=2)
    assert order == [0, 1, 0, 1, 2, 3]
    assert trainer.feed.position.data_pass == 2


def test_an_ended_epoch_drops_the_open_window():
    trainer = make_trainer(batches_of(5), accumulation=3)
    steps = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), Engine.terminate_epoch)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), Engine.terminate_epoch)

    @trainer.on(Events.EPOCH_COMPLETED)
    def look(engine):
        grads = [parameter.grad for parameter in engine.model.parameters()]
        steps.append((engine.state.optimizer_step, all(grad is None for grad in grads)))

    trainer.run(max_epochs=2)
    assert steps == [(1, True), (1, True)]


# Stops and limits


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("data", [batches_of(3), Repeatable(batches_of(3))], ids=["list", "stream"])
def test_a_stop_on_the_last_batch_lets_the_epoch_complete_first(skip, data):
    trainer = make_trainer(data)
    names = record(trainer, Events)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda e: e.terminate(skip))
    trainer.run(max_epochs=2)
    assert [name for name, *_ in names[-3:]] == (
        ["ITERATION_COMPLETED", "EPOCH_COMPLETED", "TERMINATE"]
        if skip
        else ["EPOCH_COMPLETED", "TERMINATE", "COMPLETED"]
    )
    assert (trainer.state.epoch, trainer.state.iteration) == (1, 3)
    del names[:]
    trainer.run()
    assert names[:2] == [("STARTED", 1, 3), ("EPOCH_STARTED", 2, 3)]
    assert names[-1] == ("COMPLETED", 2, 6)


def test_max_steps_on_the_last_batch_lets_the_epoch_complete_first():
    trainer = make_trainer(batches_of(3))
    names = record(trainer, Events)
    trainer.run(max_steps=3)
    assert [name for name, *_ in names[-3:]] == ["EPOCH_COMPLETED", "TERMINATE", "COMPLETED"]


def test_max_steps_in_mid_epoch_is_a_stop():
    trainer = make_trainer(batches_of(3))
    names = record(trainer, Events)
    trainer.run(max_steps=2)
    assert [name for name, *_ in names[-3:]] == ["ITERATION_COMPLETED", "TERMINATE", "COMPLETED"]


@pytest.mark.parametrize("event", [Events.GET_BATCH_STARTED, Events.ITERATION_STARTED])
def test_a_stop_before_the_last_batch_does_not_complete_the_epoch(event):
    trainer = make_trainer(batches_of(3))
    names = record(trainer, [Events.EPOCH_COMPLETED, Events.TERMINATE])
    handler = trainer.add_event_handler(
        event, lambda e: e.terminate() if e.state.optimizer_step == 2 else None
    )
    trainer.run()
    assert [name for name, *_ in names] == ["TERMINATE"]
    handler.remove()
    trainer.run()
    assert [name for name, *_ in names] == ["TERMINATE", "EPOCH_COMPLETED"]
    assert trainer.state.iteration == 3


def test_a_due_validation_comes_before_a_stop():
    validation = Validation(lambda: None, every_steps=1)
    trainer = make_trainer(batches_of(3), validation=validation)
    events = [Events.TERMINATE, TrainEvents.VALIDATION_COMPLETED, Events.EPOCH_COMPLETED]
    names = record(trainer, events)
    trainer.run(max_steps=2)
    assert [name for name, *_ in names] == [*["VALIDATION_COMPLETED"] * 2, "TERMINATE"]
    del names[:]
    trainer.run(max_steps=3)
    assert [name for name, *_ in names] == ["VALIDATION_COMPLETED", "EPOCH_COMPLETED", "TERMINATE"]


# Interruption


@pytest.mark.parametrize(
    "event",
    [
        Events.STARTED,
        Events.EPOCH_STARTED(once=2),
        Events.GET_BATCH_STARTED(once=3),
        Events.GET_BATCH_COMPLETED(once=3),
        Events.ITERATION_STARTED(once=3),
        Events.ITERATION_COMPLETED(once=3),
        Events.ITERATION_COMPLETED(once=4),
        Events.EPOCH_COMPLETED(once=1),
        Events.EPOCH_COMPLETED(once=2),
        Events.COMPLETED,
    ],
    ids=lambda event: f"{event.name}",
)
def test_interrupt_and_continue_work_as_in_ignite(event):
    engine = Engine(lambda engine, batch: None)
    trainer = make_trainer()
    seen = {}
    for each in (engine, trainer):
        seen[each] = record(each, WITHIN_THE_DATA)
        each.add_event_handler(event, Engine.interrupt)
        each.run(batches_of(4), max_epochs=2)
        seen[each].append("interrupted or completed")
        if event != Events.COMPLETED:
            each.run(batches_of(4), max_epochs=2)
    assert seen[trainer] == seen[engine]


@pytest.mark.parametrize("stop", [Engine.terminate, Engine.terminate_epoch])
def test_a_stop_while_interrupted_is_obeyed_as_in_ignite(stop):
    engine = Engine(lambda engine, batch: None)
    trainer = make_trainer()
    seen = {}
    for each in (engine, trainer):
        seen[each] = record(each, WITHIN_THE_DATA)
        each.add_event_handler(Events.ITERATION_COMPLETED(once=2), Engine.interrupt)
        each.run(batches_of(4), max_epochs=2)
        stop(each)
        each.run()
    assert seen[trainer] == seen[engine]


@pytest.mark.parametrize("make_data", [augmented, lambda: batches_of(5)], ids=["loader", "list"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_continued_run_equals_the_uninterrupted_one(accumulation, make_data):
    options = {"accumulation": accumulation, "dropout": 0.5}
    expected, unbroken = trained(make_data, **options)
    for number in range(1, 11):
        seed()
        trainer = make_trainer(make_data(), **options)
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=number), trainer.interrupt)
        trainer.run(max_epochs=2)
        assert trainer.state.iteration == number
        assert GradientState().dataloader_references == [None]
        is_open = any(parameter.grad is not None for parameter in trainer.model.parameters())
        assert is_open == (number % 5 not in ((0, 3) if accumulation == 3 else range(5)))
        trainer.run()
        assert torch.equal(weights(trainer.model), expected)
        assert trainer.place.progress == unbroken.place.progress
        assert_clean(trainer)


def test_while_interrupted_another_loader_may_be_iterated():
    def in_order():
        return DataLoader(samples(10), batch_size=2)

    expected, _ = trained(in_order, accumulation=3)
    trainer = make_trainer(in_order(), accumulation=3)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), trainer.interrupt)
    trainer.run(max_epochs=2)
    other = trainer.accelerator.prepare(DataLoader(samples(6), batch_size=2))
    for _ in other:
        break
    assert len(GradientState().dataloader_references) == 2
    trainer.run()
    assert torch.equal(weights(trainer.model), expected)
    other.end()


def test_other_data_while_interrupted_leaves_no_reference():
    trainer = make_trainer(shuffled())
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), trainer.interrupt)
    trainer.run(max_epochs=2)
    trainer.set_data(shuffled())
    trainer.run()
    assert trainer.state.iteration == 12  # two, and a pass over the new data: one epoch
    assert GradientState().dataloader_references == [None]


def test_interrupt_may_come_again_and_again():
    expected, _ = trained(shuffled, accumulation=2)
    seed()
    trainer = make_trainer(shuffled(), accumulation=2)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, trainer.interrupt)
    runs = 0
    trainer.run(max_epochs=2)
    while trainer.stop_reason is None:
        runs += 1
        assert trainer.state.iteration == runs
        trainer.run()
    assert runs == 10
    assert torch.equal(weights(trainer.model), expected)


def test_a_dropped_interrupted_trainer_leaves_nothing_behind():
    trainer = make_trainer(shuffled(), accumulation=3)
    model = trainer.model
    errors = []
    trainer.add_event_handler(Events.EXCEPTION_RAISED, errors.append)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), trainer.interrupt)
    trainer.run()
    assert any(parameter.grad is not None for parameter in model.parameters())
    with warnings.catch_warnings(record=True) as caught:
        del trainer
        gc.collect()
    assert caught == errors == []
    assert GradientState().dataloader_references == [None]
    assert all(parameter.grad is None for parameter in model.parameters())


# What is done at the end of a run


def noting_ends(trainer):
    """Returns a log of three events and of an end callback, and a function that removes it."""
    names = []
    for event in (Events.EPOCH_COMPLETED, Events.TERMINATE, Events.COMPLETED):
        trainer.add_event_handler(event, lambda engine, event=event: names.append(event.name))
    return names, trainer.call_at_end(lambda: names.append("end"))


@pytest.mark.parametrize(
    ("limits", "stop_at", "expected"),
    [
        ({"max_epochs": 1}, None, ["EPOCH_COMPLETED", "end", "COMPLETED"]),
        ({"max_steps": 2}, None, ["end", "TERMINATE", "COMPLETED"]),
        ({"max_steps": 3}, None, ["EPOCH_COMPLETED", "end", "TERMINATE", "COMPLETED"]),
        ({"max_iters": 4}, None, ["end", "TERMINATE", "COMPLETED"]),
        ({}, 4, ["end", "TERMINATE", "COMPLETED"]),
        ({}, 6, ["EPOCH_COMPLETED", "end", "TERMINATE", "COMPLETED"]),
        ({}, 3, ["TERMINATE", "COMPLETED"]),
    ],
    ids=stable_id,
)
def test_end_callbacks_run_once_at_a_step_boundary(limits, stop_at, expected):
    trainer = make_trainer(batches_of(6), accumulation=2)
    names, _ = noting_ends(trainer)
    if stop_at is not None:
        event = Events.ITERATION_COMPLETED(once=stop_at)
        trainer.add_event_handler(event, lambda: trainer.terminate())
    trainer.run(**limits)
    assert names == expected


def test_end_callbacks_come_after_deferred_ones_and_are_removable():
    trainer, names = make_trainer(batches_of(2)), []
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: trainer.defer(lambda: names.append("postponed"), 9)
    )
    undo = trainer.call_at_end(lambda: names.append("end"))
    trainer.run(max_epochs=2)
    assert names == ["postponed", "postponed", "end"]
    undo()
    trainer.run(max_epochs=3)
    assert names[3:] == ["postponed"]


def test_a_stop_from_a_deferred_callback_calls_end_callbacks():
    trainer = make_trainer(batches_of(4))
    names, _ = noting_ends(trainer)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda: trainer.defer(trainer.terminate)
    )
    trainer.run()
    assert names == ["end", "TERMINATE", "COMPLETED"]


def test_failure_and_interruption_call_no_end_callbacks():
    trainer = make_trainer(batches_of(4))
    names, _ = noting_ends(trainer)
    event = Events.ITERATION_COMPLETED(once=2)
    handle = trainer.add_event_handler(event, trainer.interrupt)
    trainer.run()
    handle.remove()
    assert names == []
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: next(iter(())))
    with pytest.raises((StopIteration, RuntimeError)):
        trainer.run()
    assert names == []


def test_is_leaving_epoch_from_terminate_epoch_to_completion():
    trainer, seen = make_trainer(batches_of(4)), []

    def look(event):
        seen.append((event, trainer.is_leaving_epoch))

    for event in (Events.EPOCH_STARTED, Events.ITERATION_STARTED, Events.ITERATION_COMPLETED):
        trainer.add_event_handler(event, lambda engine, event=event: look(event.name))
    stop = Events.ITERATION_COMPLETED(once=2)
    trainer.add_event_handler(stop, lambda: (trainer.terminate_epoch(), look("ended")))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: look("EPOCH_COMPLETED"))
    trainer.run(max_epochs=2, epoch_length=2)
    assert [each for each in seen if each[1]] == [("ended", True)]
    assert seen.count(("EPOCH_COMPLETED", False)) == 2


# Requests


FLAGS = ("should_terminate", "should_terminate_single_epoch", "should_interrupt")


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_is_clear_until_it_is_set_and_after_it_is_cleared(flag):
    trainer = make_trainer(batches_of(2))
    assert getattr(trainer, flag) is False
    setattr(trainer, flag, "a word")
    assert getattr(trainer, flag) == "a word"
    assert trainer._requests.active_flags == {flag: "a word"}
    for _ in range(2):
        setattr(trainer, flag, False)
        assert getattr(trainer, flag) is False
        assert not trainer._requests.active_flags


@pytest.mark.parametrize("flag", FLAGS)
def test_a_patched_flag_is_restored(flag):
    trainer = make_trainer(batches_of(2))
    with mock.patch.object(trainer, flag, True):
        assert trainer._requests.active_flags == {flag: True}
    assert getattr(trainer, flag) is False
    assert isinstance(getattr(type(trainer), flag), RequestFlag)


def test_flags_are_independent_of_each_other_and_other_engines():
    trainer, other = make_trainer(batches_of(2)), make_trainer(batches_of(2))
    trainer.terminate(skip_completed=True)
    trainer.interrupt()
    assert [getattr(trainer, flag) for flag in FLAGS] == ["skip_completed", False, True]
    assert [getattr(other, flag) for flag in FLAGS] == [False] * 3


@pytest.mark.parametrize(
    ("event", "steps"),
    [  # before the first batch is taken, `iteration` is still that of the batch before
        (Events.GET_BATCH_STARTED(once=3), 3),
        (Events.GET_BATCH_COMPLETED(once=3), 3),
        (Events.ITERATION_STARTED(once=3), 2),
        (Events.ITERATION_COMPLETED(once=3), 3),
    ],
)
def test_setting_should_terminate_ends_the_run_there(event, steps):
    trainer = make_trainer(batches_of(5))

    @trainer.on(event)
    def stop(engine):
        engine.should_terminate = True

    trainer.run()
    assert trainer.stop_reason == "terminate"
    assert (trainer.state.iteration, trainer.state.optimizer_step) == (steps, steps)


# What is due


def test_deferred_callbacks_are_called_by_turn_then_in_order():
    due, done = DueList(), []
    callbacks = [lambda name=name: done.append(name) for name in "abcd"]
    for callback, turn in zip(callbacks, (1, 0, 1, 0), strict=True):
        due.add(callback, turn)
    due.call()
    assert done == ["b", "d", "a", "c"]


def test_a_callback_deferred_twice_is_called_once():
    due, done = DueList(), []

    def callback():
        done.append(1)

    due.add(callback, 0)
    due.add(callback, 0)
    assert due.entries
    due.call()
    due.call()
    assert done == [1]
    assert not due.entries


def test_cancelled_callbacks_are_never_called():
    due = DueList()
    due.add(lambda: pytest.fail("done"), 0)
    due.clear()
    due.call()


def test_a_callback_that_defers_itself_waits_for_the_next_time():
    due, done = DueList(), []

    def callback():
        done.append(1)
        due.add(callback, 0)

    due.add(callback, 0)
    due.call()
    assert done == [1]
    due.call()
    assert done == [1, 1]


def test_callbacks_deferred_meanwhile_are_called_in_turn():
    due, done = DueList(), []

    def callback():
        done.append("first")
        due.add(lambda: done.append("third"), 3)
        due.add(lambda: done.append("before all"), -1)

    due.add(callback, 0)
    due.add(lambda: done.append("second"), 2)
    due.call()
    assert done == ["first", "before all", "second", "third"]


def test_a_failing_callback_stays_due_with_those_after_it():
    due, done = DueList(), []

    def fail_once():
        done.append("fails")
        if len(done) == 2:
            raise KeyError

    due.add(lambda: done.append("before"), 0)
    due.add(fail_once, 1)
    due.add(lambda: done.append("after"), 2)
    with pytest.raises(KeyError):
        due.call()
    assert done == ["before", "fails"]
    due.call()
    assert done == ["before", "fails", "fails", "after"]


# Counting, seen from handlers


@pytest.mark.parametrize(
    ("data", "limits", "expected"),
    [
        (list, {"max_epochs": 2}, [3, 2, 1, 3, 2, 1]),
        (list, {"epoch_length": 2}, [2, 1]),
        (list, {"epoch_length": 5}, [3, 2, 1, 2, 1]),
        (list, {"max_iters": 4}, [3, 2, 1, 1]),
        (Repeatable, {"max_epochs": 2}, [None, None, 1, None, None, 1]),
        (Repeatable, {"epoch_length": 2, "max_epochs": 2}, [2, 1, 1, 1]),
        (Repeatable, {"max_iters": 2}, [2, 1]),
    ],
)
def test_batches_left_follow_the_first_end_of_data_epoch_or_run(data, limits, expected):
    trainer, left = make_trainer(), []
    trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: left.append(engine.batches_left)
    )
    trainer.run(data(batches_of(3)), **limits)
    assert left == expected


@pytest.mark.parametrize(
    ("limits", "windows"),
    [
        ({"max_epochs": 1}, [3, 5]),
        ({"max_iters": 4}, [3, 4]),
        ({"max_iters": 7}, [3, 5, 7]),
        ({"epoch_length": 4, "max_epochs": 2}, [3, 4, 5, 8]),
        ({"epoch_length": 7}, [3, 5, 7]),
    ],
    ids=stable_id,
)
@pytest.mark.parametrize("data", [list, Repeatable], ids=["list", "stream"])
def test_window_closes_at_the_end_of_pass_epoch_or_run(limits, windows, data):
    trainer, steps = make_trainer(accumulation=3), []
    trainer.add_event_handler(
        TrainEvents.STEP_COMPLETED, lambda engine: steps.append(engine.state.iteration)
    )
    trainer.run(data(batches_of(5)), **limits)
    assert steps == windows


@pytest.mark.parametrize(
    ("accumulation", "number", "boundary"), [(2, 2, 2), (2, 3, 2), (3, 2, 0), (3, 5, 3)]
)
def test_batches_dropped_before_their_step_are_not_counted(accumulation, number, boundary):
    trainer = make_trainer(batches_of(6), accumulation=accumulation)
    stop = trainer.add_event_handler(Events.ITERATION_COMPLETED(once=number), Engine.terminate)
    trainer.run()
    stop.remove()
    assert trainer.state.iteration == trainer.feed.position.batches == boundary
    trainer.run()
    assert (trainer.state.iteration, trainer.state.optimizer_step) == (6, 6 / accumulation)


@pytest.mark.parametrize(
    "event",
    [Events.STARTED, Events.EPOCH_STARTED, Events.ITERATION_STARTED, Events.ITERATION_COMPLETED],
    ids=lambda event: event.name,
)
@pytest.mark.parametrize("value", [0, 1, 99, None])
def test_counters_that_a_handler_writes_to_the_state_do_not_steer(event, value):
    expected, unbroken = trained(shuffled, accumulation=2)
    names = ("iteration", "epoch", "optimizer_step")
    names += ("step_committed", "start_epoch", "start_step")

    def scribble(engine):
        for name in names:
            setattr(engine.state, name, value)

    seed()
    trainer = make_trainer(shuffled(), accumulation=2)
    trainer.add_event_handler(event, scribble)
    trainer.run(max_epochs=2)
    assert torch.equal(weights(trainer.model), expected)
    assert trainer.place.progress == unbroken.place.progress


@pytest.mark.parametrize("event", [Events.STARTED, Events.EPOCH_STARTED, Events.COMPLETED])
def test_max_epochs_is_derived_from_max_steps_alone(event):
    trainer, shown = make_trainer(batches_of(5), accumulation=2), []
    trainer.add_event_handler(event, lambda engine: shown.append(engine.state.max_epochs))
    trainer.run(max_steps=7)
    assert set(shown) == {3}


@pytest.mark.parametrize("accumulation", [1, 3, 4])
def test_max_epochs_from_max_steps_stays_the_same_within_an_epoch(accumulation):
    trainer = make_trainer(batches_of(4), accumulation=accumulation)
    steps_of_epoch = -(-4 // accumulation)
    seen = []
    trainer.add_event_handler(
        Events.ITERATION_STARTED | Events.ITERATION_COMPLETED | TrainEvents.STEP_COMPLETED,
        lambda engine: seen.append(engine.state.max_epochs),
    )
    trainer.run(max_steps=3 * steps_of_epoch)
    assert set(seen) == {3}


def test_a_given_max_epochs_is_shown_unchanged():
    trainer = make_trainer(batches_of(5), accumulation=2)
    trainer.run(max_steps=7, max_epochs=2)
    assert trainer.state.max_epochs == 2


def test_a_derived_max_epochs_does_not_limit_the_next_run():
    trainer = make_trainer(batches_of(5), accumulation=2)
    trainer.run(max_steps=7)
    trainer.run(max_steps=12)
    assert (trainer.state.optimizer_step, trainer.state.max_epochs) == (12, 4)


def test_with_a_stream_max_epochs_is_known_after_its_first_pass():
    trainer, shown = make_trainer(Repeatable(batches_of(5)), accumulation=2), []
    trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda engine: shown.append(engine.state.max_epochs)
    )
    trainer.run(max_steps=7)
    assert shown == [None, 3, 3]


def test_max_epochs_grows_when_steps_are_skipped():
    trainer, shown = make_trainer(batches_of(4)), []
    step = trainer.optimizer.optimizer.step
    calls = []

    def skip_some():
        calls.append(1)
        if len(calls) > 3:
            step()

    trainer._optimizer_step.prepared.calls_torch_directly = False
    trainer.optimizer.step = skip_some
    type_of = type(trainer.optimizer)
    skipped = property(lambda self: len(calls) <= 3)
    trainer.optimizer.__class__ = type("Skipping", (type_of,), {"step_was_skipped": skipped})
    trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda engine: shown.append(engine.state.max_epochs)
    )
    trainer.run(max_steps=8)
    assert shown == [2, 3, 3]
    state = trainer.state
    assert (state.epoch, state.iteration, state.optimizer_step) == (3, 11, 8)


def interrupted_within_an_iteration():
    seed()
    trainer = make_trainer(shuffled())
    handle = trainer.add_event_handler(Events.ITERATION_STARTED(once=3), trainer.interrupt)
    trainer.run(max_epochs=2)
    handle.remove()
    return trainer


@pytest.mark.parametrize("lines", range(1, 16))
def test_control_c_on_continuing_an_interruption_loses_nothing(lines):
    expected, unbroken = trained(shuffled)
    trainer = interrupted_within_an_iteration()
    with pytest.raises(KeyboardInterrupt), InterruptAt(lines, {engine.__file__}):
        trainer.run()
    trainer.run()
    assert torch.equal(weights(trainer.model), expected)
    assert trainer.place.progress == unbroken.place.progress
    assert_clean(trainer)


def test_arguments_refused_while_interrupted_lose_no_step():
    expected, unbroken = trained(shuffled)
    trainer = interrupted_within_an_iteration()
    with pytest.raises(ValueError, match="`max_steps` must be an integer"):
        trainer.run(max_steps=0)
    trainer.run()
    assert torch.equal(weights(trainer.model), expected)
    assert trainer.place.progress == unbroken.place.progress
