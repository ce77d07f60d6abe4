"""Parameters outside of the model, on two processes that begin with different values."""

import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import DistributedDataParallelKwargs
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ignite_hooks import GradientClipping
from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer
from tests.distributed.programs.checks import accelerator
from tests.distributed.programs.checks import run
from tests.distributed.programs.stepping import samples
from tests.reference import make_model
from tests.reference import seed

EPOCHS = 2
SIZE = 20
SETTINGS = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}


class Weighted(torch.nn.Module):
    """A loss with trained weights, one of them used by some batches only, and one by none."""

    def __init__(self, sometimes=False):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
        self.unused = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.sometimes = sometimes

    def forward(self, y_pred, y):
        loss = ((y_pred - y) ** 2 * self.weight.exp() - self.weight).mean()
        if not self.sometimes or float(y.flatten()[0]) > 0:
            loss = loss * self.scale
        return loss


class Processor(torch.nn.Module):
    """A batch processor with a layer and buffers."""

    def __init__(self, model=None):
        super().__init__()
        self.held = model
        self.head = torch.nn.Linear(2, 2).double()
        self.norm = torch.nn.BatchNorm1d(2).double()

    def forward(self, model, batch):
        x, y = batch
        outputs = self.head(model(x))
        self.norm(outputs.detach())
        return outputs, (outputs - y).square().mean()

    def compute(self, model, batch):
        return self.forward(model, batch)


def by_hand(model, processor, parameters, *, steps=1, clip=None):
    """Trains in plain PyTorch on one process, with the batches of both."""
    optimizer = torch.optim.SGD(parameters, **SETTINGS)
    for _ in range(EPOCHS):
        for number, batch in enumerate(DataLoader(samples(SIZE), 2 * 2), start=1):
            halves = [[part[:2] for part in batch], [part[2:] for part in batch]]
            sum(processor(model, half)[1] / len(halves) for half in halves).div(steps).backward()
            if number % steps == 0 or number == SIZE // 4:
                if number % steps:
                    for each in parameters:
                        if each.grad is not None:
                            each.grad *= steps / (number % steps)
                if clip is not None:
                    torch.nn.utils.clip_grad_norm_(parameters, clip)
                optimizer.step()
                optimizer.zero_grad()


def supervised(loss):
    return lambda model, batch: (None, loss(model(batch[0]), batch[1]))


def flat(parameters):
    return torch.cat([each.detach().flatten() for each in parameters])


def distance(make, call=None, *, steps=1, clip=None, wrap=lambda module: module, **options):
    """Returns the distance of training with ``make()`` on both processes from plain PyTorch."""
    ours = accelerator(steps)
    seed(0)
    model, part = make_model(0.0).double(), make()
    seed(0)
    expected, same_part = make_model(0.0).double(), make()
    kind = "loss_fn" if isinstance(part, Weighted) else "batch_processor"
    if ours.process_index:  # which begins with other values
        for each in (*model.parameters(), *part.parameters()):
            each.data += 1
    parameters = [*model.parameters(), *part.parameters()]
    trainer = create_supervised_trainer(
        model,
        torch.optim.SGD(parameters, **SETTINGS),
        data=DataLoader(samples(SIZE), 2),
        accelerator=ours,
        grad_clip=clip and GradientClipping(max_norm=clip),
        **{kind: wrap(part if call is None else getattr(part, call))},
        **options,
    )
    trainer.run(max_epochs=EPOCHS)
    assert trainer.modules[kind] is part  # which is saved without a wrapper
    processor = supervised(same_part) if kind == "loss_fn" else same_part
    wanted = [*expected.parameters(), *same_part.parameters()]
    by_hand(expected, processor, wanted, steps=steps, clip=clip)
    buffers = flat(part.buffers()) if kind != "loss_fn" else torch.zeros(1)
    every = ours.gather(torch.cat([flat(parameters), buffers])[None])
    return {
        "of ranks": float((every[0] - every[1]).abs().max()),
        "by hand": float((flat(parameters) - flat(wanted)).abs().max()),
    }


def compared():
    return {
        "a loss": distance(Weighted),
        "a loss, clipped": distance(Weighted, clip=0.1),
        "a loss, accumulated": distance(Weighted, steps=2),
        "a loss that is not used on both": distance(lambda: Weighted(sometimes=True)),
        "a loss in DDP": distance(Weighted, wrap=in_ddp),
        "a batch processor": distance(Processor),
        "a method of one": distance(Processor, "compute"),
    }


def in_ddp(module):
    return DistributedDataParallel(module, find_unused_parameters=True)


def holding_the_model():
    """Trains a function that holds the model; only its own parameters are averaged besides DDP."""
    seed(0)
    ours, model = accelerator(), make_model(0.0).double()
    part = Processor(model)
    trainer = create_supervised_trainer(
        model,
        torch.optim.SGD(part.parameters(), **SETTINGS),
        batch_processor=part,
        data=DataLoader(samples(SIZE), 2),
        accelerator=ours,
    )
    trainer.run(max_epochs=EPOCHS)
    every = ours.gather(flat(part.parameters())[None])
    seed(0)
    expected = make_model(0.0).double()
    same_part = Processor(expected)
    by_hand(expected, same_part, [*same_part.parameters()])
    return {
        "of ranks": float((every[0] - every[1]).abs().max()),
        "by hand": float((flat(part.parameters()) - flat(same_part.parameters())).abs().max()),
    }


def resumed():
    directory = Path(sys.argv[1]) / "apart"

    def trained(**options):
        seed(0)
        model, loss = make_model(0.0).double(), Weighted()
        trainer = create_supervised_trainer(
            model,
            torch.optim.SGD([*model.parameters(), *loss.parameters()], **SETTINGS),
            loss,
            DataLoader(samples(SIZE), 2),
            accelerator=accelerator(),
            **options,
        )
        trainer.run(max_epochs=EPOCHS)
        return flat([*model.parameters(), *loss.parameters()])

    whole = trained(checkpoint=SaveCheckpoint(directory, every_steps=1, keep_last="all"))
    again = [trained(resume_from=directory / f"step_{step:08d}") for step in (1, 5, 8)]
    return {"exact": [torch.equal(each, whole) for each in again]}


class Centred(torch.nn.Module):
    """Puts another tensor in the place of its buffer at each call."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
        self.late = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
        self.register_buffer("centre", torch.zeros(2, dtype=torch.float64))

    def forward(self, y_pred, y):
        self.centre = 0.9 * self.centre + 0.1 * y.mean(0)
        return ((y_pred - self.centre) * self.scale * self.late - y).square().mean()


def changing():
    """A buffer that is replaced, and a parameter that the optimizer is given later."""
    seed(0)
    ours, model, loss = accelerator(), make_model(0.0).double(), Centred()
    optimizer = torch.optim.SGD([*model.parameters(), loss.scale], lr=0.02)
    trainer = create_supervised_trainer(
        model, optimizer, loss, DataLoader(samples(SIZE), 2), accelerator=ours
    )
    trainer.run(max_steps=2)
    before = float(loss.late)
    optimizer.add_param_group({"params": [loss.late]})
    trainer.run(max_steps=5)
    every = ours.gather(torch.stack([loss.scale, loss.late, *loss.centre]).detach()[None])
    return {
        "of ranks": float((every[0] - every[1]).abs().max()),
        "trained": float(loss.late) != before,
    }


def keeping_buffers():
    """Trains with buffers that differ between ranks, after a start with those of rank 0."""
    seed(0)
    ours = accelerator(1, DistributedDataParallelKwargs(broadcast_buffers=False))
    model, part = make_model(0.0).double(), Processor()
    for each in part.buffers():
        each += ours.process_index

    def difference():
        every = ours.gather(flat([each.double() for each in part.buffers()])[None])
        return float((every[0] - every[1]).abs().max())

    trainer = create_supervised_trainer(
        model,
        torch.optim.SGD([*model.parameters(), *part.parameters()], lr=0.02),
        batch_processor=part,
        data=DataLoader(samples(SIZE), 2),
        accelerator=ours,
    )
    at_start = difference()
    trainer.run(max_epochs=1)
    return {"at start": at_start, "trained": difference()}


class Mixed(Weighted):
    """A loss with a parameter of another dtype, a buffer, and a parameter without optimizer."""

    def __init__(self):
        super().__init__()
        self.single = torch.nn.Parameter(torch.ones(1))
        self.other = torch.nn.Parameter(torch.ones(7))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, y_pred, y):
        self.calls += 1
        return super().forward(y_pred, y) * self.single.double().sum() + self.other.sum() * 0


@contextmanager
def noting_exchanges():
    """Notes the sizes of the tensors that are reduced and broadcast in the default group."""
    sizes, originals = {"all_reduce": [], "broadcast": []}, {}

    def noted(name):
        def call(tensor, *args, **kwargs):
            if kwargs.get("group") is None:  # else lengths and stops, on the host
                sizes[name].append(tensor.numel())
            return originals[name](tensor, *args, **kwargs)

        return call

    for name in sizes:
        originals[name] = getattr(torch.distributed, name)
        setattr(torch.distributed, name, noted(name))
    try:
        yield sizes
    finally:
        for name, original in originals.items():
            setattr(torch.distributed, name, original)


def exchanged_by(make, kind="loss_fn", wrap=lambda part: part, left_out=(), frozen=()):
    """Returns the sizes of the exchanges of one step, except those of DDP."""
    seed(0)
    model = make_model(0.0).double()
    part = make(model)
    named = dict(part.named_parameters())
    for name in frozen:
        named[name].requires_grad_(False)
    trained = [*model.parameters(), *(named[name] for name in named if name not in left_out)]
    parameters = {id(each): each for each in trained}  # a part may hold the model
    trainer = create_supervised_trainer(
        model,
        torch.optim.SGD(parameters.values(), lr=0.02),
        data=DataLoader(samples(SIZE), 2),
        accelerator=accelerator(),
        **{kind: wrap(part)},
    )
    with noting_exchanges() as sizes:
        trainer.run(max_steps=1)
    return sizes


def exchanged():
    every = {name for name, _ in Mixed().named_parameters()}
    return {
        "of two dtypes": exchanged_by(lambda model: Mixed(), left_out=["other"]),
        "frozen": exchanged_by(lambda model: Mixed(), frozen=["other"]),
        "not trained": exchanged_by(lambda model: Mixed(), left_out=every),
        "in DDP": exchanged_by(lambda model: Weighted(), wrap=in_ddp),
        "holding the model": exchanged_by(Processor, "batch_processor"),
    }


def sparse():
    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(3, 2, sparse=True).double()

        def forward(self, y_pred, y):
            return (y_pred - y + self.table(torch.tensor([1]))).square().mean()

    model, loss = make_model(0.0).double(), Table()
    trainer = create_supervised_trainer(
        model,
        torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1),
        loss,
        DataLoader(samples(SIZE), 2),
        accelerator=accelerator(),
    )
    try:
        trainer.run(max_epochs=1)
    except RuntimeError as error:
        return {"error": str(error)}
    return {"error": ""}


if __name__ == "__main__":
    run(compared, holding_the_model, resumed, changing, keeping_buffers, exchanged, sparse)
