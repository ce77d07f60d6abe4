"""The sources of resident memory: the kernel's marks, or samples."""

from ignite_hooks.memory.kernel import KernelChildrenMark
from ignite_hooks.memory.kernel import KernelMark
from ignite_hooks.memory.kernel import why_no_kernel_mark
from ignite_hooks.memory.ledger import Measurement
from ignite_hooks.memory.ledger import PeakLedger
from ignite_hooks.memory.sampled import SampledMark
from ignite_hooks.memory.sampled import resident_bytes
from ignite_hooks.memory.sampled import unshared_bytes_of_children

__all__ = ["backend_in_use", "ram_measurements"]

# One ledger for each mark of the process, by backend: all measurements must share it.
_PROCESS_LEDGERS = {
    "kernel": PeakLedger(KernelMark()),
    "sampler": PeakLedger(SampledMark(resident_bytes), is_sampled=True),
}
_CHILDREN_LEDGERS = {
    "kernel": PeakLedger(KernelChildrenMark(), is_sampled=True),
    "sampler": PeakLedger(SampledMark(unshared_bytes_of_children), is_sampled=True),
}


def backend_in_use(backend: str) -> str:
    """Returns the backend to use in this process, "kernel" or "sampler".

    Raises:
        ValueError: "kernel" is requested, and the kernel's mark cannot be used here.
    """
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
    """Returns the measurements whose peaks add up to the peak of resident memory, in bytes."""
    ledgers = [_PROCESS_LEDGERS, _CHILDREN_LEDGERS] if include_children else [_PROCESS_LEDGERS]
    return [Measurement(ledger[backend], every) for ledger in ledgers]
