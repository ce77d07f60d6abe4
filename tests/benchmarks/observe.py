"""Measures what the handlers that show a run add to an iteration. From the root:

python -m tests.benchmarks.observe

Each handler is attached to a trainer of its own, which has no other handler. The trainer and a
trainer without handlers make short runs by turns. A Console is compared with the two handlers that
it would otherwise attach, and only the iterations are timed, not the start and the end of the run.
The difference is taken within each round; the table shows its median and quartiles.
"""

import os
import statistics
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

import torch
from accelerate.tracking import GeneralTracker
from ignite.engine import Events

from ignite_hooks import Console
from ignite_hooks import MeanLoss
from ignite_hooks import MetricsLog
from ignite_hooks import SendMetrics
from ignite_hooks import Throughput
from ignite_hooks import TimeLedger
from ignite_hooks import TrainEvents
from tests.reference import batches_of
from tests.reference import make_trainer

ROUNDS = 101
BATCHES = 400
NEVER = 10**9
FOLDER = Path(tempfile.mkdtemp(prefix="ignite_hooks-"))


class NoTracker(GeneralTracker):
    """Drops what it gets."""

    name = "none"
    requires_logging_directory = False
    tracker = None


HANDLERS = {
    "`MeanLoss`, nothing due": lambda: MeanLoss(every_steps=NEVER),
    "`MeanLoss(every_steps=10)`": lambda: MeanLoss(every_steps=10),
    "`MetricsLog`, nothing due": lambda: MetricsLog(FOLDER / "a.jsonl", every_steps=NEVER),
    "`MetricsLog(every_steps=10)`": lambda: MetricsLog(FOLDER / "b.jsonl", every_steps=10),
    "`Throughput`, nothing due": lambda: Throughput(every_steps=NEVER),
    "`Throughput(every_steps=50)`": lambda: Throughput(every_steps=50),
    "`SendMetrics`, nothing due": lambda: SendMetrics(NoTracker(), every_steps=NEVER),
    "`TimeLedger`, nothing due": lambda: TimeLedger(every_steps=NEVER),
    "`TimeLedger(every_steps=50)`": lambda: TimeLedger(every_steps=50),
}


class Terminal:
    """Text that nobody reads. Only its method ``isatty`` is that of a terminal."""

    encoding = "utf-8"

    def __init__(self):
        self._stream = open(os.devnull, "w")  # noqa: SIM115 as long as the process
        self.write, self.flush = self._stream.write, self._stream.flush

    def isatty(self):
        return True


def seconds(trainer):
    """Returns the time of the process, which does not advance while other processes run."""
    start = time.process_time()
    trainer.run()
    return time.process_time() - start


def seconds_of_iterations(trainer):
    """Returns the time of the process from the first iteration to the last one."""
    times = []
    with (
        trainer.add_event_handler(Events.EPOCH_STARTED, lambda: times.append(time.process_time())),
        trainer.add_event_handler(
            TrainEvents.STEP_COMPLETED(once=BATCHES), lambda: times.append(time.process_time())
        ),
    ):
        trainer.run()
    return times[1] - times[0]


def differences(trainer, plain, seconds=seconds):
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
        show(name, differences(make_trainer(data, handlers=[make()]), plain))
    others = [[MeanLoss(every_steps=NEVER), Throughput(every_steps=NEVER)] for _ in range(3)]
    plain = make_trainer(data, handlers=others[0])
    with open(os.devnull, "w") as file:
        streams = {"a file": file, "a terminal": Terminal()}
        for own, (name, stream) in zip(others[1:], streams.items(), strict=True):
            trainer = make_trainer(data, handlers=[*own, Console()])
            with redirect_stdout(stream):
                taken = differences(trainer, plain, seconds_of_iterations)
            show(f"`Console`, nothing due, in {name}", taken)


def show(name, taken):
    low, middle, high = statistics.quantiles(taken, n=4)
    print(f"| {name} | {middle:.1f} | {low:.1f} to {high:.1f} |")


if __name__ == "__main__":
    main()
