import io
import random
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import GradientState
from accelerate.utils import DataLoaderConfiguration
from ignite.engine import Engine
from ignite.engine import Events
from torch.utils.data import BatchSampler
from torch.utils.data import DataLoader
from torch.utils.data import Dataset
from torch.utils.data import IterableDataset
from torch.utils.data import RandomSampler
from torch.utils.data import Sampler
from torch.utils.data import SequentialSampler
from torch.utils.data import WeightedRandomSampler

from ignite_hooks import DataFeed
from ignite_hooks.core.place import FeedPosition
from ignite_hooks.data.feed import Feeds
from ignite_hooks.data.random_state import RandomState
from tests.ids import stable_id
from tests.reference import Noisy
from tests.reference import seed


class Counted(Dataset):
    """A data set of its indices, which records the indices that are loaded."""

    def __init__(self, size=10):
        self.size = size
        self.asked = Counter()

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.asked[int(index)] += 1
        return torch.tensor(index)


class Stream(IterableDataset):
    def __init__(self, size):
        self.size = size

    def __iter__(self):
        return iter(torch.arange(self.size))


class Promising(Stream):
    def __init__(self, size, promised):
        super().__init__(size)
        self.promised = promised

    def __len__(self):
        return self.promised


class Unsized:
    """An iterable without a length, which can be iterated again."""

    def __init__(self, *batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class Batches:
    """A batch sampler with any length, right or wrong."""

    def __init__(self, batches, length):
        self.batches, self.length = batches, length

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return self.length


class Nameless:
    """A batch sampler without a length."""

    def __iter__(self):
        return iter([[0, 1], [2], [3, 4, 5]])


class ByEpoch:
    """A batch sampler whose batches, and number of batches, depend on the epoch."""

    def __init__(self):
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 2 + self.epoch % 2

    def __iter__(self):
        return iter([[self.epoch + i] for i in range(len(self))])


class WithoutEnd(Sampler):
    def __init__(self):
        self.drawn = 0

    def __iter__(self):
        number = 0
        while True:
            assert self.drawn < 1000, "the sampler was asked for all there is"
            self.drawn += 1
            yield number % 6
            number += 1


def listed(batch):
    return batch.tolist() if isinstance(batch, torch.Tensor) else batch


def one_pass(feed):
    return [listed(batch) for batch in feed]


def take(feed, count):
    """Returns ``count`` batches, and leaves the pass."""
    batches = iter(feed)
    taken = [listed(next(batches)) for _ in range(count)]
    feed.close()
    return taken


def flat(batches):
    return [sample for batch in batches for sample in batch]


def same_tensors(these, those):
    return all(torch.equal(this, that) for this, that in zip(these, those, strict=True))


def shuffled(size=10, *, prepare=None, **settings):
    """Returns a shuffled loader of batches of 3, the last one shorter, and its data set."""
    data_set = Counted(size)
    loader = DataLoader(data_set, **{"batch_size": 3, "shuffle": True, **settings})
    return data_set, prepare.prepare(loader) if prepare is not None else loader


KINDS = {
    "list": lambda: [[1], [2], [3]],
    "tuple": lambda: ([1], [2], [3]),
    "unsized": lambda: Unsized([1], [2], [3]),
    "loader": lambda: DataLoader([1, 2, 3], batch_size=1),
    "single samples": lambda: DataLoader([[1], [2], [3]], batch_size=None),
    "batch sampler": lambda: DataLoader([1, 2, 3], batch_sampler=[[0], [1], [2]]),
    "stream": lambda: DataLoader(Promised123(), batch_size=1),
    "stream of batches": lambda: DataLoader(Unsized123(), batch_size=None),
}


class Promised123(IterableDataset):
    def __iter__(self):
        return iter([1, 2, 3])

    def __len__(self):
        return 3


class Unsized123(IterableDataset):
    def __iter__(self):
        return iter([torch.tensor([1]), torch.tensor([2]), torch.tensor([3])])


class Words(IterableDataset):
    def __iter__(self):
        return iter(["a", "b", "c"])


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture
def seedable():
    return Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=5)
    )


class TestPasses:
    @pytest.mark.parametrize("prepared", [False, True])
    @pytest.mark.parametrize("kind", KINDS)
    def test_each_pass_gives_what_the_data_holds(self, kind, prepared, accelerator):
        data = KINDS[kind]()
        if prepared and kind != "single samples" and isinstance(data, DataLoader):
            data = accelerator.prepare(data)
        feed = DataFeed(data, accelerator)
        for number in range(3):
            assert feed.position == (number, 0)
            assert one_pass(feed) == [[1], [2], [3]]
            assert GradientState().dataloader_references == [None]

    @pytest.mark.parametrize("kind", KINDS)
    def test_data_is_unchanged_without_an_accelerator(self, kind):
        data = KINDS[kind]()
        feed = DataFeed(data)
        assert feed.loader is data
        assert [one_pass(feed), one_pass(feed)] == [[[1], [2], [3]]] * 2

    @pytest.mark.parametrize("kind", KINDS)
    def test_last_batch_is_marked_when_it_is_given(self, kind, accelerator):
        feed = DataFeed(KINDS[kind](), accelerator)
        for _ in range(2):
            assert [feed.is_last for _ in feed] == [False, False, True]
            assert not feed.is_last

    @pytest.mark.parametrize("kind", KINDS)
    def test_pass_left_half_way_is_continued(self, kind, accelerator):
        feed = DataFeed(KINDS[kind](), accelerator)
        assert take(feed, 2) == [[1], [2]]
        assert feed.position == (0, 2)
        assert not feed.at_start
        assert one_pass(feed) == [[3]]
        assert feed.position == (1, 0)
        assert feed.at_start

    @pytest.mark.parametrize("kind", KINDS)
    def test_pass_left_after_its_last_batch_is_over(self, kind, accelerator):
        feed = DataFeed(KINDS[kind](), accelerator)
        take(feed, 3)
        assert feed.position == (0, 3)
        assert one_pass(feed) == [[1], [2], [3]]
        assert feed.position == (2, 0)

    @pytest.mark.parametrize("kind", KINDS)
    def test_finish_ends_the_pass_for_accelerate(self, kind, accelerator):
        feed = DataFeed(KINDS[kind](), accelerator)
        batches = iter(feed)
        next(batches)
        feed.finish()
        assert feed.position == (0, 1)
        next(batches), next(batches)
        feed.finish()
        assert feed.position == (1, 0)
        assert GradientState().dataloader_references == [None]

    @pytest.mark.parametrize("kind", KINDS)
    def test_iterating_again_abandons_the_current_pass(self, kind, accelerator):
        feed = DataFeed(KINDS[kind](), accelerator)
        abandoned = iter(feed)
        next(abandoned)
        assert one_pass(feed) == [[1], [2], [3]]
        assert feed.position == (2, 0)
        assert next(abandoned, None) is None

    @pytest.mark.parametrize("kind", KINDS)
    def test_pass_of_a_dropped_iterator_is_continued(self, kind, accelerator):
        feed = DataFeed(KINDS[kind](), accelerator)
        next(iter(feed))
        assert GradientState().dataloader_references == [None]
        assert one_pass(feed) == [[2], [3]]

    @pytest.mark.parametrize("batch_size", [None, 2])
    def test_stream_may_yield_non_tensors(self, batch_size, accelerator):
        expected = list(DataLoader(Words(), batch_size=batch_size))
        feed = DataFeed(DataLoader(Words(), batch_size=batch_size), accelerator)
        assert list(feed) == expected

    def test_a_pass_begins_with_its_first_batch(self, accelerator):
        _, loader = shuffled(prepare=accelerator)
        feed = DataFeed(loader, accelerator)
        before = torch.get_rng_state()
        batches = iter(feed)
        assert torch.equal(before, torch.get_rng_state())
        assert GradientState().dataloader_references == [None]
        next(batches)
        assert GradientState().active_dataloader is loader
        feed.close()

    def test_next_pass_before_the_first_batch_leaves_nothing_out(self):
        feed = DataFeed([[1]])
        feed.next_pass()
        assert feed.position == (0, 0)

    def test_close_is_idempotent(self, accelerator):
        feed = DataFeed(shuffled(prepare=accelerator)[1], accelerator)
        feed.close()
        batches = iter(feed)
        next(batches)
        feed.close()
        feed.close()
        assert next(batches, None) is None
        assert feed.position == (0, 1)

    def test_already_iterated_loader_continues_with_its_own_epoch(self, seedable):
        _, loader = shuffled(prepare=seedable)
        _, same = shuffled(prepare=seedable)
        list(loader), list(same)
        assert DataFeed(loader, seedable).position == (1, 0)
        assert one_pass(DataFeed(loader, seedable)) == [batch.tolist() for batch in same]

    def test_direct_iteration_afterwards_gets_the_next_epoch(self, seedable):
        _, plain = shuffled(prepare=seedable)
        expected = [[batch.tolist() for batch in plain] for _ in range(3)]
        _, loader = shuffled(prepare=seedable)
        feed = DataFeed(loader, seedable)
        assert one_pass(feed) == expected[0]
        take(feed, 2)
        feed.next_pass()
        assert [batch.tolist() for batch in loader] == expected[2]


class TestLength:
    @pytest.mark.parametrize(
        ("kind", "length"),
        [
            ("list", 3),
            ("tuple", 3),
            ("unsized", None),
            ("loader", 3),
            ("batch sampler", 3),
            ("single samples", 3),
            ("stream", None),
            ("stream of batches", None),
        ],
    )
    def test_length_is_known_if_it_is_certain(self, kind, length, accelerator):
        feed = DataFeed(KINDS[kind](), accelerator)
        assert feed.length == length
        if length is None:
            with pytest.raises(TypeError, match="no certain number of batches"):
                len(feed)
        else:
            assert len(feed) == length

    def test_batches_left_include_the_current_one(self):
        feed = DataFeed([[1], [2], [3]])
        assert [feed.batches_left for _ in feed] == [3, 2, 1]

    def test_batches_left_without_a_length_are_known_at_the_end(self):
        feed = DataFeed(Unsized([1], [2], [3]))
        assert [feed.batches_left for _ in feed] == [None, None, 1]

    def test_drop_last_leaves_out_the_short_batch(self, accelerator):
        feed = DataFeed(DataLoader(range(5), batch_size=2, drop_last=True), accelerator)
        assert len(feed) == 2
        assert one_pass(feed) == [[0, 1], [2, 3]]

    @pytest.mark.parametrize("promised", [0, 2, 4, 6, 9])
    @pytest.mark.parametrize("accelerated", [False, True])
    def test_promised_length_of_a_stream_is_not_relied_on(self, promised, accelerated, accelerator):
        loader = DataLoader(Promising(6, promised), batch_size=2)
        feed = DataFeed(loader, accelerator if accelerated else None)
        assert [feed.is_last for _ in feed] == [False, False, True]
        assert one_pass(feed) == [[0, 1], [2, 3], [4, 5]]

    @pytest.mark.parametrize("accelerated", [False, True])
    def test_too_few_batches_are_an_error(self, accelerated, accelerator):
        loader = DataLoader(range(6), batch_sampler=Batches([[0], [1, 2]], 3))
        feed = DataFeed(loader, accelerator if accelerated else None)
        with pytest.raises(RuntimeError, match=r"`data` must give.* is 3; it gave only 2 in pass "):
            one_pass(feed)
        assert GradientState().dataloader_references == [None]

    @pytest.mark.parametrize("accelerated", [False, True])
    def test_too_many_batches_are_an_error(self, accelerated, accelerator):
        loader = DataLoader(range(6), batch_sampler=Batches([[0], [1, 2], [3]], 2))
        feed = DataFeed(loader, accelerator if accelerated else None)
        with pytest.raises(
            RuntimeError, match=r"which is 2; it gave more in pass 1: correct __len"
        ):
            one_pass(feed)
        assert GradientState().dataloader_references == [None]

    @pytest.mark.parametrize("accelerated", [False, True])
    def test_batch_sampler_without_a_length_is_fetched_ahead(self, accelerated, accelerator):
        loader = DataLoader(range(6), batch_sampler=Nameless())
        feed = DataFeed(loader, accelerator if accelerated else None)
        assert feed.length is None
        for _ in range(2):
            assert one_pass(feed) == [[0, 1], [2], [3, 4, 5]]
        assert take(feed, 2) + one_pass(feed) == [[0, 1], [2], [3, 4, 5]]

    @pytest.mark.parametrize("accelerated", [False, True])
    def test_the_length_may_change_with_the_epoch(self, accelerated, accelerator):
        loader = DataLoader(range(6), batch_sampler=ByEpoch())
        feed = DataFeed(loader, accelerator if accelerated else None)
        assert [one_pass(feed) for _ in range(3)] == [[[0], [1]], [[1], [2], [3]], [[2], [3]]]

    def test_a_list_may_grow_between_passes(self):
        data = [[1]]
        feed = DataFeed(data)
        one_pass(feed)
        data.append([2])
        assert one_pass(feed) == [[1], [2]]
        assert len(feed) == 2


class TestIterators:
    def test_batch_fetched_ahead_is_kept_across_a_stop(self):
        feed = DataFeed([number] for number in range(5))
        assert not feed.can_repeat
        assert take(feed, 1) + take(feed, 2) + one_pass(feed) == [[0], [1], [2], [3], [4]]

    def test_next_pass_continues_the_iterator(self):
        feed = DataFeed([number] for number in range(5))
        take(feed, 2)
        feed.next_pass()
        assert feed.position == (1, 0)
        assert one_pass(feed) == [[2], [3], [4]]

    def test_seek_does_not_move_an_iterator(self):
        feed = DataFeed([number] for number in range(5))
        take(feed, 2)
        feed.seek(FeedPosition(0, 0))
        assert feed.position == (0, 2)
        assert one_pass(feed) == [[2], [3], [4]]

    def test_at_most_one_batch_is_fetched_ahead(self):
        drawn = []
        feed = DataFeed(drawn.append(number) or [number] for number in range(5))
        take(feed, 2)
        assert drawn == [0, 1, 2]

    def test_exhausted_iterator_is_an_error(self):
        feed = DataFeed(iter([[1]]))
        one_pass(feed)
        with pytest.raises(ValueError, match=r"`data` gave no batch in pass 2.* used up after one"):
            one_pass(feed)

    def test_an_iterator_is_not_closed_with_the_feed(self):
        data = ([number] for number in range(3))
        feed = DataFeed(data)
        take(feed, 1)
        assert next(data) == [2]


class TestRandomOrder:
    """The draws of the sampler, the data set and the consumer, in their order."""

    @staticmethod
    def consume(batches, passes):
        seen = []
        for _ in range(passes):
            for x, _ in batches:
                drawn = torch.rand(1) + random.random() + float(np.random.rand())
                seen.append(torch.cat([x.flatten(), drawn]))
        return seen, torch.rand(1), random.random(), np.random.rand()

    @pytest.mark.parametrize("prepared", [False, True])
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"drop_last": True},
            {"shuffle": False},
            {"num_workers": 2},
            {"num_workers": 2, "persistent_workers": True},
            {"batch_size": None},
        ],
        ids=stable_id,
    )
    def test_feed_draws_like_a_plain_loop(self, settings, prepared, accelerator):
        settings = {"batch_size": 3, "shuffle": True, **settings}
        loader = DataLoader(Noisy(), **settings)
        feed_loader = DataLoader(Noisy(), **settings)
        if prepared and settings["batch_size"]:
            feed_loader = accelerator.prepare(feed_loader)
        seed()
        plain = self.consume(loader, 3)
        seed()
        fed = self.consume(DataFeed(feed_loader, accelerator), 3)
        assert plain[1:] == fed[1:]
        assert same_tensors(plain[0], fed[0])

    def test_feed_with_a_loader_generator_draws_like_a_plain_loop(self, accelerator):
        loaders = [
            DataLoader(Noisy(), 3, shuffle=True, generator=torch.Generator().manual_seed(9))
            for _ in range(2)
        ]
        seed()
        plain = self.consume(loaders[0], 2)
        seed()
        fed = self.consume(DataFeed(accelerator.prepare(loaders[1]), accelerator), 2)
        assert plain[1:] == fed[1:]
        assert same_tensors(plain[0], fed[0])

    def test_single_samples_keep_their_shuffle(self, accelerator):
        order = one_pass(
            DataFeed(DataLoader(range(12), batch_size=None, shuffle=True), accelerator)
        )
        assert sorted(order) == list(range(12))
        assert order != list(range(12))

    @pytest.mark.parametrize("dispatched", [False, True])
    def test_seedable_sampler_shuffles_each_pass_differently(self, dispatched):
        accelerator = Accelerator(
            cpu=True,
            dataloader_config=DataLoaderConfiguration(
                use_seedable_sampler=True, data_seed=5, dispatch_batches=dispatched or None
            ),
        )
        _, plain = shuffled(prepare=accelerator)
        expected = [[batch.tolist() for batch in plain] for _ in range(4)]
        feed = DataFeed(shuffled(prepare=accelerator)[1], accelerator)
        given = [take(feed, 4) if number % 2 else one_pass(feed) for number in range(4)]
        assert given == expected
        assert len({str(each) for each in given}) == 4

    @pytest.mark.parametrize("data_pass", [0, 1, 3])
    def test_seedable_sampler_follows_the_order_of_the_sought_pass(self, data_pass, seedable):
        feed = DataFeed(shuffled(prepare=seedable)[1], seedable)
        expected = [one_pass(feed) for _ in range(4)][data_pass]
        data_set, loader = shuffled(prepare=seedable)
        again = DataFeed(loader, seedable)
        again.seek(FeedPosition(data_pass, 2))
        torch.manual_seed(99)
        assert one_pass(again) == expected[2:]
        assert set(data_set.asked) == set(flat(expected[2:]))


LOADERS = {
    "shuffled": {},
    "in order": {"shuffle": False},
    "dropping": {"drop_last": True},
    "own generator": {"generator": torch.Generator()},
    "two workers": {"num_workers": 2},
    "persistent workers": {"num_workers": 2, "persistent_workers": True},
    "weighted": {
        "shuffle": None,
        "sampler": WeightedRandomSampler(torch.arange(1.0, 11.0), 10, replacement=True),
    },
    "weighted, own generator": {
        "shuffle": None,
        "sampler": WeightedRandomSampler(
            torch.arange(1.0, 11.0), 10, replacement=True, generator=torch.Generator()
        ),
    },
    "with replacement": {
        "shuffle": None,
        "sampler": RandomSampler(range(10), replacement=True, num_samples=11),
    },
    "batch sampler": {
        "shuffle": None,
        "batch_size": 1,
        "batch_sampler": BatchSampler(RandomSampler(range(10)), 3, drop_last=False),
    },
    "single samples": {"batch_size": None},
    "batches as samples": {
        "batch_size": None,
        "shuffle": None,
        "sampler": BatchSampler(SequentialSampler(range(10)), 4, drop_last=False),
    },
}


class Indexable(Counted):
    def __getitem__(self, index):
        if isinstance(index, list):
            return torch.stack([super(Indexable, self).__getitem__(i) for i in index])
        return super().__getitem__(index)


class TestSeeking:
    @pytest.mark.grid(2)
    @pytest.mark.parametrize("prepared", [False, True])
    @pytest.mark.parametrize("kind", LOADERS)
    def test_continuing_at_any_position_gives_the_same_batches(self, kind, prepared, accelerator):
        settings = {"batch_size": 3, "shuffle": True, **LOADERS[kind]}
        data_set = Indexable()
        loader = DataLoader(data_set, **settings)
        if prepared and settings["batch_size"]:
            loader = accelerator.prepare(loader)
        feed = DataFeed(loader, accelerator)
        one_pass(feed)
        begun = RandomState.capture(generators=feed.generators)
        for left in range(1, len(feed)):
            begun.restore()
            whole, following = one_pass(feed), one_pass(feed)
            begun.restore()
            assert take(feed, left) == whole[:left]
            data_pass, batches = feed.position
            assert batches == left
            for back in {0, left // 2, left}:
                feed.seek(FeedPosition(data_pass, back))
                assert one_pass(feed) == whole[back:]
            assert one_pass(feed) == following

    @pytest.mark.parametrize("left", [1, 2, 3])
    def test_continued_pass_loads_no_batch_twice(self, left, accelerator):
        data_set, loader = shuffled(prepare=accelerator)
        feed = DataFeed(loader, accelerator)
        take(feed, left)
        data_set.asked.clear()
        rest = one_pass(feed)
        assert data_set.asked == Counter(flat(rest))

    @pytest.mark.parametrize("left", [1, 2, 3])
    def test_interruption_changes_no_random_number(self, left, accelerator):
        def run(stop_at):
            seed()
            feed = DataFeed(
                accelerator.prepare(DataLoader(Noisy(), batch_size=3, shuffle=True)), accelerator
            )
            batches = iter(feed)
            seen = []
            for _ in range(stop_at):
                seen.append(next(batches)[0] + torch.rand(1) + random.random())
            if stop_at:
                feed.close()
            seen += [x + torch.rand(1) + random.random() for x, _ in feed]
            seen += [x for x, _ in feed]
            return torch.cat(seen), torch.rand(1), random.random(), np.random.rand()

        whole, in_parts = run(0), run(left)
        assert torch.equal(whole[0], in_parts[0])
        assert whole[1:] == in_parts[1:]

    def test_random_draws_between_parts_of_a_pass_are_kept(self, accelerator):
        _, loader = shuffled(prepare=accelerator)
        feed = DataFeed(loader, accelerator)
        first = take(feed, 2)
        torch.manual_seed(77)
        expected = torch.rand(3)
        torch.manual_seed(77)
        rest = one_pass(feed)
        assert torch.equal(torch.rand(3), expected)
        assert sorted(flat(first + rest)) == list(range(10))

    def test_dispatched_loader_continues(self):
        accelerator = Accelerator(
            cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=True)
        )
        feed = DataFeed(shuffled(prepare=accelerator)[1], accelerator)
        for left in range(1, 4):
            given = take(feed, left) + one_pass(feed)
            assert sorted(flat(given)) == list(range(10))

    def test_data_without_a_length_continues(self, accelerator):
        feed = DataFeed(Unsized([1], [2], [3]), accelerator)
        take(feed, 2)
        feed.seek(FeedPosition(0, 1))
        assert one_pass(feed) == [[2], [3]]
        feed.seek(FeedPosition(5, 2))
        assert one_pass(feed) == [[3]]
        assert feed.position == (6, 0)

    @pytest.mark.parametrize("accelerated", [False, True])
    def test_endless_sampler_continues(self, accelerated, accelerator):
        sampler = WithoutEnd()
        loader = DataLoader(range(6), batch_size=2, sampler=sampler)
        feed = DataFeed(loader, accelerator if accelerated else None)
        assert take(feed, 1) == [[0, 1]]
        assert take(feed, 2) == [[2, 3], [4, 5]]

    def test_seeking_back_clears_is_last(self):
        feed = DataFeed([[1], [2]])
        take(feed, 2)
        feed.seek(FeedPosition(0, 1))
        assert not feed.is_last
        assert one_pass(feed) == [[2]]

    def test_batch_fetched_ahead_is_not_given_twice(self):
        feed = DataFeed(Unsized([1], [2], [3]))
        batches = iter(feed)
        next(batches)
        feed.seek(FeedPosition(0, 0))
        assert one_pass(feed) == [[1], [2], [3]]

    def test_continued_loader_keeps_the_original_settings(self, accelerator):
        loader = DataLoader(
            range(6), batch_size=2, collate_fn=lambda samples: [-s for s in samples]
        )
        feed = DataFeed(accelerator.prepare(loader), accelerator)
        assert take(feed, 1) + one_pass(feed) == [[0, -1], [-2, -3], [-4, -5]]


class TestMemory:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: DataLoader(torch.arange(4.0), batch_size=2),
            lambda: DataLoader(torch.arange(4.0), batch_sampler=Unsized([0, 1], [2, 3])),
            lambda: Fresh(),
        ],
        ids=["known length", "unknown length", "unsized"],
    )
    @pytest.mark.parametrize("prepared", [False, True])
    def test_no_batch_is_kept_alive_by_the_feed(self, make, prepared, accelerator):
        data = make()
        if prepared and isinstance(data, DataLoader):
            data = accelerator.prepare(data)
        feed = DataFeed(data, accelerator)
        for _ in range(2):
            for batch in feed:
                alive = weakref.ref(batch)
                del batch
                assert alive() is None

    def test_finish_releases_the_last_batch_of_a_dispatched_loader(self, accelerator):
        feed = DataFeed(DataLoader(Stream(4), batch_size=2), accelerator)
        batches = iter(feed)
        next(batches)
        alive = weakref.ref(next(batches))
        feed.finish()
        assert alive() is None


class Fresh:
    def __iter__(self):
        return (torch.ones(2) for _ in range(3))


class TestActiveLoader:
    @pytest.mark.parametrize("whole", [True, False])
    @pytest.mark.parametrize("kind", ["map", "stream", "dispatched"])
    def test_a_nested_iteration_of_the_same_loader_changes_nothing(self, kind, whole):
        config = DataLoaderConfiguration(dispatch_batches=True if kind == "dispatched" else None)
        accelerator = Accelerator(cpu=True, dataloader_config=config)
        data = Stream(6) if kind == "stream" else torch.arange(6)
        loader = accelerator.prepare(DataLoader(data, batch_size=2))
        outer, inner = DataFeed(loader, accelerator), DataFeed(loader, accelerator)
        seen = []
        for batch in outer:
            seen.append(batch.tolist())
            before = loader.end_of_dataloader, loader.remainder
            if whole:
                assert one_pass(inner) == [[0, 1], [2, 3], [4, 5]]
            else:
                inner.next_pass()
                assert take(inner, 1) == [[0, 1]]
            assert GradientState().active_dataloader is loader
            assert (loader.end_of_dataloader, loader.remainder) == before
        assert seen == [[0, 1], [2, 3], [4, 5]]

    def test_the_outer_loader_is_active_again_after_a_nested_one(self, accelerator):
        outer, inner = (DataFeed(shuffled()[1], accelerator) for _ in range(2))
        for _ in outer:
            one_pass(inner)
            assert GradientState().active_dataloader is outer.loader
            take(inner, 2)
            assert GradientState().active_dataloader is outer.loader
        assert GradientState().dataloader_references == [None]

    @pytest.mark.parametrize("kind", ["map", "stream"])
    def test_a_failing_consumer_leaves_no_active_loader(self, kind, accelerator):
        data = Stream(6) if kind == "stream" else torch.arange(6)
        feed = DataFeed(DataLoader(data, batch_size=2), accelerator)
        batches = iter(feed)
        next(batches)
        assert GradientState().active_dataloader is feed.loader
        feed.close()
        assert GradientState().dataloader_references == [None]

    def test_a_failing_data_set_leaves_no_active_loader(self, accelerator):
        loader = DataLoader(range(4), batch_sampler=[[0], [99]])
        feed = DataFeed(loader, accelerator)
        with pytest.raises(IndexError):
            one_pass(feed)
        assert GradientState().dataloader_references == [None]
        assert feed.position == (0, 1)


class TestPlainIgniteEngine:
    """A plain Ignite engine on a feed."""

    @pytest.fixture(params=["map", "stream", "unsized batches"])
    def feed(self, request, accelerator):
        if request.param == "map":
            loader = DataLoader(torch.arange(6), batch_size=2)
        elif request.param == "stream":
            loader = DataLoader(Stream(6), batch_size=2)
        else:
            loader = DataLoader(torch.arange(6), batch_sampler=Unsized([0, 1], [2, 3], [4, 5]))
        return DataFeed(accelerator.prepare(loader), accelerator)

    @pytest.fixture
    def engine(self):
        engine = Engine(lambda engine, batch: engine.seen.append(batch.tolist()))
        engine.seen = []
        return engine

    def test_several_epochs_see_several_passes(self, engine, feed):
        engine.run(feed, max_epochs=3)
        assert engine.seen == [[0, 1], [2, 3], [4, 5]] * 3
        assert engine.state.epoch_length == 3
        assert GradientState().dataloader_references == [None]

    def test_two_runs_of_one_epoch_equal_one_run_of_two(self, engine, seedable):
        orders = []
        for epochs in ([2], [1, 1]):
            feed = DataFeed(shuffled(prepare=seedable)[1], seedable)
            engine.seen = []
            for number in epochs:
                engine.state.max_epochs = None
                engine.run(feed, max_epochs=number)
            orders.append(engine.seen)
        assert orders[0] == orders[1]
        assert orders[0][:4] != orders[0][4:]
        assert GradientState().dataloader_references == [None]

    def test_next_run_after_terminate_gets_the_rest_of_the_pass(self, engine, feed):
        @engine.on(Events.ITERATION_COMPLETED(once=2))
        def stop(engine):
            engine.terminate()

        engine.run(feed, max_epochs=2)
        assert engine.seen == [[0, 1], [2, 3]]
        assert GradientState().dataloader_references == [None]
        engine.state.max_epochs = None
        engine.run(feed, max_epochs=1)
        assert engine.seen[2] == [4, 5]
        assert GradientState().dataloader_references == [None]

    def test_terminate_epoch_begins_the_next_pass(self, engine, feed):
        @engine.on(Events.ITERATION_COMPLETED(once=2))
        def stop(engine):
            engine.terminate_epoch()

        engine.run(feed, max_epochs=2, epoch_length=3)
        assert engine.seen == [[0, 1], [2, 3], [0, 1], [2, 3], [4, 5]]
        assert GradientState().dataloader_references == [None]

    def test_failure_leaves_no_active_loader_and_feed_continues(self, feed):
        seen = []

        def process(engine, batch):
            if len(seen) == 1:
                seen.append("failed")
                raise ArithmeticError
            seen.append(batch.tolist())

        with pytest.raises(ArithmeticError):
            Engine(process).run(feed, max_epochs=1)
        assert GradientState().dataloader_references == [None]
        seen.clear()
        seen += ["again", "again"]
        Engine(process).run(feed, max_epochs=1, epoch_length=1)
        assert seen[2:] == [[4, 5]]
        assert GradientState().dataloader_references == [None]

    def test_nested_engine_on_the_same_loader_changes_nothing(self, engine, feed, accelerator):
        inner = Engine(lambda engine, batch: batch.tolist())
        own = DataFeed(feed.loader, accelerator)

        @engine.on(Events.ITERATION_COMPLETED)
        def nested(engine):
            before = GradientState().dataloader_references
            inner.state.max_epochs = None
            inner.run(own, max_epochs=1)
            assert GradientState().dataloader_references == before

        engine.run(feed, max_epochs=2)
        assert engine.seen == [[0, 1], [2, 3], [4, 5]] * 2
        assert GradientState().dataloader_references == [None]

    @pytest.mark.parametrize("known", [True, False])
    def test_accumulate_sees_the_end_of_the_data_as_in_a_plain_loop(self, known):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
        sampler = [[number] for number in range(7)]
        loader = DataLoader(range(7), batch_sampler=sampler if known else Unsized(*sampler))
        loader = accelerator.prepare(loader)
        synced = []

        def process(engine, batch):
            with accelerator.accumulate():
                synced.append(int(accelerator.sync_gradients))

        for _ in range(2):
            for batch in loader:
                process(None, batch)
        plain, synced[:] = list(synced), []
        feed = DataFeed(loader, accelerator)
        Engine(process).run(feed, max_epochs=2)
        feed.close()
        assert synced == plain == [0, 0, 1, 0, 0, 1, 1] * 2


class TestErrors:
    @pytest.mark.parametrize("data", [5, None, torch.nn.Linear(1, 1)])
    def test_data_that_cannot_be_iterated_is_a_type_error(self, data):
        with pytest.raises(
            TypeError,
            match=rf"`data` must be an iterable of batches, got {type(data).__name__}: pass a ",
        ):
            DataFeed(data)

    @pytest.mark.parametrize("accelerated", [False, True])
    @pytest.mark.parametrize(
        "empty", [[], (), DataLoader([], 2), DataLoader([1], 2, drop_last=True)]
    )
    def test_data_known_to_be_empty_is_an_error_at_once(self, empty, accelerated, accelerator):
        with pytest.raises(
            ValueError,
            match=r"`data` gave no batch in pass 1, it must give at least one batch",
        ):
            DataFeed(empty, accelerator if accelerated else None)

    @pytest.mark.parametrize(
        "make",
        [
            Unsized,
            lambda: (each for each in ()),
            lambda: DataLoader(Stream(0), 2),
            lambda: DataLoader(range(3), batch_sampler=Unsized()),
        ],
        ids=["unsized", "generator", "stream", "batch sampler"],
    )
    @pytest.mark.parametrize("accelerated", [False, True])
    def test_data_found_to_be_empty_is_an_error_in_its_pass(self, make, accelerated, accelerator):
        feed = DataFeed(make(), accelerator if accelerated else None)
        with pytest.raises(ValueError, match=r"`data` gave no batch in pass 1, it must give at"):
            one_pass(feed)
        assert GradientState().dataloader_references == [None]

    def test_data_empty_in_a_later_pass_is_an_error(self):
        data = [[1]]
        feed = DataFeed(data)
        one_pass(feed)
        data.clear()
        with pytest.raises(ValueError, match=r"`data` gave no batch in pass 2"):
            one_pass(feed)


# Feeds: one feed for each loader.


def test_loader_is_prepared_once_and_keeps_its_position(accelerator):
    feeds = Feeds(accelerator)
    loaders = [DataLoader(range(4), batch_size=2) for _ in range(2)]
    first = feeds.feed_for(loaders[0])
    next(iter(first))
    first.close()
    for _ in range(3):
        assert feeds.feed_for(loaders[1]) is not first
        assert feeds.feed_for(loaders[0]) is first
    assert first.position == (0, 1)
    assert accelerator._dataloaders == [first.loader]


def test_prepared_loader_shares_the_feed_of_the_raw_one(accelerator):
    feeds = Feeds(accelerator)
    raw = DataLoader(range(4))
    feed = feeds.feed_for(raw)
    feeds.feed_for([1])
    assert feeds.feed_for(feed.loader) is feed


def test_newest_feed_of_other_iterables_is_remembered(accelerator):
    feeds = Feeds(accelerator)
    one, other = [[1], [2]], [[1], [2]]
    feed = feeds.feed_for(one)
    assert feeds.feed_for(one) is feed
    assert feeds.feed_for(other) is not feed
    assert feeds.feed_for(one) is not feed


def test_feed_can_be_registered_for_data(accelerator):
    feeds = Feeds(accelerator)
    raw = DataLoader(range(4))
    feed = DataFeed(raw, accelerator)
    feeds.register(raw, feed)
    feeds.feed_for([1])
    assert feeds.feed_for(raw) is feeds.feed_for(feed.loader) is feed


@pytest.mark.parametrize("even_batches", [True, False])
def test_even_batches_is_passed_to_the_feeds(even_batches, accelerator):
    feed = Feeds(accelerator, even_batches).feed_for(DataLoader(range(4)))
    assert feed._source.even_batches is even_batches


def test_feed_of_unusable_data_is_not_cached(accelerator):
    feeds = Feeds(accelerator)
    data = []
    with pytest.raises(ValueError, match="gave no batch"):
        feeds.feed_for(data)
    data.append([1])
    assert len(feeds.feed_for(data)) == 1


# A feed that loads the state of another gives the batches that the other would give next.


SAMPLES, BATCH, PASSES = 10, 3, 3


class Floats(IterableDataset):
    def __iter__(self):
        yield from torch.arange(float(SAMPLES))


class Permuted:
    """Batches in an order that is drawn when the pass begins."""

    def __iter__(self):
        return iter(torch.randperm(SAMPLES).split(BATCH))


class Drawing(Permuted):
    """Batches in an order that is drawn from their own generator when the pass begins."""

    def __init__(self):
        self.rng = np.random.default_rng(torch.initial_seed())

    def __iter__(self):
        return iter(torch.from_numpy(self.rng.permutation(SAMPLES)).split(BATCH))


def noisy_loader(**options):
    return DataLoader(Noisy(SAMPLES), BATCH, shuffle=True, **options)


def three_generators_loader():
    sampler = RandomSampler(
        range(SAMPLES), generator=torch.Generator().manual_seed(torch.initial_seed())
    )
    batches = BatchSampler(sampler, BATCH, drop_last=False)
    return DataLoader(
        Noisy(SAMPLES), batch_sampler=batches, generator=torch.Generator().manual_seed(6)
    )


def replacing():
    sampler = RandomSampler(range(SAMPLES), replacement=True, num_samples=SAMPLES)
    return DataLoader(Noisy(SAMPLES), BATCH, sampler=sampler)


def accelerator_with(**options):
    return Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))


MOVABLE = {
    "a loader": lambda: DataFeed(noisy_loader()),
    "a prepared loader": lambda: DataFeed(noisy_loader(), accelerator_with()),
    "a seedable sampler": lambda: DataFeed(
        noisy_loader(), accelerator_with(use_seedable_sampler=True)
    ),
    "drop_last": lambda: DataFeed(noisy_loader(drop_last=True), accelerator_with()),
    "own generators": lambda: DataFeed(three_generators_loader()),
    "prepared, own generators": lambda: DataFeed(three_generators_loader(), accelerator_with()),
    "with replacement": lambda: DataFeed(replacing(), accelerator_with()),
    "single samples": lambda: DataFeed(DataLoader(Noisy(4), batch_size=None, shuffle=True)),
    "a list": lambda: DataFeed(list(torch.arange(4.0))),
    "an iterable without length": lambda: DataFeed(Permuted()),
    "an iterable with a generator": lambda: DataFeed(Drawing()),
    "dispatched, own generators": lambda: DataFeed(
        three_generators_loader(), accelerator_with(dispatch_batches=True)
    ),
    "an iterable data set": lambda: DataFeed(DataLoader(Floats(), BATCH), accelerator_with()),
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


def batches_until(feed, until):
    """Returns the batches up to a pass, and the positions at which they were given."""
    found = []
    while feed.position.data_pass < until:
        for batch in feed:
            tensors = batch if isinstance(batch, list | tuple) else [batch]
            found.append((tuple(feed.position), torch.cat([each.flatten() for each in tensors])))
    return found


def advance(feed, number):
    """Takes ``number`` batches; ends a pass after its last batch, as a trainer does."""
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


def resumed_and_unbroken(make, number):
    """Returns what a feed gives after some batches, and what a feed resumed from it gives."""
    seed(1)
    feed = make()
    batches = advance(feed, number)
    place, random = feed.state_dict(), RandomState.capture().state_dict()
    place, random = after_a_file(place), after_a_file(random)
    rest = [*_rest(feed, batches), *batches_until(feed, PASSES)]
    at_end = RandomState.capture(generators=feed.generators).state_dict()

    seed(2)
    other = make()
    other.load_state_dict(place)
    RandomState.from_state_dict(random).restore()
    resumed = batches_until(other, PASSES)
    at_other_end = RandomState.capture(generators=other.generators).state_dict()
    return rest, resumed, at_end, at_other_end


def _rest(feed, batches):
    for batch in batches:
        tensors = batch if isinstance(batch, list | tuple) else [batch]
        yield tuple(feed.position), torch.cat([each.flatten() for each in tensors])


@pytest.mark.grid(7)
@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("kind", MOVABLE)
def test_resumed_pass_equals_the_rest_from_every_position(kind, number):
    rest, resumed, at_end, at_other_end = resumed_and_unbroken(MOVABLE[kind], number)
    assert rest
    assert_same(resumed, rest)
    assert str(at_other_end) == str(at_end)


@pytest.mark.grid(3)
@pytest.mark.parametrize("number", [0, 2, 4, 5])
@pytest.mark.parametrize("workers", WORKERS)
def test_resumed_pass_with_workers_equals_the_rest(workers, number):
    def make():
        loader = DataLoader(Noisy(SAMPLES, noise=0), BATCH, shuffle=True, **WORKERS[workers])
        return DataFeed(loader, accelerator_with())

    rest, resumed, at_end, at_other_end = resumed_and_unbroken(make, number)
    assert_same(resumed, rest)
    assert str(at_other_end) == str(at_end)


def test_resumed_pass_does_not_load_earlier_batches():
    loaded = []

    class Telling(Noisy):
        def __getitem__(self, index):
            loaded.append(index)
            return super().__getitem__(index)

    feed = DataFeed(DataLoader(Telling(SAMPLES), BATCH, shuffle=True))
    advance(feed, 2)
    state_dict = feed.state_dict()
    other = DataFeed(DataLoader(Telling(SAMPLES), BATCH, shuffle=True))
    other.load_state_dict(state_dict)
    del loaded[:]
    next(iter(other))
    assert len(loaded) == BATCH


def test_generators_missing_on_one_side_are_named():
    feed, other = (
        DataFeed(three_generators_loader()),
        DataFeed(noisy_loader(generator=torch.Generator())),
    )
    advance(feed, 1)
    sampler = "batch_sampler.sampler.generator (torch.Generator, cpu)"
    (found,) = other.differences(feed.state_dict())
    assert found == f"the random generator {sampler} was saved, but does not exist now"
    other.load_state_dict(feed.state_dict())
    assert other.position == (0, 1)
    advance(other, 1)
    (found,) = feed.differences(other.state_dict())
    assert found == f"the random generator {sampler} exists now, but was not saved"


def test_state_does_not_move_an_iterator():
    feed = DataFeed(iter(range(5)))
    advance(feed, 2)
    other = DataFeed(iter(range(5)))
    other.load_state_dict(feed.state_dict())
    assert other.position == (0, 0)
    assert list(other) == [0, 1, 2, 3, 4]


def test_position_after_last_batch_is_the_start_of_next_pass():
    feed = DataFeed([1, 2, 3])
    batches = advance(feed, 3)
    assert feed.position == (0, 3)
    assert feed.state_dict()["position"] == [1, 0]
    del batches
