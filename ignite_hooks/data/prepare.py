"""Finds the kind that data is of, and has Accelerate prepare it where that does no harm."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderShard
from accelerate.data_loader import IterableDatasetShard
from torch.utils.data import DataLoader
from torch.utils.data import DistributedSampler
from torch.utils.data import IterableDataset

from ignite_hooks.core.accelerators import is_prepared
from ignite_hooks.data.indexed_source import IndexedLoader
from ignite_hooks.data.sources import AdaptedLoader
from ignite_hooks.data.sources import PlainIterable
from ignite_hooks.data.sources import TorchLoader

__all__ = ["can_prepare", "device_of_batches", "source_of"]


def source_of(data: Any, accelerator: Accelerator | None, even_batches: bool) -> PlainIterable:
    """Prepares ``data`` if it is a loader that is not prepared yet, and finds the kind it is of."""
    if not isinstance(data, DataLoader):
        return PlainIterable(data, even_batches)
    loader: Any = data
    if accelerator is not None:
        _refuse_undivided(data, accelerator)
        if can_prepare(data):
            loader = _prepare(data, accelerator)
    is_stream = isinstance(loader.dataset, IterableDataset)
    if is_stream:
        _refuse_padding(loader, even_batches)
    if hasattr(loader, "end_of_dataloader") and not isinstance(loader, DataLoaderShard):
        return AdaptedLoader(loader, even_batches)
    return (TorchLoader if is_stream else IndexedLoader)(loader, even_batches)


def can_prepare(data: Any) -> bool:
    """Whether Accelerate prepares ``data`` without harm: it loses samplers of single samples."""
    if not isinstance(data, DataLoader):
        return False
    has_batches = data.batch_sampler is not None or isinstance(data.dataset, IterableDataset)
    return is_prepared(data) or has_batches


def device_of_batches(loader: Any, accelerator: Accelerator | None) -> torch.device | None:
    """Where batches must be moved to; None if they are there already."""
    if accelerator is None or not accelerator.device_placement or accelerator.device.type == "cpu":
        return None
    device: torch.device | None = getattr(loader, "device", accelerator.device)
    return device


def _refuse_undivided(loader: DataLoader[Any], accelerator: Accelerator) -> None:
    divided = can_prepare(loader) or isinstance(loader.sampler, DistributedSampler)
    if accelerator.num_processes > 1 and not divided:
        raise ValueError(
            f"`data` must be divided over {accelerator.num_processes} processes, and Accelerate "
            "can not divide a DataLoader with batch_size=None: give it a batch_size, or a sampler "
            "of torch.utils.data.DistributedSampler"
        )


def _prepare(loader: DataLoader[Any], accelerator: Accelerator) -> Any:
    """With one process there is no one to dispatch to: batches may then be anything, too."""
    config = accelerator.dataloader_config
    is_alone = accelerator.num_processes == 1 and config.dispatch_batches is None
    if is_alone:
        config.dispatch_batches = False
    try:
        return accelerator.prepare_data_loader(loader)
    finally:
        if is_alone:
            config.dispatch_batches = None


def _refuse_padding(loader: Any, even_batches: bool) -> None:
    shard = loader.dataset
    if not even_batches and isinstance(shard, IterableDatasetShard) and not shard.drop_last:
        raise ValueError(
            "`data` is an IterableDataset that Accelerate splits by repeating samples, which "
            "metrics would count twice: prepare its loader with "
            "DataLoaderConfiguration(dispatch_batches=True), or give it drop_last=True"
        )
