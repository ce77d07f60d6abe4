import random

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import BatchSampler
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset
from torch.utils.data import RandomSampler

from ignite_hooks.data.sources import AdaptedLoader
from ignite_hooks.data.sources import PlainIterable
from ignite_hooks.data.sources import data_parts
from ignite_hooks.data.sources import dataset_and_samplers
from ignite_hooks.data.sources import order_parts
from tests.reference import Epochs
from tests.reference import given

# Parts of a loader.


class Halved:
    """A sampler around a sampler."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        return iter(list(self.sampler)[::2])


def test_data_set_and_nested_samplers_are_listed_once():
    data = [1, 2, 3, 4]
    random = RandomSampler(data)
    halved = Halved(random)
    batches = BatchSampler(halved, 2, drop_last=False)
    parts = dataset_and_samplers(DataLoader(data, batch_sampler=batches))
    assert parts[0] is data
    for part in (batches, halved, random):
        assert sum(part is each for each in parts) == 1


def test_loader_parts_are_split_into_data_and_order():
    generator = torch.Generator()
    loader = DataLoader([1, 2], collate_fn=sum, shuffle=True, generator=generator)
    assert data_parts(loader) == {"dataset": [1, 2], "collate_fn": sum}
    assert order_parts(loader) == {
        "generator": generator,
        "sampler": loader.sampler,
        "batch_sampler": loader.batch_sampler,
    }


# One pass over each kind of data.


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(6))

    def __len__(self):
        return 6


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


class TestPlainIterable:
    def test_set_epoch_is_called_before_each_pass(self):
        data = Epochs([1], [2])
        source = PlainIterable(data)
        for number, skip in ((0, 0), (1, 1), (1, 0), (7, 2)):
            assert given(source, number, skip) == [[1], [2]][skip:]
        assert data.epochs == [0, 1, 1, 7]

    @pytest.mark.parametrize(
        ("data", "length"), [([1, 2], 2), (iter([1, 2]), None), ({1: 2}.values(), 1)]
    )
    def test_length_is_certain_for_lists_only(self, data, length):
        assert PlainIterable(data).length == length

    def test_only_an_iterator_cannot_repeat(self):
        assert PlainIterable([1]).can_repeat
        assert PlainIterable(Epochs(1)).can_repeat
        assert not PlainIterable(iter([1])).can_repeat

    def test_reentered_pass_keeps_its_order(self):
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
    def test_prepared_stream_marks_its_end_without_a_length(self, accelerator):
        source = AdaptedLoader(accelerator.prepare(DataLoader(Stream(), batch_size=2)))
        assert source.knows_its_end
        assert source.length is None

    def test_length_of_a_dispatched_sampler_is_certain(self):
        accelerator = Accelerator(
            cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=True)
        )
        source = AdaptedLoader(accelerator.prepare(DataLoader(range(6), batch_size=4)))
        assert source.length == 2

    def test_loader_gets_the_pass_number(self, accelerator):
        source = AdaptedLoader(accelerator.prepare(DataLoader(Stream(), batch_size=2)))
        with source.active(3):
            for batch in source.batches(3, 1):
                assert source.loader.iteration == 3
                assert batch.tolist() in ([2, 3], [4, 5])
