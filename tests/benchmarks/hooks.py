"""Measures what the channels add to an iteration: empty, and with an empty context. From the root:

python -m tests.benchmarks.hooks

An iteration takes a hundred times as long as its channels, and varies by more. Hence the process
function of a real trainer enters the channels 200 times more than usual. The trainer is compared
with one that calls an empty function 200 times, in short runs that take turns. The difference is
taken within each round; the table shows its median and quartiles, divided by 200.
"""

import statistics
import time
from contextlib import contextmanager
from contextlib import nullcontext

import torch

from ignite_hooks import HookContext
from ignite_hooks.hooks.channels import Channels
from ignite_hooks.hooks.context import Hook
from tests.reference import batches_of
from tests.reference import make_trainer

BATCHES = 50
PASSAGES = 200


def generator(engine):
    yield


KINDS = {
    "a generator": generator,
    "a `@contextmanager`": contextmanager(generator),
    "a `HookContext` of two functions": HookContext(before=id, after=id),
    "a function that makes a context manager": lambda engine: nullcontext(),
}


def nothing(channels):
    pass


def iteration(channels):
    """Enters all channels of an iteration with a step."""
    with channels.on_step:
        with channels.on_batch:
            with channels.on_model_forward:
                pass
            with channels.on_model_backward:
                pass
        with channels.on_optimizer_step:
            pass


def one(channels):
    with channels.on_step:
        pass


def trainer_that_passes(passage, *contexts):
    trainer = make_trainer(batches_of(BATCHES))
    channels = Channels(trainer)
    channels.add([Hook("on_step", context) for context in contexts])
    process = trainer._process_function

    def process_and_pass(engine, batch):
        for _ in range(PASSAGES):
            passage(channels)
        return process(engine, batch)

    trainer._process_function = process_and_pass
    return trainer


def seconds(trainer):
    start = time.perf_counter()
    trainer.run()
    return time.perf_counter() - start


def row(what, plain, other, rounds):
    trainers = (plain, other)
    for trainer in trainers:
        trainer.run()
    taken = []
    for number in range(rounds):
        order = (0, 1) if number % 2 else (1, 0)  # the second run of a round may be faster
        times = {which: seconds(trainers[which]) for which in order}
        taken.append((times[1] - times[0]) / BATCHES / PASSAGES * 1e6)
    low, middle, high = statistics.quantiles(taken, n=4)
    return f"| {what} | {middle:.2f} | {low:.2f} to {high:.2f} |"


def table(rounds=61):
    torch.set_num_threads(1)
    plain = trainer_that_passes(nothing)
    yield "| one passage through | median, µs | quartiles |"
    yield "|---|---|---|"
    every = trainer_that_passes(iteration)
    yield row("all channels of an iteration, nothing registered", plain, every, rounds)
    for kind, context in KINDS.items():
        other = trainer_that_passes(one, context)
        yield row(f"a channel with {kind}, empty", plain, other, rounds)


def main():
    for line in table():
        print(line, flush=True)


if __name__ == "__main__":
    main()
