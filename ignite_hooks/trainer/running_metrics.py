"""Ignite's running metrics, restored when a run continues in the middle of an epoch."""

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

    Ignite resets a metric at STARTED or EPOCH_STARTED, and both are fired when a run continues in
    the middle of an epoch. Moreover, a metric may have seen batches of a window that was dropped
    and whose batches are given again, or may have missed the batch of the last committed step.

    Args:
        metrics: returns the metrics that the engine has now.
        signals: held back while a metric is updated.
    """

    def __init__(self, metrics: Callable[[], Iterable[Metric]], signals: HeldSignals) -> None:
        self._metrics = metrics
        self._signals = signals
        self._all_metrics: list[Metric] | None = None  # None when handlers were added or removed
        self._updates: dict[Any, Update] = {}  # the handlers that update metrics
        self._updated_at: dict[Any, int] = {}  # the iteration of the last call of each update
        # The iteration before the open window, and the metrics as they were then.
        self._before_window: tuple[int, list[_Snapshot]] | None = None
        self._to_restore: list[_Snapshot] | None = None
        self._missed: list[Any] = []  # the updates that have not seen the last committed step

    def tracked(self, key: Any, update: Update, iteration: int) -> Update:
        """Wraps ``update``, to note the iteration in which it was last called.

        Args:
            key: identifies this update when the handlers are looked up again.
            update: the handler by which a metric sees an iteration.
            iteration: the present one; a metric that is attached now has not missed it.
        """
        updated_at, signals = self._updated_at, self._signals
        updated_at.setdefault(key, iteration)
        self._updates[key] = update

        def update_metric(engine: Any) -> None:
            iteration = engine.place.progress.iteration
            signals.is_holding = True
            try:
                # One line: after an exception at any line the note says whether the metric was
                # updated.
                updated_at[key] = (update(engine), iteration)[1]
            finally:
                signals.release()
                # A second Ctrl-C breaks off the update at once. Without a step that is half done,
                # which this flag stands for, the run can continue.
                signals.was_interrupted = False

        return update_metric

    def forget_updates(self) -> None:
        """Forgets the updates, which are then looked up again.

        The iteration in which each was called last stays noted.
        """
        self._all_metrics, self._updates = None, {}

    def open_window(self, iteration: int) -> None:
        """Notes the metrics before a window of several batches.

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
            drops_window: whether the batches after that boundary are given again.
        """
        if self._to_restore is not None:
            return  # this run ended before it restored those of the run before
        opened, kept = self._before_window or (None, [])
        # A window of one batch was not noted: if it is dropped, no metric has seen its batch.
        is_of_window = drops_window and opened == iteration
        missed = [key for key in self._updates if self._updated_at[key] < iteration]
        # One line: if an exception comes before it, this call is repeated.
        self._to_restore, self._missed = kept if is_of_window else self._snapshots(), missed

    def forget(self) -> None:
        """Drops the copies: a new run restores nothing."""
        self._to_restore = self._before_window = None
        self._missed = []

    def begin_run(self, iteration: int) -> None:
        """Starts or continues a run after ``iteration``."""
        self._before_window = None
        self._updated_at.clear()
        self._updated_at.update(dict.fromkeys(self._updates, iteration))

    def restore(self, engine: Any, *, is_last_time: bool) -> None:
        """Restores the metrics, and updates them with the batch that they missed.

        Args:
            engine: the engine, whose state still has the output of that batch.
            is_last_time: whether no further event before the next batch resets metrics.
        """
        if self._to_restore is None:
            return
        for each in self._to_restore:
            each.restore()
        if self._missed:
            for key in self._missed:
                if key in self._updates:
                    self._updates[key](engine)
            # One line: if an exception comes before it, both are done again, from the old copies.
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
    """Returns the metrics and those within them, each once: a running average holds a metric."""
    found: dict[int, Metric] = {}
    for metric in metrics:
        _collect(metric, found)
    return [*found.values()]


def _collect(value: Any, found: dict[int, Metric]) -> None:
    """Adds a metric, and the metrics in its attributes, to ``found``."""
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
    """Copies the attributes that a metric may change in place: tensors and collections.

    The contents of collections are not copied.
    """
    return {name: _copy_value(value) for name, value in attributes.items()}


def _copy_value(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    return copy(value) if isinstance(value, list | dict | set | deque | np.ndarray) else value
