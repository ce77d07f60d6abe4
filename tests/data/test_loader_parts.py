import torch
from torch.utils.data import BatchSampler
from torch.utils.data import DataLoader
from torch.utils.data import RandomSampler

from ignite_hooks.data.loader_parts import data_parts
from ignite_hooks.data.loader_parts import order_parts
from ignite_hooks.data.loader_parts import parts_of


class Halved:
    """A sampler around a sampler."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        return iter(list(self.sampler)[::2])


def test_data_set_and_nested_samplers_are_parts_each_once():
    data = [1, 2, 3, 4]
    random = RandomSampler(data)
    halved = Halved(random)
    batches = BatchSampler(halved, 2, drop_last=False)
    parts = parts_of(DataLoader(data, batch_sampler=batches))
    assert parts[0] is data
    for part in (batches, halved, random):
        assert sum(part is each for each in parts) == 1


def test_samples_come_from_the_data_set_and_their_order_from_samplers_and_generator():
    generator = torch.Generator()
    loader = DataLoader([1, 2], collate_fn=sum, shuffle=True, generator=generator)
    assert data_parts(loader) == {"dataset": [1, 2], "collate_fn": sum}
    assert order_parts(loader) == {
        "generator": generator,
        "sampler": loader.sampler,
        "batch_sampler": loader.batch_sampler,
    }
