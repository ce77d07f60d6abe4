"""Collects Python's garbage when it suits the training, and tells what that takes."""

import gc
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from logging import getLogger
from time import perf_counter
from typing import Any

import torch
from accelerate.utils import memory as accelerate_memory
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.fields import Every
from ignite_hooks.core.fields import Flag
from ignite_hooks.core.fields import Generation
from ignite_hooks.core.fields import Iterations
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.warn_once import warn_once
from ignite_hooks.memory.process_gc import automatic_collection_off
from ignite_hooks.memory.process_gc import automatic_pauses
from ignite_hooks.memory.process_gc import frozen
from ignite_hooks.memory.upkeep import Upkeep

__all__ = ["CudaGarbageCollector", "GarbageCollector"]

logger = getLogger(__name__)


@checked_dataclass
class GarbageCollector(Upkeep):
    """Runs ``gc.collect`` on a schedule: ``every_steps``, ``every_epochs``, or every epoch.

    Python collects when a count of objects says so, in the middle of a step, and on each process at
    a moment of its own: the others wait for it at the next exchange of gradients. With
    ``disable_automatic`` all pause at the same step. A full collection of a process with torch,
    Accelerate and Ignite takes 120 to 200 ms, almost all of it for objects that never die;
    ``freeze_after`` takes these out of its sight, and it takes 0.003 ms.

    ``state.metrics`` get ``gc_collected``, the number of objects, and ``gc_seconds`` of the last
    collection, and with ``track_pauses`` ``gc_pause_seconds`` of the run. What is changed in the
    process is changed at each entry into ``run`` and put back at each exit, however it ends. Of
    several collectors and of runs within runs the last one puts back what the first has found. As
    a callable, with ``engine.add_event_handler``, it collects and changes nothing.

    Args:
        every_steps: once in so many committed steps (iterations, on an engine that has no
            ``OptimizerStep``).
        every_epochs: once in so many epochs.
        generation: 0, 1 or 2, as in ``gc.collect``. Cycles that have grown old are found by 2 only.
        disable_automatic: no automatic collections during a run.
        freeze_after: after so many iterations of this run, resumed or not, one full collection and
            ``gc.freeze()``, undone at the end of the run.
        track_pauses: measure what automatic collections take, to see what there is to gain.
        verbose: log each collection, with the logger of this module at level INFO.

    Raises:
        ValueError: a field is out of its range.
    """

    every_steps: Every | None = None
    every_epochs: Every | None = None
    generation: Generation = 2
    disable_automatic: Flag = False
    freeze_after: Iterations | None = None
    track_pauses: Flag = False
    verbose: Flag = False

    def attach(self, engine: Engine, event: Any = None) -> Attachment:
        """As any handler; at an ``event`` too the process is changed for the time of each run."""
        attachment = super().attach(engine, event)
        if self.disable_automatic:
            attachment.during_run(lambda engine: automatic_collection_off())
        if self.track_pauses:
            attachment.during_run(_Pauses().measured)
        if self.freeze_after is not None:
            iterations = self.freeze_after
            attachment.during_run(lambda engine: _frozen_after(iterations, engine))
        return attachment

    def __call__(self, engine: Engine) -> None:
        """Collects now."""
        began = perf_counter()
        collected = gc.collect(self.generation)
        seconds = perf_counter() - began
        engine.state.metrics.update(gc_collected=collected, gc_seconds=seconds)
        if self.verbose:
            logger.info("%d objects collected in %.3f s", collected, seconds)


class _Pauses:
    """The seconds that automatic collections take in a run, in ``state.metrics``."""

    def __init__(self) -> None:
        self._seconds = 0.0

    @contextmanager
    def measured(self, engine: Engine) -> Iterator[None]:
        if not is_interrupted(engine):
            self._seconds = 0.0
        self._tell(engine)

        def add(seconds: float) -> None:
            self._seconds += seconds
            self._tell(engine)

        with automatic_pauses(add):
            yield

    def _tell(self, engine: Engine) -> None:
        # Not added to what is there: a second collector measures the same pauses.
        engine.state.metrics["gc_pause_seconds"] = self._seconds


@contextmanager
def _frozen_after(iterations: int, engine: Engine) -> Iterator[None]:
    with ExitStack() as changes:
        left = iterations

        def count(engine: Engine) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                handle.remove()
                changes.enter_context(frozen())

        count.__qualname__ = GarbageCollector.__name__  # what profilers show
        handle = engine.add_event_handler(Events.ITERATION_COMPLETED, count)
        try:
            yield
        finally:
            if left > 0:
                handle.remove()
                left = 0  # should it be called all the same, by the event that is being fired


@checked_dataclass
class CudaGarbageCollector(GarbageCollector):
    """A ``GarbageCollector`` that clears the cache of the device after each collection.

    Tensors in reference cycles are freed by the collection; their memory stays in the cache of the
    device's allocator until that is cleared. It works for any kind of device that Accelerate knows.
    On a machine without one the Python part is done, and a warning says so once.

    Args:
        every_steps: as for a ``GarbageCollector``, like all but the last.
        every_epochs: once in so many epochs.
        generation: 0, 1 or 2.
        disable_automatic: no automatic collections during a run.
        freeze_after: freeze what is there after so many iterations.
        track_pauses: measure what automatic collections take.
        verbose: log what each part took, and the summary of the device's memory.
    """

    def __call__(self, engine: Engine) -> None:
        """Collects and clears now."""
        super().__call__(engine)
        if not torch.accelerator.is_available():
            warn_once(
                "CudaGarbageCollector finds no device whose cache it could clear, and does the "
                "Python part: GarbageCollector does the same without this warning"
            )
            return
        began = perf_counter()
        accelerate_memory.clear_device_cache()
        seconds = perf_counter() - began
        if self.verbose:
            module = torch.get_device_module()
            summary = module.memory_summary() if hasattr(module, "memory_summary") else ""
            logger.info("device cache cleared in %.3f s\n%s", seconds, summary)
