"""Signals that are held back until an optimizer step is complete.

A Python signal handler may run between any two lines of the main thread, lines of torch included.
If the handler raises an exception, the exception can leave an optimizer step half done.
``pthread_sigmask`` does not prevent this. In a process with a second thread, the operating system
delivers the signal to the second thread. Python then runs the handler in the main thread, even if
the mask of the main thread blocks the signal. So this module wraps the handlers themselves.
"""

import signal
import threading
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

__all__ = ["HeldSignals", "is_signal_held", "replace_signal_handler", "signal_handler"]

# torch raises an error for dead loader workers in a handler of SIGCHLD; this package raises one
# for a failure on another rank in a handler of SIGURG.
_NAMES = ("SIGINT", "SIGALRM", "SIGTERM", "SIGCHLD", "SIGURG")
# Windows lacks some of these signals.
_NUMBERS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class HeldSignals(AbstractContextManager["HeldSignals", None]):
    """A context manager within which Python signal handlers can be held back.

    Entering the context manager only wraps the handlers, and holds no signal back. The code within
    the ``with``, which is a run, sets ``is_holding`` to True to hold signals back. ``release`` sets
    ``is_holding`` to False, and calls the handlers of the signals that were held back. While
    ``is_holding`` is False, the wrappers call the handlers at once.

    In a thread other than the main thread the context manager does nothing, because Python runs
    signal handlers in the main thread only. A handler that is installed within the ``with`` is not
    held back before ``wrap_handlers`` is called again. A signal that arrives several times while it
    is held back is handled once, as a blocked signal is. SIGINT is the exception: the handler of a
    second SIGINT is called at once.

    Attributes:
        is_holding: whether signals are held back now. The user of this object sets it; ``release``
            resets it.
        must_wrap_handlers: whether ``wrap_handlers`` must be called again, because handlers may
            have been installed since its last call. The user of this object sets it;
            ``wrap_handlers`` resets it.
        was_interrupted: whether a handler of SIGINT has raised an exception while signals were held
            back: that of a second SIGINT, which is called at once. The user of this object resets
            it.
        pending: maps the number of each signal that is held back to the wrapper to call and the
            frame that the signal has interrupted.
    """

    def __init__(self) -> None:
        self.is_holding = self.must_wrap_handlers = self.was_interrupted = False
        self.pending: dict[int, tuple[_HoldingHandler, FrameType | None]] = {}

    def __enter__(self) -> "HeldSignals":
        self.is_holding = False
        self.wrap_handlers()
        return self

    def __exit__(self, *failure: object) -> None:
        for number in _NUMBERS if _is_in_main_thread() else ():
            installed: Any = signal.getsignal(number)
            # If another handler was installed in place of the wrapper, that handler stays.
            if self._has_wrapped(installed):
                signal.signal(number, installed.original)
        self.release()

    def wrap_handlers(self) -> None:
        """Wraps the handlers that are installed now, so that their signals can be held back."""
        self.must_wrap_handlers = False
        for number in _NUMBERS if _is_in_main_thread() else ():
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
    """A wrapper that calls the original signal handler.

    It makes the call at once, or in ``release`` if the signal is held back.
    """

    def __init__(self, signals: HeldSignals, original: Any) -> None:
        self.signals = signals
        self.original = original

    def __call__(self, number: int, frame: FrameType | None) -> None:
        signals = self.signals
        if not signals.is_holding:
            self.handle(number, frame)
        elif number == signal.SIGINT and number in signals.pending:
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
    # There is one wrapper for each run in progress, because a handler of a run may run another
    # engine.
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
    # A wrapper cannot call SIG_DFL and SIG_IGN, so they replace the wrapper as well.
    if not (isinstance(wrapper, _HoldingHandler) and callable(handler)):
        signal.signal(number, handler)
        return
    while isinstance(wrapper.original, _HoldingHandler):
        wrapper = wrapper.original
    wrapper.original = handler


def _is_in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
