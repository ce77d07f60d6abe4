"""Measures the looks of a ``GrowthWatch``. From the root:

python -m tests.benchmarks.growth

The table shows the processor time of one look, as the mean of 16 looks, and the additional time of
all searches for chains of references in a run with one leak. The last column is the time of a
census with the dicts that the garbage collector does not track, which a look makes while memory
grows and no cause is known. All are measured with many objects in the process.
"""

import gc
import time
import warnings

import torch
from ignite.engine import Events

from ignite_hooks import GrowthWatch
from ignite_hooks.observe.growth.census import count_objects
from tests.reference import batches_of
from tests.reference import make_trainer

OBJECTS = (100_000, 1_000_000)
LOOKS = 16


def seconds(trainer):
    """Returns the time of the process, which does not advance while other processes run."""
    start = time.process_time()
    trainer.run()
    return time.process_time() - start


def seconds_of_looks(*, has_leak):
    """Returns what a run of ``LOOKS`` looks takes longer than a run without a watch."""
    trainer = make_trainer(batches_of(10))
    kept = []
    if has_leak:
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: kept.append(engine.state.loss)
        )
    trainer.state.max_epochs = LOOKS
    without = seconds(trainer)
    GrowthWatch(every_steps=10).attach(trainer)
    trainer.state.max_epochs = 2 * LOOKS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return seconds(trainer) - without


def milliseconds_with_untracked_dicts():
    start = time.process_time()
    count_objects(with_untracked_dicts=True)
    return (time.process_time() - start) * 1e3


def table(numbers=OBJECTS):
    torch.set_num_threads(1)
    yield "| objects | look, ms | more to find chains, once, ms | census with all dicts, ms |"
    yield "|---|---|---|---|"
    for count in numbers:
        held = [[{"index": [number]}] for number in range(count // 3)]
        healthy, leaking = (seconds_of_looks(has_leak=leak) * 1e3 for leak in (False, True))
        yield (
            f"| {len(gc.get_objects()):,} | {healthy / LOOKS:.0f} | {leaking - healthy:.0f} "
            f"| {milliseconds_with_untracked_dicts():.0f} |"
        )
        del held


def main():
    for line in table():
        print(line, flush=True)


if __name__ == "__main__":
    main()
