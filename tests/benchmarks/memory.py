"""Measures how accurate the memory peaks are, and what the memory handlers cost. From the root:

python -m tests.benchmarks.memory

Prints four tables: a spike of 300 MiB in a step, kept for a given time, as each backend sees it;
the time that handlers add to an iteration, in engines that take turns in short runs, with
differences within each round; what a long run with all handlers leaves behind; and the time of a
garbage collection.
"""

import gc
import os
import statistics
import threading
import time
from mmap import MAP_ANONYMOUS
from mmap import MAP_PRIVATE
from mmap import mmap

import psutil
import torch
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks import ClearCache
from ignite_hooks import GarbageCollector
from ignite_hooks import MaxDeviceMemory
from ignite_hooks import MinibatchMaxRAM
from ignite_hooks import ram_usage_metrics
from tests.benchmarks.machine import describe_machine
from tests.memory.frozen import is_frozen
from tests.reference import batches_of
from tests.reference import make_trainer

MIB = 2**20
SPIKE = 300
KINDS = {"minibatch": True, "epoch": True, "experience": True}


def spike(milliseconds):
    """Maps and unmaps ``SPIKE`` MiB, as glibc does for large blocks, so that the peak is real."""
    with mmap(-1, SPIKE * MIB, MAP_PRIVATE | MAP_ANONYMOUS) as block:
        # One byte in each page: the kernel maps a page when it is first written to.
        block[:: 2**12] = bytes(SPIKE * MIB // 2**12)
        until = time.perf_counter() + milliseconds / 1000
        while time.perf_counter() < until:
            pass


def peaks_of_spike(milliseconds, **options):
    """Returns how much each metric sees of a spike in the third of five iterations, in MiB."""

    def peaks(allocate):
        engine = Engine(lambda engine, batch: allocate() if batch == 3 else None)
        for metric in ram_usage_metrics(**KINDS, **options):
            metric.attach(engine)
        seen = []

        @engine.on(Events.ITERATION_COMPLETED)
        def look():
            seen.append(engine.state.metrics["minibatch_max_ram_mib"])

        engine.run(range(1, 6))
        return max(seen), *(engine.state.metrics[f"{k}_max_ram_mib"] for k in list(KINDS)[1:])

    without = peaks(lambda: None)
    with_spike = peaks(lambda: spike(milliseconds))
    return [one - other for one, other in zip(with_spike, without, strict=True)]


def accuracy(times=10):
    """Yields the lines of the table of a spike, with the lowest and the highest value, in MiB.

    The kernel's figures are those of the minibatch, the epoch and the run.
    """
    yield "| kept for | kernel | thread, every 0.01 s | thread, every second |"
    yield "|---|---|---|---|"
    for milliseconds in (0, 1, 5, 20):
        cells = []
        for options in (
            {"backend": "kernel"},
            {"backend": "sampler", "every": 0.01},
            {"backend": "sampler"},
        ):
            found = [peaks_of_spike(milliseconds, **options) for _ in range(times)]
            if options["backend"] == "sampler":
                found = [each[:1] for each in found]  # of the minibatch only
            seen = [mib for each in found for mib in each]
            cells.append(f"{min(seen):.1f} to {max(seen):.1f}")
        yield f"| {milliseconds} ms | {' | '.join(cells)} |"


def no_op_engine(handlers):
    return attached(Engine(lambda engine, batch: None), handlers)


def real_trainer(handlers):
    return attached(make_trainer(), handlers)


def attached(engine, handlers):
    for handler in handlers:
        handler.attach(engine)
    return engine


class Clocked:
    """Batches that record the time at which each one is requested."""

    def __init__(self, batches):
        self.batches = batches
        self.times = []

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            self.times.append(time.perf_counter())
            yield batch


def microseconds(engine, batches):
    """Returns the median time of an iteration in one short run, without its beginning and end."""
    data = Clocked(batches)
    engine.run(data)
    steps = zip(data.times[5:], data.times[4:], strict=False)  # the first ones warm up
    return statistics.median(later - earlier for later, earlier in steps) * 1e6


def cost(make_engine, kinds, batches, rounds):
    """Yields the rows of the time that handlers add to an iteration; the first row is the base."""
    engines = {name: make_engine(make()) for name, make in kinds.items()}
    taken = {name: [] for name in engines}
    for number in range(rounds):
        # The order changes, because the first run of a round may be slower.
        for name in list(engines) if number % 2 else reversed(engines):
            taken[name].append(microseconds(engines[name], batches))
    (base, alone), *others = taken.items()
    low, middle, high = statistics.quantiles(alone, n=4)
    yield f"| {base} alone | {middle:.1f} | {low:.1f} to {high:.1f} | 1 |"
    for name, times in others:
        more = [one - other for one, other in zip(times, alone, strict=True)]
        low, middle, high = statistics.quantiles(more, n=4)
        ratio = statistics.median(one / other for one, other in zip(times, alone, strict=True))
        yield f"| … with {name} | {middle:+.2f} | {low:+.2f} to {high:+.2f} | {ratio:.3f} |"


def listeners():
    """Returns a pair of empty handlers: the least that any measurement of an iteration costs."""

    class Listeners:
        def attach(self, engine):
            engine.add_event_handler(Events.ITERATION_STARTED, lambda: None)
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: None)

    return [Listeners()]


def overhead(rounds=101):
    """Yields the lines of the table of what handlers add to an iteration, in µs."""
    torch.set_num_threads(1)
    yield "| | µs | quartiles | ratio |"
    yield "|---|---|---|---|"
    metrics = {
        "two handlers that do nothing": listeners,
        "`MinibatchMaxRAM`": lambda: [MinibatchMaxRAM()],
        "`MinibatchMaxRAM`, `EpochMaxRAM`, `ExperienceMaxRAM`": lambda: ram_usage_metrics(**KINDS),
        "`MinibatchMaxRAM(every_iterations=100)`": lambda: [MinibatchMaxRAM(every_iterations=100)],
        '`MinibatchMaxRAM(backend="sampler")`': lambda: [MinibatchMaxRAM(backend="sampler")],
    }
    on_steps = {
        "1,000 × `ClearCache(every_steps=1000)`, not due": lambda: [
            ClearCache(every_steps=1000) for _ in range(1000)
        ],
        "1,000 × `GarbageCollector(every_steps=1000)`, not due": lambda: [
            GarbageCollector(every_steps=1000) for _ in range(1000)
        ],
    }
    engine = {"an Ignite engine with an empty process function": list, **metrics}
    yield from cost(no_op_engine, engine, range(200), rounds)
    trainer = {"a small trainer": list, **metrics, **on_steps}
    yield from cost(real_trainer, trainer, batches_of(50), rounds)


def soak(iterations=20_000, first=1_000):
    """Yields the lines of the table of what a run with all memory handlers leaves behind."""
    torch.set_num_threads(1)
    process = psutil.Process()
    trainer = make_trainer()
    handlers = [
        ClearCache(every_steps=500),
        GarbageCollector(
            every_steps=500, disable_automatic=True, freeze_after=100, track_pauses=True
        ),
        *ram_usage_metrics(**KINDS, stream=True),
        MaxDeviceMemory(),
    ]
    attached(trainer, handlers)
    rows = []

    def look(when):
        found = (
            f"{process.memory_info().rss / MIB:.1f}",
            threading.active_count(),
            len(os.listdir("/proc/self/fd")),
            len(gc.callbacks),
            gc.isenabled(),
            is_frozen(),
        )
        rows.append((when, *found))

    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=first), lambda: look(f"after {first:,} iterations")
    )
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=iterations), lambda: look(f"after {iterations:,}")
    )
    look("before the run")
    trainer.run(batches_of(100), max_iters=iterations)
    look("after the run")
    yield "| | resident, MiB | threads | descriptors | GC callbacks | GC on | frozen |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"


def collections(times=25):
    """Yields the lines of the table of full garbage collections."""
    yield "| | ms | quartiles |"
    yield "|---|---|---|"
    kinds = {"a full collection": {}, "the same with `freeze_after`": {"freeze_after": 1}}
    for name, options in kinds.items():
        engine = no_op_engine([GarbageCollector(every_steps=1, **options)])
        taken = []

        # Before the third iteration and the later ones: the first collection is a warm-up.
        @engine.on(Events.ITERATION_STARTED(after=2))
        def look(engine, taken=taken):
            taken.append(engine.state.metrics["gc_seconds"] * 1e3)

        engine.run(range(times + 2))
        low, middle, high = statistics.quantiles(taken, n=4)
        yield f"| {name} | {middle:.4g} | {low:.4g} to {high:.4g} |"


def main():
    print(describe_machine(()))
    for table in (accuracy, overhead, soak, collections):
        print()
        for line in table():
            print(line, flush=True)


if __name__ == "__main__":
    main()
