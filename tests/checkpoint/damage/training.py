"""A run that saves after each step and resumes by itself, like a job that may be killed."""

from pathlib import Path

import torch
from torch.optim.lr_scheduler import StepLR

from ignite_hooks.checkpoint.lock import LOCK_NAME
from ignite_hooks.checkpoint.resume import ResumeCheckpoint
from ignite_hooks.checkpoint.save import SaveCheckpoint
from ignite_hooks.checkpoint.store import CheckpointStore
from ignite_hooks.checkpoint.store import find_problems
from tests.reference import augmented
from tests.reference import make_trainer
from tests.reference import seed
from tests.reference import weights

EPOCHS = 3
STEPS = 9
"""An epoch has 5 batches, in windows of 2: 3 steps."""


def trainer_of(directory, *, resumes=True, **saving):
    """Returns a trainer with everything that is hard to resume.

    Augmented data, dropout, a scheduler, and a half window at the end of each epoch.
    """
    options = {"every_steps": 1, "on_signals": (), **saving}
    seed()
    trainer = make_trainer(
        augmented(),
        accumulation=2,
        dropout=0.5,
        lr_scheduler=lambda optimizer: StepLR(optimizer, 2, gamma=0.7),
        checkpoint=SaveCheckpoint(directory, **options),
        resume_from=ResumeCheckpoint(directory, on_missing="start") if resumes else None,
    )
    if trainer.resume_report is not None:
        seed(2)  # what a script draws after it has resumed must not matter
    return trainer


def uninterrupted_weights(epochs=EPOCHS):
    """Returns the weights of an uninterrupted run without checkpoints."""
    seed()
    trainer = make_trainer(
        augmented(),
        accumulation=2,
        dropout=0.5,
        lr_scheduler=lambda optimizer: StepLR(optimizer, 2, gamma=0.7),
    )
    trainer.run(max_epochs=epochs)
    return weights(trainer.model)


def resumed(directory, epochs=EPOCHS):
    """Resumes from ``directory``; returns the weights at the end, and the step of the resume."""
    trainer = trainer_of(directory, every_steps=None, at_end=False, on_signals=("SIGTERM",))
    step = trainer.state.optimizer_step
    trainer.run(max_epochs=epochs)
    return weights(trainer.model), step


def assert_resumes_exactly(directory, step, final):
    found, from_step = resumed(directory)
    assert from_step == step
    assert torch.equal(found, final)


def whole_steps(directory):
    """Returns the steps of the checkpoints that are whole to the last bit, oldest first."""
    checkpoints = CheckpointStore(Path(directory)).checkpoints()
    return [each.manifest.step for each in reversed(checkpoints) if not find_problems(each)]


def folders(directory):
    return sorted(path.name for path in Path(directory).iterdir() if path.name != LOCK_NAME)
