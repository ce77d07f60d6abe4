"""Shows whether a long run leaks: memory and objects at each quarter of it."""

import gc
import os
import tempfile

import psutil
import torch
from ignite.engine import Events

from tests.benchmarks.contestants.ours import make_everything
from tests.benchmarks.work import Work

MIB = 2**20


def main(given):
    os.sched_setaffinity(0, {given.core})
    torch.set_num_threads(1)
    iterations = given.iterations or 200_000
    process, rows = psutil.Process(), []

    def look(engine):
        gc.collect()
        resident = process.memory_info().rss / MIB
        rows.append((engine.state.iteration, resident, len(gc.get_objects())))

    with tempfile.TemporaryDirectory() as folder:
        trainer = make_everything(Work.of("linear", 1, iterations // 4), folder)
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=iterations // 4), look)
        trainer.run(max_epochs=4)
    print("\n| after iterations | resident, MiB | objects |\n|---|---|---|")
    for count, resident, objects in rows:
        print(f"| {count:,} | {resident:.1f} | {objects:,} |")
