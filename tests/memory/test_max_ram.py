import copy
import errno
import gc
import os
import random
import signal
import threading
from dataclasses import FrozenInstanceError
from threading import Event
from threading import Thread

import psutil
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torch.utils.data import Dataset

from ignite_hooks import MaxRAM
from ignite_hooks.memory import ram_backends
from ignite_hooks.memory.kernel import KernelMark
from ignite_hooks.memory.kernel import why_no_kernel_mark
from ignite_hooks.memory.measurement import SharedMark
from ignite_hooks.memory.sampled import SampledMark
from ignite_hooks.memory.sampled import resident_bytes
from tests.ids import stable_id
from tests.memory.spikes import LEAN
from tests.memory.spikes import MIB
from tests.memory.spikes import Child
from tests.memory.spikes import bear
from tests.memory.spikes import bury
from tests.memory.spikes import descriptors
from tests.memory.spikes import forked
from tests.memory.spikes import give_back
from tests.memory.spikes import keep
from tests.memory.spikes import let_child_do
from tests.memory.spikes import of_marks
from tests.memory.spikes import program
from tests.memory.spikes import spike
from tests.memory.spikes import taken

HANGS = 20  # seconds after which a thread is taken to hang
NEVER = 3600  # seconds between samples: those at start, reset, result and stop are the only ones
SPIKE = 60


def exactly(mib):
    """Compares with 1 % of a spike of 60 MiB as tolerance."""
    return pytest.approx(mib, abs=0.01 * SPIKE)


@pytest.fixture(autouse=True)
def _as_found():
    why_no_kernel_mark()
    threads, open_now = threading.enumerate(), descriptors()
    yield
    assert threading.enumerate() == threads
    assert descriptors() == open_now


def base(**arguments):
    """Returns the peak without any spike."""
    with MaxRAM(**arguments) as ram:
        pass
    return ram.result()


def samplers():
    return [t for t in threading.enumerate() if t.name == "ignite_hooks.memory"]


# One measurement, by the kernel


@pytest.mark.parametrize("mib", [60, 300])
def test_a_spike_that_is_freed_at_once_is_seen(mib):
    with MaxRAM(backend="kernel") as ram:
        spike(mib)
    assert ram.result() - base() == pytest.approx(mib, rel=0.01)


def test_the_result_is_all_resident_memory_in_mib():
    with MaxRAM() as ram:
        pass
    resident = psutil.Process().memory_info().rss / MIB
    assert isinstance(ram.result(), float)
    assert ram.result() == pytest.approx(resident, abs=4)


def test_result_is_zero_before_the_first_start():
    ram = MaxRAM()
    assert ram.result() == 0.0
    assert isinstance(ram.result(), float)
    ram.stop()
    ram.reset()
    assert ram.result() == 0.0
    assert of_marks() == []


def test_result_is_zero_after_a_reset_while_stopped():
    with MaxRAM() as ram:
        pass
    assert ram.result() > 0
    ram.reset()
    assert ram.result() == 0.0


def test_a_start_after_a_stop_measures_from_scratch():
    ram = MaxRAM()
    ram.start()
    spike(SPIKE)
    ram.stop()
    ram.start()
    ram.stop()
    assert ram.result() == exactly(base())
    spike(2 * SPIKE)
    with ram:
        spike(SPIKE)
    assert ram.result() - base() == exactly(SPIKE)


def test_a_second_start_is_harmless():
    ram = MaxRAM()
    ram.start()
    spike(SPIKE)
    ram.start()
    assert ram.result() - base() == exactly(SPIKE)
    ram.stop()
    assert of_marks() == []
    spike(2 * SPIKE)
    assert ram.result() - base() == exactly(SPIKE)


def test_a_stop_without_a_start_is_harmless():
    ram = MaxRAM()
    ram.stop()
    with ram:
        spike(SPIKE)
    ram.stop()
    ram.stop()
    assert ram.result() - base() == exactly(SPIKE)


def test_a_reset_while_running_measures_from_scratch():
    with MaxRAM() as ram:
        spike(SPIKE)
        ram.reset()
        assert ram.result() == exactly(base())
        spike(20)
    assert ram.result() - base() == exactly(20)


def test_result_can_be_read_at_any_time_without_effect():
    ram = MaxRAM()
    assert ram.result() == 0.0
    with ram:
        at_first = ram.result()
        spike(SPIKE)
        results = [ram.result() for _ in range(3)]
    results += [ram.result() for _ in range(3)]
    assert at_first == exactly(base())
    assert len(set(results)) == 1
    assert results[0] - at_first == exactly(SPIKE)


def test_entering_gives_the_measurement_itself():
    ram = MaxRAM()
    with ram as entered:
        assert entered is ram


def test_exception_stops_the_measurement_and_propagates():
    ram = MaxRAM(include_children=True, every=NEVER)
    with pytest.raises(ZeroDivisionError), ram:
        spike(SPIKE // 0)
    assert of_marks() == []
    assert samplers() == []
    assert ram.result() == exactly(base())


# Several measurements


def test_nested_measurements_are_each_exact():
    with MaxRAM() as outer:
        spike(SPIKE)
        with MaxRAM() as inner:
            spike(20)
        with MaxRAM() as later:
            spike(40)
    assert outer.result() - base() == exactly(SPIKE)
    assert inner.result() - base() == exactly(20)
    assert later.result() - base() == exactly(40)


def test_spike_between_inner_measurements_is_in_the_outer_one():
    with MaxRAM() as outer:
        with MaxRAM() as inner:
            pass
        spike(SPIKE)
        with MaxRAM() as later:
            pass
    assert outer.result() - base() == exactly(SPIKE)
    assert inner.result() == exactly(base())
    assert later.result() == exactly(base())


@pytest.mark.parametrize("first_ends_first", [False, True])
def test_overlapping_measurements_are_each_exact(first_ends_first):
    first, second = MaxRAM(), MaxRAM()
    first.start()
    spike(SPIKE)
    second.start()
    spike(20)
    one, other = (first, second) if first_ends_first else (second, first)
    one.stop()
    spike(40)
    other.stop()
    assert first.result() - base() == exactly(SPIKE)
    assert second.result() - base() == exactly(40 if first_ends_first else 20)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["start", "stop", "reset", "result"]), st.integers(0, 2)),
        st.tuples(st.just("spike"), st.sampled_from([8, 16, 24, 32])),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=60)
@given(STEPS)
def test_concurrent_measurements_each_have_their_own_peak(steps):
    rams = [MaxRAM(backend="kernel") for _ in range(3)]
    spikes, since = [None] * 3, {}  # since which step it has been running
    resident = base()

    def check(i):
        result = rams[i].result()
        if spikes[i] is None:
            assert result == 0.0
        else:
            assert result - resident == pytest.approx(spikes[i], abs=3)
        for j, step in since.items():
            if i in since and step <= since[i]:
                assert rams[j].result() >= result

    for step, (act, number) in enumerate(steps):
        if act == "spike":
            spike(number)
            for i in since:
                spikes[i] = max(spikes[i], number)
        elif act == "result":
            check(number)
        else:
            getattr(rams[number], act)()
            if act == "stop":
                since.pop(number, None)
            elif act == "reset":
                spikes[number] = 0 if number in since else None
                if number in since:
                    since[number] = step
            elif number not in since:
                spikes[number], since[number] = 0, step
    for i in range(3):
        check(i)
    for ram in rams:
        ram.stop()
    assert of_marks() == []


def test_each_thread_can_measure():
    failures, results = [], {}
    together = threading.Barrier(4, timeout=HANGS)

    def work(number):
        try:
            together.wait()
            for _ in range(10):
                with MaxRAM() as ram:
                    spike(20)
                results[number] = ram.result()
        except BaseException as failure:
            failures.append(failure)

    threads = [Thread(target=work, args=(number,)) for number in range(4)]
    with MaxRAM() as outer:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    for result in results.values():
        assert base() + 19 < result <= outer.result()
    assert len(results) == 4
    assert outer.result() < base() + 90


# Open files and threads


def test_nothing_is_open_before_the_start_and_after_the_last_stop():
    one, other = MaxRAM(), MaxRAM()
    assert of_marks() == []
    one.start()
    open_now = descriptors()
    other.start()
    one.reset()
    assert descriptors() == open_now
    assert samplers() == []
    one.stop()
    assert descriptors() == open_now
    other.stop()
    assert of_marks() == []


def test_failed_opening_leaves_nothing_open_and_can_be_retried(monkeypatch):
    really = os.open
    for refused in ("clear_refs", "status"):

        def refuse(path, flags, refused=refused):
            if path.endswith(refused):
                raise OSError(errno.EMFILE, "Too many open files", path)
            return really(path, flags)

        ram = MaxRAM()
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", refuse)
            with pytest.raises(OSError, match="Too many open files"):
                ram.start()
        assert of_marks() == []
        assert ram.result() == 0.0
        with ram:
            spike(SPIKE)
        assert ram.result() - base() == exactly(SPIKE)


@pytest.mark.parametrize("backend", ["kernel", "sampler"])
@pytest.mark.parametrize("include_children", [False, True])
def test_dropped_running_measurement_ends(backend, include_children):
    ram = MaxRAM(backend=backend, include_children=include_children, every=NEVER)
    ram.start()
    assert bool(of_marks()) == (backend == "kernel")
    assert len(samplers()) == (backend == "sampler") + include_children
    del ram
    assert of_marks() == []
    assert samplers() == []


def test_measurement_dropped_in_a_cycle_ends_with_it():
    class Owner:
        def __init__(self):
            self.itself, self.ram = self, MaxRAM()

    owner = Owner()
    owner.ram.start()
    del owner
    assert of_marks() != []
    gc.collect()
    assert of_marks() == []


def test_dropped_measurement_leaves_the_others_alone():
    with MaxRAM() as outer:
        dropped = MaxRAM()
        dropped.start()
        spike(SPIKE)
        del dropped
        assert of_marks() != []
    assert outer.result() - base() == exactly(SPIKE)


def test_a_copy_is_a_separate_measurement():
    with MaxRAM(every=0.5) as ram:
        other = copy.copy(ram)
        assert other.every == 0.5
        assert other.result() == 0.0
        other.start()
        other.stop()
        del other
        spike(SPIKE)
        whole = copy.deepcopy(ram)
        assert whole.result() == 0.0
    assert ram.result() - base() == exactly(SPIKE)


def test_partly_started_measurement_is_stopped(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    ram = MaxRAM(include_children=True, every=NEVER)
    with monkeypatch.context() as patched:
        patched.setattr(Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"), ram:
            raise AssertionError("entered")
    left = of_marks()
    ram.stop()
    assert left == []


FORGOTTEN_AT_THE_END_OF_THE_PROCESS = """
from threading import Event
from ignite_hooks.memory import ram_backends
from ignite_hooks.memory.max_ram import MaxRAM
ram = MaxRAM(backend="sampler", every=0.001)
ram.start()
shared_mark = ram_backends._PROCESS_MARKS["sampler"]
shared_mark._mark._measure = Event().wait
while shared_mark._lock.acquire(blocking=False):  # until the thread has it
    shared_mark._lock.release()
print("end", flush=True)
"""


def test_measurement_forgotten_until_exit_does_not_hang():
    """The sampling thread is frozen at exit, and locks that it holds stay locked."""
    assert program("-c", LEAN + FORGOTTEN_AT_THE_END_OF_THE_PROCESS) == "end\n"


def test_measurement_forgotten_while_stopping_does_not_hang(monkeypatch):
    """A garbage collection may run in any thread, at any line."""
    shared_mark = SharedMark(SampledMark(resident_bytes), is_sampled=True)
    monkeypatch.setitem(ram_backends._PROCESS_MARKS, "sampler", shared_mark)
    forgotten, inside = [sampled()], Event()
    forgotten[0].start()

    def collecting():
        inside.set()
        assert sampling._is_stopped.wait(HANGS)
        forgotten.clear()

    monkeypatch.setattr(shared_mark, "_update_unless_locked", collecting)
    ram = sampled(every=0.001)
    ram.start()
    sampling = shared_mark._sampling
    assert inside.wait(HANGS)
    stopping = Thread(target=ram.stop, daemon=True)
    stopping.start()
    stopping.join(5)
    assert not stopping.is_alive()
    assert base(backend="sampler") > 0
    assert samplers() == []


# Samples


def sampled(every=NEVER):
    return MaxRAM(backend="sampler", every=every)


def test_the_sampler_misses_spikes_between_two_samples():
    with sampled() as ram:
        spike(SPIKE)
    assert ram.result() < base() + 5


@pytest.mark.parametrize("begin", ["start", "reset"])
def test_the_first_sample_is_taken_at_once(begin):
    ram = sampled()
    if begin == "reset":
        ram.start()
    with taken(SPIKE):
        getattr(ram, begin)()
    ram.stop()
    assert ram.result() - base() == exactly(SPIKE)


@pytest.mark.parametrize("look", ["result", "stop"])
def test_a_sample_is_taken_at_result_and_stop(look):
    with sampled() as ram:
        with taken(SPIKE):
            getattr(ram, look)()
        assert ram.result() - base() == exactly(SPIKE)
    assert ram.result() - base() == exactly(SPIKE)


def test_the_sampler_forgets_at_a_reset_and_at_a_new_start():
    ram = sampled()
    with ram:
        with taken(SPIKE):
            ram.result()
        ram.reset()
        assert ram.result() == exactly(base())
    with ram, taken(SPIKE):
        ram.result()
    with ram:
        pass
    assert ram.result() == exactly(base())


def test_nested_sampled_measurements_have_their_own_peaks():
    with sampled() as outer:
        with taken(SPIKE):
            outer.result()
        with sampled() as inner, taken(20):
            inner.result()
    assert outer.result() - base() == exactly(SPIKE)
    assert inner.result() - base() == exactly(20)


class SecondLook:
    """Waits for the second sample of the thread, which begins after the first has ended."""

    def __init__(self, monkeypatch, name):
        self._really = getattr(psutil.Process, name)
        self._looks = 0
        self._began = Event()
        monkeypatch.setattr(psutil.Process, name, self._look)

    @property
    def _look(self):
        def look(process, *arguments, **named):
            if threading.current_thread() in samplers():
                self._looks += 1
                if self._looks == 2:
                    self._began.set()
            return self._really(process, *arguments, **named)

        return look

    def wait(self):
        assert self._began.wait(HANGS)


def test_memory_held_over_several_samples_is_seen(monkeypatch):
    ram = sampled(every=0.001)
    ram.start()
    with taken(SPIKE):
        SecondLook(monkeypatch, "memory_info").wait()
    ram.stop()
    assert ram.result() - base() == exactly(SPIKE)


def test_stopping_the_sampler_does_not_wait_for_its_period():
    ram = sampled()
    ram.start()
    assert len(samplers()) == 1
    stopping = Thread(target=ram.stop, daemon=True)
    stopping.start()
    stopping.join(HANGS)
    assert not stopping.is_alive()
    assert samplers() == []


@pytest.mark.parametrize("backend", ["kernel", "sampler"])
def test_sampling_period_is_the_given_one(backend):
    with MaxRAM(backend=backend, include_children=True, every=60):
        assert ram_backends._CHILDREN_MARKS[backend]._sampling.every == 60
        if backend == "sampler":
            assert ram_backends._PROCESS_MARKS[backend]._sampling.every == 60


def test_both_backends_can_measure_at_once():
    with MaxRAM() as exact, sampled() as blind:
        spike(SPIKE)
    assert exact.result() - base() == exactly(SPIKE)
    assert blind.result() < base() + 5


# Forks


forks_beside_threads = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def test_forked_child_measures_itself_and_not_its_parent():
    ram = MaxRAM(backend="kernel")

    def in_child():
        with MaxRAM() as base_there:
            pass
        at_first = ram.result() - base_there.result()
        spike(50)
        own = ram.result() - base_there.result()
        ram.reset()
        with MaxRAM() as another:
            spike(30)
        rest = another.result() - base_there.result(), ram.result() - base_there.result()
        ram.start()
        ram.stop()
        ram.start()
        return at_first, own, *rest, ram.result() - base_there.result()

    with ram:
        spike(SPIKE)  # not read meanwhile: only the mark has it
        assert forked(in_child) == pytest.approx([0, 50, 30, 30, 0], abs=1)
        assert forked(in_child) == pytest.approx([0, 50, 30, 30, 0], abs=1)
        assert ram.result() - base() == exactly(SPIKE)
    assert ram.result() - base() == exactly(SPIKE)


def test_a_forked_child_has_its_own_descriptors():
    def in_child():
        inherited = of_marks()
        ram.result()
        own = of_marks()
        ram.stop()
        return os.getpid(), inherited, own, of_marks()

    with MaxRAM(backend="kernel") as ram:
        of_parent = of_marks()
        child, inherited, own, after = forked(in_child)
        assert of_marks() == of_parent
    assert inherited == after == []
    assert own == [link.replace(str(os.getpid()), str(child)) for link in of_parent]


def test_a_peak_in_a_child_is_not_its_parents():
    with MaxRAM() as ram:
        forked(lambda: spike(SPIKE))
    assert ram.result() == exactly(base())


@forks_beside_threads
@pytest.mark.parametrize("backend", ["kernel", "sampler"])
def test_forked_child_does_not_wait_for_another_threads_lock(backend):
    inside, go_on = Event(), Event()
    shared_mark = ram_backends._PROCESS_MARKS[backend]

    def busy():
        with shared_mark._lock:
            inside.set()
            assert go_on.wait(HANGS)

    def in_child():
        ram.reset()
        with MaxRAM(backend=backend, every=NEVER) as another:
            pass
        ram.stop()
        return ram.result() > 0, another.result() > 0, samplers() == []

    with MaxRAM(backend=backend, every=NEVER) as ram:
        other = Thread(target=busy, daemon=True)
        other.start()
        assert inside.wait(HANGS)
        try:
            assert forked(in_child) == (True, True, True)
        finally:
            go_on.set()
            other.join(HANGS)


@forks_beside_threads
def test_a_forked_child_samples_in_its_own_thread():
    def in_child():
        before = len(samplers())
        at_first = ram.result()
        with taken(50):
            ram.result()
        threads = len(samplers())
        spread = ram.result() - at_first
        ram.stop()
        return before, threads, spread, len(samplers())

    with sampled() as ram:
        with taken(SPIKE):
            ram.result()
        before, threads, spread, after = forked(in_child)
        assert len(samplers()) == 1
        assert ram.result() - base() == exactly(SPIKE)
    assert (before, threads, after) == (0, 1, 0)
    assert spread == pytest.approx(50, abs=1)


# Children


def with_children(backend="kernel", every=NEVER):
    return MaxRAM(include_children=True, backend=backend, every=every)


NEAR = 3  # MiB
OWN = 200  # MiB: what a child writes to becomes its own, for a garbage collection all objects


def near(mib):
    return pytest.approx(mib, abs=NEAR)


def base_with_children(backend="kernel"):
    return base(include_children=True, backend=backend, every=NEVER)


@pytest.fixture
def child():
    with Child() as child:
        child.do(spike, 1)
        yield child


def test_without_include_children_they_are_left_out(child):
    with MaxRAM() as ram:
        child.do(spike, SPIKE)
    assert ram.result() == exactly(base())
    assert base_with_children() > base() + 1


def test_a_spike_of_a_child_and_one_of_this_process_are_added(child):
    with with_children() as ram:
        spike(20)
        child.do(spike, SPIKE)
    assert ram.result() - base_with_children() == near(20 + SPIKE)


def test_a_spike_of_a_child_before_the_start_is_not_counted(child):
    child.do(spike, SPIKE)
    with with_children() as ram:
        pass
    assert ram.result() < base() + 20


def test_a_spike_of_a_child_before_a_reset_is_not_counted(child):
    with with_children() as ram:
        child.do(spike, SPIKE)
        assert ram.result() - base_with_children() == near(SPIKE)
        ram.reset()
        assert ram.result() == near(base_with_children())


def test_a_child_started_later_counts_from_its_start():
    with with_children() as ram, Child() as late:
        late.do(spike, SPIKE)
        at_the_end = ram.result()
    assert base() + SPIKE - NEAR < at_the_end < base() + SPIKE + 20
    assert ram.result() >= at_the_end


def test_an_ended_child_counts_if_it_was_read_before():
    with with_children() as ram, Child() as late:
        late.do(spike, SPIKE)
        ram.result()
    assert ram.result() > base() + SPIKE - NEAR


def test_a_child_that_was_never_read_is_missed():
    with with_children() as ram, Child() as late:
        late.do(spike, SPIKE)
    assert ram.result() == near(base())


@forks_beside_threads
def test_children_are_read_at_intervals(monkeypatch):
    with with_children(every=0.001) as ram, Child() as late:
        late.do(spike, SPIKE)
        SecondLook(monkeypatch, "children").wait()
    assert ram.result() > base() + SPIKE - NEAR


def test_children_that_follow_one_another_do_not_add_up():
    with with_children() as ram:
        for _ in range(2):
            with Child() as late:
                late.do(spike, SPIKE)
                ram.result()
    assert base() + SPIKE - NEAR < ram.result() < base() + SPIKE + 20


def test_memory_shared_with_forked_children_counts_once():
    before = base()
    with taken(300), with_children() as ram, Child() as one, Child() as other:
        for child in (one, other):
            child.do(spike, 20)
        ram.result()
    assert before + 340 - NEAR < ram.result() < before + 340 + OWN


def test_grandchildren_are_counted(child):
    child.do(bear)
    child.do(let_child_do, spike, 1)
    with with_children() as ram:
        child.do(let_child_do, spike, SPIKE)
    assert ram.result() - base_with_children() == near(SPIKE)
    child.do(bury)


def test_nested_measurements_with_children_are_each_right(child):
    with with_children() as outer:
        child.do(spike, SPIKE)
        with with_children() as inner:
            child.do(spike, 20)
        child.do(spike, 40)
        with with_children() as later:
            pass
    assert outer.result() - base_with_children() == near(SPIKE)
    assert inner.result() - base_with_children() == near(20)
    assert later.result() == near(base_with_children())
    assert outer.result() >= inner.result()


@pytest.mark.parametrize("backend", ["kernel", "sampler"])
def test_zombies_and_children_that_end_meanwhile_are_ignored(backend, child):
    with with_children(backend) as ram:
        gone, zombie = Child(), Child()
        gone.do(keep, 1)
        ram.result()
        gone.bury()
        zombie.end()
        ram.reset()
        assert ram.result() > base()
    assert ram.result() > 0
    os.waitpid(zombie.pid, 0)


def test_one_thread_reads_the_children_for_all_measurements():
    with with_children(every=60) as ram:
        threads = samplers()
        with with_children():
            ram.reset()
            assert samplers() == threads
        assert samplers() == threads
    assert len(threads) == 1
    assert samplers() == []


@pytest.mark.parametrize("look", ["start", "reset", "result", "stop"])
def test_sampled_children_are_seen_at_each_reading(child, look):
    ram = with_children("sampler")
    if look != "start":
        ram.start()
    child.do(keep, SPIKE)
    getattr(ram, look)()
    child.do(give_back)
    ram.stop()
    assert ram.result() - base_with_children("sampler") == near(SPIKE)


def test_sampled_children_are_missed_between_two_readings(child):
    with with_children("sampler") as ram:
        child.do(spike, SPIKE)
    assert ram.result() == near(base_with_children("sampler"))


def test_memory_shared_with_sampled_children_counts_once():
    before = base(backend="sampler")
    with taken(300), Child() as one, Child() as other, with_children("sampler") as ram:
        for child in (one, other):
            child.do(keep, 20)
        ram.result()
    assert before + 340 - NEAR < ram.result() < before + 340 + OWN


class Spiky(Dataset):
    """A data set whose samples take memory for a short time, beside memory that workers share."""

    def __init__(self, shared):
        self.shared = shared

    def __len__(self):
        return 2

    def __getitem__(self, index):
        spike(SPIKE)
        return self.shared[index]


@forks_beside_threads
def test_spike_in_a_worker_that_ends_before_stop_is_counted():
    before = base()
    with taken(300) as shared:
        loader = DataLoader(Spiky(shared), num_workers=2, multiprocessing_context="fork")
        with with_children() as ram:
            batches = iter(loader)
            assert len([next(batches), next(batches)]) == 2
            assert len(psutil.Process().children()) == 2
            ram.result()
            assert list(batches) == []
            assert psutil.Process().children() == []
    total = before + 300 + 2 * SPIKE
    assert total - NEAR < ram.result() < total + OWN


# Arguments


def test_omitted_arguments_have_their_defaults():
    ram = MaxRAM()
    assert (ram.every, ram.include_children, ram.backend) == (1.0, False, "auto")


def test_fields_and_the_backend_in_use_cannot_be_changed():
    ram = MaxRAM()
    for name in ("every", "include_children", "backend"):
        with pytest.raises(FrozenInstanceError):
            setattr(ram, name, getattr(ram, name))
    with pytest.raises(AttributeError):
        ram.used_backend = "sampler"
    assert ram.used_backend == "kernel"


def test_measurements_are_never_equal():
    assert MaxRAM() != MaxRAM()


WRONG = [
    *[("every", value, "a finite number of seconds > 0") for value in (0, -1, True, "1", None)],
    *[("every", value, "a finite number of seconds > 0") for value in (float("nan"), float("inf"))],
    *[("include_children", value, "True or False") for value in (1, 0, None, "yes")],
    *[
        ("backend", value, 'one of "auto", "kernel" and "sampler"')
        for value in ("fast", "", "AUTO", None, 1, True, ["auto"])
    ],
]


@pytest.mark.parametrize(("name", "value", "rule"), WRONG, ids=stable_id)
def test_invalid_argument_error_has_rule_and_value(name, value, rule):
    with pytest.raises(ValueError, match=name) as raised:
        MaxRAM(**{name: value})
    assert f"`{name}` must be {rule}, got {value!r}" in str(raised.value)


def test_unknown_and_positional_arguments_are_refused():
    with pytest.raises(TypeError, match="`MaxRAM` has no argument `evry`: did you mean `every`"):
        MaxRAM(evry=1)
    with pytest.raises(TypeError, match="`MaxRAM` takes no argument by position, got"):
        MaxRAM(0.5)


def test_refused_measurement_can_be_dropped():
    for _ in range(2):
        with pytest.raises(ValueError, match="every"):
            MaxRAM(every=0)
        gc.collect()


def test_signal_handler_may_query_while_a_measurement_starts(monkeypatch):
    outer, inner, told = MaxRAM(), MaxRAM(), []

    def too_late(*rest):
        raise TimeoutError("the handler waits for the shared mark that it interrupts")

    reset = KernelMark.reset

    def interrupted(mark):
        signal.raise_signal(signal.SIGUSR1)
        reset(mark)

    before = signal.signal(signal.SIGUSR1, lambda *rest: told.append(outer.result()))
    before_alarm = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(20)
    try:
        with outer:
            monkeypatch.setattr(KernelMark, "reset", interrupted)
            with inner:
                spike(20)
        assert told[0] > 0
        assert inner.result() == outer.result()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGUSR1, before)
        signal.signal(signal.SIGALRM, before_alarm)


def test_threads_finalizers_and_signals_leave_nothing_behind():
    began = gc.get_threshold()
    told, busy = [], []
    witness = MaxRAM(backend="sampler", every=0.002)

    def ask(*rest):
        if not busy:
            busy.append(True)
            told.append(witness.result())
            busy.clear()

    def work(seed):
        chosen, mine = random.Random(seed), []
        for _ in range(200):
            what = chosen.choice(["begin", "begin", "forget", "stop", "reset", "result"])
            if what == "begin":
                every, backend = chosen.choice([0.001, 0.01]), chosen.choice(["sampler", "kernel"])
                cycle = [MaxRAM(every=every, backend=backend)]
                cycle.append(cycle)  # a finalizer ends it, at some line of some thread
                cycle[0].start()
                mine.append(cycle)
            elif mine and what == "forget":
                mine.pop(chosen.randrange(len(mine)))
            elif mine:
                getattr(chosen.choice(mine)[0], what)()
            del mine[:-6]

    before = signal.signal(signal.SIGALRM, ask)
    threads = [Thread(target=work, args=(seed,), daemon=True) for seed in range(3)]
    try:
        gc.set_threshold(5)
        witness.start()
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        for thread in threads:
            thread.start()
        work(3)
        for thread in threads:
            thread.join(HANGS)
            assert not thread.is_alive()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.set_threshold(*began)
        witness.stop()
    assert told
    gc.collect()
    for backend, shared_mark in ram_backends._PROCESS_MARKS.items():
        with MaxRAM(backend=backend):
            pass  # ends those that were forgotten while the shared mark was busy
        assert (shared_mark.running, shared_mark._abandoned, shared_mark._is_open) == (
            [],
            [],
            False,
        )
