"""Signals that wait until an optimizer step is complete.

A Python handler runs between any two lines of the main thread, torch's included, and what it raises
would leave a step half done. ``pthread_sigmask`` is no tool against that: with a second thread the
handler runs in the masked main thread all the same. So the handlers themselves wait.
"""

import signal
import threading
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

__all__ = ["HeldSignals", "handler_of", "is_held_back", "replace_handler"]

# torch tells of dead workers by SIGCHLD, this package of a failure on another rank by SIGURG.
_NAMES = ("SIGINT", "SIGALRM", "SIGTERM", "SIGCHLD", "SIGURG")
_NUMBERS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class HeldSignals(AbstractContextManager["HeldSignals", None]):
    """Holds back the Python handlers of some signals while ``is_holding`` is set.

    It is entered around a run, in the main thread. No handler ever runs in another, and there it
    does nothing. A handler that someone sets meanwhile is not held back until the next ``look``.
    A signal that comes twice while it is held counts once, as a blocked one does; a second SIGINT
    is handled at once.

    Attributes:
        is_holding: whether signals wait now. ``release`` resets it.
        is_stale: whether ``look`` is to be called again.
        has_broken: whether a second SIGINT, while the first one waited, broke off what was held.
    """

    def __init__(self) -> None:
        self.is_holding = self.is_stale = self.has_broken = False
        self.waiting: dict[int, tuple[_Holder, FrameType | None]] = {}

    def __enter__(self) -> "HeldSignals":
        self.is_holding = False
        self.look()
        return self

    def __exit__(self, *failure: object) -> None:
        for number in _NUMBERS if _is_in_main_thread() else ():
            installed: Any = signal.getsignal(number)
            if self._is_own(installed):
                signal.signal(number, installed.found)
        self.release()

    def look(self) -> None:
        """Holds back the handlers that are installed now."""
        self.is_stale = False
        for number in _NUMBERS if _is_in_main_thread() else ():
            found = signal.getsignal(number)
            if callable(found) and not self._is_own(found):
                signal.signal(number, _Holder(self, found))

    def release(self) -> None:
        """Ends the holding, and handles what has come meanwhile."""
        self.is_holding = False
        if self.waiting:
            number, (holder, frame) = self.waiting.popitem()
            try:
                holder.handle(number, frame)
            finally:  # whatever the first one raises, the others are handled too
                self.release()

    def _is_own(self, handler: Any) -> bool:
        return isinstance(handler, _Holder) and handler.signals is self


class _Holder:
    """The handler of one signal: passes it on to the one that was found, now or later."""

    def __init__(self, signals: HeldSignals, found: Any) -> None:
        self.signals = signals
        self.found = found

    def __call__(self, number: int, frame: FrameType | None) -> None:
        signals = self.signals
        if not signals.is_holding:
            self.handle(number, frame)
        elif number == signal.SIGINT and number in signals.waiting:
            try:
                self.handle(number, frame)
            except BaseException:
                signals.has_broken = True
                raise
        else:
            signals.waiting[number] = self, frame

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.found(number, frame)


def handler_of(number: int) -> Any:
    """Returns the handler of a signal, that beneath if a run holds the signal back."""
    handler: Any = signal.getsignal(number)
    while isinstance(handler, _Holder):
        handler = handler.found
    return handler


def is_held_back(number: int | None) -> bool:
    """Returns whether a signal has come and is held back."""
    handler: Any = None if number is None else signal.getsignal(number)
    while isinstance(handler, _Holder):
        if number in handler.signals.waiting:
            return True
        handler = handler.found
    return False


def replace_handler(number: int, handler: Any) -> None:
    """Sets the handler of a signal, beneath those by which runs hold the signal back."""
    holder: Any = signal.getsignal(number)
    if not (isinstance(holder, _Holder) and callable(handler)):
        signal.signal(number, handler)
        return
    while isinstance(holder.found, _Holder):
        holder = holder.found
    holder.found = handler


def _is_in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
