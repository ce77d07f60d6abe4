"""Measures where training time is spent, with a scope, an event handler and a context manager.

The scope is a generator around a part of the loop, such as the forward pass. Its ``finally`` also
runs if this part fails, so the measured times are right after a failure too. The event handler is
Ignite's: it is called at one point in time, here the end of each epoch. The context manager is
torch's own profiler. (On a GPU the scope measures only how long it takes to queue the work.)

    python examples/custom_hook.py
"""

import argparse
import time
from collections import Counter

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from ignite.engine import Events
from torch import nn
from torch.profiler import ProfilerActivity
from torch.profiler import profile
from torch.profiler import record_function
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from ignite_hooks import Hooks
from ignite_hooks import create_supervised_trainer

PARTS = ["on_model_forward", "on_model_backward", "on_optimizer_step"]


def stopwatch():
    """Returns scopes that add up the seconds of each part in an epoch, in ``state.metrics``."""
    hooks = Hooks()
    seconds = Counter()

    @hooks.on("on_epoch")
    def reset(engine):
        seconds.clear()
        yield

    for part in PARTS:

        @hooks.on(part)
        def add_up(engine, part=part):
            start = time.perf_counter()
            try:
                yield
            finally:
                seconds[part] += time.perf_counter() - start
                engine.state.metrics["seconds"] = dict(seconds)

    return hooks


def print_seconds(trainer):
    """Prints the sums that the scopes have measured. A handler for the end of each epoch."""
    state = trainer.state
    parts = "   ".join(f"{part} {state.metrics['seconds'][part]:.3f} s" for part in PARTS)
    print(f"epoch {state.epoch}   loss {state.output:.3f}   {parts}")


def spiral(size):
    """Returns points on two arms of a spiral; the label of a point is its arm."""
    angle = torch.rand(size) * 6
    label = torch.randint(2, (size,))
    direction = angle + label * torch.pi
    points = torch.stack((direction.cos(), direction.sin()), dim=1) * angle.unsqueeze(1) / 6
    return TensorDataset(points + 0.02 * torch.randn(size, 2), label)


def main():
    args = parse_args()
    torch.set_num_threads(1)
    set_seed(0)
    model = nn.Sequential(
        nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
    )
    trainer = create_supervised_trainer(
        model,
        torch.optim.AdamW(model.parameters(), lr=0.01),
        F.cross_entropy,
        DataLoader(spiral(2000), batch_size=50, shuffle=True),
        accelerator=Accelerator(cpu=args.cpu),
        handlers=[stopwatch()],
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED, print_seconds)

    profiler = profile(activities=[ProfilerActivity.CPU])
    trainer.hooks.register("on_loop", lambda engine: profiler)
    trainer.hooks.register("on_step", lambda engine: record_function("a whole step"))
    trainer.run(max_epochs=args.epochs)

    steps = next(each for each in profiler.key_averages() if each.key == "a whole step")
    print(f"torch's profiler saw {steps.count} steps of {steps.cpu_time / 1000:.2f} ms")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
