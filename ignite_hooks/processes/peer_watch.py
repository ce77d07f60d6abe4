"""Failures of one rank are told to the others, which would wait for it in their next collective.

The rank that fails writes to the store of the default process group. On each other rank a thread
looks there, also while the main thread is blocked, and has the main thread raise what was told:
by a signal, which a run holds back until an optimizer step is complete. A main thread that is
blocked in a collective of gloo cannot be freed. Its process is ended, unless it is to wait.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from logging import getLogger
from types import FrameType
from typing import Any
from typing import NamedTuple

from torch import distributed
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import Store

from ignite_hooks.core.engine import is_running
from ignite_hooks.core.held_signals import handler_of
from ignite_hooks.core.held_signals import is_held_back
from ignite_hooks.core.held_signals import replace_handler
from ignite_hooks.core.scopes import note
from ignite_hooks.core.warn_once import warn_once
from ignite_hooks.processes.stalled_ranks import StalledRanks
from ignite_hooks.processes.store_connection import StoreConnection
from ignite_hooks.processes.store_connection import StoreGone
from ignite_hooks.processes.store_connection import store_of_default_group
from ignite_hooks.processes.told_failure import ToldFailure
from ignite_hooks.processes.told_failure import is_of_collective
from ignite_hooks.processes.told_failure import line_of_thread
from ignite_hooks.processes.watched_run import OnPeerFailure
from ignite_hooks.processes.watched_run import WatchedRun

__all__ = ["Patience", "Ranks"]

# Ignored unless someone handles it, so that one which comes too late ends no process.
_SIGNAL: Any = getattr(signal, "SIGURG", None)  # None on Windows
_LOGGER = getLogger(__name__)
_NOTHING_TOLD = "No other rank has told of a failure: a process may have been killed."
_STORE_GONE = "The store of the process group has gone: rank 0, or the launcher, has ended."


class Patience(NamedTuple):
    """Time limits, in seconds.

    Args:
        check: between two looks into the store. (A ``wait`` of the store would be quicker, but
            torch prints a warning each time that one ends without result.)
        same_failure: for a rank that was told to come to the same failure itself.
        unblocking: for the main thread to raise what was told.
        unwinding: for the run to end then, or for an optimizer step to be complete before.
        hearing: for the others to have read a failure, or to have ended their run too, before the
            process that holds the store may end.
        records: for all ranks to tell how the run before ended.
        look: between two looks at the place of the main thread.
        stalled: for ranks that stand at different places, before a warning.
        call: for one call of the store.
    """

    check: float = 0.2
    same_failure: float = 0.5
    unblocking: float = 1.0
    unwinding: float = 30.0
    hearing: float = 1.0
    records: float = 5.0
    look: float = 5.0
    stalled: float = 30.0
    call: float = 10.0


patience = Patience()


class Ranks:
    """What this process knows of the others, from one process group.

    Failures have a generation, which begins with 0. After a failure that a caller of a run has
    caught, ranks go on with the next one: a run that fails within a handler of another run, or a
    run that all ranks begin again.

    Keys in the store: ``<generation>/first`` is the failure that came first,
    ``<generation>/<rank>`` that of each rank, ``<generation>/heard/<rank>`` says that a rank has
    read the first one, and ``ended/<rank>`` is the number of the last run that a rank has ended.

    Attributes:
        runs: the runs that this process is in, the outermost one first.
        is_failing: whether a run is being unwound after a failure.
    """

    present: "Ranks | None" = None

    def __init__(self, group_store: Store) -> None:
        self.group_store = group_store
        self.store = StoreConnection(group_store, timedelta(seconds=patience.call))
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.runs: list[WatchedRun] = []
        self.is_failing = False
        self._run_number = 0  # the outermost runs that this rank has begun
        self._generation = 0
        self._lock = threading.RLock()  # for what changes with the generation
        self._own: ToldFailure | None = None
        self._own_run: WatchedRun | None = None
        self._told: ToldFailure | None = None  # by another rank
        self._watcher: _Watcher | None = None

    @classmethod
    def of_process(cls) -> "Ranks | None":
        """Returns the one of the present process group; None if ranks cannot tell each other."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return None  # on a TPU, say
        group_store = store_of_default_group()
        if cls.present is None or cls.present.group_store is not group_store:
            try:
                cls.present = cls(group_store)
            except NotImplementedError as error:
                cls.present = None
                warn_once(
                    f"a failure of one rank is not told to the others: {error}. They wait until "
                    "the timeout of their collective: use init_method='env://', or a newer torch"
                )
        return cls.present

    def enter(self, run: WatchedRun) -> None:
        """Begins to watch the other ranks, unless an outer run does so.

        Raises:
            RuntimeError: a rank has failed before, and not all have failed alike.
        """
        self.runs = [each for each in self.runs if is_running(each.trainer)]
        if not self.runs:
            self._stop()  # if Ctrl-C kept the run before from doing so
            self._run_number += 1
        self._settle()
        self.is_failing = False
        self.runs = [*self.runs, run]
        if self._watcher is None:
            self._watcher = _Watcher(self, run.on_peer_failure)

    def leave(self, run: WatchedRun) -> None:
        """Ends the watching with the outermost run."""
        if self.runs[:1] != [run]:
            self.runs = [each for each in self.runs if each is not run]
            self.is_failing = False  # a handler of the outer run may catch the failure
            return
        if self._watcher is not None:
            self._watcher.close()
        try:
            with suppress(StoreGone):
                if self.is_failing:
                    # This process may hold the store, and end.
                    self._wait_for_others(self._has_heard)
        finally:
            self.runs = []
            self._stop()
        with suppress(StoreGone):
            self.store.post(f"ended/{self.rank}", str(self._run_number))
            if self._may_hold_store and not self.is_failing:
                self._wait_for_others(self._has_ended)

    @property
    def _may_hold_store(self) -> bool:
        """Whether the others lose the store when this process ends; torch prints what they meet."""
        return self.rank == 0 and not os.environ.get("TORCHELASTIC_USE_AGENT_STORE")

    def _stop(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher = None

    def tell(self, error: BaseException, run: WatchedRun) -> ToldFailure | None:
        """Tells a failure of this rank; returns the first failure, if another rank has told it."""
        self.is_failing = True  # first: from now on nothing that is told interrupts this rank
        with suppress(StoreGone), self._lock:
            is_on_its_way = self._own is not None and self._own_run in self.runs
            if not is_on_its_way:
                if self._own is not None:
                    self._begin_generation()
                self._tell_first(error, run)
            self._read_first()
        if self._watcher is not None:
            self._watcher.answer()
        return self._told

    def _tell_first(self, error: BaseException, run: WatchedRun) -> None:
        is_own = not (self._is_told(error) or is_of_collective(error))
        self._own_run = run
        self._own = ToldFailure.of(
            error, self.rank, run.place, run_number=self._run_number, is_own=is_own
        )
        self.store.put(f"{self._generation}/{self.rank}", self._own.encode())
        self.store.put_first(self._first, self._own.encode())

    def explain(self, error: BaseException, told: ToldFailure | None) -> None:
        """Says what of a failure of this rank another rank has caused.

        Raises:
            RuntimeError: what the other rank told, from ``error``: a collective that failed.
        """
        if self._is_told(error):
            return
        if told is None:
            if is_of_collective(error):
                note(error, _STORE_GONE if self.store.is_gone else _NOTHING_TOLD)
        elif is_of_collective(error):
            raise RuntimeError(str(told)) from error
        elif self._own is not None and not told.is_like(self._own):
            note(error, f"Before that, {told}")

    def _is_told(self, error: BaseException) -> bool:
        return self._watcher is not None and error is self._watcher.raised

    def look(self) -> ToldFailure | None:
        """Returns the failure of another rank, if it is news."""
        with self._lock:
            is_over = self._own is not None and self._own_run not in self.runs
            if is_over and self.store.find(f"{self._generation + 1}/first"):
                self._begin_generation()
            if self._told is not None:
                return None
            self._read_first()
            return self._told

    @property
    def _first(self) -> str:
        return f"{self._generation}/first"

    def _read_first(self) -> None:
        text = "" if self._told is not None else self.store.find(self._first)
        if text:
            failure = ToldFailure.decode(text)
            self.store.put(f"{self._generation}/heard/{self.rank}", "1")
            if failure.rank != self.rank:
                self._told = failure

    def _begin_generation(self) -> None:
        self._generation, self._own, self._told = self._generation + 1, None, None

    def _settle(self) -> None:
        """Goes on after failures that all ranks had alike.

        A failure of the run that begins here is told by the watcher, unless this rank, which is
        later, comes to the same one: a limit that is wrong on all ranks, say.

        Raises:
            RuntimeError: they have not failed alike in a run before.
        """
        with self._lock:
            try:
                while text := self.store.find(self._first):
                    first = ToldFailure.decode(text)
                    if self._own is None and first.run_number == self._run_number:
                        return
                    if not self._have_all_failed_alike():
                        raise _needs_restart(first)
                    self._begin_generation()
            except StoreGone:
                if self._own is not None:
                    raise _needs_restart(self._told or self._own) from None

    def _have_all_failed_alike(self) -> bool:
        own = self._own
        failures = () if own is None else map(self._failure_of, range(self.size))
        return own is not None and all(each is not None and own.is_like(each) for each in failures)

    def _failure_of(self, rank: int) -> ToldFailure | None:
        """Returns the failure of a rank, which may need a moment to come to it."""
        for _ in _until(time.monotonic() + patience.records):
            text = self.store.find(f"{self._generation}/{rank}")
            if text:
                return ToldFailure.decode(text)
        return None

    def _has_heard(self, rank: int) -> bool:
        """Returns whether a rank has read the failure of this run, or has ended the run too."""
        return bool(self.store.find(f"{self._generation}/heard/{rank}")) or self._has_ended(rank)

    def _has_ended(self, rank: int) -> bool:
        """Returns whether a rank has ended this run; it may be in the next one already."""
        return int(self.store.find(f"ended/{rank}") or 0) >= self._run_number

    def _wait_for_others(self, is_done: Callable[[int], bool]) -> None:
        """Waits a moment until each other rank is done."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        for _ in _until(time.monotonic() + patience.hearing):
            others = [rank for rank in others if not is_done(rank)]
            if not others:
                return


class _Watcher:
    """A thread that looks for failures of other ranks while a run goes on.

    Attributes:
        raised: what the main thread has raised because another rank failed.
    """

    def __init__(self, ranks: Ranks, on_peer_failure: OnPeerFailure) -> None:
        self._ranks, self._patience = ranks, patience
        self._on_peer_failure = on_peer_failure
        self.raised: RuntimeError | None = None
        self._to_raise: ToldFailure | None = None
        self._is_open = True
        self._ended, self._answered = threading.Event(), threading.Event()
        self._stalled = StalledRanks(ranks.store, ranks.rank, ranks.size, patience.stalled)
        self._next_look = 0.0
        self._main = threading.get_ident()
        self._handler_found = self._install()
        self._thread = threading.Thread(target=self._watch, name="ignite_hooks peers", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Keeps the main thread from being interrupted from now on."""
        self._is_open = False

    def stop(self) -> None:
        """Ends the thread."""
        self.close()
        self._ended.set()
        self._answered.set()
        self._thread.join(self._patience.call)
        if self._handler_found is not None:
            if handler_of(_SIGNAL) == self._handle:  # else someone has set another meanwhile
                replace_handler(_SIGNAL, self._handler_found)
            self._handler_found = None

    def answer(self) -> None:
        """Notes that the main thread fails, or has raised what was told."""
        self._answered.set()

    def _install(self) -> Any:
        """Handles the signal, and returns the handler that was there; None if that cannot be.

        Handlers run in the main thread alone. A run in another one is ended with its process.
        """
        if _SIGNAL is None or threading.current_thread() is not threading.main_thread():
            return None
        return signal.signal(_SIGNAL, self._handle) or signal.SIG_DFL

    def _handle(self, number: int, frame: FrameType | None) -> None:
        told = self._to_raise
        if told is None:
            if callable(self._handler_found):
                self._handler_found(number, frame)
        elif self._is_open and not self._ranks.is_failing:
            self._to_raise = None
            self.raised = RuntimeError(str(told))
            self._answered.set()
            raise self.raised

    def _watch(self) -> None:
        try:
            self._stalled.begin()
            while not self._ended.wait(self._patience.check):
                told = self._ranks.look()
                if told is not None:
                    self._end_run(told)
                self._look_at_places()
        except StoreGone:
            return  # rank 0 has ended, perhaps regularly: if not, the next collective fails

    def _end_run(self, told: ToldFailure) -> None:
        """Has the main thread raise what was told, or ends the process."""
        self._answered.clear()  # of a failure before
        is_answered = self._ranks.is_failing or not self._is_open
        if is_answered or self._answered.wait(self._patience.same_failure):
            return
        self._interrupt(told)
        is_answered = self._answered.wait(self._patience.unblocking) or self._wait_for_step()
        if not (is_answered or self._abort_groups()):
            if self._on_peer_failure == "wait":
                _LOGGER.warning("%s. This rank waits for the timeout of its collective.", told)
                return
            _end_process(told, "is blocked, in a collective say")
        is_unwound = self.raised is None or self._ended.wait(self._patience.unwinding)
        if not is_unwound and self._on_peer_failure == "exit":
            _end_process(told, f"did not leave run() within {self._patience.unwinding:g} s")

    def _interrupt(self, told: ToldFailure) -> None:
        self._to_raise = told
        if self._handler_found is not None:
            # A real signal: it ends a sleep or a wait for data too.
            signal.pthread_kill(self._main, _SIGNAL)

    def _wait_for_step(self) -> bool:
        """Waits while an optimizer step holds the signal back; returns whether it is answered."""
        return is_held_back(_SIGNAL) and self._answered.wait(self._patience.unwinding)

    def _abort_groups(self) -> bool:
        """Has collectives of NCCL fail, and returns whether the main thread has raised then.

        Those of gloo cannot be aborted.
        """
        abort = getattr(distributed_c10d, "_abort_process_group", None)  # from torch 2.6 on
        if abort is None or "nccl" not in distributed.get_backend():
            return False
        with suppress(Exception):
            abort()
        return self._answered.wait(self._patience.unblocking)

    def _look_at_places(self) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + self._patience.look
        runs = self._ranks.runs
        if runs:
            place = runs[-1].place
            warning = self._stalled.look(place, line_of_thread(self._main), now)
            if warning is not None:
                _LOGGER.warning(warning)


def _needs_restart(first: ToldFailure) -> RuntimeError:
    return RuntimeError(
        f"run() must be called by ranks that are at the same place, and {first}, while others did "
        "not fail, or not alike: end all processes and start them again; a checkpoint continues "
        "the run, with `resume_from`"
    )


def _until(end: float) -> Iterator[None]:
    """Gives None again and again, with a short pause in between, until a time has come."""
    yield None
    while time.monotonic() < end:
        time.sleep(0.02)
        yield None


def _end_process(told: ToldFailure, why: str) -> None:
    """Ends this process at once, whatever its main thread waits for."""
    print(
        f"{told}\nThis process {why}, and is ended with exit code 1. "
        'With on_peer_failure="wait" it waits for the timeout of its collective.',
        file=sys.stderr,
    )
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    for child in multiprocessing.active_children():  # loader workers, which would outlive it
        if child.daemon:
            child.terminate()
    os._exit(1)
