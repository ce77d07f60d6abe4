"""What the channels cost an iteration: empty, and with an empty context. Run it from the root:

python -m tests.benchmarks.hooks

An iteration takes a hundred times as long as what is measured, and varies by more. So:

- Channels with nothing registered: a process function that passes through the five channels of an
  iteration and a step 200 times more, against the same one without, is what one passage costs.
- One empty context: the same trainer with and without it, in short runs that take turns. The
  difference is taken within each round; its median and quartiles are shown.
- As an iteration's noise is large beside one context, 20 of them on one channel as well, by 20.
"""

import statistics
import time

import torch

from ignite_hooks import HookContext
from ignite_hooks.channels import CHANNELS
from tests.reference import batches_of
from tests.reference import make_trainer

ROUNDS = 101
BATCHES = 100
PASSAGES = 200
IN_AN_ITERATION = CHANNELS[2:]


def empty(engine):
    yield


def passing(engine, times):
    channels = engine.hook_channels
    for _ in range(times):
        with channels.on_step, channels.on_batch:
            with channels.on_model_forward:
                pass
            with channels.on_model_backward:
                pass
        with channels.on_optimizer_step:
            pass


def trainer_with(*contexts):
    trainer = make_trainer(batches_of(BATCHES))
    for channel, context in contexts:
        trainer.hooks.register(channel, context)
    return trainer


def seconds(act):
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def differences(plain, other, rounds=ROUNDS):
    """Microseconds an iteration that ``other`` takes more, in each of the rounds."""
    acts = [lambda trainer=trainer: trainer.run() for trainer in (plain, other)]
    for act in acts:
        act()
    taken = []
    for number in range(rounds):
        order = (0, 1) if number % 2 else (1, 0)  # neither gains from being the second
        times = {which: seconds(acts[which]) for which in order}
        taken.append((times[1] - times[0]) / BATCHES * 1e6)
    return taken


def row(what, taken, divisor=1):
    low, middle, high = (each / divisor for each in statistics.quantiles(taken, n=4))
    print(f"| {what} | {middle:.2f} | {low:.2f} to {high:.2f} |")


def main():
    torch.set_num_threads(1)
    plain = trainer_with()
    print(f"iteration without contexts: {seconds(plain.run) / BATCHES * 1e6:.0f} µs\n")
    print("| | median of the rounds, µs | quartiles |\n|---|---|---|")

    busy = trainer_with()
    process = busy._process_function

    def process_and_pass(engine, batch):
        passing(engine, PASSAGES)
        return process(engine, batch)

    busy._process_function = process_and_pass
    row("all channels of an iteration, nothing registered", differences(plain, busy), PASSAGES)
    for channel in IN_AN_ITERATION:
        row(f"one empty generator on {channel}", differences(plain, trainer_with((channel, empty))))
    twenty = [("on_step", empty)] * 20
    row("one of 20 empty generators on on_step", differences(plain, trainer_with(*twenty)), 20)
    pair = HookContext(before=lambda engine: None, after=lambda engine: None)
    row(
        "one of 20 HookContexts on on_step",
        differences(plain, trainer_with(*[("on_step", pair)] * 20)),
        20,
    )
    every = [(channel, empty) for channel in CHANNELS]
    row("one on each of the seven channels, by seven", differences(plain, trainer_with(*every)), 7)


if __name__ == "__main__":
    main()
