"""Prepares the data of a run with Accelerate, and wraps the data in a source of batches.

A ``DataLoader`` is prepared, unless Accelerate would lose a part of it, such as an overridden
method. All other data is used unchanged.

A run gets its batches from a feed (``DataFeed``), and the feed gets them from a source. Each type
of data has its own class of sources (see ``sources.py``).
"""

import warnings
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderAdapter
from accelerate.data_loader import DataLoaderDispatcher
from accelerate.data_loader import DataLoaderShard
from accelerate.data_loader import IterableDatasetShard
from torch.utils.data import DataLoader
from torch.utils.data import DistributedSampler
from torch.utils.data import IterableDataset

from ignite_hooks.core.accelerators import is_prepared
from ignite_hooks.core.accelerators import temporarily_listed
from ignite_hooks.data.dispatched_source import DispatchedStream
from ignite_hooks.data.indexed_source import IndexedLoader
from ignite_hooks.data.object_states import has_state_dict
from ignite_hooks.data.sources import AdaptedLoader
from ignite_hooks.data.sources import CustomLoader
from ignite_hooks.data.sources import PlainIterable
from ignite_hooks.data.sources import TorchLoader
from ignite_hooks.data.sources import dataset_and_samplers
from ignite_hooks.processes.host_group import broadcast_from_rank_0

__all__ = ["can_prepare", "device_of_batches", "overrides_iteration", "prepare_source"]

# Accelerate can prepare the loader classes of these libraries. If a subclass from other code
# overrides a method, Accelerate would lose the override.
_LOADER_LIBRARIES = {"torch", "torchdata"}
# A loader that overrides one of these members iterates in its own way.
_ITERATION_MEMBERS = {"__iter__", "_auto_collation", "_get_iterator", "_index_sampler"}
_STATE_METHODS = {"state_dict", "load_state_dict"}


def prepare_source(data: Any, accelerator: Accelerator | None, even_batches: bool) -> PlainIterable:
    """Returns the source for ``data``. A loader that is not prepared yet is prepared if possible.

    The loader is not added to the accelerator's list of prepared loaders here, but later by
    ``add_loader_owner``.

    Args:
        data: a loader, prepared or not, or any iterable of batches.
        accelerator: the accelerator that prepares the loader; None to use the loader unchanged.
        even_batches: whether samples may be repeated to give all processes the same number of
            batches.

    Raises:
        ValueError: the data cannot be divided over the processes, or samples would be repeated
            although ``even_batches`` is False.
    """
    if not isinstance(data, DataLoader):
        return PlainIterable(data, even_batches)
    if overrides_iteration(data):
        _refuse_undivided_custom_loader(data, accelerator)
        return CustomLoader(data, even_batches)
    is_single_process = accelerator is None or accelerator.num_processes == 1
    # With one process, a loader with its own state methods need not be prepared, and is used
    # unchanged. Preparation would make a new loader, which lacks these methods.
    if is_single_process and _overrides_state(data):
        return CustomLoader(data, even_batches)
    loader: Any = data
    if accelerator is not None:
        _refuse_undivided(data, accelerator)
        if can_prepare(data):
            loader = _prepare_loader(data, accelerator)
    is_stream = isinstance(loader.dataset, IterableDataset)
    if is_stream:
        _refuse_padding(loader, even_batches)
    # A prepared loader that is not a DataLoaderShard is a dispatcher: rank 0 reads the data and
    # sends batches to the other ranks. Only Accelerate's own iterator can do this, so the sources
    # for a dispatcher use this iterator.
    if hasattr(loader, "end_of_dataloader") and not isinstance(loader, DataLoaderShard):
        if (
            isinstance(loader, DataLoaderDispatcher)
            and has_state_dict(loader.dataset)
            and is_stream
        ):
            return DispatchedStream(loader, even_batches)
        return AdaptedLoader(loader, even_batches)
    return (TorchLoader if is_stream else IndexedLoader)(loader, even_batches)


def overrides_iteration(loader: DataLoader[Any]) -> bool:
    """Returns whether a loader overrides how a ``DataLoader`` of torch iterates.

    Accelerate prepares a loader by making a new loader from its data set and sampler. The new
    loader would lack the override.
    """
    if isinstance(loader, DataLoaderAdapter):
        return False  # the loader is prepared already, so any override is lost
    return _overrides(loader, _ITERATION_MEMBERS) or not _ITERATION_MEMBERS.isdisjoint(vars(loader))


def _overrides_state(loader: DataLoader[Any]) -> bool:
    if isinstance(loader, DataLoaderAdapter):
        return False
    return has_state_dict(loader) and _overrides(loader, _STATE_METHODS)


def _overrides(loader: DataLoader[Any], names: set[str]) -> bool:
    """Returns whether the class of a loader overrides one of the named methods of its library."""
    loader_type = type(loader)
    base = next(
        each
        for each in loader_type.__mro__
        if each.__module__.partition(".")[0] in _LOADER_LIBRARIES
    )
    return any(getattr(loader_type, name, None) is not getattr(base, name, None) for name in names)


def can_prepare(data: Any) -> bool:
    """Returns whether Accelerate can prepare ``data`` without losing part of it.

    Accelerate would lose an overridden iteration, and the sampler of a loader that yields single
    samples (``batch_size=None``).
    """
    if not isinstance(data, DataLoader) or overrides_iteration(data):
        return False
    has_batches = data.batch_sampler is not None or isinstance(data.dataset, IterableDataset)
    return is_prepared(data) or has_batches


def device_of_batches(loader: Any, accelerator: Accelerator | None) -> torch.device | None:
    """Returns the device to move batches to; None if they need not be moved."""
    if accelerator is None or not accelerator.device_placement or accelerator.device.type == "cpu":
        return None
    # If the user prepared a loader without device placement, ``loader.device`` is None, and its
    # batches are not moved.
    is_adapter = isinstance(loader, DataLoaderAdapter)
    return loader.device if is_adapter else accelerator.device  # type: ignore[no-any-return]


def _refuse_undivided_custom_loader(
    loader: DataLoader[Any], accelerator: Accelerator | None
) -> None:
    is_divided = isinstance(loader.sampler, DistributedSampler)
    if accelerator is not None and accelerator.num_processes > 1 and not is_divided:
        raise ValueError(
            f"`data` must be divided over {accelerator.num_processes} processes, got a "
            f"{type(loader).__name__}, which overrides how a DataLoader iterates. If Accelerate "
            "divided the loader, the override would be lost: give the loader a "
            "torch.utils.data.DistributedSampler, or pass an iterable that gives each process its "
            "own batches"
        )


def _refuse_undivided(loader: DataLoader[Any], accelerator: Accelerator) -> None:
    divided = can_prepare(loader) or isinstance(loader.sampler, DistributedSampler)
    if accelerator.num_processes > 1 and not divided:
        raise ValueError(
            f"`data` must be divided over {accelerator.num_processes} processes, and Accelerate "
            "cannot divide a DataLoader with batch_size=None: give the loader a batch_size, or a "
            "torch.utils.data.DistributedSampler"
        )


def _prepare_loader(loader: DataLoader[Any], accelerator: Accelerator) -> Any:
    """Returns the loader that Accelerate makes when it prepares ``loader``.

    Batches are *dispatched* if rank 0 reads them and sends them to the other ranks.
    """
    config = accelerator.dataloader_config
    found = (config.dispatch_batches, config.data_seed)
    if accelerator.num_processes > 1:
        _warn_of_second_division(loader, accelerator)
        if config.use_seedable_sampler and config.data_seed is None:
            # Accelerate would seed the sampler on each rank with the seed of that rank. Then each
            # rank would take its share from a different order.
            config.data_seed = broadcast_from_rank_0(torch.initial_seed(), accelerator)
    elif config.dispatch_batches is None:
        # Accelerate would dispatch the batches of an IterableDataset. Dispatched batches must
        # consist of tensors.
        config.dispatch_batches = False
    try:
        with temporarily_listed(accelerator):
            return accelerator.prepare_data_loader(loader)
    finally:
        config.dispatch_batches, config.data_seed = found


def _warn_of_second_division(loader: DataLoader[Any], accelerator: Accelerator) -> None:
    parts = () if is_prepared(loader) else dataset_and_samplers(loader)
    if any(isinstance(each, DistributedSampler) and each.num_replicas > 1 for each in parts):
        warnings.warn(
            "`data` has a DistributedSampler, and Accelerate divides the loader a second time: "
            f"each of {accelerator.num_processes} processes is given only a part of its share, and "
            "most samples are never used. Leave the sampler out: shuffle=True shuffles over all "
            "processes",
            stacklevel=2,
        )


def _refuse_padding(loader: Any, even_batches: bool) -> None:
    shard = loader.dataset
    if not even_batches and isinstance(shard, IterableDatasetShard) and not shard.drop_last:
        raise ValueError(
            "`data` is an IterableDataset, and Accelerate repeats samples to split it evenly. "
            "Metrics would count these samples twice: prepare the loader with "
            "DataLoaderConfiguration(dispatch_batches=True), or give the loader drop_last=True"
        )
