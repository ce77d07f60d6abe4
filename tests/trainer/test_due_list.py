import pytest

from ignite_hooks.core.training_engine import Turn
from ignite_hooks.trainer.due_list import DueList


class Failure(Exception):
    """A failure of any kind."""


def test_callbacks_are_called_once_in_order_of_turns():
    due, called = DueList(), []
    save, validate = (lambda: called.append("save")), (lambda: called.append("validate"))
    due.add(save, Turn.CHECKPOINT)
    due.add(validate, Turn.VALIDATION)
    due.add(save, Turn.CHECKPOINT)
    due.call()
    due.call()
    assert called == ["validate", "save"]


def test_dropped_callbacks_are_not_called():
    due, called = DueList(), []
    first, second = (lambda: called.append(1)), (lambda: called.append(2))
    due.add(first, Turn.OTHERS)
    due.add(second, Turn.OTHERS)
    due.drop(first)
    due.call()
    assert called == [2]
    due.add(first, Turn.OTHERS)
    due.clear()
    due.call()
    assert called == [2]


def test_callbacks_added_meanwhile_are_called_but_none_twice():
    due, called = DueList(), []

    def ask_again():
        called.append("again")
        due.add(ask_again, Turn.OTHERS)
        due.add(other, Turn.CHECKPOINT)

    def other():
        called.append("other")

    due.add(ask_again, Turn.OTHERS)
    due.call()
    assert called == ["again", "other"]
    due.call()
    assert called == ["again", "other", "again", "other"]


@pytest.mark.parametrize("asks_again", [False, True])
def test_failing_callback_and_those_after_it_stay_due(asks_again):
    due, called = DueList(), []

    def fail_once():
        called.append("failing")
        if asks_again:
            due.add(fail_once, Turn.OTHERS)
        if len(called) == 1:
            raise Failure

    due.add(fail_once, Turn.OTHERS)
    due.add(lambda: called.append("after"), Turn.CHECKPOINT)
    with pytest.raises(Failure):
        due.call()
    due.call()
    assert called == ["failing", "failing", "after"]
    assert len(due.entries) == asks_again


def test_callbacks_that_a_stop_broke_off_wait_for_next_run():
    due, called = DueList(), []

    def break_off():
        called.append("broken off")
        raise Failure

    save, other = (lambda: called.append("save")), (lambda: called.append("other"))
    due.add(break_off, Turn.VALIDATION)
    due.add(save, Turn.CHECKPOINT)
    with pytest.raises(Failure):
        due.call()
    due.break_off()
    assert due.is_broken_off
    due.add(save, Turn.CHECKPOINT)
    due.call()
    assert called == ["broken off", "save"]
    due.drop(break_off)
    due.add(other, Turn.OTHERS)
    due.add(save, Turn.CHECKPOINT)
    due.resume()
    assert not due.is_broken_off
    due.call()
    assert called == ["broken off", "save", "other", "save"]
