"""Measures what the handlers that show a run add to an iteration. From the root:

python -m tests.benchmarks.observe

Each handler is attached to a trainer of its own, which has no other handler. All trainers make
short runs by turns, in a random order in each round. Only the iterations are timed, not the start
and the end of a run. The difference to a trainer without handlers is taken within each round; the
table shows its median and quartiles. A ``Console`` is compared with the two handlers that it would
otherwise attach, and a ``TrainingReport`` with its ``MetricsLog``. On a busy machine the difference
of the two fastest runs is closer to the truth, because these runs are free of most disturbances.
The rows of empty handlers are the floor: as many handlers that do nothing, at the same events.
"""

import os
import random
import statistics
import tempfile
import time
from contextlib import ExitStack
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
from ignite_hooks import TrainingReport
from tests.reference import batches_of
from tests.reference import make_trainer

BATCHES = 400
NEVER = 10**9
LOG, REPORT = "`MetricsLog(every_steps=10)`", "`TrainingReport`, no page due"

OF_LOSS = (TrainEvents.MODEL_BACKWARD_COMPLETED, TrainEvents.STEP_COMPLETED)
OF_SPEED = (Events.GET_BATCH_STARTED, Events.GET_BATCH_COMPLETED, TrainEvents.STEP_COMPLETED)
OF_TIME = (
    *OF_SPEED,
    TrainEvents.MODEL_FORWARD_STARTED,
    TrainEvents.MODEL_FORWARD_COMPLETED,
    TrainEvents.MODEL_BACKWARD_STARTED,
    TrainEvents.MODEL_BACKWARD_COMPLETED,
    TrainEvents.OPTIMIZER_STEP_STARTED,
)


class Empty:
    """Calls an empty function at each event, or a given function at the first one."""

    def __init__(self, events, first=None):
        self.events, self.first = events, first

    def attach(self, engine):
        for number, event in enumerate(self.events):
            call = self.first if number == 0 and self.first else lambda engine: None
            engine.add_event_handler(event, call)


def adding():
    """Returns a handler that adds up the losses, and does nothing else."""
    total = torch.zeros((), dtype=torch.float64)

    def add(engine):
        nonlocal total
        total = total + engine.state.loss

    return add


class NoTracker(GeneralTracker):
    """Drops what it gets."""

    name = "none"
    requires_logging_directory = False
    tracker = None


class Terminal:
    """Text that nobody reads. Only its method ``isatty`` is that of a terminal."""

    encoding = "utf-8"

    def __init__(self, file):
        self.write, self.flush = file.write, file.flush

    def isatty(self):
        return True


def handlers(folder):
    """Returns the handlers of each trainer, by the name of its row in the table."""
    log, logged, shown = (folder / name for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    return {
        "`MeanLoss`, nothing due": [MeanLoss(every_steps=NEVER)],
        "an addition, and an empty handler": [Empty(OF_LOSS, adding())],
        "`MeanLoss(every_steps=10)`": [MeanLoss(every_steps=10)],
        "`Throughput`, nothing due": [Throughput(every_steps=NEVER)],
        "three empty handlers": [Empty(OF_SPEED)],
        "`Throughput(every_steps=50)`": [Throughput(every_steps=50)],
        "`TimeLedger`, nothing due": [TimeLedger(every_steps=NEVER)],
        "eight empty handlers": [Empty(OF_TIME)],
        "`TimeLedger(every_steps=50)`": [TimeLedger(every_steps=50)],
        "`MetricsLog`, nothing due": [MetricsLog(log, every_steps=NEVER)],
        LOG: [MetricsLog(logged, every_steps=10)],
        REPORT: [MetricsLog(shown, every_steps=10), TrainingReport(folder / "report.html")],
        "`SendMetrics`, nothing due": [SendMetrics(NoTracker(), every_steps=NEVER)],
        **{name: [*both(), Console()] for name in STREAMS},
    }


def both():
    """Returns the handlers that a Console attaches if there are none."""
    return [MeanLoss(every_steps=NEVER), Throughput(every_steps=NEVER)]


STREAMS = {
    "`Console`, nothing due, in a file": lambda file: file,
    "`Console`, nothing due, in a terminal": Terminal,
}


TARGETS = {
    "`MeanLoss`, nothing due": 8,
    "`Throughput`, nothing due": 4,
    "`TimeLedger`, nothing due": 12,
    "`MetricsLog`, nothing due": 2,
    REPORT: 1,
    "`SendMetrics`, nothing due": 2,
    **dict.fromkeys(STREAMS, 2),
}


class Runs:
    """The runs of one trainer.

    Attributes:
        times: the time of an iteration in each run, in µs.
    """

    def __init__(self, data, handlers, stream=None):
        self.trainer, self.stream = make_trainer(data, handlers=handlers), stream
        self.clock, self.times = [], []

        # The clock stops while other processes run.
        def read_clock(engine):
            self.clock.append(time.process_time())

        self.trainer.add_event_handler(Events.EPOCH_STARTED, read_clock)
        self.trainer.add_event_handler(TrainEvents.STEP_COMPLETED(once=BATCHES), read_clock)

    def run(self):
        self.clock.clear()
        with redirect_stdout(self.stream) if self.stream else ExitStack():
            self.trainer.run()
        self.times.append((self.clock[1] - self.clock[0]) / BATCHES * 1e6)


def row(name, runs, others):
    """Returns the row of a handler."""
    fastest = min(runs.times) - min(others.times)
    more = [each - other for each, other in zip(runs.times, others.times, strict=True)]
    low, middle, high = statistics.quantiles(more, n=4)
    target = f" ≤ {TARGETS[name]} |" if name in TARGETS else " |"
    cells = f"{fastest:.1f} | {middle:.1f} | {low:.1f} to {high:.1f}"
    return f"| {name} | {cells} |{target}"


def table(rounds=101):
    torch.set_num_threads(1)
    data = batches_of(BATCHES)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as file:
        none, two = Runs(data, []), Runs(data, both())
        streams = {name: make(file) for name, make in STREAMS.items()}
        runs = {
            name: Runs(data, each, streams.get(name))
            for name, each in handlers(Path(folder)).items()
        }
        every = [none, two, *runs.values()]
        for _ in range(rounds + 1):
            for each in random.sample(every, len(every)):
                each.run()
        for each in every:
            del each.times[0]  # the first run of each trainer is a warm-up
    yield "| handler | more per iteration, fastest runs, µs | median, µs | quartiles | target |"
    yield "|---|---|---|---|---|"
    low, middle, high = statistics.quantiles(none.times, n=4)
    cells = f"{min(none.times):.0f} | {middle:.0f} | {low:.0f} to {high:.0f}"
    yield f"| the whole iteration, without handlers | {cells} | |"
    others = {**dict.fromkeys(streams, two), REPORT: runs[LOG]}
    for name, each in runs.items():
        yield row(name, each, others.get(name, none))


def main():
    print("\n".join(table()))


if __name__ == "__main__":
    main()
