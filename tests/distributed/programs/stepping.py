"""Training on two processes."""

from contextlib import suppress

import torch
import torch.nn.functional as F
from ignite.engine import Events
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from ignite_hooks import DataFeed
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer
from tests.distributed.programs.checks import accelerator
from tests.distributed.programs.checks import counting_collectives
from tests.distributed.programs.checks import run
from tests.reference import make_model
from tests.reference import seed
from tests.reference import weights


def samples(size=20):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(size, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(size, 2, generator=generator, dtype=torch.float64)
    return TensorDataset(x, y)


class Unsized:
    """An iterable of batches without a length."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def build(ours, data, *, dropout=0.0, momentum=0.9, **arguments):
    model = make_model(dropout).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    return create_supervised_trainer(
        model, optimizer, F.mse_loss, data, accelerator=ours, **arguments
    )


def lr(trainer):
    return trainer.optimizer.param_groups[0]["lr"]


def scheduler_moves_once_a_step():
    trainer = build(
        accelerator(2),
        DataLoader(samples(), batch_size=2),
        lr_scheduler=lambda optimizer: StepLR(optimizer, 1, gamma=0.5),
    )
    rates = []
    trainer.add_event_handler(
        TrainEvents.OPTIMIZER_STEP_COMPLETED, lambda engine: rates.append(lr(engine))
    )
    trainer.run(max_epochs=1)
    return {"rates": rates, "steps": trainer.state.optimizer_step}


def prepared_scheduler_keeps_the_rule_of_accelerate():
    ours = accelerator(2)
    model = make_model(0.0).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, loader, scheduler = ours.prepare(
        model, optimizer, DataLoader(samples(), batch_size=2), StepLR(optimizer, 1, gamma=0.5)
    )
    trainer = create_supervised_trainer(
        model, optimizer, F.mse_loss, loader, accelerator=ours, lr_scheduler=scheduler
    )
    trainer.run(max_epochs=1)
    return {"rate": lr(trainer), "steps": trainer.state.optimizer_step}


def trains_as_one_process_does():
    trainer = build(accelerator(2), DataLoader(samples(), batch_size=2))
    trainer.run(max_epochs=2)
    return {"weights": weights(trainer.model).tolist(), "steps": trainer.state.optimizer_step}


def validation_changes_nothing():
    found = {}
    for name in ("without", "with"):
        seed()
        ours = accelerator(3)
        validation = None
        model = make_model(0.5).double()
        if name == "with":
            evaluator = create_supervised_evaluator(model, accelerator=ours)
            held_out = DataLoader(samples(7), batch_size=2, shuffle=True)
            validation = Validation(evaluator, held_out, every_steps=1, every_epochs=1)
        loader = DataLoader(samples(), batch_size=2, shuffle=True)
        trainer = create_supervised_trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            F.mse_loss,
            loader,
            accelerator=ours,
            validation=validation,
        )
        trainer.run(max_epochs=2)
        found[name] = weights(trainer.model).tolist()
        found[f"steps {name}"] = trainer.state.optimizer_step
    return found


def interrupted(stop):
    """Trains two epochs of shuffled data, and stops and continues after some batches."""
    found = {}
    for at in (None, 1, 4, 6, 9):
        seed()
        trainer = build(accelerator(2), DataLoader(samples(), batch_size=2, shuffle=True))
        if at is not None:
            stop(trainer, at)
        trainer.run(max_epochs=2, max_steps=100)
        found[str(at)] = weights(trainer.model).tolist()
    return found


def goes_on_after_a_failure():
    def fail(trainer, at):
        def fail_everywhere(engine):
            raise ArithmeticError

        event = Events.ITERATION_COMPLETED(once=at)
        with trainer.add_event_handler(event, fail_everywhere), suppress(ArithmeticError):
            trainer.run(max_epochs=2)
        assert trainer.stop_reason == "exception"

    return interrupted(fail)


def goes_on_after_max_steps():
    return interrupted(lambda trainer, at: trainer.run(max_epochs=2, max_steps=(at + 1) // 2))


def shuffles_alike_with_different_seeds():
    ours = accelerator()
    seed(100 + ours.process_index)
    feed = DataFeed(DataLoader(range(10), batch_size=1, shuffle=True), ours)
    passes = []
    for stop in (5, 2, 5):
        batches = iter(feed)
        given = [int(next(batches)) for _ in range(stop)]
        feed.close()
        seed(200 + stop + ours.process_index)
        passes.append(given + ([int(batch) for batch in feed] if stop < 5 else []))
    return {"passes": passes}


def gradients_are_reduced_once_a_window():
    trainer = build(accelerator(3), DataLoader(samples(), batch_size=2))
    reductions = []

    def reduce(group, bucket):
        reductions.append(trainer.state.iteration)
        return allreduce_hook(group, bucket)

    trainer.model.register_comm_hook(None, reduce)
    trainer.run(max_epochs=2)
    return {"reductions": reductions, "steps": trainer.state.optimizer_step}


def collectives():
    found = {}
    mine = list(DataLoader(samples(), batch_size=2))[:7]
    for name, steps, make in (
        ("known", 1, lambda: mine),
        ("known, windows", 3, lambda: mine),
        ("unknown", 1, lambda: Unsized(mine)),
        ("unknown, windows", 3, lambda: Unsized(mine)),
        ("generator, windows", 3, lambda: (batch for batch in mine)),
        ("loader", 1, lambda: DataLoader(samples(28), batch_size=2)),
    ):
        trainer = build(accelerator(steps), make())
        with counting_collectives() as counts:
            trainer.run(max_epochs=1)
        found[name] = {"steps": trainer.state.optimizer_step, "all": dict(counts)}
    return found


if __name__ == "__main__":
    run(
        scheduler_moves_once_a_step,
        prepared_scheduler_keeps_the_rule_of_accelerate,
        trains_as_one_process_does,
        validation_changes_nothing,
        goes_on_after_a_failure,
        goes_on_after_max_steps,
        shuffles_alike_with_different_seeds,
        gradients_are_reduced_once_a_window,
        collectives,
    )
