from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from ignite.engine import Engine
from ignite.engine import Events
from torch.utils.data import DataLoader

from ignite_hooks import DataFeed
from ignite_hooks import OptimizerStep
from ignite_hooks.optim.window import RemainingData
from ignite_hooks.optim.window import Window
from tests.reference import batches_of
from tests.reference import make_model
from tests.versions import needs


def take_batches(batches, full_size, left_of):
    """Returns the last window, the sizes of all closed windows, and a log of each batch."""
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
def test_n_batches_make_ceil_n_over_size_windows_summing_to_n(batches, full_size):
    window, sizes, told = take_batches(batches, full_size, lambda left: left)
    assert len(sizes) == -(-batches // full_size)
    assert sum(sizes) == batches
    assert all(size == full_size for size in sizes[:-1])
    assert window.count == 0
    # The size was right from the first batch on.
    assert [size for size, count, is_closing in told if count == 1] == sizes
    assert all(is_closing == (count == size) for size, count, is_closing in told)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 12))
def test_windows_are_the_same_if_only_the_last_batch_is_known(batches, full_size):
    _, known, _ = take_batches(batches, full_size, lambda left: left)
    _, sizes, told = take_batches(batches, full_size, lambda left: 1 if left == 1 else None)
    assert sizes == known
    assert all(size == full_size for size, count, _ in told if count < full_size and count > 1)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 12))
def test_a_short_window_stays_open_if_no_length_is_known(batches, full_size):
    window, sizes, _ = take_batches(batches, full_size, lambda left: None)
    assert sizes == [full_size] * (batches // full_size)
    assert window.count == batches % full_size


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=20))
def test_a_window_never_outgrows_its_size(told):
    window = Window()
    for full_size, left in told:
        window.take(full_size, left)
        assert 1 <= window.count <= window.size
        assert window.is_closing == (window.count == window.size or left == 1)
        if window.is_closing:
            window.close()
            assert (window.count, window.is_closing) == (0, False)


# What a plain engine has left


class WithoutLength:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def record_batches_left(engine):
    """Returns the ``batches_left`` of RemainingData at each batch."""
    data, told = RemainingData(), []
    engine.add_event_handler(Events.STARTED, data.note_run_start)
    engine.add_event_handler(Events.EPOCH_STARTED, data.note_epoch_start)
    engine.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: told.append(data.batches_left(engine))
    )
    return told


@needs("pytorch-ignite>=0.5.5")
@pytest.mark.parametrize(
    ("data", "limits", "expected"),
    [
        (range(3), {"max_epochs": 2}, [3, 2, 1, 3, 2, 1]),
        (range(3), {"max_iters": 4}, [3, 2, 1, 1]),
        (range(4), {"epoch_length": 2, "max_epochs": 2}, [2, 1, 2, 1]),
        (WithoutLength([1, 2, 3]), {"max_epochs": 2}, [None, None, None, 3, 2, 1]),
        (WithoutLength([1, 2, 3]), {"max_iters": 2}, [2, 1]),
    ],
)
def test_batches_left_of_an_engine(data, limits, expected):
    engine = Engine(lambda engine, batch: None)
    told = record_batches_left(engine)
    engine.run(data, **limits)
    assert told == expected


def test_batches_left_end_with_a_pass_within_a_longer_epoch():
    engine = Engine(lambda engine, batch: None)
    told = record_batches_left(engine)
    engine.run(DataFeed([1, 2, 3]), epoch_length=5)
    assert told == [3, 2, 1, 2, 1]


def test_the_last_batch_of_a_prepared_loader_is_known():
    loader = Accelerator(cpu=True).prepare(DataLoader(range(6), batch_size=2))
    engine = Engine(lambda engine, batch: None)
    told = record_batches_left(engine)
    engine.run(WithoutLength(loader))
    assert told == [None, None, None]
    told.clear()
    engine.state.max_epochs = None
    engine.run(loader, epoch_length=5)
    assert told == [5, 4, 1, 2, 1]
    loader.end()


def test_batches_left_are_right_after_terminate_epoch():
    engine = Engine(lambda engine, batch: None)
    told = record_batches_left(engine)
    engine.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda engine: engine.terminate_epoch()
    )
    engine.run(range(3), max_epochs=3)
    assert told == [3, 2, 3, 2, 1, 3, 2, 1]


@pytest.mark.parametrize(("iteration", "expected"), [(4, [2, 1, 3, 2, 1]), (3, [3, 2, 1] * 2)])
def test_a_resumed_engine_begins_where_its_state_says(iteration, expected):
    engine = Engine(lambda engine, batch: None)
    told = record_batches_left(engine)
    engine.load_state_dict({"iteration": iteration, "epoch_length": 3, "max_epochs": 3})
    engine.run(range(3))
    assert told == expected


def test_batches_left_are_unknown_without_any_limit():
    state = SimpleNamespace(
        dataloader=WithoutLength([]), epoch_length=None, max_iters=None, iteration=1
    )
    assert RemainingData().batches_left(SimpleNamespace(state=state)) is None


@pytest.fixture
def stepping():
    """Returns a plain engine whose windows have two batches."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = accelerator.prepare(make_model(dropout=0))

    def train(engine, batch):
        accelerator.backward(F.mse_loss(model(batch[0]), batch[1]))

    engine = Engine(train)
    OptimizerStep(accelerator, torch.optim.SGD(model.parameters(), lr=0.1)).attach(engine)
    return engine


def test_step_committed_marks_the_iterations_with_a_step(stepping):
    before, after = [], []
    for event, seen in ((Events.ITERATION_STARTED, before), (Events.ITERATION_COMPLETED, after)):
        stepping.add_event_handler(
            event, lambda engine, seen=seen: seen.append(engine.state.step_committed)
        )
    stepping.run(batches_of(5))
    assert before == [False] * 5
    assert after == [False, True, False, True, True]


def test_data_that_ends_without_notice_closes_the_window(stepping):
    steps = []
    for event in (Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED):

        @stepping.on(event)
        def note(engine):
            steps.append((engine.state.iteration, engine.state.optimizer_step))

    stepping.run(WithoutLength(batches_of(3)))
    assert steps == [(1, 0), (2, 1), (3, 1), (3, 2)]


def test_several_processes_refuse_data_that_ends_without_notice(stepping, monkeypatch):
    monkeypatch.setattr(Accelerator, "use_distributed", True)
    with pytest.raises(
        RuntimeError, match=r"mark its last batch .*; WithoutLength does not mark it"
    ):
        stepping.run(WithoutLength(batches_of(3)))
    assert stepping.state.optimizer_step == 1
