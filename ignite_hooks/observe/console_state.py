"""The state of a Console: it is kept from one run to the next, and in checkpoints."""

from collections.abc import Iterable
from collections.abc import Mapping
from math import isnan
from typing import Any

from ignite.engine import Engine

from ignite_hooks.observe.reports import Reports

__all__ = ["ConsoleState"]


class ConsoleState:
    """The best value, the means of the losses, and the values that no row has shown yet.

    Attributes:
        best: the best value as a dict with "name", "value", "step" and "epoch"; None before it.
        reports: the reports of the present run; None between two runs.
        loss_sums: the sums of the Console's own MeanLoss between two runs; None before the first.
        description: the lines that were shown at the start of the last run.
    """

    def __init__(self) -> None:
        self.best: dict[str, Any] | None = None
        self.reports: Reports | None = None
        self.loss_sums: dict[str, Any] | None = None
        self.description: list[str] = []
        self._losses: dict[str, _Mean] = {}
        # The reports of the losses that are in the means already; None before the first run.
        self._seen: dict[str, Any] | None = None
        self._reports_state: Mapping[str, Any] = {"unreported": []}

    def begin_run(self, engine: Engine, loss_names: Iterable[str], *, is_new: bool) -> None:
        """Prepares a run; forgets an earlier run if it is a new one.

        Args:
            engine: the engine.
            loss_names: the names of the metrics that a MeanLoss writes.
            is_new: whether the run does not continue an earlier one.
        """
        if is_new:
            self.best, self._losses, self._reports_state = None, {}, {"unreported": []}
        if is_new or self._seen is None:
            metrics = engine.state.metrics
            self._seen = {name: metrics.get(name) for name in loss_names}
        if self.reports is not None:
            self.reports.load_state_dict(self._reports_state)

    def end_run(self) -> None:
        """Keeps which values were not shown, for a run that continues this one."""
        self._update_reports_state()
        self.reports = None

    def state_dict(self) -> dict[str, Any]:
        """Returns the best value, the means, and the names of the values that were not shown."""
        self._update_reports_state()
        losses = {name: vars(mean).copy() for name, mean in self._losses.items()}
        return {"best": self.best, "losses": losses, "reports": self._reports_state}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what ``state_dict`` has returned."""
        self.best = state_dict["best"]
        self._losses = {name: _Mean(**each) for name, each in state_dict["losses"].items()}
        self._reports_state = state_dict["reports"]
        if self.reports is not None:
            self.reports.load_state_dict(self._reports_state)

    def _update_reports_state(self) -> None:
        if self.reports is not None:
            self._reports_state = self.reports.state_dict()

    def has_new_loss(self, metrics: Mapping[str, Any]) -> bool:
        """Returns whether a MeanLoss has made a report that is not in the means yet."""
        assert self._seen is not None
        # On the hot path: `any` would take 0.5 µs more.
        for name, seen in self._seen.items():  # noqa: SIM110
            if metrics.get(name) is not seen:
                return True
        return False

    def add_losses(self, metrics: Mapping[str, Any], step: int) -> None:
        """Adds new reports of MeanLoss to the means.

        Args:
            metrics: ``state.metrics``.
            step: the number of steps.
        """
        assert self._seen is not None
        for name, seen in self._seen.items():
            value = metrics.get(name)
            if value is not None and value is not seen:
                self._losses.setdefault(name, _Mean()).add(float(value), step)
            self._seen[name] = value

    @property
    def has_means(self) -> bool:
        """True if there is a mean that was not taken."""
        return any(mean.weight for mean in self._losses.values())

    def take_means(self) -> dict[str, float]:
        """Returns the means of the losses since the last call, by name."""
        found = {name: mean.take() for name, mean in self._losses.items()}
        return {name: mean for name, mean in found.items() if mean is not None}

    def note_best(self, name: str, value: Any, mode: str, engine: Engine, step: int) -> bool:
        """Notes a value if it is better than all before it, and returns whether it is.

        Args:
            name: the name of the metric.
            value: its value. A value that is no number, or NaN, is never the best.
            mode: "max" or "min".
            engine: the engine.
            step: the number of steps.
        """
        if isinstance(value, bool) or not isinstance(value, int | float) or isnan(value):
            return False
        sign, best = 1 if mode == "max" else -1, self.best
        if best is not None and best["name"] == name and sign * value <= sign * best["value"]:
            return False
        self.best = {"name": name, "value": value, "step": step, "epoch": engine.state.epoch}
        return True


class _Mean:
    """The mean of the reports of a loss, each weighted by the steps since the report before it."""

    def __init__(self, total: float = 0.0, weight: int = 0, step: int = 0) -> None:
        self.total = total
        self.weight = weight
        self.step = step  # of the last report

    def add(self, value: float, step: int) -> None:
        """Adds a report that was made at ``step``."""
        steps = max(1, step - self.step)
        self.total += value * steps
        self.weight += steps
        self.step = step

    def take(self) -> float | None:
        """Returns the mean, or None if nothing was added, and starts again."""
        mean = self.total / self.weight if self.weight else None
        self.total, self.weight = 0.0, 0
        return mean
