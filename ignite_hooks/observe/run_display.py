"""Shows one call of ``engine.run``: its start, a bar, a table of its metrics, and its end."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from textwrap import TextWrapper
from time import perf_counter
from typing import Any

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.engine import is_running
from ignite_hooks.core.engine import set_turn
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.rules import did_you_mean
from ignite_hooks.core.training_engine import Turn
from ignite_hooks.core.training_engine import is_trainer
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.events import TrainEvents
from ignite_hooks.observe.console_state import ConsoleState
from ignite_hooks.observe.mean_loss import MeanLoss
from ignite_hooks.observe.mean_loss import listen_to_reports
from ignite_hooks.observe.remaining import steps_left
from ignite_hooks.observe.reports import Report
from ignite_hooks.observe.reports import Reports
from ignite_hooks.observe.run_row import Ranking
from ignite_hooks.observe.run_row import cells_of
from ignite_hooks.observe.run_row import names_of_results
from ignite_hooks.observe.steps import Steps
from ignite_hooks.observe.summary import summary_of
from ignite_hooks.observe.table import Cell
from ignite_hooks.observe.table import Table
from ignite_hooks.observe.value_text import duration_text
from ignite_hooks.observe.value_text import number_text
from ignite_hooks.observe.value_text import one_line
from ignite_hooks.observe.value_text import value_text

__all__ = ["RunDisplay"]

_REFRESH_SECONDS = 0.1  # the shortest time from one drawing of the bar to the next
_BAR_SPACE = 15  # the percentage and a bar of 7 characters
_STEPS_BEFORE_SPEED = 3  # Throughput reports no remaining time earlier
_LONGEST_REASON = 100  # characters of the message of an exception


class RunDisplay:
    """Shows one call of ``engine.run``.

    Args:
        attachment: the handlers of the display are attached with it.
        state: what is kept from run to run.
        stream: where to show the run.
        ranking: the metric whose best value is marked.
        every_seconds: the time from one line to the next, if the stream can show no bar.
    """

    def __init__(
        self,
        attachment: Attachment,
        state: ConsoleState,
        stream: Any,
        ranking: Ranking,
        every_seconds: float,
    ) -> None:
        # Imported here, because the module imports tqdm, an optional package.
        from ignite_hooks.observe.screen import Screen

        engine = attachment.engine
        self._state, self._ranking = state, ranking
        self._screen, self._table = Screen(stream), Table()
        self._steps = Steps(attachment, 1)
        self._unit = "iteration" if self._steps.optimizer_step is None else "step"
        self._interval = _REFRESH_SECONDS if self._screen.has_bar else every_seconds
        self._next_draw = 0.0
        self._began: float | None = None  # when the run began; None if it has not begun
        self._first_step: tuple[int, float] | None = None  # the number of this step, and when
        self._reported_left: tuple[float, float] | None = None  # by Throughput, and when
        # A value of an earlier run, or of a checkpoint, is out of date.
        self._last_reported_left = engine.state.metrics.get("remaining_seconds")
        self._is_validating = self._is_epoch_ending = self._is_terminated = False
        self._results_at_epoch_end: dict[str, Any] = {}  # of validations, for the row of the epoch
        writers = attached_handlers(engine, MeanLoss)
        self._loss_names = tuple(name for each in writers for name in each.names())
        for each in writers:
            attachment.on_removal(listen_to_reports(each, state.add_losses))
        state.begin_run(Reports(attachment, None, self._take_report))
        self._attach(attachment)

    def _attach(self, attachment: Attachment) -> None:
        on = attachment.on
        on(Events.STARTED, self._start, first=True, turn=Turn.REPORTS)
        on(Events.EPOCH_COMPLETED, self._begin_epoch_end, first=True, turn=Turn.NOTE)
        on(TrainEvents.VALIDATION_STARTED, self._begin_validation)
        on(TrainEvents.VALIDATION_COMPLETED, self._end_validation)
        on(Events.TERMINATE, self._note_terminated)
        by_step = self._unit == "step"
        event = TrainEvents.STEP_COMPLETED if by_step else Events.ITERATION_COMPLETED
        attachment.add(event, self._handler_after_step())

    def _handler_after_step(self) -> Callable[[Engine], None]:
        """Returns the handler that is called after each step."""
        clock = perf_counter

        def after_step(engine: Engine) -> None:
            if self._first_step is None:
                self._first_step = self._steps.count(engine), clock()
            if clock() >= self._next_draw:
                self._draw(engine)

        set_turn(after_step, Turn.REPORTS)
        return after_step

    # The start and the end of the run

    def enter(self, engine: Engine) -> None:
        """Shows a run for which STARTED is not fired, because it was fired before."""
        if is_interrupted(engine) or is_running(engine):
            self._show_start(engine)

    def _start(self, engine: Engine) -> None:
        if engine.state.iteration == 0:
            self._state.forget_run()
        self._show_start(engine)

    def _show_start(self, engine: Engine) -> None:
        self._began = perf_counter()
        description = _description_of(engine)
        if description != self._state.description:  # it is the same in the next run of a loop
            self._state.description = description
            self._write_text(description)
        self._write_text([self._describe_length(engine)])
        self._next_draw = self._began + self._interval
        self._draw_bar(engine)

    def _describe_length(self, engine: Engine) -> str:
        """Returns where the run begins and where it will end."""
        state: Any = engine.state
        done, left = self._steps.count(engine), steps_left(engine, self._steps)
        text = f"run continues after {self._unit} {done:,}" if state.iteration else "run begins"
        if left is not None:
            text += f", up to {self._unit} {done + left:,}"
        # With `max_steps`, a trainer shows the epochs that the steps need in `max_epochs`.
        names = ("max_steps",) if getattr(state, "max_steps", None) else ("max_epochs", "max_iters")
        limits = {name: getattr(state, name, None) for name in names}
        shown = ", ".join(f"{name}={value}" for name, value in limits.items() if value is not None)
        return f"{text} ({shown})" if shown else text

    def end(self, engine: Engine, error: BaseException | None) -> None:
        """Shows how the run ended.

        Args:
            engine: the engine.
            error: the exception with which the run failed; None if it did not fail.
        """
        # Without an error and within a run, the Console is being removed.
        if self._began is None or (error is None and is_running(engine)):
            return
        if self._results_at_epoch_end:  # the run failed before the row of the epoch
            self._write_row(engine, self._results_at_epoch_end)
        verb, reason = self._describe_end(engine, error)
        text = f"run {verb} at {self._unit} {self._steps.count(engine):,}"
        text += f" ({reason})" if reason else ""
        lines = [f"{text} after {duration_text(perf_counter() - self._began)}"]
        lines += self._describe_best(engine, is_finished=verb == "finished")
        self._screen.close()
        self._write_text(lines)

    def _describe_end(self, engine: Engine, error: BaseException | None) -> tuple[str, str]:
        """Returns what happened to the run, and the reason."""
        if error is not None:
            text = value_text(str(error)).strip()
            reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
            is_long = len(reason) > _LONGEST_REASON
            verb = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            return verb, f"{reason[: _LONGEST_REASON - 1]}…" if is_long else reason
        if is_interrupted(engine):
            return "interrupted", ""
        if is_trainer(engine):
            reason = str(engine.stop_reason)
            is_limit = reason in ("max_epochs", "max_iters", "max_steps")
            return "finished" if is_limit else "stopped", reason
        if self._is_terminated:
            return "stopped", "terminate"
        return "finished", ""

    def _describe_best(self, engine: Engine, *, is_finished: bool) -> Iterator[str]:
        """Yields a line with the best value; after a whole run also without one."""
        best, metric = self._state.best, self._ranking.metric
        if best is not None:
            place = f"{self._unit} {best['step']:,}, epoch {best['epoch']}"
            yield f"best {one_line(best['name'])}: {number_text(best['value'])} at {place}"
        elif is_finished and metric is not None:
            metrics = engine.state.metrics
            hint = "no value is a number"
            if metric not in metrics:
                names = names_of_results(engine, metrics, ())
                hint = f"`state.metrics` has no such name; {did_you_mean(metric, map(str, names))}"
            yield f"best {one_line(metric)}: none, because {hint}"

    def _write_text(self, lines: Iterable[str]) -> None:
        """Writes lines, and breaks those that are longer than the terminal is wide."""
        if self._screen.has_bar:
            wrapper = TextWrapper(self._screen.width, subsequent_indent=" " * 4)
            # Words stay whole, so that a path can be copied.
            wrapper.break_long_words = wrapper.break_on_hyphens = False
            lines = [part for line in lines for part in wrapper.wrap(line)]
        self._screen.write_lines([*lines])

    def close(self) -> None:
        """Removes the bar, and keeps what the next run continues from."""
        self._screen.close()
        self._state.end_run()

    def _note_terminated(self, engine: Engine) -> None:
        self._is_terminated = True

    # The bar

    def _draw_bar(self, engine: Engine) -> None:
        """Draws the bar now, if the stream can show one."""
        if self._screen.has_bar and self._began is not None:
            self._draw(engine)

    def _draw(self, engine: Engine) -> None:
        """Shows how far the run is, in the bar or in a line."""
        now = perf_counter()
        self._next_draw = now + self._interval
        done, left = self._steps.count(engine), steps_left(engine, self._steps)
        total = None if left is None else done + left
        parts = [*self._progress(engine, done, total, now)]
        if not self._screen.has_bar:
            self._screen.write_lines([", ".join(parts)])
            return
        # A narrow terminal leaves out the last parts.
        space = self._screen.width - (0 if total is None else _BAR_SPACE)
        while len(parts) > 1 and len(", ".join(parts)) > space:
            parts.pop()
        self._screen.show_bar(done, total, ", ".join(parts))

    def _progress(self, engine: Engine, done: int, total: int | None, now: float) -> Iterator[str]:
        """Yields the parts of the text, the most important first."""
        state: Any = engine.state
        if total is None:
            yield f"{self._unit} {done:,}"
        elif self._screen.has_bar:
            yield f"{done:,}/{total:,} {self._unit}s"
        else:
            yield f"{self._unit} {done:,} of {total:,} ({done / max(1, total):.0%})"
        left = self._seconds_left(engine, done, total, now)
        if left is not None:
            yield f"{duration_text(left)} left"
        if self._is_validating:
            yield "validation"
        yield f"epoch {state.epoch}" + (f"/{state.max_epochs}" if state.max_epochs else "")
        for name in self._loss_names[:1]:
            if isinstance(loss := state.metrics.get(name), int | float):
                yield f"{one_line(name)} {number_text(loss)}"
        assert self._began is not None
        yield f"{duration_text(now - self._began)} elapsed"

    def _seconds_left(
        self, engine: Engine, done: int, total: int | None, now: float
    ) -> float | None:
        """Returns the time to the end: by Throughput, or before its first report an estimate."""
        reported = engine.state.metrics.get("remaining_seconds")
        first, when = self._first_step or (done, now)
        if reported is not self._last_reported_left and done - first >= _STEPS_BEFORE_SPEED:
            self._last_reported_left = reported
            self._reported_left = (reported, now) if isinstance(reported, int | float) else None
        if self._reported_left is not None:
            seconds, reported_at = self._reported_left
            return max(0.0, seconds - (now - reported_at))
        if total is None or done <= first:
            return None
        return (total - done) * (now - when) / (done - first)

    def _begin_validation(self, engine: Engine) -> None:
        self._is_validating = True
        self._draw_bar(engine)

    def _end_validation(self, engine: Engine) -> None:
        self._is_validating = False

    # The table

    def _begin_epoch_end(self, engine: Engine) -> None:
        self._is_epoch_ending = True

    def _take_report(self, engine: Engine, report: Report) -> None:
        """Shows a row, or keeps the results of a validation for the row of the epoch."""
        if report.reason == "epoch":
            self._is_epoch_ending = False
        values = {**self._results_at_epoch_end, **report.metrics}
        if self._is_epoch_ending:
            self._results_at_epoch_end = values
            return
        results = names_of_results(engine, values, self._loss_names)
        # At the end of the run, the row of the last epoch may have shown everything.
        if report.reason != "end" or results or self._state.has_means:
            self._write_row(engine, values)
            self._draw_bar(engine)

    def _write_row(self, engine: Engine, values: Mapping[str, Any]) -> None:
        self._results_at_epoch_end = {}
        step, ranking = self._steps.count(engine), self._ranking.or_of_checkpoints(engine)
        cells = [
            Cell(self._unit, str(step), (self._unit,), 0),
            Cell("epoch", str(engine.state.epoch), ("epoch",), 0),
            *cells_of(engine, values, self._loss_names, self._state, ranking, step),
        ]
        width = self._screen.width
        self._screen.write_lines(self._table.add(cells, width))


def _description_of(engine: Engine) -> list[str]:
    """Returns the lines that describe the engine: for a trainer, what it trains, and how."""
    if not is_trainer(engine):
        return []
    feed = engine.feed
    assert feed is None or isinstance(feed, DataFeed)
    first, *others = summary_of(engine, feed)
    return [first, *(f"  {each}" for each in others)]
