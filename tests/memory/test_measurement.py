import os
import threading
from threading import Event
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from ignite_hooks.memory.mark import ByteMark
from ignite_hooks.memory.measurement import Measurement
from ignite_hooks.memory.measurement import SharedMark
from tests.memory.spikes import descriptors
from tests.memory.spikes import forked

HANGS = 20  # seconds after which a thread is taken to hang


class Tank(ByteMark):
    """A mark for tests: the present level, and the highest since the last reset."""

    def __init__(self):
        self.content = self.highest = 0
        self.opened = self.closed = 0
        self.refusals = []
        self.thread = None
        self.descriptor = None

    def take(self, content):
        self.content = content
        self.highest = max(self.highest, content)

    def spike(self, content):
        before = self.content
        self.take(content)
        self.take(before)

    def open(self):
        self.opened += 1
        self.descriptor = os.open(os.devnull, os.O_RDONLY)
        self._refuse("open")

    def close(self):
        self.closed += 1
        if self.descriptor is not None:
            os.close(self.descriptor)
        self.descriptor = None

    def reset(self):
        assert self.descriptor is not None
        self._refuse("reset")
        self.highest = self.content

    def read(self):
        assert self.descriptor is not None
        self._refuse("read")
        self.thread = threading.current_thread()
        return self.highest

    def _refuse(self, what):
        if self.refusals and self.refusals[0] == what:
            self.refusals.pop(0)
            raise OSError(24, what)


@pytest.fixture
def tank():
    return Tank()


@pytest.fixture
def shared_mark(tank):
    return SharedMark(tank)


@pytest.fixture
def sampled(tank):
    return SharedMark(tank, is_sampled=True)


@pytest.fixture(autouse=True)
def _as_found():
    threads, open_now = threading.enumerate(), descriptors()
    yield
    assert threading.enumerate() == threads
    assert descriptors() == open_now


def started(shared_mark, every=3600):
    measurement = Measurement(shared_mark, every)
    measurement.start()
    return measurement


def samplers():
    return [t for t in threading.enumerate() if t.name == "ignite_hooks.memory"]


def test_a_peak_covers_the_time_from_start_to_stop(tank, shared_mark):
    tank.spike(9)
    measurement = started(shared_mark)
    tank.spike(5)
    measurement.stop()
    tank.spike(7)
    assert measurement.result() == 5


def test_before_the_first_start_nothing_is_measured_or_opened(tank, shared_mark):
    tank.spike(9)
    measurement = Measurement(shared_mark, 1.0)
    assert measurement.result() == 0
    measurement.stop()
    measurement.reset()
    assert measurement.result() == 0
    assert not measurement.is_running
    assert (tank.opened, tank.closed) == (0, 0)


def test_a_second_start_does_nothing_and_one_stop_ends_it(tank, shared_mark):
    measurement = started(shared_mark)
    tank.spike(5)
    measurement.start()
    assert measurement.result() == 5
    assert shared_mark.running == [measurement]
    measurement.stop()
    assert not measurement.is_running
    assert tank.closed == 1


def test_a_start_after_a_stop_measures_from_scratch(tank, shared_mark):
    measurement = started(shared_mark)
    tank.spike(5)
    measurement.stop()
    tank.spike(7)
    measurement.start()
    tank.spike(3)
    assert measurement.result() == 3
    measurement.stop()
    assert measurement.result() == 3


def test_continuing_keeps_the_peak_and_ignores_the_pause(tank, shared_mark):
    measurement = started(shared_mark)
    tank.spike(5)
    measurement.stop()
    tank.spike(9)
    measurement.resume()
    assert measurement.result() == 5
    tank.spike(7)
    measurement.resume()
    assert measurement.result() == 7
    measurement.stop()


def test_reset_restarts_if_running_and_clears_if_stopped(tank, shared_mark):
    measurement = started(shared_mark)
    tank.spike(5)
    measurement.reset()
    assert measurement.is_running
    tank.spike(3)
    assert measurement.result() == 3
    measurement.stop()
    assert measurement.result() == 3
    measurement.reset()
    assert measurement.result() == 0


def test_reset_of_a_stopped_measurement_leaves_the_mark_alone(tank, shared_mark):
    other, measurement = Measurement(shared_mark, 1.0), started(shared_mark)
    tank.spike(5)
    other.reset()
    assert tank.highest == 5
    assert measurement.result() == 5
    measurement.stop()


def test_reading_a_result_changes_nothing(tank, shared_mark):
    measurement = started(shared_mark)
    tank.spike(5)
    assert [measurement.result() for _ in range(3)] == [5, 5, 5]
    assert tank.highest == 5
    measurement.stop()
    tank.spike(9)
    assert [measurement.result() for _ in range(3)] == [5, 5, 5]


@pytest.mark.parametrize("begin", ["start", "reset"])
def test_a_peak_before_another_start_counts_for_running_ones(tank, shared_mark, begin):
    outer, inner = started(shared_mark), Measurement(shared_mark, 1.0)
    if begin == "reset":
        inner.start()
    tank.spike(9)
    getattr(inner, begin)()
    tank.spike(5)
    assert inner.result() == 5
    assert outer.result() == 9
    inner.stop()
    outer.stop()


@pytest.mark.parametrize("first_ends_first", [False, True])
def test_overlapping_measurements_each_have_the_peak_of_their_time(
    tank, shared_mark, first_ends_first
):
    first = started(shared_mark)
    tank.spike(7)
    second = started(shared_mark)
    tank.spike(5)
    one, other = (first, second) if first_ends_first else (second, first)
    one.stop()
    tank.spike(6)
    other.stop()
    assert first.result() == 7
    assert second.result() == (6 if first_ends_first else 5)


def test_a_peak_between_two_inner_ones_is_in_the_outer_one(tank, shared_mark):
    outer = started(shared_mark)
    inner = started(shared_mark)
    tank.spike(2)
    inner.stop()
    tank.spike(9)
    inner.start()
    tank.spike(3)
    inner.stop()
    outer.stop()
    assert (outer.result(), inner.result()) == (9, 3)


def test_the_mark_is_opened_once_and_closed_after_the_last(tank, shared_mark):
    one, other = started(shared_mark), started(shared_mark)
    assert (tank.opened, tank.closed) == (1, 0)
    one.stop()
    assert (tank.opened, tank.closed) == (1, 0)
    other.stop()
    assert (tank.opened, tank.closed) == (1, 1)
    one.start()
    assert (tank.opened, tank.closed) == (2, 1)
    one.stop()
    assert (tank.opened, tank.closed) == (2, 2)


def test_stop_of_a_stopped_measurement_closes_nothing(tank, shared_mark):
    other, measurement = Measurement(shared_mark, 1.0), started(shared_mark)
    other.stop()
    assert measurement.is_running
    assert tank.closed == 0
    measurement.stop()


def test_held_mark_stays_open_between_measurements(tank, shared_mark):
    measurement = Measurement(shared_mark, 1.0)
    with measurement.held_open():
        for _ in range(3):
            measurement.start()
            measurement.stop()
        assert (tank.opened, tank.closed) == (1, 0)
    assert (tank.opened, tank.closed) == (1, 1)


def test_mark_held_twice_is_closed_by_the_last(tank, shared_mark):
    one, other = Measurement(shared_mark, 1.0), Measurement(shared_mark, 1.0)
    with one.held_open():
        with other.held_open():
            assert tank.opened == 1
        assert tank.closed == 0
    assert tank.closed == 1


def test_held_mark_is_released_after_a_failure(tank, shared_mark):
    with pytest.raises(KeyError), Measurement(shared_mark, 1.0).held_open():
        raise KeyError
    assert tank.closed == 1


def test_a_measurement_outlives_the_scope_that_held_the_mark(tank, shared_mark):
    measurement = Measurement(shared_mark, 1.0)
    with measurement.held_open():
        measurement.start()
    assert tank.closed == 0
    tank.spike(5)
    measurement.stop()
    assert measurement.result() == 5
    assert tank.closed == 1


class Levels(ByteMark):
    zero = -100

    def __init__(self):
        self.level = -7

    def reset(self):
        pass

    def read(self):
        return self.level


def test_shared_mark_uses_zero_and_higher_of_its_mark():
    shared_mark = SharedMark(Levels())
    measurement = Measurement(shared_mark, 1.0)
    assert measurement.result() == -100
    measurement.start()
    assert measurement.result() == -7
    measurement.reset()
    measurement.stop()
    assert measurement.result() == -7
    measurement.reset()
    assert measurement.result() == -100


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["start", "stop", "reset", "result"]), st.integers(0, 2)),
        st.tuples(st.just("take"), st.integers(0, 9)),
        st.tuples(st.just("spike"), st.integers(0, 9)),
        st.tuples(st.just("hold"), st.integers(0, 2)),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(STEPS)
def test_concurrent_measurements_each_have_their_own_peak(steps):
    tank = Tank()
    shared_mark = SharedMark(tank)
    measurements = [Measurement(shared_mark, 1.0) for _ in range(3)]
    peaks, running, holds = [0, 0, 0], set(), {}
    for act, number in steps:
        if act in ("take", "spike"):
            getattr(tank, act)(number)
            level = max(number, tank.content)
            for i in running:
                peaks[i] = max(peaks[i], level)
        elif act == "hold":
            if number in holds:
                holds.pop(number).__exit__(None, None, None)
            else:
                holds[number] = measurements[number].held_open()
                holds[number].__enter__()
        elif act == "result":
            assert measurements[number].result() == peaks[number]
        else:
            getattr(measurements[number], act)()
            if act == "stop":
                running.discard(number)
            elif act == "reset" or number not in running:
                peaks[number] = tank.content if act == "start" or number in running else 0
            if act == "start":
                running.add(number)
        assert [m.is_running for m in measurements] == [i in running for i in range(3)]
        assert (tank.descriptor is not None) == bool(running or holds)
    assert [m.result() for m in measurements] == peaks
    for measurement in measurements:
        measurement.stop()
    for hold in holds.values():
        hold.__exit__(None, None, None)
    assert tank.descriptor is None


# Failures


@pytest.mark.parametrize("begin", ["start", "resume", "hold"])
def test_failed_opening_leaves_nothing_open(tank, shared_mark, begin):
    tank.refusals = ["open"]
    measurement = Measurement(shared_mark, 1.0)
    with pytest.raises(OSError, match="open"):
        shared_mark.hold_open(1.0) if begin == "hold" else getattr(measurement, begin)()
    assert tank.descriptor is None
    assert not measurement.is_running
    measurement.start()
    tank.spike(5)
    assert measurement.result() == 5
    measurement.stop()
    assert tank.descriptor is None


def test_failed_hold_is_not_released(tank, shared_mark):
    tank.refusals = ["open"]
    with pytest.raises(OSError, match="open"):
        Measurement(shared_mark, 1.0).held_open().__enter__()
    assert (tank.opened, tank.closed) == (1, 1)


def test_failed_reading_at_stop_still_ends_the_measurement(tank, shared_mark):
    measurement = started(shared_mark)
    tank.refusals = ["read"]
    with pytest.raises(OSError, match="read"):
        measurement.stop()
    assert not measurement.is_running
    assert tank.descriptor is None
    measurement.stop()


def test_a_reading_that_fails_leaves_the_lock_free(tank, shared_mark):
    measurement = started(shared_mark)
    tank.refusals = ["read"]
    with pytest.raises(OSError, match="read"):
        measurement.result()
    stopping = Thread(target=measurement.stop, daemon=True)
    stopping.start()
    stopping.join(HANGS)
    assert not stopping.is_alive()


def test_a_first_reset_that_fails_leaves_nothing_open(tank, shared_mark):
    tank.refusals = ["reset"]
    measurement = Measurement(shared_mark, 1.0)
    with pytest.raises(OSError, match="reset"):
        measurement.start()
    assert not measurement.is_running
    open_then = tank.descriptor
    tank.close()
    assert open_then is None


def test_a_thread_that_cannot_be_started_leaves_nothing_running(tank, sampled, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    measurement = Measurement(sampled, 3600)
    with monkeypatch.context() as patched:
        patched.setattr(Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            measurement.start()
    ran, open_then = measurement.is_running, tank.descriptor
    measurement.stop()
    assert not ran
    assert open_then is None


def test_measuring_in_a_finalizer_at_any_line_does_not_hang(tank, shared_mark):
    inner = Measurement(shared_mark, 1.0)
    read = tank.read

    def collecting():
        tank.read = read
        inner.start()
        inner.stop()
        return read()

    def work():
        outer = started(shared_mark)
        tank.read = collecting
        outer.stop()

    working = Thread(target=work, daemon=True)
    working.start()
    working.join(HANGS)
    assert not working.is_alive()


def test_measurement_ending_during_a_result_disturbs_nothing(tank, shared_mark):
    first, last = started(shared_mark), started(shared_mark)
    higher = tank.higher

    def ending(one, other):
        tank.higher = higher
        tank.highest = 2  # a child that had more has ended
        first.stop()
        return higher(one, other)

    tank.spike(5)
    tank.higher = ending
    assert last.result() == 5
    last.stop()
    assert (first.result(), last.result()) == (5, 5)


# Several threads


def test_measurements_of_several_threads_do_not_lose_anything(tank, shared_mark):
    failures = []

    def work(height):
        try:
            for _ in range(200):
                measurement = started(shared_mark)
                tank.spike(height)
                measurement.stop()
                assert height <= measurement.result() <= 4
        except BaseException as failure:
            failures.append(failure)

    threads = [Thread(target=work, args=(height,)) for height in range(1, 5)]
    tank.take, lock = _locked(tank.take)
    reset = tank.reset
    tank.reset = lambda: _with(lock, reset)
    outer = started(shared_mark)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANGS)
    outer.stop()
    assert failures == []
    assert outer.result() == 4
    assert tank.descriptor is None


def _locked(act):
    lock = threading.RLock()
    return (lambda *arguments: _with(lock, act, *arguments)), lock


def _with(lock, act, *arguments):
    with lock:
        return act(*arguments)


# Sampling


def test_a_mark_without_sampling_has_no_thread(shared_mark):
    measurement = started(shared_mark, every=0.001)
    with measurement.held_open():
        assert samplers() == []
    measurement.stop()


def test_the_mark_is_read_in_a_thread_while_anyone_measures(tank, sampled):
    seen, read = Event(), tank.read

    def telling():
        reading = read()
        if threading.current_thread().name == "ignite_hooks.memory" and reading == 5:
            seen.set()
        return reading

    tank.read = telling
    measurement = started(sampled, every=0.001)
    tank.spike(5)
    assert seen.wait(HANGS)
    assert measurement.peak == 5
    measurement.stop()
    assert samplers() == []


def test_the_thread_ends_with_the_last_measurement(sampled):
    one, other = started(sampled), started(sampled)
    assert len(samplers()) == 1
    one.stop()
    assert len(samplers()) == 1
    other.stop()
    assert samplers() == []


def test_shortest_period_wins_and_the_longer_one_returns(sampled):
    def period():
        assert len(samplers()) == 1
        return sampled._sampling.every

    slow = started(sampled, every=3600)
    assert period() == 3600
    fast = started(sampled, every=60)
    assert period() == 60
    with Measurement(sampled, 30).held_open():
        assert period() == 30
    assert period() == 60
    usual = started(sampled, every=1800)
    assert period() == 60
    fast.stop()
    assert period() == 1800
    slow.stop()
    assert period() == 1800
    usual.stop()


def test_a_thread_of_the_right_period_is_kept(sampled):
    one = started(sampled)
    threads = samplers()
    with one.held_open():
        other = started(sampled)
        one.stop()
        other.stop()
        assert samplers() == threads
    assert samplers() == []


def test_holding_starts_the_thread_but_reads_nothing(tank, sampled):
    waited, acquire = Event(), sampled._update_unless_locked

    def telling():
        acquire()
        waited.set()

    sampled._update_unless_locked = telling
    with Measurement(sampled, 0.001).held_open():
        assert len(samplers()) == 1
        assert waited.wait(HANGS)
    assert tank.thread is None
    assert samplers() == []


def test_the_thread_does_not_wait_for_a_busy_shared_mark(tank, sampled):
    tried, release = Event(), Event()
    note = sampled._update_unless_locked

    def telling():
        note()
        tried.set()

    sampled._update_unless_locked = telling
    read = tank.read

    def slow():
        if threading.current_thread().name == "asking":
            assert tried.wait(HANGS)
            assert release.wait(HANGS)
        return read()

    measurement = started(sampled, every=3600)
    tank.read = slow
    asking = Thread(target=measurement.result, name="asking", daemon=True)
    asking.start()
    try:
        sampling = Thread(target=telling, daemon=True)
        sampling.start()
        assert tried.wait(HANGS)
        release.set()
    finally:
        asking.join(HANGS)
        sampling.join(HANGS)
    assert not asking.is_alive()
    measurement.stop()


def test_stop_waits_for_a_reading_thread_without_hanging(tank, sampled):
    inside, go_on = Event(), Event()
    read = tank.read

    def slow():
        if threading.current_thread().name == "ignite_hooks.memory":
            inside.set()
            assert go_on.wait(HANGS)
        return read()

    tank.read = slow
    measurement = started(sampled, every=0.001)
    assert inside.wait(HANGS)
    stopping = Thread(target=measurement.stop, daemon=True)
    stopping.start()
    go_on.set()
    stopping.join(HANGS)
    assert not stopping.is_alive()
    assert not measurement.is_running


def test_measurement_ended_by_the_thread_itself_does_not_hang(tank, sampled):
    """A garbage collection, which ends the measurement, may run in any thread."""
    forgotten = started(sampled, every=3600)
    inside, ended = Event(), Event()
    read = tank.read

    def collecting():
        if threading.current_thread().name == "ignite_hooks.memory":
            tank.read = read
            inside.set()
            forgotten.stop()
            ended.set()
        return read()

    tank.read = collecting
    measurement = started(sampled, every=0.001)
    assert inside.wait(HANGS)
    assert ended.wait(HANGS)
    measurement.stop()
    assert not forgotten.is_running


# Forks


forks_beside_threads = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(params=[False, True], ids=["asked", "sampled"])
def any_shared_mark(request, tank):
    return SharedMark(tank, is_sampled=request.param)


@forks_beside_threads
def test_in_a_forked_child_measurements_begin_at_the_fork(tank, any_shared_mark):
    measurement = started(any_shared_mark)
    tank.spike(9)
    measurement.result()

    def in_child():
        assert measurement.is_running
        tank.highest = tank.content  # as with the kernel's mark
        tank.spike(5)
        result = measurement.result()
        measurement.stop()
        return result, measurement.result(), tank.descriptor

    assert forked(in_child) == (5, 5, None)
    assert measurement.result() == 9
    measurement.stop()


@forks_beside_threads
def test_a_forked_child_closes_what_it_inherits_and_opens_its_own(tank, any_shared_mark):
    measurement = started(any_shared_mark)

    def in_child():
        at_first = tank.descriptor, tank.opened, tank.closed, len(samplers())
        measurement.result()
        later = tank.descriptor is not None, tank.opened, tank.closed, len(samplers())
        measurement.result()
        return at_first, later, (tank.opened, len(samplers()))

    threads = int(any_shared_mark._is_sampled)
    assert forked(in_child) == ((None, 1, 1, 0), (True, 2, 1, threads), (2, threads))
    assert (tank.opened, tank.closed, len(samplers())) == (1, 0, threads)
    measurement.stop()


def test_a_forked_child_closes_nothing_if_nothing_is_open(tank, shared_mark):
    measurement = started(shared_mark)
    measurement.stop()
    assert forked(lambda: tank.closed) == 1


@forks_beside_threads
def test_a_forked_child_can_stop_what_it_inherits(tank, any_shared_mark):
    measurement = started(any_shared_mark)

    def in_child():
        measurement.stop()
        return measurement.is_running, tank.descriptor, len(samplers())

    assert forked(in_child) == (False, None, 0)
    assert measurement.is_running
    measurement.stop()


@forks_beside_threads
def test_a_forked_child_can_reset_and_start_again(tank, any_shared_mark):
    measurement = started(any_shared_mark)

    def in_child():
        tank.spike(9)
        measurement.reset()
        tank.spike(3)
        measurement.start()
        other = started(any_shared_mark)
        tank.spike(2)
        return measurement.result(), other.result()

    assert forked(in_child) == (3, 2)
    measurement.stop()


@forks_beside_threads
def test_forked_child_does_not_wait_for_another_threads_lock(tank, any_shared_mark):
    measurement = started(any_shared_mark)
    inside, go_on = Event(), Event()
    read = tank.read

    def slow():
        inside.set()
        assert go_on.wait(HANGS)
        return read()

    tank.read = slow
    asking = Thread(target=measurement.result, daemon=True)
    asking.start()
    assert inside.wait(HANGS)

    def in_child():
        tank.read = read
        tank.spike(5)
        measurement.stop()
        return measurement.result()

    try:
        assert forked(in_child) == 5
    finally:
        go_on.set()
        asking.join(HANGS)
    measurement.stop()


@forks_beside_threads
def test_a_fork_after_a_shared_mark_is_gone_works():
    tank = Tank()
    started(SharedMark(tank)).stop()
    assert forked(lambda: tank.closed) == 1


@pytest.mark.parametrize("how", ["stop", "abandon"])
@pytest.mark.parametrize("what", ["read", "reset"])
def test_mark_in_use_is_closed_after_its_last_measurement_ends(how, what):
    """A finalizer or signal handler may end a measurement within ``read`` or ``reset``."""
    tank = Tank()
    shared_mark = SharedMark(tank)
    measurement = Measurement(shared_mark, 1.0)
    using = getattr(tank, what)

    def end_meanwhile():
        setattr(tank, what, using)
        getattr(measurement, how)()
        return using()

    measurement.start()
    setattr(tank, what, end_meanwhile)
    measurement.result() if what == "read" else measurement.reset()
    assert (shared_mark.running, tank.descriptor, tank.opened, tank.closed) == ([], None, 1, 1)
    with pytest.raises(AssertionError):
        tank.read()
    Measurement(shared_mark, 1.0).start()
    assert tank.opened == 2
    shared_mark.running[0].stop()


# One measurement.


@pytest.fixture
def measurement(shared_mark):
    return Measurement(shared_mark, every=1.0)


def test_measurement_has_the_peak_from_start_to_stop(tank, measurement):
    tank.spike(9)
    measurement.start()
    assert measurement.is_running
    tank.spike(5)
    measurement.stop()
    tank.spike(7)
    assert not measurement.is_running
    assert (measurement.result(), measurement.peak) == (5, 5)


def test_start_forgets_the_peak_and_resume_does_not(tank, measurement):
    measurement.start()
    tank.spike(5)
    measurement.stop()
    tank.spike(9)
    measurement.resume()
    assert measurement.result() == 5
    measurement.stop()
    measurement.start()
    assert measurement.result() == 0
    measurement.stop()


def test_a_reset_forgets_running_or_not(tank, measurement):
    measurement.start()
    tank.spike(5)
    measurement.reset()
    tank.spike(3)
    measurement.stop()
    assert measurement.result() == 3
    measurement.reset()
    assert measurement.result() == 0


def test_mark_is_held_open_until_released(tank, measurement):
    with measurement.held_open():
        for _ in range(3):
            measurement.start()
            measurement.stop()
        assert (tank.opened, tank.closed) == (1, 0)
    assert tank.closed == 1
    measurement.start()
    measurement.stop()
    assert tank.opened == 2


def test_abandon_ends_a_measurement_and_ignores_a_stopped_one(tank, measurement):
    measurement.abandon()
    measurement.start()
    measurement.abandon()
    assert not measurement.is_running
    assert tank.descriptor is None
