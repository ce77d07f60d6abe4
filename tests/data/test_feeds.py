import pytest
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ignite_hooks.data.feed import DataFeed
from ignite_hooks.data.feeds import Feeds


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def test_a_loader_is_prepared_once_and_goes_on_where_it_was_left(accelerator):
    feeds = Feeds(accelerator)
    loaders = [DataLoader(range(4), batch_size=2) for _ in range(2)]
    first = feeds.of(loaders[0])
    next(iter(first))
    first.close()
    for _ in range(3):
        assert feeds.of(loaders[1]) is not first
        assert feeds.of(loaders[0]) is first
    assert first.position == (0, 1)
    assert len(accelerator._dataloaders) == 2


def test_the_prepared_loader_has_the_feed_of_the_raw_one(accelerator):
    feeds = Feeds(accelerator)
    raw = DataLoader(range(4))
    feed = feeds.of(raw)
    feeds.of([1])
    assert feeds.of(feed.loader) is feed


def test_of_data_that_is_no_loader_the_newest_is_remembered(accelerator):
    feeds = Feeds(accelerator)
    one, other = [[1], [2]], [[1], [2]]
    feed = feeds.of(one)
    assert feeds.of(one) is feed
    assert feeds.of(other) is not feed
    assert feeds.of(one) is not feed


def test_a_feed_may_be_named_for_data(accelerator):
    feeds = Feeds(accelerator)
    raw = DataLoader(range(4))
    feed = DataFeed(raw, accelerator)
    feeds.add(raw, feed)
    feeds.of([1])
    assert feeds.of(raw) is feeds.of(feed.loader) is feed


@pytest.mark.parametrize("even_batches", [True, False])
def test_the_feeds_are_even_if_asked_for(even_batches, accelerator):
    feed = Feeds(accelerator, even_batches).of(DataLoader(range(4)))
    assert feed._source.even_batches is even_batches


def test_what_can_not_be_used_is_not_remembered(accelerator):
    feeds = Feeds(accelerator)
    data = []
    with pytest.raises(ValueError, match="gave no batch"):
        feeds.of(data)
    data.append([1])
    assert len(feeds.of(data)) == 1
