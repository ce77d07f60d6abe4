"""Compares the trainer with a plain DDP loop on two processes, and times how soon both end.

From the root:

python -m tests.benchmarks.processes [--rounds 9] [--width 16 1024] [--accumulation 1 4]

Two gloo processes are forked after the imports, each with one thread. The contestants take turns
within them, so that a ratio compares runs of the same minute. The README beside this file has the
results.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import socket
import statistics
import tempfile
import time
from collections import Counter
from multiprocessing.connection import wait

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import ExponentialLR
from torch.profiler import ProfilerActivity
from torch.profiler import profile

from ignite_hooks import ClearCache
from ignite_hooks import GarbageCollector
from ignite_hooks import GradientClipping
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer
from tests.benchmarks.machine import describe_machine
from tests.benchmarks.work import DECAY
from tests.benchmarks.work import MAX_NORM

RANKS = 2
FEATURES = 16
BATCHES = 60
PASSES = 4
"""The passes of each turn. The first and the last are not timed: a run begins or ends in them."""

NEVER = 10**9
ENDED_AT = 50
"""The step at which a rank stops or fails."""

BASES = {
    "raw": "raw",
    "ours_bare": "raw",
    "raw_clipped": "raw_clipped",
    "raw_accelerate": "raw_clipped",
    "ours_clipped": "raw_clipped",
    "ours_wired": "raw_clipped",
}
"""The contestants, and for each the loop that does the same work."""

LABELS = {
    "raw": "a plain DDP loop",
    "ours_bare": "the trainer, bare",
    "raw_clipped": "a plain DDP loop with clipping and a scheduler",
    "raw_accelerate": "the loop of Accelerate's documentation",
    "ours_clipped": "the trainer with clipping and a scheduler",
    "ours_wired": "the trainer, wired",
}
"""What the contestants are called in the table."""


class Passes(list):
    """Batches that notify ``PASSING`` when a pass begins."""

    def __init__(self, batches, name):
        super().__init__(batches)
        self.name = name

    def __iter__(self):
        PASSING[self.name]()
        return super().__iter__()


class Passing:
    """The times at which passes began, and the collectives of the second pass of a turn."""

    def __init__(self):
        self.times = []
        self.collectives = Counter()
        self.profiler = None
        self.is_profiling = False

    def begin_turn(self, is_profiling=False):
        self.times, self.is_profiling = [], is_profiling

    def __call__(self):
        self.times.append(time.perf_counter())
        if self.is_profiling and len(self.times) == 2:
            self.profiler = profile(activities=[ProfilerActivity.CPU])
            self.profiler.start()
        if self.is_profiling and len(self.times) == 3:
            self.profiler.stop()
            self.count()

    def count(self):
        """Counts the collectives and drops the profiler.

        In each pass the trainer searches the objects that its data refer to for states, and a
        profiler has thousands of events.
        """
        for event in self.profiler.key_averages():
            if event.key.startswith("gloo:"):
                self.collectives[event.key.removeprefix("gloo:")] += event.count
        self.profiler = None

    @property
    def seconds(self):
        """The mean seconds of the passes in which no run begins or ends."""
        _, *steady = self.times
        return statistics.mean(later - earlier for earlier, later in itertools.pairwise(steady))


PASSING = {}
"""The ``Passing`` of each contestant, by name."""


class Contestant:
    """A way to train; ``turn`` trains for some passes over its batches.

    Args:
        name: a key of ``BASES``.
        width: the width of the hidden layer.
        accelerator: the accelerator of all contestants.
        folder: the folder for checkpoints.
    """

    def __init__(self, name, width, accelerator, folder):
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, width), torch.nn.Tanh(), torch.nn.Linear(width, FEATURES)
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.accelerator = accelerator
        self.passing = PASSING[name] = Passing()
        generator = torch.Generator().manual_seed(accelerator.process_index)
        batches = torch.randn(BATCHES, 2, 8, FEATURES, generator=generator)
        self.data = Passes([(x, y) for x, y in batches], name)
        self.turn = getattr(self, f"make_{name}")(folder)

    @property
    def weights(self):
        return [parameter.detach() for parameter in self.model.parameters()]

    def scheduler(self):
        return ExponentialLR(self.optimizer, DECAY)

    def make_raw(self, folder, max_norm=None):
        """Returns a plain loop with DDP."""
        model, optimizer = DistributedDataParallel(self.model), self.optimizer
        accumulation = self.accelerator.gradient_accumulation_steps
        scheduler = None if max_norm is None else self.scheduler()

        def train(batches):
            for number, (x, y) in enumerate(batches, 1):
                is_stepping = number % accumulation == 0
                with contextlib.nullcontext() if is_stepping else model.no_sync():
                    loss = F.mse_loss(model(x), y)
                    (loss / accumulation if accumulation > 1 else loss).backward()
                if not is_stepping:
                    continue
                if scheduler is not None:
                    clip_grad_norm_(model.parameters(), max_norm)
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
                optimizer.zero_grad()

        return lambda: [train(self.data) for _ in range(PASSES)]

    def make_raw_clipped(self, folder):
        return self.make_raw(folder, MAX_NORM)

    def make_raw_accelerate(self, folder):
        accelerator = self.accelerator
        model, optimizer, scheduler = accelerator.prepare(
            self.model, self.optimizer, self.scheduler()
        )
        # Otherwise Accelerate moves a scheduler once for each rank.
        scheduler.split_batches = True

        def train():
            for x, y in self.data:
                with accelerator.accumulate(model):
                    accelerator.backward(F.mse_loss(model(x), y))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()

        return lambda: [train() for _ in range(PASSES)]

    def make_ours_bare(self, folder, **parts):
        self.trainer = create_supervised_trainer(
            self.model,
            self.optimizer,
            F.mse_loss,
            self.data,
            accelerator=self.accelerator,
            **parts,
        )
        return lambda: self.trainer.run(max_epochs=self.trainer.state.epoch + PASSES)

    def make_ours_clipped(self, folder, **parts):
        return self.make_ours_bare(
            folder,
            lr_scheduler=self.scheduler(),
            grad_clip=GradientClipping(max_norm=MAX_NORM),
            **parts,
        )

    def make_ours_wired(self, folder):
        """Adds handlers on schedules that are not due in the run."""
        evaluator = create_supervised_evaluator(self.model, {}, accelerator=self.accelerator)
        return self.make_ours_clipped(
            folder,
            validation=Validation(evaluator, list(self.data), every_steps=NEVER),
            checkpoint=SaveCheckpoint(folder, every_steps=NEVER, at_end=False),
            handlers=[ClearCache(every_steps=NEVER), GarbageCollector(every_steps=NEVER)],
        )


def compare(rank, folder, width, accumulation, rounds):
    """Lets the contestants take turns; returns seconds, collectives and equality of weights."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    contestants = {name: Contestant(name, width, accelerator, folder) for name in BASES}
    seconds = {name: [] for name in BASES}
    for number in range(-1, rounds):
        for name in random.Random(number).sample(list(BASES), len(BASES)):
            each = contestants[name]
            each.passing.begin_turn(is_profiling=number < 0 and rank == 0)
            accelerator.wait_for_everyone()
            each.turn()
            if number >= 0:
                seconds[name].append(each.passing.seconds)
    equal = {
        name: all(map(torch.equal, contestants[name].weights, contestants[base].weights))
        for name, base in BASES.items()
    }
    of_ranks = [None] * RANKS
    torch.distributed.all_gather_object(of_ranks, seconds)
    slower = {
        name: [max(each) for each in zip(*(found[name] for found in of_ranks), strict=True)]
        for name in BASES
    }
    torch.distributed.destroy_process_group()
    return slower, {name: PASSING[name].collectives for name in BASES}, equal


def rows(width, accumulation, found):
    """Yields the rows of one model; the first cell has its width and the accumulation."""
    seconds, collectives, equal = found
    for name, base in BASES.items():
        ratios = [mine / raw for mine, raw in zip(seconds[name], seconds[base], strict=True)]
        ratios *= 2 if len(ratios) == 1 else 1  # quantiles() needs two values
        low, middle, high = statistics.quantiles(ratios, method="inclusive")
        took = statistics.median(seconds[name]) / BATCHES * 1e6
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(collectives[name].items()))
        verdict = "equal" if equal[name] else "differ"
        cells = f"{middle:.3f} | {low:.3f} to {high:.3f} | {took:.0f} | {kinds} | {verdict}"
        yield f"| {width:,}, {accumulation} | {LABELS[name]} | {cells} |"


def table(cases, rounds):
    """Yields the lines of the table; a case is a width and an accumulation."""
    torch.set_num_threads(1)
    yield (
        "| width, accumulation | | ratio | quartiles | µs an iteration | collectives of an epoch "
        "| weights |"
    )
    yield "|---|---|---|---|---|---|---|"
    for width, accumulation in cases:
        with tempfile.TemporaryDirectory() as folder:
            found = compared(folder, width, accumulation, rounds)
        yield from rows(width, accumulation, found)


def end(rank, folder, way, pipe):
    """Trains until rank 1 stops or fails; rank 1 sends the time through the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # hides the tracebacks, which are expected
    accelerator = Accelerator(cpu=True)
    contestant = Contestant("ours_wired", FEATURES, accelerator, folder)
    trainer = contestant.trainer

    @trainer.on(TrainEvents.STEP_COMPLETED(once=ENDED_AT))
    def stop_or_fail():
        if rank == 1:
            pipe.send(time.monotonic())
            if way == "stop":
                trainer.terminate()
            else:
                raise ArithmeticError("rank 1 failed")

    try:
        trainer.run(max_epochs=NEVER)
    except ArithmeticError:
        if way == "crash, and the process stays":
            signal.pause()
        raise
    torch.distributed.destroy_process_group()


WAYS = {
    "`terminate()` on rank 1": "stop",
    "an exception on rank 1": "crash",
    "the same, and its process stays": "crash, and the process stays",
}


def seconds_to_end(way, folder, limit):
    """Returns the seconds until the last rank ended (None past the limit) and the exit codes."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with forked(end, folder, way, sender) as processes:
        if not receiver.poll(limit):
            raise RuntimeError(f"no rank came to step {ENDED_AT} within {limit} s")
        start = receiver.recv()
        # The process that stays never ends by itself; ``forked`` kills it.
        waiting = processes[:1] if way == "crash, and the process stays" else processes
        for each in waiting:
            each.join(max(0, start + limit - time.monotonic()))
        seconds = time.monotonic() - start
        has_ended = all(each.exitcode is not None for each in waiting)
        return seconds if has_ended else None, [each.exitcode for each in processes]


def endings(limit=30):
    """Yields the lines of the table of endings; ``limit`` is in seconds."""
    torch.set_num_threads(1)
    yield "| until the last rank has ended | seconds | exit codes |"
    yield "|---|---|---|"
    for name, way in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            seconds, codes = seconds_to_end(way, folder, limit)
        took = f"not ended within {limit} s" if seconds is None else f"{seconds:.2f}"
        told = ", ".join("-" if code is None else str(code) for code in codes)
        yield f"| {name} | {took} | {told} |"


@contextlib.contextmanager
def forked(function, folder, *arguments):
    """Calls a function in two processes, which are killed at the end if they are still there."""
    port, context = free_port(), multiprocessing.get_context("fork")
    processes = [
        context.Process(target=be_rank, args=(function, rank, port, folder, *arguments))
        for rank in range(RANKS)
    ]
    for each in processes:
        each.start()
    try:
        yield processes
    finally:
        for each in processes:
            each.kill()
            each.join()


def be_rank(function, rank, port, *arguments):
    """Sets up the process as torchrun does, and calls the function in it."""
    os.environ["KINETO_LOG_LEVEL"] = "99"  # else the profiler logs to stderr
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS}
    os.environ.update({name: str(value) for name, value in variables.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    function(rank, *arguments)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def compare_and_send(rank, folder, pipe, *arguments):
    found = compare(rank, folder, *arguments)
    if rank == 0:
        pipe.send(found)


def compared(folder, *arguments):
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with forked(compare_and_send, folder, sender, *arguments) as processes:
        wait([receiver, *(each.sentinel for each in processes)])
        if not receiver.poll():
            raise RuntimeError("a rank failed: its message is above")
        found = receiver.recv()
        for each in processes:
            each.join()
        return found


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--width", type=int, nargs="*", default=[16, 1024], help="none: endings only"
    )
    parser.add_argument("--accumulation", type=int, nargs="+", choices=(1, 4), default=[1, 4])
    parser.add_argument("--limit", type=int, default=30, help="seconds to wait for an ending")
    given = parser.parse_args(arguments)
    print(describe_machine(("accelerate",)), flush=True)
    cases = [*itertools.product(given.width, given.accumulation)]
    for lines in [table(cases, given.rounds)] * bool(cases) + [endings(given.limit)]:
        print()
        for line in lines:
            print(line, flush=True)


if __name__ == "__main__":
    main()
