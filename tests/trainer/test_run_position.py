import copy

import pytest
import torch
from accelerate import Accelerator

from ignite_hooks import DataFeed
from ignite_hooks import OptimizerStep
from ignite_hooks.core.place import Place
from ignite_hooks.core.place import Progress
from ignite_hooks.trainer.limits import Limits
from ignite_hooks.trainer.limits import ShownLimits
from ignite_hooks.trainer.run_position import RunPosition
from tests.reference import Repeatable

# A position without an engine


def make_position(batches=5, accumulation=1):
    model = torch.nn.Linear(2, 2)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    step = OptimizerStep(accelerator, torch.optim.SGD(model.parameters(), lr=0.1))
    position = RunPosition(step)
    position.feed = DataFeed([torch.ones(1, 2)] * batches, accelerator)
    return position, step


def advance(position, step, data, full_size=1):
    """Takes one batch as the loop and OptimizerStep do; closes the window when it is full."""
    next(data)
    position.count_batch()
    step.window.take(full_size, position.batches_left)
    if step.window.is_closing:
        step.window.close()
        step.steps += 1


def begun(batches=5, accumulation=1, limits=Limits(max_epochs=2), epoch_length=None):  # noqa: B008
    position, step = make_position(batches, accumulation)
    position.start_new_run(position.feed, limits, epoch_length)
    position.enter_run()
    return position, step, iter(position.feed)


def test_counts_batches_and_knows_the_last_of_an_epoch():
    position, step, data = begun(batches=3)
    for number in (1, 2, 3):
        advance(position, step, data)
        assert position.place.progress == (number, 0, number, number == 3)
        assert position.place.position == (0, number)
    position.complete_epoch()
    assert position.length_of_pass == 3
    assert position.place.progress == Progress(3, epochs=1)


@pytest.mark.parametrize(("epoch_length", "ends"), [(None, [3]), (2, [2]), (4, [4])])
def test_an_epoch_is_full_at_its_length_or_with_the_pass(epoch_length, ends):
    position, step, data = begun(batches=3, epoch_length=epoch_length)
    full = []
    for _ in range(ends[-1]):
        data = iter(position.feed) if position.feed.is_last else data
        advance(position, step, data)
        if position.place.progress.is_full:
            full.append(position.place.progress.batches)
    assert full == ends


@pytest.mark.parametrize(("batches", "boundary"), [(2, 2), (3, 2), (4, 4)])
def test_rolls_back_to_the_last_step_boundary(batches, boundary):
    position, step, data = begun(accumulation=2)
    for _ in range(batches):
        advance(position, step, data, full_size=2)
    assert position.is_at_boundary == (batches == boundary)
    position.roll_back(has_failed=False)
    assert position.place.progress.iteration == boundary
    assert position.place.position == (0, boundary)


def test_dropped_window_has_no_boundary_until_rolled_back():
    position, step, data = begun(accumulation=2)
    advance(position, step, data, full_size=2)
    step.window.close()  # dropped, not stepped: the batch still counts in `taken`
    assert position.is_at_boundary
    next(data)
    assert position.is_at_boundary
    assert not position.is_between_steps  # a batch is on its way
    position.roll_back(has_failed=False)
    assert position.state_dict()["has_drawn_since"]


@pytest.mark.parametrize(
    ("limits", "epoch_length", "left"),
    [
        (Limits(max_epochs=1), None, 5),
        (Limits(max_iters=3), None, 3),
        (Limits(max_epochs=1), 2, 2),
        (Limits(max_iters=1), 2, 1),
        (Limits(max_iters=9), 7, 5),
    ],
)
def test_the_batches_left_are_the_fewest_of_data_epoch_and_run(limits, epoch_length, left):
    position, _step, data = begun(limits=limits, epoch_length=epoch_length)
    next(data)
    position.count_batch()
    assert position.batches_left == left


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(max_steps=7), 3),
        (Limits(max_steps=6), 2),
        (Limits(max_steps=7, max_epochs=2), None),
        (Limits(max_epochs=2), None),
    ],
)
def test_max_steps_alone_needs_this_many_epochs(limits, expected):
    position, *_ = begun(accumulation=2, limits=limits)
    assert position.epochs_needed == expected


def test_other_data_continues_from_the_same_counters():
    position, step, data = begun()
    advance(position, step, data)
    other = DataFeed([torch.zeros(1, 2)] * 3)
    position.change_feed(other)
    assert position.place == ((1, 0, 1, False), (0, 0), 1)
    position.roll_back(has_failed=False)
    assert position.place.position == (0, 0)


NONE = Limits()
DONE_2_OF_4 = Progress(iteration=10, epochs=2)


@pytest.mark.parametrize(
    ("given", "is_resumed", "expected"),
    [
        (NONE, False, Limits(max_epochs=4)),
        (Limits(max_epochs=3), False, Limits(max_epochs=3)),
        (Limits(max_steps=12), False, Limits(max_epochs=4, max_steps=12)),
        (Limits(max_steps=12), True, Limits(max_steps=12)),
        (Limits(max_epochs=2), False, None),
        (Limits(max_steps=10), True, None),
    ],
)
def test_a_run_continues_if_its_limits_are_higher(given, is_resumed, expected):
    position, step = make_position()
    step.start_from(10)
    position.place = Place(DONE_2_OF_4)
    position.set_limits(Limits(max_epochs=4))
    position.shown = ShownLimits(max_epochs=4)
    position.is_resumed = is_resumed
    assert position.limits_to_continue(given, position.shown) == expected


def test_a_run_that_failed_at_its_limit_is_continued():
    position, step = make_position()
    step.start_from(10)
    position.place = Place(DONE_2_OF_4)
    limits = Limits(max_epochs=2)
    position.set_limits(limits)
    position.shown = ShownLimits(max_epochs=2)
    position.roll_back(has_failed=True)
    assert position.limits_to_continue(NONE, position.shown) == limits
    position.roll_back(has_failed=False)
    assert position.limits_to_continue(NONE, position.shown) is None


def test_a_terminated_epoch_is_full_but_not_a_pass_length():
    model = torch.nn.Linear(2, 2)
    accelerator = Accelerator(cpu=True)
    step = OptimizerStep(accelerator, torch.optim.SGD(model.parameters(), lr=0.1))
    position, batches = RunPosition(step), Repeatable([torch.ones(1, 2)] * 3)
    feed = DataFeed(batches, accelerator)
    position.start_new_run(feed, Limits(max_epochs=2), None)
    data = iter(feed)
    advance(position, step, data)
    position.end_epoch_early()
    assert position.has_epoch_to_complete
    position.complete_epoch()
    assert position.length_of_pass is None
    assert not position.has_epoch_to_complete
    feed.next_pass()
    data = iter(feed)
    for _ in range(3):
        advance(position, step, data)
    position.complete_epoch()
    assert position.length_of_pass == 3


@pytest.mark.parametrize("now", [ShownLimits(), ShownLimits(max_epochs=2)])
def test_a_new_run_begins_when_the_limits_are_reached_or_removed(now):
    position, _ = make_position()
    position.place = Place(DONE_2_OF_4)
    position.set_limits(Limits(max_epochs=2))
    position.shown = ShownLimits(max_epochs=2)
    assert position.limits_to_continue(NONE, now) is None


def test_a_derived_max_epochs_ends_no_run():
    position, _ = make_position()
    position.set_limits(Limits(max_steps=12))
    position.shown = ShownLimits(max_epochs=3, max_steps=12)
    assert position.limits_to_continue(NONE, position.shown) == Limits(max_steps=12)


@pytest.mark.parametrize(
    ("given", "is_resumed", "expected"),
    [
        (NONE, True, True),
        (Limits(max_epochs=3), True, False),
        (Limits(max_epochs=2), True, True),
        (NONE, False, False),
    ],
)
def test_only_a_resumed_run_can_have_nothing_left_to_do(given, is_resumed, expected):
    position, _ = make_position()
    position.place = Place(DONE_2_OF_4)
    position.set_limits(Limits(max_epochs=2))
    position.shown = ShownLimits(max_epochs=2)
    position.is_resumed = is_resumed
    assert position.is_finished(given, position.shown) == expected
    assert not position.is_finished(given, ShownLimits())  # a new run was asked for


def test_state_can_be_continued_by_another_position():
    position, step, data = begun(limits=Limits(max_epochs=3, max_steps=9))
    for _ in range(3):
        advance(position, step, data)
    position.mark_boundary(position.place.progress)
    state = copy.deepcopy(position.state_dict())
    expected = torch.rand(2)

    other, _ = make_position()
    other.load_state_dict(state)
    assert other.is_resumed
    assert other.place.progress == position.place.progress
    assert (other.steps, other.limits) == (3, position.limits)
    other.continue_run(other.feed, other.limits, None)
    assert other.feed.position == (0, 3)
    restored = []
    other.call_on_resume(lambda: restored.append(torch.rand(1)))
    other.call_on_resume(lambda: pytest.fail("undone"))()
    other.restore_random_state(is_last_time=False)
    assert torch.equal(torch.rand(2), expected)
    other.restore_random_state(is_last_time=True)
    assert torch.equal(torch.rand(2), expected)
    other.restore_random_state(is_last_time=True)
    assert len(restored) == 2
    assert not torch.equal(torch.rand(2), expected)


def test_a_new_run_forgets_the_state_to_resume():
    position, step, data = begun()
    advance(position, step, data)
    position.mark_boundary(position.place.progress)
    other, _ = make_position()
    other.load_state_dict(position.state_dict())
    other.call_on_resume(lambda: pytest.fail("forgotten"))
    other.start_new_run(other.feed, Limits(max_epochs=1), None)
    other.restore_random_state(is_last_time=True)
    assert (other.place, other.steps, other.feed.position) == (Place(), 0, (0, 0))


def test_an_epoch_that_was_begun_keeps_its_length():
    position, *_ = begun(epoch_length=4)
    with pytest.raises(
        ValueError, match="`epoch_length` must stay 4 when training continues, got 3"
    ):
        position.continue_run(position.feed, Limits(max_epochs=2), 3)


def test_other_data_restarts_the_epoch():
    position, step, data = begun(batches=5)
    advance(position, step, data)
    other = DataFeed([torch.zeros(1, 2)] * 3)
    position.continue_run(other, Limits(max_epochs=2), None)
    assert (position.place.progress, position.length_of_epoch) == (Progress(1), 3)


def test_move_to_continues_at_the_batch_of_its_counters():
    position, _step = make_position()
    position.move_to(Progress(7, 1, 2), 7, Limits(max_epochs=3), 5)
    position.continue_run(position.feed, position.limits, None)
    assert position.feed.position == (1, 2)
    assert (position.steps, position.is_resumed) == (7, False)
