"""Finds the kind that data is of, and has Accelerate prepare it where that does no harm."""

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
from ignite_hooks.core.accelerators import unlisted
from ignite_hooks.data.dispatched_source import DispatchedStream
from ignite_hooks.data.indexed_source import IndexedLoader
from ignite_hooks.data.own_states import has_state
from ignite_hooks.data.sources import AdaptedLoader
from ignite_hooks.data.sources import OwnLoader
from ignite_hooks.data.sources import PlainIterable
from ignite_hooks.data.sources import TorchLoader
from ignite_hooks.data.sources import parts_of
from ignite_hooks.processes.host_group import of_rank_0

__all__ = ["can_prepare", "changes_iteration", "device_of_batches", "source_of"]

_KNOWN = {"torch", "torchdata"}  # the libraries whose loaders can be made again
_ITERATION = {"__iter__", "_auto_collation", "_get_iterator", "_index_sampler"}
_STATE = {"state_dict", "load_state_dict"}


def source_of(data: Any, accelerator: Accelerator | None, even_batches: bool) -> PlainIterable:
    """Prepares ``data`` if it is a loader that is not prepared yet, and finds the kind it is of.

    The accelerator's list of loaders stays as it is: see ``list_loader``.
    """
    if not isinstance(data, DataLoader):
        return PlainIterable(data, even_batches)
    if changes_iteration(data):
        _refuse_own_iteration(data, accelerator)
        return OwnLoader(data, even_batches)
    is_alone = accelerator is None or accelerator.num_processes == 1
    if is_alone and _has_own_state(data):  # which a loader that is made again has not
        return OwnLoader(data, even_batches)
    loader: Any = data
    if accelerator is not None:
        _refuse_undivided(data, accelerator)
        if can_prepare(data):
            loader = _prepare(data, accelerator)
    is_stream = isinstance(loader.dataset, IterableDataset)
    if is_stream:
        _refuse_padding(loader, even_batches)
    if hasattr(loader, "end_of_dataloader") and not isinstance(loader, DataLoaderShard):
        if isinstance(loader, DataLoaderDispatcher) and has_state(loader.dataset) and is_stream:
            return DispatchedStream(loader, even_batches)
        return AdaptedLoader(loader, even_batches)
    return (TorchLoader if is_stream else IndexedLoader)(loader, even_batches)


def changes_iteration(loader: DataLoader[Any]) -> bool:
    """Returns whether the class of a loader iterates in a way of its own.

    Accelerate would make another loader of its data set and sampler, which iterates as torch does.
    """
    if isinstance(loader, DataLoaderAdapter):
        return False  # it was made already
    return _overrides(loader, _ITERATION) or not _ITERATION.isdisjoint(vars(loader))


def _has_own_state(loader: DataLoader[Any]) -> bool:
    if isinstance(loader, DataLoaderAdapter):
        return False
    return has_state(loader) and _overrides(loader, _STATE)


def _overrides(loader: DataLoader[Any], names: set[str]) -> bool:
    """Returns whether the class of a loader has others of these methods than its library's."""
    kind = type(loader)
    known = next(each for each in kind.__mro__ if each.__module__.partition(".")[0] in _KNOWN)
    return any(getattr(kind, name, None) is not getattr(known, name, None) for name in names)


def can_prepare(data: Any) -> bool:
    """Whether Accelerate prepares ``data`` without harm: it loses samplers of single samples.

    It also loses the iteration of a class that has one of its own.
    """
    if not isinstance(data, DataLoader) or changes_iteration(data):
        return False
    has_batches = data.batch_sampler is not None or isinstance(data.dataset, IterableDataset)
    return is_prepared(data) or has_batches


def device_of_batches(loader: Any, accelerator: Accelerator | None) -> torch.device | None:
    """Where batches must be moved to; None if they are there already."""
    if accelerator is None or not accelerator.device_placement or accelerator.device.type == "cpu":
        return None
    # That of a loader that is not prepared is its user's business.
    is_theirs = isinstance(loader, DataLoaderAdapter)
    return loader.device if is_theirs else accelerator.device  # type: ignore[no-any-return]


def _refuse_own_iteration(loader: DataLoader[Any], accelerator: Accelerator | None) -> None:
    is_divided = isinstance(loader.sampler, DistributedSampler)
    if accelerator is not None and accelerator.num_processes > 1 and not is_divided:
        raise ValueError(
            f"`data` must be divided over {accelerator.num_processes} processes, got a "
            f"{type(loader).__name__}, whose class iterates in its own way, and Accelerate would "
            "leave that out: give it a sampler of torch.utils.data.DistributedSampler, or pass an "
            "iterable that gives each process its own batches"
        )


def _refuse_undivided(loader: DataLoader[Any], accelerator: Accelerator) -> None:
    divided = can_prepare(loader) or isinstance(loader.sampler, DistributedSampler)
    if accelerator.num_processes > 1 and not divided:
        raise ValueError(
            f"`data` must be divided over {accelerator.num_processes} processes, and Accelerate "
            "cannot divide a DataLoader with batch_size=None: give it a batch_size, or a sampler "
            "of torch.utils.data.DistributedSampler"
        )


def _prepare(loader: DataLoader[Any], accelerator: Accelerator) -> Any:
    """Has Accelerate prepare a loader.

    With one process there is no one to dispatch to: batches may then be anything, too. With several
    a seedable sampler has the same seed on all ranks.
    """
    config = accelerator.dataloader_config
    found = (config.dispatch_batches, config.data_seed)
    if accelerator.num_processes > 1:
        _warn_of_second_division(loader, accelerator)
        if config.use_seedable_sampler and config.data_seed is None:
            # Accelerate takes that of each rank, and each would take its share of another order.
            config.data_seed = of_rank_0(torch.initial_seed(), accelerator)
    elif config.dispatch_batches is None:
        config.dispatch_batches = False
    try:
        with unlisted(accelerator):
            return accelerator.prepare_data_loader(loader)
    finally:
        config.dispatch_batches, config.data_seed = found


def _warn_of_second_division(loader: DataLoader[Any], accelerator: Accelerator) -> None:
    parts = () if is_prepared(loader) else parts_of(loader)
    if any(isinstance(each, DistributedSampler) and each.num_replicas > 1 for each in parts):
        warnings.warn(
            "`data` has a DistributedSampler, and Accelerate divides its loader once more: each of "
            f"{accelerator.num_processes} processes is given a part of its part, and most samples "
            "are never used. Leave the sampler out: shuffle=True shuffles over all processes",
            stacklevel=2,
        )


def _refuse_padding(loader: Any, even_batches: bool) -> None:
    shard = loader.dataset
    if not even_batches and isinstance(shard, IterableDatasetShard) and not shard.drop_last:
        raise ValueError(
            "`data` is an IterableDataset that Accelerate splits by repeating samples, which "
            "metrics would count twice: prepare its loader with "
            "DataLoaderConfiguration(dispatch_batches=True), or give it drop_last=True"
        )
