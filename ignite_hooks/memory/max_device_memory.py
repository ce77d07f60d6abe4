"""Peaks of device memory as metrics: memory allocated for tensors, and memory reserved."""

from weakref import WeakKeyDictionary

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.fields import Flag
from ignite_hooks.core.fields import Iterations
from ignite_hooks.core.handler import Attachment
from ignite_hooks.memory.device import DeviceMark
from ignite_hooks.memory.device import DevicePeaks
from ignite_hooks.memory.mark import MIB
from ignite_hooks.memory.measurement import Measurement
from ignite_hooks.memory.measurement import SharedMark
from ignite_hooks.memory.peak_metric import PeakMetric
from ignite_hooks.memory.spans import Span

__all__ = ["MaxDeviceMemory"]


@checked_dataclass
class MaxDeviceMemory(PeakMetric):
    """The peaks of device memory in an iteration, an epoch and a run.

    Two peaks of an iteration are written to ``state.metrics``:
    ``minibatch_max_device_allocated_mib``, the most memory that all tensors together have used, and
    ``minibatch_max_device_reserved_mib``, the most memory that the allocator has reserved. The
    same two peaks of an epoch and of a run are written under ``epoch_max_device_allocated_mib``,
    ``run_max_device_allocated_mib`` and so on.

    The peaks come from the memory statistics of the current device (see
    ``torch.cuda.memory_stats``). ``torch.accelerator`` or the module of the device, such as
    ``torch.cuda``, must provide these statistics. Reading them does not synchronize with the
    device. The statistics hold only one peak of each kind for the whole process, so no other code
    may call ``reset_peak_memory_stats`` during a measurement. On a CPU the handler can be attached,
    but reports nothing.

    An iteration is measured from ITERATION_STARTED to ITERATION_COMPLETED, an epoch from
    EPOCH_STARTED to EPOCH_COMPLETED, and a run from the call of ``run`` to COMPLETED.

    Args:
        minibatch: report the peaks of an iteration.
        epoch: report the peaks of an epoch.
        run: report the peaks of a run.
        every_iterations: measure every n-th iteration only; default: each iteration.

    Raises:
        ValueError: all of ``minibatch``, ``epoch`` and ``run`` are False; an argument is out of its
            range. When attached: the engine has another handler that reports the same peaks.
    """

    minibatch: Flag = True
    epoch: Flag = True
    run: Flag = True
    every_iterations: Iterations | None = None

    def __post_init__(self) -> None:
        """Checks that at least one of ``minibatch``, ``epoch`` and ``run`` is True."""
        if not self._reported_spans():
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
        """Returns a dict that maps the keys in ``state.metrics`` to the peaks, in MiB.

        While a measurement runs, the peaks are its peaks so far. Otherwise they are the peaks of
        the last measurement, or 0.0 before the first measurement. If the handler is attached to
        several engines, the peaks are those of the engine to which it was attached last.
        """
        peaks = dict.fromkeys(self.names(), 0.0)
        for span, measurement in _latest.get(self, {}).items():
            peaks.update(zip(_metric_names(span), _peaks_in_mib(measurement), strict=True))
        return peaks

    def reset(self) -> None:
        """Forgets the peaks that ``result`` returns; running measurements start from scratch."""
        for measurement in _latest.get(self, {}).values():
            measurement.reset()

    def names(self) -> list[str]:
        """Returns the keys in ``state.metrics``: two for each reported span, such as an epoch."""
        return [name for span in self._reported_spans() for name in _metric_names(span)]

    def attach_to(self, attachment: Attachment) -> None:
        """Measures the spans that are to be reported: iterations, epochs, runs."""
        _latest[self] = {}
        if self.minibatch:
            self._add_span("minibatch", attachment).measure_iterations(self.every_iterations)
        if self.epoch:
            epochs = self._add_span("epoch", attachment)
            epochs.measure_between(Events.EPOCH_STARTED, Events.EPOCH_COMPLETED)
        if self.run:
            self._add_span("run", attachment).measure_runs()

    def _reported_spans(self) -> list[str]:
        return [span for span in ("minibatch", "epoch", "run") if getattr(self, span)]

    def _add_span(self, span: str, attachment: Attachment) -> Span:
        # `every` is the number of seconds between two readings, for marks that miss peaks unless
        # they are read regularly. Here it has no effect: the allocator updates its marks itself.
        measurement = _latest[self][span] = Measurement(_shared_mark, every=1.0)

        def report(engine: Engine) -> None:
            allocated, reserved = _peaks_in_mib(measurement)
            if reserved:  # `reserved` is 0 if there is no device
                engine.state.metrics.update(
                    zip(_metric_names(span), (allocated, reserved), strict=True)
                )

        return Span(attachment, [measurement], report)


_shared_mark = SharedMark(DeviceMark())
"""The high-water marks of the device's allocator, which all measurements of the process share."""

_latest: WeakKeyDictionary[MaxDeviceMemory, dict[str, Measurement[DevicePeaks]]]
_latest = WeakKeyDictionary()
"""Maps each handler to its last measurements, by the name of the span ("epoch", for example).

The measurements are not stored in an attribute of the handler, so a copy of a handler has none.
"""


def _metric_names(span: str) -> tuple[str, str]:
    return f"{span}_max_device_allocated_mib", f"{span}_max_device_reserved_mib"


def _peaks_in_mib(measurement: Measurement[DevicePeaks]) -> tuple[float, float]:
    allocated, reserved = measurement.result()
    return allocated / MIB, reserved / MIB
