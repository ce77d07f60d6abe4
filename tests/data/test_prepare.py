import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher
from accelerate.data_loader import DataLoaderShard
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset

from ignite_hooks.data.indexed_source import IndexedLoader
from ignite_hooks.data.prepare import can_prepare
from ignite_hooks.data.prepare import prepare_source
from ignite_hooks.data.sources import AdaptedLoader
from ignite_hooks.data.sources import PlainIterable
from ignite_hooks.data.sources import TorchLoader


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(6))


def map_style():
    return DataLoader(range(6), batch_size=2)


def single_samples():
    return DataLoader(range(6), batch_size=None, shuffle=True)


def stream():
    return DataLoader(Stream(), batch_size=2)


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (list, PlainIterable),
        (lambda: iter([]), PlainIterable),
        (map_style, IndexedLoader),
        (single_samples, IndexedLoader),
        (stream, TorchLoader),
    ],
)
def test_each_type_of_data_has_its_source(make, kind, accelerator):
    assert type(prepare_source(make(), accelerator, True)) is kind


def test_user_prepared_stream_may_be_dispatched(accelerator):
    loader = accelerator.prepare(stream())
    assert isinstance(loader, DataLoaderDispatcher)
    assert type(prepare_source(loader, accelerator, True)) is AdaptedLoader


@pytest.mark.parametrize("dispatched", [None, False, True])
def test_preparing_restores_the_accelerator_settings(dispatched):
    config = DataLoaderConfiguration(dispatch_batches=dispatched)
    accelerator = Accelerator(cpu=True, dataloader_config=config)
    source = prepare_source(stream(), accelerator, True)
    assert accelerator.dataloader_config.dispatch_batches is dispatched
    assert isinstance(source.loader, DataLoaderDispatcher) is bool(dispatched)


@pytest.mark.parametrize(
    ("make", "kind"), [(map_style, IndexedLoader), (stream, TorchLoader), (list, PlainIterable)]
)
def test_nothing_is_prepared_without_an_accelerator(make, kind):
    data = make()
    source = prepare_source(data, None, True)
    assert type(source) is kind
    assert source.loader is data


def test_dispatched_loader_is_iterated_by_accelerate():
    accelerator = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=True)
    )
    source = prepare_source(map_style(), accelerator, True)
    assert type(source) is AdaptedLoader
    assert isinstance(source.loader, DataLoaderDispatcher)


def test_prepared_loader_is_not_prepared_again(accelerator):
    loader = accelerator.prepare(map_style())
    for even_batches in (True, False):
        assert prepare_source(loader, accelerator, even_batches).loader is loader
    assert accelerator._dataloaders == [loader]


def test_prepared_loader_is_not_added_to_accelerates_list(accelerator):
    source = prepare_source(map_style(), accelerator, True)
    assert isinstance(source.loader, DataLoaderShard)
    assert accelerator._dataloaders == []


def test_loader_without_batches_is_not_prepared(accelerator):
    loader = single_samples()
    assert not can_prepare(loader)
    assert prepare_source(loader, accelerator, True).loader is loader
    assert accelerator._dataloaders == []


@pytest.mark.parametrize(("make", "can"), [(map_style, True), (stream, True), (list, False)])
def test_can_prepare_only_loaders_with_batches(make, can):
    assert can_prepare(make()) is can


def test_padded_stream_is_refused_without_even_batches(accelerator):
    def split(**settings):
        return prepare_data_loader(
            DataLoader(Stream(), batch_size=2, **settings),
            num_processes=2,
            process_index=0,
            dispatch_batches=False,
        )

    with pytest.raises(ValueError, match=r"`data` is an IterableDataset.*dispatch_batches=True"):
        prepare_source(split(), accelerator, even_batches=False)
    prepare_source(split(), accelerator, even_batches=True)
    prepare_source(split(drop_last=True), accelerator, even_batches=False)
