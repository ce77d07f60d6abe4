import gc
import os
import threading

import psutil
import pytest
from ignite.engine import Events

from ignite_hooks import ClearCache
from ignite_hooks import EpochMaxRAM
from ignite_hooks import ExperienceMaxRAM
from ignite_hooks import GarbageCollector
from ignite_hooks import MaxDeviceMemory
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks import ram_usage_metrics
from tests.memory.frozen import is_frozen
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer

MIB = 2**20


def resident_mib():
    """Returns the unshared memory of this process after a garbage collection."""
    gc.collect()
    return psutil.Process().memory_full_info().uss / MIB


def in_process():
    """Returns counts that may neither grow in a run nor stay higher after it.

    Descriptors are counted many times, as a sampling thread opens some briefly: the minimum counts.
    """
    return {
        "threads": threading.active_count(),
        "descriptors": min(len(os.listdir("/proc/self/fd")) for _ in range(500)),
        "callbacks": len(gc.callbacks),
        "automatic": gc.isenabled(),
        "frozen": is_frozen(),
    }


def assert_no_more(now, before):
    """Checks that no count has grown; descriptors opened earlier may have been closed meanwhile."""
    assert now["descriptors"] <= before["descriptors"]
    assert {**now, "descriptors": 0} == {**before, "descriptors": 0}


def attach_all(engine, at_end):
    handlers = [
        GarbageCollector(
            every_steps=100, disable_automatic=True, freeze_after=50, track_pauses=True
        ),
        ClearCache(every_steps=100, every_epochs=1, garbage_collection=True),
        *ram_usage_metrics(minibatch=True, epoch=True, experience=True, stream=True),
        ExperienceMaxRAM(name="with_children", include_children=True, every=0.1),
        EpochMaxRAM(name="sampled", backend="sampler", every=0.01),
        MaxDeviceMemory(),
    ]
    for handler in handlers:
        at_end.append(handler.attach(engine).remove)


@pytest.mark.parametrize(
    ("first", "iterations"), [(200, 600), pytest.param(1000, 20_000, marks=pytest.mark.slow)]
)
def test_long_run_with_all_handlers_uses_no_more_memory(first, iterations):
    trainer = make_trainer(batches_of(100), accumulation=2)
    evaluator = create_supervised_evaluator(make_model())
    Validation(evaluator, {"a": batches_of(2), "b": batches_of(2)}, every_epochs=1).attach(trainer)
    removals = []
    for engine in (trainer, evaluator):
        attach_all(engine, removals)
    looks = []

    @trainer.on(Events.ITERATION_COMPLETED(event_filter=lambda _, i: i in (first, iterations)))
    def look():
        looks.append((resident_mib(), in_process()))

    gc.collect()  # closes files that other tests have left open
    before = in_process()
    trainer.run(max_epochs=iterations // 100)
    after = resident_mib(), in_process()

    (early, process_early), (late, process_late) = looks
    assert_no_more(process_late, process_early)
    assert process_early != before  # it was looked at within
    assert_no_more(after[1], before)
    assert late - early <= 4
    assert after[0] - early <= 4
    assert {"with_children", "sampled", "stream_max_ram_mib", "gc_pause_seconds"} <= set(
        trainer.state.metrics
    )
    for remove in removals:
        remove()
    assert in_process() == before
