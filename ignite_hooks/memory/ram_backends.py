"""Where the figures of resident memory come from: the kernel, or samples."""

from ignite_hooks.memory.kernel import KernelChildrenMark
from ignite_hooks.memory.kernel import KernelMark
from ignite_hooks.memory.kernel import why_no_kernel_mark
from ignite_hooks.memory.ledger import Measurement
from ignite_hooks.memory.ledger import PeakLedger
from ignite_hooks.memory.sampled import SampledMark
from ignite_hooks.memory.sampled import resident
from ignite_hooks.memory.sampled import uss_of_children

__all__ = ["backend_in_use", "ram_measurements"]

_OWN = {
    "kernel": PeakLedger(KernelMark()),
    "sampler": PeakLedger(SampledMark(resident), is_sampled=True),
}
_CHILDREN = {
    "kernel": PeakLedger(KernelChildrenMark(), is_sampled=True),
    "sampler": PeakLedger(SampledMark(uss_of_children), is_sampled=True),
}


def backend_in_use(backend: str) -> str:
    """What "auto" means in this process; a ValueError if what was asked for is refused."""
    if backend == "sampler":
        return "sampler"
    refusal = why_no_kernel_mark()
    if refusal is None:
        return "kernel"
    if backend == "auto":
        return "sampler"
    raise ValueError(
        '`backend` must be one that works here, got "kernel", and the high-water mark of this '
        f'process cannot be reset ({refusal}): backend="auto" takes the sampler then'
    )


def ram_measurements(backend: str, every: float, include_children: bool) -> list[Measurement[int]]:
    """What has to be measured, and the peaks added, for a peak of resident memory in bytes."""
    ledgers = [_OWN, _CHILDREN] if include_children else [_OWN]
    return [Measurement(ledger[backend], every) for ledger in ledgers]
