"""Reports a failure of one rank to the other ranks, so that they do not wait for the failed rank.

A rank that fails writes its failure to the store of the default process group. On each rank a
*watcher* thread polls the store, even while the main thread is blocked. If the watcher finds a
failure of another rank, it sends the main thread a signal, and the handler of the signal raises an
error. If an optimizer step is in progress, the run holds the signal back until the step is
complete.

A signal cannot interrupt a collective. If the main thread is blocked in a collective of NCCL, the
watcher aborts the collective. A collective of gloo cannot be aborted, so the watcher ends the
process. With ``on_peer_failure="wait"`` the process waits for the timeout of the collective
instead.

A handler can start a run of another trainer. A run is *outermost* if it was not started in this
way. A run is being *unwound* while an error propagates out of it.
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
from ignite_hooks.core.held_signals import is_signal_held
from ignite_hooks.core.held_signals import replace_signal_handler
from ignite_hooks.core.held_signals import signal_handler
from ignite_hooks.core.scopes import add_note
from ignite_hooks.core.warn_once import warn_once
from ignite_hooks.processes.rank_failure import RankFailure
from ignite_hooks.processes.rank_failure import is_collective_failure
from ignite_hooks.processes.rank_failure import user_line_of_thread
from ignite_hooks.processes.stalled_ranks import StalledRanks
from ignite_hooks.processes.store_connection import StoreConnection
from ignite_hooks.processes.store_connection import StoreGone
from ignite_hooks.processes.store_connection import store_of_default_group
from ignite_hooks.processes.watched_run import OnPeerFailure
from ignite_hooks.processes.watched_run import WatchedRun

__all__ = ["PeerWatch", "TimeLimits"]

# SIGURG is ignored by default. So a signal that arrives after the run, when the handler has been
# removed, does no harm.
_SIGNAL: Any = getattr(signal, "SIGURG", None)  # None on Windows
_LOGGER = getLogger(__name__)
_NO_REPORT = "No other rank has reported a failure: a process may have been killed."
_STORE_GONE = (
    "The store of the process group cannot be reached: rank 0, or the launcher, has ended."
)


class TimeLimits(NamedTuple):
    """The time limits of a ``PeerWatch``, in seconds.

    Args:
        poll: the time between two polls of the store. (``Store.wait`` would be quicker, but torch
            prints a warning each time the wait ends without a result.)
        same_failure: the time from reading a failure of another rank until the main thread is
            interrupted. In this time the main thread may fail by itself, in the same way.
        unblocking: the time from the interruption until the main thread must have raised an error.
            After this time the main thread counts as blocked.
        unwinding: the time from the error in the main thread until the run must have ended. If an
            optimizer step holds the signal back, the watcher waits at most this time for the step.
        acknowledgement: the longest time that a rank waits for the other ranks at the end of a run:
            after a failure until the others have read the failure, otherwise until they have ended
            the run too. The others still use the store, which may end with the process of the rank.
        other_failures: the longest time to wait for each rank to report its failure. This wait
            comes at the beginning of the run that follows a failed run.
        place_check: the time between two checks of the place of the main thread: its position in
            the run and its line of code.
        stalled: the time without progress after which a warning says that ranks wait at different
            places.
        store_call: the longest time that one call of the store may take.
    """

    poll: float = 0.2
    same_failure: float = 0.5
    unblocking: float = 1.0
    unwinding: float = 30.0
    acknowledgement: float = 1.0
    other_failures: float = 5.0
    place_check: float = 5.0
    stalled: float = 30.0
    store_call: float = 10.0


time_limits = TimeLimits()


class PeerWatch:
    """The failures of this rank and of the other ranks of a process group.

    Failures are grouped into generations, which are numbered from 0. A generation has at most one
    failure of each rank. If the caller of a failed run catches the error, the next failure belongs
    to the next generation.

    Keys in the store:

    - ``<generation>/first`` is the failure that was reported first.
    - ``<generation>/<rank>`` is the failure of a rank.
    - ``<generation>/heard/<rank>`` is set when a rank has read the first failure.
    - ``ended/<rank>`` is the number of the last outermost run that a rank has ended.

    Args:
        group_store: the store of the default process group.

    Attributes:
        runs: the runs that this process is in, beginning with the outermost run.
        is_failing: whether a run is being unwound after a failure.
        current: the watch of the present default process group, or None.
    """

    current: "PeerWatch | None" = None

    def __init__(self, group_store: Store) -> None:
        self.group_store = group_store
        self.store = StoreConnection(group_store, timedelta(seconds=time_limits.store_call))
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.runs: list[WatchedRun] = []
        self.is_failing = False
        self._run_number = 0  # counts the outermost runs that this rank has begun
        self._generation = 0
        # The main thread and the watcher thread hold this lock while they use the generation or its
        # failures.
        self._lock = threading.RLock()
        # The failure of this rank in the present generation, and the run that failed.
        self._own_failure: RankFailure | None = None
        self._own_run: WatchedRun | None = None
        # The first failure of the present generation, if another rank reported it; otherwise None.
        self._peer_failure: RankFailure | None = None
        self._watcher: _Watcher | None = None

    @classmethod
    def of_default_group(cls) -> "PeerWatch | None":
        """Returns the watch of the default process group; None if ranks cannot report failures.

        All runs of a process group share one watch, because they share the generations.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return None  # for example on a TPU
        group_store = store_of_default_group()
        if cls.current is None or cls.current.group_store is not group_store:
            try:
                cls.current = cls(group_store)
            except NotImplementedError as error:
                cls.current = None
                warn_once(
                    f"a failure of one rank is not reported to the other ranks: {error}. The other "
                    "ranks then wait until the timeout of their collective: use "
                    "init_method='env://', or a newer torch"
                )
        return cls.current

    def enter(self, run: WatchedRun) -> None:
        """Begins a run. The beginning of an outermost run also starts the watcher.

        Raises:
            RuntimeError: a rank failed in an earlier run, and not all ranks failed in the same way.
        """
        # If Ctrl-C has interrupted `leave`, its run and its watcher are still there.
        self.runs = [each for each in self.runs if is_running(each.trainer)]
        if not self.runs:
            self._stop()
            self._run_number += 1
        self._skip_common_failures()
        self.is_failing = False
        self.runs = [*self.runs, run]
        if self._watcher is None:
            self._watcher = _Watcher(self, run.on_peer_failure)

    def leave(self, run: WatchedRun) -> None:
        """Ends a run. The end of the outermost run also ends the watcher."""
        if self.runs[:1] != [run]:  # not the outermost run
            self.runs = [each for each in self.runs if each is not run]
            self.is_failing = False  # a handler of the outer run may catch the failure
            return
        if self._watcher is not None:
            self._watcher.close()
        try:
            with suppress(StoreGone):
                if self.is_failing:
                    # The store may end with this process, so the other ranks must read the failure
                    # first.
                    self._wait_for_others(self._has_acknowledged)
        finally:
            self.runs = []
            self._stop()
        with suppress(StoreGone):
            self.store.post(f"ended/{self.rank}", str(self._run_number))
            # The watchers of the other ranks need the store until their runs end.
            if self._may_hold_store and not self.is_failing:
                self._wait_for_others(self._has_ended)

    @property
    def _may_hold_store(self) -> bool:
        """Returns whether the store may end with this process.

        With ``init_method="env://"`` either rank 0 or the launcher holds the store. torchrun sets
        ``TORCHELASTIC_USE_AGENT_STORE`` to "True" if the launcher holds it.
        """
        return self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"

    def _stop(self) -> None:
        """Ends the watcher thread, if there is one."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher = None

    def report(self, error: BaseException, run: WatchedRun) -> RankFailure | None:
        """Reports a failure of this rank.

        Args:
            error: the failure. Only the first error of a failing run is reported, not the errors
                that follow while the run is unwound.
            run: the run that failed.

        Returns:
            The failure that was reported first, if another rank has reported it; None otherwise.
        """
        # The flag is set first, so that no failure of another rank interrupts this rank.
        self.is_failing = True
        with suppress(StoreGone), self._lock:
            is_reported = self._own_failure is not None and self._own_run in self.runs
            if not is_reported:
                # If an earlier run has failed, its caller has caught the error, so a new generation
                # begins.
                if self._own_failure is not None:
                    self._begin_generation()
                self._write_failure(error, run)
            self._read_first()
        if self._watcher is not None:
            self._watcher.answer()
        return self._peer_failure

    def _write_failure(self, error: BaseException, run: WatchedRun) -> None:
        """Writes a failure of this rank to the store."""
        is_own = not (self._is_raised_by_watcher(error) or is_collective_failure(error))
        self._own_run = run
        self._own_failure = RankFailure.of(
            error, self.rank, run.place, run_number=self._run_number, is_own=is_own
        )
        self.store.put(f"{self._generation}/{self.rank}", self._own_failure.encode())
        self.store.put_if_empty(self._first_key, self._own_failure.encode())

    def explain(self, error: BaseException, peer_failure: RankFailure | None) -> None:
        """Adds a note about the failure of another rank to an error of this rank.

        Args:
            error: the error of this rank.
            peer_failure: the failure that was reported first, if another rank has reported it;
                None otherwise.

        Raises:
            RuntimeError: the error of this rank comes from a collective, and another rank has
                failed. The new error has the text of the other rank's failure, and ``error`` as its
                cause.
        """
        if self._is_raised_by_watcher(error):
            return  # the text of this error already describes the failure of the other rank
        if peer_failure is None:
            if is_collective_failure(error):
                add_note(error, _STORE_GONE if self.store.is_gone else _NO_REPORT)
        elif is_collective_failure(error):
            raise RuntimeError(str(peer_failure)) from error
        elif self._own_failure is not None and not peer_failure.is_like(self._own_failure):
            add_note(error, f"Before that, {peer_failure}")

    def _is_raised_by_watcher(self, error: BaseException) -> bool:
        return self._watcher is not None and error is self._watcher.raised

    def find_new_failure(self) -> RankFailure | None:
        """Returns the first failure of the generation, if another rank has reported it.

        Returns None if no other rank has failed, or if the failure is known already.
        """
        with self._lock:
            # If the failed run of this rank is over, another rank may already have failed in the
            # next generation.
            is_over = self._own_failure is not None and self._own_run not in self.runs
            if is_over and self.store.find(f"{self._generation + 1}/first"):
                self._begin_generation()
            if self._peer_failure is not None:
                return None
            self._read_first()
            return self._peer_failure

    @property
    def _first_key(self) -> str:
        return f"{self._generation}/first"

    def _read_first(self) -> None:
        """Reads and acknowledges the first failure of the generation.

        A failure of another rank is kept as ``_peer_failure``.
        """
        text = "" if self._peer_failure is not None else self.store.find(self._first_key)
        if text:
            failure = RankFailure.decode(text)
            self.store.put(f"{self._generation}/heard/{self.rank}", "1")
            if failure.rank != self.rank:
                self._peer_failure = failure

    def _begin_generation(self) -> None:
        self._generation += 1
        self._own_failure = self._peer_failure = None

    def _skip_common_failures(self) -> None:
        """Skips the generations in which all ranks failed in the same way.

        Another rank may already have failed in the run that this rank is about to begin. That
        failure is left to the watcher, because this rank may still fail in the same way, for
        example if ``max_epochs`` is invalid on all ranks.

        Raises:
            RuntimeError: a rank failed in an earlier run, and not all ranks failed in the same way.
        """
        with self._lock:
            try:
                while text := self.store.find(self._first_key):
                    first = RankFailure.decode(text)
                    if self._own_failure is None and first.run_number == self._run_number:
                        return
                    if not self._have_all_failed_alike():
                        raise _restart_error(first)
                    self._begin_generation()
            except StoreGone:
                # Without the store, this rank cannot know whether all ranks failed in the same way.
                if self._own_failure is not None:
                    raise _restart_error(self._peer_failure or self._own_failure) from None

    def _have_all_failed_alike(self) -> bool:
        own = self._own_failure
        failures = () if own is None else map(self._wait_for_failure, range(self.size))
        return own is not None and all(each is not None and own.is_like(each) for each in failures)

    def _wait_for_failure(self, rank: int) -> RankFailure | None:
        """Waits for a rank to report its failure, and returns the failure.

        Returns None if the rank has reported no failure within the time limit.
        """
        for _ in _poll_until(time.monotonic() + time_limits.other_failures):
            text = self.store.find(f"{self._generation}/{rank}")
            if text:
                return RankFailure.decode(text)
        return None

    def _has_acknowledged(self, rank: int) -> bool:
        """Returns whether a rank has read the failure of this run, or has ended this run."""
        return bool(self.store.find(f"{self._generation}/heard/{rank}")) or self._has_ended(rank)

    def _has_ended(self, rank: int) -> bool:
        """Returns whether a rank has ended this run. The rank may be in the next run already."""
        return int(self.store.find(f"ended/{rank}") or 0) >= self._run_number

    def _wait_for_others(self, is_done: Callable[[int], bool]) -> None:
        """Waits for all other ranks, at most for the time limit ``acknowledgement``.

        Args:
            is_done: takes a rank, and returns whether the wait for this rank is over.
        """
        others = [rank for rank in range(self.size) if rank != self.rank]
        for _ in _poll_until(time.monotonic() + time_limits.acknowledgement):
            others = [rank for rank in others if not is_done(rank)]
            if not others:
                return


class _Watcher:
    """A thread that polls the store for failures of other ranks during a run.

    Args:
        peers: the object that reads and writes failures in the store.
        on_peer_failure: "exit" or "wait", as in ``WatchedRun``.

    Attributes:
        raised: the error that the main thread has raised because another rank failed, or None.
    """

    def __init__(self, peers: PeerWatch, on_peer_failure: OnPeerFailure) -> None:
        self._peers, self._limits = peers, time_limits
        self._on_peer_failure = on_peer_failure
        self.raised: RuntimeError | None = None
        self._to_raise: RankFailure | None = None  # the failure that the signal handler will raise
        self._is_open = True  # whether the main thread may be interrupted
        # `_ended` is set to end this thread. `_answered` is set when the main thread has raised an
        # error, and therefore needs no interruption.
        self._ended, self._answered = threading.Event(), threading.Event()
        self._stalled = StalledRanks(peers.store, peers.rank, peers.size, time_limits.stalled)
        self._next_place_check = 0.0
        self._main_thread = threading.get_ident()
        self._former_handler = self._install()
        self._thread = threading.Thread(target=self._watch, name="ignite_hooks peers", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Prevents interruptions of the main thread from now on."""
        self._is_open = False

    def stop(self) -> None:
        """Ends the thread, and restores the former signal handler."""
        self.close()
        self._ended.set()
        self._answered.set()
        self._thread.join(self._limits.store_call)
        if self._former_handler is not None:
            # If the user has set another handler in the meantime, it is left in place.
            if signal_handler(_SIGNAL) == self._handle:
                replace_signal_handler(_SIGNAL, self._former_handler)
            self._former_handler = None

    def answer(self) -> None:
        """Notes that the main thread has raised an error, so that no signal is sent to it."""
        self._answered.set()

    def _install(self) -> Any:
        """Installs the signal handler.

        Python runs signal handlers only in the main thread. So a run in another thread cannot be
        interrupted, and counts as blocked when another rank fails.

        Returns:
            The former handler; None if no handler can be installed.
        """
        if _SIGNAL is None or threading.current_thread() is not threading.main_thread():
            return None
        # `signal.signal` returns None if the former handler was not installed from Python.
        return signal.signal(_SIGNAL, self._handle) or signal.SIG_DFL

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Raises an error with the failure of another rank.

        Does nothing if this rank is failing already. If the signal does not come from the watcher,
        calls the former handler.
        """
        failure = self._to_raise
        if failure is None:
            if callable(self._former_handler):
                self._former_handler(number, frame)
        elif self._is_open and not self._peers.is_failing:
            self._to_raise = None
            self.raised = RuntimeError(str(failure))
            self._answered.set()
            raise self.raised

    def _watch(self) -> None:
        """Polls the store until the run ends. The thread runs this function."""
        try:
            self._stalled.begin()
            while not self._ended.wait(self._limits.poll):
                failure = self._peers.find_new_failure()
                if failure is not None:
                    self._end_run(failure)
                self._check_places()
        except StoreGone:
            # Rank 0 or the launcher has ended, so no failure can be read any more. If rank 0 ended
            # too early, the next collective of this rank raises an error.
            return

    def _end_run(self, failure: RankFailure) -> None:
        """Makes the main thread raise the failure of another rank, or ends the process."""
        self._answered.clear()  # an earlier failure may have set the event
        is_answered = self._peers.is_failing or not self._is_open
        if is_answered or self._answered.wait(self._limits.same_failure):
            return
        self._interrupt(failure)
        is_answered = self._answered.wait(self._limits.unblocking) or self._wait_for_step()
        if not (is_answered or self._abort_groups()):
            if self._on_peer_failure == "wait":
                _LOGGER.warning("%s. This rank waits for the timeout of its collective.", failure)
                return
            _end_process(failure, "is blocked, for example in a collective")
        # If the main thread has failed by itself (`raised` is None), there is no time limit.
        is_unwound = self.raised is None or self._ended.wait(self._limits.unwinding)
        if not is_unwound and self._on_peer_failure == "exit":
            _end_process(failure, f"did not leave run() within {self._limits.unwinding:g} s")

    def _interrupt(self, failure: RankFailure) -> None:
        self._to_raise = failure
        if self._former_handler is not None:
            # Unlike `interrupt_main`, a real signal also ends a sleep or a wait for data.
            signal.pthread_kill(self._main_thread, _SIGNAL)

    def _wait_for_step(self) -> bool:
        """Waits for the main thread if an optimizer step holds the signal back.

        Returns:
            Whether the main thread has raised an error within the time limit.
        """
        return is_signal_held(_SIGNAL) and self._answered.wait(self._limits.unwinding)

    def _abort_groups(self) -> bool:
        """Aborts the collectives of NCCL. Collectives of gloo cannot be aborted.

        Returns:
            Whether the main thread has raised an error as a result.
        """
        abort = getattr(distributed_c10d, "_abort_process_group", None)  # from torch 2.6 on
        if abort is None or "nccl" not in distributed.get_backend():
            return False
        with suppress(Exception):
            abort()
        return self._answered.wait(self._limits.unblocking)

    def _check_places(self) -> None:
        """Warns if ranks wait for each other at different places."""
        now = time.monotonic()
        if now < self._next_place_check:
            return
        self._next_place_check = now + self._limits.place_check
        runs = self._peers.runs
        if runs:
            line = user_line_of_thread(self._main_thread)
            warning = self._stalled.check(runs[-1].place, line, now)
            if warning is not None:
                _LOGGER.warning(warning)


def _restart_error(first: RankFailure) -> RuntimeError:
    """Returns the error of a rank that calls ``run()`` while other ranks are at another place.

    Args:
        first: the failure that was reported first.
    """
    return RuntimeError(
        f"all ranks must be at the same place when they call run(), but {first}, and other ranks "
        "did not fail in the same way: end all processes and start them again, with `resume_from` "
        "to continue from a checkpoint"
    )


def _poll_until(end: float) -> Iterator[None]:
    """Yields at once, and then every 20 ms until ``time.monotonic()`` reaches ``end``."""
    yield None
    while time.monotonic() < end:
        time.sleep(0.02)
        yield None


def _end_process(failure: RankFailure, why: str) -> None:
    """Ends this process at once with exit code 1, from the watcher thread.

    Args:
        failure: the failure of another rank.
        why: the reason, as the verb phrase that follows "This process" in the message.
    """
    print(
        f"{failure}\nThis process {why}, and is ended with exit code 1. "
        'With on_peer_failure="wait" it waits for the timeout of its collective.',
        file=sys.stderr,
    )
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    # `os._exit` runs no exit handlers, so loader workers would outlive this process.
    for child in multiprocessing.active_children():
        if child.daemon:
            child.terminate()
    os._exit(1)
