"""Measures what the handlers that show a run add to an iteration. From the root:

python -m tests.benchmarks.observe

Each handler is attached to a trainer of its own, which has no other handler. The trainer and a
trainer without handlers make short runs by turns. The difference is taken within each round; the
table shows its median and quartiles.
"""

import statistics
import time

import torch

from ignite_hooks import MeanLoss
from ignite_hooks import Throughput
from tests.reference import batches_of
from tests.reference import make_trainer

ROUNDS = 101
BATCHES = 400
NEVER = 10**9

HANDLERS = {
    "`MeanLoss`, nothing due": lambda: MeanLoss(every_steps=NEVER),
    "`MeanLoss(every_steps=10)`": lambda: MeanLoss(every_steps=10),
    "`Throughput`, nothing due": lambda: Throughput(every_steps=NEVER),
    "`Throughput(every_steps=50)`": lambda: Throughput(every_steps=50),
}


def seconds(trainer):
    """Returns the time of the process, which does not advance while other processes run."""
    start = time.process_time()
    trainer.run()
    return time.process_time() - start


def differences(trainer, plain):
    """Returns, for each round, the µs that the handlers of ``trainer`` add to an iteration."""
    trainers = (plain, trainer)
    for each in trainers:
        each.run()
    taken = []
    for number in range(ROUNDS):
        order = (0, 1) if number % 2 else (1, 0)  # the second run of a round may be faster
        times = {which: seconds(trainers[which]) for which in order}
        taken.append((times[1] - times[0]) / BATCHES * 1e6)
    return taken


def main():
    torch.set_num_threads(1)
    data = batches_of(BATCHES)
    plain = make_trainer(data)
    plain.run()
    print(f"an iteration without handlers takes {seconds(plain) / BATCHES * 1e6:.0f} µs\n")
    print("| handler | more per iteration, median, µs | quartiles |\n|---|---|---|")
    for name, make in HANDLERS.items():
        taken = differences(make_trainer(data, handlers=[make()]), plain)
        low, middle, high = statistics.quantiles(taken, n=4)
        print(f"| {name} | {middle:.1f} | {low:.1f} to {high:.1f} |")


if __name__ == "__main__":
    main()
