"""Decides whether a quantity grows over a run, from one value for each look at the process.

The test looks at the *floor* of the values: for each look, the smallest value from this look on. A
quantity that is taken and given back, such as the memory of a validation or the predictions of an
epoch, raises the values, but not the floor. A leak raises the floor.

The rule is the test of Foster and Stuart for a trend, on the values in reverse order [1]_. It
counts *records*. A value is a record if all later values are larger. If the values had no trend,
the value at the k-th place from the end would be a record with the chance 1/k, independently of the
others, whatever their distribution is. So the chance of a given number of records is known exactly.
Equal values make no records.

The rate is the median of the slopes between all pairs of floors, which outliers do not change
(Theil and Sen, [2]_).

.. [1] F. G. Foster and A. Stuart, Distribution-free tests in time-series based on the breaking of
   records, Journal of the Royal Statistical Society B 16 (1954).
.. [2] P. K. Sen, Estimates of the regression coefficient based on Kendall's tau, Journal of the
   American Statistical Association 63 (1968).
"""

from statistics import median

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_CHANCE", "MAX_LOOKS", "chance_of_records", "growth_rate"]

MAX_CHANCE = 1e-6
"""A growth is reported only if its chance without a trend is at most this.

A look examines hundreds of quantities, and a run makes thousands of looks. Ten looks are the
fewest that can reach this chance: 1 / 10! is 2.8e-7.
"""

MAX_LOOKS = 40
"""The largest number of looks that are examined together."""

# A cache that fills grows ever more slowly. In each third of the looks, a leak rises by at least
# this share of its mean rise per third.
_MIN_SHARE = 0.25
# The floor at the last looks is not certain yet: a peak is still in it. These looks are left out of
# the rate.
_UNCERTAIN_LOOKS = 2


def growth_rate(
    steps: NDArray[np.float64], values: NDArray[np.float64], max_chance: float = MAX_CHANCE
) -> float | None:
    """Returns the growth per step if the values grow steadily, otherwise None.

    Args:
        steps: the number of the step at each look.
        values: the value at each look.
        max_chance: the largest chance that values without a trend have as many records.
    """
    if len(values) <= _UNCERTAIN_LOOKS + 2:
        return None
    floors = np.minimum.accumulate(values[::-1])[::-1]
    records = 1 + int(np.count_nonzero(values[:-1] < floors[1:]))
    if chance_of_records(records, len(values)) > max_chance:
        return None
    steps, floors = steps[:-_UNCERTAIN_LOOKS], floors[:-_UNCERTAIN_LOOKS]
    corners = floors[np.linspace(0, len(floors) - 1, 4).round().astype(int)]
    rises = np.diff(corners)
    if rises.min() <= 0 or rises.min() < _MIN_SHARE * rises.mean():
        return None
    earlier, later = np.triu_indices(len(floors), k=1)
    is_later = steps[later] > steps[earlier]
    earlier, later = earlier[is_later], later[is_later]
    slopes = (floors[later] - floors[earlier]) / (steps[later] - steps[earlier])
    # `numpy.median` would import numpy.ma on first use, and a look would count its objects.
    return median(slopes.tolist()) or None


def chance_of_records(records: int, count: int) -> float:
    """Returns the chance that ``count`` values without a trend have so many records, or more."""
    return float(_CHANCES[count, records:].sum())


def _make_chances() -> NDArray[np.float64]:
    """Returns the chance of each number of records (columns) among each number of values (rows)."""
    chances = np.zeros((MAX_LOOKS + 1, MAX_LOOKS + 1))
    chances[0, 0] = 1.0
    for count in range(1, MAX_LOOKS + 1):
        before = chances[count - 1]
        chances[count] = before * (1 - 1 / count)
        chances[count, 1:] += before[:-1] / count
    return chances


_CHANCES = _make_chances()
