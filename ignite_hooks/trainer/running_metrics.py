"""Restores Ignite's metrics when a run continues in the middle of an epoch."""

from collections import deque
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from copy import copy
from typing import Any

import numpy as np
import torch
from ignite.metrics import Metric

from ignite_hooks.core.held_signals import HeldSignals

__all__ = ["RunningMetrics"]

Update = Callable[[Any], Any]


class RunningMetrics:
    """Restores the metrics of an engine when a run continues.

    A run continues from the boundary between two optimizer steps, and the metrics must continue
    from the same boundary. Without this class they would not, for three reasons:

    - Ignite resets a metric at STARTED or EPOCH_STARTED. Both events are fired when a run continues
      in the middle of an epoch.
    - A metric may have been updated with batches of a window (the batches of one optimizer step)
      that was dropped. The next run gets these batches again.
    - If the run failed directly after a step, a metric may not have been updated with the last
      batch of this step.

    Args:
        metrics: returns the metrics that are attached to the engine now.
        signals: the signals to hold back while a metric is updated.
    """

    def __init__(self, metrics: Callable[[], Iterable[Metric]], signals: HeldSignals) -> None:
        self._metrics = metrics
        self._signals = signals
        # A cache of the attached metrics; None after handlers were added or removed.
        self._all_metrics: list[Metric] | None = None
        # The handlers that update metrics (called updates below), by key.
        self._updates: dict[Any, Update] = {}
        self._updated_at: dict[Any, int] = {}  # the iteration of the last call of each update
        # The last iteration before the open window, and copies of the metrics from that time.
        self._before_window: tuple[int, list[_Snapshot]] | None = None
        self._to_restore: list[_Snapshot] | None = None  # the copies that the next run restores
        # The keys of the updates that were not called with the batch of the last committed step.
        self._missed: list[Any] = []

    def tracked(self, key: Any, update: Update, iteration: int) -> Update:
        """Returns a function that calls ``update`` and notes the iteration of the call.

        Args:
            key: identifies the update. Whenever the handlers are looked up again, the same handler
                must get an equal key.
            update: the handler of ITERATION_COMPLETED that updates a metric.
            iteration: the present iteration. A new update counts as called at this iteration, so
                that the batch of this iteration does not count as missed.
        """
        updated_at, signals = self._updated_at, self._signals
        updated_at.setdefault(key, iteration)
        self._updates[key] = update

        def update_metric(engine: Any) -> None:
            iteration = engine.place.progress.iteration
            signals.is_holding = True
            try:
                # One statement makes the update and notes its iteration, so that after an exception
                # ``_updated_at`` shows whether the metric was updated.
                updated_at[key] = (update(engine), iteration)[1]
            finally:
                signals.release()
                # This flag means that an optimizer step may be half done. During an update no step
                # is in progress, so the flag is reset, and the run can continue later.
                signals.was_interrupted = False

        return update_metric

    def forget_updates(self) -> None:
        """Forgets the updates, but not the iterations at which they were last called."""
        self._all_metrics, self._updates = None, {}

    def open_window(self, iteration: int) -> None:
        """Copies the metrics before a window of several batches.

        Args:
            iteration: the last iteration before the window.
        """
        if self._updates:
            if self._all_metrics is None:
                self._all_metrics = _with_nested(self._metrics())
            self._before_window = iteration, [_Snapshot(metric) for metric in self._all_metrics]

    def snapshot(self) -> Callable[[], None]:
        """Copies the present metrics; returns a function that restores them."""
        snapshots = self._snapshots()

        def restore_all() -> None:
            for each in snapshots:
                each.restore()

        return restore_all

    def end_run(self, iteration: int, *, drops_window: bool) -> None:
        """Copies the metrics at the end of a run, for the next run to restore.

        Args:
            iteration: the iteration of the last step boundary.
            drops_window: whether a window is open. This window is dropped, and the next run gets
                its batches again.
        """
        if self._to_restore is not None:
            return  # this run ended before it restored the copies, so the next run restores them
        opened, kept = self._before_window or (None, [])
        # If a window of several batches is dropped, the next run restores the copies from before
        # the window. Otherwise it restores the present metrics. A window of one batch needs no
        # copies: metrics are updated after the step, and a window is dropped only before its step.
        is_of_window = drops_window and opened == iteration
        missed = [key for key in self._updates if self._updated_at[key] < iteration]
        # One statement sets both attributes. If an exception such as Ctrl-C comes before this
        # statement, the trainer later calls ``end_run`` again.
        self._to_restore, self._missed = kept if is_of_window else self._snapshots(), missed

    def forget(self) -> None:
        """Drops the copies, so that the next run restores nothing."""
        self._to_restore = self._before_window = None
        self._missed = []

    def begin_run(self, iteration: int) -> None:
        """Begins to note the iterations of updates, for a run that starts or continues.

        Args:
            iteration: the last iteration before the run. Each update counts as called at this
                iteration.
        """
        self._before_window = None
        self._updated_at.clear()
        self._updated_at.update(dict.fromkeys(self._updates, iteration))

    def restore(self, engine: Any, *, is_last_time: bool) -> None:
        """Restores the metrics. Then updates the metrics that missed the batch of the last step.

        Args:
            engine: the engine. Its state still has the output of the missed batch.
            is_last_time: whether this is the last call before the next batch. If False, the copies
                are kept, because an event that resets metrics comes before the next batch.
        """
        if self._to_restore is None:
            return
        for each in self._to_restore:
            each.restore()
        if self._missed:
            for key in self._missed:
                if key in self._updates:
                    self._updates[key](engine)
            # One statement sets both attributes. If an exception comes before this statement, the
            # next call restores the old copies and repeats the updates.
            self._to_restore, self._missed = self._snapshots(), []
        if is_last_time:
            self._to_restore = None

    def _snapshots(self) -> "list[_Snapshot]":
        return [_Snapshot(metric) for metric in _with_nested(self._metrics())]


class _Snapshot:
    """A copy of the attributes of a metric."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._attributes = _copy_attributes(vars(metric))

    def restore(self) -> None:
        vars(self._metric).update(_copy_attributes(self._attributes))


def _with_nested(metrics: Iterable[Metric]) -> list[Metric]:
    """Returns the metrics, and the metrics that they hold, without duplicates.

    Ignite's ``RunningAverage``, for example, holds another metric.
    """
    found: dict[int, Metric] = {}
    for metric in metrics:
        _collect(metric, found)
    return [*found.values()]


def _collect(value: Any, found: dict[int, Metric]) -> None:
    """Adds the metrics in ``value``, a metric or a collection, to ``found``, by id."""
    if isinstance(value, Metric):
        if id(value) not in found:
            found[id(value)] = value
            for attribute in vars(value).values():
                _collect(attribute, found)
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            if isinstance(each, Metric):
                _collect(each, found)


def _copy_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the attributes, with copies of tensors and collections.

    A metric may change tensors and collections in place. The elements of collections are not
    copied.
    """
    return {name: _copy_value(value) for name, value in attributes.items()}


def _copy_value(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    return copy(value) if isinstance(value, list | dict | set | deque | np.ndarray) else value
