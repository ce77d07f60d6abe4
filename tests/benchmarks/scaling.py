"""Measures how an iteration scales with waiting handlers, parameters, length and epochs.

Everything runs in one process, in short runs that take turns.
"""

import statistics
import time

import torch
from accelerate import Accelerator
from ignite.engine import Events
from torch.nn.utils import clip_grad_norm_

from ignite_hooks import ClearCache
from ignite_hooks import GradientClipping
from ignite_hooks import create_supervised_trainer
from tests.benchmarks.machine import use_core
from tests.benchmarks.sizes import CLOCKS
from tests.benchmarks.work import MAX_NORM
from tests.benchmarks.work import Linear

NEVER = 10**6


class Many(torch.nn.Module):
    """A model of ``number`` parameter tensors, all of which take part in the output."""

    def __init__(self, number):
        super().__init__()
        self.parts = torch.nn.ParameterList(torch.randn(16) for _ in range(number))

    def forward(self, x):
        return x * torch.stack(list(self.parts)).sum(0)


def batches(number):
    torch.manual_seed(0)
    return list(zip(*torch.randn(2, number, 8, 16), strict=True))


def make_trainer(model=None):
    model = model or Linear()
    return create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9),
        torch.nn.functional.mse_loss,
        accelerator=Accelerator(cpu=True),
        grad_clip=GradientClipping(max_norm=MAX_NORM),
    )


def runner(model=None, handlers=0, event=None):
    """Returns a function that runs a trainer over batches."""
    trainer = make_trainer(model)
    for _ in range(handlers):
        handler = ClearCache() if event else ClearCache(every_steps=NEVER)
        handler.attach(trainer, event)
    return trainer.run


def raw_runner(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def run(data):
        for x, y in data:
            torch.nn.functional.mse_loss(model(x), y).backward()
            clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            optimizer.zero_grad()

    return run


class Clocked(list):
    """Batches that record the time at which each one is requested."""

    clock = staticmethod(time.perf_counter)

    def __iter__(self):
        self.times = []
        for batch in super().__iter__():
            self.times.append(self.clock())
            yield batch


def iteration(run, data):
    """Returns the median time of an iteration in a short run, in µs."""
    run(data)
    steps = zip(data.times[11:], data.times[10:], strict=False)  # the first ones warm up
    return statistics.median(later - earlier for later, earlier in steps) * 1e6


def row(what, base, other, data, rounds):
    """Returns the row of the time that ``other`` takes in addition to ``base``."""
    taken = []
    for number in range(rounds):
        order = (0, 1) if number % 2 else (1, 0)  # the second run of a round may be faster
        times = {which: iteration((base, other)[which], data) for which in order}
        taken.append((times[0], times[1] - times[0]))
    low, middle, high = statistics.quantiles((more for _, more in taken), n=4)
    alone = statistics.median(times for times, _ in taken)
    return f"| {what} | {alone:.0f} | {middle:+.2f} | {low:+.2f} to {high:+.2f} |"


def by_length(length, part):
    """Returns the µs of an iteration at the beginning and at the end of one long run."""
    data = Clocked(batches(50) * (length // 50))
    make_trainer().run(data)
    steps = [later - earlier for later, earlier in zip(data.times[1:], data.times, strict=False)]
    return [statistics.median(each) * 1e6 for each in (steps[100:part], steps[-part:])]


def by_epochs(iterations, epochs):
    """Returns the µs of an iteration, for the same number of them in one epoch and in many."""
    took = []
    for number in (1, epochs):
        trainer, data = make_trainer(), batches(iterations // number)
        trainer.run(data, max_epochs=number)
        start = Clocked.clock()
        trainer.run(data, max_epochs=number)
        took.append((Clocked.clock() - start) / iterations * 1e6)
    return took


def prepare(core, clock):
    use_core(core)
    torch.set_num_threads(1)
    Clocked.clock = staticmethod(CLOCKS[clock])


def table(rounds, core=None, clock="wall"):
    """Yields the lines of the table of waiting handlers and of parameters."""
    prepare(core, clock)
    data = Clocked(batches(200))
    waiting = Events.ITERATION_COMPLETED(every=NEVER)
    yield "| an iteration | µs | µs more | quartiles |"
    yield "|---|---|---|---|"
    ten = {
        "10 handlers on steps, not due; target: 3 µs more at most": None,
        "10 handlers on `ITERATION_COMPLETED(every=…)`; target: 15 µs more at most": waiting,
    }
    for what, event in ten.items():
        yield row(what, runner(), runner(handlers=10, event=event), data, rounds)
    for number in (10, 300):
        raw, ours = raw_runner(Many(number)), runner(Many(number))
        what = f"the trainer beside the plain loop, {number} parameters"
        yield row(what, raw, ours, data, rounds)


def lengths(rounds, length=20_000, part=2_000, epochs=200, core=None, clock="wall"):
    """Yields the lines of the table of long runs and of many epochs."""
    prepare(core, clock)
    cases = {
        f"iterations 100 to {part:,}, and {length - part:,} to {length:,}": (
            lambda: by_length(length, part)
        ),
        f"an iteration of {part:,} in one epoch, and in {epochs} epochs": (
            lambda: by_epochs(part, epochs)
        ),
    }
    yield "| | µs | µs | difference | quartiles |"
    yield "|---|---|---|---|---|"
    for what, measure in cases.items():
        found = [measure() for _ in range(rounds)]
        first, second = map(statistics.median, zip(*found, strict=True))
        more = [later - earlier for earlier, later in found]
        # Each value twice, because quantiles() needs two values.
        low, middle, high = statistics.quantiles(more * 2, n=4, method="inclusive")
        cells = f"{first:.1f} | {second:.1f} | {middle:+.1f} | {low:+.1f} to {high:+.1f}"
        yield f"| {what} | {cells} |"


def tables(given):
    yield table(10 * given.rounds, given.core, given.clock)
    yield lengths(given.rounds, core=given.core, clock=given.clock)
