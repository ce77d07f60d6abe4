import threading
from threading import Event
from threading import Thread

import pytest

from ignite_hooks.memory import sampling as module
from ignite_hooks.memory.sampling import Sampling
from tests.memory.spikes import program

HANGS = 20  # seconds after which a thread is said to hang


def in_time(act):
    """Does ``act`` in another thread, which must come to its end."""
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


def test_it_acts_again_and_again_in_a_thread_of_its_own():
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


def test_it_does_not_act_before_the_first_period_is_over():
    calls = []
    sampling = started(lambda: calls.append(1), 3600)
    in_time(sampling.stop)
    assert calls == []


def test_it_waits_for_its_period_each_time(monkeypatch):
    waited, twice = [], Event()

    class Telling(Event):
        def wait(self, timeout=None):
            waited.append(timeout)
            if len(waited) == 2:
                twice.set()
            return super().wait(timeout)

    monkeypatch.setattr(module, "Event", Telling)
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


def test_stop_waits_until_the_call_that_goes_on_has_returned():
    inside, go_on, ended = Event(), Event(), []

    def act():
        inside.set()
        assert go_on.wait(HANGS)
        ended.append(True)

    sampling = started(act, 0.001)
    assert inside.wait(HANGS)
    stopping = Thread(target=sampling.stop, daemon=True)
    stopping.start()
    assert sampling._is_over.wait(HANGS)
    assert stopping.is_alive()
    assert ended == []
    go_on.set()
    stopping.join(HANGS)
    assert ended == [True]


def test_it_can_be_stopped_twice():
    sampling = started(int, 1e300)
    sampling.stop()
    in_time(sampling.stop)


def test_it_can_be_stopped_from_within():
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


def test_its_thread_does_not_keep_the_process_alive():
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


def test_one_that_is_stopped_while_the_interpreter_ends_does_not_hang():
    told = program("-c", STOPPED_AT_THE_END_OF_THE_PROCESS, module.__file__)
    assert told == "finalizing: True"


def test_one_that_was_stopped_before_its_start_does_not_begin():
    before = names()
    sampling = Sampling(int, 3600)
    assert names() == before
    sampling.stop()
    sampling.start()
    assert names() == before


def test_one_that_fails_is_told_once_and_the_others_are_taken(caplog):
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
