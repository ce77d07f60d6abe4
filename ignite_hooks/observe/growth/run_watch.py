"""Looks at the process while an engine runs."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.engine import set_turn
from ignite_hooks.core.training_engine import Turn
from ignite_hooks.memory.mark import MIB
from ignite_hooks.memory.max_ram import MaxRAM
from ignite_hooks.memory.ram_backends import unmeasured_ram
from ignite_hooks.observe.growth.census import count_objects
from ignite_hooks.observe.growth.leaks import Epoch
from ignite_hooks.observe.growth.leaks import Leaks
from ignite_hooks.observe.growth.quantities import read_process
from ignite_hooks.observe.steps import optimizer_step_of

__all__ = ["METRICS", "RunWatch"]

METRICS = {
    "ram_mib": ("ram_bytes", MIB),
    "peak_ram_mib": ("peak_ram_bytes", MIB),
    "worker_ram_mib": ("worker_ram_bytes", MIB),
    "device_mib": ("device_bytes", MIB),
    "objects": ("objects", 1),
    "tensors": ("tensors", 1),
    "open_files": ("open_files", 1),
    "threads": ("threads", 1),
    "worker_processes": ("worker_processes", 1),
    "growing": ("growing", 1),
}
"""For each metric, the value of a look that it shows, and the unit of the metric."""


class RunWatch:
    """The looks at the process in the runs of one engine.

    Args:
        every: the number of steps from one look to the next.
        prefix: is put before the names of the metrics.
    """

    def __init__(self, every: int, prefix: str) -> None:
        self._every, self._prefix = every, prefix
        self._ram = MaxRAM()
        # The time between two runs does not count: the clock is `perf_counter() - self._idle`.
        self._idle = self._run_ended = 0.0
        self._begin()

    def _begin(self) -> None:
        """Starts from scratch."""
        self._leaks = Leaks()
        self._look_count = 0
        self._longest_look = 0.0  # seconds
        # The epoch that began last, and the counters at its beginning.
        self._epoch = self._epoch_step = self._epoch_iteration = 0

    def result(self) -> dict[str, Any]:
        """Returns the findings and facts about the looks, as in ``GrowthWatch.result``."""
        return {
            "growing": [each | {"classes": {**each["classes"]}} for each in self._leaks.findings],
            "looks": self._look_count,
            "look_seconds": self._longest_look,
        }

    @contextmanager
    def during_run(self, engine: Engine) -> Iterator[None]:
        """Looks at the starts of epochs, and measures the peaks of memory, as long as a run lasts.

        A handler of EPOCH_STARTED is attached here, at the start of the run. So a plain Ignite
        engine calls this handler after those that drop what the last epoch has collected, such as
        those of metrics.
        """

        def look_at_epoch(engine: Engine) -> None:
            self._look_at_epoch(engine)

        look_at_epoch.__qualname__ = "GrowthWatch"  # the name that profilers show
        set_turn(look_at_epoch, Turn.REPORTS)
        self._idle += perf_counter() - self._run_ended
        try:
            with self._ram, engine.add_event_handler(Events.EPOCH_STARTED, look_at_epoch):
                yield
        finally:
            self._run_ended = perf_counter()

    def begin_run(self, engine: Engine) -> None:
        """Starts from scratch, unless the run continues at the last look or after it."""
        times = self._leaks.looks.times
        is_continued = len(times) and _step_of(engine) >= times["step"][-1]
        if engine.state.iteration == 0 or not is_continued:
            self._begin()

    def look_by_step(self, engine: Engine) -> None:
        """Looks, unless epochs are shorter than the interval, so that they begin with the looks."""
        times, state = self._leaks.looks.times, engine.state
        done = state.iteration - self._epoch_iteration
        if state.epoch_length is not None and done >= state.epoch_length:
            return  # the look at the start of the next epoch has the same step
        if not len(times) or state.epoch in (times["epoch"][-1], self._leaks.first_epoch):
            self._look(engine, is_epoch_start=False)

    def _look_at_epoch(self, engine: Engine) -> None:
        """Looks, if the interval is over, or if the epoch that has ended was longer than it."""
        if engine.state.epoch == self._epoch:
            return  # a stopped run continues within the epoch
        times, step = self._leaks.looks.times, _step_of(engine)
        steps_of_epoch = step - self._epoch_step
        self._epoch, self._epoch_step = engine.state.epoch, step
        self._epoch_iteration = engine.state.iteration
        if not len(times) or max(step - times["step"][-1], steps_of_epoch) >= self._every:
            self._look(engine, is_epoch_start=True)

    def _look(self, engine: Engine, *, is_epoch_start: bool) -> None:
        """Looks at the process, writes the metrics, and warns of what grows."""
        began, state = perf_counter(), engine.state
        time = (
            self._look_count,
            _step_of(engine),
            state.iteration,
            state.epoch,
            is_epoch_start,
            began - self._idle,
            gc.get_stats()[2]["collections"],
        )
        # Read first, because the census takes memory itself.
        process = read_process()
        peak = self._ram.result() * MIB
        with unmeasured_ram():
            census = count_objects(with_untracked_dicts=self._leaks.is_probing)
            self._leaks.add(time, process, census)
            self._look_count += 1
            self._leaks.search(engine, self._present_epoch(engine))
        self._ram.reset()
        values = process | {
            "peak_ram_bytes": peak,
            "objects": census.by_type.total(),
            "tensors": census.by_tensor.total(),
            "growing": len(self._leaks.findings),
        }
        # A division makes a new object, and reports have the values that are new objects: Python
        # has one object for each small integer, so a count that stays the same would be left out.
        state.metrics.update(
            {
                f"{self._prefix}{name}": values[key] / unit
                for name, (key, unit) in METRICS.items()
                if key in values
            }
        )
        self._longest_look = max(self._longest_look, perf_counter() - began)

    def _present_epoch(self, engine: Engine) -> Epoch:
        state = engine.state
        done = state.iteration - self._epoch_iteration
        left = done if state.epoch_length is None else state.epoch_length - done
        return Epoch(state.epoch, state.epoch_length is None and state.max_epochs is None, left)


def _step_of(engine: Engine) -> int:
    counter = "iteration" if optimizer_step_of(engine) is None else "optimizer_step"
    step: int = getattr(engine.state, counter)
    return step
