"""Validations on unequal numbers of batches, interrupted by a signal to one of two processes."""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import PartialState
from ignite.engine import Events
from ignite.metrics import Loss
from torch.utils.data import DataLoader

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer
from ignite_hooks.checkpoint.store import CheckpointStore
from tests.distributed.programs.checks import accelerator
from tests.distributed.programs.checks import run
from tests.reference import Repeatable
from tests.reference import augmented
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import samples
from tests.reference import seed
from tests.reference import weights

os.fsync = lambda descriptor: None

UNEQUAL = [6, 2]
"""The batches that each process evaluates on."""


def unequal():
    return batches_of(UNEQUAL[PartialState().process_index])


def of_unknown_length():
    return Repeatable(unequal())


def one_batch_in_all():
    return DataLoader(samples(2), batch_size=2)


def trained(folder, data, signalled=(None, None), number=1, **schedule):
    """Trains; one of the processes gets a signal at one of the batches that it evaluates on."""
    rank = PartialState().process_index
    seed(10 * number + rank)
    model, log, batches = make_model(dropout=0.5), [], []
    ours = accelerator(2)
    evaluator = create_supervised_evaluator(model, {"loss": Loss(F.mse_loss)}, accelerator=ours)

    @evaluator.on(Events.ITERATION_STARTED)
    def count():
        batches.append(1)
        if signalled == (rank, len(batches)):
            signal.raise_signal(signal.SIGTERM)

    trainer = create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        F.mse_loss,
        augmented(10),
        accelerator=ours,
        validation=Validation(evaluator, data(), max_batches=9, **schedule),
        checkpoint=SaveCheckpoint(folder, keep_last="all"),
        resume_from=ResumeCheckpoint(folder, on_missing="start"),
    )
    for event in (TrainEvents.VALIDATION_COMPLETED, Events.EPOCH_COMPLETED):
        trainer.add_event_handler(event, lambda: log.append(dict(trainer.state.metrics)))
    trainer.run(max_epochs=2)
    return trainer, log


def broken_off(name, data, *signals, **schedule):
    """Returns the findings for each of the signals."""
    directory = Path(sys.argv[1]) / f"{name} checkpoints"
    whole, expected = trained(directory / "whole", data, **schedule)
    found = []
    for rank, batch in signals:
        folder = directory / f"{rank} {batch}"
        broken, log = trained(folder, data, (rank, batch), **schedule)
        manifests = [each.manifest for each in CheckpointStore(folder).checkpoints()]
        resumed, further = trained(folder, data, number=2, **schedule)
        parts = resumed.resume_report.parts.items()
        inexact = {name for name, part in parts if part.level != "exact"}
        found.append(
            {
                "reason": broken.stop_reason,
                "rank": rank,
                "validations": broken.state.validation,
                "saved": [[each.epoch, each.iteration] for each in manifests],
                "same": log + further == expected
                and torch.equal(weights(resumed.model), weights(whole.model)),
                "exact": inexact <= {"handlers"},  # whose lists are no part of a checkpoint
            }
        )
    return {"found": found}


def by_epoch():
    signals = [(0, 1), (0, 5), (0, 6), (1, 1), (1, 2)]
    return broken_off("by_epoch", unequal, *signals, every_epochs=1)


def by_step():
    return broken_off("by_step", unequal, (0, 3), (1, 2), every_steps=2)


def without_length():
    signals = [(0, 3), (0, 6), (1, 2)]
    return broken_off("without_length", of_unknown_length, *signals, every_epochs=1)


def a_process_without_a_batch():
    return broken_off("without_batch", one_batch_in_all, (0, 1), every_epochs=1)


if __name__ == "__main__":
    run(by_epoch, by_step, without_length, a_process_without_a_batch)
