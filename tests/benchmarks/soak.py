"""Shows whether a long run leaks: memory and objects at each quarter of it."""

import gc
import tempfile

import psutil
import torch
from ignite.engine import Events

from tests.benchmarks.contestants.ours import make_everything
from tests.benchmarks.machine import use_core
from tests.benchmarks.work import Work

MIB = 2**20


def table(iterations=200_000, core=None):
    use_core(core)
    torch.set_num_threads(1)
    process, rows = psutil.Process(), []

    def look(engine):
        gc.collect()
        resident = process.memory_info().rss / MIB
        rows.append((engine.state.iteration, resident, len(gc.get_objects())))

    with tempfile.TemporaryDirectory() as folder:
        trainer = make_everything(Work.of("linear", 1, iterations // 4), folder)
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=iterations // 4), look)
        trainer.run(max_epochs=4)
    yield "| after iterations | resident, MiB | objects |"
    yield "|---|---|---|"
    for count, resident, objects in rows:
        yield f"| {count:,} | {resident:.1f} | {objects:,} |"


def tables(given):
    yield table(given.iterations or 200_000, given.core)
