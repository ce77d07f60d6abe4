"""Resuming after a signal broke off a validation gives the results of an unbroken run."""

import os
import signal
from functools import cache
from tempfile import TemporaryDirectory

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Events
from ignite.handlers import EarlyStopping
from ignite.metrics import Average
from ignite.metrics import Loss
from ignite.metrics import RunningAverage
from ignite.metrics.metric import RunningEpochWise
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.lr_scheduler import StepLR

from ignite_hooks import GradientClipping
from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer
from tests.reference import augmented
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import seed
from tests.reference import weights


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


PLATEAU = {
    "lr_scheduler": lambda optimizer: ReduceLROnPlateau(
        optimizer, factor=0.5, patience=0, threshold=0.5
    ),
    "scheduler_metric": "val_loss",
}
STEP_LR = {"lr_scheduler": lambda optimizer: StepLR(optimizer, 1, 0.7), "scheduler_at": "epoch"}
BOTH = {"every_steps": 3, "every_epochs": 1}

KINDS = {
    "by step": {"schedule": {"every_steps": 2}},
    "by epoch": {"schedule": {"every_epochs": 1}},
    "by both": {"schedule": BOTH, "run": {"max_steps": 6}},
    "in the background": {"schedule": BOTH, "save": {"background": True}},
    "at start": {"schedule": {"at_start": True, "every_epochs": 2}},
    "a plateau by validation": {
        "schedule": {"every_steps": 2},
        "trainer": {**PLATEAU, "scheduler_at": "validation"},
    },
    "a plateau by epoch": {
        "schedule": {"every_epochs": 1},
        "trainer": {**PLATEAU, "scheduler_at": "epoch"},
    },
    "a scheduler by epoch": {"schedule": {"every_epochs": 1}, "trainer": STEP_LR},
    "two sets of data and a callable": {"schedule": {"every_steps": 3}, "several": True},
    "a limit of steps": {"schedule": {"every_steps": 2}, "run": {"max_steps": 4}},
    "a limit of iterations": {"schedule": {"every_steps": 1}, "run": {"max_iters": 10}},
    "an epoch that is cut short": {"schedule": {"every_epochs": 1}, "cut": 4},
}


class Script:
    """A training run as a script makes it, with a log of everything that it shows.

    A signal comes in the ``signal_at``-th of all batches that are evaluated.
    """

    def __init__(self, folder, kind, *, number=1, signal_at=None):
        options = {"run": {"max_epochs": 2}, "several": False, **KINDS[kind]}
        several, self._run_options = options["several"], options["run"]
        self.evaluated, self.log = 0, []
        self._signal_at = signal_at
        seed(number)
        model = make_model(dropout=0.5)
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        evaluator = create_supervised_evaluator(
            model, {"loss": Loss(F.mse_loss)}, accelerator=accelerator
        )
        evaluator.add_event_handler(Events.ITERATION_STARTED, self._count)
        data = {"a": batches_of(2), "b": batches_of(1)} if several else batches_of(3)
        self.trainer = trainer = create_supervised_trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            F.mse_loss,
            augmented(5),
            accelerator=accelerator,
            grad_clip=GradientClipping(max_norm=1.0),
            validation=Validation(evaluator, data, **options["schedule"]),
            checkpoint=SaveCheckpoint(folder, every_epochs=1, **options.get("save", {})),
            resume_from=ResumeCheckpoint(folder, on_missing="start"),
            **options.get("trainer", {}),
        )
        if several:
            other = Validation(lambda: {"x": float(trainer.state.iteration)}, every_epochs=1)
            other.attach(trainer)
        Average().attach(trainer, "train_loss")
        RunningAverage(Average()).attach(trainer, "running_loss", RunningEpochWise())
        name = "val_a_loss" if several else "val_loss"
        self._stopping = EarlyStopping(99, lambda engine: -engine.state.metrics[name], trainer)
        trainer.add_event_handler(TrainEvents.VALIDATION_COMPLETED, self._stopping)
        for event in (
            Events.ITERATION_COMPLETED,
            TrainEvents.STEP_COMPLETED,
            TrainEvents.VALIDATION_COMPLETED,
            Events.EPOCH_COMPLETED,
        ):
            trainer.add_event_handler(event, self._note, event.name)
        if "cut" in options:
            event = Events.ITERATION_COMPLETED(once=options["cut"])
            trainer.add_event_handler(event, lambda: trainer.terminate_epoch())

    def _count(self):
        self.evaluated += 1
        if self.evaluated == self._signal_at:
            signal.raise_signal(signal.SIGTERM)

    def _note(self, trainer, name):
        state = trainer.state
        counts = (state.epoch, state.iteration, state.optimizer_step, state.validation)
        rate = trainer.optimizer.param_groups[0]["lr"], state.epoch_length
        metrics = {name: float(value) for name, value in state.metrics.items()}
        self.log.append((name, counts, rate, self._stopping.counter, metrics))

    def state_dict(self):
        return {}

    def load_state_dict(self, state_dict):
        """Loads nothing: the log stays, for the comparison with an unbroken run."""

    def run(self):
        self.trainer.run(**self._run_options)
        return self


@cache
def unbroken(kind):
    with TemporaryDirectory() as folder:
        return Script(folder, kind).run()


@pytest.mark.grid(7)
@pytest.mark.parametrize("way", ["another process", "the same process"])
@pytest.mark.parametrize("signal_at", range(1, 7))
@pytest.mark.parametrize("kind", KINDS)
def test_broken_off_and_resumed_run_equals_unbroken_run(tmp_path, kind, signal_at, way):
    whole = unbroken(kind)
    broken = Script(tmp_path, kind, signal_at=signal_at).run()
    assert broken.trainer.stop_reason == "SIGTERM"
    assert broken.trainer.state.validation < whole.trainer.state.validation
    if way == "another process":
        resumed = Script(tmp_path, kind, number=2).run()
        log = broken.log + resumed.log
        assert resumed.trainer.resume_report.is_exact
    else:
        resumed = broken.run()
        log = broken.log
    assert log == whole.log
    assert resumed.trainer.stop_reason == whole.trainer.stop_reason
    assert torch.equal(weights(resumed.trainer.model), weights(whole.trainer.model))


def test_a_run_may_be_broken_off_repeatedly(tmp_path):
    log = []
    for number in (1, 2, 3):  # each makes up one validation, and is broken off in the next
        log += Script(tmp_path, "by step", number=number, signal_at=4).run().log
    assert log == unbroken("by step").log


def test_position_of_an_older_version_has_nothing_due(tmp_path):
    script = Script(tmp_path, "by epoch")
    script.trainer.run(max_epochs=1)
    place = script.trainer.position_state_dict()
    del place["due"], place["cut"]
    script.trainer.load_position_state_dict(place)
    assert not script.trainer.is_broken_off
    script.trainer.run(max_epochs=1)
    assert script.trainer.state.validation == 1
