"""Peaks of device memory as metrics: what tensors took, and what was reserved for them."""

from weakref import WeakKeyDictionary

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.fields import Flag
from ignite_hooks.core.fields import Iterations
from ignite_hooks.core.handler import Attachment
from ignite_hooks.memory.device import DeviceMark
from ignite_hooks.memory.device import DevicePeaks
from ignite_hooks.memory.ledger import Measurement
from ignite_hooks.memory.ledger import PeakLedger
from ignite_hooks.memory.mark import MIB
from ignite_hooks.memory.peak_metric import PeakMetric
from ignite_hooks.memory.spans import Span

__all__ = ["MaxDeviceMemory"]


@checked_dataclass
class MaxDeviceMemory(PeakMetric):
    """The peaks of device memory in an iteration, an epoch and a run.

    ``minibatch_max_device_allocated_mib`` in ``state.metrics`` is the most that tensors took in an
    iteration, ``minibatch_max_device_reserved_mib`` the most that the allocator had reserved for
    them; ``epoch_…`` and ``run_…`` are the same of an epoch and of a run. The allocator of the
    current device keeps these peaks, for any device that ``torch.accelerator`` or a module such as
    ``torch.cuda`` tells of (see ``torch.cuda.memory_stats``); reading them waits for nothing. There
    is one of each, so nobody else may call ``reset_peak_memory_stats`` meanwhile. On a CPU this
    attaches and reports nothing.

    An iteration goes from ITERATION_STARTED to ITERATION_COMPLETED, an epoch from EPOCH_STARTED to
    EPOCH_COMPLETED, a run from its entry to COMPLETED.

    Args:
        minibatch: report the peaks of an iteration.
        epoch: report those of an epoch.
        run: report those of a run.
        every_iterations: measure every n-th iteration only; each, if it is left out.

    Raises:
        ValueError: nothing is to be reported; an argument is out of its range. When attached: the
            engine has another one that reports the same.
    """

    minibatch: Flag = True
    epoch: Flag = True
    run: Flag = True
    every_iterations: Iterations | None = None

    def __post_init__(self) -> None:
        """Checks that there is something to report."""
        if not self._kinds():
            raise ValueError(
                "one of `minibatch`, `epoch` and `run` must be True, got none: leave them out to "
                "have all"
            )
        if self.every_iterations is not None and not self.minibatch:
            raise ValueError(
                f"`every_iterations` must be left out with minibatch=False, got "
                f"{self.every_iterations}: it says which iterations are measured"
            )

    def result(self) -> dict[str, float]:
        """The peaks so far, or of the last time, in MiB; 0.0 if nothing was measured yet.

        On several engines they are those of the one that this was attached to last.
        """
        peaks = dict.fromkeys(self.names(), 0.0)
        for kind, measurement in _latest.get(self, {}).items():
            peaks.update(zip(_names(kind), _in_mib(measurement), strict=True))
        return peaks

    def reset(self) -> None:
        """Forgets these peaks; what is being measured begins anew now."""
        for measurement in _latest.get(self, {}).values():
            measurement.reset()

    def names(self) -> list[str]:
        """Two keys for each kind of span."""
        return [name for kind in self._kinds() for name in _names(kind)]

    def attach_to(self, attachment: Attachment) -> None:
        """Measures what was asked for."""
        _latest[self] = {}
        if self.minibatch:
            self._span("minibatch", attachment).of_iterations(self.every_iterations)
        if self.epoch:
            epochs = self._span("epoch", attachment)
            epochs.between(Events.EPOCH_STARTED, Events.EPOCH_COMPLETED)
        if self.run:
            self._span("run", attachment).of_runs()

    def _kinds(self) -> list[str]:
        return [kind for kind in ("minibatch", "epoch", "run") if getattr(self, kind)]

    def _span(self, kind: str, attachment: Attachment) -> Span:
        measurement = _latest[self][kind] = Measurement(_ledger, every=1.0)

        def report(engine: Engine) -> None:
            allocated, reserved = _in_mib(measurement)
            if reserved:
                engine.state.metrics.update(zip(_names(kind), (allocated, reserved), strict=True))

        return Span(attachment, [measurement], report)


_ledger = PeakLedger(DeviceMark())

_latest: WeakKeyDictionary[MaxDeviceMemory, dict[str, Measurement[DevicePeaks]]]
_latest = WeakKeyDictionary()
"""What each has measured last; apart from it, so that a copy has measured nothing."""


def _names(kind: str) -> tuple[str, str]:
    return f"{kind}_max_device_allocated_mib", f"{kind}_max_device_reserved_mib"


def _in_mib(measurement: Measurement[DevicePeaks]) -> tuple[float, float]:
    allocated, reserved = measurement.result()
    return allocated / MIB, reserved / MIB
