from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from ignite_hooks.optim.window import Window


def go_over(batches, full_size, left_of):
    """The sizes of the windows closed, and what each batch was told."""
    window, sizes, told = Window(), [], []
    for number in range(batches):
        window.take(full_size, left_of(batches - number))
        told.append((window.size, window.count, window.is_closing))
        if window.is_closing:
            sizes.append(window.count)
            window.close()
    return window, sizes, told


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 12))
def test_n_batches_make_ceil_of_n_over_the_size_windows_that_sum_to_n(batches, full_size):
    window, sizes, told = go_over(batches, full_size, lambda left: left)
    assert len(sizes) == -(-batches // full_size)
    assert sum(sizes) == batches
    assert all(size == full_size for size in sizes[:-1])
    assert window.count == 0
    # The size was right from the first batch on.
    assert [size for size, count, is_closing in told if count == 1] == sizes
    assert all(is_closing == (count == size) for size, count, is_closing in told)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 12))
def test_where_only_the_last_batch_is_known_the_windows_are_the_same(batches, full_size):
    _, known, _ = go_over(batches, full_size, lambda left: left)
    _, sizes, told = go_over(batches, full_size, lambda left: 1 if left == 1 else None)
    assert sizes == known
    assert all(size == full_size for size, count, _ in told if count < full_size and count > 1)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 12))
def test_where_nothing_is_known_the_short_window_stays_open(batches, full_size):
    window, sizes, _ = go_over(batches, full_size, lambda left: None)
    assert sizes == [full_size] * (batches // full_size)
    assert window.count == batches % full_size


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=20))
def test_a_window_never_outgrows_its_size_whatever_it_is_told(told):
    window = Window()
    for full_size, left in told:
        window.take(full_size, left)
        assert 1 <= window.count <= window.size
        assert window.is_closing == (window.count == window.size or left == 1)
        if window.is_closing:
            window.close()
            assert (window.count, window.is_closing) == (0, False)
