"""A training that saves after each step and takes itself up, as a job that may be killed does."""

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
"""5 batches, and 2 of them to a window."""


def trainer_of(directory, *, resumes=True, **saving):
    """Augmented data, dropout, a scheduler, half windows: all that a resume can get wrong."""
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


def unbroken(epochs=EPOCHS):
    """The weights of a run that nothing happens to, and that saves nothing."""
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
    """The weights at the end of what is taken up there, and the step it was taken up from."""
    trainer = trainer_of(directory, every_steps=None, at_end=False, on_signals=("SIGTERM",))
    step = trainer.state.optimizer_step
    trainer.run(max_epochs=epochs)
    return weights(trainer.model), step


def assert_resumes_exactly(directory, step, final):
    found, from_step = resumed(directory)
    assert from_step == step
    assert torch.equal(found, final)


def whole_steps(directory):
    """The steps of those checkpoints that are whole to the last bit, the oldest first."""
    checkpoints = CheckpointStore(Path(directory)).checkpoints()
    return [each.manifest.step for each in reversed(checkpoints) if not find_problems(each)]


def folders(directory):
    return sorted(path.name for path in Path(directory).iterdir() if path.name != LOCK_NAME)
