"""Limits: what each call of ``run`` does after another, and limits that handlers write."""

import copy
import re
import warnings
from contextlib import suppress
from functools import partial

import pytest
import torch
from ignite.engine import Engine
from ignite.engine import Events
from ignite.engine import State
from ignite.handlers import FastaiLRFinder

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks.core.place import Progress
from ignite_hooks.trainer.limits import Limits
from ignite_hooks.trainer.limits import ShownLimits
from tests.ids import stable_id
from tests.pages import ROOT
from tests.reference import assert_clean
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import record
from tests.reference import train_on_windows
from tests.reference import weights
from tests.versions import needs

# Limits as values


def test_limits_that_are_reached_are_left_out():
    limits = Limits(max_epochs=2, max_steps=7)
    assert limits.without_reached(Progress(epochs=2), 6) == Limits(max_steps=7)
    assert limits.without_reached(Progress(epochs=2), 7) == Limits()


def test_missing_limits_are_taken_from_the_earlier_ones():
    assert Limits(max_epochs=3) | Limits(max_epochs=2, max_steps=7) == Limits(
        max_epochs=3, max_steps=7
    )


@pytest.mark.parametrize(
    ("limits", "reached"),
    [
        (Limits(), None),
        (Limits(max_epochs=2), "max_epochs"),
        (Limits(max_epochs=3), None),
        (Limits(max_iters=10), "max_iters"),
        (Limits(max_iters=11), None),
        (Limits(max_steps=5), "max_steps"),
        (Limits(max_steps=6), None),
        (Limits(max_epochs=3, max_steps=5), "max_steps"),
        (Limits(max_epochs=2, max_steps=6), "max_epochs"),
    ],
)
def test_whichever_limit_comes_first_is_reached(limits, reached):
    assert limits.reached(Progress(iteration=10, epochs=2), 5) == reached


@pytest.mark.parametrize("name", ["max_epochs", "max_iters", "max_steps"])
@pytest.mark.parametrize("value", [0, -1, True, 1.0, "1"])
def test_a_limit_is_an_integer_of_at_least_one(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be an integer >= 1, got .*: leave it"):
        Limits(**{name: value}).check(Progress(), 0)


@pytest.mark.parametrize(
    ("limits", "done"),
    [(Limits(max_epochs=1), 2), (Limits(max_iters=9), 10), (Limits(max_steps=4), 5)],
)
def test_a_limit_in_the_past_names_what_is_done(limits, done):
    with pytest.raises(ValueError, match=rf"at least what is done already, {done}, got"):
        limits.check(Progress(iteration=10, epochs=2), 5)


def test_epochs_and_iterations_exclude_each_other():
    with pytest.raises(ValueError, match="only one of `max_epochs` and `max_iters`"):
        Limits(max_epochs=1, max_iters=1).check(Progress(), 0)
    Limits(max_iters=1, max_steps=1).check(Progress(), 0)


def test_limits_written_to_the_state_replace_the_same_limits():
    shown, limits = ShownLimits(max_epochs=2, max_steps=8), Limits(max_steps=8)

    def with_changes(**written):
        return limits.with_changes(shown.limits, shown._replace(**written).limits)

    assert with_changes() == limits
    assert with_changes(max_epochs=5) == Limits(max_epochs=5, max_steps=8)
    assert with_changes(max_steps=None) == Limits()


@pytest.mark.parametrize(
    ("written", "asks"),
    [({}, False), ({"max_epochs": 9}, False), ({"max_epochs": None}, True)],
)
def test_removing_a_limit_asks_for_a_new_run(written, asks):
    shown = ShownLimits(max_epochs=2, max_steps=8)
    assert shown.asks_for_new_run(shown._replace(**written)) == asks


@pytest.mark.parametrize("value", [-1, True, 2.0, "3"])
def test_a_limit_that_a_handler_writes_is_an_integer(value):
    with pytest.raises(ValueError, match=r"`trainer.state.max_epochs` must be an integer >= 0"):
        Limits(max_epochs=value).check_written()


def counters(trainer):
    state = trainer.state
    return state.epoch, state.iteration, state.optimizer_step


# The table of docs/concepts/how_long_a_run_is.md: what the next call does. An epoch has four
# batches, and a step two.

PAGE = ROOT / "docs" / "concepts" / "how_long_a_run_is.md"
TABLE = re.findall(
    r"^\| (no limit|`max_\w+=\d+`) \| (.* \| .*) \|$", PAGE.read_text(), re.MULTILINE
)
BATCHES = {"epoch": 4, "step": 2, "iteration": 1}


def outcome(trainer, limits):
    """Returns what ``run`` does, and the counters at its end."""
    events = record(trainer, [Events.STARTED, Events.ITERATION_STARTED])
    before = trainer.place.progress.iteration
    try:
        trainer.run(**limits)
    except ValueError:
        assert events == []
        return "error", None
    if not events:
        return "nothing", None
    (_, _, first) = events[1]
    assert first in (1, before + 1)
    return "new run" if first == 1 else "continues", counters(trainer)


def in_the_table(cell):
    """Returns a cell in the form of ``outcome``.

    For example, "to epoch 2" becomes ("continues", (2, 8, 4)).
    """
    end = re.fullmatch(r"(new run )?to (epoch|iteration|step) (\d+)", cell)
    if end is None:
        return cell, None
    iterations = int(end[3]) * BATCHES[end[2]]
    epochs, steps = (-(-iterations // BATCHES[each]) for each in ("epoch", "step"))
    return "new run" if end[1] else "continues", (epochs, iterations, steps)


def finished(directory):
    trainer = make_trainer(batches_of(4), accumulation=2, checkpoint=SaveCheckpoint(directory))
    trainer.run(max_epochs=5)
    return trainer


def stopped(event, how, directory):
    checkpoint = SaveCheckpoint(directory, every_steps=3)
    trainer = make_trainer(batches_of(4), accumulation=2, checkpoint=checkpoint)
    removable = trainer.add_event_handler(event, how)
    with suppress(KeyboardInterrupt):
        trainer.run(max_epochs=5)
    removable.remove()
    return trainer


def press_ctrl_c():
    raise KeyboardInterrupt


def resumed(directory):
    source = ResumeCheckpoint(directory)
    return make_trainer(batches_of(4), accumulation=2, resume_from=source)


broken_off = partial(stopped, Events.ITERATION_STARTED(once=7), press_ctrl_c)
BEFORE = {  # the column of the table, and how to get there
    "finished": (0, finished),
    "finished, resumed": (1, lambda directory: finished(directory) and resumed(directory)),
    "terminated": (2, partial(stopped, TrainEvents.STEP_COMPLETED(once=3), Engine.terminate)),
    "Ctrl-C in a window": (2, broken_off),
    "broken off, resumed": (3, lambda directory: broken_off(directory) and resumed(directory)),
}


@pytest.mark.parametrize(("column", "before"), BEFORE.values(), ids=BEFORE)
@pytest.mark.parametrize(("limit", "cells"), TABLE, ids=[limit for limit, _ in TABLE])
def test_the_next_run_does_what_the_table_says(limit, cells, column, before, tmp_path):
    limits = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", limit)}
    trainer = before(tmp_path)
    assert outcome(trainer, limits) == in_the_table(cells.split(" | ")[column])


def test_the_table_has_ten_calls_and_four_columns():
    assert len({limit for limit, _ in TABLE}) == 10
    assert {cells.count("|") for _, cells in TABLE} == {3}


# Limits that a handler writes

BY_FIVE = batches_of(5)
LIVE = {  # the run's limits, the event, what is written, the counters and the windows of an epoch
    "longer at the last epoch's end": (
        {"max_epochs": 1}, Events.EPOCH_COMPLETED(once=1), {"max_epochs": 3}, (3, 15, 9), None
    ),
    "shorter at an epoch's end": (
        {"max_epochs": 5}, Events.EPOCH_COMPLETED(once=2), {"max_epochs": 2}, (2, 10, 6), None
    ),
    "passed at an epoch's end": (
        {"max_epochs": 5}, Events.EPOCH_COMPLETED(once=2), {"max_epochs": 1}, (2, 10, 6), None
    ),
    "this epoch is the last": (
        {"max_epochs": 5}, Events.ITERATION_COMPLETED(once=7), {"max_epochs": 2}, (2, 10, 6), None
    ),
    "passed within an epoch": (
        {"max_epochs": 5}, Events.ITERATION_COMPLETED(once=7), {"max_epochs": 1}, (2, 7, 4), None
    ),
    "passed as an epoch starts": (
        {"max_epochs": 5}, Events.EPOCH_STARTED(once=2), {"max_epochs": 1}, (2, 5, 3), None
    ),
    "nothing is left at the start": (
        {"max_epochs": 5}, Events.STARTED, {"max_epochs": 0}, (0, 0, 0), []
    ),
    "more iterations than an epoch has": (
        {"max_epochs": 1}, Events.STARTED, {"max_iters": 8, "max_epochs": 2}, (2, 8, 5),
        [[0, 1], [2, 3], [4], [0, 1], [2]],
    ),
    "iterations end in a window that closes": (
        {"max_epochs": 1}, Events.STARTED, {"max_iters": 3}, (1, 3, 2), [[0, 1], [2]]
    ),
    "iterations passed within a window": (
        {"max_epochs": 1}, Events.ITERATION_STARTED(once=3), {"max_iters": 2}, (1, 2, 1), [[0, 1]]
    ),
    "iterations reached by an open window": (
        {"max_epochs": 1}, Events.ITERATION_STARTED(once=3), {"max_iters": 3}, (1, 2, 1), [[0, 1]]
    ),
    "steps instead of epochs": (
        {"max_epochs": 1}, Events.STARTED, {"max_steps": 4, "max_epochs": None}, (2, 7, 4),
        [[0, 1], [2, 3], [4], [0, 1]],
    ),
    "steps passed": (
        {"max_steps": 9}, TrainEvents.STEP_COMPLETED(once=2), {"max_steps": 1}, (1, 4, 2), None
    ),
    "at the last step, further": (
        {"max_steps": 2}, TrainEvents.STEP_COMPLETED(once=2), {"max_steps": 3}, (1, 5, 3), None
    ),
    "an epoch is shorter from its start": (
        {"max_epochs": 2}, Events.EPOCH_STARTED(once=1), {"epoch_length": 3}, (2, 6, 4),
        [[0, 1], [2], [3, 4], [0]],
    ),
    "an epoch is longer than the data": (
        {"max_epochs": 1}, Events.ITERATION_COMPLETED(once=5), {"epoch_length": 6}, (1, 6, 4),
        [[0, 1], [2, 3], [4], [0]],
    ),
    "an epoch is full already": (
        {"max_epochs": 1}, Events.ITERATION_COMPLETED(once=4), {"epoch_length": 2}, (1, 4, 2),
        [[0, 1], [2, 3]],
    ),
    "an epoch is full in the middle of a window": (
        {"max_epochs": 2}, Events.ITERATION_COMPLETED(once=3), {"epoch_length": 2}, (2, 5, 2),
        [[0, 1], [3, 4]],
    ),
    "an epoch is one pass again": (
        {"max_epochs": 2, "epoch_length": 3}, Events.EPOCH_COMPLETED(once=1),
        {"epoch_length": None}, (2, 5, 3), [[0, 1], [2], [3, 4]],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "event", "written", "expected", "windows"), LIVE.values(), ids=LIVE
)
def test_limits_that_a_handler_writes_count_from_then_on(limits, event, written, expected, windows):
    trainer = make_trainer(BY_FIVE, accumulation=2)

    @trainer.on(event)
    def write(engine):
        for name, value in written.items():
            setattr(engine.state, name, value)

    trainer.run(**limits)
    assert counters(trainer) == expected
    assert_clean(trainer)
    if windows is not None:
        model = make_model(dropout=0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        train_on_windows(model, optimizer, BY_FIVE, windows)
        assert torch.equal(weights(trainer.model), weights(model))


def test_an_epoch_past_its_limit_at_the_start_gets_no_batch():
    trainer = make_trainer(batches_of(3))
    trainer.add_event_handler(
        Events.EPOCH_STARTED(once=2), lambda engine: setattr(engine.state, "max_epochs", 1)
    )
    events = record(trainer, [Events.GET_BATCH_STARTED, Events.TERMINATE])
    trainer.run(max_epochs=5)
    assert events[3:] == [("TERMINATE", 2, 3)]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"max_epochs": None}, "`trainer.state` must keep one of max_epochs, max_iters"),
        ({"max_epochs": 2.5}, r"`trainer.state.max_epochs` must be an integer >= 0, .* got 2.5"),
        ({"max_iters": -1}, r"`trainer.state.max_iters` must be an integer >= 0, .* got -1"),
        ({"epoch_length": 0}, r"`trainer.state.epoch_length` must be an integer >= 1, got 0"),
    ],
    ids=stable_id,
)
def test_a_limit_that_cannot_be_used_is_an_error_in_the_run(written, message):
    trainer = make_trainer(batches_of(3))
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda engine: vars(engine.state).update(written)
    )
    with pytest.raises(ValueError, match=message):
        trainer.run(max_epochs=2)


@pytest.mark.parametrize("batches", [3, 4], ids=["within an epoch", "at its end"])
@pytest.mark.parametrize("name", ["max_steps", "max_iters"])
@pytest.mark.parametrize("event", [TrainEvents.VALIDATION_COMPLETED, TrainEvents.CHECKPOINT_SAVED])
def test_deferred_callbacks_can_raise_a_limit_just_reached(event, name, batches, tmp_path):
    saves = SaveCheckpoint(tmp_path, every_steps=100)  # so it is the one at the end
    validation = Validation(lambda: {"accuracy": 1.0}, every_steps=4)
    trainer = make_trainer(batches_of(batches), validation=validation, checkpoint=saves)
    trainer.add_event_handler(event, lambda engine: setattr(engine.state, name, 6))
    trainer.run(**{name: 4})
    assert (trainer.state.iteration, trainer.stop_reason) == (6, name)
    assert saves.last_checkpoint.name.endswith("6")


def test_a_stop_at_a_limit_stays_when_the_limit_is_raised():
    validation = Validation(lambda: {"accuracy": 1.0}, every_epochs=1)
    trainer = make_trainer(batches_of(2), validation=validation)

    @trainer.on(TrainEvents.VALIDATION_COMPLETED)
    def stop_and_raise(engine):
        engine.terminate()
        engine.state.max_steps = 6

    trainer.run(max_steps=2)
    assert (trainer.state.iteration, trainer.stop_reason) == (2, "terminate")


def test_shown_max_epochs_holds_when_max_steps_is_removed():
    trainer = make_trainer(batches_of(4))

    @trainer.on(Events.ITERATION_COMPLETED(once=1))
    def lift(engine):
        assert engine.state.max_epochs == 3
        engine.state.max_steps = None

    trainer.run(max_steps=10)
    assert counters(trainer) == (3, 12, 12)


def test_limits_that_a_handler_wrote_belong_to_that_run():
    trainer = make_trainer(batches_of(4))
    shorter = trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: setattr(engine.state, "max_epochs", 1)
    )
    trainer.run(max_epochs=3)
    assert counters(trainer) == (1, 4, 4)
    shorter.remove()
    trainer.run()
    assert counters(trainer) == (3, 12, 12)


@pytest.mark.parametrize("again", [{}, {"max_epochs": 2}], ids=stable_id)
def test_limits_that_a_handler_wrote_hold_until_the_run_is_over(again, tmp_path):
    """Tests this also in another process, which makes the same call."""

    def make(**options):
        trainer = make_trainer(batches_of(4), **options)
        trainer.add_event_handler(
            Events.EPOCH_COMPLETED(once=1), lambda engine: setattr(engine.state, "max_epochs", 5)
        )
        return trainer

    trainer = make(checkpoint=SaveCheckpoint(tmp_path))
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=10), lambda: trainer.terminate(resumable=True)
    )
    trainer.run(max_epochs=2)
    resumed = make(resume_from=ResumeCheckpoint(tmp_path))
    for each in (trainer, resumed):
        each.run(**again)
        assert counters(each) == (5, 20, 20)


def test_a_limit_set_to_none_after_an_interruption_begins_a_new_run():
    trainer = make_trainer(batches_of(4))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), trainer.interrupt)
    trainer.run(max_epochs=2)
    events = record(trainer, [Events.STARTED, Events.COMPLETED])
    trainer.state.max_epochs = None
    trainer.run(max_epochs=1)
    assert trainer.state.iteration == 2  # it is interrupted again
    trainer.run()
    assert counters(trainer) == (1, 4, 4)
    assert events == [("STARTED", 0, 0), ("COMPLETED", 1, 4)]


@pytest.mark.parametrize(
    ("given", "expected"), [({"max_epochs": 3}, (3, 12)), ({"max_iters": 6}, (2, 6)), ({}, (1, 4))]
)
def test_interrupted_run_continues_to_given_or_written_limits(given, expected):
    trainer = make_trainer(batches_of(4))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), trainer.interrupt)
    trainer.run(max_epochs=2)
    if not given:
        trainer.state.max_epochs = 1
    trainer.run(**given)
    assert counters(trainer)[:2] == expected


def test_an_interrupted_run_at_its_limit_trains_no_further():
    trainer = make_trainer(batches_of(4))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), trainer.interrupt)
    trainer.run(max_epochs=2)
    trainer.run(max_steps=2)
    assert counters(trainer) == (1, 2, 2)


def test_an_interrupted_run_at_its_limit_begins_no_epoch():
    trainer = make_trainer(batches_of(4))
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), trainer.interrupt)
    trainer.run(max_epochs=3)
    events = record(trainer, [Events.EPOCH_STARTED, Events.COMPLETED])
    trainer.run(max_epochs=1)
    assert events == [("COMPLETED", 1, 4)]


# A state of the user's


def test_a_state_replaced_by_the_user_is_used_as_in_ignite():
    trainer, engine = make_trainer(batches_of(4)), Engine(lambda engine, batch: None)
    seen = []
    for each in (trainer, engine):
        seen.append(record(each, [Events.STARTED, Events.EPOCH_STARTED, Events.COMPLETED]))
        each.state = State(iteration=4, epoch=1, epoch_length=4, max_epochs=3)
        each.run(batches_of(4))
    assert seen[0] == seen[1]
    assert counters(trainer) == (3, 12, 8)
    trainer.state = State()
    trainer.run(max_epochs=2)
    assert counters(trainer) == (2, 8, 8)


@pytest.mark.parametrize("steps", [2, 4, 5])
def test_a_run_continues_from_a_copy_of_its_state(steps):
    trainer = make_trainer(batches_of(4))
    events = record(trainer, [Events.ITERATION_COMPLETED])
    trainer.run(max_epochs=2, max_steps=steps)
    trainer.state = copy.copy(trainer.state)
    trainer.run(max_epochs=2, max_steps=100)
    assert [iteration for _, _, iteration in events] == [*range(1, 9)]
    assert [epoch for _, epoch, _ in events] == 4 * [1] + 4 * [2]


def test_a_state_that_is_replaced_within_a_run_is_an_error():
    trainer = make_trainer(batches_of(4))
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda engine: setattr(engine, "state", State())
    )
    with pytest.raises(RuntimeError, match=r"`trainer.state` must stay the same object"):
        trainer.run()


# Ignite's finder of learning rates


def find_rates(make_engine, num_iter=12, **options):
    """Returns the rates and losses that the finder records, and the training after it."""
    model = make_model(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    engine, data, finder = make_engine(model, optimizer), batches_of(5), FastaiLRFinder()
    to_save = {"model": model, "optimizer": optimizer}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with finder.attach(engine, to_save, num_iter=num_iter, end_lr=1e-2, **options) as finding:
            finding.run(data)
    trained = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: trained.append(e.state.output))
    engine.run(data, max_epochs=2)
    results = finder.get_results()
    return results["lr"], results["loss"], [float(loss) for loss in trained]


def plain_engine(model, optimizer):
    def update(engine, batch):
        x, y = batch
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return Engine(update)


@needs("pytorch-ignite>=0.5.5")
@pytest.mark.parametrize("options", [{}, {"step_mode": "linear"}, {"num_iter": 3}], ids=stable_id)
def test_lr_finder_finds_the_same_as_on_ignites_engine(options):
    def trainer(model, optimizer):
        return make_trainer(model=model, optimizer=optimizer)

    found = find_rates(trainer, **options)
    assert found == find_rates(plain_engine, **options)
    assert len(found[0]) == (4 if "num_iter" in options else 12)  # Ignite's asks for one more
    assert len(found[2]) == 10


def test_lr_finder_with_accumulation_warns():
    trainer = make_trainer(batches_of(5), accumulation=4)
    to_save = {"model": trainer.model, "optimizer": trainer.optimizer}
    with (
        pytest.warns(UserWarning, match="FastaiLRFinder .* 4 batches") as caught,
        FastaiLRFinder().attach(trainer, to_save, num_iter=8),
    ):
        pass
    assert len(caught) == 1
