import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from ignite_hooks.core.timetable import Timetable

STEPS = 30
EVERY = st.integers(1, 12)


class Driver:
    """Steps a timetable as its owner does, beside a plain dictionary of the same callbacks."""

    def __init__(self, start=0):
        self.timetable = Timetable()
        self.entries = {}
        self.called = []
        self.step = start
        self.newest = 0
        self.in_callback = {}
        self.timetable.start_from(start)

    def add(self, every):
        name = self.newest
        self.newest += 1
        callback = lambda: self._call(name)  # noqa: E731
        self.timetable.add(every, callback)
        self.entries[name] = (every, lambda: self.timetable.drop(callback))

    def remove(self, index):
        if self.entries:
            name = list(self.entries)[index % len(self.entries)]
            self.entries.pop(name)[1]()

    def apply(self, change):
        kind, number = change
        (self.add if kind == "add" else self.remove)(number)

    def _call(self, name):
        self.called.append(name)
        for change in self.in_callback.pop((self.step, len(self.called) - 1), ()):
            self.apply(change)

    def next_step(self):
        """Takes a step. Returns the callbacks that were called, and those that were due."""
        self.step += 1
        self.called = []
        due = [name for name, (every, _) in self.entries.items() if self.step % every == 0]
        assert not due or self.timetable.next_due <= self.step
        if self.step >= self.timetable.next_due:
            self.timetable.call_due(self.step)
        assert self.timetable.next_due > self.step
        return self.called, due


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
    at_first, between_steps, in_callbacks, start
):
    driver = Driver(start)
    driver.in_callback = dict(in_callbacks)
    for every in at_first:
        driver.add(every)
    for step in range(1, STEPS + 1):
        for change in between_steps.get(step, ()):
            driver.apply(change)
        called, due = driver.next_step()
        assert called == due


@settings(deadline=None)
@given(st.lists(EVERY, min_size=1, max_size=6), st.integers(0, 40))
def test_next_due_is_the_first_step_with_a_due_callback(schedules, start):
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
    timetable, called = Timetable(), []
    first, second = ((lambda: called.append(timetable.next_due)) for _ in range(2))
    timetable.add(2, first)
    timetable.add(2, second)
    timetable.call_due(2)
    assert len(called) == 2
    timetable.drop(first)
    timetable.call_due(4)
    assert len(called) == 3
    timetable.drop(second)
    assert timetable.next_due == Timetable.NEVER


def test_last_callbacks_come_after_those_that_are_added_later():
    timetable, called = Timetable(), []
    for name, is_last in (("report", True), ("write", False), ("second report", True)):
        timetable.add(2, lambda name=name: called.append(name), is_last=is_last)
    timetable.call_due(2)
    assert called == ["write", "report", "second report"]


def test_starting_from_an_earlier_step_makes_callbacks_due():
    timetable, called = Timetable(), []
    timetable.add(4, lambda: called.append(True))
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


def test_callbacks_after_a_failed_one_are_called_next_time():
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


def test_callbacks_left_by_a_failure_come_before_due_ones():
    timetable, called = Timetable(), []
    timetable.add(1, failing_once(called, "failing"))
    timetable.add(2, lambda: called.append("left"))
    with pytest.raises(ZeroDivisionError):
        timetable.call_due(2)
    timetable.call_due(3)
    assert called == ["failing", "left", "failing"]


def test_start_from_forgets_callbacks_left_by_a_failure():
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
