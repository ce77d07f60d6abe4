"""Models whose buffers differ between processes, while they are trained and evaluated."""

import torch
from accelerate.utils import DistributedDataParallelKwargs
from ignite.engine import Engine
from ignite.engine import Events
from ignite.metrics import MeanSquaredError
from torch.utils.data import DataLoader

from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer
from tests.distributed.programs.checks import accelerator
from tests.distributed.programs.checks import run
from tests.distributed.programs.stepping import counting_collectives
from tests.distributed.programs.stepping import samples
from tests.reference import seed

HELD_OUT = 7  # samples: not the same number for each process


def model_of():
    seed(0)
    norm = torch.nn.BatchNorm1d(8)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), norm, torch.nn.Linear(8, 2)).double()


def error_of_rank_0(model, ours):
    """Returns the error of the saved model on all held-out samples."""
    values = [each.clone() for each in model.buffers()]
    for each in model.buffers():
        torch.distributed.broadcast(each, src=0)
    modes = [(part, part.training) for part in model.modules()]
    x, y = samples(HELD_OUT)[:]
    with torch.no_grad():
        error = float((model.eval()(x) - y).square().sum(1).mean())
    for part, training in modes:
        part.training = training
    for each, value in zip(model.buffers(), values, strict=True):
        each.copy_(value)
    return error


def statistics(model):
    return [float(each.double().sum()) for each in model.buffers()]


def plain_evaluator(model):
    """Returns a plain Ignite engine, whose model the package does not know."""

    def process(engine, batch):
        assert not model.training
        return model(batch[0]), batch[1]

    evaluator = Engine(process)
    MeanSquaredError().attach(evaluator, "mse")
    return evaluator


def trained(sends, evaluate):
    handler = DistributedDataParallelKwargs(broadcast_buffers=sends)
    ours = accelerator(1, handler)
    model = model_of()
    if evaluate == "ours":
        evaluator = create_supervised_evaluator(
            model, {"mse": MeanSquaredError()}, accelerator=ours
        )
        validation = Validation(evaluator, DataLoader(samples(HELD_OUT), 2), every_steps=2)
    elif evaluate == "Ignite's":
        loader = DataLoader(samples(HELD_OUT), 2)
        validation = Validation(plain_evaluator(model), loader, every_steps=2)
    else:
        validation = Validation(lambda: {"mse": statistics(model)}, every_steps=2)
    trainer = create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        torch.nn.functional.mse_loss,
        DataLoader(samples(20), 2),
        accelerator=ours,
        validation=validation,
    )
    found, expected, kept, before = [], [], [], []
    trainer.add_event_handler(TrainEvents.STEP_COMPLETED, lambda: before.append(statistics(model)))

    @trainer.on(TrainEvents.VALIDATION_COMPLETED)
    def look(engine):
        found.append(engine.state.metrics["val_mse"])
        expected.append(error_of_rank_0(model, ours))
        kept.append(statistics(model) == before[-1])

    trainer.run(max_epochs=1)
    return {"found": found, "expected": expected, "kept": kept, "statistics": statistics(model)}


def sent():
    return {evaluate: trained(True, evaluate) for evaluate in ("ours", "Ignite's")}


def not_sent():
    return {evaluate: trained(False, evaluate) for evaluate in ("ours", "a callable")}


def evaluated():
    """Runs an evaluator outside of a run, without a validation of the trainer."""
    ours = accelerator()
    model = model_of()
    for each in model.buffers():
        each.add_(ours.process_index)
    before = statistics(model)
    evaluator = create_supervised_evaluator(model, {"mse": MeanSquaredError()}, accelerator=ours)
    state = evaluator.run(DataLoader(samples(HELD_OUT), 2))
    kept = statistics(model) == before
    failing = create_supervised_evaluator(model, accelerator=ours)

    @failing.on(Events.ITERATION_COMPLETED)
    def fail():
        raise ArithmeticError

    try:
        failing.run(DataLoader(samples(HELD_OUT), 2))
    except ArithmeticError:
        kept_after_failure = statistics(model) == before
    return {
        "found": state.metrics["mse"],
        "expected": error_of_rank_0(model, ours),
        "kept": [kept, kept_after_failure],
    }


def sends(*names):
    """Returns the number of broadcasts in an epoch, with an evaluator of each name."""
    ours, model = accelerator(), model_of()
    evaluators = {name: create_supervised_evaluator(model, accelerator=ours) for name in names}
    trainer = create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        torch.nn.functional.mse_loss,
        DataLoader(samples(20), 2),
        accelerator=ours,
        validation=Validation(evaluators, DataLoader(samples(HELD_OUT), 2), every_epochs=1),
    )
    with counting_collectives() as counts:
        trainer.run(max_epochs=1)
    return counts["broadcast"]


def sent_once():
    return {"for one": sends("one"), "for two": sends("one", "other")}


class Growing(torch.nn.Module):
    """Keeps a cache as large as its largest input, made with the first one."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(4).double()
        self.register_buffer("cache", torch.zeros(1), persistent=False)
        self.register_buffer("offset", torch.zeros(4, requires_grad=True))

    def forward(self, x):
        if len(x) > len(self.cache):
            self.cache = torch.ones(len(x))
        return self.norm(x)


def unequal_shapes():
    """Statistics are those of rank 0 though a cache has another size on each rank."""
    ours = accelerator()
    model = Growing()
    model(torch.randn(3 + ours.process_index, 4, dtype=torch.float64))
    wanted = model.norm.running_mean.clone()
    torch.distributed.broadcast(wanted, src=0)
    evaluator = create_supervised_evaluator(model, accelerator=ours, inference_mode=True)
    seen = []

    @evaluator.on(Events.ITERATION_COMPLETED)
    def look(engine):
        seen.append(torch.equal(model.norm.running_mean, wanted))

    sizes = [len(model.cache)]
    for _ in range(2):  # the second time the cache is one of inference mode
        evaluator.run(DataLoader(samples(12 + 12 * ours.process_index), 6))
        sizes.append(len(model.cache))
    return {"seen": seen, "sizes": sizes}


if __name__ == "__main__":
    run(sent, not_sent, evaluated, sent_once, unequal_shapes)
