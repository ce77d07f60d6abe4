"""The checkpoints of a run: the last ones, and the best."""

import os
from collections import deque
from math import isnan
from typing import Any
from typing import NamedTuple

from ignite_hooks.observe.record_lines import number_in
from ignite_hooks.observe.report.page_data import Checkpoint
from ignite_hooks.observe.report.positions import Epochs
from ignite_hooks.observe.report.positions import LinePosition
from ignite_hooks.observe.report.positions import next_position

__all__ = ["SavedCheckpoints"]

MAX_BEST = 10
"""The number of best checkpoints that are kept; some of them may have been removed."""

MAX_PATH = 1000
"""The length of a path in characters; a longer one is left out."""


class _Saved(NamedTuple):
    number: int
    path: str
    at: LinePosition
    metric: str | None
    value: float | None


class SavedCheckpoints:
    """The last checkpoints of a run, and the best by the metric of the newest one that has one.

    Args:
        max_last: the number of last checkpoints to keep.
    """

    def __init__(self, max_last: int) -> None:
        self._last: deque[_Saved] = deque(maxlen=max_last)
        self._best: list[_Saved] = []  # the best first
        self._ranking: tuple[Any, Any] = None, None  # the metric and the mode
        self._number = 0

    def add(self, described: dict[str, Any], at: LinePosition) -> LinePosition:
        """Adds a checkpoint of a line, and returns the position of the state in it.

        Args:
            described: what the line says about the checkpoint.
            at: the position of the line. A checkpoint that is written in the background is complete
                after further steps.
        """
        at = next_position({**described, "seconds": None}, at)
        path, metric = described.get("path"), described.get("metric")
        value = number_in(described.get("metric_value"))
        if not isinstance(path, str) or len(path) > MAX_PATH:
            return at
        self._number += 1
        metric = metric[:MAX_PATH] if isinstance(metric, str) else None
        saved = _Saved(self._number, path, at, metric, value)
        self._last.append(saved)
        mode = described.get("metric_mode")
        if metric is None or mode not in ("max", "min"):
            return at
        if (metric, mode) != self._ranking:
            self._ranking, self._best = (metric, mode), []
        if value is not None and not isnan(value):
            sign = 1 if mode == "min" else -1
            self._best.append(saved)
            # Of equal values the newer is better, as for SaveCheckpoint.
            self._best.sort(key=lambda each: (sign * (each.value or 0.0), -each.number))
            del self._best[MAX_BEST:]
        return at

    def as_data(self, epochs: Epochs) -> list[Checkpoint]:
        """Returns the checkpoints of a page, the oldest first."""
        there = {each.number: os.path.isdir(each.path) for each in [*self._last, *self._best]}
        best = next((each for each in self._best if there[each.number]), None)
        best = best or next(iter(self._best), None)
        kept = {each.number: each for each in [*self._last, *([best] if best else [])]}
        return [
            {
                "path": each.path,
                "at": epochs.position(each.at),
                "metric": each.metric,
                "value": each.value if each.value is not None and _is_finite(each.value) else None,
                "is_best": each is best,
                "is_there": there[number],
            }
            for number, each in sorted(kept.items())
        ]


def _is_finite(value: float) -> bool:
    return value - value == 0
