"""Measurements that share one high-water mark, each exact from its start to its stop."""

import os
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from threading import RLock
from typing import Any
from typing import Concatenate
from typing import Generic
from typing import ParamSpec
from typing import TypeVar
from weakref import WeakSet

from ignite_hooks.memory.mark import Mark
from ignite_hooks.memory.mark import Reading
from ignite_hooks.memory.sampled import Sampling

__all__ = ["Measurement", "PeakLedger"]

Self = TypeVar("Self", bound="PeakLedger[Any]")
Params = ParamSpec("Params")
Result = TypeVar("Result")


class Measurement(Generic[Reading]):
    """The peak of a mark from ``start()`` to ``stop()``; others may measure at the same time.

    Args:
        ledger: the owner of the mark.
        every: seconds between samples, for a mark that has to be sampled.

    Attributes:
        peak: the peak when the ledger last updated it.
    """

    def __init__(self, ledger: "PeakLedger[Reading]", every: float) -> None:
        self.ledger = ledger
        self.every = every
        self.peak = ledger.zero

    @property
    def is_running(self) -> bool:
        """True from ``start()`` to ``stop()``."""
        return self in self.ledger.running

    def start(self) -> None:
        """Starts measuring with an empty peak; does nothing while running."""
        self.ledger.begin(self, self.ledger.zero)

    def resume(self) -> None:
        """Continues measuring after a stop, with the peak so far; does nothing while running."""
        self.ledger.begin(self, self.peak)

    def stop(self) -> None:
        """Stops measuring and keeps the peak; does nothing while not running."""
        self.ledger.end(self)

    def abandon(self) -> None:
        """Stops measuring without waiting for a lock; for finalizers."""
        self.ledger.end_without_waiting(self)

    def reset(self) -> None:
        """Forgets the peak; a running measurement starts from scratch."""
        self.ledger.restart(self)

    def result(self) -> Reading:
        """Returns the peak so far; after a stop, the peak until then."""
        return self.ledger.peak_of(self) if self in self.ledger.running else self.peak

    @contextmanager
    def held_open(self) -> Iterator[None]:
        """Keeps the mark open for the body, so that starting and stopping in it costs less."""
        self.ledger.hold_open(self.every)
        try:
            yield
        finally:
            self.ledger.release(self.every)


def _exclusive(
    method: Callable[Concatenate[Self, Params], Result],
) -> Callable[Concatenate[Self, Params], Result]:
    """Decorates a method of a ledger: one thread at a time, and the mark stays open meanwhile.

    A finalizer may end the last measurement within the method. The mark is closed only when the
    outermost call of such a method returns.
    """

    @wraps(method)
    def exclusive(ledger: Self, /, *args: Params.args, **kwargs: Params.kwargs) -> Result:
        with ledger._lock:
            ledger._calls += 1
            try:
                return method(ledger, *args, **kwargs)
            finally:
                ledger._calls -= 1
                # Skipped for a mark that is held open and not sampled, where a start must be quick.
                if ledger._is_sampled or not ledger._holders:
                    ledger._close_or_sample()

    return exclusive


class PeakLedger(Generic[Reading]):
    """The only owner of a mark, which several measurements share.

    Starting a measurement resets the mark. Before that, and whenever the mark is read, all running
    measurements take its value into their peaks. So the peak of a measurement is never below the
    peak of another within it. If other code reset the mark, measurements would lose earlier peaks.

    The mark is open while a measurement runs or holds it open. A forked child inherits the
    measurements of its parent; in the child they start from scratch, with the child's own mark.

    Args:
        mark: the mark.
        is_sampled: whether the mark loses values between two readings, and so must be read
            regularly, in a thread.

    Attributes:
        running: the measurements from ``start()`` to ``stop()``.
    """

    def __init__(self, mark: Mark[Reading], *, is_sampled: bool = False) -> None:
        self.zero = mark.zero
        self.running: list[Measurement[Reading]] = []
        self._mark = mark
        self._is_sampled = is_sampled
        self._is_open = False
        self._calls = 0
        self._sampling: Sampling | None = None
        self._holders: list[float] = []  # the seconds between samples, of each that holds it open
        self._abandoned: list[Measurement[Reading]] = []
        # Re-entrant: a signal handler or a finalizer may run at any line, and use the ledger.
        self._lock = RLock()
        _ledgers.add(self)

    @_exclusive
    def begin(self, measurement: Measurement[Reading], peak: Reading) -> None:
        """Starts a measurement that is not running, with ``peak`` as its peak so far."""
        if measurement not in self.running:
            # The reset below would lose the peaks of running measurements.
            if self.running or self._abandoned:
                self._update_peaks()
            if self._is_sampled or not self._is_open:
                self._open(measurement.every)
            self._mark.reset()
            measurement.peak = peak
            self.running.append(measurement)

    @_exclusive
    def end(self, measurement: Measurement[Reading]) -> None:
        """Stops a measurement."""
        if measurement in self.running:
            try:
                self._update_peaks()
            finally:  # stopped even if the mark cannot be read
                self._remove(measurement)

    def end_without_waiting(self, measurement: Measurement[Reading]) -> None:
        """Stops a measurement now or, if the ledger is locked, when the ledger is used next.

        A garbage collection may call this at any line of any thread, also of the thread that holds
        the lock.
        """
        if measurement in self.running:
            self._abandoned.append(measurement)
            self._call_unless_locked(self._remove_abandoned)

    @_exclusive
    def restart(self, measurement: Measurement[Reading]) -> None:
        """Forgets the peak of a measurement; a running one starts from scratch."""
        if measurement in self.running:
            self._update_peaks()
            self._mark.reset()
        measurement.peak = self.zero

    @_exclusive
    def peak_of(self, measurement: Measurement[Reading]) -> Reading:
        """Returns the peak of a measurement so far."""
        if measurement in self.running:
            self._update_peaks()
        return measurement.peak

    @_exclusive
    def hold_open(self, every: float) -> None:
        """Keeps the mark open until ``release``, and sampled at least every ``every`` seconds."""
        self._open(every)
        self._holders.append(every)

    @_exclusive
    def release(self, every: float) -> None:
        """Ends a ``hold_open``; closes the mark if nothing else needs it."""
        self._holders.remove(every)

    def reset_in_child(self) -> None:
        """Resets the ledger in a forked child, where files, lock and thread are the parent's."""
        self._lock = RLock()
        self._calls = 0
        self._sampling = None
        if self._is_open:
            # The inherited files read the mark of the parent.
            self._is_open = False
            self._mark.close()
        for measurement in self.running:
            measurement.peak = self.zero

    def _update_unless_locked(self) -> None:
        self._call_unless_locked(self._update_peaks)

    def _call_unless_locked(self, method: Callable[[], None]) -> None:
        # The holder of the lock updates the peaks itself. Or it is stopping the sampling thread and
        # waits for it, so that this thread would wait for the lock forever.
        if self._lock.acquire(blocking=False):
            try:
                self._call_exclusively(method)
            finally:
                self._lock.release()

    @_exclusive
    def _call_exclusively(self, method: Callable[[], None]) -> None:
        method()

    def _update_peaks(self) -> None:
        """Takes the value of the mark into the peaks of all running measurements."""
        if self._abandoned:
            self._remove_abandoned()
        if self.running:
            if not self._is_open:  # a child that was forked since, with inherited measurements
                self._open()
            reading, higher = self._mark.read(), self._mark.higher
            for measurement in tuple(self.running):
                measurement.peak = higher(measurement.peak, reading)

    def _remove_abandoned(self) -> None:
        while self._abandoned:  # not a `for`: other threads may add to the list meanwhile
            self._remove(self._abandoned.pop())

    def _remove(self, measurement: Measurement[Reading]) -> None:
        if measurement in self.running:
            self.running.remove(measurement)

    def _open(self, *every: float) -> None:
        if not self._is_open:
            try:
                self._mark.open()
            except BaseException:
                self._mark.close()
                raise
            self._is_open = True
        if self._is_sampled:
            self._sample_at_least_every(*every)

    def _close_or_sample(self) -> None:
        """Closes the mark if nothing needs it; otherwise adapts the interval of the samples."""
        if self._calls:  # left to the outermost call
            return
        if not (self._holders or self.running):
            sampling, self._sampling = self._sampling, None
            if sampling is not None:
                sampling.stop()
            if self._is_open:
                self._is_open = False
                self._mark.close()
        elif self._is_sampled:
            self._sample_at_least_every()

    def _sample_at_least_every(self, *also: float) -> None:
        """Samples at the shortest interval, in seconds, that anything needs, ``also`` included."""
        every = min([*(measurement.every for measurement in self.running), *self._holders, *also])
        if self._sampling is None or self._sampling.every != every:
            # The new thread is stored before it starts: a finalizer or signal handler that comes
            # here meanwhile stops it, and a stopped Sampling never starts.
            sampling = Sampling(self._update_unless_locked, every)
            former, self._sampling = self._sampling, sampling
            if former is not None:
                former.stop()
            sampling.start()


_ledgers: WeakSet[PeakLedger[Any]] = WeakSet()


def _reset_in_child() -> None:
    for ledger in _ledgers:
        ledger.reset_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_in_child)
