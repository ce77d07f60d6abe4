"""The two backends that measure peaks of resident memory: "kernel" and "sampler".

"kernel" reads the high-water marks that Linux keeps: the highest resident memory of each process
since the last reset of its mark. "sampler" measures the memory at intervals.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager

from ignite_hooks.memory.kernel import KernelChildrenMark
from ignite_hooks.memory.kernel import KernelMark
from ignite_hooks.memory.kernel import why_no_kernel_mark
from ignite_hooks.memory.measurement import Measurement
from ignite_hooks.memory.measurement import SharedMark
from ignite_hooks.memory.sampled import SampledMark
from ignite_hooks.memory.sampled import resident_bytes
from ignite_hooks.memory.sampled import unshared_bytes_of_children

__all__ = ["backend_in_use", "ram_measurements", "unmeasured_ram"]

# The high-water marks by backend: of this process, and of all its child processes together. All
# measurements share these objects, because a reset of a mark affects all measurements: before a
# reset, a `SharedMark` saves the peaks of those that are running.
_PROCESS_MARKS = {
    "kernel": SharedMark(KernelMark()),
    "sampler": SharedMark(SampledMark(resident_bytes), is_sampled=True),
}
_CHILDREN_MARKS = {
    "kernel": SharedMark(KernelChildrenMark(), is_sampled=True),
    "sampler": SharedMark(SampledMark(unshared_bytes_of_children), is_sampled=True),
}


def backend_in_use(backend: str) -> str:
    """Returns the backend to use in this process, "kernel" or "sampler".

    Raises:
        ValueError: "kernel" is requested, and the kernel's mark cannot be reset in this process.
    """
    if backend == "sampler":
        return "sampler"
    refusal = why_no_kernel_mark()
    if refusal is None:
        return "kernel"
    if backend == "auto":
        return "sampler"
    raise ValueError(
        '`backend` must be one that works here, got "kernel", but the high-water mark of this '
        f'process cannot be reset ({refusal}): backend="auto" uses the sampler in this case'
    )


def ram_measurements(backend: str, every: float, include_children: bool) -> list[Measurement[int]]:
    """Returns the measurements whose peaks add up to the peak of resident memory, in bytes."""
    shared_marks = [_PROCESS_MARKS, _CHILDREN_MARKS] if include_children else [_PROCESS_MARKS]
    return [Measurement(shared_mark[backend], every) for shared_mark in shared_marks]


@contextmanager
def unmeasured_ram() -> Iterator[None]:
    """Leaves the memory that the body takes and frees out of all peaks of this process."""
    with ExitStack() as stack:
        for shared_mark in _PROCESS_MARKS.values():
            stack.enter_context(shared_mark.paused())
        yield
