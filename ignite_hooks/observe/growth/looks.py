"""The last looks at a process: the time of each look, and the values of many quantities."""

from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ignite_hooks.observe.growth.trend import MAX_LOOKS

__all__ = ["Looks"]

_TIME = np.dtype(
    [
        ("number", np.int64),  # of looks before this one
        ("step", np.int64),  # completed steps
        ("iteration", np.int64),  # completed iterations
        ("epoch", np.int64),
        ("is_epoch_start", np.bool_),  # whether the look came before the first batch of the epoch
        ("seconds", np.float64),  # by the clock of the run
        ("collections", np.int64),  # full garbage collections in this process
    ]
)
_ROWS = 1024


class Looks:
    """The last ``MAX_LOOKS`` looks, the oldest first.

    Times and values are in arrays, which the garbage collector does not track. So a look does not
    count the looks before it.

    Attributes:
        times: the times of the looks, an array with the columns of ``_TIME``.
    """

    def __init__(self) -> None:
        self.times: NDArray[Any] = np.zeros(0, _TIME)
        self._rows: dict[str, int] = {}
        self._values = np.zeros((_ROWS, MAX_LOOKS))
        self._free = list(range(_ROWS))

    def add(
        self, time: tuple[float, ...], values: Mapping[str, float], before: Mapping[str, float]
    ) -> None:
        """Adds a look.

        A quantity without a value is zero at this look, and its earlier values are forgotten.

        Args:
            time: the values of the columns of ``times``.
            values: the value of each quantity that is not zero.
            before: the values at the look before, for quantities that have only this earlier value,
                because they were not recorded then. All other new quantities were zero before.
        """
        if len(self.times) == MAX_LOOKS:
            self._values[:, :-1] = self._values[:, 1:]
            self.times = self.times[1:]
        count = len(self.times)
        for name in self._rows.keys() - values.keys():
            self._free.append(self._rows.pop(name))
        for name, value in values.items():
            row = self._rows.get(name)
            if row is None:
                row = self._new_row(name)
                if name in before:
                    self._values[row, :count] = np.nan
                    self._values[row, count - 1] = before[name]
            self._values[row, count] = value
        # Last, so that a look that an exception breaks off does not count.
        self.times = np.append(self.times, np.array([time], _TIME))

    def _new_row(self, name: str) -> int:
        if not self._free:
            size = len(self._values)
            self._values = np.concatenate([self._values, np.zeros_like(self._values)])
            self._free = list(range(size, 2 * size))
        row = self._rows[name] = self._free.pop()
        self._values[row] = 0.0
        return row

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def of(self, name: str) -> NDArray[np.float64]:
        """Returns the values of one quantity."""
        return self._values[self._rows[name], : len(self.times)]

    def risen(self) -> Iterator[tuple[str, NDArray[np.float64]]]:
        """Yields (name, values) of each quantity whose last value is larger than its first one."""
        values = self._values[:, : len(self.times)]
        with np.errstate(invalid="ignore"):
            has_risen = ~(values[:, -1] <= values[:, 0])  # True also if the first value is unknown
        for name, row in list(self._rows.items()):
            if has_risen[row]:
                yield name, values[row]
