"""The base class of handlers that write peaks of memory as metrics."""

from typing import ClassVar

from ignite_hooks.core.metric_writer import MetricWriter

__all__ = ["PeakMetric"]


class PeakMetric(MetricWriter):
    """A handler that writes peaks of memory, in MiB, to ``engine.state.metrics``.

    A subclass defines the two events between which it measures. So call ``attach(engine)`` without
    an event.
    """

    no_event: ClassVar[str] = (
        "measures between fixed events; to measure the RAM of another part of the run, call "
        "start() and stop() of a MaxRAM"
    )
