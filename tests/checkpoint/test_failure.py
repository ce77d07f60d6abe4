"""A run that fails between a signal, which asks for a save, and that save."""

import os
import signal
from collections.abc import Sequence

import pytest
import torch
from ignite.engine import Events

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks.checkpoint.store import CheckpointStore
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import weights

# A report that is not all "exact" is a warning.
pytestmark = pytest.mark.filterwarnings("ignore:resumed from:UserWarning")


class Failure(Exception):
    pass


@pytest.fixture(autouse=True)
def _handled_signal(monkeypatch):
    """Gives the process its own handler of SIGTERM, and skips fsync."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    found = signal.signal(signal.SIGTERM, lambda number, frame: None)
    yield
    signal.signal(signal.SIGTERM, found)


def send():
    os.kill(os.getpid(), signal.SIGTERM)


class Faulty:
    """An object whose method ``fail`` raises at its n-th call and does nothing before."""

    def __init__(self, number=1, error=None):
        self.left = number
        self.error = error or Failure("told to")

    def fail(self, *arguments):
        self.left -= 1
        if self.left == 0:
            raise self.error


@Sequence.register
class Data:
    """A list of batches that fails with one of them."""

    def __init__(self, faulty):
        self.faulty = faulty

    def __iter__(self):
        for batch in batches_of(6):
            self.faulty.fail()
            yield batch

    def __len__(self):
        return 6


def trainer_of(directory=None, data=None, **options):
    if directory is not None:
        saving = {"at_end": False, **options.pop("saving", {})}
        options["checkpoint"] = SaveCheckpoint(directory, **saving)
    return make_trainer(batches_of(6) if data is None else data, accumulation=2, **options)


def saved(directory):
    """Returns the steps of the checkpoints in a directory, the oldest first."""
    return [each.manifest.step for each in reversed(CheckpointStore(directory).checkpoints())]


def notes_of(error):
    return "\n".join(getattr(error, "__notes__", ["(Python 3.10 has none)"]))


def run_into(trainer, error, **limits):
    """Runs until the given error is raised; returns the notes on it."""
    with pytest.raises(type(error)) as raised:
        trainer.run(**(limits or {"max_epochs": 2}))
    assert raised.value is error
    return notes_of(error)


def fails_at(event, number=1):
    def arrange(directory, faulty):
        faulty.left = number
        trainer = trainer_of(directory)
        trainer.add_event_handler(event, faulty.fail)
        return trainer

    return arrange


def fails_in_data(directory, faulty):
    faulty.left = 4
    return trainer_of(directory, Data(faulty))


def fails_in_forward(directory, faulty):
    faulty.left = 4
    model = make_model(0.0)
    model[0].register_forward_pre_hook(lambda *_: faulty.fail())
    return trainer_of(directory, model=model)


def fails_in_validation(directory, faulty):
    faulty.left = 2
    return trainer_of(directory, validation=Validation(faulty.fail, every_steps=1))


# The signal comes in the third iteration, in the window of the second step.
FAILURES = {
    "in the data": (fails_in_data, 1),
    "in the forward": (fails_in_forward, 1),
    "in a handler between batches": (fails_at(Events.GET_BATCH_STARTED, 4), 1),
    "in a handler of a window": (fails_at(Events.ITERATION_COMPLETED(once=3)), 1),
    "in a handler before the step": (fails_at(TrainEvents.OPTIMIZER_STEP_STARTED, 2), 1),
    "in a handler after the step": (fails_at(Events.ITERATION_COMPLETED(once=4)), 2),
    "in a handler of the step": (fails_at(TrainEvents.STEP_COMPLETED(once=2)), 2),
    "in a validation": (fails_in_validation, 2),
}


@pytest.mark.parametrize("where", FAILURES)
def test_last_boundary_is_saved_and_noted_on_the_error(tmp_path, where):
    arrange, step = FAILURES[where]
    faulty = Faulty()
    trainer = arrange(tmp_path, faulty)
    sending = trainer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: send())
    text = run_into(trainer, faulty.error)
    assert (trainer.stop_reason, saved(tmp_path)) == ("exception", [step])
    if hasattr(faulty.error, "add_note"):
        folder = tmp_path / f"step_{step:08d}"
        assert text == (
            f"SIGTERM had asked for a save before the failure: the state of step {step} was saved "
            f"at {folder}"
        )
    resumed, unbroken = trainer_of(resume_from=tmp_path), trainer_of()
    report = resumed.resume_report
    levels = [report.parts[name].level for name in ("model", "optimizer", "random generators")]
    # The module that fails counts its calls in an attribute, which no state has.
    of_model = "unknown" if where == "in the forward" else "exact"
    assert levels == [of_model, "exact", "approximate"]
    resumed.run(max_epochs=2)
    unbroken.run(max_epochs=2)
    assert torch.equal(weights(resumed.model), weights(unbroken.model))
    sending.remove()
    trainer.run(max_epochs=2)  # and the trainer itself runs on as after any failure
    assert torch.equal(weights(trainer.model), weights(unbroken.model))


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (Events.ITERATION_COMPLETED(once=4), "approximate"),
        (TrainEvents.STEP_COMPLETED(once=2), "approximate"),
        (Events.ITERATION_STARTED(once=5), "exact"),
    ],
)
def test_due_callbacks_that_are_left_out_are_reported(tmp_path, event, level):
    faulty = Faulty()
    validation = Validation(lambda: {"score": 1.0}, every_steps=2)
    trainer = trainer_of(tmp_path, validation=validation)
    trainer.add_event_handler(event, lambda: (send(), faulty.fail()))
    run_into(trainer, faulty.error)
    assert saved(tmp_path) == [2]
    report = trainer_of(validation=validation, resume_from=tmp_path).resume_report
    assert report.parts["counters"].level == level
    assert ("the work that is due after step 2" in str(report)) == (level == "approximate")


@pytest.mark.parametrize("schedule", [{"every_steps": 2}, {"every_epochs": 1}])
def test_a_failed_validation_is_run_by_the_resumed_process(tmp_path, schedule):
    def trainer_and_log(faulty, **options):
        log = []
        validation = Validation(lambda model: faulty.fail(), **schedule)
        trainer = trainer_of(validation=validation, **options)
        trainer.add_event_handler(
            TrainEvents.VALIDATION_COMPLETED,
            lambda: log.append((trainer.state.iteration, float(weights(trainer.model).sum()))),
        )
        return trainer, log

    faulty = Faulty(number=2)
    trainer, seen = trainer_and_log(faulty, directory=tmp_path)
    trainer.add_event_handler(TrainEvents.VALIDATION_STARTED(once=2), lambda: send())
    run_into(trainer, faulty.error)
    resumed, made_up = trainer_and_log(Faulty(0), resume_from=tmp_path)
    resumed.run(max_epochs=2)
    unbroken, whole = trainer_and_log(Faulty(0))
    unbroken.run(max_epochs=2)
    assert seen + made_up == whole
    assert resumed.stop_reason == "max_epochs"


AT_AN_END = {
    "of the step that fills it": TrainEvents.STEP_COMPLETED(once=3),
    "of its end": Events.EPOCH_COMPLETED(once=1),
    "of the next one's beginning": Events.EPOCH_STARTED(once=2),
    "of the end of all": Events.COMPLETED,
}


@pytest.mark.parametrize("where", AT_AN_END)
def test_an_epoch_that_fails_at_its_end_continues_there(tmp_path, where):
    faulty, step = Faulty(), 6 if where == "of the end of all" else 3
    trainer = trainer_of(tmp_path)
    event = AT_AN_END[where]
    trainer.add_event_handler(event, lambda: send())
    trainer.add_event_handler(event, faulty.fail)
    run_into(trainer, faulty.error)
    assert saved(tmp_path) == [step]
    resumed, unbroken = trainer_of(resume_from=tmp_path), trainer_of()
    counts = []
    resumed.add_event_handler(Events.ITERATION_STARTED, lambda e: counts.append(e.state.iteration))
    resumed.run(max_epochs=2)
    unbroken.run(max_epochs=2)
    assert counts == list(range(2 * step + 1, 13))
    assert torch.equal(weights(resumed.model), weights(unbroken.model))


def half_a_step(trainer, faulty):
    def step(*arguments, step=trainer.optimizer.optimizer.step):
        step()
        faulty.fail()

    trainer.optimizer.optimizer.step = step


def half_a_schedule(trainer, faulty):
    trainer.lr_scheduler.get_lr = faulty.fail


def changed_parameters(trainer, faulty):
    @trainer.on(TrainEvents.MODEL_FORWARD_STARTED(once=3))
    @torch.no_grad()
    def look_nearby():
        for parameter in trainer.model.parameters():
            parameter.add_(1)
        faulty.fail()


@pytest.mark.parametrize("breaks", [half_a_step, half_a_schedule, changed_parameters])
def test_parameters_changed_within_a_step_are_not_saved(tmp_path, breaks):
    faulty = Faulty()
    trainer = trainer_of(
        tmp_path, lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1)
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: breaks(trainer, faulty))
    trainer.add_event_handler(TrainEvents.MODEL_FORWARD_STARTED(once=3), lambda: send())
    text = run_into(trainer, faulty.error)
    assert saved(tmp_path) == []
    if hasattr(faulty.error, "add_note"):
        step = 2 if breaks is half_a_schedule else 1
        why = "the parameters may have changed since the last step"
        assert f"the state of step {step} was not saved: {why}" in text


def test_data_from_an_iterator_are_not_saved_after_a_failure(tmp_path):
    trainer, faulty = trainer_of(tmp_path, iter(batches_of(6))), Faulty()
    trainer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: send())
    trainer.add_event_handler(Events.ITERATION_STARTED(once=4), faulty.fail)
    with pytest.warns(UserWarning, match="an iterator, which cannot give"):
        run_into(trainer, faulty.error, max_epochs=1)
    assert saved(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=["Ctrl-C", "exit"])
def test_ctrl_c_and_exit_do_not_wait_for_a_save(tmp_path, error):
    trainer, faulty = trainer_of(tmp_path), Faulty(error=error)
    trainer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: send())
    trainer.add_event_handler(Events.ITERATION_STARTED(once=4), faulty.fail)
    run_into(trainer, error)
    assert saved(tmp_path) == []


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), Failure("told to")], ids=["Ctrl-C", "error"]
)
@pytest.mark.parametrize("background", [False, True])
def test_a_failure_after_the_save_gets_no_note(tmp_path, error, background):
    trainer, faulty = trainer_of(tmp_path, saving={"background": background}), Faulty(error=error)
    trainer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: send())
    trainer.add_event_handler(Events.COMPLETED, faulty.fail)
    run_into(trainer, error)
    assert saved(tmp_path) == [2]
    assert not getattr(error, "__notes__", [])


def test_a_failure_without_a_signal_saves_nothing(tmp_path):
    trainer, faulty = trainer_of(tmp_path), Faulty()
    trainer.add_event_handler(Events.ITERATION_STARTED(once=4), faulty.fail)
    run_into(trainer, faulty.error)
    assert saved(tmp_path) == []
    assert not hasattr(faulty.error, "__notes__")


def test_a_failure_before_the_first_step_saves_nothing(tmp_path):
    trainer, faulty = trainer_of(tmp_path), Faulty()
    trainer.add_event_handler(Events.ITERATION_STARTED(once=1), lambda: send())
    trainer.add_event_handler(Events.ITERATION_STARTED(once=2), faulty.fail)
    run_into(trainer, faulty.error)
    assert saved(tmp_path) == []


@pytest.mark.parametrize("background", [False, True])
def test_a_save_that_failed_is_not_tried_again(tmp_path, monkeypatch, background):
    calls = []

    def commit(*arguments):
        calls.append(arguments)
        raise OSError("the disk is full")

    monkeypatch.setattr(CheckpointStore, "commit", commit)
    trainer = trainer_of(tmp_path, saving={"background": background})
    trainer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: send())
    with pytest.raises(OSError, match="the disk is full") as raised:
        trainer.run(max_epochs=2)
    assert len(calls) == 1
    if hasattr(raised.value, "add_note") and not background:
        assert "step 2 was not saved: the save itself failed" in notes_of(raised.value)


def test_boundary_is_saved_if_a_handler_handles_the_error(tmp_path):
    trainer, faulty = trainer_of(tmp_path), Faulty()
    trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda error: None)
    trainer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: send())
    trainer.add_event_handler(Events.ITERATION_STARTED(once=4), faulty.fail)
    with pytest.warns(UserWarning, match="before the failure: the state of step 1 was saved"):
        trainer.run(max_epochs=2)
    assert (trainer.stop_reason, saved(tmp_path)) == ("exception", [1])


def test_buffers_changed_since_the_step_are_not_exact(tmp_path):
    make = lambda: torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))  # noqa: E731
    trainer, faulty = trainer_of(tmp_path, model=make()), Faulty()
    trainer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: send())
    trainer.add_event_handler(Events.ITERATION_STARTED(once=4), faulty.fail)
    run_into(trainer, faulty.error)
    report = trainer_of(model=make(), resume_from=ResumeCheckpoint(tmp_path)).resume_report
    assert report.parts["model"].level == "approximate"
    assert report.parts["optimizer"].level == "exact"


DEATHS = [
    "DataLoader worker (pid(s) 7) exited unexpectedly",
    "DataLoader worker (pid 7) is killed by signal: Terminated. ",
]


@pytest.mark.parametrize("where", ["in the data", "in the forward", "in a validation"])
@pytest.mark.parametrize("text", DEATHS)
def test_death_of_a_worker_after_a_signal_ends_the_run_well(tmp_path, where, text):
    arrange, step = FAILURES[where]
    trainer, fired = arrange(tmp_path, Faulty(error=RuntimeError(text))), []
    trainer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: send())
    for event in (Events.TERMINATE, Events.COMPLETED):
        trainer.add_event_handler(event, lambda e: fired.append(e.stop_reason))
    trainer.run(max_epochs=2)
    assert (trainer.stop_reason, fired) == ("SIGTERM", ["SIGTERM"] * 2)
    assert saved(tmp_path) == [step]
    resumed, unbroken = trainer_of(resume_from=tmp_path), trainer_of()
    assert resumed.resume_report.parts["random generators"].level == "approximate"
    resumed.run(max_epochs=2)
    unbroken.run(max_epochs=2)
    assert torch.equal(weights(resumed.model), weights(unbroken.model))


@pytest.mark.parametrize("text", DEATHS)
def test_death_of_a_worker_without_a_signal_is_a_failure(tmp_path, text):
    faulty = Faulty(error=RuntimeError(text))
    run_into(fails_in_data(tmp_path, faulty), faulty.error)
    assert saved(tmp_path) == []
