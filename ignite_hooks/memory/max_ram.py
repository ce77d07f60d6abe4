"""Measures the peak of resident memory between two lines of code, however short the peak is."""

from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.fields import Backend
from ignite_hooks.core.fields import Flag
from ignite_hooks.core.fields import Seconds
from ignite_hooks.memory.mark import MIB
from ignite_hooks.memory.measurement import Measurement
from ignite_hooks.memory.ram_backends import backend_in_use
from ignite_hooks.memory.ram_backends import ram_measurements

__all__ = ["MaxRAM"]


@checked_dataclass
class MaxRAM(AbstractContextManager["MaxRAM", None]):
    """Measures the most memory that the process has had resident, from ``start`` to ``stop``.

    ::

        with MaxRAM() as ram:
            work()
        print(ram.result(), "MiB")

    A process that runs out of memory is killed at its peak. A thread that samples the memory every
    second sees this peak only by chance. The Linux kernel itself records the peak of each process,
    however short the peak is, as the *high-water mark*.

    Several ``MaxRAM`` objects can measure at the same time, nested or overlapping. Each reports the
    peak between its ``start`` and its ``stop``.

    The result is the absolute peak of all resident memory, including libraries and the memory that
    the allocator keeps for reuse. So the difference of two peaks is not the size of an allocation:
    an allocation that reuses a freed block does not raise the peak.

    With ``include_children`` the peaks of the child processes, loader workers for example, are
    added. Only the unshared memory of a child is added, so pages that the child shares with this
    process count once. The memory of the children is read at ``start``, ``reset``, ``result`` and
    ``stop``, and by a thread at intervals of ``every`` seconds. A reading takes milliseconds. A
    peak of a child is missed if the child ends before the next reading. If the processes had their
    peaks at different times, the sum may exceed the memory that was in use at any one time. With
    the backend "kernel", ``start`` and ``reset`` also reset the high-water marks of the children.
    So a child that measures itself at the same time may report too little.

    Args:
        every: seconds between two readings of the memory by a thread. The thread runs with the
            backend "sampler" and with ``include_children``.
        include_children: add the memory of the children of this process, direct and indirect.
        backend: "kernel" (on Linux) resets and reads the kernel's high-water mark. The mark belongs
            to the whole process, and its reset lowers ``ru_maxrss`` too. "sampler" reads the
            memory in a thread at intervals of ``every`` seconds, and also at ``start``, ``reset``,
            ``result`` and ``stop``. It misses a peak between two readings. "auto" uses "kernel" if
            a trial shows that a reset of the mark works in this process, otherwise "sampler".

    Raises:
        ValueError: an argument is out of its range; ``backend`` is "kernel" and the high-water mark
            cannot be reset in this process.
    """

    every: Seconds = 1.0
    include_children: Flag = False
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        """Raises a ValueError if the backend cannot be used."""
        assert self._used_backend  # the property raises the ValueError

    @property
    def used_backend(self) -> str:
        """The backend in use, "kernel" or "sampler"."""
        return self._used_backend

    @cached_property
    def _used_backend(self) -> str:
        return backend_in_use(self.backend)

    @cached_property
    def _measurements(self) -> list[Measurement[int]]:
        return ram_measurements(self.used_backend, self.every, self.include_children)

    def start(self) -> None:
        """Starts measuring from scratch; does nothing if a measurement is running.

        One ``stop`` ends the measurement, also after several calls of ``start``.
        """
        try:
            for measurement in self._measurements:
                measurement.start()
        except BaseException:
            self.stop()  # if one measurement fails to start, another may be running already
            raise

    def stop(self) -> None:
        """Stops measuring and keeps the result; does nothing if no measurement is running."""
        for measurement in self._measurements:
            measurement.stop()

    def reset(self) -> None:
        """Forgets the peak; a running measurement starts from scratch."""
        for measurement in self._measurements:
            measurement.reset()

    def result(self) -> float:
        """Returns the peak in MiB.

        While a measurement runs, the result is its peak so far. Otherwise the result is the peak of
        the last measurement, or 0.0 before the first measurement.
        """
        peak = 0
        for measurement in self._measurements:
            peak += measurement.result()
        return peak / MIB

    def __enter__(self) -> "MaxRAM":
        self.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()

    def __getstate__(self) -> dict[str, Any]:
        # A copy makes its own measurements on first use.
        return {name: value for name, value in vars(self).items() if name != "_measurements"}

    def __del__(self) -> None:
        # If this object is garbage-collected while it measures, its measurements are ended.
        # Otherwise they would keep the files or the thread of the backend open. There are no
        # measurements before first use, or if the constructor has failed.
        for measurement in vars(self).get("_measurements", ()):
            measurement.abandon()
