import pytest

from ignite_hooks.core.place import FeedPosition
from ignite_hooks.core.place import Progress


def test_a_position_compares_and_unpacks_as_a_pair():
    assert FeedPosition(data_pass=1, batches=2) == (1, 2)
    assert FeedPosition(*[1, 2]).batches == 2


def test_with_epoch_counts_one_and_starts_another():
    assert Progress(iteration=4, batches=4, is_full=True).with_epoch() == Progress(4, epochs=1)


def test_at_epoch_start_has_no_batch_of_the_epoch():
    assert Progress(4, 1, 3, is_full=True).at_epoch_start() == Progress(4, epochs=1)


@pytest.mark.parametrize("length", [None, 5, 7])
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("done", [0, 4])
@pytest.mark.parametrize("batches", [0, 1, 3, 13])
def test_the_steps_of_batches_are_those_of_their_windows(length, window, done, batches):
    steps = open_window = 0
    for batch in range(done + 1, done + batches + 1):
        open_window += 1
        is_last = batch == done + batches or (length is not None and batch % length == 0)
        if open_window == window or is_last:
            steps, open_window = steps + 1, 0
    assert Progress(batches=done).steps_in(batches, window, length) == steps
