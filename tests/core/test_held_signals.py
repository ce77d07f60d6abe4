"""Tests of held signals. ``tests/trainer/test_interruptions.py`` tests their use in a trainer."""

import signal

import pytest

from ignite_hooks.core.held_signals import HeldSignals
from ignite_hooks.core.held_signals import replace_signal_handler
from ignite_hooks.core.held_signals import signal_handler

NUMBER = signal.SIGALRM


@pytest.fixture
def received():
    """The signals that a handler received. The original handler is restored at the end."""
    received, found = [], signal.getsignal(NUMBER)
    signal.signal(NUMBER, lambda number, frame: received.append(number))
    yield received
    signal.signal(NUMBER, found)


def test_a_held_signal_is_handled_once_on_release(received):
    with HeldSignals() as signals:
        signal.raise_signal(NUMBER)
        assert received == [NUMBER]
        signals.is_holding = True
        signal.raise_signal(NUMBER)
        signal.raise_signal(NUMBER)
        assert received == [NUMBER]
        signals.release()
        assert received == [NUMBER] * 2
        signals.release()
        assert received == [NUMBER] * 2


def test_a_held_signal_is_handled_when_the_scope_ends(received):
    with HeldSignals() as signals:
        signals.is_holding = True
        signal.raise_signal(NUMBER)
    assert received == [NUMBER]


def test_the_original_handler_is_restored(received):
    found = signal.getsignal(NUMBER)
    with HeldSignals(), HeldSignals():
        assert signal.getsignal(NUMBER) is not found
        assert signal_handler(NUMBER) is found
    assert signal.getsignal(NUMBER) is found


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_default_and_ignored_signals_are_not_wrapped(received, handler):
    signal.signal(NUMBER, handler)
    with HeldSignals():
        assert signal.getsignal(NUMBER) is handler


def test_a_replaced_handler_is_held_and_stays(received):
    others = []
    other = lambda number, frame: others.append(number)  # noqa: E731
    with HeldSignals() as signals:
        replace_signal_handler(NUMBER, other)
        signals.is_holding = True
        signal.raise_signal(NUMBER)
        assert others == []
        signals.release()
        assert others == [NUMBER]
    assert signal.getsignal(NUMBER) is other
    assert received == []


def test_a_newly_installed_handler_is_held_after_look(received):
    others = []
    with HeldSignals() as signals:
        other = lambda number, frame: others.append(number)  # noqa: E731
        signal.signal(NUMBER, other)
        signals.is_holding = True
        signal.raise_signal(NUMBER)
        assert others == [NUMBER]
        signals.wrap_handlers()
        signal.raise_signal(NUMBER)
        assert others == [NUMBER]
    assert others == [NUMBER] * 2
    assert signal.getsignal(NUMBER) is other


@pytest.fixture
def _ctrl_c():
    """Installs Python's own handler, which a process in the background does not have."""
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
        assert signals.was_interrupted
        with pytest.raises(KeyboardInterrupt):  # the first one, which was held
            signals.release()
