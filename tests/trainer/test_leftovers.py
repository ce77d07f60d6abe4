"""Work that a failure leaves due: the next run does it first, and a new run forgets it."""

import pytest
import torch
from ignite.engine import Events
from ignite.metrics import Metric
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from tests.reference import batches_of
from tests.reference import make_trainer
from tests.reference import record
from tests.reference import weights


class Failure(Exception):
    pass


class FailingOnce(Metric):
    """A metric that cannot be computed the first time."""

    def __init__(self):
        self.computed = 0
        super().__init__()

    def reset(self):
        pass

    def update(self, output):
        pass

    def compute(self):
        self.computed += 1
        if self.computed == 1:
            raise Failure
        return 1.0


class BadState:
    """Something to save whose state cannot be taken the second time."""

    def __init__(self):
        self.calls = 0

    def state_dict(self):
        self.calls += 1
        if self.calls == 2:
            raise OSError("no space left")
        return {}

    def load_state_dict(self, state_dict):
        pass


def failing_once(trainer, event):
    """Makes the first handler of ``event`` fail, once."""
    failures = []

    def fail(engine):
        if not failures:
            failures.append(1)
            raise Failure

    trainer.add_event_handler(event, fail)


def names(seen):
    return [name for name, *_ in seen]


def by_epoch(folder, **options):
    """A trainer that validates and saves by epoch alone."""
    trainer = make_trainer(
        batches_of(2), validation=Validation(lambda: {"loss": 1.0}, every_epochs=1), **options
    )
    SaveCheckpoint(folder, every_epochs=1, at_end=False).attach(trainer)
    events = [
        Events.STARTED,
        Events.EPOCH_STARTED,
        TrainEvents.VALIDATION_COMPLETED,
        TrainEvents.CHECKPOINT_SAVED,
        Events.COMPLETED,
    ]
    return trainer, record(trainer, events)


EPOCH = ["EPOCH_STARTED", "VALIDATION_COMPLETED", "CHECKPOINT_SAVED"]


def test_a_failing_metric_keeps_callbacks_by_epoch_due(tmp_path):
    trainer, seen = by_epoch(tmp_path)
    FailingOnce().attach(trainer, "metric")
    with pytest.raises(Failure):
        trainer.run(max_epochs=2)
    assert names(seen) == ["STARTED", "EPOCH_STARTED"]
    seen.clear()
    trainer.run(max_epochs=2)
    due = ["VALIDATION_COMPLETED", "CHECKPOINT_SAVED"]
    assert names(seen) == ["STARTED", *due, *EPOCH, "COMPLETED"]


def test_a_failing_validation_keeps_the_save_by_epoch_due(tmp_path):
    trainer, seen = by_epoch(tmp_path)
    failing_once(trainer, TrainEvents.VALIDATION_STARTED)
    with pytest.raises(Failure):
        trainer.run(max_epochs=2)
    seen.clear()
    trainer.run(max_epochs=2)
    due = ["VALIDATION_COMPLETED", "CHECKPOINT_SAVED"]
    assert names(seen) == ["STARTED", *due, *EPOCH, "COMPLETED"]


def test_the_scheduler_by_epoch_moves_once_also_after_a_failure(tmp_path):
    rates = []
    for fails in (False, True):
        trainer, _ = by_epoch(
            tmp_path / str(fails),
            lr_scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.5, patience=0),
            scheduler_at="epoch",
            scheduler_metric="val_loss",
        )
        if fails:
            FailingOnce().attach(trainer, "metric")
            with pytest.raises(Failure):
                trainer.run(max_epochs=3)
        trainer.run(max_epochs=3)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == [0.025, 0.025]


def test_a_failed_save_is_repeated_by_the_next_run(tmp_path):
    save = SaveCheckpoint(
        tmp_path, every_steps=2, at_end=False, keep_last="all", also={"bad": BadState()}
    )
    trainer = make_trainer(batches_of(4), checkpoint=save)
    with pytest.raises(OSError, match="no space left"):
        trainer.run(max_epochs=1)
    assert trainer.state.optimizer_step == 2
    trainer.run(max_epochs=1)
    names = sorted(each.name for each in tmp_path.glob("step_*"))
    assert names == ["step_00000002", "step_00000004"]


def with_a_save_due(folder):
    """Returns a trainer that failed in a validation, before the save of the same step."""
    trainer = make_trainer(
        batches_of(6),
        validation=Validation(lambda: None, every_steps=4),
        checkpoint=SaveCheckpoint(folder, every_steps=2, at_end=False, keep_last="all"),
    )
    failing_once(trainer, TrainEvents.VALIDATION_STARTED)
    with pytest.raises(Failure):
        trainer.run(max_epochs=1)
    return trainer, record(trainer, [TrainEvents.CHECKPOINT_SAVED])


def test_a_new_run_drops_the_save_due_in_the_old_one(tmp_path):
    trainer, saved = with_a_save_due(tmp_path)
    trainer.state.max_epochs = None
    trainer.run(batches_of(1), max_epochs=1)
    assert saved == []


def test_a_resumed_run_drops_the_save_due_in_the_old_one(tmp_path):
    trainer, saved = with_a_save_due(tmp_path)
    ResumeCheckpoint(tmp_path).attach(trainer)
    trainer.run(max_steps=3)
    assert saved == []


def test_a_removed_handler_drops_its_due_save(tmp_path):
    trainer = make_trainer(batches_of(6))
    attachment = SaveCheckpoint(tmp_path, every_steps=2, at_end=False).attach(trainer)
    failing_once(trainer, TrainEvents.STEP_COMPLETED(once=2))
    with pytest.raises(Failure):
        trainer.run(max_epochs=1)
    attachment.remove()
    trainer.run(max_epochs=1)
    assert list(tmp_path.glob("step_*")) == []


def test_a_new_run_forgets_the_metrics_of_the_old_one(tmp_path):
    validation = Validation(lambda: {"loss": 1.0}, every_epochs=2)
    trainer = make_trainer(batches_of(4), validation=validation)
    trainer.run(max_epochs=2)
    assert trainer.state.metrics == {"val_loss": 1.0}
    trainer.state.max_epochs = None
    trainer.run(batches_of(8), max_epochs=1)
    assert trainer.state.iteration == 8
    assert trainer.state.metrics == {}


def test_a_plateau_scheduler_continues_from_an_earlier_state(tmp_path):
    trainer, _ = by_epoch(
        tmp_path,
        lr_scheduler=ReduceLROnPlateau,
        scheduler_at="epoch",
        scheduler_metric="val_loss",
    )
    trainer.run(max_epochs=3)
    ResumeCheckpoint(tmp_path / "step_00000004").attach(trainer)
    with pytest.warns(UserWarning, match="checkpoints of other runs"):  # it is a branch
        trainer.run(max_epochs=3)
    assert trainer.lr_scheduler.last_epoch == 3


def test_loading_a_state_clears_an_earlier_failure():
    finished = make_trainer(batches_of(2))
    finished.run(max_epochs=1)
    trainer = make_trainer(batches_of(2))
    failing_once(trainer, Events.ITERATION_STARTED)
    with pytest.raises(Failure):
        trainer.run(max_epochs=1)
    trainer.load_state_dict(finished.state_dict())
    iterations = record(trainer, [Events.ITERATION_COMPLETED])
    trainer.run(max_epochs=1)
    assert len(iterations) == 2  # a new run, as on any finished trainer


def test_a_step_completed_by_the_next_run_may_end_its_epoch():
    trainer = make_trainer(batches_of(6))
    cut = lambda e: e.terminate_epoch() if e.state.optimizer_step == 2 else None  # noqa: E731
    trainer.add_event_handler(TrainEvents.STEP_COMPLETED, cut)
    failing_once(trainer, Events.ITERATION_COMPLETED(once=2))
    seen = record(trainer, [Events.TERMINATE_SINGLE_EPOCH, Events.EPOCH_COMPLETED])
    with pytest.raises(Failure):
        trainer.run(max_epochs=1)
    trainer.run(max_epochs=1)
    assert names(seen) == ["TERMINATE_SINGLE_EPOCH", "EPOCH_COMPLETED"]
    assert (trainer.state.iteration, trainer.state.epoch) == (2, 1)


@pytest.mark.parametrize("action", ["fail", "terminate"])
def test_at_start_is_not_repeated_if_the_first_window_failed(action):
    trainer = make_trainer(
        batches_of(4), accumulation=2, validation=Validation(lambda: None, at_start=True)
    )
    if action == "fail":
        failing_once(trainer, Events.ITERATION_COMPLETED(once=1))
        with pytest.raises(Failure):
            trainer.run()
    else:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), trainer.terminate)
        trainer.run()
    assert trainer.state.iteration == 0
    trainer.run()
    assert trainer.state.validation == 1
    trainer.state.max_epochs = None
    trainer.run(max_epochs=1)
    assert trainer.state.validation == 1  # of a new run


def test_a_full_epoch_completes_before_other_data_begins(tmp_path):
    trainer, seen = by_epoch(tmp_path)
    failing_once(trainer, Events.ITERATION_COMPLETED(once=2))
    with pytest.raises(Failure):
        trainer.run(max_epochs=2)
    seen.clear()
    trainer.run(batches_of(3), max_epochs=2)
    due = ["VALIDATION_COMPLETED", "CHECKPOINT_SAVED"]
    assert names(seen) == ["STARTED", *due, *EPOCH, "COMPLETED"]
    assert (trainer.state.iteration, trainer.state.epoch) == (5, 2)


def test_weights_equal_those_of_a_run_without_failure(tmp_path):
    results = []
    for fails in (False, True):
        trainer, _ = by_epoch(tmp_path / str(fails))
        if fails:
            FailingOnce().attach(trainer, "metric")
            with pytest.raises(Failure):
                trainer.run(max_epochs=2)
        trainer.run(max_epochs=2)
        results.append(weights(trainer.model))
    assert torch.equal(*results)
