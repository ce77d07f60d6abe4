"""Orders of data that all ranks must draw alike, because each is given a share of one.

Accelerate divides a sampler's indices, or the samples of a stream: each rank goes through all of
them and takes its own. If the order comes from a global random generator, and these differ between
ranks, the shares are of different orders: some samples are trained on twice, and others never.
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

from ignite_hooks.data.sources import parts_of

__all__ = ["digest_of_global_generators", "what_may_draw_apart"]

# These draw nothing, or with seeds that are the same on all ranks.
_ALIKE = {
    BatchSampler,
    BatchSamplerShard,
    DistributedSampler,
    SeedableRandomSampler,
    SequentialSampler,
    SkipBatchSampler,
}


def what_may_draw_apart(data: Any) -> str | None:
    """Returns what may draw the order of ``data`` from a global random generator; None if nothing.

    A sampler or a stream that has a ``generator`` draws from that: Accelerate sends its state from
    rank 0 to all as a pass begins.

    Args:
        data: a loader, prepared or not, or another iterable of batches.
    """
    if isinstance(data, DataLoaderDispatcher) or type(data) in (list, tuple):
        return None  # rank 0 reads for all; nothing is drawn
    if not isinstance(data, DataLoader):
        return f"a {type(data).__name__}"
    dataset = data.dataset
    if isinstance(dataset, IterableDatasetShard):
        dataset = dataset.dataset
    parts = [dataset] if isinstance(dataset, IterableDataset) else parts_of(data)[1:]
    for part in parts:
        if type(part) not in _ALIKE and getattr(part, "generator", None) is None:
            return f"a {type(part).__name__}"
    return None


def digest_of_global_generators() -> int:
    """Returns a number that differs, most likely, where global generators are in other states."""
    states = (random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state().numpy())
    digest = hashlib.blake2b(pickle.dumps(states), digest_size=7).digest()
    return 1 + int.from_bytes(digest, "big")
