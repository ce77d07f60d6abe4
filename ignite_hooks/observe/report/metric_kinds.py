"""Kinds of metrics, by their names: the section and the unit of their chart, and what is better."""

import re
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import Literal

from ignite_hooks.observe.report.page_data import Section

__all__ = ["TIME_PARTS", "MetricKinds"]

Best = Literal["lowest", "highest"]

TIME_PARTS = frozenset(
    {
        *("data", "forward", "backward", "optimizer", "process"),
        *("validation", "checkpoint", "gc", "other"),
    }
)
"""The parts of ``TimeLedger``, besides those of handlers."""

_OPTIMIZATION = re.compile(r"lr(_\d+)?|grad_norm")
_SPEEDS: dict[str, str | None] = {
    "steps_per_second": "1/s",
    "samples_per_second": "1/s",
    "items_per_second": "1/s",
    "data_wait": None,
    "remaining_seconds": "s",
    "optimizer_step_seconds": "s",
    "gc_collected": None,
    "gc_seconds": "s",
    "gc_pause_seconds": "s",
}
_MEMORY = re.compile(
    r"(minibatch|epoch|experience|run|stream)_max_(ram|device_(allocated|reserved))_mib"
    r"|cleared_cache_mib"
)
_BEST_BY_MODE: dict[Any, Best] = {"min": "lowest", "max": "highest"}
_LOWEST = {"loss", "losses", "error", "errors", "perplexity", "ppl", "nll", "mse", "mae", "rmse"}
_HIGHEST = {"accuracy", "acc", "auc", "f1", "precision", "recall"}


class MetricKinds:
    """Knows the metrics of a run by its handlers, and others by their names."""

    def __init__(self) -> None:
        self._time_prefixes = {"time/"}
        self._growth_prefixes = {"growth/"}
        self._memory = set[str]()  # names that the user has chosen
        self._modes: dict[str, Best] = {}

    def add_handlers(self, handlers: Iterable[Mapping[str, Any]]) -> None:
        """Notes the handlers of a run, as its record describes them."""
        for handler in handlers:
            kind, prefix = str(handler.get("type")), handler.get("prefix")
            if kind == "TimeLedger" and isinstance(prefix, str):
                self._time_prefixes.add(prefix)
            elif kind == "GrowthWatch" and isinstance(prefix, str) and prefix:
                self._growth_prefixes.add(prefix)
            elif kind.endswith("MaxRAM") and isinstance(handler.get("name"), str):
                self._memory.add(handler["name"])
            self.add_mode(handler.get("metric"), handler.get("mode"))

    def add_mode(self, metric: Any, mode: Any) -> None:
        """Notes which values of a metric are better: "max" or "min"."""
        if isinstance(metric, str) and isinstance(mode, str) and mode in _BEST_BY_MODE:
            self._modes[metric] = _BEST_BY_MODE[mode]

    def time_part(self, metric: str) -> str | None:
        """Returns the part of ``TimeLedger`` whose share the metric is; None for other metrics."""
        for prefix in self._time_prefixes:
            part = metric.removeprefix(prefix)
            is_part = part in TIME_PARTS or part.startswith("handlers/")
            if is_part and metric.startswith(prefix):
                return part
        return None

    def section_of(self, metric: str) -> tuple[Section, str | None]:
        """Returns the section of the chart of a metric, and the unit of its values."""
        unit = "MiB" if metric.endswith("_mib") else None
        if metric.startswith(tuple(self._growth_prefixes)):
            return "growth", unit
        if metric in self._memory or _MEMORY.fullmatch(metric):
            return "memory", "MiB"
        if metric in _SPEEDS:
            return "speed", _SPEEDS[metric]
        return ("optimization" if _OPTIMIZATION.fullmatch(metric) else "metrics"), unit

    def best_of(self, metric: str) -> Best | None:
        """Returns which value of a metric is the best; None if this is not known."""
        if metric in self._modes:
            return self._modes[metric]
        words = {*re.split(r"[^a-z0-9]+", metric.lower())}
        is_lowest, is_highest = bool(words & _LOWEST), bool(words & _HIGHEST)
        if is_lowest == is_highest:
            return None
        return "lowest" if is_lowest else "highest"
