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
    the middle of an epoch. A metric may also have seen batches of a window that was dropped, which
    are given again, or may have missed the batch of the last committed step.

    Args:
        metrics: returns the metrics that the engine has now.
        signals: are held back while a metric is updated.
    """

    def __init__(self, metrics: Callable[[], Iterable[Metric]], signals: HeldSignals) -> None:
        self._metrics = metrics
        self._signals = signals
        self._found: list[Metric] | None = None  # all of them, until handlers come or go
        self._updates: dict[Any, Update] = {}
        self._seen: dict[Any, int] = {}  # the last iteration of each update
        self._at_window: tuple[int, list[_Copy]] | None = None  # and the iteration before
        self._kept: list[_Copy] | None = None
        self._missed: list[Any] = []

    def counted(self, key: Any, update: Update, iteration: int) -> Update:
        """Returns ``update`` with a wrapper that notes in which iteration it was last called.

        Args:
            key: identifies this update when the handlers are looked up again.
            update: the handler by which a metric sees an iteration.
            iteration: the present one; a metric that is attached now has not missed it.
        """
        seen, signals = self._seen, self._signals
        seen.setdefault(key, iteration)
        self._updates[key] = update

        def see(engine: Any) -> None:
            iteration = engine.place.progress.iteration
            signals.is_holding = True
            try:
                # One line: after an exception at any it is known whether the metric was updated.
                seen[key] = (update(engine), iteration)[1]
            finally:
                signals.release()
                signals.has_broken = False  # by a second Ctrl-C: it is no step that is half done

        return see

    def forget_updates(self) -> None:
        """Forgets the updates, to be looked up again, but not which iterations they have seen."""
        self._found, self._updates = None, {}

    def open_window(self, iteration: int) -> None:
        """Notes the metrics as they are before a window of several batches.

        Args:
            iteration: the last one before the window.
        """
        if self._updates:
            if self._found is None:
                self._found = _all_of(self._metrics())
            self._at_window = iteration, [_Copy(metric) for metric in self._found]

    def noted(self) -> Callable[[], None]:
        """Notes the metrics as they are now; returns what puts them back."""
        copies = self._copies()

        def put_back() -> None:
            for each in copies:
                each.put_back()

        return put_back

    def leave(self, iteration: int, *, drops_window: bool) -> None:
        """Copies the metrics at the end of a run, for the next run to restore.

        Args:
            iteration: that of the last step boundary.
            drops_window: whether batches after that are given again.
        """
        if self._kept is not None:
            return  # this run has not come to where it puts them back
        opened, kept = self._at_window or (None, [])
        # A window of one batch, the last of a pass say, was not noted: no metric has seen it.
        is_of_window = drops_window and opened == iteration
        missed = [key for key in self._updates if self._seen[key] < iteration]
        # One line: a leaving that breaks off is repeated, unless the metrics are kept.
        self._kept, self._missed = kept if is_of_window else self._copies(), missed

    def forget(self) -> None:
        """Forgets the copies: a new run restores nothing."""
        self._kept = self._at_window = None
        self._missed = []

    def enter(self, iteration: int) -> None:
        """Starts or continues a run after ``iteration``."""
        self._at_window = None
        self._seen.clear()
        self._seen.update(dict.fromkeys(self._updates, iteration))

    def restore(self, engine: Any, *, is_last_time: bool) -> None:
        """Puts the metrics back, and shows them the batch that they missed.

        Args:
            engine: the engine, whose state still has the output of that batch.
            is_last_time: whether no event that starts metrics is to come before the next batch.
        """
        if self._kept is None:
            return
        for each in self._kept:
            each.put_back()
        if self._missed:
            for key in self._missed:
                if key in self._updates:
                    self._updates[key](engine)
            # One line: if it breaks off before, they are put back and shown the batch again.
            self._kept, self._missed = self._copies(), []
        if is_last_time:
            self._kept = None

    def _copies(self) -> "list[_Copy]":
        return [_Copy(metric) for metric in _all_of(self._metrics())]


class _Copy:
    """The attributes of a metric at one moment."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._attributes = _copied(vars(metric))

    def put_back(self) -> None:
        vars(self._metric).update(_copied(self._attributes))


def _all_of(metrics: Iterable[Metric]) -> list[Metric]:
    found: dict[int, Metric] = {}
    for metric in metrics:
        _find(metric, found)
    return [*found.values()]


def _find(value: Any, found: dict[int, Metric]) -> None:
    """Finds a metric and those within it: a running average has one, and so on."""
    if isinstance(value, Metric):
        if id(value) not in found:
            found[id(value)] = value
            for attribute in vars(value).values():
                _find(attribute, found)
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            if isinstance(each, Metric):
                _find(each, found)


def _copied(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What a metric may change in place is copied: tensors, and collections, not their contents."""
    return {name: _copy(value) for name, value in attributes.items()}


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    return copy(value) if isinstance(value, list | dict | set | deque | np.ndarray) else value
