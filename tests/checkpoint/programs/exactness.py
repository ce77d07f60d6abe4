"""Trains each kind of run, or resumes from each of its checkpoints, and prints what was done.

python exactness.py save FOLDER
python exactness.py resume FOLDER PART PARTS

Each command is a separate process, so that only the files get from one to the other. The runs are
divided into PARTS parts; a process resumes those of one part, PART, numbered from 0.
"""

import json
import random
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from ignite.engine import Events
from ignite.handlers import EarlyStopping
from ignite.metrics import RunningAverage
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import BatchSampler
from torch.utils.data import DataLoader
from torch.utils.data import Dataset
from torch.utils.data import IterableDataset
from torch.utils.data import RandomSampler
from torch.utils.data import Sampler
from torch.utils.data import Subset
from torch.utils.data import WeightedRandomSampler

from ignite_hooks import GradientClipping
from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer
from ignite_hooks.checkpoint.testing import RunRecorder
from tests.reference import Noisy
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import seed

EPOCHS = 3


class Stream(IterableDataset):
    """Samples in a random order, without a length."""

    def __iter__(self):
        return iter([Noisy(9)[index] for index in torch.randperm(9)])


class Jittered(Dataset):
    """Samples with augmentation from generators of the dataset and of its transform."""

    def __init__(self):
        self.samples = Noisy(9, noise=0)
        self.rng = np.random.default_rng(torch.initial_seed())
        self.shift = [partial(random.Random(torch.initial_seed()).gauss, 0, 0.1)]
        self.noise = torch.Generator().manual_seed(torch.initial_seed())

    def __len__(self):
        return 9

    def __getitem__(self, index):
        x, y = self.samples[index]
        noise = torch.randn(4, generator=self.noise)
        return x + 0.1 * noise + self.rng.random() + self.shift[0](), y


class OrderSampler(Sampler):
    """A sampler that draws an order when a pass begins, and a number at its end."""

    def __init__(self):
        self.rng = np.random.default_rng(torch.initial_seed())

    def __len__(self):
        return 9

    def __iter__(self):
        yield from self.rng.permutation(9).tolist()
        self.rng.random()


class LazySampler(OrderSampler):
    """A sampler that draws each index when it is asked for."""

    def __iter__(self):
        for _ in range(9):
            yield int(self.rng.integers(9))


def loader(**options):
    return DataLoader(Noisy(9, options.pop("noise", 0.1)), **{"batch_size": 2, **options})


def in_batches(drop_last):
    data = Noisy(9)
    return DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 2, drop_last))


KINDS = {
    "shuffled": lambda: loader(shuffle=True),
    "in order": lambda: loader(),
    "the last batch dropped": lambda: loader(shuffle=True, drop_last=True),
    "a batch sampler": lambda: in_batches(False),
    "a batch sampler that drops": lambda: in_batches(True),
    "with replacement": lambda: loader(sampler=WeightedRandomSampler([1, 2, 3] * 3, 9)),
    "its own generator": lambda: loader(
        shuffle=True, generator=torch.Generator().manual_seed(torch.initial_seed())
    ),
    "a sampler with its own generator": lambda: loader(
        sampler=RandomSampler(range(9), generator=torch.Generator().manual_seed(7))
    ),
    "data with their own generators": lambda: DataLoader(
        Subset(Jittered(), range(9)), 2, shuffle=True
    ),
    "a custom sampler": lambda: loader(sampler=OrderSampler()),
    "a sampler that draws lazily": lambda: DataLoader(Jittered(), 2, sampler=LazySampler()),
    "workers": lambda: loader(shuffle=True, num_workers=2, noise=0),
    "a stream": lambda: DataLoader(Stream(), 2),
    "a list": lambda: batches_of(5),
}
LOADERS = {
    "torch": DataLoaderConfiguration(),
    "seedable": DataLoaderConfiguration(use_seedable_sampler=True),
    "stateful": DataLoaderConfiguration(use_stateful_dataloader=True),
}

TRAININGS = [
    *((kind, "torch") for kind in KINDS),
    *(
        (kind, configuration)
        for kind in ("shuffled", "a batch sampler that drops", "workers", "a stream")
        for configuration in ("seedable", "stateful")
    ),
]


def make_trainer(kind, configuration, *, number):
    """Returns a trainer with every state that a checkpoint can hold, and its EarlyStopping.

    Each process gives another seed as ``number``.
    """
    seed(number)
    accelerator = Accelerator(
        cpu=True, gradient_accumulation_steps=2, dataloader_config=LOADERS[configuration]
    )
    model = make_model(dropout=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    by_step = configuration != "seedable"
    evaluator = create_supervised_evaluator(model, {}, accelerator=accelerator)
    trainer = create_supervised_trainer(
        model,
        optimizer,
        torch.nn.functional.mse_loss,
        KINDS[kind](),
        accelerator=accelerator,
        lr_scheduler=OneCycleLR(optimizer, 0.1, 20) if by_step else StepLR(optimizer, 1, 0.7),
        scheduler_at="step" if by_step else "epoch",
        grad_clip=GradientClipping(max_norm=0.5),
        validation=Validation(evaluator, batches_of(1), every_steps=2),
    )
    for event in (Events.STARTED, Events.EPOCH_STARTED, Events.EPOCH_COMPLETED):
        trainer.add_event_handler(event, lambda: torch.rand(3))
    RunningAverage(output_transform=lambda loss: loss).attach(trainer, "loss")
    patience = EarlyStopping(10**6, lambda engine: -engine.state.metrics["loss"], trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, patience)
    return trainer, patience


def outcome(trainer, patience, recorder):
    return {
        "iterations": {str(number): digests for number, digests in recorder.iterations.items()},
        "loss": float(trainer.state.metrics["loss"]),
        "patience": [patience.counter, float(patience.best_score)],
        "steps": trainer.state.optimizer_step,
    }


def save(folder):
    found = {}
    for training in TRAININGS:
        trainer, patience = make_trainer(*training, number=1)
        recorder = RunRecorder(trainer)
        place = folder / ", ".join(training)
        SaveCheckpoint(place, every_steps=1, every_epochs=1, keep_last="all").attach(trainer)
        trainer.run(max_epochs=EPOCHS)
        found[place.name] = outcome(trainer, patience, recorder)
    return found


def resume(folder, part, parts):
    found = {}
    for training in TRAININGS[int(part) :: int(parts)]:
        place = folder / ", ".join(training)
        for checkpoint in sorted(place.glob("step_*")):
            trainer, patience = make_trainer(*training, number=2)
            ResumeCheckpoint(checkpoint).attach(trainer)
            recorder = RunRecorder(trainer)
            trainer.run(max_epochs=EPOCHS)
            found.setdefault(place.name, []).append(outcome(trainer, patience, recorder))
    return found


def main():
    warnings.simplefilter("ignore")  # an inexact resume shows in the outcomes
    torch.set_num_threads(1)
    command, folder, *part = sys.argv[1:]
    found = {"save": save, "resume": resume}[command](Path(folder), *part)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
