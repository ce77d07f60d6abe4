"""Gives memory that the device's allocator keeps and does not use back to the device."""

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
    """Clears the cache of the device's allocator, so that what is free can be used by all.

    The allocator keeps freed blocks for the next tensor. That is fast, and it is why a long batch
    or a validation can fail for lack of memory while much of it lies reserved in pieces of the
    wrong size. Clearing costs: the device is waited for, and blocks must be reserved anew. So it is
    done on a schedule: ``every_steps``, when the gradients of a committed step are cleared,
    ``every_epochs``, or at the end of each epoch if neither is given. It is done by Accelerate's
    ``clear_device_cache``, for any kind of device; without one there is no cache to clear.

    What it gave back is in ``state.metrics["cleared_cache_mib"]``, where the device can tell.

    Args:
        every_steps: once in so many committed steps (iterations, on an engine that has no
            ``OptimizerStep``).
        every_epochs: once in so many epochs.
        garbage_collection: collect Python's garbage first, tensors in reference cycles with it. It
            takes 0.1 to 0.2 s.
        min_fragmentation: clear only if more than this fraction of what is reserved is not in use.
            Where the device cannot tell, it is cleared always.

    Raises:
        ValueError: a schedule or the fraction is out of its range.
    """

    every_steps: Every | None = None
    every_epochs: Every | None = None
    garbage_collection: Flag = False
    min_fragmentation: Fraction | None = None

    def __call__(self, engine: Engine) -> None:
        """Clears the cache now, unless too little of it is free."""
        before = memory_in_use()
        if self.min_fragmentation is not None and before is not None:
            reserved, allocated = before
            if reserved - allocated <= self.min_fragmentation * reserved:
                return
        accelerate_memory.clear_device_cache(garbage_collection=self.garbage_collection)
        after = memory_in_use()
        if before is not None and after is not None:
            engine.state.metrics["cleared_cache_mib"] = (before[0] - after[0]) / MIB
