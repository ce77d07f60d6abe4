"""Signals that ask a run to save and stop.

When a signal arrives, it is only noted. The run handles the noted signal at the next step boundary,
that is between two optimizer steps.
"""

import math
import signal
import threading
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextlib import contextmanager
from time import monotonic
from traceback import walk_tb
from types import FrameType
from typing import Any

from ignite_hooks.core.held_signals import replace_signal_handler
from ignite_hooks.core.held_signals import signal_handler
from ignite_hooks.core.undo_stack import undo_on_exit
from ignite_hooks.data.workers import ignored_by_workers

__all__ = ["StopSignals", "is_death_of_worker"]

_LOADER_MODULE = "torch.utils.data.dataloader"


class StopSignals(AbstractContextManager["StopSignals", None]):
    """A scope in which the first signal that arrives is noted and does not end the process.

    A process may get several signals for one request to stop: a job scheduler signals every
    process, and a launcher such as ``torchrun`` forwards the signal that it has received. Signals
    within ``grace_seconds`` of the first signal are part of the same request. A later signal, or
    any signal after ``mark_complete()``, calls the previous handler, set before the scope.

    Signals are noted only if the scope is entered in the main thread, because Python sets and calls
    signal handlers in the main thread only. A handler that was set by C code cannot be restored
    from Python. Such a handler is not replaced, and its signal is not noted.

    Args:
        names: names of signals, for example "SIGTERM".
        grace_seconds: the time after the first signal in which further signals are part of the
            same request.
        clock: returns a monotonic time in seconds.

    Attributes:
        received: the name of the signal that was noted; None if no signal has arrived yet.
    """

    def __init__(
        self,
        names: Sequence[str],
        grace_seconds: float = 0.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.received: str | None = None
        self._names = {int(signal.Signals[name]): name for name in names}
        self._grace_seconds = grace_seconds
        self._clock = clock
        # The end of the grace period, as a time of the clock. A signal after it is a new request.
        self._grace_ends_at = 0.0
        # Maps the number of a signal to two handlers: the one that was set before the scope, and
        # the one that this scope has set.
        self._replaced: dict[int, tuple[Any, Any]] = {}
        # One key for each open scope, because the same StopSignals may be entered several times.
        self._scopes: list[object] = []

    def __enter__(self) -> "StopSignals":
        self._enter(object())
        return self

    def __exit__(self, *failure: object) -> None:
        self._leave(self._scopes[-1])

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Notes signals in the body, and restores the signal handlers after the body.

        If Ctrl-C interrupts the restoring, ``undo_on_exit`` repeats it at the end of the run.
        """
        scope = object()
        with undo_on_exit(lambda: self._leave(scope), out_of_order=True):
            self._enter(scope)
            yield

    def _enter(self, scope: object) -> None:
        self._scopes.append(scope)
        if len(self._scopes) > 1:
            return
        if threading.current_thread() is threading.main_thread():
            for number in self._names:
                self._replace(number, self._handle)
            ignored_by_workers[self] = tuple(self._replaced)

    def _leave(self, scope: object) -> None:
        """Ends a scope. A call that Ctrl-C has broken off can be repeated."""
        if self._scopes == [scope]:
            ignored_by_workers.pop(self, None)
            for number in tuple(self._replaced):
                previous, own = self._replaced[number]
                # If other code has set a handler in the meantime, that handler stays.
                if signal_handler(number) == own:
                    replace_signal_handler(number, previous)
                del self._replaced[number]
        self._scopes = [each for each in self._scopes if each is not scope]

    def forget(self) -> None:
        """Forgets the signal that was received. A new run calls this method at its start."""
        self.received = None

    def mark_complete(self) -> None:
        """Notes that the save is complete, so that a further signal calls the previous handler."""
        self._grace_ends_at = -math.inf

    def _handle(self, number: int, frame: FrameType | None) -> None:
        previous, _ = self._replaced.get(number, (None, None))
        if self.received is None:
            # `received` is set last, so that a signal between these two lines is not compared with
            # the end of an earlier grace period.
            self._grace_ends_at = self._clock() + self._grace_seconds
            self.received = self._names[number]
            if hasattr(signal, "SIGCHLD"):
                self._silence_torch(signal.SIGCHLD)
            if isinstance(getattr(previous, "__self__", None), StopSignals):
                # This run was started within the run of another trainer, which has set the previous
                # handler. The outer run has to end too, so the previous handler is called.
                previous(number, frame)
        elif self._clock() >= self._grace_ends_at:
            if callable(previous):
                previous(number, frame)
            elif previous == signal.SIG_DFL:
                # The signal had its default action, which Python cannot call. So the default is
                # restored, and the signal is sent again.
                replace_signal_handler(number, previous)
                signal.raise_signal(number)

    def _silence_torch(self, number: int) -> None:
        """Keeps torch's handler of SIGCHLD from raising an error when a loader worker has died.

        The stop signal may have ended the worker, and torch's error would end the run before it
        can save. The loader raises an error too, when it waits for a batch of the dead worker.
        ``triggers.py`` handles the loader's error.

        Args:
            number: the number of SIGCHLD, which Windows does not have.
        """
        torch_handler = signal_handler(number)

        def handle(number: int, frame: FrameType | None) -> None:
            try:
                torch_handler(number, frame)
            except RuntimeError as error:
                if not is_death_of_worker(error):
                    raise

        if callable(torch_handler):
            self._replace(number, handle)

    def _replace(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        previous = signal_handler(number)
        if previous is not None:
            self._replaced[number] = previous, handler
            replace_signal_handler(number, handler)


def is_death_of_worker(error: BaseException) -> bool:
    """Returns whether ``error`` was raised because a worker of a ``DataLoader`` has died.

    If torch has noticed the death, the error is a RuntimeError that says so. If the connection to
    the worker broke while torch fetched a batch, the error is an OSError or EOFError that
    ``multiprocessing`` has raised.
    """
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker (pid")
    frames = walk_tb(error.__traceback__)
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in frames]
    if not isinstance(error, OSError | EOFError) or _LOADER_MODULE not in modules:
        return False
    within = modules[modules.index(_LOADER_MODULE) :]
    return any(each.startswith("multiprocessing.") for each in within)
