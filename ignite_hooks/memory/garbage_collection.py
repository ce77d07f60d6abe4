"""Handlers that collect Python's garbage at chosen steps, and measure the time it takes."""

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
    """Runs ``gc.collect`` on a schedule, by default at the end of each epoch.

    By itself, Python collects garbage whenever a count of objects reaches a threshold. This happens
    in the middle of a step, and at a different step on each rank. While one rank collects, all
    others wait for it at the next exchange of gradients. With ``disable_automatic`` garbage is
    collected by this handler only, so all ranks pause at the same step.

    A full collection visits all objects of the process. Almost all of them were made by imports and
    live until the process ends. ``freeze_after`` excludes these objects from collections.

    ``state.metrics`` gets two metrics of the last collection: ``gc_collected``, the number of
    collected objects, and ``gc_seconds``, the duration of the collection. With ``track_pauses``
    there is also ``gc_pause_seconds``, the total duration of the automatic collections of the run.

    ``disable_automatic`` and ``freeze_after`` change settings of the process within ``run``. The
    settings are restored when ``run`` is left, also after a failure. If several collectors or
    nested runs change the same setting, it is restored when no run needs the change any more. A
    handler that is added as a callable, with ``engine.add_event_handler``, collects garbage but
    changes no settings.

    Args:
        every_steps: collect at every n-th committed step. A step is committed if the loss scaler
            did not skip it. On an engine that has no ``OptimizerStep``, iterations are counted
            instead.
        every_epochs: collect at the end of every n-th epoch. Without ``every_steps`` and
            ``every_epochs``, garbage is collected at the end of each epoch.
        generation: 0, 1 or 2, as in ``gc.collect``. Only 2 finds cycles of old objects.
        disable_automatic: turn Python's automatic collections off during a run.
        freeze_after: after this many iterations, collect once in full and call ``gc.freeze()``,
            which excludes all present objects from later collections. The objects are unfrozen when
            the run ends. The iterations are counted from the entry into ``run``, also if the run
            resumes an earlier run.
        track_pauses: measure the duration of automatic collections, which is the time that
            ``disable_automatic`` could save.
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
        """Attaches the handler, and changes the settings of the process during each run.

        The settings are changed whether or not an ``event`` is given.
        """
        attachment = super().attach(engine, event)
        if self.disable_automatic:
            attachment.during_run(lambda engine: automatic_collection_off())
        if self.track_pauses:
            attachment.during_run(_PauseMetric().measured)
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


class _PauseMetric:
    """Writes the seconds that automatic collections take in a run to ``state.metrics``."""

    def __init__(self) -> None:
        self._seconds = 0.0

    @contextmanager
    def measured(self, engine: Engine) -> Iterator[None]:
        """Measures the pauses in the body, which is a run of ``engine``."""
        if not is_interrupted(engine):  # a continued run adds to its earlier sum
            self._seconds = 0.0
        self._write(engine)

        def add(seconds: float) -> None:
            self._seconds += seconds
            self._write(engine)

        with automatic_pauses(add):
            yield

    def _write(self, engine: Engine) -> None:
        # The metric is overwritten, because a second collector measures the same pauses.
        engine.state.metrics["gc_pause_seconds"] = self._seconds


@contextmanager
def _frozen_after(iterations: int, engine: Engine) -> Iterator[None]:
    """Freezes all objects after ``iterations`` iterations; unfreezes them at the end of the body.

    The body is a run of ``engine``. Garbage collections skip frozen objects.
    """
    with ExitStack() as changes:
        remaining = iterations

        def count(engine: Engine) -> None:
            nonlocal remaining
            remaining -= 1
            if remaining == 0:
                handle.remove()
                changes.enter_context(frozen())

        count.__qualname__ = GarbageCollector.__name__  # profilers show this name
        handle = engine.add_event_handler(Events.ITERATION_COMPLETED, count)
        try:
            yield
        finally:
            if remaining > 0:
                handle.remove()
                # If ITERATION_COMPLETED is being fired now, Ignite may still call `count`. With 0,
                # this call freezes no objects.
                remaining = 0


@checked_dataclass
class CudaGarbageCollector(GarbageCollector):
    """A ``GarbageCollector`` that clears the cache of the device after each collection.

    Collecting frees tensors in reference cycles, but their memory stays in the cache of the
    device's allocator until the cache is cleared. The handler works for any kind of device that
    Accelerate knows. On a machine without a device the handler only collects Python's garbage, and
    warns once. All arguments except ``verbose`` have the same meaning as for a
    ``GarbageCollector``.

    Args:
        every_steps: collect and clear at every n-th committed step.
        every_epochs: collect and clear at the end of every n-th epoch.
        generation: 0, 1 or 2, as in ``gc.collect``.
        disable_automatic: turn Python's automatic collections off during a run.
        freeze_after: freeze all objects after this many iterations of the run.
        track_pauses: measure the duration of automatic collections.
        verbose: log the duration of each part, and the summary of the device's memory.
    """

    def __call__(self, engine: Engine) -> None:
        """Collects garbage and clears the cache now."""
        super().__call__(engine)
        if not torch.accelerator.is_available():
            warn_once(
                "CudaGarbageCollector finds no device whose cache it could clear, and collects "
                "Python's garbage only: GarbageCollector does the same without this warning"
            )
            return
        began = perf_counter()
        accelerate_memory.clear_device_cache()
        seconds = perf_counter() - began
        if self.verbose:
            module = torch.get_device_module()
            summary = module.memory_summary() if hasattr(module, "memory_summary") else ""
            logger.info("device cache cleared in %.3f s\n%s", seconds, summary)
