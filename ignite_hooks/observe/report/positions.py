"""Positions of the lines of a record, and the epochs that belong to them."""

from bisect import bisect_right
from typing import Any
from typing import NamedTuple
from typing import TypeGuard

from ignite_hooks.observe.record import parsed_time
from ignite_hooks.observe.report.page_data import Position

__all__ = ["Epochs", "LinePosition", "is_small_count", "next_position"]

MAX_ENDS = 100_000
"""The number of ends of epochs that ``Epochs`` keeps; it drops every other one of more."""


class LinePosition(NamedTuple):
    """The position in a line, without the fraction of the epoch, which is known only later."""

    step: int
    iteration: int
    seconds: float
    time: str | None


def next_position(content: dict[str, Any], last: LinePosition) -> LinePosition:
    """Returns the position in a line; a number that the line lacks is that of ``last``."""
    get = content.get
    step, iteration, seconds, time = get("step"), get("iteration"), get("seconds"), get("time")
    # The checks are written out, because they are made for each line.
    return LinePosition(
        step if type(step) is int and 0 <= step < 2**53 else last.step,
        iteration if type(iteration) is int and 0 <= iteration < 2**53 else last.iteration,
        seconds if type(seconds) is float and 0 <= seconds < 2**53 else last.seconds,
        time if type(time) is str and len(time) < 40 else last.time,
    )


def is_small_count(value: Any) -> TypeGuard[int]:
    """Returns whether ``value`` is an integer from 0 that JavaScript can hold exactly."""
    return type(value) is int and 0 <= value < 2**53


class Epochs:
    """Converts iterations to epochs with a fraction.

    The ends of epochs are those of the lines of a record. The last epoch has no end yet: its length
    is that in the limits of the run, or else that of the epoch before.

    Attributes:
        length: the number of iterations in an epoch by the limits of the run; None if not known.
    """

    def __init__(self) -> None:
        self.length: int | None = None
        # Two sorted lists of equal length: the iterations after which epochs have ended.
        self._iterations, self._epochs = [0], [0]
        self._last: int | None = None

    def add_line(self, epoch: Any, iteration: int, *, is_end: bool) -> None:
        """Notes the epoch of a line.

        Args:
            epoch: the number of the epoch, counted from 1.
            iteration: the number of iterations.
            is_end: whether the epoch has ended.
        """
        if is_small_count(epoch):
            if is_end:
                self._add_end(epoch, iteration)
            elif epoch - 1 > self._epochs[-1]:  # an epoch has ended without a line
                self._add_end(epoch - 1, self._start_of(epoch, iteration))
        self._last = iteration

    def complete(self, iteration: int) -> float:
        """Returns the number of complete epochs after an iteration, with a fraction."""
        index = bisect_right(self._iterations, iteration) - 1
        start, epoch = self._iterations[index], self._epochs[index]
        if index + 1 < len(self._epochs):
            length = self._iterations[index + 1] - start
            epochs = self._epochs[index + 1] - epoch
            return round(epoch + epochs * (iteration - start) / length, 4)
        last = self.length or self._last_length()
        return round(epoch + min(1.0, (iteration - start) / last), 4) if last else float(epoch)

    def position(self, at: LinePosition) -> Position:
        """Returns a position with its epoch."""
        return {
            "step": at.step,
            "epoch": self.complete(at.iteration),
            "iteration": at.iteration,
            "seconds": at.seconds,
            "time": None if parsed_time(at.time) is None else at.time,
        }

    def _start_of(self, epoch: int, iteration: int) -> int:
        """Returns the iteration after which an epoch has begun, if no line says so."""
        if self._last is not None:
            return self._last
        return iteration if self.length is None else min(iteration, (epoch - 1) * self.length)

    def _add_end(self, epoch: int, iteration: int) -> None:
        # A record that goes back, because lines could not be cut off, has later ends already.
        while len(self._epochs) > 1 and (
            self._iterations[-1] >= iteration or self._epochs[-1] >= epoch
        ):
            del self._iterations[-1], self._epochs[-1]
        if iteration > 0 and epoch > 0:
            self._iterations.append(iteration)
            self._epochs.append(epoch)
        if len(self._epochs) > MAX_ENDS:
            del self._iterations[1:-1:2], self._epochs[1:-1:2]

    def _last_length(self) -> float:
        """Returns the length of the epoch before the last; 0.0 in the first epoch."""
        if len(self._epochs) == 1:
            return 0.0
        iterations = self._iterations[-1] - self._iterations[-2]
        return iterations / (self._epochs[-1] - self._epochs[-2])
