"""Signals that break an evaluator off between two batches, and the repeated validation."""

import os
import signal

import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Engine
from ignite.engine import Events
from ignite.handlers import EarlyStopping
from ignite.metrics import Loss

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks.checkpoint.store import CheckpointStore
from tests.reference import batches_of
from tests.reference import make_trainer
from tests.reference import weights

# The tests record in lists, which are not in a checkpoint: a resume warns of that.
pytestmark = pytest.mark.filterwarnings("ignore:resumed from")

MARKS = {
    TrainEvents.VALIDATION_STARTED: "<",
    TrainEvents.VALIDATION_COMPLETED: ">",
    TrainEvents.CHECKPOINT_SAVED: "S",
    Events.EPOCH_COMPLETED: "E",
    Events.TERMINATE: "T",
    Events.COMPLETED: "C",
}


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def stop(*_):
    signal.raise_signal(signal.SIGTERM)


class Run:
    """A trainer of two epochs of four steps, its evaluator, and a log of calls, one letter each."""

    def __init__(self, folder, *, resumes=False, save=None, **options):
        self.letters = []
        options.setdefault("checkpoint", SaveCheckpoint(folder, **(save or {"every_epochs": 1})))
        self.trainer = make_trainer(batches_of(4), **options)
        self.evaluator = self.make_evaluator()
        for event, letter in MARKS.items():
            self.trainer.add_event_handler(event, self.add, letter)
        self.folder, self.resumes = folder, resumes

    def make_evaluator(self):
        metrics = {"loss": Loss(F.mse_loss)}
        accelerator = self.trainer.accelerator
        return create_supervised_evaluator(self.trainer.model, metrics, accelerator=accelerator)

    def add(self, *arguments):
        self.letters.append(arguments[-1])

    def validate(self, evaluate=None, data=None, event=None, **options):
        evaluate = evaluate or self.evaluator
        options = options or ({} if event else {"every_epochs": 1})
        if data is None and (isinstance(evaluate, Engine | dict)):
            data = batches_of(3)
        Validation(evaluate, data, **options).attach(self.trainer, event)

    def stop_at_batch(self, number, evaluator=None):
        """Sends a signal in the n-th of all batches that are evaluated."""
        event = Events.ITERATION_STARTED
        seen = []

        def count():
            seen.append(1)
            if len(seen) == number:
                stop()

        (evaluator or self.evaluator).add_event_handler(event, count)

    def __call__(self):
        if self.resumes:
            ResumeCheckpoint(self.folder).attach(self.trainer)
        self.trainer.run(max_epochs=2)
        return "".join(self.letters)

    @property
    def saved(self):
        """Returns complete epochs, iteration and metric of each checkpoint."""
        manifests = [each.manifest for each in CheckpointStore(self.folder).checkpoints()]
        return [(each.epoch, each.iteration, each.metric_value) for each in reversed(manifests)]


def a_plain_engine(run):
    return Engine(lambda engine, batch: run.trainer.model(batch[0]))


def the_evaluator(run):
    return run.evaluator


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("make", [the_evaluator, a_plain_engine])
def test_an_evaluator_ends_without_the_events_of_its_results(tmp_path, make, batch):
    run, letters = Run(tmp_path), []
    evaluator = make(run)
    for event, letter in {
        Events.ITERATION_COMPLETED: ".",
        Events.EPOCH_COMPLETED: "e",
        Events.COMPLETED: "c",
        Events.TERMINATE: "t",
        Events.EXCEPTION_RAISED: "!",
    }.items():
        evaluator.add_event_handler(event, lambda *_, letter=letter: letters.append(letter))
    run.validate(evaluator)
    run.stop_at_batch(batch, evaluator)
    before = weights(run.trainer.model).sum()
    assert run() == "<STC"
    assert "".join(letters) == "." * batch + "t"
    assert weights(run.trainer.model).sum() != before
    assert run.trainer.model.training
    assert (run.trainer.state.validation, run.trainer.state.metrics) == (0, {})
    assert (evaluator.state.metrics, run.trainer.stop_reason) == ({}, "SIGTERM")


def test_results_of_the_previous_validation_are_kept(tmp_path):
    run = Run(tmp_path)
    run.validate()
    run.stop_at_batch(5)
    assert run() == "<>ES<STC"
    results = run.evaluator.state.metrics
    assert run.trainer.state.metrics == {"val_loss": results["loss"]}
    assert run.trainer.state.validation == 1


SIGNAL_POINTS = {
    "VALIDATION_STARTED": ("<STC", "<.>ES<.>ESC"),
    "the callable before": ("<cSTC", "<c.>ES<c.>ESC"),
    "the evaluator before": ("<.STC", "<.>ES<.>ESC"),
    "the callable after": ("<.c>ESSTC", "<.c>ESC"),
    "the last batch of an epoch": ("STC", "<.>ES<.>ESC"),
}


@pytest.mark.parametrize("point", SIGNAL_POINTS)
def test_nothing_begins_after_a_signal(tmp_path, point):
    def made(*, is_stopped):
        run = Run(tmp_path, resumes=not is_stopped)
        run.evaluator.add_event_handler(Events.COMPLETED, run.add, ".")
        act = stop if is_stopped else int

        def evaluate():
            run.add("c")
            act()

        if point == "the callable before":
            run.validate(evaluate)
        if point == "the evaluator before":
            run.validate({"a": run.evaluator, "b": run.make_evaluator()})
            run.evaluator.add_event_handler(Events.COMPLETED(once=1), lambda: act())
        else:
            run.validate()
        if point == "the callable after":
            run.validate(evaluate)
        if point == "VALIDATION_STARTED":
            run.trainer.add_event_handler(TrainEvents.VALIDATION_STARTED, lambda: act())
        if point == "the last batch of an epoch":
            run.trainer.add_event_handler(Events.ITERATION_STARTED(once=4), lambda: act())
        return run()

    assert (made(is_stopped=True), made(is_stopped=False)) == SIGNAL_POINTS[point]


@pytest.mark.parametrize("way", ["callables alone", "at an event", "by a handler"])
def test_callables_and_nested_runs_delay_the_stop(tmp_path, way):
    run = Run(tmp_path)
    if way == "callables alone":
        run.validate(lambda: stop())
        run.validate(lambda: run.add("b"), every_epochs=1)
    elif way == "at an event":
        run.validate(event=Events.EPOCH_COMPLETED)
    else:
        evaluate = lambda: run.evaluator.run(batches_of(3))  # noqa: E731
        run.trainer.add_event_handler(Events.EPOCH_COMPLETED, evaluate)
    run.stop_at_batch(2)
    assert (
        run()
        == {
            "callables alone": "<b>ESSTC",
            "at an event": "E<>SSTC",
            "by a handler": "ESSTC",
        }[way]
    )
    assert run.saved[-1][:2] == (1, 5)  # at the next step boundary


# Weights that are swapped in for a validation must not be saved


def swapping(model):
    """Swaps weights of zero in and out, as users swap averaged weights."""
    kept = []

    def swap_in(*_):
        kept[:] = [each.detach().clone() for each in model.parameters()]
        for each in model.parameters():
            each.data.zero_()

    def swap_out(*_):
        for each, before in zip(model.parameters(), kept, strict=True):
            each.data.copy_(before)

    return swap_in, swap_out


def test_contexts_are_left_without_an_exception(tmp_path):
    run = Run(tmp_path)
    swap_in, swap_out = swapping(run.trainer.model)

    @run.trainer.hooks.on("on_validation")
    def swapped(engine):
        swap_in()
        yield
        swap_out()
        run.add(")")

    run.validate()
    run.stop_at_batch(2)
    assert run() == "<)STC"
    assert weights(run.trainer.model).any()


SWAPS = {
    "the validation": (TrainEvents.VALIDATION_STARTED, TrainEvents.VALIDATION_COMPLETED),
    "the evaluator": (Events.STARTED, Events.COMPLETED),
    "its epoch": (Events.EPOCH_STARTED, Events.EPOCH_COMPLETED),
}


@pytest.mark.parametrize("events", SWAPS)
def test_weights_swapped_by_handlers_delay_the_stop(tmp_path, events):
    run = Run(tmp_path)
    swap_in, swap_out = swapping(run.trainer.model)
    owner = run.trainer if events == "the validation" else run.evaluator
    begin, end = SWAPS[events]
    owner.add_event_handler(begin, swap_in)
    owner.add_event_handler(end, swap_out)
    run.validate()
    run.stop_at_batch(2)
    assert run() == "<>ESSTC"
    assert weights(run.trainer.model).any()


def test_breaks_off_between_two_evaluators_that_swap_weights(tmp_path):
    run = Run(tmp_path)
    swap_in, swap_out = swapping(run.trainer.model)
    run.evaluator.add_event_handler(Events.STARTED, swap_in)
    run.evaluator.add_event_handler(Events.COMPLETED, swap_out)
    run.evaluator.add_event_handler(Events.COMPLETED, run.add, ".")
    run.validate(data={"a": batches_of(3), "b": batches_of(3)})
    run.stop_at_batch(2)
    assert run() == "<.STC"
    assert weights(run.trainer.model).any()


# The validation and the save are repeated by the next run


def test_state_of_a_completed_evaluators_handlers_is_restored(tmp_path):
    counts = []
    for resumes in (False, True):
        run = Run(tmp_path, resumes=resumes)
        worse = lambda engine: -run.trainer.state.iteration  # noqa: B023, E731
        stopping = EarlyStopping(9, worse, run.trainer)
        run.evaluator.add_event_handler(Events.COMPLETED, stopping)
        second = run.make_evaluator()
        run.validate()
        run.validate(second, every_epochs=1, prefix="second_")
        if not resumes:
            run.stop_at_batch(5, second)
        run()
        counts.append(stopping.counter)
    assert counts == [0, 1]


BEST = {"keep_best": 1, "metric": "val_loss", "keep_last": 1, "mode": "min"}


@pytest.mark.parametrize(
    ("schedule", "batch", "at", "made_up"),
    [
        ({"every_epochs": 1}, 2, (0, 4), (1, 4)),
        ({"every_steps": 2}, 2, (0, 2), (0, 2)),
        ({"every_steps": 2}, 5, (0, 4), (1, 4)),
    ],
)
def test_a_due_save_is_repeated_with_the_metric(tmp_path, schedule, batch, at, made_up):
    run = Run(tmp_path, save={**schedule, **BEST})
    run.validate(**schedule)
    run.stop_at_batch(batch)
    run()
    assert run.saved[-1] == (*at, None)
    resumed = Run(tmp_path, resumes=True, save={**schedule, **BEST})
    resumed.validate(**schedule)
    losses = []

    @resumed.trainer.on(TrainEvents.CHECKPOINT_SAVED(event_filter=lambda *_: not losses))
    def look():
        losses.append(resumed.trainer.state.metrics["val_loss"])
        assert resumed.saved[-1] == (*made_up, losses[0])

    resumed()
    assert losses


@pytest.mark.parametrize("point", [Events.ITERATION_STARTED, TrainEvents.VALIDATION_STARTED])
@pytest.mark.parametrize("way", ["another process", "the same process"])
def test_a_save_that_was_not_due_is_not_repeated(tmp_path, point, way):
    run = Run(tmp_path, save={"at_end": False, "keep_last": "all"})
    run.validate(every_steps=2)
    signals = iter([stop])

    def stop_once():
        if run.trainer.state.iteration == 2:
            next(signals, int)()

    run.trainer.add_event_handler(point, stop_once)
    run()
    if way == "another process":
        run = Run(tmp_path, resumes=True, save={"at_end": False, "keep_last": "all"})
        run.validate(every_steps=2)
    run()
    assert [iteration for _, iteration, _ in run.saved] == [2]


def test_a_signal_before_the_repeated_validation_saves_nothing(tmp_path):
    run = Run(tmp_path)
    run.validate()
    run.evaluator.add_event_handler(Events.ITERATION_STARTED, stop)
    assert run() == "<STC"
    run.letters.clear()
    assert run() == "<TC"
    assert len(run.saved) == 1


def test_after_a_failed_save_the_epoch_is_still_completed(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.validate()
    run.stop_at_batch(2)

    def fail(*arguments):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointStore, "commit", fail)
        with pytest.raises(OSError, match="no space left"):
            run()
    assert run() == "<<>ES<>ESC"
    whole = Run(tmp_path / "whole")
    whole.validate()
    whole()
    assert torch.equal(weights(run.trainer.model), weights(whole.trainer.model))


def test_a_removed_validation_is_not_repeated(tmp_path):
    run = Run(tmp_path)
    attachment = Validation(run.evaluator, batches_of(3), every_epochs=1).attach(run.trainer)
    run.stop_at_batch(2)
    assert run() == "<STC"
    attachment.remove()
    run.letters.clear()
    assert run() == "ESESC"


def test_a_new_run_does_not_repeat_a_broken_off_validation(tmp_path):
    run = Run(tmp_path)
    run.validate(every_steps=3)
    run.stop_at_batch(2)
    assert run() == "<STC"
    run.letters.clear()
    run.trainer.state.max_epochs = None
    assert run() == "<>ES<>ESC"
