"""Checks whether the ranks may draw different orders of the data.

Accelerate divides the indices of a sampler, or the samples of a stream (an ``IterableDataset``), as
follows: each rank iterates over all indices or samples, and takes its share. If the order is drawn
from a global random generator whose state differs between ranks, each rank takes its share from a
different order. Then some samples are trained on twice, and others never.
"""

import hashlib
import pickle
import random
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import BatchSamplerShard
from accelerate.data_loader import DataLoaderDispatcher
from accelerate.data_loader import IterableDatasetShard
from accelerate.data_loader import SeedableRandomSampler
from accelerate.data_loader import SkipBatchSampler
from torch.utils.data import BatchSampler
from torch.utils.data import DataLoader
from torch.utils.data import DistributedSampler
from torch.utils.data import IterableDataset
from torch.utils.data import SequentialSampler

from ignite_hooks.data.sources import dataset_and_samplers

__all__ = ["global_generators_digest", "rank_dependent_part"]

# These classes draw no random numbers, or draw with seeds that are equal on all ranks.
_SAME_ON_ALL_RANKS = {
    BatchSampler,
    BatchSamplerShard,
    DistributedSampler,
    SeedableRandomSampler,
    SequentialSampler,
    SkipBatchSampler,
}


def rank_dependent_part(data: Any) -> str | None:
    """Names the part of ``data`` that may draw the order from a global generator.

    A sampler or a stream (an ``IterableDataset``) with its own ``generator`` is not named, because
    Accelerate broadcasts the state of this generator from rank 0 when a pass begins.

    Args:
        data: a loader, prepared or not, or another iterable of batches.

    Returns:
        A noun phrase for a message, for example "a RandomSampler"; None if there is no such part.
    """
    if isinstance(data, DataLoaderDispatcher) or type(data) in (list, tuple):
        return None  # rank 0 reads for all ranks, or the order is fixed
    if not isinstance(data, DataLoader):
        return f"a {type(data).__name__}"
    dataset = data.dataset
    if isinstance(dataset, IterableDatasetShard):
        dataset = dataset.dataset
    parts = [dataset] if isinstance(dataset, IterableDataset) else dataset_and_samplers(data)[1:]
    for part in parts:
        if type(part) not in _SAME_ON_ALL_RANKS and getattr(part, "generator", None) is None:
            return f"a {type(part).__name__}"
    return None


def global_generators_digest() -> int:
    """Returns a hash of the states of the global random generators, as a positive integer."""
    states = (random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state().numpy())
    # The ranks compare the hash and its negative. It has 7 bytes, so that both fit into an int64. 1
    # is added because 0 means that there is no hash.
    digest = hashlib.blake2b(pickle.dumps(states), digest_size=7).digest()
    return 1 + int.from_bytes(digest, "big")
