"""The state of a Console: it is kept from one run to the next, and in checkpoints."""

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
        self._reports_state: Mapping[str, Any] = {"unreported": []}

    def begin_run(self, reports: Reports) -> None:
        """Takes the reports of a run, and tells them which values no row has shown yet."""
        self.reports = reports
        reports.load_state_dict(self._reports_state)

    def forget_run(self) -> None:
        """Forgets an earlier run, which the present run does not continue."""
        self.best, self._losses, self._reports_state = None, {}, {"unreported": []}
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

    def add_losses(self, means: Mapping[str, float], iterations: int) -> None:
        """Adds a report of a MeanLoss to the means.

        Args:
            means: the reported means, by name.
            iterations: the number of iterations in the report.
        """
        for name, mean in means.items():
            self._losses.setdefault(name, _Mean()).add(mean, iterations)

    @property
    def has_means(self) -> bool:
        """True if there is a mean that was not taken."""
        return any(mean.weight for mean in self._losses.values())

    def take_means(self) -> dict[str, float]:
        """Returns the means of the losses since the last call, by name."""
        found = {name: mean.take() for name, mean in self._losses.items()}
        return {name: mean for name, mean in found.items() if mean is not None}

    def note_best(self, name: str, value: Any, mode: str, engine: Engine, step: int) -> bool:
        """Notes a value if no earlier value is better, and returns whether it was noted.

        Of two equal values the later one is the best, as of the checkpoints.

        Args:
            name: the name of the metric.
            value: its value. A value that is no number, or NaN, is never the best.
            mode: "max" or "min".
            engine: the engine.
            step: the number of steps.
        """
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if isinstance(value, float) and isnan(value):
            return False
        sign, best = 1 if mode == "max" else -1, self.best
        if best is not None and best["name"] == name and sign * value < sign * best["value"]:
            return False
        self.best = {"name": name, "value": value, "step": step, "epoch": engine.state.epoch}
        return True


class _Mean:
    """The mean of the reports of a loss, each weighted by its number of iterations."""

    def __init__(self, total: float = 0.0, weight: int = 0) -> None:
        self.total = total
        self.weight = weight

    def add(self, mean: float, iterations: int) -> None:
        """Adds a report."""
        self.total += mean * iterations
        self.weight += iterations

    def take(self) -> float | None:
        """Returns the mean, or None if nothing was added, and starts again."""
        mean = self.total / self.weight if self.weight else None
        self.total, self.weight = 0.0, 0
        return mean
