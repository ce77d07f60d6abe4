"""What is random alike on two processes, and what differently, in a run from settings."""

import random
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState
from accelerate.state import GradientState
from accelerate.utils import DataLoaderConfiguration
from ignite.engine import Events
from torch.utils.data import DataLoader

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks.config import RunSettings
from ignite_hooks.config import replace
from tests.distributed.programs.checks import run

SIZE = 16


def draw():
    return [float(torch.rand(())), random.random(), float(np.random.rand())]


def squares(model, batch):
    outputs = model(batch)
    return outputs, outputs.square().mean()


def trained(settings, *, late=False, **options):
    """Trains on numbered samples; the numbers of each epoch, and random ones of each batch.

    Args:
        settings: of the run.
        late: whether the loader is given when the run starts.
        options: for the accelerator.
    """
    for state in (AcceleratorState, GradientState):
        state._reset_state()
    accelerator = settings.set_up(cpu=True, **options)
    model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Dropout(0.5))
    made = [each.tolist() for each in model.parameters()]
    loader = DataLoader(torch.arange(float(SIZE))[:, None], 2, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    trainer = settings.build(
        model,
        optimizer,
        data=None if late else loader,
        batch_processor=squares,
        accelerator=accelerator,
    )
    given, drawn = [], []

    @trainer.on(Events.ITERATION_STARTED)
    def note(engine):
        given.append([int(each) for each in engine.state.batch.flatten()])
        drawn.append(draw())

    trainer.run(loader if late else None)
    weights = [each.tolist() for each in model.parameters()]
    return {"made": made, "given": given, "drawn": drawn, "weights": weights}


SETTINGS = RunSettings(seed=5, max_epochs=2)


def plain():
    return trained(SETTINGS)


def seedable():
    config = DataLoaderConfiguration(use_seedable_sampler=True)
    return trained(SETTINGS, late=True, dataloader_config=config)


def resumed():
    directory = Path(sys.argv[1]) / "seeds"
    saving = SaveCheckpoint(directory=directory, every_steps=1, keep_last="all")
    whole = trained(replace(SETTINGS, checkpoint=saving))
    exact = []
    for step in (1, 4, 6):
        source = ResumeCheckpoint(source=directory / f"step_{step:08d}")
        rest = trained(replace(SETTINGS, resume_from=source))
        exact.append(rest["drawn"] == whole["drawn"][step:] and rest["weights"] == whole["weights"])
    return {"exact": exact}


if __name__ == "__main__":
    run(plain, seedable, resumed)
