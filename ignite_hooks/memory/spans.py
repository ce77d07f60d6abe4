"""Measures a part of an engine's run, again and again, and ends with the run."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import ExitStack
from contextlib import contextmanager
from typing import Any

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.training_engine import Turn
from ignite_hooks.memory.ledger import Measurement

__all__ = ["Span"]


class Span:
    """What one attachment of a metric measures, once it is told between which moments.

    It measures in runs of the engine only: a run is what surely ends. A span that a failure,
    ``terminate()`` or the removal of the attachment breaks off ends there, and is reported too:
    what was needed when memory ran out is what people ask for. One that ``interrupt()`` breaks off
    goes on with the run; what happens in between is not in it.

    Args:
        attachment: the attachment.
        parts: what is measured.
        report: is called with the engine at the end of each span.
    """

    def __init__(
        self,
        attachment: Attachment,
        parts: Sequence[Measurement[Any]],
        report: Callable[[Engine], None],
    ) -> None:
        self._attachment = attachment
        self._parts = parts
        self._report = report
        self._is_in_run = self._is_on = self._is_broken_off = False
        attachment.during_run(self._in_run)

    def of_iterations(self, every: int | None) -> None:
        """Measures each iteration, or once in ``every``: all but the fetching of the batch."""
        period = every or 1

        def begin_if_due(engine: Engine) -> None:
            # Filters of Ignite on both events would cost 3 to 10 µs an iteration that is not due.
            if engine.state.iteration % period == 0:
                self._begin(engine)
            elif self._is_on:
                self._stop()

        self._attachment.on(Events.ITERATION_STARTED, begin_if_due)
        self._attachment.on(Events.ITERATION_COMPLETED, self._end)

    def of_runs(self) -> None:
        """Measures each run, from its entry."""
        self._attachment.during_run(self._of_run)
        self._attachment.on(Events.COMPLETED, self._end)

    def between(self, began: Any, ended: Any) -> None:
        """Measures from the event ``began`` to the event ``ended``."""
        self._attachment.on(began, self._begin)
        self._attachment.on(ended, self._end, turn=Turn.METRICS)  # before a validation

    def _begin(self, engine: Engine) -> None:
        if self._is_on:  # a handler made an end of a failure, and Ignite went on
            self._stop()
        if self._is_in_run:
            for part in self._parts:
                part.start()
            self._is_on = True

    def _end(self, engine: Engine) -> None:
        if self._is_on:
            self._stop()
            self._report(engine)

    def _stop(self) -> None:
        self._is_on = False
        for part in self._parts:
            part.stop()

    @contextmanager
    def _in_run(self, engine: Engine) -> Iterator[None]:
        with ExitStack() as kept:
            for part in self._parts:
                kept.enter_context(part.held())
            self._is_in_run = True
            if self._is_broken_off and is_interrupted(engine):
                self._is_on = True
                for part in self._parts:
                    part.go_on()
            try:
                yield
            finally:
                self._is_in_run = False
                self._is_broken_off = self._is_on
                self._end(engine)
                self._stop()  # what a beginning that failed has left

    @contextmanager
    def _of_run(self, engine: Engine) -> Iterator[None]:
        if not self._is_on:  # else it goes on
            self._begin(engine)
        yield
