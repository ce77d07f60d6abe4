import random

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import BatchSampler
from torch.utils.data import DataLoader
from torch.utils.data import DistributedSampler
from torch.utils.data import IterableDataset
from torch.utils.data import RandomSampler

from ignite_hooks.loaders import AdaptedLoader
from ignite_hooks.loaders import IndexedLoader
from ignite_hooks.loaders import PlainIterable


class Epochs:
    """Remembers the epochs that it was told."""

    def __init__(self, *batches):
        self.batches = batches
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(6))

    def __len__(self):
        return 6


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def shard(loader, process, **settings):
    """What the loader is on one of two processes."""
    return prepare_data_loader(
        loader, num_processes=2, process_index=process, put_on_device=False, **settings
    )


def given(source, data_pass, skip):
    """The batches of a pass but the first ``skip``."""
    with source.active(data_pass):
        return list(source.batches(data_pass, skip))


class TestPlainIterable:
    def test_the_epoch_is_set_before_each_pass(self):
        data = Epochs([1], [2])
        source = PlainIterable(data)
        for number, skip in ((0, 0), (1, 1), (1, 0), (7, 2)):
            assert given(source, number, skip) == [[1], [2]][skip:]
        assert data.epochs == [0, 1, 1, 7]

    @pytest.mark.parametrize(
        ("data", "length"), [([1, 2], 2), (iter([1, 2]), None), ({1: 2}.values(), 1)]
    )
    def test_the_length_is_that_of_the_data_if_it_has_one(self, data, length):
        assert PlainIterable(data).length == length

    def test_only_an_iterator_can_not_repeat(self):
        assert PlainIterable([1]).can_repeat
        assert PlainIterable(Epochs(1)).can_repeat
        assert not PlainIterable(iter([1])).can_repeat

    def test_a_pass_entered_again_has_the_order_in_which_it_began(self):
        class Shuffling:
            def __iter__(self):
                order = list(range(6))
                random.shuffle(order)
                return iter(order)

        source = PlainIterable(Shuffling())
        whole = given(source, 0, 0)
        expected = random.getstate()
        assert given(source, 0, 2) == whole[2:]
        assert random.getstate() == expected
        assert given(source, 1, 0) != whole


class TestAdaptedLoader:
    def test_it_ends_itself_and_the_length_of_a_stream_is_not_certain(self, accelerator):
        source = AdaptedLoader(accelerator.prepare(DataLoader(Stream(), batch_size=2)))
        assert source.ends_itself
        assert source.length is None

    def test_the_length_of_dispatched_samples_is_certain(self):
        accelerator = Accelerator(
            cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=True)
        )
        source = AdaptedLoader(accelerator.prepare(DataLoader(range(6), batch_size=4)))
        assert source.length == 2

    def test_the_loader_is_told_the_pass(self, accelerator):
        source = AdaptedLoader(accelerator.prepare(DataLoader(Stream(), batch_size=2)))
        with source.active(3):
            for batch in source.batches(3, 1):
                assert source.loader.iteration == 3
                assert batch.tolist() in ([2, 3], [4, 5])


class TestIndexedLoader:
    def test_the_base_is_the_loader_of_torch(self, accelerator):
        raw = DataLoader(range(4))
        assert IndexedLoader(raw).base is raw
        prepared = accelerator.prepare(raw)
        assert IndexedLoader(prepared).base is prepared.base_dataloader

    @pytest.mark.parametrize("prepared", [False, True])
    def test_the_generators_of_loader_and_samplers_are_found_once_each(self, prepared, accelerator):
        ours, samplers = torch.Generator(), torch.Generator()
        sampler = BatchSampler(RandomSampler(range(4), generator=samplers), 2, drop_last=False)
        loader = DataLoader(range(4), batch_sampler=sampler, generator=ours)
        source = IndexedLoader(accelerator.prepare(loader) if prepared else loader)
        assert sorted(map(id, source.generators)) == sorted((id(ours), id(samplers)))
        same = DataLoader(range(4), shuffle=True, generator=ours)
        assert IndexedLoader(same).generators == [ours]
        assert IndexedLoader(DataLoader(range(4))).generators == []

    @pytest.mark.parametrize("batch_size", [None, 2])
    def test_the_epoch_of_a_sampler_is_set(self, batch_size):
        sampler = DistributedSampler(range(8), num_replicas=2, rank=0, seed=3)
        source = IndexedLoader(DataLoader(range(8), batch_size=batch_size, sampler=sampler))
        orders = [[str(batch) for batch in given(source, number, 0)] for number in (0, 1, 0)]
        assert orders[0] == orders[2] != orders[1]

    @pytest.mark.parametrize("prepared", [False, True])
    def test_the_epoch_of_a_batch_sampler_is_set(self, prepared, accelerator):
        sampler = Epochs([0, 1], [2])
        loader = DataLoader(range(3), batch_sampler=sampler)
        source = IndexedLoader(accelerator.prepare(loader) if prepared else loader)
        given(source, 4, 1)
        assert sampler.epochs[-1:] == [4]

    @pytest.mark.parametrize("process", [0, 1])
    @pytest.mark.parametrize("split_batches", [False, True])
    def test_without_even_batches_no_sample_is_given_twice(self, process, split_batches):
        loader = shard(DataLoader(range(9), batch_size=4), process, split_batches=split_batches)
        source = IndexedLoader(loader, even_batches=False)
        batches = [batch.tolist() for batch in given(source, 0, 0)]
        assert (
            batches
            == (
                [[[0, 1, 2, 3], [8]], [[4, 5, 6, 7]]]
                if not split_batches
                else [[[0, 1], [4, 5], [8]], [[2, 3], [6, 7]]]
            )[process]
        )

    @pytest.mark.parametrize("process", [0, 1])
    @pytest.mark.parametrize("size", [1, 2, 5, 8, 9])
    def test_without_even_batches_the_length_is_that_of_the_process(self, process, size):
        source = IndexedLoader(shard(DataLoader(range(size), 2), process), even_batches=False)
        assert source.length == len(given(source, 0, 0))

    @pytest.mark.parametrize("even", [True, False])
    def test_the_loader_keeps_its_own_even_batches(self, even):
        loader = shard(DataLoader(range(9), batch_size=2), 1, even_batches=even)
        source = IndexedLoader(loader, even_batches=False)
        assert source.length == 2
        with source.active(0):
            assert loader.batch_sampler.even_batches is False
            next(source.batches(0, 0))
        given(source, 0, 0)
        assert loader.batch_sampler.even_batches is even
        assert IndexedLoader(loader).length == (3 if even else 2)

    def test_the_rest_of_a_pass_is_loaded_as_its_beginning_was(self):
        calls = []
        loader = DataLoader(
            range(8),
            batch_size=2,
            num_workers=1,
            collate_fn=tuple,
            timeout=30,
            worker_init_fn=calls.append,
            prefetch_factor=3,
            multiprocessing_context="fork",
            in_order=True,
            generator=torch.Generator().manual_seed(5),
        )
        source = IndexedLoader(loader)
        seed = iter(loader)._base_seed
        loader.generator.manual_seed(5)
        rest = source._reopen(1)
        assert type(rest) is type(iter(loader))
        assert rest._prefetch_factor == 3
        assert rest._timeout == 30
        assert rest._base_seed == seed
        assert list(rest) == [(2, 3), (4, 5), (6, 7)]
        for name in ("worker_init_fn", "collate_fn"):
            assert getattr(rest, f"_{name}") is getattr(loader, name)
