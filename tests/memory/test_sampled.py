import os
import threading
from threading import Event
from threading import Thread

import psutil
import pytest

from ignite_hooks.memory import sampled as sampled_mark
from ignite_hooks.memory.sampled import SampledMark
from ignite_hooks.memory.sampled import Sampling
from ignite_hooks.memory.sampled import resident_bytes
from ignite_hooks.memory.sampled import unshared_bytes_of_children
from tests.memory.spikes import MIB
from tests.memory.spikes import Child
from tests.memory.spikes import bear
from tests.memory.spikes import bury
from tests.memory.spikes import forked
from tests.memory.spikes import give_back
from tests.memory.spikes import keep
from tests.memory.spikes import let_child_do
from tests.memory.spikes import program
from tests.memory.spikes import taken

FEW = 8 * MIB  # what a child takes for itself when it does something


def mark_of(*looks):
    looks = list(looks)
    return SampledMark(lambda: looks.pop(0))


def test_a_reading_measures_and_returns_the_highest_value():
    mark = mark_of(5, 3, 9, 2)
    mark.open()
    assert [mark.read() for _ in range(4)] == [5, 5, 9, 9]


def test_a_reset_measures_and_forgets_earlier_values():
    mark = mark_of(9, 4, 3, 5)
    mark.open()
    assert mark.read() == 9
    mark.reset()
    assert [mark.read(), mark.read()] == [4, 5]


def test_reopened_mark_forgets_its_peak():
    mark = mark_of(9, 4, 3)
    mark.open()
    assert mark.read() == 9
    mark.close()
    mark.open()
    assert mark.read() == 4


def test_resident_memory_follows_what_the_process_allocates():
    before = resident_bytes()
    with taken(60):
        assert resident_bytes() - before == pytest.approx(60 * MIB, rel=0.01)
    assert abs(resident_bytes() - before) < MIB


def test_a_forked_child_measures_itself():
    def in_child():
        before = resident_bytes()
        with taken(60):
            return resident_bytes() - before

    before = resident_bytes()
    assert forked(in_child) == pytest.approx(60 * MIB, rel=0.02)
    assert resident_bytes() - before < MIB


def test_without_children_the_sum_is_zero():
    assert unshared_bytes_of_children() == 0


def test_only_unshared_memory_of_children_counts():
    with taken(100), Child() as one, Child() as other:
        for child in (one, other):
            child.do(keep, 1)
        before = unshared_bytes_of_children()
        assert 2 * MIB <= before < 2 * MIB + 2 * FEW
        one.do(keep, 30)
        other.do(keep, 20)
        assert unshared_bytes_of_children() - before == pytest.approx(50 * MIB, abs=MIB)
        one.do(give_back)
        assert unshared_bytes_of_children() - before == pytest.approx(20 * MIB, abs=MIB)


def test_grandchildren_are_children():
    with Child() as child:
        child.do(bear)
        child.do(let_child_do, keep, 1)
        before = unshared_bytes_of_children()
        child.do(let_child_do, keep, 30)
        assert unshared_bytes_of_children() - before == pytest.approx(30 * MIB, abs=MIB)
        child.do(bury)


def test_a_zombie_counts_zero():
    with Child() as child:
        child.do(keep, 30)
        child.end()
        assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
        assert unshared_bytes_of_children() < MIB
        os.waitpid(child.pid, 0)


def test_a_child_that_ended_after_listing_counts_zero(monkeypatch):
    with Child() as child:
        listed = psutil.Process().children()
    monkeypatch.setattr(psutil.Process, "children", lambda process, recursive: listed)
    assert [process.pid for process in listed] == [child.pid]
    assert unshared_bytes_of_children() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_child_of_another_user_counts_zero():
    def in_child():
        with Child() as of_root:
            of_root.do(keep, 30)
            assert unshared_bytes_of_children() >= 30 * MIB
            os.setresuid(65534, 65534, 0)
            try:
                return unshared_bytes_of_children()
            finally:
                os.setresuid(0, 0, 0)

    assert forked(in_child) == 0


# The thread that samples.


HANGS = 20  # seconds after which a thread is taken to hang


def in_time(act):
    """Calls ``act`` in another thread, which must end in time."""
    thread = Thread(target=act, daemon=True)
    thread.start()
    thread.join(HANGS)
    assert not thread.is_alive()


def started(act, every):
    sampling = Sampling(act, every)
    sampling.start()
    return sampling


def names():
    return [thread.name for thread in threading.enumerate()]


@pytest.fixture(autouse=True)
def _as_found():
    before = threading.enumerate()
    yield
    assert threading.enumerate() == before


def test_sampling_repeats_in_a_thread():
    calls, thrice = [], Event()

    def act():
        calls.append(threading.current_thread())
        if len(calls) == 3:
            thrice.set()

    sampling = started(act, 0.001)
    assert thrice.wait(HANGS)
    sampling.stop()
    assert len(set(calls)) == 1
    assert calls[0] is not threading.current_thread()


def test_no_sample_is_taken_before_the_first_period_ends():
    calls = []
    sampling = started(lambda: calls.append(1), 3600)
    in_time(sampling.stop)
    assert calls == []


def test_sampling_waits_for_its_period_each_time(monkeypatch):
    waited, twice = [], Event()

    class Telling(Event):
        def wait(self, timeout=None):
            waited.append(timeout)
            if len(waited) == 2:
                twice.set()
            return super().wait(timeout)

    monkeypatch.setattr(sampled_mark, "Event", Telling)
    sampling = started(int, 0.002)
    assert twice.wait(HANGS)
    sampling.stop()
    assert sampling.every == 0.002
    assert set(waited) == {0.002}


def test_stop_does_not_wait_for_the_period_and_joins_the_thread():
    before = names()
    sampling = started(int, 3600)
    assert names() == [*before, "ignite_hooks.memory"]
    in_time(sampling.stop)
    assert names() == before


def test_stop_waits_for_the_present_call():
    inside, go_on, ended = Event(), Event(), []

    def act():
        inside.set()
        assert go_on.wait(HANGS)
        ended.append(True)

    sampling = started(act, 0.001)
    assert inside.wait(HANGS)
    stopping = Thread(target=sampling.stop, daemon=True)
    stopping.start()
    assert sampling._is_stopped.wait(HANGS)
    assert stopping.is_alive()
    assert ended == []
    go_on.set()
    stopping.join(HANGS)
    assert ended == [True]


def test_sampling_can_be_stopped_twice():
    sampling = started(int, 1e300)
    sampling.stop()
    in_time(sampling.stop)


def test_sampling_can_be_stopped_from_its_own_thread():
    begun, stopped = Event(), Event()
    samplings = []

    def act():
        assert begun.wait(HANGS)
        samplings[0].stop()
        stopped.set()

    samplings.append(started(act, 0.001))
    begun.set()
    assert stopped.wait(HANGS)
    samplings[0]._thread.join(HANGS)
    assert not samplings[0]._thread.is_alive()


def test_sampling_thread_does_not_keep_the_process_alive():
    sampling = started(int, 3600)
    assert sampling._thread.daemon
    sampling.stop()


STOPPED_AT_THE_END_OF_THE_PROCESS = """
import runpy, sys


class Forgotten:
    def __init__(self):
        self.sampling = runpy.run_path(sys.argv[1])["Sampling"](int, 3600)
        self.sampling.start()
        self.is_finalizing, self.write = sys.is_finalizing, sys.stdout.write

    def __del__(self):
        self.sampling.stop()
        self.write(f"finalizing: {self.is_finalizing()}")


forgotten = Forgotten()
"""


def test_thread_stopped_during_interpreter_exit_does_not_hang():
    told = program("-c", STOPPED_AT_THE_END_OF_THE_PROCESS, sampled_mark.__file__)
    assert told == "finalizing: True"


def test_sampling_stopped_before_its_start_does_not_begin():
    before = names()
    sampling = Sampling(int, 3600)
    assert names() == before
    sampling.stop()
    sampling.start()
    assert names() == before


def test_failing_sample_is_logged_once_and_sampling_continues(caplog):
    calls, thrice = [], Event()

    def act():
        calls.append(1)
        if len(calls) == 3:
            thrice.set()
        raise OSError("too many open files")

    sampling = started(act, 0.001)
    assert thrice.wait(HANGS)
    sampling.stop()
    (record,) = caplog.records
    assert "a sample of memory failed" in record.getMessage()
    assert "too many open files" in str(record.exc_info[1])
