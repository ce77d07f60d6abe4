"""The number of samples in one batch over all processes."""

from typing import Any

from accelerate.data_loader import BatchSamplerShard
from accelerate.data_loader import DataLoaderDispatcher
from accelerate.data_loader import IterableDatasetShard
from torch.utils.data import BatchSampler
from torch.utils.data import DataLoader

__all__ = ["global_batch_size"]


def global_batch_size(loader: Any, processes: int) -> int | None:
    """Returns the samples in one full batch of all processes together; None if not known.

    Accelerate gives each process a batch of the loader's size, or splits one such batch
    (``split_batches``). Accelerate's own ``total_batch_size`` cannot be used: for a stream that
    several processes share it is the size of one process, and it raises if the sampler has no size.

    Args:
        loader: a loader, prepared or not. For any other iterable of batches the size is not known.
        processes: the number of processes.
    """
    base = getattr(loader, "base_dataloader", loader)
    if not isinstance(base, DataLoader):
        return None
    dataset, sampler = base.dataset, base.sampler
    # With ``batch_size=None`` a batch sampler may be given as the sampler.
    sizes: Any = sampler if isinstance(sampler, BatchSampler) else base.batch_sampler
    size = base.batch_size if sizes is None else getattr(sizes, "batch_size", None)
    is_split = False
    if isinstance(loader, DataLoaderDispatcher):
        is_split = bool(loader.split_batches)
    elif isinstance(sizes, BatchSamplerShard):
        is_split = bool(sizes.split_batches)
    elif isinstance(dataset, IterableDatasetShard):
        # The loader's batch size is the share of one process; the shard has that of the user.
        size, is_split = dataset.batch_size, bool(dataset.split_batches)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        return None
    return size if is_split else size * processes
