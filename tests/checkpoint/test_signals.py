import os
import signal
import threading

import pytest

from ignite_hooks.checkpoint.signals import StopSignals


def send(name):
    os.kill(os.getpid(), signal.Signals[name])


@pytest.fixture
def before():
    """The names of the signals that reached the handlers which the process had set before."""
    counted = []
    numbers = [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]
    found = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, lambda number, frame: counted.append(signal.Signals(number).name))
    yield counted
    for number, handler in found.items():
        signal.signal(number, handler)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


def test_second_signal_calls_its_previous_handler(before):
    with StopSignals(["SIGTERM"]) as signals:
        assert signals.received is None
        send("SIGTERM")
        assert (signals.received, before) == ("SIGTERM", [])
        send("SIGTERM")
        assert (signals.received, before) == ("SIGTERM", ["SIGTERM"])
    send("SIGTERM")
    assert before == ["SIGTERM"] * 2


def test_signals_within_the_grace_are_one_request(before):
    clock = Clock()
    with StopSignals(["SIGTERM", "SIGUSR1"], 5.0, clock) as signals:
        for seconds in (0, 4.9):
            clock.seconds = 100 + seconds
            for name in ("SIGTERM", "SIGUSR1", "SIGTERM"):
                send(name)
        assert (signals.received, before) == ("SIGTERM", [])
        clock.seconds = 105.0
        send("SIGUSR1")
        send("SIGTERM")
        assert (signals.received, before) == ("SIGTERM", ["SIGUSR1", "SIGTERM"])


def test_signals_after_completion_call_their_old_handler(before):
    with StopSignals(["SIGTERM"], 5.0, Clock()) as signals:
        signals.mark_complete()
        send("SIGTERM")
        assert before == []
        signals.mark_complete()
        send("SIGTERM")
        assert before == ["SIGTERM"]


def test_forgetting_a_signal_starts_a_new_grace(before):
    signals = StopSignals(["SIGTERM"], 5.0, Clock())
    for _ in range(2):
        signals.forget()
        with signals:
            send("SIGTERM")
            send("SIGTERM")
            assert (signals.received, before) == ("SIGTERM", [])
            signals.mark_complete()


@pytest.mark.parametrize("graces", [(5.0, 9.0), (9.0, 5.0)])
def test_nested_stop_signals_wait_for_the_longer_grace(before, graces):
    clock = Clock()
    outer, inner = (StopSignals(["SIGTERM"], grace, clock) for grace in graces)
    with outer, inner:
        send("SIGTERM")
        assert outer.received == inner.received == "SIGTERM"
        outer.mark_complete() if graces[0] < graces[1] else inner.mark_complete()
        clock.seconds += 6
        send("SIGTERM")
        assert before == []
        clock.seconds += 6
        send("SIGTERM")
        assert before == ["SIGTERM"]
    send("SIGTERM")
    assert before == ["SIGTERM"] * 2


def test_unhandled_signal_ends_the_process_after_the_grace():
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        clock = Clock()
        with StopSignals(["SIGTERM"], 5.0, clock):
            send("SIGTERM")
            send("SIGTERM")
            clock.seconds += 5
            send("SIGTERM")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM


@pytest.fixture
def _restored_sigchld():
    """Restores the handler of SIGCHLD after the test."""
    found = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, found)


@pytest.mark.usefixtures("_restored_sigchld")
def test_torch_does_not_raise_for_dead_worker_after_a_signal(before):
    def raise_for_child(number, frame):
        raise errors.pop()

    signal.signal(signal.SIGCHLD, raise_for_child)
    of_torch = RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")
    errors = [of_torch, RuntimeError("another"), of_torch, of_torch]
    with StopSignals(["SIGTERM"], 5.0):
        with pytest.raises(RuntimeError, match="DataLoader worker"):
            send("SIGCHLD")
        send("SIGTERM")
        send("SIGCHLD")
        with pytest.raises(RuntimeError, match="another"):
            send("SIGCHLD")
    assert signal.getsignal(signal.SIGCHLD) is raise_for_child
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        send("SIGCHLD")


def test_only_named_signals_are_received(before):
    with StopSignals(["SIGTERM", "SIGUSR1"]) as signals:
        send("SIGUSR2")
        assert (signals.received, before) == (None, ["SIGUSR2"])
        send("SIGUSR1")
        assert (signals.received, before) == ("SIGUSR1", ["SIGUSR2"])


@pytest.mark.parametrize("found", [signal.SIG_DFL, signal.SIG_IGN])
def test_previous_handler_is_restored_after_signal_or_failure(before, found):
    signal.signal(signal.SIGTERM, found)
    with StopSignals(["SIGTERM"]):
        assert signal.getsignal(signal.SIGTERM) != found
    assert signal.getsignal(signal.SIGTERM) == found

    with StopSignals(["SIGTERM"]):
        send("SIGTERM")
    assert signal.getsignal(signal.SIGTERM) == found

    with pytest.raises(KeyError), StopSignals(["SIGTERM"]):
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) == found


def test_handler_set_meanwhile_is_kept(before):
    def other(number, frame):
        before.append("other")

    with StopSignals(["SIGTERM"]) as signals:
        signal.signal(signal.SIGTERM, other)
    assert signal.getsignal(signal.SIGTERM) is other
    send("SIGTERM")
    assert (signals.received, before) == (None, ["other"])


def test_stop_signals_can_be_entered_again(before):
    signals = StopSignals(["SIGTERM"])
    for number in (1, 2):
        signals.forget()
        with signals:
            send("SIGTERM")
            assert signals.received == "SIGTERM"
        send("SIGTERM")
        assert before == ["SIGTERM"] * number


def test_nested_stop_signals_restore_what_they_found(before):
    ours = signal.getsignal(signal.SIGTERM)
    with StopSignals(["SIGTERM"]) as outer:
        noting = signal.getsignal(signal.SIGTERM)
        with StopSignals(["SIGTERM"]) as inner:
            pass
        assert signal.getsignal(signal.SIGTERM) == noting
        send("SIGTERM")
        assert (inner.received, outer.received) == (None, "SIGTERM")
    assert signal.getsignal(signal.SIGTERM) == ours


def test_outside_the_main_thread_nothing_is_changed(before):
    ours, seen = signal.getsignal(signal.SIGTERM), []

    def enter():
        with StopSignals(["SIGTERM"]) as signals:
            seen.append(signal.getsignal(signal.SIGTERM))
        seen.append(signals.received)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [ours, None]
    assert signal.getsignal(signal.SIGTERM) == ours


def test_a_handler_set_by_c_code_is_left_alone(before, monkeypatch):
    ours = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda number: None)  # as for one that was set from C
        with StopSignals(["SIGTERM"]) as signals:
            send("SIGTERM")
    assert (signals.received, before) == (None, ["SIGTERM"])
    assert signal.getsignal(signal.SIGTERM) is ours


def test_a_signal_given_twice_is_restored(before):
    ours = signal.getsignal(signal.SIGTERM)
    with StopSignals(["SIGTERM", "SIGTERM"]):
        pass
    assert signal.getsignal(signal.SIGTERM) == ours


def test_stop_signals_entered_twice_restore_the_handler(before):
    ours = signal.getsignal(signal.SIGTERM)
    signals = StopSignals(["SIGTERM"])
    with signals, signals:
        send("SIGTERM")
        assert signals.received == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) == ours


def test_second_signal_of_another_kind_calls_its_old_handler(before):
    with StopSignals(["SIGTERM", "SIGUSR1"]) as signals:
        send("SIGTERM")
        send("SIGUSR1")
        assert (signals.received, before) == ("SIGTERM", ["SIGUSR1"])
