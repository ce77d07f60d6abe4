"""A feed that was told where another stood gives what that one would have given next."""

import io

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import BatchSampler
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset
from torch.utils.data import RandomSampler

from ignite_hooks import DataFeed
from ignite_hooks.data.random_state import RandomState
from tests.reference import Noisy
from tests.reference import seed

SIZE, BATCH, PASSES = 10, 3, 3


class Stream(IterableDataset):
    def __iter__(self):
        yield from torch.arange(float(SIZE))


class Unsized:
    """Batches in an order that is drawn when the pass begins."""

    def __iter__(self):
        return iter(torch.randperm(SIZE).split(BATCH))


class Drawing(Unsized):
    """The same, drawn from a generator of its own."""

    def __init__(self):
        self.rng = np.random.default_rng(torch.initial_seed())

    def __iter__(self):
        return iter(torch.from_numpy(self.rng.permutation(SIZE)).split(BATCH))


def shuffled(**options):
    return DataLoader(Noisy(SIZE), BATCH, shuffle=True, **options)


def own_generators():
    sampler = RandomSampler(
        range(SIZE), generator=torch.Generator().manual_seed(torch.initial_seed())
    )
    batches = BatchSampler(sampler, BATCH, drop_last=False)
    return DataLoader(
        Noisy(SIZE), batch_sampler=batches, generator=torch.Generator().manual_seed(6)
    )


def replacing():
    sampler = RandomSampler(range(SIZE), replacement=True, num_samples=SIZE)
    return DataLoader(Noisy(SIZE), BATCH, sampler=sampler)


def accelerator(**options):
    return Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))


KINDS = {
    "a loader": lambda: DataFeed(shuffled()),
    "a prepared loader": lambda: DataFeed(shuffled(), accelerator()),
    "a seedable sampler": lambda: DataFeed(shuffled(), accelerator(use_seedable_sampler=True)),
    "drop_last": lambda: DataFeed(shuffled(drop_last=True), accelerator()),
    "generators of its own": lambda: DataFeed(own_generators()),
    "prepared, generators of its own": lambda: DataFeed(own_generators(), accelerator()),
    "with replacement": lambda: DataFeed(replacing(), accelerator()),
    "single samples": lambda: DataFeed(DataLoader(Noisy(4), batch_size=None, shuffle=True)),
    "a list": lambda: DataFeed(list(torch.arange(4.0))),
    "an iterable without length": lambda: DataFeed(Unsized()),
    "an iterable with a generator": lambda: DataFeed(Drawing()),
    "dispatched, generators of its own": lambda: DataFeed(
        own_generators(), accelerator(dispatch_batches=True)
    ),
    "an iterable data set": lambda: DataFeed(DataLoader(Stream(), BATCH), accelerator()),
}
WORKERS = {
    "workers": {"num_workers": 2},
    "persistent workers": {"num_workers": 2, "persistent_workers": True},
}


def after_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def given(feed, until):
    """The batches up to a pass, and at which places."""
    found = []
    while feed.position.data_pass < until:
        for batch in feed:
            tensors = batch if isinstance(batch, list | tuple) else [batch]
            found.append((tuple(feed.position), torch.cat([each.flatten() for each in tensors])))
    return found


def advance(feed, number):
    """Takes some batches; a pass that has ended is left, as a trainer leaves it."""
    batches = iter(feed)
    for _ in range(number):
        try:
            next(batches)
        except StopIteration:
            batches = iter(feed)
            next(batches)
    return batches


def assert_same(found, expected):
    assert [place for place, _ in found] == [place for place, _ in expected]
    for (_, ours), (_, theirs) in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def both(make, number):
    """What a feed gives after some batches, and what another gives that was told where it stood."""
    seed(1)
    feed = make()
    batches = advance(feed, number)
    place, random = feed.state_dict(), RandomState.capture().state_dict()
    place, random = after_a_file(place), after_a_file(random)
    rest = [*_rest(feed, batches), *given(feed, PASSES)]
    at_end = RandomState.capture(generators=feed.generators).state_dict()

    seed(2)
    other = make()
    other.load_state_dict(place)
    RandomState.from_state_dict(random).restore()
    resumed = given(other, PASSES)
    at_other_end = RandomState.capture(generators=other.generators).state_dict()
    return rest, resumed, at_end, at_other_end


def _rest(feed, batches):
    for batch in batches:
        tensors = batch if isinstance(batch, list | tuple) else [batch]
        yield tuple(feed.position), torch.cat([each.flatten() for each in tensors])


@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("kind", KINDS)
def test_the_rest_is_the_same_from_every_place_on(kind, number):
    rest, resumed, at_end, at_other_end = both(KINDS[kind], number)
    assert rest
    assert_same(resumed, rest)
    assert str(at_other_end) == str(at_end)


@pytest.mark.parametrize("number", [0, 2, 4, 5])
@pytest.mark.parametrize("workers", WORKERS)
def test_it_is_so_with_workers(workers, number):
    def make():
        loader = DataLoader(Noisy(SIZE, noise=0), BATCH, shuffle=True, **WORKERS[workers])
        return DataFeed(loader, accelerator())

    rest, resumed, at_end, at_other_end = both(make, number)
    assert_same(resumed, rest)
    assert str(at_other_end) == str(at_end)


def test_the_batches_before_are_not_loaded():
    loaded = []

    class Telling(Noisy):
        def __getitem__(self, index):
            loaded.append(index)
            return super().__getitem__(index)

    feed = DataFeed(DataLoader(Telling(SIZE), BATCH, shuffle=True))
    advance(feed, 2)
    state_dict = feed.state_dict()
    other = DataFeed(DataLoader(Telling(SIZE), BATCH, shuffle=True))
    other.load_state_dict(state_dict)
    del loaded[:]
    next(iter(other))
    assert len(loaded) == BATCH


def test_generators_that_are_there_only_once_are_named():
    feed, other = DataFeed(own_generators()), DataFeed(shuffled(generator=torch.Generator()))
    advance(feed, 1)
    sampler = "batch_sampler.sampler.generator (torch.Generator, cpu)"
    (found,) = other.differences(feed.state_dict())
    assert found == f"there is a random generator {sampler} only then"
    other.load_state_dict(feed.state_dict())
    assert other.position == (0, 1)
    advance(other, 1)
    (found,) = feed.differences(other.state_dict())
    assert found == f"there is a random generator {sampler} only now"


def test_an_iterator_stays_where_it_is():
    feed = DataFeed(iter(range(5)))
    advance(feed, 2)
    other = DataFeed(iter(range(5)))
    other.load_state_dict(feed.state_dict())
    assert other.position == (0, 0)
    assert list(other) == [0, 1, 2, 3, 4]


def test_after_the_last_batch_the_place_is_the_beginning_of_the_next_pass():
    feed = DataFeed([1, 2, 3])
    batches = advance(feed, 3)
    assert feed.position == (0, 3)
    assert feed.state_dict()["position"] == [1, 0]
    del batches
