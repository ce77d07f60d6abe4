"""Ranks whose parameters diverge in ways that torch does not report."""

import sys
import warnings
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import create_supervised_trainer
from tests.distributed.programs.checks import accelerator
from tests.distributed.programs.checks import run
from tests.distributed.programs.stepping import samples
from tests.reference import seed

STEPS = 5


def loss_of(model, batch):
    outputs = model(batch[0])
    return outputs, (outputs - batch[1]).square().mean()


def around_the_wrapper(model, batch):
    return loss_of(model.module, batch)


def model_of():
    seed(0)
    norm = torch.nn.BatchNorm1d(8)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), norm, torch.nn.Linear(8, 2)).double()


def outcome(name, change=None, *, at=1, process=loss_of, every=STEPS):
    """Trains, and returns the text of the error, the warnings, and the number of steps.

    Args:
        name: the name of the directory.
        change: is called with the model and the rank at step ``at``.
        at: the step of the change.
        process: the batch processor.
        every: the number of steps from one save to the next.
    """
    ours, model = accelerator(), model_of()
    trainer = create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        batch_processor=process,
        data=DataLoader(samples(4 * STEPS), 2),
        accelerator=ours,
        checkpoint=SaveCheckpoint(Path(sys.argv[1]) / name, every_steps=every),
    )
    if change is not None:

        @trainer.on(TrainEvents.OPTIMIZER_STEP_COMPLETED)
        def disturb(engine):
            if engine.state.optimizer_step == at:
                with torch.no_grad():
                    change(model, ours.process_index)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer.run(max_epochs=1)
            error = ""
        except RuntimeError as failure:
            error = str(failure)
    said = [str(each.message) for each in caught if "the ranks train models" in str(each.message)]
    return {"error": error, "said": said, "steps": trainer.state.optimizer_step}


def shifted(factor):
    def change(model, rank):
        model[2].weight.mul_(1 + rank * factor)

    return change


def poisoned(model, rank):
    if rank:
        model[2].bias[0] = torch.nan


def larger(model, rank):
    if rank:
        model.append(torch.nn.Linear(2, 2).double())


def told():
    return {
        "same": outcome("same"),
        "around the wrapper": outcome("around", process=around_the_wrapper),
        "at the first step": outcome("first", shifted(1e-2)),
        "at a save": outcome("save", shifted(1e-2), at=2, every=3),
        "rounding": outcome("rounding", shifted(1e-12), at=2, every=1),
        "not a number": outcome("nan", poisoned),
        "another number": outcome("number", larger),
    }


if __name__ == "__main__":
    run(told)
