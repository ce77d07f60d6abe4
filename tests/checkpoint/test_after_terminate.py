"""The reason for the end of a run decides whether a resumed process continues to train."""

import re
import signal
import warnings

import pytest
import torch
from ignite.engine import Events
from ignite.handlers import EarlyStopping
from ignite.handlers import FastaiLRFinder
from ignite.handlers import TerminateOnNan
from ignite.handlers import TimeLimit

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks.checkpoint import assert_resumable
from ignite_hooks.checkpoint.__main__ import main
from tests.reference import make_trainer
from tests.reference import shuffled
from tests.reference import weights

END = 6  # the iteration after which the first run is ended, of 15


class Budget(TimeLimit):
    """A user's own time limit."""


class Patience:
    """A user's handler that calls ``terminate()`` from another of its methods."""

    def __call__(self, trainer):
        self._end(trainer)

    def _end(self, trainer):
        trainer.terminate()


def early_stopping(trainer):
    return EarlyStopping(1, lambda engine: -engine.state.iteration, trainer)


def expired(kind):
    limit = kind(1)
    limit.limit_sec = -1
    return limit


def nan(trainer):
    return TerminateOnNan(output_transform=lambda loss: float("nan"))


def stop_when_bored(trainer):
    trainer.terminate()


def set_the_flag(trainer):
    trainer.should_terminate = True


def resumable_flag(trainer):
    trainer.terminate(resumable=True)


def twice(trainer):
    trainer.terminate(resumable=True)
    trainer.terminate()


def withdrawn(trainer):
    trainer.terminate()
    trainer.should_terminate = False
    trainer.terminate(resumable=True)


def withdrawn_before_a_signal(trainer):
    trainer.terminate()
    trainer.should_terminate = False
    signal.raise_signal(signal.SIGTERM)


FINAL = {
    "EarlyStopping": (early_stopping, "EarlyStopping"),
    "TerminateOnNan": (nan, "TerminateOnNan"),
    "a class": (lambda trainer: Patience(), "Patience"),
    "a function": (lambda trainer: stop_when_bored, "terminate"),
    "the flag": (lambda trainer: set_the_flag, "terminate"),
    "a resumable request and a final one": (lambda trainer: twice, "terminate"),
}
RESUMABLE = {
    "TimeLimit": (lambda trainer: expired(TimeLimit), "TimeLimit"),
    "a subclass of TimeLimit": (lambda trainer: expired(Budget), "Budget"),
    "terminate(resumable=True)": (lambda trainer: resumable_flag, "terminate"),
    "a signal": (lambda trainer: lambda _: signal.raise_signal(signal.SIGTERM), "SIGTERM"),
    "a final request that was withdrawn": (lambda trainer: withdrawn, "terminate"),
    "one withdrawn before a signal": (lambda trainer: withdrawn_before_a_signal, "SIGTERM"),
}


def start(directory, *, end=None, event=None, after_terminate="finish", **options):
    """Returns the trainer of a job, which saves to a directory and resumes from it."""
    torch.manual_seed(1)
    trainer = make_trainer(
        shuffled(),
        dropout=0.5,
        checkpoint=SaveCheckpoint(directory, **{"every_steps": 1, **options}),
        resume_from=ResumeCheckpoint(
            directory, on_missing="start", after_terminate=after_terminate
        ),
    )
    if end is not None:
        event = event or Events.ITERATION_COMPLETED
        handler = end(trainer)
        trainer.add_event_handler(
            event(event_filter=lambda _, count: trainer.state.iteration >= END),
            lambda: handler(trainer),
        )
    return trainer


@pytest.fixture
def unbroken(tmp_path):
    trainer = start(tmp_path / "unbroken")
    trainer.run(max_epochs=3)
    return weights(trainer.model)


ENDS = {
    "a limit": lambda trainer: trainer.run(max_epochs=1),
    "max_steps": lambda trainer: trainer.run(max_steps=4),
    "a signal": lambda trainer: (end_at(trainer, 4, send), trainer.run(max_epochs=3)),
    "a clock": lambda trainer: (
        end_at(trainer, 4, lambda: resumable_flag(trainer)),
        trainer.run(max_epochs=3),
    ),
}


def send():
    signal.raise_signal(signal.SIGTERM)


def end_at(trainer, iteration, function):
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=iteration), lambda: function())


@pytest.mark.parametrize("event", [Events.TERMINATE, Events.COMPLETED])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("way", [stop_when_bored, set_the_flag])
def test_a_request_after_the_end_does_not_finish_a_run(event, end, way, tmp_path, unbroken):
    """For example, an EarlyStopping on the evaluator of a final test requests it."""
    first = start(tmp_path)
    first.add_event_handler(event, way)
    ENDS[end](first)
    assert first.ended_by is None
    again = start(tmp_path)
    again.run(max_epochs=3)
    assert torch.equal(weights(again.model), unbroken)


@pytest.mark.parametrize("case", FINAL)
def test_a_run_that_a_handler_ended_for_good_is_finished(case, tmp_path):
    end, reason = FINAL[case]
    first = start(tmp_path, end=end)
    first.run(max_epochs=3)
    assert first.stop_reason == reason
    assert first.ended_by is not None
    ended_at = first.state.iteration
    assert ended_at < 15
    for _ in range(2):
        again = start(tmp_path, end=end)
        with pytest.warns(UserWarning, match=f"{re.escape(first.ended_by)} ended this run"):
            again.run(max_epochs=3)
        assert (again.state.iteration, again.stop_reason) == (ended_at, reason)
        assert torch.equal(weights(again.model), weights(first.model))


@pytest.mark.parametrize("case", RESUMABLE)
def test_a_run_that_a_clock_ended_is_continued_by_the_next_job(case, tmp_path, unbroken):
    end, reason = RESUMABLE[case]
    first = start(tmp_path / "run", end=end)
    first.run(max_epochs=3)
    assert (first.stop_reason, first.ended_by) == (reason, None)
    assert first.state.iteration == END
    again = start(tmp_path / "run")
    again.run(max_epochs=3)
    assert again.stop_reason == "max_epochs"
    assert torch.equal(weights(again.model), unbroken)


EVENTS = {
    "in the window after a save": (Events.ITERATION_STARTED, {}),
    "after a step": (TrainEvents.STEP_COMPLETED, {}),
    "when it was saved": (TrainEvents.CHECKPOINT_SAVED, {}),
    "after an epoch": (Events.EPOCH_COMPLETED, {}),
    "with a save by epoch": (Events.EPOCH_COMPLETED, {"every_steps": None, "every_epochs": 1}),
    "with a save at the end": (TrainEvents.STEP_COMPLETED, {"every_steps": None}),
    "in the background": (TrainEvents.STEP_COMPLETED, {"background": True}),
}


@pytest.mark.parametrize("when", EVENTS)
def test_the_last_checkpoint_says_that_the_run_was_ended(when, tmp_path):
    event, options = EVENTS[when]
    first = start(tmp_path, end=lambda trainer: stop_when_bored, event=event, **options)
    first.run(max_epochs=3)
    again = start(tmp_path, **options)
    with pytest.warns(UserWarning, match=r"stop_when_bored ended this run in epoch [12],"):
        again.run(max_epochs=3)
    assert again.state.iteration == first.state.iteration
    names = [path.name for path in tmp_path.iterdir()]
    # The end is noted in the last checkpoint, and not saved as another one of the same step.
    assert not [name for name in names if name.endswith("-2")]
    assert main(["verify", str(tmp_path)]) == 0


@pytest.mark.parametrize("event", [Events.EPOCH_COMPLETED, Events.EPOCH_COMPLETED(once=1)])
def test_terminate_as_a_handler_is_not_named_after_its_caller(event, tmp_path):
    first = start(tmp_path)
    first.add_event_handler(event, first.terminate)
    first.run(max_epochs=3)
    with pytest.warns(UserWarning, match=r"terminate\(\) in a handler ended this run"):
        start(tmp_path).run(max_epochs=3)


@pytest.mark.parametrize("way", ["another checkpoint", "a state of Ignite's"])
def test_a_later_load_replaces_the_end_of_the_run(way, tmp_path):
    start(tmp_path, end=early_stopping).run(max_epochs=3)
    trainer = start(tmp_path)
    assert trainer.ended_by == "EarlyStopping"
    if way == "another checkpoint":
        ResumeCheckpoint(tmp_path, after_terminate="continue").attach(trainer)
    else:
        trainer.load_state_dict({"iteration": 7, "max_epochs": 3, "epoch_length": 5})
    assert trainer.ended_by is None


def test_an_older_checkpoint_continues_to_the_same_end(tmp_path):
    options = {"end": lambda trainer: stop_when_bored, "every_steps": 4, "at_end": False}
    for _ in range(2):
        trainer = start(tmp_path, **options)
        assert trainer.state.iteration in (0, 4)
        trainer.run(max_epochs=3)
        assert (trainer.state.iteration, trainer.stop_reason) == (END, "terminate")


def test_terminate_itself_may_be_the_handler(tmp_path):
    first = start(tmp_path)
    first.add_event_handler(Events.EPOCH_COMPLETED, first.terminate)
    first.run(max_epochs=3)
    assert (first.stop_reason, first.ended_by is None) == ("terminate", False)


def test_requests_of_an_earlier_run_are_forgotten(tmp_path):
    trainer = start(tmp_path)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), resumable_flag)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), set_the_flag)
    trainer.run(max_epochs=3)
    assert trainer.ended_by is None
    trainer.run(max_epochs=3)
    assert (trainer.state.iteration, trainer.ended_by is None) == (4, False)


def test_a_learning_rate_search_does_not_finish_a_run(tmp_path):
    trainer = start(tmp_path)
    to_save = {"model": trainer.model, "optimizer": trainer.optimizer}
    finder = FastaiLRFinder()
    with finder.attach(trainer, to_save, num_iter=8, end_lr=1e6, diverge_th=1.5) as searching:
        searching.run()
    assert (trainer.stop_reason, trainer.ended_by) == ("FastaiLRFinder", None)


def test_reaching_a_limit_is_no_final_end(tmp_path):
    first = start(tmp_path)
    first.run(max_steps=4)
    assert first.ended_by is None
    again = start(tmp_path)
    again.run(max_steps=4)
    assert (again.state.iteration, again.stop_reason) == (4, "max_steps")
    again.run(max_epochs=1)
    assert again.state.iteration == 5


@pytest.mark.filterwarnings("ignore:resumed from")  # the handler that ended the run is missing
def test_after_terminate_continue_trains_like_an_unbroken_run(tmp_path, unbroken):
    start(tmp_path / "run", end=early_stopping).run(max_epochs=3)
    start(tmp_path / "run", after_terminate="continue").run(max_epochs=3)
    again = start(tmp_path / "run")
    again.run(max_epochs=3)
    assert again.state.iteration == 15
    assert torch.equal(weights(again.model), unbroken)


def test_the_next_run_of_the_same_process_continues(tmp_path, unbroken):
    trainer = start(tmp_path / "run")
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=END), stop_when_bored)
    trainer.run(max_epochs=3)
    trainer.run(max_epochs=3)
    assert (trainer.state.iteration, trainer.ended_by) == (15, None)
    assert torch.equal(weights(trainer.model), unbroken)


@pytest.mark.filterwarnings("ignore:resumed from")  # the handler that ended the run is missing
def test_a_higher_limit_does_not_continue_a_finished_run(tmp_path):
    start(tmp_path, end=early_stopping).run(max_epochs=3)
    again = start(tmp_path)
    with pytest.warns(UserWarning, match='pass ResumeCheckpoint\\(after_terminate="continue"\\)'):
        again.run(max_epochs=9)
    assert again.state.iteration < 15


def test_a_finished_trainer_can_begin_a_new_run(tmp_path):
    start(tmp_path, end=early_stopping).run(max_epochs=3)
    again = start(tmp_path)
    again.state.max_epochs = None
    again.run(max_epochs=1)
    assert (again.state.iteration, again.ended_by) == (5, None)


@pytest.mark.filterwarnings("ignore:resumed from")  # the handler that ended the run is missing
def test_a_second_run_continues_after_a_finished_resume(tmp_path, unbroken):
    start(tmp_path / "run", end=early_stopping).run(max_epochs=3)
    again = start(tmp_path / "run")
    with pytest.warns(UserWarning, match="nothing is trained"):
        again.run(max_epochs=3)
    again.run(max_epochs=3)
    assert torch.equal(weights(again.model), unbroken)


def test_a_manual_checkpoint_says_that_the_run_was_ended(tmp_path):
    first = make_trainer(shuffled())
    save = SaveCheckpoint(tmp_path, at_end=False)
    save.attach(first)
    first.add_event_handler(Events.ITERATION_COMPLETED(once=END), stop_when_bored)
    first.run(max_epochs=3)
    save(first)
    with pytest.warns(UserWarning, match="nothing is trained"):
        start(tmp_path).run(max_epochs=3)


def test_terminate_after_a_failure_does_not_finish_the_run(tmp_path):
    trainer = start(tmp_path)
    trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda error: trainer.terminate())

    @trainer.on(Events.ITERATION_COMPLETED(once=END))
    def fail():
        raise ArithmeticError

    trainer.run(max_epochs=3)
    assert (trainer.stop_reason, trainer.ended_by) == ("exception", None)


def test_a_failure_does_not_finish_a_run(tmp_path, unbroken):
    first = start(tmp_path / "run", end=lambda trainer: twice)

    @first.on(Events.ITERATION_COMPLETED(once=END))
    def fail():
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        first.run(max_epochs=3)
    assert first.ended_by is None
    again = start(tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again.run(max_epochs=3)
    assert torch.equal(weights(again.model), unbroken)


def test_early_stopping_ends_every_restart_of_the_job(tmp_path):
    def job():
        torch.manual_seed(1)
        trainer = make_trainer(
            shuffled(),
            validation=Validation(lambda: {"score": -trainer.state.epoch}, every_epochs=1),
            checkpoint=SaveCheckpoint(tmp_path, every_epochs=1),
            resume_from=ResumeCheckpoint(tmp_path, on_missing="start"),
        )
        stopping = EarlyStopping(2, lambda engine: engine.state.metrics["val_score"], trainer)
        trainer.add_event_handler(TrainEvents.VALIDATION_COMPLETED, stopping)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "nothing is trained")
            trainer.run(max_epochs=20)
        return trainer.state.epoch, stopping.counter, trainer.stop_reason

    assert [job(), job(), job()] == [(3, 2, "EarlyStopping")] * 3


def test_assert_resumable_accepts_a_run_that_ends_early(tmp_path):
    def make():
        torch.manual_seed(1)
        trainer = make_trainer(shuffled())
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=END), stop_when_bored)
        return trainer

    assert_resumable(make, max_steps=10, stops=[2, END])
