"""Training on several ranks, for each case of a grid or for a part of the cases."""

import sys
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from ignite_hooks import GradientClipping
from ignite_hooks import create_supervised_trainer
from tests.distributed.programs.checks import accelerator
from tests.distributed.programs.checks import run
from tests.reference import make_model
from tests.reference import weights

EPOCHS = 2
SIZE = 2  # samples of a batch of one rank
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}
CLIPS = {
    "unclipped": {},
    "norm": {"max_norm": 0.3},
    "value": {"clip_value": 0.05},
}


class Case(NamedTuple):
    """A training setup; ``length`` is the number of samples."""

    optimizer: str
    clip: str
    accumulation: int
    length: int
    drop_last: bool
    dtype: str

    def __str__(self):
        return "-".join(map(str, self))


# 24 samples fill the batches of 1, 2 and 3 ranks, 17 of none; 3 are fewer than two ranks take.
AXES = (OPTIMIZERS, CLIPS, (1, 3), (24, 17, 3), (False, True), ("float64", "float32"))


def cases_for(ranks, every=1):
    """Returns each ``every``-th case of the grid in which some rank has a whole batch."""
    grid = [Case(*values) for values in product(*AXES)]
    return [case for case in grid[::every] if not (case.drop_last and case.length < SIZE * ranks)]


SAMPLE = 7  # divides no axis: each value of each is met


def samples(case):
    generator = torch.Generator().manual_seed(3)
    parts = (torch.randn(case.length, width, generator=generator) for width in (4, 2))
    return TensorDataset(*(part.to(getattr(torch, case.dtype)) for part in parts))


def model_and_optimizer(case):
    model = make_model(0.0).to(getattr(torch, case.dtype))
    return model, OPTIMIZERS[case.optimizer](model.parameters())


def trained(case):
    model, optimizer = model_and_optimizer(case)
    trainer = create_supervised_trainer(
        model,
        optimizer,
        F.mse_loss,
        DataLoader(samples(case), batch_size=SIZE, drop_last=case.drop_last),
        accelerator=accelerator(case.accumulation),
        grad_clip=GradientClipping(**CLIPS[case.clip]) if CLIPS[case.clip] else None,
    )
    trainer.run(max_epochs=EPOCHS)
    return {
        "weights": weights(trainer.model).double().tolist(),
        "steps": trainer.state.optimizer_step,
    }


def equality():
    ranks = accelerator().num_processes
    return {str(case): trained(case) for case in cases_for(ranks, every=int(sys.argv[2]))}


if __name__ == "__main__":
    run(equality)
