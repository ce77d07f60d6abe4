"""The progress of a run: its state, its share of the limits, and the time left."""

from collections import deque
from collections.abc import Iterator
from typing import Any

from ignite_hooks.observe.report.page_data import Status
from ignite_hooks.observe.report.positions import Epochs
from ignite_hooks.observe.report.positions import LinePosition
from ignite_hooks.observe.report.positions import is_small_count
from ignite_hooks.observe.value_text import one_line

__all__ = ["Progress", "end_text", "short_line"]

MAX_TEXT = 300
"""The length of a text in one line, after which it is cut."""

RECENT_REPORTS = 1000
"""The number of last reports that give the present speed, with the pauses between them."""

_LIMITS = ("max_epochs", "max_iters", "max_steps")
# A run that one of these has ended is done. A plain Ignite engine gives no reason.
_FINISHED = {*_LIMITS, "EarlyStopping", None}


class Progress:
    """The progress of a run by the lines of its record.

    Attributes:
        limits: the limits of the run.
        last: the position of the last line.
        error: the line of the error that ended the run; None if the run has not failed, or was
            continued.
    """

    def __init__(self) -> None:
        self.limits: dict[str, Any] = {}
        self.last = LinePosition(0, 0, 0.0, None)
        self.error: dict[str, Any] | None = None
        self._stop: dict[str, Any] | None = None
        self._has_begun = False
        self._recent: deque[LinePosition] = deque(maxlen=RECENT_REPORTS)

    def begin(self, limits: dict[str, Any], at: LinePosition) -> None:
        """Notes that the run begins, or continues with other limits and perhaps another speed."""
        self.limits = {name: each for name, each in limits.items() if is_small_count(each)}
        self._recent.clear()
        self.continue_at(at)

    def continue_at(self, at: LinePosition) -> None:
        """Notes that the run is in progress."""
        self._has_begun, self.error, self._stop = True, None, None
        self._recent.append(at)

    def end(self, line: dict[str, Any]) -> None:
        """Notes the line of a stop or an error."""
        self._has_begun = True
        self.error, self._stop = (line, None) if line["event"] == "error" else (None, line)

    def status(self, epochs: Epochs) -> Status:
        """Returns the status on a page."""
        if not self._has_begun:
            return {"state": "empty", "text": "not begun", "done": None, "seconds_left": None}
        shares = [done / limit for done, limit in self._reached(epochs) if limit]
        done = min(1.0, max(shares)) if shares else None
        step = f"step {self.last.step:,}"
        if self.error is not None:
            text = short_line(f"failed at {step}: {end_text(self.error)}")
            return {"state": "failed", "text": text, "done": done, "seconds_left": None}
        if self._stop is not None:
            return self._status_of_stop(self._stop.get("reason"), step, done)
        left = self._seconds_left(epochs)
        return {"state": "running", "text": f"running, {step}", "done": done, "seconds_left": left}

    def _status_of_stop(self, reason: Any, step: str, done: float | None) -> Status:
        if reason == "exception":
            return {
                "state": "failed",
                "text": f"failed at {step}: a handler of EXCEPTION_RAISED has ended the run",
                "done": done,
                "seconds_left": None,
            }
        # A reason may name the rank that has asked for the stop.
        reason = reason.partition(" on rank ")[0] if isinstance(reason, str) else None
        is_finished = reason in _FINISHED
        text = f"{'finished' if is_finished else 'stopped'} at {step}"
        return {
            "state": "finished" if is_finished else "stopped",
            "text": short_line(text if reason is None else f"{text}: {reason}"),
            "done": 1.0 if is_finished else done,
            "seconds_left": None,
        }

    def _reached(self, epochs: Epochs) -> Iterator[tuple[float, int]]:
        """Yields the present value and the limit of each counter that has a limit."""
        last, limits = self.last, self.limits
        if "max_steps" in limits:
            yield last.step, limits["max_steps"]
        if "max_iters" in limits:
            yield last.iteration, limits["max_iters"]
        if "max_epochs" in limits:
            yield epochs.complete(last.iteration), limits["max_epochs"]

    def _seconds_left(self, epochs: Epochs) -> float | None:
        """Returns the training time until the first limit, at the recent speed."""
        if not self._recent:
            return None
        first, last = self._recent[0], self.last
        seconds, iterations = last.seconds - first.seconds, last.iteration - first.iteration
        if seconds <= 0 or iterations <= 0:
            return None
        limits, left = self.limits, []
        if "max_steps" in limits and last.step > first.step:
            per_step = seconds / (last.step - first.step)
            left.append((limits["max_steps"] - last.step) * per_step)
        if "max_iters" in limits:
            left.append((limits["max_iters"] - last.iteration) * seconds / iterations)
        if "max_epochs" in limits:
            gone = epochs.complete(last.iteration) - epochs.complete(first.iteration)
            if gone > 0:
                to_come = limits["max_epochs"] - epochs.complete(last.iteration)
                left.append(to_come * seconds / gone)
        return round(max(0.0, min(left)), 1) if left else None


def end_text(line: dict[str, Any]) -> str:
    """Returns the text of the line of an error or a stop: the error, or the reason of the stop."""
    if line.get("event") != "error":
        return short_line(str(line.get("reason")))
    message = line.get("message")
    return short_line(f"{line.get('type')}: {message}" if message else str(line.get("type")))


def short_line(text: str) -> str:
    """Returns a text as one line of at most ``MAX_TEXT`` characters."""
    text = one_line(text[: MAX_TEXT + 1]).strip()
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
