"""The cells of a row of the Console's table: the metrics of a run as text."""

import re
import sys
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from typing import NamedTuple

from ignite.engine import Engine

from ignite_hooks.checkpoint.save import SaveCheckpoint
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.metric_writer import MetricWriter
from ignite_hooks.memory.device import DeviceMark
from ignite_hooks.memory.kernel import proc_field
from ignite_hooks.memory.mark import MIB
from ignite_hooks.memory.peak_metric import PeakMetric
from ignite_hooks.observe.console_state import ConsoleState
from ignite_hooks.observe.growth.watch import GrowthWatch
from ignite_hooks.observe.plain_values import plain_values
from ignite_hooks.observe.table import Cell
from ignite_hooks.observe.time_ledger import TimeLedger
from ignite_hooks.observe.value_text import NUMBER_WIDTH
from ignite_hooks.observe.value_text import one_line
from ignite_hooks.observe.value_text import size_text
from ignite_hooks.observe.value_text import value_text

__all__ = ["Ranking", "cells_of", "names_of_results"]

_RATE = re.compile(r"lr(_\d+)?")
_SPEEDS = ("samples_per_second", "steps_per_second")
# Values that have columns of their own, or are shown beside the bar.
_OF_THROUGHPUT = {*_SPEEDS, "items_per_second", "data_wait", "remaining_seconds", "grad_norm"}
# The spans whose peaks of memory are shown: the first of them that is measured.
_SPANS = ("epoch", "run", "experience", "minibatch")


class Ranking(NamedTuple):
    """The metric whose best value is marked.

    Attributes:
        metric: its name; None marks nothing.
        mode: "max" if the largest value is best, "min" if the smallest value is best.
    """

    metric: str | None
    mode: str

    def or_of_checkpoints(self, engine: Engine) -> "Ranking":
        """Returns this ranking; if it has no metric, that of the attached SaveCheckpoint."""
        if self.metric is not None:
            return self
        savers = [each for each in attached_handlers(engine, SaveCheckpoint) if each.metric]
        return Ranking(savers[0].metric, savers[0].mode) if savers else self


def names_of_results(
    engine: Engine, values: Mapping[str, Any], loss_names: tuple[str, ...]
) -> list[str]:
    """Returns the names of the values that are results of the run, such as those of a validation.

    These are all but the losses, and what describes the program instead of the model: its speed,
    its memory, its time and its growth.
    """
    ledgers = attached_handlers(engine, TimeLedger)
    writers: list[MetricWriter] = [
        *attached_handlers(engine, PeakMetric),
        *attached_handlers(engine, GrowthWatch),
        *ledgers,
    ]
    others = _OF_THROUGHPUT | {name for each in writers for name in each.names()} | {*loss_names}
    handlers = tuple(f"{each.prefix}handlers/" for each in ledgers)
    return [
        name
        for name in values
        if name not in others
        and not _RATE.fullmatch(str(name))
        and not str(name).startswith(handlers)
    ]


def cells_of(
    engine: Engine,
    values: Mapping[str, Any],
    loss_names: tuple[str, ...],
    state: ConsoleState,
    ranking: Ranking,
    step: int,
) -> Iterator[Cell]:
    """Yields the cells of a row, in the order of the columns, without step and epoch.

    Args:
        engine: the engine.
        values: the metrics that are new since the last row.
        loss_names: the names of the metrics that a MeanLoss writes.
        state: has the means of the losses and the best value.
        ranking: the metric whose best value is marked.
        step: the number of steps.
    """
    results = {name: values[name] for name in names_of_results(engine, values, loss_names)}
    means = state.take_means()
    for name, value in {**means, **plain_values(results)}.items():
        text, importance = value_text(value), 1 if name in means else 3
        if name == ranking.metric:
            is_best = state.note_best(name, value, ranking.mode, engine, step)
            text, importance = text + ("*" if is_best else " "), 1
        yield Cell(name, text, _words(name), importance, NUMBER_WIDTH)
    metrics = engine.state.metrics
    rates = {name: value for name, value in metrics.items() if _RATE.fullmatch(str(name))}
    for name, value in plain_values(rates).items():
        text = value_text(value)
        # A rate is often a round number.
        text = text.rstrip("0").rstrip(".") if "e" not in text else text
        yield Cell(name, text, _words(name), 2, NUMBER_WIDTH)
    yield from _cells_of_speed(metrics)
    for kind, size in _peaks(engine).items():
        yield Cell(f"peak {kind}", size_text(size), ("peak", kind), 6)


def _cells_of_speed(metrics: Mapping[str, Any]) -> Iterator[Cell]:
    """Yields the gradient norm, and the values of Throughput."""
    speeds = [name for name in _SPEEDS if name in metrics][:1]
    names = ["grad_norm", *speeds, "items_per_second", "data_wait"]
    values = plain_values({name: metrics[name] for name in names if name in metrics})
    for name, value in values.items():
        if name == "data_wait":
            # Others may have written a value that is no number.
            text = f"{value:.0%}" if isinstance(value, int | float) else value_text(value)
            yield Cell(name, text, ("data", "wait"), 5)
        else:
            title = _words(name.replace("_per_second", "_per s"))
            yield Cell(name, value_text(value), title, 4, NUMBER_WIDTH)


def _words(name: str) -> tuple[str, ...]:
    """Returns the words of a metric's name, for the title of its column."""
    return tuple(filter(None, re.split(r"[_/ ]", one_line(name)))) or (name,)


def _peaks(engine: Engine) -> dict[str, float]:
    """Returns the peaks of memory in bytes: "RAM", and "device" if there is one.

    The peaks are those that handlers have measured, or else those of the process so far.
    """
    metrics = engine.state.metrics
    peaks: dict[str, float] = {}
    for kind, ending in (("RAM", "max_ram_mib"), ("device", "max_device_allocated_mib")):
        sizes = [metrics.get(f"{span}_{ending}") for span in _SPANS]
        measured = [size for size in sizes if isinstance(size, int | float)]
        if measured:
            peaks[kind] = measured[0] * MIB
    if "RAM" not in peaks:
        peaks["RAM"] = _peak_of_process()
    if "device" not in peaks:
        mark = DeviceMark()
        mark.open()
        peaks["device"] = mark.read()[0]
    return {kind: size for kind, size in peaks.items() if size}


def _peak_of_process() -> int:
    """Returns the highest resident memory of this process so far in bytes; 0 if not known."""
    try:
        return proc_field(Path("/proc/self/status").read_bytes(), b"VmHWM")
    except (OSError, ValueError):  # not on Linux
        pass
    try:
        from resource import RUSAGE_SELF
        from resource import getrusage
    except ImportError:  # on Windows
        return 0
    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
