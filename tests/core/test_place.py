from ignite_hooks.core.place import FeedPosition


def test_a_position_compares_and_unpacks_as_a_pair():
    assert FeedPosition(data_pass=1, batches=2) == (1, 2)
    assert FeedPosition(*[1, 2]).batches == 2
