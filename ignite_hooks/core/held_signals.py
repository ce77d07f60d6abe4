"""Signals that are held back until an optimizer step is complete.

A Python signal handler runs between any two lines of the main thread, lines of torch included. An
exception that it raises would leave a step half done. ``pthread_sigmask`` does not prevent that: in
a process with a second thread the signal is delivered there, and Python still runs the handler in
the main thread, whose mask does not matter. So this module wraps the handlers themselves.
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
# Windows does not have all of them.
_NUMBERS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class HeldSignals(AbstractContextManager["HeldSignals", None]):
    """A context manager that holds back Python signal handlers while ``is_holding`` is True.

    It is entered around a run. In another thread than the main thread it does nothing, as Python
    runs signal handlers in the main thread only. A handler that is installed while it is open is
    not held back before the next call of ``wrap_handlers``. A signal that arrives twice while it is
    held back is handled once, as a blocked signal is; a second SIGINT is handled at once.

    Attributes:
        is_holding: whether signals are held back now. ``release`` resets it.
        must_wrap_handlers: whether handlers may have been installed since the last
            ``wrap_handlers``.
        was_interrupted: whether a second SIGINT interrupted the code during which the first was
            held.
        pending: the handler to call and the interrupted frame of each signal that is held back.
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
            # A handler that was installed over the wrapper meanwhile stays.
            if self._has_wrapped(installed):
                signal.signal(number, installed.original)
        self.release()

    def wrap_handlers(self) -> None:
        """Wraps the handlers that are installed now, so that they can be held back."""
        self.must_wrap_handlers = False
        for number in _NUMBERS if _is_in_main_thread() else ():
            installed = signal.getsignal(number)
            # SIG_DFL and SIG_IGN are not callable: no code of Python's runs then.
            if callable(installed) and not self._has_wrapped(installed):
                signal.signal(number, _HoldingHandler(self, installed))

    def release(self) -> None:
        """Stops holding signals back, and handles those that have arrived meanwhile."""
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
    """A wrapper of a signal handler, which calls the original now or when signals are released."""

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
    """Returns the handler of a signal, without the wrappers of runs that hold the signal back."""
    handler: Any = signal.getsignal(number)
    # One wrapper for each run: a handler may run another engine within a run.
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
    """Replaces the handler of a signal, within the wrappers of runs that hold the signal back."""
    wrapper: Any = signal.getsignal(number)
    # SIG_DFL and SIG_IGN cannot be called by a wrapper, and take its place.
    if not (isinstance(wrapper, _HoldingHandler) and callable(handler)):
        signal.signal(number, handler)
        return
    while isinstance(wrapper.original, _HoldingHandler):
        wrapper = wrapper.original
    wrapper.original = handler


def _is_in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
