"""Measures memory during iterations, during whole runs, or from one event to another."""

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
from ignite_hooks.memory.measurement import Measurement

__all__ = ["Span"]


class Span:
    """A part of a run, such as an iteration or an epoch, that is measured each time it occurs.

    One of the ``measure_…`` methods sets the part to measure. A span is measured only within a run
    of the engine, and usually ends with an event. There are three other cases:

    - The run ends before the event, for example by a failure, or the attachment is removed: the
      span ends too, and is reported. The peak before an out-of-memory error, for example, is the
      most interesting one.
    - The event is not fired although the run continues: the span is dropped when the next one
      begins.
    - ``interrupt()`` pauses the run: the span continues when the run continues, and the time in
      between is not measured.

    Args:
        attachment: the attachment of the metric to the engine.
        measurements: the measurements, which are started and stopped together.
        report: is called with the engine at the end of each span, to write the metric.
    """

    def __init__(
        self,
        attachment: Attachment,
        measurements: Sequence[Measurement[Any]],
        report: Callable[[Engine], None],
    ) -> None:
        self._attachment = attachment
        self._measurements = measurements
        self._report = report
        self._is_in_run = self._is_measuring = self._was_interrupted_within = False
        attachment.during_run(self._run_scope)

    def measure_iterations(self, every: int | None) -> None:
        """Measures each iteration, or one of ``every`` iterations, but not the fetch of a batch."""
        period = every or 1

        def begin_if_due(engine: Engine) -> None:
            # This function checks `every` itself. Ignite's filters on both events, such as
            # `Events.ITERATION_STARTED(every=…)`, would cost 3 to 10 µs in each iteration that is
            # not measured.
            if engine.state.iteration % period == 0:
                self._begin(engine)
            elif self._is_measuring:  # the previous iteration had no ITERATION_COMPLETED
                self._stop()

        self._attachment.on(Events.ITERATION_STARTED, begin_if_due)
        self._attachment.on(Events.ITERATION_COMPLETED, self._end)

    def measure_runs(self) -> None:
        """Measures each run, from the entry into ``run`` to COMPLETED."""
        self._attachment.during_run(self._begin_with_run)
        self._attachment.on(Events.COMPLETED, self._end)

    def measure_between(self, start_event: Any, end_event: Any) -> None:
        """Measures from ``start_event`` to ``end_event``."""
        self._attachment.on(start_event, self._begin)
        # A turn is the place of a handler among the handlers that a trainer calls at an event. The
        # turn of Ignite's metrics comes before that of the validation. So the measurement of an
        # epoch does not include the validation at EPOCH_COMPLETED.
        self._attachment.on(end_event, self._end, turn=Turn.METRICS)

    def _begin(self, engine: Engine) -> None:
        # The previous span is still open if the event at its end was not fired. For example, a
        # handler of EXCEPTION_RAISED has swallowed a failure, and Ignite has continued the run.
        if self._is_measuring:
            self._stop()
        if self._is_in_run:
            for measurement in self._measurements:
                measurement.start()
            self._is_measuring = True

    def _end(self, engine: Engine) -> None:
        if self._is_measuring:
            self._stop()
            self._report(engine)

    def _stop(self) -> None:
        self._is_measuring = False
        for measurement in self._measurements:
            measurement.stop()

    @contextmanager
    def _run_scope(self, engine: Engine) -> Iterator[None]:
        """Surrounds a run: continues an interrupted span, and ends the span with the run."""
        with ExitStack() as scopes:
            for measurement in self._measurements:
                scopes.enter_context(measurement.held_open())
            self._is_in_run = True
            if self._was_interrupted_within and is_interrupted(engine):
                self._is_measuring = True
                for measurement in self._measurements:
                    measurement.resume()
            try:
                yield
            finally:
                self._is_in_run = False
                self._was_interrupted_within = self._is_measuring
                self._end(engine)
                self._stop()  # if starting one measurement failed, the others may be running

    @contextmanager
    def _begin_with_run(self, engine: Engine) -> Iterator[None]:
        if not self._is_measuring:  # a run that was interrupted continues its measurement
            self._begin(engine)
        yield
