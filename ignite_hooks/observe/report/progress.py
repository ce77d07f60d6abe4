"""The progress of a run: its state, its share of the limits, and the time left."""

from collections import deque
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

_FINISHED = {"max_epochs", "max_iters", "max_steps", "EarlyStopping"}
"""The reasons of a stop after which a run is done."""


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
        self.error, self._stop = (line, None) if is_failure(line) else (None, line)

    def status(self, epochs: Epochs) -> Status:
        """Returns the status on a page."""
        if not self._has_begun:
            return {"state": "empty", "text": "not begun", "done": None, "seconds_left": None}
        counts, limits = self._counts(self.last, epochs), self._limits_ahead(epochs)
        done = max((counts[name] / limit for name, limit in limits.items()), default=None)
        step = f"step {self.last.step:,}"
        if self.error is not None:
            text = short_line(f"failed at {step}: {end_text(self.error)}")
            return {"state": "failed", "text": text, "done": done, "seconds_left": None}
        if self._stop is not None:
            reason = end_text(self._stop) if "type" in self._stop else self._stop.get("reason")
            return self._status_of_stop(reason, step, done)
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
        # A plain Ignite engine gives no reason.
        is_finished = done in (None, 1.0) if reason is None else reason in _FINISHED
        text = f"{'finished' if is_finished else 'stopped'} at {step}"
        return {
            "state": "finished" if is_finished else "stopped",
            "text": short_line(text if reason is None else f"{text}: {reason}"),
            "done": 1.0 if is_finished else done,
            "seconds_left": None,
        }

    def _counts(self, at: LinePosition, epochs: Epochs) -> dict[str, float]:
        """Returns what each limit counts, up to a position."""
        return {
            "max_epochs": epochs.complete(at.iteration),
            "max_iters": at.iteration,
            "max_steps": at.step,
        }

    def _limits_ahead(self, epochs: Epochs) -> dict[str, int]:
        """Returns the limits that the run has not passed.

        A run passes a limit only if a handler has changed the limit since the run began.
        """
        counts = self._counts(self.last, epochs)
        limits = {name: self.limits.get(name) or 0 for name in counts}
        return {name: limit for name, limit in limits.items() if limit and counts[name] <= limit}

    def _seconds_left(self, epochs: Epochs) -> float | None:
        """Returns the training time until the first limit, at the recent speed."""
        if not self._recent:
            return None
        before, counts = self._counts(self._recent[0], epochs), self._counts(self.last, epochs)
        seconds = self.last.seconds - self._recent[0].seconds
        left = [
            (limit - counts[name]) * seconds / (counts[name] - before[name])
            for name, limit in self._limits_ahead(epochs).items()
            if counts[name] > before[name]
        ]
        return round(min(left), 1) if left and seconds > 0 else None


def is_failure(line: dict[str, Any]) -> bool:
    """Returns whether the line of an error or a stop tells of a failure. Ctrl-C is a stop."""
    return line.get("event") == "error" and line.get("type") != KeyboardInterrupt.__name__


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
