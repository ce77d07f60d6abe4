import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import BatchSampler
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset
from torch.utils.data import SequentialSampler

from ignite_hooks.data.batch_size import global_batch_size

DATA = list(range(32))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(DATA)


class Unsized(torch.utils.data.Sampler):
    def __iter__(self):
        return iter([[0, 1], [2]])

    def __len__(self):
        return 2


def prepared(loader, processes, **options):
    return prepare_data_loader(
        loader, torch.device("cpu"), num_processes=processes, process_index=0, **options
    )


def by_batches():
    sampler = BatchSampler(SequentialSampler(DATA), 4, drop_last=False)
    return DataLoader(DATA, sampler=sampler, batch_size=None)


@pytest.mark.parametrize(
    ("loader", "processes", "size"),
    [
        (lambda: DataLoader(DATA, 4), 1, 4),
        (lambda: DataLoader(DATA, 4), 3, 12),
        (lambda: prepared(DataLoader(DATA, 4), 1), 1, 4),
        (lambda: prepared(DataLoader(DATA, 4), 2), 2, 8),
        (lambda: prepared(DataLoader(DATA, 4), 2, split_batches=True), 2, 4),
        (lambda: prepared(DataLoader(Stream(), 4), 2), 2, 8),
        (lambda: prepared(DataLoader(Stream(), 4), 2, split_batches=True), 2, 4),
        (lambda: prepared(DataLoader(DATA, 4), 2, dispatch_batches=True, put_on_device=True), 2, 8),
        (
            lambda: prepared(
                DataLoader(DATA, 4),
                2,
                dispatch_batches=True,
                split_batches=True,
                put_on_device=True,
            ),
            2,
            4,
        ),
        (by_batches, 2, 8),
        (lambda: DataLoader(Stream(), 4), 1, 4),
        (lambda: DataLoader(DATA, batch_size=None), 1, None),
        (lambda: DataLoader(DATA, batch_sampler=Unsized()), 1, None),
        (lambda: prepared(DataLoader(DATA, batch_sampler=Unsized()), 1), 1, None),
        (lambda: [torch.zeros(4, 1)], 1, None),
        (lambda: iter(DATA), 1, None),
    ],
)
def test_global_batch_size_by_loader_and_processes(loader, processes, size):
    assert global_batch_size(loader(), processes) == size


def test_global_batch_size_is_the_sum_over_all_ranks():
    for options in ({}, {"split_batches": True}):
        for data in (DATA, Stream()):
            given = 0
            for rank in range(2):
                loader = prepare_data_loader(
                    DataLoader(data, 4),
                    torch.device("cpu"),
                    num_processes=2,
                    process_index=rank,
                    **options,
                )
                given += max(len(batch) for batch in loader)
            assert global_batch_size(loader, 2) == given
