"""The peak of resident memory between two moments, and no spike is too short for it."""

from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.fields import Backend
from ignite_hooks.core.fields import Flag
from ignite_hooks.core.fields import Seconds
from ignite_hooks.memory.ledger import Measurement
from ignite_hooks.memory.mark import MIB
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

    What kills a run is the peak, and a thread that looks every second sees it by chance. On Linux
    the kernel keeps it and is asked: every spike is in it, however short, and no thread is needed.
    Several can measure at once, one within the other or overlapping; each has the peak of its time.

    It is the absolute peak of all that is resident, libraries and what the allocator keeps for
    later included. So the difference of two peaks is not the size of an allocation: a block that
    is freed and taken again may show once only.

    With ``include_children`` the peaks of the children's own memory are added, loader workers for
    instance; pages that they share with this process count once. The children are visited at
    ``start``, ``reset``, ``result`` and ``stop``, and every ``every`` seconds by a thread. A visit
    takes 3 to 10 ms. What a child takes after the last visit in its life is missed, so all of a
    child that lives between two visits. And the sum may be more than there ever was, when the peaks
    of the processes are not at the same time. The children's own marks are reset: one that measures
    itself meanwhile sees less.

    Args:
        every: seconds between two samples of the sampler, and between two visits to the children.
        include_children: add what the children of this process, direct and indirect, have taken.
        backend: "kernel", on Linux, resets and reads the kernel's high-water mark, which belongs to
            the whole process (``ru_maxrss`` falls with it); "sampler" is a thread that looks every
            so many seconds, and at start, reset, result and stop; "auto" is the kernel where a
            reset is seen to work, and the sampler elsewhere.

    Raises:
        ValueError: an argument is out of its range; the kernel's mark cannot be used here.
    """

    every: Seconds = 1.0
    include_children: Flag = False
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        """Checks that the backend can be used."""
        assert self._used_backend

    @property
    def used_backend(self) -> str:
        """Which backend it is: "kernel" or "sampler"."""
        return self._used_backend

    @cached_property
    def _used_backend(self) -> str:
        return backend_in_use(self.backend)

    @cached_property
    def _parts(self) -> list[Measurement[int]]:
        return ram_measurements(self.used_backend, self.every, self.include_children)

    def start(self) -> None:
        """Begins anew. While it is running it goes on, and the first ``stop`` ends it."""
        try:
            for part in self._parts:
                part.start()
        except BaseException:
            self.stop()  # the first part, if it is the second that failed
            raise

    def stop(self) -> None:
        """Ends it; the result stays. Without a start before it nothing happens."""
        for part in self._parts:
            part.stop()

    def reset(self) -> None:
        """Forgets the peak: a running measurement begins anew now."""
        for part in self._parts:
            part.reset()

    def result(self) -> float:
        """The peak so far, or of the last time, in MiB; 0.0 if nothing was measured yet."""
        peak = 0
        for part in self._parts:
            peak += part.result()
        return peak / MIB

    def __enter__(self) -> "MaxRAM":
        self.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_parts"}

    def __del__(self) -> None:
        for part in vars(self).get("_parts", ()):
            part.abandon()
