"""Training on two processes that have unequal numbers of batches."""

import warnings

import torch
import torch.nn.functional as F
from ignite.engine import Events
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from ignite_hooks import create_supervised_trainer
from tests.distributed.programs.checks import accelerator
from tests.distributed.programs.checks import run
from tests.reference import make_model
from tests.reference import weights


def samples(size):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(size, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(size, 2, generator=generator, dtype=torch.float64)
    return TensorDataset(x, y)


def batches_of(rank, counts):
    """Returns the batches of one process, ``counts[rank]`` of all."""
    every = list(DataLoader(samples(2 * sum(counts)), batch_size=2))
    first = sum(counts[:rank])
    return every[first : first + counts[rank]]


class Unsized:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


KINDS = {
    "lists": (list, list),
    "generators": (iter, iter),
    "unsized": (Unsized, Unsized),
    "a list and a generator": (list, iter),
    "a list and an unsized": (list, Unsized),
}
COUNTS = ((5, 3), (3, 5), (7, 6), (1, 4))


def build(ours, data):
    model = make_model(0.0).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return create_supervised_trainer(model, optimizer, F.mse_loss, data, accelerator=ours)


def trained(trainer, epochs=1, **limits):
    trainer.run(max_epochs=epochs, **limits)
    return {
        "steps": trainer.state.optimizer_step,
        "iterations": trainer.state.iteration,
        "weights": weights(trainer.model).tolist(),
    }


def by_hand():
    found = {}
    for kind, makers in KINDS.items():
        for counts in COUNTS:
            for accumulation in (1, 3):
                ours = accelerator(accumulation)
                rank = ours.process_index
                trainer = build(ours, makers[rank](batches_of(rank, counts)))
                epochs = 1 if iter in makers else 2
                found[f"{kind} {counts} {accumulation}"] = trained(trainer, epochs)
    return found


def surplus():
    found = {}
    for kind in ("lists", "unsized"):
        ours = accelerator()
        rank = ours.process_index
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trained(build(ours, KINDS[kind][rank](batches_of(rank, (3, 5)))), 3)
        said = [str(each.message) for each in caught]
        found[kind] = [each for each in said if "more batches in a pass" in each]
    return found


def uneven_loader():
    found = {}
    for accumulation in (1, 3):
        ours = accelerator(accumulation)
        ours.even_batches = False
        loader = ours.prepare(DataLoader(samples(9), batch_size=2))
        found[str(accumulation)] = trained(build(ours, loader), 2)
        found[f"{accumulation} kept"] = loader.batch_sampler.even_batches
    return found


def uneven_loader_without_length():
    found = {}
    for accumulation in (1, 3):
        ours = accelerator(accumulation)
        ours.even_batches = False
        sampler = Unsized([[number, number + 1] for number in range(0, 10, 2)])
        loader = ours.prepare(DataLoader(samples(10), batch_sampler=sampler))
        found[str(accumulation)] = trained(build(ours, loader), 2)
    return found


def stops_and_goes_on():
    """``max_steps`` in the middle of data of unknown, unequal length."""
    found = {}
    for accumulation in (1, 3):
        for name in ("unbroken", "broken"):
            ours = accelerator(accumulation)
            rank = ours.process_index
            trainer = build(ours, Unsized(batches_of(rank, (7, 5))))
            if name == "broken":
                trainer.run(max_epochs=2, max_steps=1)
            found[f"{name} {accumulation}"] = trained(trainer, 2, max_steps=100)
    return found


def one_is_empty():
    found = {}
    for kind in ("lists", "generators", "unsized"):
        ours = accelerator(3)
        rank = ours.process_index
        data = KINDS[kind][rank](batches_of(rank, (3, 0)))
        try:
            trainer = build(ours, data)
            trainer.run(max_epochs=1)
            found[kind] = "no error"
        except ValueError as error:
            found[kind] = str(error)
    return found


def terminated_epochs():
    """``terminate_epoch`` on all processes, with data of unknown, unequal length."""
    ours = accelerator(2)
    rank = ours.process_index
    trainer = build(ours, Unsized(batches_of(rank, (7, 5))))

    @trainer.on(Events.ITERATION_COMPLETED(once=1))
    def terminate(engine):
        engine.terminate_epoch()

    return trained(trainer, 2)


if __name__ == "__main__":
    run(
        surplus,
        by_hand,
        uneven_loader,
        uneven_loader_without_length,
        stops_and_goes_on,
        one_is_empty,
        terminated_epochs,
    )
