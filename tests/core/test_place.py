from ignite_hooks.core.place import FeedPosition
from ignite_hooks.core.place import Progress


def test_a_position_compares_and_unpacks_as_a_pair():
    assert FeedPosition(data_pass=1, batches=2) == (1, 2)
    assert FeedPosition(*[1, 2]).batches == 2


def test_a_complete_epoch_leaves_an_empty_one():
    assert Progress(iteration=4, batches=4, is_full=True).with_epoch() == Progress(4, epochs=1)


def test_an_epoch_begun_anew_has_no_batch():
    assert Progress(4, 1, 3, is_full=True).at_epoch_start() == Progress(4, epochs=1)
