from ignite_hooks.data.feed_position import FeedPosition


def test_a_position_is_a_pair_that_compares_and_unpacks():
    assert FeedPosition(data_pass=1, batches=2) == (1, 2)
    assert FeedPosition(*[1, 2]).batches == 2
