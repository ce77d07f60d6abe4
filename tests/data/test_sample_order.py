import random
from itertools import chain
from itertools import islice

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import BatchSampler
from torch.utils.data import DistributedSampler
from torch.utils.data import RandomSampler
from torch.utils.data import SequentialSampler
from torch.utils.data import SubsetRandomSampler
from torch.utils.data import WeightedRandomSampler

from ignite_hooks.data.random_state import RandomState
from ignite_hooks.data.sample_order import batches_after
from ignite_hooks.data.sample_order import enter_at_sample
from ignite_hooks.data.sample_order import enter_order
from ignite_hooks.data.sample_order import replayed_sampler
from ignite_hooks.data.sample_order import samples_per_batch
from ignite_hooks.data.sample_order import samples_per_pass

SIZE = 40


class Countdown:
    """A sampler of a user's class."""

    def __init__(self, generator):
        self.generator = generator

    def __len__(self):
        return SIZE

    def __iter__(self):
        for number in range(SIZE, 0, -1):
            yield number + int(torch.randint(9, (), generator=self.generator))
        torch.rand((), generator=self.generator)


def seedable(generator):
    sampler = SeedableRandomSampler(range(SIZE), generator=generator, data_seed=3)
    sampler.set_epoch(2)
    return sampler


SAMPLERS = {
    "in order": lambda generator: SequentialSampler(range(SIZE)),
    "shuffled": lambda generator: RandomSampler(range(SIZE), generator=generator),
    "fewer than there are": lambda generator: RandomSampler(
        range(SIZE), num_samples=13, generator=generator
    ),
    "more than there are": lambda generator: RandomSampler(
        range(12), num_samples=SIZE, generator=generator
    ),
    "a multiple of what there is": lambda generator: RandomSampler(
        range(20), num_samples=SIZE, generator=generator
    ),
    "with replacement": lambda generator: RandomSampler(
        range(9), replacement=True, num_samples=3 * 32 + 5, generator=generator
    ),
    "with replacement, in whole draws": lambda generator: RandomSampler(
        range(9), replacement=True, num_samples=2 * 32, generator=generator
    ),
    "a subset": lambda generator: SubsetRandomSampler(range(3, 25), generator),
    "by weight": lambda generator: WeightedRandomSampler(
        torch.arange(1.0, 9.0), SIZE, generator=generator
    ),
    "by weight, each once": lambda generator: WeightedRandomSampler(
        torch.arange(1.0, 9.0), 7, replacement=False, generator=generator
    ),
    "seeded by the pass": seedable,
    "distributed": lambda generator: DistributedSampler(range(SIZE), 2, 1, seed=4),
    "a list": lambda generator: [*range(SIZE, 0, -1)],
    "a range": lambda generator: range(3, SIZE, 2),
    "of a user's class": Countdown,
}
HAS_GENERATOR = [False, True]


def next_draws(generator):
    """Returns the next draws from a generator and from the global one, to compare states."""
    return [each.get_state().tolist() for each in (generator, torch.default_generator) if each]


def iterate_sampler(order, start, first):
    iterator = iter(order)
    before = [*islice(iterator, start)]
    return before[:first], iterator


@pytest.mark.filterwarnings("ignore:Countdown draws from the global random generators")
@pytest.mark.parametrize("has_generator", HAS_GENERATOR)
@pytest.mark.parametrize("name", SAMPLERS)
def test_entered_order_equals_an_iterated_one(name, has_generator):
    """The indices and the state of the generators are equal after every element."""
    torch.manual_seed(0)
    for start in range(1, sum(1 for _ in SAMPLERS[name](None)) + 1):
        traces = []
        for enter in (iterate_sampler, enter_order):
            torch.manual_seed(5)
            generator = torch.Generator().manual_seed(7) if has_generator else None
            first, rest = enter(SAMPLERS[name](generator), start, min(start, 5))
            trace = [first, next_draws(generator)]
            for number in rest:
                trace += [number, next_draws(generator)]
            traces.append([*trace, next_draws(generator)])
        assert traces[0] == traces[1], start


def test_indices_are_redrawn_in_few_calls():
    start = 1_950_017
    orders = []
    for enter in (iterate_sampler, enter_order):
        sampler = RandomSampler(
            range(1000),
            replacement=True,
            num_samples=start + 70,
            generator=torch.Generator().manual_seed(7),
        )
        first, rest = enter(sampler, start, 50)
        orders.append([first, list(rest), next_draws(sampler.generator)])
    assert orders[0] == orders[1]


SHARDS = [
    (processes, split, even, drop_last)
    for processes in (1, 2, 3)
    for split in (False, True)
    for even in (True, False)
    for drop_last in (False, True)
]


def batches_of_process(size, processes, rank, split, even, drop_last, batch_size=6):
    batches = BatchSampler(RandomSampler(range(size)), batch_size, drop_last)
    return BatchSamplerShard(batches, processes, rank, split_batches=split, even_batches=even)


@pytest.mark.parametrize(("processes", "split", "even", "drop_last"), SHARDS)
@pytest.mark.parametrize("size", [5, 6, 17, 36, 40, 41])
def test_entered_shard_pads_the_last_batch_equally(size, processes, split, even, drop_last):
    for rank in range(processes):
        options = (size, processes, rank, split, even, drop_last)
        torch.manual_seed(5)
        whole = list(batches_of_process(*options))
        for start in range(1, len(whole) + 1):
            torch.manual_seed(5)
            order = batches_of_process(*options)
            assert list(enter_order(order, start)[1]) == whole[start:]
            behind = min(start * samples_per_batch(order), size)
            assert batches_after(order, behind) == len(whole) - start


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 9, 50])
def test_rest_of_a_pass_with_another_batch_size(batch_size, drop_last):
    torch.manual_seed(5)
    numbers = list(RandomSampler(range(SIZE)))
    for samples in range(1, SIZE):
        torch.manual_seed(5)
        order = BatchSampler(RandomSampler(range(SIZE)), batch_size, drop_last)
        batches = list(enter_at_sample(order, samples))
        assert batches == list(BatchSampler(numbers[samples:], batch_size, drop_last))
        assert batches_after(order, samples) == len(batches)


@pytest.mark.parametrize("batch_size", [2, 3, 30])
def test_rest_of_a_divided_pass_with_another_batch_size(batch_size):
    torch.manual_seed(5)
    numbers = list(RandomSampler(range(SIZE)))
    for samples in (1, 12, 39):
        given, lengths = [], set()
        for rank in range(2):
            torch.manual_seed(5)
            order = batches_of_process(SIZE, 2, rank, False, True, False, batch_size)
            batches = list(enter_at_sample(order, samples))
            assert {len(batch) for batch in batches} == {batch_size}
            lengths |= {len(batches), batches_after(order, samples)}
            given += chain.from_iterable(batches)
        assert set(given) >= set(numbers[samples:])
        assert len(lengths) == 1


def test_custom_batch_sampler_has_no_sample_position():
    class CustomBatches(BatchSampler):
        pass

    own = CustomBatches(range(9), 2, False)
    for order in (own, BatchSamplerShard(own, 2, 0), range(9), Countdown(None)):
        assert samples_per_batch(order) is samples_per_pass(order) is None
    assert [*enter_order(own, 2)[1]] == [[4, 5], [6, 7], [8]]
    assert [*enter_order(BatchSamplerShard(own, 2, 0), 1)[1]] == [[4, 5], [8, 0]]


def test_samples_are_counted_over_all_processes():
    options = {"size": 20, "rank": 1, "even": True, "drop_last": False}
    for processes, split, a_batch in ((1, False, 6), (2, False, 12), (2, True, 6)):
        order = batches_of_process(processes=processes, split=split, **options)
        assert (samples_per_batch(order), samples_per_pass(order)) == (a_batch, 20)
    assert samples_per_pass(BatchSampler(iter(range(9)), 2, False)) is None


def test_sampler_that_must_be_iterated_is_returned():
    own = Countdown(None)
    for order in (own, BatchSampler(own, 2, False), BatchSamplerShard(BatchSampler(own, 2, False))):
        assert replayed_sampler(order) is own
    for name, make in SAMPLERS.items():
        assert (replayed_sampler(BatchSampler(make(None), 2, False)) is None) == (
            "user" not in name
        )


class Buffered(Countdown):
    """A sampler that takes its indices from a buffer, at random positions drawn one by one."""

    def __iter__(self):
        waiting = [*range(SIZE)]
        while waiting:
            yield waiting.pop(random.randrange(len(waiting)))


def test_sampler_with_late_global_draws_is_warned_of():
    with pytest.warns(
        UserWarning, match="Buffered draws from the global random generators while it is iter"
    ):
        enter_order(BatchSampler(Buffered(None), 4, False), 3)


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(1)])
def test_draws_from_each_global_generator_are_noticed(draw):
    state = RandomState.capture()
    assert not state.has_moved()
    draw()
    assert state.has_moved()


class DrawnOnIter(Countdown):
    """A sampler that draws its order from a global generator at its start, as most do."""

    def __iter__(self):
        yield from torch.randperm(SIZE).tolist()


def test_sampler_that_draws_its_order_at_once_does_not_warn():
    torch.manual_seed(5)
    _, rest = enter_order(DrawnOnIter(None), 7)
    torch.manual_seed(5)
    assert [*rest] == [*DrawnOnIter(None)][7:]
