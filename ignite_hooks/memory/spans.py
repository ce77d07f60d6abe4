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
        attachment, period = self._attachment, every or 1

        def begin_if_due() -> None:
            # Filters of Ignite on both events would cost 3 to 10 µs an iteration that is not due.
            if attachment.engine.state.iteration % period == 0:
                self._begin()
            elif self._is_on:
                self._stop()

        attachment.add(Events.ITERATION_STARTED, self._begin if period == 1 else begin_if_due)
        attachment.add(Events.ITERATION_COMPLETED, self._end)

    def of_runs(self) -> None:
        """Measures each run, from its entry."""
        self._attachment.during_run(self._of_run)
        self._attachment.add(Events.COMPLETED, self._end)

    def between(self, began: Any, ended: Any) -> None:
        """Measures from the event ``began`` to the event ``ended``."""
        self._attachment.add(began, self._begin)
        self._attachment.add(ended, self._end)

    def _begin(self) -> None:
        if self._is_on:  # a handler made an end of a failure, and Ignite went on
            self._stop()
        if self._is_in_run:
            # Here and in _end without part.start() and part.stop(): each call between an event and
            # the kernel costs 0.5 to 1 µs in a real loop, whose caches are cold, of 20 in all.
            for part in self._parts:
                part.ledger.begin(part, part.ledger.nothing)
            self._is_on = True

    def _end(self) -> None:
        if self._is_on:
            self._is_on = False
            for part in self._parts:
                part.ledger.end(part)
            self._report(self._attachment.engine)

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
                self._end()
                self._stop()  # what a beginning that failed has left

    @contextmanager
    def _of_run(self, engine: Engine) -> Iterator[None]:
        if not self._is_on:  # else it goes on
            self._begin()
        yield
