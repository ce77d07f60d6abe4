import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from torch.utils.data import DistributedSampler
from torch.utils.data import get_worker_info

from ignite_hooks.data.indexed_source import IndexedLoader
from ignite_hooks.data.indexed_source import _loader_over
from tests.reference import Epochs
from tests.reference import given


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def shard(loader, process, **settings):
    """Returns the loader as prepared on one of two processes."""
    return prepare_data_loader(
        loader, num_processes=2, process_index=process, put_on_device=False, **settings
    )


def test_base_is_the_torch_loader(accelerator):
    raw = DataLoader(range(4))
    assert IndexedLoader(raw).base is raw
    prepared = accelerator.prepare(raw)
    assert IndexedLoader(prepared).base is prepared.base_dataloader


class Drawing:
    """A data set that draws from its own generator."""

    def __init__(self, generator):
        self.rng = generator

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.tensor([index, float(torch.rand((), generator=self.rng))])


def test_reentered_pass_does_not_rewind_the_data_generator():
    """Only the generators of the order are set back; those of the data are left unchanged."""
    source = IndexedLoader(DataLoader(Drawing(torch.Generator().manual_seed(1)), 2, shuffle=True))
    drawn, places = [], []
    for data_pass, skip in ((0, 0), (0, 2), (1, 0)):
        drawn += [float(batch[0, 1]) for batch in source.batches(data_pass, skip)]
        places.append(source.base.dataset.rng.get_state().tolist())
    assert len(set(drawn)) == len(drawn) == 3 + 1 + 3
    assert len(set(map(tuple, places))) == 3


class DrawnOnIter:
    """An order of samples, or of batches, that is drawn in ``__iter__``."""

    def __init__(self, batched):
        self.batched = batched

    def __iter__(self):
        return iter(torch.randperm(8).view(4, 2).tolist() if self.batched else torch.randperm(8))

    def __len__(self):
        return 4 if self.batched else 8


@pytest.mark.parametrize(
    "order",
    [{"batch_sampler": DrawnOnIter(True)}, {"sampler": DrawnOnIter(False), "batch_size": None}],
    ids=["batches", "samples"],
)
def test_reentered_pass_keeps_an_order_drawn_by_iter(order):
    source = IndexedLoader(DataLoader(range(8), **order))
    whole = [each.tolist() for each in map(torch.as_tensor, given(source, 0, 0))]
    rest = [each.tolist() for each in map(torch.as_tensor, given(source, 0, 1))]
    assert rest == whole[1:]


@pytest.mark.parametrize("batch_size", [None, 2])
def test_set_epoch_of_a_sampler_is_called(batch_size):
    sampler = DistributedSampler(range(8), num_replicas=2, rank=0, seed=3)
    source = IndexedLoader(DataLoader(range(8), batch_size=batch_size, sampler=sampler))
    orders = [[str(batch) for batch in given(source, number, 0)] for number in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.parametrize("prepared", [False, True])
def test_set_epoch_of_a_batch_sampler_is_called(prepared, accelerator):
    sampler = Epochs([0, 1], [2])
    loader = DataLoader(range(3), batch_sampler=sampler)
    source = IndexedLoader(accelerator.prepare(loader) if prepared else loader)
    given(source, 4, 1)
    assert sampler.epochs[-1:] == [4]


@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize("split_batches", [False, True])
def test_no_sample_is_repeated_without_even_batches(process, split_batches):
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
def test_length_is_per_process_without_even_batches(process, size):
    source = IndexedLoader(shard(DataLoader(range(size), 2), process), even_batches=False)
    assert source.length == len(given(source, 0, 0))


@pytest.mark.parametrize("even", [True, False])
def test_even_batches_of_the_loader_is_restored(even):
    loader = shard(DataLoader(range(9), batch_size=2), 1, even_batches=even)
    source = IndexedLoader(loader, even_batches=False)
    assert source.length == 2
    with source.active(0):
        assert loader.batch_sampler.even_batches is False
        next(source.batches(0, 0))
    given(source, 0, 0)
    assert loader.batch_sampler.even_batches is even
    assert IndexedLoader(loader).length == (3 if even else 2)


class Seeds(torch.utils.data.Dataset):
    """Samples of the index and the seed of the worker that loads it."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return index, get_worker_info().seed


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_reentered_pass_seeds_workers_as_at_its_start(persistent_workers):
    calls = []
    loader = DataLoader(
        Seeds(),
        batch_size=2,
        num_workers=1,
        collate_fn=tuple,
        timeout=30,
        worker_init_fn=calls.append,
        prefetch_factor=3,
        multiprocessing_context="fork",
        persistent_workers=persistent_workers,
        generator=torch.Generator().manual_seed(5),
    )
    source = IndexedLoader(loader)
    batches = source.batches(0, 0)
    first = next(batches)
    batches.close()
    assert [first, *source.batches(0, 1)] == [*IndexedLoader(rebuild(loader)).batches(0, 0)]
    assert loader.worker_init_fn == calls.append


def rebuild(loader):
    """Returns a copy of the loader that has not been iterated."""
    loader.generator.manual_seed(5)
    return DataLoader(
        loader.dataset, 2, num_workers=1, collate_fn=tuple, generator=loader.generator
    )


def test_loader_of_the_rest_has_the_same_settings():
    settings = {
        "num_workers": 1,
        "collate_fn": tuple,
        "timeout": 30,
        "worker_init_fn": print,
        "prefetch_factor": 3,
        "in_order": False,
        "pin_memory": True,
    }
    loader = DataLoader(range(8), 2, multiprocessing_context="fork", **settings)
    rest = _loader_over(loader, iter([[2, 3]]), torch.Generator())
    assert {name: getattr(rest, name) for name in settings} == settings
    assert rest.dataset is loader.dataset
    assert rest.multiprocessing_context.get_start_method() == "fork"
