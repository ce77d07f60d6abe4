import pytest

from ignite_hooks.trainer.postponed import Postponed


def test_what_has_a_smaller_turn_comes_first_and_equals_in_order():
    postponed, done = Postponed(), []
    acts = [lambda name=name: done.append(name) for name in "abcd"]
    for act, turn in zip(acts, (1, 0, 1, 0), strict=True):
        postponed.add(act, turn)
    postponed.do()
    assert done == ["b", "d", "a", "c"]


def test_an_act_waits_once_and_is_done_once():
    postponed, done = Postponed(), []

    def act():
        done.append(1)

    postponed.add(act, 0)
    postponed.add(act, 0)
    assert postponed.waiting
    postponed.do()
    postponed.do()
    assert done == [1]
    assert not postponed.waiting


def test_what_is_cleared_is_never_done():
    postponed = Postponed()
    postponed.add(lambda: pytest.fail("done"), 0)
    postponed.clear()
    postponed.do()


def test_an_act_that_postpones_waits_for_the_next_time():
    postponed, done = Postponed(), []

    def act():
        done.append(1)
        postponed.add(act, 0)

    postponed.add(act, 0)
    postponed.do()
    assert done == [1]
    postponed.do()
    assert done == [1, 1]


def test_a_failing_act_leaves_nothing_waiting():
    postponed = Postponed()

    def fail():
        raise KeyError

    postponed.add(fail, 0)
    postponed.add(lambda: pytest.fail("done"), 1)
    with pytest.raises(KeyError):
        postponed.do()
    assert not postponed.waiting
