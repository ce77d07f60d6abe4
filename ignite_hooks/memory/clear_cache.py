"""A handler that gives cached memory, which no tensor uses, back to the device."""

from accelerate.utils import memory as accelerate_memory
from ignite.engine import Engine

from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.fields import Every
from ignite_hooks.core.fields import Flag
from ignite_hooks.core.fields import Fraction
from ignite_hooks.memory.device import memory_in_use
from ignite_hooks.memory.mark import MIB
from ignite_hooks.memory.upkeep import Upkeep

__all__ = ["ClearCache"]


@checked_dataclass
class ClearCache(Upkeep):
    """Clears the cache of the device's allocator, so that tensors of any size can use the memory.

    When a tensor is freed, the allocator keeps its block of memory in a cache for a later tensor.
    Reusing such blocks is fast. But a long batch or a validation can run out of memory while much
    memory is reserved in blocks of the wrong size. Clearing the cache synchronizes with the device,
    and later tensors must reserve blocks again, so the cache is cleared on a schedule only.

    With ``every_steps`` the cache is cleared after a committed step (one that the loss scaler did
    not skip), when the gradients have been zeroed. Without ``every_steps`` and ``every_epochs`` the
    cache is cleared at the end of each epoch. The handler calls Accelerate's
    ``clear_device_cache``, which works for any kind of device. On a machine that has only CPUs, the
    handler clears no cache.

    The freed memory, in MiB, is in ``state.metrics["cleared_cache_mib"]``, if the device has
    statistics of its memory.

    Args:
        every_steps: clear the cache at every n-th committed step. On an engine that has no
            ``OptimizerStep``, iterations are counted instead.
        every_epochs: clear the cache at the end of every n-th epoch.
        garbage_collection: collect Python's garbage first, including tensors in reference cycles.
            A full collection visits all objects of the process.
        min_fragmentation: clear only if more than this fraction of the reserved memory is unused.
            On a device without statistics the cache is always cleared.

    Raises:
        ValueError: a schedule or the fraction is out of its range.
    """

    every_steps: Every | None = None
    every_epochs: Every | None = None
    garbage_collection: Flag = False
    min_fragmentation: Fraction | None = None

    def __call__(self, engine: Engine) -> None:
        """Clears the cache now, or does nothing if ``min_fragmentation`` is not exceeded."""
        before = memory_in_use()
        if self.min_fragmentation is not None and before is not None:
            reserved, allocated = before
            if reserved - allocated <= self.min_fragmentation * reserved:
                return
        accelerate_memory.clear_device_cache(garbage_collection=self.garbage_collection)
        after = memory_in_use()
        if before is not None and after is not None:
            engine.state.metrics["cleared_cache_mib"] = (before[0] - after[0]) / MIB
