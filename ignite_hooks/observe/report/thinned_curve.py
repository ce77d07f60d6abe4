"""A curve of any length that is thinned while it is read."""

from math import isfinite
from typing import Any
from typing import NamedTuple

from ignite_hooks.observe.record_lines import number_in
from ignite_hooks.observe.report.page_data import Curve
from ignite_hooks.observe.report.positions import Epochs
from ignite_hooks.observe.report.positions import LinePosition

__all__ = ["PointBudget", "ThinnedCurve"]

MAX_POINTS = 1000
"""The largest number of points in a curve: more than a screen can show."""

MIN_POINTS = 16

ALL_POINTS = 31_000
"""The number of points in all curves together. A point takes about 70 bytes on a page."""


class PointBudget:
    """The number of points that each curve of a page may have.

    Attributes:
        curves: the number of curves.
        points: the number of points for each of them.
    """

    def __init__(self) -> None:
        self.curves = 0
        self.points = MAX_POINTS

    def add_curve(self) -> None:
        """Counts one more curve."""
        self.curves += 1
        self.points = max(MIN_POINTS, min(MAX_POINTS, ALL_POINTS // self.curves))


class _Point(NamedTuple):
    """A point of a curve: one report, or several in a row.

    Attributes:
        at: the position of the last of the reports.
        reports: the number of reports.
        finite: the number of those that are finite.
        mean: the mean of the finite values.
        low: the lowest finite value.
        high: the highest finite value.
    """

    at: LinePosition
    reports: int
    finite: int
    mean: float
    low: float
    high: float


class ThinnedCurve:
    """The values of a metric as points, of which each stands for a number of reports in a row.

    If there are too many points, each two become one, and from then on a point takes twice as many
    reports. The first and the last point stay single reports.

    Args:
        budget: has the number of points that the curve may have.

    Attributes:
        lowest: the lowest finite value, and the position of its report; None before the first.
        highest: the same for the highest value.
        last: the last value.
        reports: the number of values.
        not_finite: the number of values that are NaN or infinite.
    """

    def __init__(self, budget: PointBudget) -> None:
        self._budget = budget
        self._width = 1  # the number of reports for a point
        self._points: list[_Point] = []
        # The reports after the last point. The newest is never part of a point.
        self._values: list[float] = []
        self._positions: list[LinePosition] = []
        self.lowest: tuple[float, LinePosition] | None = None
        self.highest: tuple[float, LinePosition] | None = None
        self.reports = self.not_finite = 0
        self._end: _Point | None = None  # set by ``close``

    @property
    def last(self) -> float | None:
        """The last value; None if it is not finite."""
        return self._end.mean if self._end is not None and self._end.finite else None

    def add(self, value: Any, position: LinePosition) -> None:
        """Adds a value in a line. A value that is no number is left out."""
        number = value if type(value) is float else number_in(value)
        if number is None:
            return
        values = self._values
        values.append(number)
        self._positions.append(position)
        if len(values) > self._width:
            self._add_point(self._width)

    def close(self) -> None:
        """Ends the curve, after its last value."""
        if len(self._values) > 1:
            self._add_point(len(self._values) - 1)
        self._end = self._point_of(self._values, self._positions)

    def thin(self) -> None:
        """Reduces the points to those that the budget allows."""
        while len(self._points) >= self._budget.points:
            first, rest = self._points[:1], self._points[1:]
            pairs = zip(rest[::2], rest[1::2], strict=False)
            odd = rest[-1:] if len(rest) % 2 else []
            self._points = [*first, *(_merged(one, other) for one, other in pairs), *odd]
            self._width *= 2

    def as_data(self, metric: str, epochs: Epochs, *, is_validation: bool) -> Curve:
        """Returns the curve of a page.

        Args:
            metric: the name of the metric.
            epochs: the epochs of the run.
            is_validation: whether a validation has measured the metric.
        """
        assert self._end is not None
        points = [*self._points, self._end]
        is_thinned = len(points) < self.reports
        return {
            "metric": metric,
            "is_validation": is_validation,
            "step": [each.at.step for each in points],
            "epoch": [epochs.complete(each.at.iteration) for each in points],
            "seconds": [round(each.at.seconds, 3) for each in points],
            "mean": [_short(each.mean, each) for each in points],
            "low": [_short(each.low, each) for each in points] if is_thinned else None,
            "high": [_short(each.high, each) for each in points] if is_thinned else None,
            "count": [each.reports for each in points] if is_thinned else None,
            "lost": [index for index, each in enumerate(points) if each.finite < each.reports],
        }

    def _add_point(self, count: int) -> None:
        """Makes a point of the oldest ``count`` reports."""
        self._points.append(self._point_of(self._values[:count], self._positions[:count]))
        del self._values[:count], self._positions[:count]
        self.thin()

    def _point_of(self, values: list[float], positions: list[LinePosition]) -> _Point:
        """Returns a point, and notes its values in the attributes."""
        finite = values if isfinite(sum(values)) else list(filter(isfinite, values))
        low = high = mean = 0.0
        if finite:
            low, high = min(finite), max(finite)
            mean = sum(finite) / len(finite)
            if not isfinite(mean):  # the sum is too large for a float
                mean = sum(each / len(finite) for each in finite)
            if self.lowest is None or low < self.lowest[0]:
                self.lowest = low, positions[values.index(low)]
            if self.highest is None or high > self.highest[0]:
                self.highest = high, positions[values.index(high)]
        self.reports += len(values)
        self.not_finite += len(values) - len(finite)
        return _Point(positions[-1], len(values), len(finite), mean, low, high)


def _merged(one: _Point, other: _Point) -> _Point:
    finite = one.finite + other.finite
    if not (one.finite and other.finite):
        _, _, _, mean, low, high = one if one.finite else other
    else:
        share = other.finite / finite
        mean = one.mean * (1 - share) + other.mean * share
        low, high = min(one.low, other.low), max(one.high, other.high)
    return _Point(other.at, one.reports + other.reports, finite, mean, low, high)


def _short(value: float, point: _Point) -> float | None:
    """Returns a value with eight digits; None if the point has no finite value."""
    return float(f"{value:.8g}") if point.finite else None
