"""Failures and requests at each event: the events that follow, and how the next run begins.

Two epochs of six batches in windows of two; validation and checkpoint by step and by epoch. The
letters are those of ``LETTERS``, in the order of an iteration that makes a step::

    S  E( i I  i o O I STEP v V C  i I  i o O I STEP v V C  i I  i o O I STEP v V )E C  E( …
"""

import pytest
import torch
from ignite.engine import Events

from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from tests.reference import assert_clean
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import train_on_windows
from tests.reference import weights

LETTERS = {
    Events.STARTED: "S",
    Events.EPOCH_STARTED: "E(",
    Events.ITERATION_STARTED: "i",
    TrainEvents.OPTIMIZER_STEP_STARTED: "o",
    TrainEvents.OPTIMIZER_STEP_COMPLETED: "O",
    Events.ITERATION_COMPLETED: "I",
    TrainEvents.STEP_COMPLETED: "STEP",
    TrainEvents.VALIDATION_STARTED: "v",
    TrainEvents.VALIDATION_COMPLETED: "V",
    TrainEvents.CHECKPOINT_SAVED: "C",
    Events.EPOCH_COMPLETED: ")E",
    Events.TERMINATE_SINGLE_EPOCH: "cut",
    Events.TERMINATE: "T",
    Events.INTERRUPT: "pause",
    Events.COMPLETED: "end",
}
EVENTS = {event.name: event for event in (*Events, *TrainEvents)}

FORWARD = "MODEL_FORWARD_STARTED MODEL_FORWARD_COMPLETED"
BACKWARD = "MODEL_BACKWARD_STARTED MODEL_BACKWARD_COMPLETED"
GET_BATCH = "GET_BATCH_STARTED GET_BATCH_COMPLETED"
VALIDATION = "VALIDATION_STARTED VALIDATION_COMPLETED"

# The events are those of iteration 3, in mid-window; 4, a step; 6, a step at the end of an epoch.
# (Those of the next batch still have the number of the iteration before.) What follows is what
# comes after the handler, up to the next epoch; steps and iteration then; how the next run begins.
FAILURES = [
    (3, f"{GET_BATCH} ITERATION_STARTED {FORWARD} {BACKWARD}", "", (1, 2), "S E( i3"),
    (3, "ITERATION_COMPLETED", "", (1, 2), "S E( i3"),
    (4, f"ITERATION_STARTED {FORWARD} {BACKWARD} OPTIMIZER_STEP_STARTED", "", (1, 2), "S E( i3"),
    (4, "OPTIMIZER_STEP_COMPLETED ITERATION_COMPLETED", "", (2, 4), "S STEP v V C E( i5"),
    (4, f"STEP_COMPLETED {VALIDATION}", "", (2, 4), "S v V C E( i5"),
    (4, f"CHECKPOINT_SAVED {GET_BATCH}", "", (2, 4), "S E( i5"),
    (6, f"ITERATION_STARTED {FORWARD} {BACKWARD} OPTIMIZER_STEP_STARTED", "", (2, 4), "S E( i5"),
    (6, "OPTIMIZER_STEP_COMPLETED ITERATION_COMPLETED", "", (3, 6), "S STEP v V )E C E( i7"),
    (6, "STEP_COMPLETED", "", (3, 6), "S v V )E C E( i7"),
    (6, VALIDATION, "", (3, 6), "S v V C E( i7"),
    (6, "EPOCH_COMPLETED", "", (3, 6), "S C E( i7"),
    (6, f"CHECKPOINT_SAVED EPOCH_STARTED {GET_BATCH}", "", (3, 6), "S E( i7"),
    (12, "ITERATION_COMPLETED", "", (6, 12), "S STEP v V )E C end"),
    (12, "STEP_COMPLETED", "", (6, 12), "S v V )E C end"),
    (12, VALIDATION, "", (6, 12), "S v V C end"),
    (12, "EPOCH_COMPLETED", "", (6, 12), "S C end"),
    (12, "CHECKPOINT_SAVED COMPLETED", "", (6, 12), "S end"),
]
TERMINATE = [
    (3, f"{GET_BATCH} ITERATION_STARTED ITERATION_COMPLETED", "T end", (1, 2), "S E( i3"),
    (3, f"{FORWARD} {BACKWARD}", "I3 T end", (1, 2), "S E( i3"),
    (4, "ITERATION_STARTED", "T end", (1, 2), "S E( i3"),
    (4, f"{FORWARD} {BACKWARD}", "o O I4 STEP v V C T end", (2, 4), "S E( i5"),
    (4, "OPTIMIZER_STEP_STARTED", "O I4 STEP v V C T end", (2, 4), "S E( i5"),
    (4, "OPTIMIZER_STEP_COMPLETED", "I4 STEP v V C T end", (2, 4), "S E( i5"),
    (4, "ITERATION_COMPLETED", "STEP v V C T end", (2, 4), "S E( i5"),
    (4, "STEP_COMPLETED", "v V C T end", (2, 4), "S E( i5"),
    (4, "VALIDATION_STARTED", "V C T end", (2, 4), "S E( i5"),
    (4, "VALIDATION_COMPLETED", "C T end", (2, 4), "S E( i5"),
    (4, f"CHECKPOINT_SAVED {GET_BATCH}", "T end", (2, 4), "S E( i5"),
    (6, "OPTIMIZER_STEP_STARTED", "O I6 STEP v V )E C T end", (3, 6), "S E( i7"),
    (6, "ITERATION_COMPLETED", "STEP v V )E C T end", (3, 6), "S E( i7"),
    (6, "STEP_COMPLETED", "v V )E C T end", (3, 6), "S E( i7"),
    (6, "VALIDATION_COMPLETED", ")E C T end", (3, 6), "S E( i7"),
    (6, "EPOCH_COMPLETED", "C T end", (3, 6), "S E( i7"),
    (6, f"CHECKPOINT_SAVED EPOCH_STARTED {GET_BATCH}", "T end", (3, 6), "S E( i7"),
]
INTERRUPT = [
    (3, f"{GET_BATCH} ITERATION_COMPLETED", "pause", (1, 3), "i4"),
    (3, "ITERATION_STARTED", "pause", (1, 3), "I3 i4"),
    (3, f"{FORWARD} {BACKWARD}", "I3 pause", (1, 3), "i4"),
    (4, "ITERATION_STARTED", "pause", (1, 4), "o O I4 STEP v V C i5"),
    (4, f"{FORWARD} {BACKWARD}", "o O I4 STEP v V C pause", (2, 4), "i5"),
    (4, "OPTIMIZER_STEP_STARTED", "O I4 STEP v V C pause", (2, 4), "i5"),
    (4, "ITERATION_COMPLETED", "STEP v V C pause", (2, 4), "i5"),
    (4, "VALIDATION_COMPLETED", "C pause", (2, 4), "i5"),
    (6, "ITERATION_COMPLETED", "STEP pause", (3, 6), "v V )E C E( i7"),
    (6, "VALIDATION_COMPLETED", ")E C pause", (3, 6), "E( i7"),
    (6, "EPOCH_COMPLETED", "C pause", (3, 6), "E( i7"),
]
# Windows of batches, 0 to 5, in the first epoch; and what comes up to the next epoch.
TERMINATE_EPOCH = [
    (3, f"{GET_BATCH} ITERATION_STARTED ITERATION_COMPLETED", "cut v V )E C E(", [[0, 1]]),
    (3, f"{FORWARD} {BACKWARD}", "I3 cut v V )E C E(", [[0, 1]]),
    (4, "ITERATION_STARTED", "cut v V )E C E(", [[0, 1]]),
    (4, f"{FORWARD} {BACKWARD}", "o O I4 STEP cut v V )E C E(", [[0, 1], [2, 3]]),
    (4, "OPTIMIZER_STEP_STARTED", "O I4 STEP cut v V )E C E(", [[0, 1], [2, 3]]),
    (4, "ITERATION_COMPLETED", "STEP cut v V )E C E(", [[0, 1], [2, 3]]),
    (4, "STEP_COMPLETED", "cut v V )E C E(", [[0, 1], [2, 3]]),
    (4, "VALIDATION_STARTED", "V cut )E C E(", [[0, 1], [2, 3]]),
    (4, f"VALIDATION_COMPLETED CHECKPOINT_SAVED {GET_BATCH}", "cut )E C E(", [[0, 1], [2, 3]]),
    (6, "ITERATION_COMPLETED", "STEP cut v V )E C E(", [[0, 1], [2, 3], [4, 5]]),
    (6, "VALIDATION_COMPLETED", ")E C E(", [[0, 1], [2, 3], [4, 5]]),
]
SKIP_EPOCH_COMPLETED = [
    (3, "ITERATION_STARTED ITERATION_COMPLETED", "cut E(", [[0, 1]]),
    (4, "ITERATION_STARTED", "cut E(", [[0, 1]]),
    (4, "OPTIMIZER_STEP_STARTED", "O I4 STEP cut v V C E(", [[0, 1], [2, 3]]),
    (4, "ITERATION_COMPLETED", "STEP cut v V C E(", [[0, 1], [2, 3]]),
    (4, "STEP_COMPLETED", "cut v V C E(", [[0, 1], [2, 3]]),
    (4, "VALIDATION_COMPLETED", "cut C E(", [[0, 1], [2, 3]]),
    (4, "CHECKPOINT_SAVED", "cut E(", [[0, 1], [2, 3]]),
    (6, "STEP_COMPLETED", "cut v V C E(", [[0, 1], [2, 3], [4, 5]]),
]


class Failure(Exception):
    pass


def fail(trainer):
    raise Failure


def rows(table):
    """Returns one test case for each event of each row."""
    return [
        pytest.param(iteration, name, *row, id=f"{iteration}-{name}")
        for iteration, names, *row in table
        for name in names.split()
    ]


class Run:
    """A trainer with one action at one event, and a log of the events."""

    def __init__(self, folder, name, iteration, action):
        self.trainer = make_trainer(
            batches_of(6),
            accumulation=2,
            validation=Validation(lambda: None, every_steps=1, every_epochs=1),
            checkpoint=SaveCheckpoint(folder, every_steps=1, every_epochs=1, at_end=False),
        )
        self.seen = []
        self.has_acted = False

        def act_once(engine):
            if not self.has_acted and engine.state.iteration == iteration:
                self.has_acted = True
                self.seen.clear()
                action(engine)

        for event, letter in LETTERS.items():
            self.trainer.add_event_handler(event, self._note, letter)
        self.trainer.add_event_handler(EVENTS[name], act_once)

    def _note(self, engine, *arguments, **more):
        letter = next(each for each in arguments if isinstance(each, str))
        number = engine.state.iteration if letter in ("i", "I") else ""
        self.seen.append(f"{letter}{number}")

    def run(self):
        """Runs; returns the log since the action, or since the beginning without one."""
        self.seen.clear()
        self.trainer.run(max_epochs=2)
        return list(self.seen)

    @property
    def counters(self):
        return self.trainer.state.optimizer_step, self.trainer.state.iteration


def log_until(seen, *ends):
    """Returns the log up to the first entry that begins with one of ``ends``."""
    for index, each in enumerate(seen):
        if each.startswith(ends):
            return " ".join(seen[: index + 1])
    return " ".join(seen)


def plain_loop(*windows):
    model = make_model(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train_on_windows(model, optimizer, batches_of(6), windows)
    return weights(model)


EPOCH = [[0, 1], [2, 3], [4, 5]]


def assert_continues_as_unbroken(run, begins):
    assert log_until(run.run(), "i") == begins
    assert torch.equal(weights(run.trainer.model), plain_loop(*EPOCH, *EPOCH))
    assert run.counters == (6, 12)
    assert run.trainer.state.validation == 6


@pytest.mark.parametrize(("iteration", "name", "seen", "counters", "begins"), rows(FAILURES))
def test_failure_at_an_event(tmp_path, iteration, name, seen, counters, begins):
    run = Run(tmp_path, name, iteration, fail)
    with pytest.raises(Failure):
        run.run()
    assert (" ".join(run.seen), run.counters) == (seen, counters)
    assert_clean(run.trainer)
    assert_continues_as_unbroken(run, begins)


@pytest.mark.parametrize(("iteration", "name", "seen", "counters", "begins"), rows(TERMINATE))
def test_terminate_at_an_event(tmp_path, iteration, name, seen, counters, begins):
    run = Run(tmp_path, name, iteration, lambda trainer: trainer.terminate())
    assert (" ".join(run.run()), run.counters) == (seen, counters)
    assert run.trainer.stop_reason == "terminate"
    assert_clean(run.trainer)
    assert_continues_as_unbroken(run, begins)


@pytest.mark.parametrize(("iteration", "name", "seen", "counters", "begins"), rows(INTERRUPT))
def test_interrupt_at_an_event(tmp_path, iteration, name, seen, counters, begins):
    run = Run(tmp_path, name, iteration, lambda trainer: trainer.interrupt())
    assert (" ".join(run.run()), run.counters) == (seen, counters)
    assert_continues_as_unbroken(run, begins)


@pytest.mark.parametrize(("iteration", "name", "seen", "windows"), rows(TERMINATE_EPOCH))
def test_terminate_epoch_at_an_event(tmp_path, iteration, name, seen, windows):
    run = Run(tmp_path, name, iteration, lambda trainer: trainer.terminate_epoch())
    assert log_until(run.run(), "E(") == seen
    assert torch.equal(weights(run.trainer.model), plain_loop(*windows, *EPOCH))
    assert_clean(run.trainer)


@pytest.mark.parametrize(("iteration", "name", "seen", "windows"), rows(SKIP_EPOCH_COMPLETED))
def test_skipped_epoch_completed_at_an_event(tmp_path, iteration, name, seen, windows):
    skip = {"skip_epoch_completed": True}
    run = Run(tmp_path, name, iteration, lambda trainer: trainer.terminate_epoch(**skip))
    assert log_until(run.run(), "E(") == seen
    assert torch.equal(weights(run.trainer.model), plain_loop(*windows, *EPOCH))
    assert_clean(run.trainer)
