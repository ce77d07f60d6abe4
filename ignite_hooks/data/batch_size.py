"""The number of samples in one batch over all processes."""

from typing import Any

from accelerate.data_loader import BatchSamplerShard
from accelerate.data_loader import DataLoaderDispatcher
from accelerate.data_loader import IterableDatasetShard
from torch.utils.data import BatchSampler
from torch.utils.data import DataLoader

__all__ = ["global_batch_size"]


def global_batch_size(loader: Any, processes: int) -> int | None:
    """Returns the number of samples in one full batch of all processes together.

    Accelerate either gives each process a whole batch of the loader, or splits each batch among
    the processes (``split_batches``). Accelerate's own attribute ``total_batch_size`` cannot be
    used: for a stream (an ``IterableDataset``) that several processes share, its value is the batch
    size of one process, and for a batch sampler without ``batch_size`` it raises an error.

    Args:
        loader: a loader, prepared or not, or any other iterable of batches.
        processes: the number of processes.

    Returns:
        The number of samples. None if the number is not known, for example for an iterable that is
        not a ``DataLoader``.
    """
    base = getattr(loader, "base_dataloader", loader)
    if not isinstance(base, DataLoader):
        return None
    dataset, sampler = base.dataset, base.sampler
    # A loader with ``batch_size=None`` may have a batch sampler in place of its sampler.
    batch_sampler: Any = sampler if isinstance(sampler, BatchSampler) else base.batch_sampler
    size = base.batch_size if batch_sampler is None else getattr(batch_sampler, "batch_size", None)
    is_split = False
    if isinstance(loader, DataLoaderDispatcher):
        is_split = bool(loader.split_batches)
    elif isinstance(batch_sampler, BatchSamplerShard):
        is_split = bool(batch_sampler.split_batches)
    elif isinstance(dataset, IterableDatasetShard):
        # The batch size of the loader is the share of one process. The shard has the batch size
        # that the user chose.
        size, is_split = dataset.batch_size, bool(dataset.split_batches)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        return None
    return size if is_split else size * processes
