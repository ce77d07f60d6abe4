"""Signals that are held back until an optimizer step is complete.

A Python signal handler may run between any two lines of the main thread, lines of torch included.
If the handler raises an exception, the exception can leave an optimizer step half done. So this
module wraps the signal handlers: during a step, the wrapper only notes the signal, and the handler
is called after the step.

Blocking the signals with ``pthread_sigmask`` would not be enough. In a process with a second
thread, the operating system delivers the signal to the second thread. Python still runs the handler
in the main thread, although the main thread blocks the signal.
"""

import signal
import threading
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

__all__ = ["HeldSignals", "is_signal_held", "replace_signal_handler", "signal_handler"]

# The signals whose handlers commonly raise exceptions. In a handler of SIGCHLD, torch raises an
# error if a loader worker has died. In a handler of SIGURG, this package raises an error if another
# rank has failed.
_NAMES = ("SIGINT", "SIGALRM", "SIGTERM", "SIGCHLD", "SIGURG")
# Windows lacks some of these signals.
_SIGNAL_NUMBERS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class HeldSignals(AbstractContextManager["HeldSignals", None]):
    """A context manager within which Python signal handlers can be held back.

    Entering the context manager only wraps the handlers. When a signal arrives, the wrapper calls
    its handler. To hold signals back, the code within the ``with`` sets ``is_holding`` to True.
    Then a wrapper only notes the signal. ``release`` sets ``is_holding`` to False again, and calls
    the handlers of the signals that were held back.

    In a thread other than the main thread the context manager does nothing, because Python runs
    signal handlers in the main thread only. A handler that is installed within the ``with`` has no
    wrapper until ``wrap_handlers`` is called again.

    If the same signal arrives several times while it is held back, its handler is called once, as
    for a signal that the operating system blocks. SIGINT is different: the second SIGINT calls the
    handler immediately, so a second Ctrl-C can end a step that hangs.

    Attributes:
        is_holding: whether signals are held back now. The user of this object sets it to True;
            ``release`` sets it to False.
        must_wrap_handlers: whether ``wrap_handlers`` must be called again, because a handler may
            have been installed since its last call. The user of this object sets the attribute to
            True; ``wrap_handlers`` sets it to False.
        was_interrupted: whether the handler of a second SIGINT has raised an exception while
            signals were held back, so that the step may be half done. The user of this object
            sets it to False.
        pending: the signals that are held back. The keys are the numbers of the signals. A value is
            the wrapper, whose handler is still to be called, and the frame that the signal has
            interrupted.
    """

    def __init__(self) -> None:
        self.is_holding = self.must_wrap_handlers = self.was_interrupted = False
        self.pending: dict[int, tuple[_HoldingHandler, FrameType | None]] = {}

    def __enter__(self) -> "HeldSignals":
        self.is_holding = False
        self.wrap_handlers()
        return self

    def __exit__(self, *failure: object) -> None:
        for number in _SIGNAL_NUMBERS if _is_in_main_thread() else ():
            installed: Any = signal.getsignal(number)
            # If another handler was installed in place of the wrapper, that handler stays.
            if self._has_wrapped(installed):
                signal.signal(number, installed.original)
        self.release()

    def wrap_handlers(self) -> None:
        """Wraps the handlers that are installed now, so that their signals can be held back."""
        self.must_wrap_handlers = False
        for number in _SIGNAL_NUMBERS if _is_in_main_thread() else ():
            installed = signal.getsignal(number)
            # SIG_DFL and SIG_IGN are not callable: for them Python runs no handler.
            if callable(installed) and not self._has_wrapped(installed):
                signal.signal(number, _HoldingHandler(self, installed))

    def release(self) -> None:
        """Stops holding signals back, and calls the handlers of signals that were held back."""
        self.is_holding = False
        if self.pending:
            number, (handler, frame) = self.pending.popitem()
            try:
                handler.handle(number, frame)
            finally:  # the other signals are handled too if this handler raises
                self.release()

    def _has_wrapped(self, handler: Any) -> bool:
        return isinstance(handler, _HoldingHandler) and handler.signals is self


class _HoldingHandler:
    """A wrapper around a signal handler (the *original handler*).

    Usually the wrapper calls the original handler. While signals are held back, the wrapper only
    notes the signal in ``HeldSignals.pending``.
    """

    def __init__(self, signals: HeldSignals, original: Any) -> None:
        self.signals = signals
        self.original = original

    def __call__(self, number: int, frame: FrameType | None) -> None:
        signals = self.signals
        if not signals.is_holding:
            self.handle(number, frame)
        elif number == signal.SIGINT and number in signals.pending:  # a second Ctrl-C
            try:
                self.handle(number, frame)
            except BaseException:
                signals.was_interrupted = True
                raise
        else:
            signals.pending[number] = self, frame

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Calls the original handler."""
        self.original(number, frame)


def signal_handler(number: int) -> Any:
    """Returns the original handler of a signal, without the wrappers that ``HeldSignals`` adds."""
    handler: Any = signal.getsignal(number)
    # Wrappers can be nested: if an Ignite handler runs another engine, each of the two runs has
    # added a wrapper.
    while isinstance(handler, _HoldingHandler):
        handler = handler.original
    return handler


def is_signal_held(number: int | None) -> bool:
    """Returns whether a signal has arrived and is held back now."""
    handler: Any = None if number is None else signal.getsignal(number)
    while isinstance(handler, _HoldingHandler):
        if number in handler.signals.pending:
            return True
        handler = handler.original
    return False


def replace_signal_handler(number: int, handler: Any) -> None:
    """Replaces the original handler of a signal. Wrappers that ``HeldSignals`` has added stay."""
    wrapper: Any = signal.getsignal(number)
    # A wrapper could not call SIG_DFL or SIG_IGN, because these are not functions. So each of them
    # is installed in place of the wrapper.
    if not (isinstance(wrapper, _HoldingHandler) and callable(handler)):
        signal.signal(number, handler)
        return
    while isinstance(wrapper.original, _HoldingHandler):
        wrapper = wrapper.original
    wrapper.original = handler


def _is_in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
