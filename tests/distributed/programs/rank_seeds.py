"""Random numbers on two processes: different for dropout, equal for model and data order."""

import random
import sys
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import DataLoaderConfiguration
from ignite.engine import Events
from torch.utils.data import DataLoader
from torch.utils.data import DistributedSampler
from torch.utils.data import IterableDataset
from torch.utils.data import Sampler
from torch.utils.data import WeightedRandomSampler

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks.config import RunSettings
from tests.distributed.programs.checks import accelerator
from tests.distributed.programs.checks import run
from tests.reference import make_model
from tests.reference import seed
from tests.reference import weights

SIZE = 16


def rank():
    return PartialState().process_index


class Numbered(torch.utils.data.Dataset):
    """Samples that contain their own index."""

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        return torch.full((4,), float(index)), torch.zeros(2)


class Shuffled(Sampler):
    """Draws its order from Python's generator, as scripts do."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __iter__(self):
        return iter(random.sample(range(self.size), self.size))


class Stream(IterableDataset):
    """Draws its order from torch's global generator."""

    def __iter__(self):
        data = Numbered()
        yield from (data[int(index)] for index in torch.randperm(SIZE))


def weighted():
    return WeightedRandomSampler(torch.ones(SIZE), SIZE, replacement=False)


def own():
    return WeightedRandomSampler(
        torch.ones(SIZE), SIZE, replacement=False, generator=torch.Generator().manual_seed(1)
    )


SEEDABLE = {"use_seedable_sampler": True}
KINDS = {
    "shuffled": (lambda: DataLoader(Numbered(), 2, shuffle=True), {}),
    "seedable": (lambda: DataLoader(Numbered(), 2, shuffle=True), SEEDABLE),
    "own generator": (lambda: DataLoader(Numbered(), 2, sampler=own()), {}),
    "weighted": (lambda: DataLoader(Numbered(), 2, sampler=weighted()), {}),
    "dispatched stream": (lambda: DataLoader(Stream(), 2), {}),
    "list": (lambda: [*DataLoader(Numbered(), 2)][rank() :: 2], {}),
    "weighted, seedable": (lambda: DataLoader(Numbered(), 2, sampler=weighted()), SEEDABLE),
    "sampler": (lambda: DataLoader(Numbered(), 2, sampler=Shuffled(SIZE)), {}),
    "stream": (lambda: DataLoader(Stream(), 2), {"dispatch_batches": False}),
}


def watch(trainer):
    """Returns the samples that a trainer is given in each epoch, and one draw in each epoch."""
    epochs, draws = [], []
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: epochs.append([]))

    @trainer.on(Events.ITERATION_STARTED)
    def note(engine):
        epochs[-1] += engine.state.batch[0][:, 0].int().tolist()

    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: draws.append(torch.rand(()).item())
    )
    return epochs, draws


def built(make, configuration, **settings):
    run_settings = RunSettings(seed=2**32 - 1, **settings)
    run_settings.set_up(cpu=True)
    ours = accelerator(dataloader_config=DataLoaderConfiguration(**configuration))
    model = make_model(dropout=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    return run_settings.build(model, optimizer, F.mse_loss, make(), accelerator=ours)


def kinds():
    found = {}
    for name, (make, configuration) in KINDS.items():
        trainer = built(make, configuration)
        initial = weights(trainer.model).tolist()
        epochs, draws = watch(trainer)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.run(max_epochs=2)
        told = [str(each.message) for each in caught if "random" in str(each.message)]
        found[name] = {"initial": initial, "epochs": epochs, "draws": draws, "told": told}
    return found


def resumed():
    """Resumes a run, which must continue with the random numbers of each rank."""
    directory = Path(sys.argv[1]) / "seeded checkpoints"
    make, configuration = KINDS["shuffled"]
    unbroken = built(make, configuration)
    unbroken.run(max_epochs=3)
    first = built(make, configuration, checkpoint=SaveCheckpoint(directory))
    first.run(max_steps=6)
    trainer = built(make, configuration, resume_from=ResumeCheckpoint(directory))
    trainer.run(max_epochs=3)
    again = built(make, configuration)
    draws = []
    for _ in range(2):  # the second is a new run, which continues with the present states
        again.run(max_steps=2)
        draws.append(torch.rand(()).item())
    return {
        "equal": torch.equal(weights(trainer.model), weights(unbroken.model)),
        "continues": draws[0] != draws[1],
    }


def divided_twice():
    """A loader with torch's DistributedSampler, which Accelerate divides once more."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = built(lambda: DataLoader(Numbered(), 2, sampler=divided()), {})
    epochs, _ = watch(trainer)
    trainer.run()
    told = [str(each.message) for each in caught if "DistributedSampler" in str(each.message)]
    return {"epochs": epochs, "told": told}


def divided():
    return DistributedSampler(range(SIZE), num_replicas=2, rank=rank())


def seeded_by_hand():
    """Seeds the ranks differently; an order that they share must be equal, or reported."""
    found = {}
    for name in ("seedable", "sampler"):
        make, configuration = KINDS[name]
        seed(rank())
        trainer = built(make, configuration)
        seed(rank())
        trainer = RunSettings().build(
            trainer.model.module,
            torch.optim.SGD(trainer.model.module.parameters(), lr=1e-4),
            F.mse_loss,
            make(),
            accelerator=trainer.accelerator,
        )
        epochs, _ = watch(trainer)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.run(max_epochs=2)
        told = [str(each.message) for each in caught if "random" in str(each.message)]
        found[name] = {"epochs": epochs, "told": told}
    return found


if __name__ == "__main__":
    run(kinds, resumed, divided_twice, seeded_by_hand)
