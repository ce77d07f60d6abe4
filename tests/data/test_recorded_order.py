"""Samplers with a state in loaders with workers, which draw ahead of the batches."""

import io
import random
from weakref import WeakSet

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from ignite.engine import Events
from torch.utils.data import BatchSampler
from torch.utils.data import DataLoader
from torch.utils.data import Dataset
from torch.utils.data import Sampler
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from ignite_hooks import DataFeed
from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer
from ignite_hooks.data.recorded_order import pack_elements
from ignite_hooks.data.recorded_order import unpack_elements

SIZE = 12  # samples of a pass


class Numbers(Dataset):
    """Samples with an augmentation that is drawn in the worker."""

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        return torch.tensor([float(index)]) + torch.rand(1)


class ContinuingSampler(Sampler):
    """A sampler that draws each index when it is needed; its passes continue one sequence."""

    def __init__(self, size=1, batch_size=None):
        self.size, self.shift, self.index, self.drawn = size, 0, 0, 0
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(1)

    def __len__(self):
        return SIZE // self.size

    def draw(self):
        drawn = torch.randint(SIZE, (self.size,), generator=self.generator) + self.shift
        drawn = (drawn % SIZE).tolist()
        return drawn if self.size > 1 else drawn[0]

    def __iter__(self):
        while self.index < SIZE // self.size:
            self.index += 1
            self.drawn += 1
            yield self.draw()
        self.index = 0
        self.shift += 1

    def state_dict(self):
        return {
            "index": self.index,
            "shift": self.shift,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state):
        self.index, self.shift = state["index"], state["shift"]
        self.generator.set_state(state["generator"])


class Ordered(ContinuingSampler):
    """A sampler that draws its order before the first index, and saves the generator from then."""

    def __init__(self):
        super().__init__()
        self.start, self.before = 0, self.generator.get_state()

    def __iter__(self):
        start, self.start = self.start, 0
        self.before = self.generator.get_state()
        order = torch.randperm(SIZE, generator=self.generator).tolist()
        for self.index in range(start + 1, SIZE + 1):
            self.drawn += 1
            yield order[self.index - 1]
        self.index, self.before = 0, self.generator.get_state()

    def state_dict(self):
        return {"index": self.index, "before": self.before}

    def load_state_dict(self, state):
        self.index = self.start = state["index"]
        self.before = state["before"]
        self.generator.set_state(self.before)


class Counting(Ordered):
    """A sampler whose state is a count, stays at the end, and is wrong until it is iterated."""

    def __iter__(self):
        self.index, self.start = self.start, 0
        while self.index < SIZE:
            self.index += 1
            self.drawn += 1
            yield (5 * self.index) % SIZE

    def state_dict(self):
        return {"index": self.index}

    def load_state_dict(self, state):
        self.index, self.start = -1, state["index"]


class Global(ContinuingSampler):
    """A sampler that draws each index from the global generators when it is needed."""

    def draw(self):
        numbers = torch.randint(SIZE, ()), random.randrange(SIZE), np.random.randint(SIZE)
        return int(sum(numbers)) % SIZE


class Shuffled(Counting):
    """A sampler whose state is a count, and which draws its order with the first element."""

    def order(self):
        return (3 * torch.randperm(SIZE // self.size)).tolist()

    def elements(self, order):
        self.index, self.start = self.start, 0
        while self.index < len(order):
            self.index += 1
            self.drawn += 1
            yield order[self.index - 1] % SIZE

    def __iter__(self):
        yield from self.elements(self.order())

    def load_state_dict(self, state):
        self.index = self.start = state["index"]


class ShuffledEarly(Shuffled):
    """A sampler that draws its order in ``__iter__``."""

    def __iter__(self):
        return self.elements(self.order())


class Numpy(ContinuingSampler):
    """A sampler that yields NumPy integers."""

    def draw(self):
        return np.int64(super().draw())


class RestartingSampler(ContinuingSampler):
    """An iterator that begins its next pass whenever ``iter`` is called."""

    def __iter__(self):
        self.index = 0
        return self

    def __next__(self):
        if self.index == SIZE // self.size:
            raise StopIteration
        self.index += 1
        self.drawn += 1
        return self.draw()


class Unsized(ContinuingSampler):
    """A sampler without a length."""

    def __len__(self):
        raise TypeError


def distributed():
    return StatefulDistributedSampler(Numbers(), num_replicas=1, rank=0)


def sampler_loader(kind, **options):
    return lambda: DataLoader(Numbers(), 2, sampler=kind(), **options)


def single_sample_loader(kind=ContinuingSampler, **options):
    return lambda: DataLoader(Numbers(), batch_size=None, sampler=kind(), **options)


def batch_sampler_loader(kind=ContinuingSampler, size=2, **options):
    return lambda: DataLoader(Numbers(), batch_sampler=kind(size), **options)


ONE = {"num_workers": 1, "prefetch_factor": 1}
TWO = {"num_workers": 2, "prefetch_factor": 1}
PERSISTENT = {"num_workers": 2, "persistent_workers": True}
GRID = {
    "a sampler": sampler_loader(ContinuingSampler, **TWO),
    "a sampler, one worker": sampler_loader(ContinuingSampler, **ONE),
    "a sampler, persistent workers": sampler_loader(ContinuingSampler, **PERSISTENT),
    "a sampler, the last batch dropped": lambda: DataLoader(
        Numbers(), 5, sampler=ContinuingSampler(), drop_last=True, **TWO
    ),
    "a sampler, the last batch smaller": lambda: DataLoader(
        Numbers(), 5, sampler=ContinuingSampler(), **TWO
    ),
    "a sampler of single samples": single_sample_loader(**TWO),
    "single samples, persistent workers": single_sample_loader(**PERSISTENT),
    "a batch sampler": batch_sampler_loader(**TWO),
    "a batch sampler, one worker": batch_sampler_loader(**ONE),
    "a batch sampler, persistent workers": batch_sampler_loader(**PERSISTENT),
    "an order drawn again": sampler_loader(Ordered, **TWO),
    "an order drawn again, persistent workers": sampler_loader(Ordered, **PERSISTENT),
    "one that counts": sampler_loader(Counting, **TWO),
    "torchdata's": sampler_loader(distributed, **TWO),
    "torchdata's, persistent workers": sampler_loader(distributed, **PERSISTENT),
    "one that draws from global generators": sampler_loader(Global, **TWO),
    "an order of the global generators": sampler_loader(Shuffled, **TWO),
    "an order drawn for the iterator": single_sample_loader(ShuffledEarly, **ONE),
    "an order drawn for that of batches": sampler_loader(ShuffledEarly, **PERSISTENT),
    "numbers of numpy": sampler_loader(Numpy, **ONE),
    "an iterator": sampler_loader(RestartingSampler, **ONE),
    "one without a length": sampler_loader(Unsized, **TWO),
    "one without a length, persistent workers": sampler_loader(Unsized, **PERSISTENT),
}


# Cases that cover each path through the code once; the others only vary what they are made of.
FREQUENT_CASES = {
    "a sampler, persistent workers",
    "a sampler, the last batch smaller",
    "a batch sampler, one worker",
    "one that counts",
    "one that draws from global generators",
    "an order of the global generators",
    "an order drawn for the iterator",
    "an iterator",
    "one without a length",
}
RARE_CASES = {
    "a sampler of single samples",
    "an order drawn again, persistent workers",
    "numbers of numpy",
    "torchdata's",
}


def sample_of_grid(names):
    marks = {name: [] if name in names else [pytest.mark.exhaustive] for name in GRID}
    return [pytest.param(GRID[name], marks=marks[name], id=name) for name in GRID]


def holder_of(loader):
    batches = loader.batch_sampler
    if batches is None:
        return loader.sampler
    return batches.sampler if type(batches) is BatchSampler else batches


def through_checkpoint(state):
    """Returns a state after a round trip through a checkpoint's format."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def seed(number=1):
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


def global_state():
    return torch.get_rng_state(), random.getstate(), np.random.get_state()


def set_global_state(state):
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])


def draw_of_model():
    return [*torch.rand(1).tolist(), random.random(), np.random.rand()]


def batches_with_draws(feed, count):
    """Yields ``count`` batches, each with the random numbers that a model draws after it."""
    given = 0
    while given < count:
        for batch in feed:
            yield torch.as_tensor(batch).flatten().tolist() + draw_of_model()
            given += 1
            if given == count:
                break
    if feed.is_last:
        feed.finish()
    feed.close()


def indices(batch):
    """Returns the samples of a batch, without the random numbers."""
    return [int(each) for each in batch[:-3]]


def drawn_batches(feed):
    return getattr(holder_of(feed.loader), "drawn", 0)


def run(make, count, accelerator=None):
    """Returns the batches of an unbroken run, and the saved state at each step."""
    seed()
    feed = DataFeed(make(), accelerator)
    places = [(through_checkpoint(feed.state_dict()), global_state(), 0)]
    batches = []
    for batch in batches_with_draws(feed, count):
        batches.append(batch)
        assert feed.doubts() == []
        places.append((through_checkpoint(feed.state_dict()), global_state(), drawn_batches(feed)))
    return batches, places, feed


def resumed(make, place, accelerator=None):
    seed(9)
    state, random_state, _ = place
    feed = DataFeed(make(), accelerator)
    assert feed.differences(state) == feed.replay_notes(state) == feed.data_changes(state) == []
    feed.load_state_dict(state)
    set_global_state(random_state)
    return feed


def per_pass(make):
    return sum(1 for _ in DataFeed(make()))


@pytest.mark.parametrize("make", sample_of_grid(FREQUENT_CASES))
def test_resume_at_each_step_gives_the_same_bits(make):
    count = per_pass(make) + 2
    batches, places, whole = run(make, count)
    for given, place in enumerate(places[:-1]):
        feed = resumed(make, place)
        assert [*batches_with_draws(feed, count - given)] == batches[given:], given
        assert drawn_batches(feed) + place[2] == drawn_batches(whole)


@pytest.mark.parametrize("make", sample_of_grid(RARE_CASES))
def test_each_batch_can_be_resumed_from_the_one_before(make):
    count = 2 * per_pass(make) + 1
    batches, (place, *_), _ = run(make, count)
    for batch in batches:
        feed = resumed(make, place)
        assert [*batches_with_draws(feed, 1)] == [batch]
        assert through_checkpoint(feed.state_dict())["order"]["of"]
        place = through_checkpoint(feed.state_dict()), global_state(), 0


@pytest.mark.parametrize(
    "make", sample_of_grid({"a sampler", "a batch sampler, persistent workers"})
)
def test_feed_left_in_a_pass_draws_no_number_twice(make):
    count = per_pass(make) + 2
    batches, _, whole = run(make, count)
    seed()
    feed = DataFeed(make())
    found = []
    for _ in range(count):
        found += batches_with_draws(feed, 1)
    # The states of persistent workers are known only if they went through the whole pass.
    assert [indices(each) for each in found] == [indices(each) for each in batches]
    assert drawn_batches(feed) == drawn_batches(whole)


# torch calls iter() of such a sampler for each batch, so this one would never end.
@pytest.mark.parametrize("name", [each for each in GRID if each != "an iterator"])
def test_unbroken_run_equals_a_plain_loop(name):
    make = GRID[name]
    seed()
    loader = make()
    plain = []
    for data_pass in range(2):
        if hasattr(holder_of(loader), "set_epoch"):
            holder_of(loader).set_epoch(data_pass)
        plain += [[*torch.as_tensor(each).flatten().tolist(), *draw_of_model()] for each in loader]
    seed()
    assert [*batches_with_draws(DataFeed(make()), len(plain))] == plain


@pytest.mark.parametrize(
    "make",
    [sampler_loader(Shuffled), sampler_loader(ShuffledEarly), single_sample_loader(ShuffledEarly)],
)
def test_order_drawn_from_global_generators_without_workers(make):
    count = per_pass(make) + 2
    batches, places, _ = run(make, count)
    for given, place in enumerate(places[:-1]):
        if given != count - 2:  # the sampler has not been asked for its end, which is named
            assert [*batches_with_draws(resumed(make, place), count - given)] == batches[given:]


def test_order_drawn_at_once_is_known_after_two_elements():
    feed = DataFeed(single_sample_loader(Shuffled)())
    [*batches_with_draws(feed, 1)]
    (doubt,) = feed.doubts()
    assert doubt.startswith(
        "batch_sampler.sampler (Shuffled) draws from the global random generators for its"
    )
    [*batches_with_draws(feed, 1)]
    assert feed.doubts() == []


@pytest.mark.parametrize("options", [TWO, PERSISTENT])
def test_sampler_that_changes_worker_seeds_is_named(options):
    feed = DataFeed(single_sample_loader(ShuffledEarly, **options)())
    [*batches_with_draws(feed, 2)]
    (doubt,) = feed.doubts()
    assert doubt.startswith("sampler (ShuffledEarly) draws from the global random generators when")


@pytest.mark.parametrize("options", [ONE, TWO, PERSISTENT])
def test_feed_seeks_back_within_a_pass(options):
    make = sampler_loader(ContinuingSampler, **options)
    batches, _, _ = run(make, 6)
    seed()
    feed = DataFeed(make(), Accelerator(cpu=True, gradient_accumulation_steps=3))
    assert [*batches_with_draws(feed, 5)] == batches[:5]
    drawn_before = drawn_batches(feed)
    feed.seek((0, 3))
    assert [each[:-3] for each in batches_with_draws(feed, 1)] == [batches[3][:-3]]
    assert drawn_batches(feed) == drawn_before
    feed.seek((0, 0))
    assert [each[:-3] for each in batches_with_draws(feed, 6)] == [each[:-3] for each in batches]


class Beginning(ContinuingSampler):
    """A sampler that draws a new order in each iteration, unless its state is within a pass."""

    def __init__(self):
        super().__init__()
        self.order, self.is_loaded = [], False

    def __iter__(self):
        if not self.is_loaded or self.index == len(self.order):
            self.order = torch.randperm(SIZE, generator=self.generator).tolist()
            self.index = 0
        self.is_loaded = False
        while self.index < SIZE:
            self.index += 1
            self.drawn += 1
            yield self.order[self.index - 1]

    def state_dict(self):
        return {**super().state_dict(), "order": torch.tensor(self.order, dtype=torch.int64)}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.order, self.is_loaded = state["order"].tolist(), True


def test_exhausted_sampler_does_not_begin_another_pass():
    def make():
        return DataLoader(Numbers(), 2, sampler=Beginning(), num_workers=2)

    count = 2 * SIZE // 2
    batches, places, _ = run(make, count)
    for given, place in enumerate(places[:-1]):
        assert [*batches_with_draws(resumed(make, place), count - given)] == batches[given:], given


def test_feed_seeks_back_beyond_the_recorded_elements():
    def make():
        return DataLoader(range(100), None, sampler=Long(), **ONE)

    class Long(ContinuingSampler):
        def __len__(self):
            return 100

        def __iter__(self):
            self.shift += 1  # per iterator
            while self.index < 100:
                self.index += 1
                self.drawn += 1
                yield int(torch.randint(50, (), generator=self.generator)) + self.shift
            self.index = 0

    batches, _, _ = run(make, 100)
    seed()
    feed = DataFeed(make())
    assert [indices(each) for each in batches_with_draws(feed, 90)] == [
        indices(each) for each in batches[:90]
    ]
    for start in (5, 0):
        feed.seek((0, start))
        found = [indices(each) for each in batches_with_draws(feed, 100 - start)]
        assert found == [indices(each) for each in batches[start:]]
        feed.seek((0, 90))


def test_pass_begins_again_after_its_first_batch_failed():
    class Failing(Numbers):
        def __getitem__(self, index):
            if fails.exists():
                raise ValueError("a broken sample")
            return super().__getitem__(index)

    class Flag:
        def __init__(self):
            self.value = torch.ones(1).share_memory_()

        def exists(self):
            return bool(self.value)

    fails = Flag()
    make = sampler_loader(ContinuingSampler, **TWO)
    batches, _, _ = run(make, 3)
    seed()
    feed = DataFeed(DataLoader(Failing(), 2, sampler=ContinuingSampler(), **TWO))
    with pytest.raises(ValueError, match="a broken sample"):
        [*batches_with_draws(feed, 1)]
    state = through_checkpoint(feed.state_dict())
    fails.value.zero_()
    assert [indices(each) for each in batches_with_draws(feed, 3)] == [
        indices(each) for each in batches
    ]
    other = resumed(make, (state, global_state(), 0))
    assert [indices(each) for each in batches_with_draws(other, 3)] == [
        indices(each) for each in batches
    ]


def test_pass_continues_after_the_user_iterated_the_loader():
    make = sampler_loader(ContinuingSampler, **PERSISTENT)
    batches, _, _ = run(make, 6)
    seed()
    feed = DataFeed(make())
    found = [*batches_with_draws(feed, 2)]
    next(iter(feed.loader), None)
    found += batches_with_draws(feed, 4)
    assert [indices(each) for each in found] == [indices(each) for each in batches]
    assert feed.state_dict()["order"] is not None


def test_workers_started_by_the_user_get_the_recorded_order():
    loader = sampler_loader(ContinuingSampler, **PERSISTENT)()
    before = [int(each) for batch in loader for each in batch]
    feed = DataFeed(loader)
    found = [*batches_with_draws(feed, 2)]
    other = DataFeed(sampler_loader(ContinuingSampler, **TWO)())
    other.load_state_dict(through_checkpoint(feed.state_dict()))
    found += batches_with_draws(other, 4)
    batches, _, _ = run(sampler_loader(ContinuingSampler, **TWO), 12)
    of_both = [each for batch in batches for each in indices(batch)]
    assert before + [each for batch in found for each in indices(batch)] == of_both


def test_only_elements_needed_again_are_saved():
    feed = DataFeed(DataLoader(range(10**6), None, sampler=Endless(), **ONE))
    [*batches_with_draws(feed, 500)]
    indices_saved = feed.state_dict()["order"]["elements"]["indices"]
    assert len(indices_saved) == 2  # one for the worker, and one that the feed looks ahead at


class Key:
    """An index that is not an integer."""

    def __init__(self, index):
        self.index = index

    def __index__(self):
        return self.index


def test_only_elements_needed_again_are_kept():
    class Keys(Endless):
        def draw(self):
            key = Key(super().draw())
            keys.add(key)
            return key

    keys = WeakSet()
    feed = DataFeed(DataLoader(range(10**6), None, sampler=Keys(), **ONE))
    [*batches_with_draws(feed, 100)]
    kept = len(keys)
    [*batches_with_draws(feed, 400)]
    assert len(keys) == kept < 10


def test_loaded_state_can_be_saved_again_at_once():
    make = sampler_loader(Counting, **ONE)
    batches, places, _ = run(make, 8)
    for given, place in enumerate(places[:-1]):
        state = through_checkpoint(resumed(make, place).state_dict())
        feed = resumed(make, (state, place[1], 0))
        assert [*batches_with_draws(feed, 8 - given)] == batches[given:]


def test_seeking_back_beyond_the_loaded_position_warns():
    _, places, _ = run(sampler_loader(ContinuingSampler, **ONE), 4)
    feed = resumed(sampler_loader(ContinuingSampler, **ONE), places[3])
    [*batches_with_draws(feed, 1)]
    feed.seek((0, 0))
    with pytest.warns(UserWarning, match="no known state of the start of pass 1"):
        [*batches_with_draws(feed, 1)]


# Shards of Accelerate


class Varying(ContinuingSampler):
    """A batch sampler whose every third batch has another length than its batch size."""

    def __len__(self):
        raise TypeError

    def draw(self):
        return super().draw()[: 2 - (self.index % 3 == 0)]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_batches_that_accelerate_drops_are_named(split, rank):
    def make():
        shard = BatchSamplerShard(Varying(2, 2), 2, rank, split)
        return DataLoader(Numbers(), batch_sampler=shard, **ONE)

    seed()
    whole = [indices(each) for each in batches_with_draws(DataFeed(make()), 2 + split)]
    seed()
    feed = DataFeed(make())
    found = [indices(each) for each in batches_with_draws(feed, 1)]
    assert feed.state_dict()["order"] is None
    assert any("because its batches differ in length" in each for each in feed.doubts())
    found += [indices(each) for each in batches_with_draws(feed, 1 + split)]
    assert found == whole


# What is saved


@pytest.mark.parametrize(
    "elements",
    [
        [],
        [3, 1, 2],
        [[3, 1], [2], []],
        [np.int64(3), np.int64(1)],
        [[np.int64(3)], [np.int64(1), np.int64(2)]],
        [3, "name"],
        [(1, 2), (3,)],
        [2**70, 1],
        [True, False],
    ],
)
def test_elements_keep_their_types(elements):
    found = unpack_elements(through_checkpoint(pack_elements(elements)))
    assert found == elements
    assert [type(each) for each in found] == [type(each) for each in elements]
    for one, other in zip(found, elements, strict=True):
        if isinstance(one, list):
            assert [*map(type, one)] == [*map(type, other)]


# What changes


@pytest.mark.grid(2)
@pytest.mark.parametrize("size", [3, 1, 4])
def test_rest_of_a_pass_may_have_another_batch_size(size):
    make = sampler_loader(ContinuingSampler, **TWO)
    batches, places, _ = run(make, 12)
    samples = [each for batch in batches for each in indices(batch)]
    for given in range(1, 6):
        feed = DataFeed(DataLoader(Numbers(), size, sampler=ContinuingSampler(), **TWO))
        state = places[given][0]
        assert len(feed.data_changes(state)) == 1
        assert feed.replay_notes(state) == []
        feed.load_state_dict(state)
        assert feed.length == given - -(SIZE - 2 * given) // size
        seed()
        found = [
            each
            for batch in batches_with_draws(feed, feed.length - given + 2)
            for each in indices(batch)
        ]
        assert found == samples[2 * given :][: len(found)]
        # A state that is saved with the new batch size can be resumed, too.
        again = DataFeed(DataLoader(Numbers(), size, sampler=ContinuingSampler(), **TWO))
        again.load_state_dict(state)
        one = [each for batch in batches_with_draws(again, 1) for each in indices(batch)]
        third = DataFeed(DataLoader(Numbers(), size, sampler=ContinuingSampler(), **TWO))
        third.load_state_dict(through_checkpoint(again.state_dict()))
        one += [each for batch in batches_with_draws(third, 2) for each in indices(batch)]
        assert one == samples[2 * given :][: len(one)]


def test_pass_without_length_may_have_another_batch_size():
    def feed_at(state):
        feed = DataFeed(DataLoader(Numbers(), 4, sampler=Unsized(), **ONE))
        feed.load_state_dict(through_checkpoint(state))
        return feed

    batches, places, _ = run(sampler_loader(Unsized, **ONE), 6)
    samples = [each for batch in batches for each in indices(batch)]
    for given in (1, 3):
        feed = feed_at(places[given][0])
        found = [each for batch in batches_with_draws(feed, 1) for each in indices(batch)]
        for batch in batches_with_draws(feed_at(feed.state_dict()), 1):
            found += indices(batch)
        assert found == samples[2 * given :][: len(found)]


@pytest.mark.parametrize("given", [4, 5])  # the sampler has two elements left, or none
def test_remaining_samples_without_a_batch_are_drawn(given):
    def make(size):
        sampler = ContinuingSampler()
        return DataLoader(Numbers(), size, sampler=sampler, drop_last=True, **ONE)

    batches, places, _ = run(lambda: make(2), 8)
    feed = DataFeed(make(5))
    feed.load_state_dict(places[given][0])
    assert feed.position == (1, 0)
    found = [each for batch in batches_with_draws(feed, 1) for each in indices(batch)]
    assert found == [each for batch in batches[6:] for each in indices(batch)] + found[4:]


@pytest.mark.parametrize(("then", "now"), [(TWO, ONE), (ONE, TWO), (ONE, PERSISTENT)])
def test_order_is_kept_with_another_number_of_workers(then, now):
    batches, places, _ = run(sampler_loader(ContinuingSampler, **then), 8)
    for given in range(1, 8):
        feed = DataFeed(sampler_loader(ContinuingSampler, **now)())
        feed.load_state_dict(places[given][0])
        found = [indices(each) for each in batches_with_draws(feed, 8 - given)]
        assert found == [indices(each) for each in batches[given:]]


def test_state_of_another_sampler_class_is_named():
    _, places, _ = run(sampler_loader(ContinuingSampler, **ONE), 2)
    for make, now in (
        (sampler_loader(Ordered, **ONE), "there is batch_sampler.sampler (Ordered) now"),
        (
            sampler_loader(ContinuingSampler),
            "it was saved while workers prefetched, and "
            "batch_sampler.sampler (ContinuingSampler) does not run ahead of the batches now",
        ),
        (sampler_loader(lambda: None), "there is nothing with a state now"),
    ):
        differences = DataFeed(make()).differences(places[2][0])
        prefix = "the state of batch_sampler.sampler (ContinuingSampler) is not restored, because "
        assert prefix + now in differences


def test_checkpoint_without_a_sampler_state_is_resumed():
    class Still(ContinuingSampler):
        """A sampler whose passes are equal, and which counts its indices."""

        def __iter__(self):
            for self.index in range(1, SIZE + 1):
                self.drawn += 1
                yield (5 * self.index) % SIZE

        def load_state_dict(self, state):
            raise AssertionError

    make = sampler_loader(Still, **TWO)
    batches, places, _ = run(make, 6)
    for given in range(1, 6):
        state, random_state, _ = places[given]
        del state["order"]
        seed(9)
        feed = DataFeed(make())
        (remark,) = feed.replay_notes(state)
        assert remark.startswith("a Still is iterated again over the")
        feed.load_state_dict(state)
        set_global_state(random_state)
        assert [*batches_with_draws(feed, 6 - given)] == batches[given:]
        assert through_checkpoint(feed.state_dict())["order"] is not None


# What cannot be saved


class Pickled(ContinuingSampler):
    def state_dict(self):
        return {**super().state_dict(), "more": range(3)}


class PassCountingOnly(ContinuingSampler):
    """A sampler whose state counts passes, not indices."""

    def __iter__(self):
        self.shift += 1
        return iter(torch.randperm(SIZE, generator=self.generator).tolist())

    def state_dict(self):
        return {"shift": self.shift}

    def load_state_dict(self, state):
        self.shift = state["shift"]


class Late(ContinuingSampler):
    """A sampler that counts an index only when the next one is asked for."""

    def __iter__(self):
        for _ in range(SIZE):
            yield (5 * self.index) % SIZE
            self.index += 1

    def state_dict(self):
        return {"index": self.index}


class Objects(ContinuingSampler):
    """A sampler that yields objects that a checkpoint cannot save."""

    def draw(self):
        return Number(super().draw())


class Number(int):
    pass


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Pickled, "Pickled) is not saved, because this state or an element contains other types"),
        (Objects, "Objects) is not saved, because this state or an element contains other types"),
        (PassCountingOnly, "PassCountingOnly) is not saved, because it is the same after"),
        (Late, "Late) is not saved, because it is the same after an element as before"),
    ],
)
def test_unsavable_state_is_named(kind, reason):
    seed()
    feed = DataFeed(sampler_loader(kind, **TWO)())
    found = [*batches_with_draws(feed, 2)]
    assert through_checkpoint(feed.state_dict())["order"] is None
    assert sum(reason in each for each in feed.doubts()) == 1
    seed()
    whole = [*batches_with_draws(DataFeed(sampler_loader(kind, **TWO)()), 6)]
    found += batches_with_draws(feed, 4)  # the same process needs no saved state
    assert [indices(each) for each in found] == [indices(each) for each in whole]


def test_pass_left_in_its_middle_is_named():
    def make():
        return DataLoader(range(100), None, sampler=Endless(), **ONE)

    feed = DataFeed(make())
    [*batches_with_draws(feed, 2)]
    feed.next_pass()
    (difference,) = DataFeed(make()).differences(through_checkpoint(feed.state_dict()))
    assert difference.startswith(
        "the previous pass was left before its end: sampler (Endless) begins"
    )


class Endless(ContinuingSampler):
    def __len__(self):
        raise TypeError

    def __iter__(self):
        while True:
            self.index += 1
            self.drawn += 1
            yield self.draw()


# In a trainer


def a_trainer(data, accumulation=2, **options):
    torch.manual_seed(0)
    layers = torch.nn.Linear(1, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1)
    model = torch.nn.Sequential(*layers)
    return create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.001),
        data=data,
        batch_processor=lambda model, x: (x, F.mse_loss(model(x.view(-1, 1)), x.view(-1, 1))),
        accelerator=Accelerator(cpu=True, gradient_accumulation_steps=accumulation),
        **options,
    )


def weights(trainer):
    return torch.cat([each.detach().flatten() for each in trainer.model.parameters()]).tolist()


TRAINED = ("a sampler", "a batch sampler, persistent workers", "one without a length")


@pytest.mark.grid(2)
@pytest.mark.parametrize("name", TRAINED)
def test_resumed_run_ends_in_the_same_bits(tmp_path, name):
    make = GRID[name]
    save = SaveCheckpoint(tmp_path, every_steps=1, keep_last=99)
    whole = a_trainer(make(), checkpoint=save)
    whole.run(max_epochs=2)
    folders = sorted(tmp_path.glob("step_*"))
    assert len(folders) == whole.state.optimizer_step
    for folder in folders:
        resumed = a_trainer(make(), resume_from=folder)
        resumed.run(max_epochs=2)
        assert weights(resumed) == weights(whole)
        assert resumed.resume_report.is_exact


class Broken(Exception):
    pass


@pytest.mark.grid(2)
@pytest.mark.parametrize("name", TRAINED[::-1])
def test_failed_run_continues_from_its_last_step(name):
    def run(fails_at=None):
        trainer = a_trainer(GRID[name](), accumulation=3)
        trained = []
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda: trained.append(trainer.state.batch.flatten().int())
        )
        if fails_at is not None:

            def fail(engine):
                raise Broken

            failing = trainer.add_event_handler(Events.ITERATION_STARTED(once=fails_at), fail)
            with failing, pytest.raises(Broken):
                trainer.run(max_epochs=2)
            del trained[trainer.state.iteration :]
        trainer.run(max_epochs=2)
        return [each.tolist() for each in trained], holder_of(trainer.state.dataloader).drawn

    whole = run()
    for fails_at in range(1, 13):
        assert run(fails_at) == whole
