"""Peaks of resident memory as metrics: of a minibatch, an epoch, a run, a whole validation."""

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
    """The peak of resident memory from one event to another, in ``engine.state.metrics``."""

    name: MetricName
    every: Seconds = 1.0
    include_children: Flag = False
    backend: Backend = "auto"

    def result(self) -> float:
        """The peak so far, or of the last time, in MiB; 0.0 if nothing was measured yet.

        On several engines it is that of the one that this was attached to last.
        """
        return _latest[self].result() if self in _latest else 0.0

    def reset(self) -> None:
        """Forgets that peak; what is being measured begins anew now."""
        if self in _latest:
            _latest[self].reset()

    def names(self) -> tuple[str]:
        """The one key."""
        return (self.name,)

    def _span(self, attachment: Attachment) -> Span:
        ram = _latest[self] = self._max_ram()

        def report(engine: Engine) -> None:
            engine.state.metrics[self.name] = ram.result()

        return Span(attachment, ram._parts, report)

    def _max_ram(self) -> MaxRAM:
        return MaxRAM(
            every=self.every, include_children=self.include_children, backend=self.backend
        )


_latest: WeakKeyDictionary[RAMMetric, MaxRAM] = WeakKeyDictionary()
"""What each has measured last; apart from it, so that a copy has measured nothing."""


@checked_dataclass
class MinibatchMaxRAM(RAMMetric):
    """The peak of resident memory in an iteration: forward, backward and step, not the fetching.

    It goes from ITERATION_STARTED to ITERATION_COMPLETED, to the handlers that were attached before
    it. Attach it before the loggers, as any metric. What is measured, and what can be missed, is
    said at ``MaxRAM``.

    Args:
        name: the key in ``state.metrics``.
        every: seconds between samples, of the sampler and of the children.
        include_children: add what the children of this process have taken, loader workers for
            instance. It takes some milliseconds at each end of the iteration.
        backend: "auto", "kernel" or "sampler", as for ``MaxRAM``.
        every_iterations: measure every n-th iteration only; each, if it is left out.

    Raises:
        ValueError: an argument is out of its range. When attached: another metric of the engine has
            that name; the kernel's mark cannot be used here.
    """

    name: MetricName = "minibatch_max_ram_mib"
    every_iterations: Iterations | None = None

    def attach_to(self, attachment: Attachment) -> None:
        """From ITERATION_STARTED to ITERATION_COMPLETED."""
        self._span(attachment).of_iterations(self.every_iterations)


@checked_dataclass
class EpochMaxRAM(RAMMetric):
    """The peak of resident memory in an epoch, fetching included, the validation at its end not.

    It goes from EPOCH_STARTED to EPOCH_COMPLETED, to the handlers that were attached before it.
    What is measured, and what can be missed, is said at ``MaxRAM``.

    Args:
        name: the key in ``state.metrics``.
        every: seconds between samples, of the sampler and of the children.
        include_children: add what the children of this process have taken.
        backend: "auto", "kernel" or "sampler", as for ``MaxRAM``.

    Raises:
        ValueError: an argument is out of its range. When attached: another metric of the engine has
            that name; the kernel's mark cannot be used here.
    """

    name: MetricName = "epoch_max_ram_mib"

    def attach_to(self, attachment: Attachment) -> None:
        """From EPOCH_STARTED to EPOCH_COMPLETED."""
        self._span(attachment).between(Events.EPOCH_STARTED, Events.EPOCH_COMPLETED)


@checked_dataclass
class ExperienceMaxRAM(RAMMetric):
    """The peak of resident memory in one run of the engine: on an evaluator, that of one loader.

    It goes from the entry into ``run`` to COMPLETED, to the handlers that were attached before it.
    What is measured, and what can be missed, is said at ``MaxRAM``.

    Args:
        name: the key in ``state.metrics``.
        every: seconds between samples, of the sampler and of the children.
        include_children: add what the children of this process have taken.
        backend: "auto", "kernel" or "sampler", as for ``MaxRAM``.

    Raises:
        ValueError: an argument is out of its range. When attached: another metric of the engine has
            that name; the kernel's mark cannot be used here.
    """

    name: MetricName = "experience_max_ram_mib"

    def attach_to(self, attachment: Attachment) -> None:
        """From the entry into ``run`` to COMPLETED."""
        self._span(attachment).of_runs()


@checked_dataclass
class StreamMaxRAM(RAMMetric):
    """The peak of resident memory in one whole validation, all its loaders.

    On a trainer it goes from VALIDATION_STARTED to VALIDATION_COMPLETED, on any other engine from
    STARTED to COMPLETED, in runs only: a validation by hand, after a run, is measured by hand, from
    ``start`` to ``stop``. What is measured, and what can be missed, is said at ``MaxRAM``.

    Args:
        name: the key in ``state.metrics``.
        every: seconds between samples, of the sampler and of the children.
        include_children: add what the children of this process have taken.
        backend: "auto", "kernel" or "sampler", as for ``MaxRAM``.

    Raises:
        ValueError: an argument is out of its range. When attached: another metric of the engine has
            that name; then or when started: the kernel's mark cannot be used here.
    """

    name: MetricName = "stream_max_ram_mib"

    def attach_to(self, attachment: Attachment) -> None:
        """From the beginning of a validation to its end."""
        span = self._span(attachment)
        if is_trainer(attachment.engine):
            span.between(TrainEvents.VALIDATION_STARTED, TrainEvents.VALIDATION_COMPLETED)
        else:
            span.between(Events.STARTED, Events.COMPLETED)

    def start(self) -> None:
        """Begins anew; while it is running it goes on. What an engine measures is not touched."""
        if self not in _by_hand:
            _by_hand[self] = self._max_ram()
        _latest[self] = _by_hand[self]
        _by_hand[self].start()

    def stop(self) -> None:
        """Ends it; the result stays. Without a start before it nothing happens."""
        if self in _by_hand:
            _by_hand[self].stop()


_by_hand: WeakKeyDictionary[StreamMaxRAM, MaxRAM] = WeakKeyDictionary()


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
    """The metrics of resident memory that are asked for, for the factory's ``handlers`` say.

    Args:
        every: seconds between samples, of the sampler and of the children.
        minibatch: a ``MinibatchMaxRAM``.
        epoch: an ``EpochMaxRAM``.
        experience: an ``ExperienceMaxRAM``.
        stream: a ``StreamMaxRAM``.
        include_children: add what the children of this process have taken.
        backend: "auto", "kernel" or "sampler", as for ``MaxRAM``.

    Returns:
        The handlers, from the shortest span to the longest.

    Raises:
        ValueError: none is asked for; an argument is out of its range.
    """
    asked = {
        MinibatchMaxRAM: minibatch,
        EpochMaxRAM: epoch,
        ExperienceMaxRAM: experience,
        StreamMaxRAM: stream,
    }
    if not any(asked.values()):
        raise ValueError(
            "one of `minibatch`, `epoch`, `experience` and `stream` must be True, got none: "
            "epoch=True is the usual choice"
        )
    return [
        metric(every=every, include_children=include_children, backend=backend)
        for metric, is_asked in asked.items()
        if is_asked
    ]
