import os
import signal
import threading

import pytest
import torch
from ignite.engine import Events

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks.checkpoint.store import CheckpointStore
from tests.ids import stable_id
from tests.reference import batches_of
from tests.reference import make_trainer
from tests.reference import record
from tests.reference import weights

LAST = (2, 12, 6)
"""Epochs, iterations and steps of a whole run: two epochs of three steps of two batches."""


class Failure(Exception):
    pass


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    """Skips fsync: these tests do not ask whether a checkpoint survives a power cut."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def before():
    """The names of the signals that reached the handlers which the process had set before."""
    noted = []
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGPOLL]
    found = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, lambda number, frame: noted.append(signal.Signals(number).name))
    yield noted
    for number, handler in found.items():
        signal.signal(number, handler)


def trainer_of(checkpoint=None, **options):
    return make_trainer(batches_of(6), accumulation=2, checkpoint=checkpoint, **options)


def saved(directory):
    """Returns the complete epochs, iterations and steps of the checkpoints, as committed."""
    checkpoints = CheckpointStore(directory).checkpoints()
    manifests = [checkpoint.manifest for checkpoint in reversed(checkpoints)]
    return [(each.epoch, each.iteration, each.step) for each in manifests]


def keep_all(directory, **schedule):
    """Returns a handler that saves on the given schedule only, and keeps all checkpoints."""
    return SaveCheckpoint(directory, keep_last="all", **{"at_end": False, **schedule})


def send(name="SIGTERM"):
    os.kill(os.getpid(), signal.Signals[name])


def assert_resumes_like_an_unbroken_run(directory):
    """Asserts that a run resumed from the newest checkpoint ends like an unbroken run."""
    unbroken = trainer_of()
    unbroken.run(max_epochs=2)
    resumed = trainer_of(resume_from=directory)
    resumed.run(max_epochs=2)
    assert (resumed.state.epoch, resumed.state.iteration, resumed.state.optimizer_step) == LAST
    assert torch.equal(weights(resumed.model), weights(unbroken.model))


# Schedules


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"every_steps": 1}, [(0, 2, 1), (0, 4, 2), (1, 6, 3), (1, 8, 4), (1, 10, 5), LAST]),
        ({"every_steps": 2}, [(0, 4, 2), (1, 8, 4), LAST]),
        ({"every_steps": 7}, []),
        ({"every_epochs": 1}, [(1, 6, 3), LAST]),
        ({"every_epochs": 2}, [LAST]),
        ({"at_end": True}, [LAST]),
        ({"every_steps": 4, "at_end": True}, [(1, 8, 4), LAST]),
        ({"every_steps": 2, "every_epochs": 1}, [(0, 4, 2), (1, 6, 3), (1, 8, 4), LAST]),
        (
            {"every_steps": 3, "every_epochs": 1, "every_seconds": 1e-9, "at_end": True},
            [(0, 2, 1), (0, 4, 2), (1, 6, 3), (1, 8, 4), (1, 10, 5), LAST],
        ),
        ({"at_end": False}, []),
    ],
    ids=stable_id,
)
def test_saves_on_schedule_once_if_several_are_due(tmp_path, schedule, expected):
    trainer = trainer_of(keep_all(tmp_path, **schedule))
    events = record(trainer, [TrainEvents.CHECKPOINT_SAVED])
    trainer.run(max_epochs=2)
    assert saved(tmp_path) == expected
    assert [iteration for _, _, iteration in events] == [iteration for _, iteration, _ in expected]


class Clock:
    """A clock that moves by a second with each call of ``tick``."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def tick(self):
        self.now += 1


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("ignite_hooks.checkpoint.triggers.monotonic", clock)
    return clock


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"every_seconds": 4.0}, [(0, 4, 2), (1, 8, 4), LAST]),
        ({"every_seconds": 4.5}, [(1, 6, 3), LAST]),
        ({"every_seconds": 4.5, "every_steps": 2}, [(0, 4, 2), (1, 8, 4), LAST]),
        ({"every_seconds": 100.0}, []),
    ],
    ids=stable_id,
)
def test_clock_restarts_at_every_save_whatever_its_trigger(tmp_path, clock, schedule, expected):
    trainer = trainer_of(keep_all(tmp_path, **schedule))
    trainer.add_event_handler(Events.ITERATION_STARTED, clock.tick)
    trainer.run(max_epochs=2)
    assert saved(tmp_path) == expected


def test_the_time_between_two_runs_does_not_count(tmp_path, clock):
    trainer = trainer_of(keep_all(tmp_path, every_seconds=3.0))
    trainer.add_event_handler(Events.ITERATION_STARTED, clock.tick)
    trainer.run(max_steps=1)
    clock.now += 100
    trainer.run(max_steps=2)
    assert saved(tmp_path) == []
    trainer.run(max_steps=4)
    assert saved(tmp_path) == [(1, 8, 4)]


@pytest.mark.parametrize("event", [Events.ITERATION_COMPLETED, Events.ITERATION_STARTED])
def test_save_due_within_a_window_waits_for_its_step(tmp_path, event):
    trainer = trainer_of()
    keep_all(tmp_path).attach(trainer, event(every=3))
    trainer.run(max_epochs=2)
    assert saved(tmp_path) == [(0, 4, 2), (1, 6, 3), (1, 10, 5), LAST]


@pytest.mark.parametrize("stop", [None, 3])
@pytest.mark.parametrize("event", [Events.COMPLETED, Events.TERMINATE])
def test_save_due_at_the_end_of_a_run_is_made(tmp_path, event, stop):
    """Ignite's own Checkpoint is often attached to these events."""
    trainer = trainer_of()
    keep_all(tmp_path).attach(trainer, event)
    if stop is not None:
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED(once=stop), lambda: trainer.terminate(resumable=True)
        )
    trainer.run(max_epochs=2)
    if stop is not None:
        assert saved(tmp_path) == [(0, 2, 1)]
    else:
        assert saved(tmp_path) == ([LAST] if event == Events.COMPLETED else [])


# At the end of a run


def at(event, **options):
    """Returns a function that makes a trainer stop at an event, and options."""

    def set_up(trainer):
        trainer.add_event_handler(event, lambda: trainer.terminate(resumable=True))

    return set_up, options


NO_STOP = (lambda trainer: None, {})

ENDS = {
    "max_epochs": ({"max_epochs": 1}, NO_STOP, (1, 6, 3)),
    "max_steps": ({"max_steps": 2}, NO_STOP, (0, 4, 2)),
    "max_iters": ({"max_iters": 8}, NO_STOP, (1, 8, 4)),
    "max_steps at the end of an epoch": ({"max_steps": 3}, NO_STOP, (1, 6, 3)),
    "at a boundary": ({}, at(Events.ITERATION_COMPLETED(once=4)), (0, 4, 2)),
    "at the end of an epoch": ({}, at(Events.ITERATION_COMPLETED(once=6)), (1, 6, 3)),
    "after an epoch": ({}, at(Events.EPOCH_COMPLETED(once=1)), (1, 6, 3)),
    "in the middle of a window": ({}, at(Events.ITERATION_COMPLETED(once=3)), (0, 2, 1)),
    "before a window": ({}, at(Events.ITERATION_STARTED(once=5)), (0, 4, 2)),
    "in the first window of an epoch": ({}, at(Events.ITERATION_COMPLETED(once=7)), (1, 6, 3)),
    "when an epoch begins": ({}, at(Events.EPOCH_STARTED(once=2)), (1, 6, 3)),
    "from a validation": (
        {},
        at(
            TrainEvents.VALIDATION_COMPLETED(once=1),
            validation=Validation(lambda: None, every_steps=2),
        ),
        (0, 4, 2),
    ),
    "from a validation after an epoch": (
        {},
        at(
            TrainEvents.VALIDATION_COMPLETED(once=1),
            validation=Validation(lambda: None, every_steps=3),
        ),
        (1, 6, 3),
    ),
}


@pytest.mark.filterwarnings("ignore:resumed from(.|\n)*that no step has used")
@pytest.mark.parametrize("end", ENDS)
def test_last_boundary_is_saved_once_however_a_run_ends(tmp_path, end):
    limits, (set_up, options), expected = ENDS[end]
    trainer = trainer_of(keep_all(tmp_path, at_end=True), **options)
    set_up(trainer)
    trainer.run(**(limits or {"max_epochs": 2}))
    assert saved(tmp_path) == [expected]
    assert_resumes_like_an_unbroken_run(tmp_path)


@pytest.mark.parametrize("end", ["at a boundary", "in the middle of a window", "after an epoch"])
def test_scheduled_save_is_not_repeated_at_the_end(tmp_path, end):
    limits, (set_up, options), expected = ENDS[end]
    trainer = trainer_of(keep_all(tmp_path, at_end=True, every_steps=1), **options)
    set_up(trainer)
    trainer.run(**(limits or {"max_epochs": 2}))
    steps = [step for *_, step in saved(tmp_path)]
    assert steps == list(range(1, expected[-1] + 1))


@pytest.mark.parametrize("event", [Events.STARTED, Events.EPOCH_STARTED])
def test_nothing_is_saved_when_nothing_has_moved(tmp_path, event):
    trainer = trainer_of(keep_all(tmp_path, at_end=True))
    trainer.add_event_handler(event, lambda: trainer.terminate())
    trainer.run(max_epochs=2)
    assert saved(tmp_path) == []


def test_each_run_of_a_trainer_saves_its_end(tmp_path):
    trainer = trainer_of(keep_all(tmp_path, at_end=True))
    trainer.run(max_epochs=1)
    trainer.run(max_epochs=2)
    assert saved(tmp_path) == [(1, 6, 3), LAST]
    trainer.run()  # a new run, whose checkpoint has the same step
    assert saved(tmp_path) == [(1, 6, 3), LAST, (1, 6, 3)]
    assert (tmp_path / "step_00000003-2" / "manifest.json").exists()


def test_a_new_run_that_is_stopped_at_once_saves_nothing(tmp_path):
    trainer = trainer_of(keep_all(tmp_path, at_end=True))
    trainer.run(max_epochs=1)
    trainer.add_event_handler(Events.STARTED, lambda: trainer.terminate())
    trainer.run()
    assert saved(tmp_path) == [(1, 6, 3)]


def test_a_resumed_run_that_was_finished_saves_nothing(tmp_path):
    trainer_of(keep_all(tmp_path, at_end=True)).run(max_epochs=2)
    resumed = trainer_of(keep_all(tmp_path, at_end=True, every_steps=1), resume_from=tmp_path)
    announced = record(resumed, [TrainEvents.CHECKPOINT_SAVED])
    resumed.run(max_epochs=2)
    assert (saved(tmp_path), announced) == ([LAST], [])


def test_a_resumed_run_that_is_stopped_at_once_saves_nothing(tmp_path):
    trainer_of(keep_all(tmp_path, at_end=True)).run(max_steps=2)
    resumed = trainer_of(keep_all(tmp_path, at_end=True), resume_from=tmp_path)
    resumed.add_event_handler(Events.ITERATION_STARTED, lambda: resumed.terminate())
    resumed.run(max_epochs=2)
    assert saved(tmp_path) == [(0, 4, 2)]


# Epochs that are ended early


@pytest.mark.parametrize("by", ["a handler", "a validation"])
@pytest.mark.parametrize("at_end", [False, True])
def test_save_due_at_terminated_epoch_waits_for_its_completion(tmp_path, by, at_end):
    validation = Validation(lambda: None, every_steps=2) if by == "a validation" else None
    trainer = trainer_of(keep_all(tmp_path, every_steps=2, at_end=at_end), validation=validation)
    events = {
        "a handler": Events.ITERATION_COMPLETED(once=4),
        "a validation": TrainEvents.VALIDATION_COMPLETED(once=1),
    }
    names = record(trainer, [Events.EPOCH_COMPLETED, TrainEvents.CHECKPOINT_SAVED])
    trainer.add_event_handler(events[by], lambda: trainer.terminate_epoch())
    trainer.run(max_epochs=1)
    assert names == [("EPOCH_COMPLETED", 1, 4), ("CHECKPOINT_SAVED", 1, 4)]
    assert saved(tmp_path) == [(1, 4, 2)]


def test_resume_after_terminate_epoch_equals_an_unbroken_run(tmp_path):
    def ended(**options):
        trainer = trainer_of(**options)
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED(once=4), lambda: trainer.terminate_epoch()
        )
        return trainer

    unbroken = ended()
    unbroken.run(max_epochs=2)
    ended(checkpoint=keep_all(tmp_path, every_steps=2)).run(max_epochs=1)
    resumed = ended(resume_from=tmp_path)
    resumed.run(max_epochs=2)
    assert resumed.state.iteration == unbroken.state.iteration == 10
    assert torch.equal(weights(resumed.model), weights(unbroken.model))


# Failures


def fail():
    raise Failure


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(
    "event",
    [
        Events.STARTED,
        TrainEvents.MODEL_FORWARD_COMPLETED(once=3),
        TrainEvents.OPTIMIZER_STEP_STARTED,
        Events.ITERATION_COMPLETED(once=2),
        Events.EPOCH_COMPLETED(once=1),
        Events.COMPLETED,
    ],
    ids=lambda event: event.name,
)
def test_a_run_that_fails_saves_nothing(tmp_path, event, background):
    schedule = {"at_end": event != Events.COMPLETED, "every_epochs": 1 if background else None}
    trainer = trainer_of(keep_all(tmp_path, background=background, **schedule))
    trainer.add_event_handler(event, fail)
    with pytest.raises(Failure):
        trainer.run(max_epochs=1)
    assert saved(tmp_path) == ([(1, 6, 3)] if background and event == Events.COMPLETED else [])


@pytest.mark.parametrize("error", [Failure, KeyboardInterrupt, SystemExit])
def test_swallowed_failure_saves_nothing(tmp_path, error):
    trainer = trainer_of(keep_all(tmp_path, at_end=True))

    @trainer.on(Events.ITERATION_COMPLETED(once=3))
    def stop():
        raise error

    trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda error: None)
    trainer.run(max_epochs=2)
    assert (trainer.stop_reason, saved(tmp_path)) == ("exception", [])


def test_the_run_after_a_failure_continues_and_saves(tmp_path):
    trainer = trainer_of(keep_all(tmp_path, at_end=True))
    handle = trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), fail)
    with pytest.raises(Failure):
        trainer.run(max_epochs=2)
    handle.remove()
    trainer.run(max_epochs=1)
    assert saved(tmp_path) == [(1, 6, 3)]
    assert_resumes_like_an_unbroken_run(tmp_path)


# Interruptions


def test_interruptions_save_nothing_and_keep_the_schedule(tmp_path):
    trainer = trainer_of(keep_all(tmp_path, every_steps=2, at_end=True))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, trainer.interrupt)
    seen = []
    while trainer.stop_reason is None:
        trainer.run(max_epochs=2)
        seen.append([step for *_, step in saved(tmp_path)])
    assert seen == [[]] * 3 + [[2]] * 4 + [[2, 4]] * 5 + [[2, 4, 6]]
    assert_resumes_like_an_unbroken_run(tmp_path)


WITHIN = {
    "a window": Events.ITERATION_COMPLETED(once=3),
    "a batch": Events.ITERATION_STARTED(once=3),
    "the fetching": Events.GET_BATCH_COMPLETED(once=2),
}


@pytest.mark.parametrize("where", WITHIN)
def test_call_while_interrupted_within_a_step_is_an_error(tmp_path, where):
    handler = keep_all(tmp_path, every_steps=10)
    trainer = trainer_of(handler)
    trainer.add_event_handler(WITHIN[where], trainer.interrupt)
    trainer.run(max_epochs=2)
    with pytest.raises(RuntimeError, match=r"between two steps, .* within a step: save at"):
        handler(trainer)
    assert saved(tmp_path) == []
    trainer.run()
    handler(trainer)
    assert saved(tmp_path) == [LAST]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (TrainEvents.STEP_COMPLETED(once=2), (0, 4, 2)),
        (Events.ITERATION_COMPLETED(once=4), (0, 4, 2)),
        (Events.EPOCH_COMPLETED(once=1), (1, 6, 3)),
        (Events.EPOCH_STARTED(once=2), (1, 6, 3)),
    ],
)
def test_call_while_interrupted_between_steps_saves(tmp_path, event, expected):
    handler = keep_all(tmp_path, every_steps=10)
    trainer = trainer_of(handler)
    trainer.add_event_handler(event, trainer.interrupt)
    trainer.run(max_epochs=2)
    handler(trainer)
    assert saved(tmp_path) == [expected]
    assert_resumes_like_an_unbroken_run(tmp_path)


@pytest.mark.parametrize(
    ("event", "before", "after"),
    [
        (Events.ITERATION_COMPLETED(once=4), [(0, 4, 2)], [(0, 4, 2)]),
        (Events.ITERATION_COMPLETED(once=3), [], [(0, 4, 2)]),
        (Events.GET_BATCH_COMPLETED(once=4), [], [(1, 6, 3)]),
        (Events.ITERATION_STARTED(once=3), [], [(0, 4, 2)]),
    ],
)
def test_attached_to_interrupt_it_saves_at_a_step_boundary(tmp_path, event, before, after):
    trainer = trainer_of(keep_all(tmp_path, every_steps=10))
    keep_all(tmp_path / "at", on_signals=()).attach(trainer, Events.INTERRUPT)
    trainer.add_event_handler(event, trainer.interrupt)
    trainer.run(max_epochs=2)
    assert saved(tmp_path / "at") == before
    trainer.run()
    assert saved(tmp_path / "at") == after
    assert_resumes_like_an_unbroken_run(tmp_path / "at")


def test_signals_are_not_noted_while_a_run_is_interrupted(tmp_path, before):
    ours = signal.getsignal(signal.SIGTERM)
    trainer = trainer_of(keep_all(tmp_path))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), trainer.interrupt)
    trainer.run(max_epochs=2)
    assert signal.getsignal(signal.SIGTERM) is ours
    send()
    assert before == ["SIGTERM"]
    trainer.run()
    assert (trainer.stop_reason, saved(tmp_path)) == ("max_epochs", [])
    assert signal.getsignal(signal.SIGTERM) is ours


def test_signal_before_an_interruption_is_handled_afterwards(tmp_path, before):
    trainer = trainer_of(keep_all(tmp_path))
    event = Events.ITERATION_COMPLETED(once=3)
    trainer.add_event_handler(event, lambda: (send(), trainer.interrupt()))
    trainer.run(max_epochs=2)
    trainer.run()
    assert (trainer.stop_reason, before, saved(tmp_path)) == ("SIGTERM", [], [(0, 4, 2)])


# Signals: none of the saves in these tests is due by a schedule.


class Signalling:
    """An object that sends a signal when its state is saved for the first time after a step."""

    def __init__(self):
        self.is_armed = False
        self.sends = None

    def attach(self, engine):
        event = TrainEvents.STEP_COMPLETED(once=1)
        engine.add_event_handler(event, lambda: setattr(self, "is_armed", True))

    def state_dict(self):
        if self.is_armed:
            self.is_armed = False
            send()
        if self.sends is not None:
            self.sends()
        return {}

    def load_state_dict(self, state_dict):
        pass


SIGNALS = {
    "in the middle of a window": (Events.ITERATION_COMPLETED(once=3), (0, 4, 2)),
    "in a forward": (TrainEvents.MODEL_FORWARD_COMPLETED(once=2), (0, 2, 1)),
    "before the optimizer steps": (TrainEvents.OPTIMIZER_STEP_STARTED(once=1), (0, 4, 2)),
    "after a step": (Events.ITERATION_COMPLETED(once=2), (0, 2, 1)),
    "when a step is completed": (TrainEvents.STEP_COMPLETED(once=1), (0, 4, 2)),
    "in a validation": (TrainEvents.VALIDATION_STARTED(once=1), (0, 4, 2)),
    "in a validation after an epoch": (TrainEvents.VALIDATION_STARTED(once=3), (1, 8, 4)),
    "before the first step": (Events.STARTED, (0, 2, 1)),
    "in the last batch of an epoch": (TrainEvents.MODEL_FORWARD_COMPLETED(once=6), (1, 6, 3)),
    "after an epoch": (Events.EPOCH_COMPLETED(once=1), (1, 8, 4)),
    "in the last batch of all": (TrainEvents.MODEL_FORWARD_COMPLETED(once=12), LAST),
    "after the last step": (Events.ITERATION_COMPLETED(once=12), LAST),
    "when all is done": (Events.COMPLETED, LAST),
}


@pytest.mark.parametrize("case", SIGNALS)
def test_a_signal_saves_the_next_boundary_and_ends_the_run(tmp_path, before, case):
    event, expected = SIGNALS[case]
    trainer = trainer_of(keep_all(tmp_path), validation=Validation(lambda: None, every_steps=1))
    ours = signal.getsignal(signal.SIGTERM)
    trainer.add_event_handler(event, lambda: send())
    trainer.run(max_epochs=2)
    assert trainer.stop_reason == "SIGTERM"
    assert saved(tmp_path) == [expected]
    assert (before, signal.getsignal(signal.SIGTERM)) == ([], ours)
    assert_resumes_like_an_unbroken_run(tmp_path)


def test_a_signal_in_the_last_batch_of_an_epoch_lets_it_complete(tmp_path, before):
    trainer = trainer_of(keep_all(tmp_path))
    event, _ = SIGNALS["in the last batch of an epoch"]
    trainer.add_event_handler(event, lambda: send())
    events = [Events.EPOCH_COMPLETED, TrainEvents.CHECKPOINT_SAVED, Events.TERMINATE]
    names = record(trainer, [*events, Events.COMPLETED])
    trainer.run(max_epochs=2)
    assert [name for name, *_ in names] == [*(event.name for event in events), "COMPLETED"]


def test_handlers_at_the_end_see_the_signal_as_stop_reason(tmp_path, before):
    trainer, told = trainer_of(keep_all(tmp_path)), []
    for event in (TrainEvents.CHECKPOINT_SAVED, Events.TERMINATE, Events.COMPLETED):
        trainer.add_event_handler(event, lambda: told.append(trainer.stop_reason))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: send())
    trainer.run(max_epochs=2)
    assert told == ["SIGTERM"] * 3


def test_a_signal_during_a_save_does_not_break_it_off(tmp_path, before):
    it = Signalling()
    trainer = trainer_of(keep_all(tmp_path, every_steps=2, also={"it": it}), handlers=[it])
    trainer.run(max_epochs=2)
    assert trainer.stop_reason == "SIGTERM"
    assert saved(tmp_path) == [(0, 4, 2), (1, 6, 3)]


def test_a_signal_during_the_last_save_makes_no_further_save(tmp_path, before):
    it = Signalling()
    trainer = trainer_of(keep_all(tmp_path, at_end=True, also={"it": it}), handlers=[it])
    trainer.run(max_epochs=2)
    assert (trainer.stop_reason, saved(tmp_path)) == ("SIGTERM", [LAST])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_any_signal_in_on_signals_ends_the_run(tmp_path, before, name):
    trainer = trainer_of(keep_all(tmp_path, on_signals=("SIGINT", "SIGUSR1", "SIGTERM")))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: send(name))
    trainer.run(max_epochs=2)
    assert (trainer.stop_reason, before, saved(tmp_path)) == (name, [], [(0, 2, 1)])


@pytest.mark.parametrize("names", [(), ("SIGUSR1",)])
def test_other_signals_call_their_previous_handlers(tmp_path, before, names):
    trainer = trainer_of(keep_all(tmp_path, on_signals=names, at_end=True))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: send())
    trainer.run(max_epochs=2)
    assert (trainer.stop_reason, before, saved(tmp_path)) == ("max_epochs", ["SIGTERM"], [LAST])


@pytest.mark.parametrize("case", ["in a window", "in the save", "at the end", "in the thread"])
def test_further_signals_within_the_grace_are_one_request(tmp_path, before, case):
    it = Signalling()
    options = {"also": {"it": it}, "background": case == "in the thread"}
    trainer = trainer_of(keep_all(tmp_path, on_signals=("SIGTERM", "SIGUSR1"), **options))
    storm = lambda: [send(name) for name in ("SIGUSR1", "SIGTERM") * 20]  # noqa: E731
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: send())
    if case == "in a window":
        trainer.add_event_handler(Events.ITERATION_STARTED(once=2), storm)
    elif case == "in the save":
        trainer.add_event_handler(TrainEvents.STEP_COMPLETED, lambda: setattr(it, "sends", storm))
    else:
        trainer.add_event_handler(Events.TERMINATE, storm)
    trainer.run(max_epochs=2)
    # When the state is on the disk, a further signal calls its previous handler.
    assert before == (["SIGUSR1", "SIGTERM"] * 20 if case == "at the end" else [])
    assert (trainer.stop_reason, saved(tmp_path)) == ("SIGTERM", [(0, 2, 1)])


def test_second_signal_gets_its_previous_handler(tmp_path, before):
    trainer = trainer_of(keep_all(tmp_path, grace_seconds=0))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: (send(), send()))
    trainer.run(max_epochs=2)
    assert (trainer.stop_reason, before) == ("SIGTERM", ["SIGTERM"])
    assert saved(tmp_path) == [(0, 2, 1)]


def test_second_ctrl_c_raises_keyboard_interrupt_without_saving(tmp_path, before):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    options = {"on_signals": ("SIGINT",), "grace_seconds": 0, "at_end": True}
    trainer = trainer_of(keep_all(tmp_path, **options))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: send("SIGINT"))
    trainer.add_event_handler(Events.ITERATION_STARTED(once=2), lambda: send("SIGINT"))
    with pytest.raises(KeyboardInterrupt):
        trainer.run(max_epochs=2)
    assert saved(tmp_path) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signal_handlers_are_restored_after_a_failure(tmp_path, before):
    ours = signal.getsignal(signal.SIGTERM)
    trainer = trainer_of(keep_all(tmp_path))
    within = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=1), lambda: within.append(signal.getsignal(signal.SIGTERM))
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), fail)
    with pytest.raises(Failure):
        trainer.run(max_epochs=2)
    assert within[0] is not ours
    assert signal.getsignal(signal.SIGTERM) is ours


def test_trainer_continues_unbroken_after_a_signal(tmp_path, before):
    trainer, unbroken = trainer_of(keep_all(tmp_path)), trainer_of()
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: send())
    trainer.run(max_epochs=2)
    assert trainer.state.iteration == 4
    trainer.run(max_epochs=2)
    unbroken.run(max_epochs=2)
    assert trainer.stop_reason == "max_epochs"
    assert torch.equal(weights(trainer.model), weights(unbroken.model))


def test_outside_the_main_thread_signals_are_left_alone(tmp_path, before):
    trainer = trainer_of(keep_all(tmp_path, at_end=True))
    ours, within = signal.getsignal(signal.SIGTERM), []

    @trainer.on(Events.ITERATION_COMPLETED(once=1))
    def look():
        within.append(signal.getsignal(signal.SIGTERM))
        send()

    thread = threading.Thread(target=trainer.run, kwargs={"max_epochs": 2})
    thread.start()
    thread.join()
    assert within == [ours]
    assert before == ["SIGTERM"]
    assert (trainer.stop_reason, saved(tmp_path)) == ("max_epochs", [LAST])


def test_an_inner_trainer_leaves_signals_to_the_outer_one(tmp_path, before):
    ours = signal.getsignal(signal.SIGTERM)
    outer = trainer_of(keep_all(tmp_path / "outer"))
    outer.add_event_handler(
        Events.ITERATION_COMPLETED(once=1),
        lambda: trainer_of(keep_all(tmp_path / "inner")).run(max_epochs=1),
    )
    outer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: send())
    outer.run(max_epochs=2)
    assert (outer.stop_reason, before) == ("SIGTERM", [])
    assert saved(tmp_path / "outer") == [(0, 4, 2)]
    assert signal.getsignal(signal.SIGTERM) is ours


def test_a_signal_within_an_inner_trainer_ends_both(tmp_path, before):
    ours = signal.getsignal(signal.SIGTERM)
    outer, inner = (
        trainer_of(keep_all(tmp_path / "outer")),
        trainer_of(keep_all(tmp_path / "inner")),
    )
    inner.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: send())
    event = Events.ITERATION_COMPLETED(once=1)
    outer.add_event_handler(event, lambda: inner.run(max_epochs=1))
    outer.run(max_epochs=2)
    assert (inner.stop_reason, saved(tmp_path / "inner")) == ("SIGTERM", [(0, 2, 1)])
    assert (outer.stop_reason, saved(tmp_path / "outer")) == ("SIGTERM", [(0, 2, 1)])
    assert (before, signal.getsignal(signal.SIGTERM)) == ([], ours)


@pytest.mark.parametrize("signals", [1, 2])
def test_two_handlers_both_save_and_count_signals_together(tmp_path, before, signals):
    ours = signal.getsignal(signal.SIGTERM)
    handlers = [keep_all(tmp_path / name, grace_seconds=0) for name in ("one", "other")]
    trainer = trainer_of(handlers=handlers)
    event = Events.ITERATION_COMPLETED(once=1)
    trainer.add_event_handler(event, lambda: [send() for _ in range(signals)])
    trainer.run(max_epochs=2)
    assert trainer.stop_reason == "SIGTERM"
    assert saved(tmp_path / "one") == saved(tmp_path / "other") == [(0, 2, 1)]
    assert before == ["SIGTERM"] * (signals - 1)
    assert signal.getsignal(signal.SIGTERM) is ours


def test_handler_attached_twice_restores_the_signals(tmp_path, before):
    ours, handler = signal.getsignal(signal.SIGTERM), keep_all(tmp_path, every_epochs=1)
    trainer = trainer_of(handler)
    handler.attach(trainer, Events.ITERATION_COMPLETED(once=4))
    trainer.run(max_epochs=2)
    assert saved(tmp_path) == [(0, 4, 2), (1, 6, 3), LAST]
    assert signal.getsignal(signal.SIGTERM) is ours


def test_a_signal_with_two_names_may_be_given_by_either(tmp_path, before):
    trainer = trainer_of(keep_all(tmp_path, on_signals=("SIGPOLL",)))  # Python calls it SIGIO
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: send("SIGIO"))
    trainer.run(max_epochs=2)
    assert trainer.stop_reason in ("SIGPOLL", "SIGIO")
    assert saved(tmp_path) == [(0, 2, 1)]


# Resuming what the schedules see


def test_a_resumed_run_keeps_the_schedules_of_the_whole_run(tmp_path):
    schedule = {"every_steps": 4, "every_epochs": 2, "at_end": True}
    trainer_of(keep_all(tmp_path, **schedule)).run(max_steps=2)
    resume = ResumeCheckpoint(tmp_path)
    trainer_of(keep_all(tmp_path, **schedule), resume_from=resume).run(max_epochs=4)
    assert [step for *_, step in saved(tmp_path)] == [2, 4, 6, 8, 12]
