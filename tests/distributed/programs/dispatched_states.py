"""Streams with a state that rank 0 reads for both processes."""

import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset
from torch.utils.data import get_worker_info

from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer
from tests.distributed.programs.checks import accelerator
from tests.distributed.programs.checks import run
from tests.distributed.programs.data_states import Samples
from tests.distributed.programs.data_states import resumed
from tests.reference import make_model
from tests.reference import seed
from tests.reference import weights


class OfWorkers(IterableDataset):
    """A stream whose workers read different samples, with random numbers outside of its state."""

    drawn = 0

    def __init__(self, length):
        self.length, self.index, self.rng = length, 0, np.random.default_rng(2)

    def __iter__(self):
        shift = 100 * get_worker_info().id
        while self.index < self.length:
            self.index += 1
            yield torch.tensor([shift + self.index + self.rng.random()]) + torch.rand(1)
        self.index = 0

    def state_dict(self):
        return {"index": self.index}

    def load_state_dict(self, state):
        self.index = state["index"]


class Told(OfWorkers):
    """Draws its order in each pass, from the number given to ``set_epoch``."""

    def __init__(self, length):
        super().__init__(length)
        self.epoch = self.drawn = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed(self.epoch))
        while self.index < self.length:
            self.index += 1
            self.drawn += 1
            yield order[self.index - 1 :][:1] + torch.rand(1)
        self.index = 0


def config(**options):
    return DataLoaderConfiguration(dispatch_batches=True, **options)


KINDS = {
    "16 samples": lambda: DataLoader(Samples(16, 5), 2),
    "14 samples, a batch for one process": lambda: DataLoader(Samples(14, 5), 2),
    "15 samples, drop_last": lambda: DataLoader(Samples(15, 5), 2, drop_last=True),
    "told the pass": lambda: DataLoader(Told(16), 2),
    "workers": lambda: DataLoader(OfWorkers(8), 2, num_workers=2),
    "workers of uneven streams": lambda: DataLoader(OfWorkers(6), 2, num_workers=2),
    "a worker that stays": lambda: DataLoader(
        OfWorkers(8), 2, num_workers=1, persistent_workers=True
    ),
}


def exact():
    found = {}
    for accumulation in (1, 2):
        ours = accelerator(accumulation, dataloader_config=config())
        names = KINDS if accumulation == 1 else ("16 samples", "workers")
        for name in names:
            found[f"{name}, {accumulation}"] = resumed(KINDS[name], ours, 8)
    return found


def split():
    ours = accelerator(1, dataloader_config=config(split_batches=True))
    return resumed(lambda: DataLoader(Samples(16, 5), 4), ours, 10)


def padded():
    ours = accelerator(1, dataloader_config=config())
    return resumed(lambda: DataLoader(Samples(15, 5), 2), ours, 8)


def shards():
    """Resumes streams of which each process reads all samples in workers and uses its part."""
    ours = accelerator(1, dataloader_config=DataLoaderConfiguration(dispatch_batches=False))
    return resumed(lambda: DataLoader(OfWorkers(8), 2, num_workers=2), ours, 10)


def squares(model, batch):
    outputs = model(batch.expand(-1, 4))
    return outputs, outputs.square().mean()


def trainer_of(directory, resume_from=None, size=2, number=1):
    """A trainer of a model that draws; each process draws its own random numbers."""
    model = make_model(dropout=0.5)
    seed(10 * number + PartialState().process_index)
    return create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        batch_processor=squares,
        data=DataLoader(Samples(16, 5), size, drop_last=True),
        accelerator=accelerator(1, dataloader_config=config()),
        checkpoint=directory and SaveCheckpoint(directory, every_steps=1, keep_last="all"),
        resume_from=resume_from,
    )


def trained():
    """Resumes a run from each of its steps, also with another batch size."""
    directory = Path(sys.argv[1]) / "checkpoints"
    whole = trainer_of(directory)
    whole.run(max_epochs=2)
    exact, said, steps = [], set(), []
    for step in range(1, 8):
        trainer = trainer_of(None, directory / f"step_{step:08d}", number=2)
        trainer.run(max_epochs=2)
        exact.append(torch.equal(weights(trainer.model), weights(whole.model)))
        said.add(str(trainer.resume_report.parts["data"]))
        trainer = trainer_of(None, directory / f"step_{step:08d}", size=1, number=2)
        trainer.run(max_epochs=2)
        steps.append(trainer.state.optimizer_step)
    return {"exact": exact, "said": sorted(said), "steps": steps}


if __name__ == "__main__":
    run(exact, split, padded, shards, trained)
