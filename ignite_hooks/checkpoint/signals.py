"""Signals that ask a run to end well: noted, and obeyed at the next step boundary."""

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

from ignite_hooks.core.held_signals import handler_of
from ignite_hooks.core.held_signals import replace_handler
from ignite_hooks.core.restoring import restored
from ignite_hooks.data.workers import ignored_by_workers

__all__ = ["StopSignals", "is_death_of_worker"]

_LOADER = "torch.utils.data.dataloader"


class StopSignals(AbstractContextManager["StopSignals", None]):
    """Notes the first of some signals while it is entered; one that is to end at once does so.

    A job scheduler signals every process, and a launcher passes its own signal on: several signals
    within a moment are one request. A further one does what it did before when ``grace_seconds``
    have passed since the first, or when what was asked for is done (``complete``).

    Off the main thread, where Python lets nobody handle signals, it notes nothing. A handler that
    was not set from Python cannot be put back, and is left alone.

    Args:
        names: names of signals, "SIGTERM" for instance.
        grace_seconds: the time after the first signal in which further ones are part of it.
        clock: returns a time in seconds that never goes back.
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
        self._ends_at = 0.0  # when a further signal is no longer part of the first
        # By the number of a signal: the handler that was found, and the one that is set now.
        self._replaced: dict[int, tuple[Any, Any]] = {}
        self._users: list[object] = []

    def __enter__(self) -> "StopSignals":
        self._enter(object())
        return self

    def __exit__(self, *failure: object) -> None:
        self._leave(self._users[-1])

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Notes signals in the body, and leaves none of its handlers even if it breaks off."""
        user = object()
        with restored(lambda: self._leave(user), alone=True):
            self._enter(user)
            yield

    def _enter(self, user: object) -> None:
        self._users.append(user)
        if len(self._users) > 1:
            return
        if threading.current_thread() is threading.main_thread():
            for number in self._names:
                self._replace(number, self._note)
            ignored_by_workers[self] = tuple(self._replaced)

    def _leave(self, user: object) -> None:
        if self._users == [user]:
            ignored_by_workers.pop(self, None)
            for number in tuple(self._replaced):
                found, own = self._replaced[number]
                if handler_of(number) == own:  # else someone has set another meanwhile
                    replace_handler(number, found)
                del self._replaced[number]
        self._users = [each for each in self._users if each is not user]

    def forget(self) -> None:
        """Begins without a signal."""
        self.received = None

    def complete(self) -> None:
        """Says that what a signal asked for is done: another one does what it did before."""
        self._ends_at = -math.inf

    def _note(self, number: int, frame: FrameType | None) -> None:
        found, _ = self._replaced.get(number, (None, None))
        if self.received is None:
            # In this order: another signal may come between the two lines.
            self._ends_at = self._clock() + self._grace_seconds
            self.received = self._names[number]
            if hasattr(signal, "SIGCHLD"):
                self._silence_torch(signal.SIGCHLD)
            if isinstance(getattr(found, "__self__", None), StopSignals):
                found(number, frame)  # the same signal asks both to end
        elif self._clock() >= self._ends_at:
            if callable(found):
                found(number, frame)
            elif found == signal.SIG_DFL:
                replace_handler(number, found)
                signal.raise_signal(number)

    def _silence_torch(self, number: int) -> None:
        """Has torch not raise, in whatever line the main thread is, that a worker has died.

        The signal may have ended it. Who waits for its batches is told all the same.
        """
        tell = handler_of(number)

        def handle(number: int, frame: FrameType | None) -> None:
            try:
                tell(number, frame)
            except RuntimeError as error:
                if not is_death_of_worker(error):
                    raise

        if callable(tell):
            self._replace(number, handle)

    def _replace(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        found = handler_of(number)
        if found is not None:
            self._replaced[number] = found, handler
            replace_handler(number, handler)


def is_death_of_worker(error: BaseException) -> bool:
    """Returns whether ``error`` is from a process of a loader that has died.

    Torch says so, or its connection to the worker breaks while it fetches a batch.
    """
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker (pid")
    frames = walk_tb(error.__traceback__)
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in frames]
    if not isinstance(error, OSError | EOFError) or _LOADER not in modules:
        return False
    within = modules[modules.index(_LOADER) :]
    return any(each.startswith("multiprocessing.") for each in within)
