"""Signals that wait; ``tests/trainer/test_interruptions.py`` has what a trainer does with them."""

import signal

import pytest

from ignite_hooks.core.held_signals import HeldSignals
from ignite_hooks.core.held_signals import handler_of
from ignite_hooks.core.held_signals import replace_handler

NUMBER = signal.SIGALRM


@pytest.fixture
def seen():
    """What a handler of the signal has seen; the one that was found is put back."""
    seen, found = [], signal.getsignal(NUMBER)
    signal.signal(NUMBER, lambda number, frame: seen.append(number))
    yield seen
    signal.signal(NUMBER, found)


def test_a_signal_waits_while_signals_are_held_and_comes_once(seen):
    with HeldSignals() as signals:
        signal.raise_signal(NUMBER)
        assert seen == [NUMBER]
        signals.is_holding = True
        signal.raise_signal(NUMBER)
        signal.raise_signal(NUMBER)
        assert seen == [NUMBER]
        signals.release()
        assert seen == [NUMBER] * 2
        signals.release()
        assert seen == [NUMBER] * 2


def test_a_signal_that_waits_as_the_scope_ends_is_handled(seen):
    with HeldSignals() as signals:
        signals.is_holding = True
        signal.raise_signal(NUMBER)
    assert seen == [NUMBER]


def test_the_handler_that_was_found_is_put_back(seen):
    found = signal.getsignal(NUMBER)
    with HeldSignals(), HeldSignals():
        assert signal.getsignal(NUMBER) is not found
        assert handler_of(NUMBER) is found
    assert signal.getsignal(NUMBER) is found


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_what_is_no_handler_of_python_is_left_alone(seen, handler):
    signal.signal(NUMBER, handler)
    with HeldSignals():
        assert signal.getsignal(NUMBER) is handler


def test_a_handler_that_is_set_beneath_waits_and_stays(seen):
    others = []
    other = lambda number, frame: others.append(number)  # noqa: E731
    with HeldSignals() as signals:
        replace_handler(NUMBER, other)
        signals.is_holding = True
        signal.raise_signal(NUMBER)
        assert others == []
        signals.release()
        assert others == [NUMBER]
    assert signal.getsignal(NUMBER) is other
    assert seen == []


def test_a_handler_that_is_set_over_it_is_held_after_another_look(seen):
    others = []
    with HeldSignals() as signals:
        other = lambda number, frame: others.append(number)  # noqa: E731
        signal.signal(NUMBER, other)
        signals.is_holding = True
        signal.raise_signal(NUMBER)
        assert others == [NUMBER]
        signals.look()
        signal.raise_signal(NUMBER)
        assert others == [NUMBER]
    assert others == [NUMBER] * 2
    assert signal.getsignal(NUMBER) is other


@pytest.fixture
def _ctrl_c():
    """Python's own handler, which a process in the background does not have."""
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, found)


@pytest.mark.usefixtures("_ctrl_c")
def test_the_second_ctrl_c_is_handled_at_once():
    with HeldSignals() as signals:
        signals.is_holding = True
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signals.has_broken
        with pytest.raises(KeyboardInterrupt):  # the first, which waited
            signals.release()
