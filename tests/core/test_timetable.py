import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from ignite_hooks.core.timetable import Timetable

STEPS = 30
EVERY = st.integers(1, 12)


class Driver:
    """Keeps a timetable as its owner does, and next to it a list that anyone can check by eye."""

    def __init__(self, start=0):
        self.timetable = Timetable()
        self.entries = {}
        self.acted = []
        self.step = start
        self.newest = 0
        self.in_act = {}
        self.timetable.start_from(start)

    def add(self, every):
        name = self.newest
        self.newest += 1
        callback = lambda: self._act(name)  # noqa: E731
        self.timetable.add(every, callback)
        self.entries[name] = (every, lambda: self.timetable.drop(callback))

    def remove(self, index):
        if self.entries:
            name = list(self.entries)[index % len(self.entries)]
            self.entries.pop(name)[1]()

    def do(self, change):
        kind, number = change
        (self.add if kind == "add" else self.remove)(number)

    def _act(self, name):
        self.acted.append(name)
        for change in self.in_act.pop((self.step, len(self.acted) - 1), ()):
            self.do(change)

    def next_step(self):
        """Takes a step; returns who acted and who was to act."""
        self.step += 1
        self.acted = []
        due = [name for name, (every, _) in self.entries.items() if self.step % every == 0]
        assert not due or self.timetable.next_due <= self.step
        if self.step >= self.timetable.next_due:
            self.timetable.call_due(self.step)
        assert self.timetable.next_due > self.step
        return self.acted, due


CHANGE = st.one_of(
    st.tuples(st.just("add"), EVERY), st.tuples(st.just("remove"), st.integers(0, 5))
)
CHANGES = st.lists(CHANGE, max_size=3)


@settings(deadline=None)
@given(
    st.lists(EVERY, max_size=5),
    st.dictionaries(st.integers(1, STEPS), CHANGES),
    st.dictionaries(st.tuples(st.integers(1, STEPS), st.integers(0, 3)), CHANGES),
    st.integers(0, 10),
)
def test_due_entries_match_divisibility_in_attachment_order(
    at_first, between_steps, in_acts, start
):
    driver = Driver(start)
    driver.in_act = dict(in_acts)
    for every in at_first:
        driver.add(every)
    for step in range(1, STEPS + 1):
        for change in between_steps.get(step, ()):
            driver.do(change)
        acted, due = driver.next_step()
        assert acted == due


@settings(deadline=None)
@given(st.lists(EVERY, min_size=1, max_size=6), st.integers(0, 40))
def test_next_due_is_the_first_step_at_which_something_acts(schedules, start):
    timetable = Timetable()
    for every in schedules:
        timetable.add(every, lambda: None)
    timetable.start_from(start)
    steps = range(start + 1, start + 13)
    assert timetable.next_due == next(s for s in steps if any(s % n == 0 for n in schedules))


def test_an_empty_timetable_is_never_due():
    timetable = Timetable()
    assert timetable.next_due == Timetable.NEVER
    callback = lambda: None  # noqa: E731
    timetable.add(3, callback)
    assert timetable.next_due == 3
    timetable.drop(callback)
    timetable.drop(callback)
    assert timetable.next_due == Timetable.NEVER


def test_callbacks_that_do_the_same_are_dropped_separately():
    timetable, acted = Timetable(), []
    first, second = ((lambda: acted.append(timetable.next_due)) for _ in range(2))
    timetable.add(2, first)
    timetable.add(2, second)
    timetable.call_due(2)
    assert len(acted) == 2
    timetable.drop(first)
    timetable.call_due(4)
    assert len(acted) == 3
    timetable.drop(second)
    assert timetable.next_due == Timetable.NEVER


def test_going_back_makes_due_again_what_lies_ahead():
    timetable, acted = Timetable(), []
    timetable.add(4, lambda: acted.append(True))
    timetable.call_due(8)
    timetable.start_from(3)
    assert timetable.next_due == 4
    timetable.start_from(4)
    assert timetable.next_due == 8


def failing_once(called, name):
    def fail():
        called.append(name)
        if called.count(name) == 1:
            raise ZeroDivisionError

    return fail


def test_those_after_a_failing_callback_are_called_the_next_time():
    timetable, called = Timetable(), []
    timetable.add(2, lambda: called.append("before"))
    timetable.add(2, failing_once(called, "failing"))
    timetable.add(2, lambda: called.append("after"))
    timetable.add(3, lambda: called.append("later"))
    with pytest.raises(ZeroDivisionError):
        timetable.call_due(2)
    assert called == ["before", "failing"]
    assert timetable.next_due == 2
    timetable.call_due(2)
    assert called == ["before", "failing", "after"]
    assert timetable.next_due == 3


def test_what_a_failure_has_left_comes_before_what_is_due_next():
    timetable, called = Timetable(), []
    timetable.add(1, failing_once(called, "failing"))
    timetable.add(2, lambda: called.append("left"))
    with pytest.raises(ZeroDivisionError):
        timetable.call_due(2)
    timetable.call_due(3)
    assert called == ["failing", "left", "failing"]


def test_starting_from_a_step_forgets_what_a_failure_has_left():
    timetable, called = Timetable(), []
    timetable.add(1, failing_once(called, "failing"))
    timetable.add(1, lambda: called.append("left"))
    with pytest.raises(ZeroDivisionError):
        timetable.call_due(4)
    timetable.start_from(4)
    assert timetable.next_due == 5
    timetable.call_due(4)
    assert called == ["failing"]


def test_the_callbacks_are_listed_in_order():
    timetable = Timetable()
    calls = [lambda: None, lambda: None]
    for callback in calls:
        timetable.add(2, callback)
    assert timetable.callbacks == calls
