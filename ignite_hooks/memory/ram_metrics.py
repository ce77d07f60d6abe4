"""Metrics of the peak of resident memory in an iteration, an epoch, a run or a validation.

The names are those of Avalanche's metrics. In this module, a *minibatch* is one iteration, an
*experience* is one run of the engine, and a *stream* is one whole validation.
"""

from weakref import WeakKeyDictionary

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.checked_dataclass import checked_call
from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.fields import Backend
from ignite_hooks.core.fields import Flag
from ignite_hooks.core.fields import Iterations
from ignite_hooks.core.fields import MetricName
from ignite_hooks.core.fields import Seconds
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.training_engine import is_trainer
from ignite_hooks.events import TrainEvents
from ignite_hooks.memory.max_ram import MaxRAM
from ignite_hooks.memory.peak_metric import PeakMetric
from ignite_hooks.memory.spans import Span

__all__ = [
    "EpochMaxRAM",
    "ExperienceMaxRAM",
    "MinibatchMaxRAM",
    "StreamMaxRAM",
    "ram_usage_metrics",
]


@checked_dataclass
class RAMMetric(PeakMetric):
    """The base class of handlers that write a peak of resident memory to ``state.metrics``."""

    name: MetricName
    every: Seconds = 1.0
    include_children: Flag = False
    backend: Backend = "auto"

    def result(self) -> float:
        """Returns the peak in MiB.

        During a measurement, the result is the peak so far. Otherwise it is the peak of the last
        measurement, or 0.0 before the first measurement. If the handler is attached to several
        engines, the peak is that of the engine to which it was attached last.
        """
        return _latest[self].result() if self in _latest else 0.0

    def reset(self) -> None:
        """Forgets the peak that ``result`` returns; a running measurement starts from scratch."""
        if self in _latest:
            _latest[self].reset()

    def names(self) -> tuple[str]:
        """Returns the key in ``state.metrics``, as a tuple of one."""
        return (self.name,)

    def _span(self, attachment: Attachment) -> Span:
        ram = _latest[self] = self._max_ram()

        def report(engine: Engine) -> None:
            engine.state.metrics[self.name] = ram.result()

        return Span(attachment, ram._measurements, report)

    def _max_ram(self) -> MaxRAM:
        return MaxRAM(
            every=self.every, include_children=self.include_children, backend=self.backend
        )


_latest: WeakKeyDictionary[RAMMetric, MaxRAM] = WeakKeyDictionary()
"""Maps each handler to its last measurement.

The measurement is not stored in an attribute of the handler, so a copy of a handler has no
measurement.
"""


@checked_dataclass
class MinibatchMaxRAM(RAMMetric):
    """The peak of resident memory in an iteration, without the fetching of its batch.

    The iteration (forward, backward and step) is measured from ITERATION_STARTED to
    ITERATION_COMPLETED, including those handlers of ITERATION_COMPLETED that were attached before
    this metric. A logger reads the metric at ITERATION_COMPLETED, so attach the logger after the
    metric. ``MaxRAM`` describes which memory is measured, and which peaks can be missed.

    Args:
        name: the key in ``state.metrics``.
        every: seconds between two readings of the memory by a thread. The thread runs only with
            the backend "sampler" or with ``include_children``.
        include_children: add the memory of the children of this process, loader workers for
            example. Reading it takes some milliseconds at the start and at the end of the
            iteration.
        backend: "auto", "kernel" or "sampler", as for ``MaxRAM``.
        every_iterations: measure every n-th iteration only; default: each iteration.

    Raises:
        ValueError: an argument is out of its range. When attached: another metric of the engine has
            this name; ``backend`` is "kernel" and the high-water mark cannot be reset in this
            process.
    """

    name: MetricName = "minibatch_max_ram_mib"
    every_iterations: Iterations | None = None

    def attach_to(self, attachment: Attachment) -> None:
        """Measures from ITERATION_STARTED to ITERATION_COMPLETED."""
        self._span(attachment).measure_iterations(self.every_iterations)


@checked_dataclass
class EpochMaxRAM(RAMMetric):
    """The peak of resident memory in an epoch, including the fetching of batches.

    The epoch is measured from EPOCH_STARTED to EPOCH_COMPLETED. On a trainer the measurement
    includes the computation of Ignite's metrics that were attached before this metric, and ends
    before the validation and all other handlers of EPOCH_COMPLETED. On any other engine the
    measurement includes those handlers of EPOCH_COMPLETED that were attached before this metric.

    ``MaxRAM`` describes which memory is measured, and which peaks can be missed.

    Args:
        name: the key in ``state.metrics``.
        every: seconds between two readings of the memory by a thread. The thread runs only with
            the backend "sampler" or with ``include_children``.
        include_children: add the memory of the children of this process.
        backend: "auto", "kernel" or "sampler", as for ``MaxRAM``.

    Raises:
        ValueError: an argument is out of its range. When attached: another metric of the engine has
            this name; ``backend`` is "kernel" and the high-water mark cannot be reset in this
            process.
    """

    name: MetricName = "epoch_max_ram_mib"

    def attach_to(self, attachment: Attachment) -> None:
        """Measures from EPOCH_STARTED to EPOCH_COMPLETED."""
        self._span(attachment).measure_between(Events.EPOCH_STARTED, Events.EPOCH_COMPLETED)


@checked_dataclass
class ExperienceMaxRAM(RAMMetric):
    """The peak of resident memory in one run of the engine.

    A run of an evaluator is the evaluation of one loader. The run is measured from the entry into
    ``run`` to COMPLETED, including those handlers of COMPLETED that were attached before this
    metric. ``MaxRAM`` describes which memory is measured, and which peaks can be missed.

    Args:
        name: the key in ``state.metrics``.
        every: seconds between two readings of the memory by a thread. The thread runs only with
            the backend "sampler" or with ``include_children``.
        include_children: add the memory of the children of this process.
        backend: "auto", "kernel" or "sampler", as for ``MaxRAM``.

    Raises:
        ValueError: an argument is out of its range. When attached: another metric of the engine has
            this name; ``backend`` is "kernel" and the high-water mark cannot be reset in this
            process.
    """

    name: MetricName = "experience_max_ram_mib"

    def attach_to(self, attachment: Attachment) -> None:
        """Measures from the entry into ``run`` to COMPLETED."""
        self._span(attachment).measure_runs()


@checked_dataclass
class StreamMaxRAM(RAMMetric):
    """The peak of resident memory in one whole validation, with all its loaders.

    Attach it to the trainer: each validation of the trainer is measured, from VALIDATION_STARTED to
    VALIDATION_COMPLETED. On any other engine, such as an evaluator, each run is measured, from
    STARTED to COMPLETED. To measure a validation that your own code runs, call ``start`` before the
    validation and ``stop`` after it, and read ``result``.

    ``MaxRAM`` describes which memory is measured, and which peaks can be missed.

    Args:
        name: the key in ``state.metrics``.
        every: seconds between two readings of the memory by a thread. The thread runs only with
            the backend "sampler" or with ``include_children``.
        include_children: add the memory of the children of this process.
        backend: "auto", "kernel" or "sampler", as for ``MaxRAM``.

    Raises:
        ValueError: an argument is out of its range. When attached: another metric of the engine has
            this name. When attached or started: ``backend`` is "kernel" and the high-water mark
            cannot be reset in this process.
    """

    name: MetricName = "stream_max_ram_mib"

    def attach_to(self, attachment: Attachment) -> None:
        """Measures from the beginning of a validation to its end."""
        span = self._span(attachment)
        if is_trainer(attachment.engine):
            span.measure_between(TrainEvents.VALIDATION_STARTED, TrainEvents.VALIDATION_COMPLETED)
        else:
            span.measure_between(Events.STARTED, Events.COMPLETED)

    def start(self) -> None:
        """Starts measuring your own code from scratch, unless such a measurement is running.

        The measurement is independent of those on engines to which the handler is attached.
        """
        if self not in _started_by_user:
            _started_by_user[self] = self._max_ram()
        _latest[self] = _started_by_user[self]
        _started_by_user[self].start()

    def stop(self) -> None:
        """Stops the measurement that ``start`` has begun, and keeps the result.

        Does nothing if this measurement is not running.
        """
        if self in _started_by_user:
            _started_by_user[self].stop()


_started_by_user: WeakKeyDictionary[StreamMaxRAM, MaxRAM] = WeakKeyDictionary()
"""Maps each handler to the measurement that its ``start`` and ``stop`` control."""


@checked_call
def ram_usage_metrics(
    *,
    every: Seconds = 1.0,
    minibatch: Flag = False,
    epoch: Flag = False,
    experience: Flag = False,
    stream: Flag = False,
    include_children: Flag = False,
    backend: Backend = "auto",
) -> list[RAMMetric]:
    """Returns the requested metrics of resident memory.

    The metrics can be given to ``create_supervised_trainer`` as ``handlers``.

    Args:
        every: seconds between two readings of the memory by a thread. The thread runs only with
            the backend "sampler" or with ``include_children``.
        minibatch: whether to return a ``MinibatchMaxRAM``.
        epoch: whether to return an ``EpochMaxRAM``.
        experience: whether to return an ``ExperienceMaxRAM``.
        stream: whether to return a ``StreamMaxRAM``.
        include_children: add the memory of the children of this process.
        backend: "auto", "kernel" or "sampler", as for ``MaxRAM``.

    Returns:
        The handlers, in the order of the four arguments ``minibatch`` to ``stream``.

    Raises:
        ValueError: no metric is requested; an argument is out of its range.
    """
    requested = {
        MinibatchMaxRAM: minibatch,
        EpochMaxRAM: epoch,
        ExperienceMaxRAM: experience,
        StreamMaxRAM: stream,
    }
    if not any(requested.values()):
        raise ValueError(
            "one of `minibatch`, `epoch`, `experience` and `stream` must be True, got none: "
            "epoch=True is the usual choice"
        )
    return [
        metric(every=every, include_children=include_children, backend=backend)
        for metric, is_requested in requested.items()
        if is_requested
    ]
