"""Signals that ask a run to save and stop: noted here, handled at the next step boundary."""

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
    """A scope in which the first of the given signals is noted instead of ending the process.

    A job scheduler signals every process, and a launcher passes its own signal on, so that a
    process gets several signals for one request. Signals within ``grace_seconds`` of the first are
    part of it. Later ones, and those after ``mark_complete()``, call the handler that was set
    before the scope.

    Outside of the main thread nothing is noted, because Python handles signals in the main thread
    only. A handler that was set by C code cannot be restored from Python, and is not replaced.

    Args:
        names: names of signals, for example "SIGTERM".
        grace_seconds: the time after the first signal in which further ones are part of it.
        clock: returns a monotonic time in seconds.
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
        self._grace_ends_at = 0.0  # by the clock; later signals are no longer part of the first
        # By the number of a signal: the handler that was found, and the one that is set now.
        self._replaced: dict[int, tuple[Any, Any]] = {}
        # A key for each scope that is open: the same object may be entered several times.
        self._scopes: list[object] = []

    def __enter__(self) -> "StopSignals":
        self._enter(object())
        return self

    def __exit__(self, *failure: object) -> None:
        self._leave(self._scopes[-1])

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Notes signals in the body. The handlers are restored even if Ctrl-C breaks off its end.

        ``undo_on_exit`` repeats the restoring at the end of the run in that case.
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
        """Ends a scope; a call that was broken off may be repeated."""
        if self._scopes == [scope]:
            ignored_by_workers.pop(self, None)
            for number in tuple(self._replaced):
                found, own = self._replaced[number]
                # A handler that other code has set in the meantime stays.
                if signal_handler(number) == own:
                    replace_signal_handler(number, found)
                del self._replaced[number]
        self._scopes = [each for each in self._scopes if each is not scope]

    def forget(self) -> None:
        """Forgets the signal that was received, at the start of a new run."""
        self.received = None

    def mark_complete(self) -> None:
        """Ends the grace: the request is fulfilled, and further signals call their old handler."""
        self._grace_ends_at = -math.inf

    def _handle(self, number: int, frame: FrameType | None) -> None:
        found, _ = self._replaced.get(number, (None, None))
        if self.received is None:
            # In this order, because another signal may come between the two lines: it has to find
            # the end of the grace when it finds that a signal was received.
            self._grace_ends_at = self._clock() + self._grace_seconds
            self.received = self._names[number]
            if hasattr(signal, "SIGCHLD"):
                self._silence_torch(signal.SIGCHLD)
            if isinstance(getattr(found, "__self__", None), StopSignals):
                found(number, frame)  # of an outer trainer, whose run is to end too
        elif self._clock() >= self._grace_ends_at:
            if callable(found):
                found(number, frame)
            elif found == signal.SIG_DFL:
                # The default action cannot be called: the signal is sent again.
                replace_signal_handler(number, found)
                signal.raise_signal(number)

    def _silence_torch(self, number: int) -> None:
        """Keeps torch's handler of SIGCHLD from raising that a loader worker has died.

        The signal may have ended the worker. Torch would raise in any line that the main thread
        happens to execute, and break off the step before the save. The loader raises as well when
        it waits for a batch of that worker, and that error is handled.
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
        found = signal_handler(number)
        if found is not None:
            self._replaced[number] = found, handler
            replace_signal_handler(number, handler)


def is_death_of_worker(error: BaseException) -> bool:
    """Returns whether ``error`` was raised because a worker of a ``DataLoader`` has died.

    Either torch has noticed the death and says so, or the connection to the worker broke while
    torch fetched a batch, which raises an OSError or EOFError within ``multiprocessing``.
    """
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker (pid")
    frames = walk_tb(error.__traceback__)
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in frames]
    if not isinstance(error, OSError | EOFError) or _LOADER_MODULE not in modules:
        return False
    within = modules[modules.index(_LOADER_MODULE) :]
    return any(each.startswith("multiprocessing.") for each in within)
