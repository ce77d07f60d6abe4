"""Measurements of peaks that share one high-water mark.

A high-water mark, or *mark* for short, holds the highest value of a quantity, such as resident
memory, since the last reset of the mark. A process has only one mark of each kind. With
``SharedMark``, several measurements can use the mark at the same time.
"""

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

__all__ = ["Measurement", "SharedMark"]

Self = TypeVar("Self", bound="SharedMark[Any]")
Params = ParamSpec("Params")
Result = TypeVar("Result")


class Measurement(Generic[Reading]):
    """Measures the peak of a quantity, such as resident memory, from ``start()`` to ``stop()``.

    Args:
        shared_mark: the high-water mark of the quantity, which other measurements may use at the
            same time.
        every: seconds between two readings, if the mark has to be read regularly.

    Attributes:
        peak: the peak up to the last reading of the mark. ``result()`` reads the mark first, and so
            returns the peak up to now.
    """

    def __init__(self, shared_mark: "SharedMark[Reading]", every: float) -> None:
        self.shared_mark = shared_mark
        self.every = every
        self.peak = shared_mark.zero

    @property
    def is_running(self) -> bool:
        """True from ``start()`` to ``stop()``."""
        return self in self.shared_mark.running

    def start(self) -> None:
        """Starts measuring from scratch; does nothing if the measurement is running."""
        self.shared_mark.begin(self, self.shared_mark.zero)

    def resume(self) -> None:
        """Continues a stopped measurement with its peak so far; does nothing if it is running."""
        self.shared_mark.begin(self, self.peak)

    def stop(self) -> None:
        """Stops measuring and keeps the peak; does nothing if the measurement is not running."""
        self.shared_mark.end(self)

    def abandon(self) -> None:
        """Stops measuring without waiting for a lock. Call this method in finalizers."""
        self.shared_mark.end_without_waiting(self)

    def reset(self) -> None:
        """Forgets the peak; a running measurement starts from scratch."""
        self.shared_mark.restart(self)

    def result(self) -> Reading:
        """Returns the peak so far. After ``stop()`` this is the peak up to the stop."""
        return self.shared_mark.peak_of(self) if self in self.shared_mark.running else self.peak

    @contextmanager
    def held_open(self) -> Iterator[None]:
        """Keeps the mark open in the body, so that ``start`` need not open it each time."""
        self.shared_mark.hold_open(self.every)
        try:
            yield
        finally:
            self.shared_mark.release(self.every)


def _exclusive(
    method: Callable[Concatenate[Self, Params], Result],
) -> Callable[Concatenate[Self, Params], Result]:
    """Decorates a method of a ``SharedMark``: one thread at a time runs such a method.

    After the method, the mark is closed if nothing needs it any more. If a finalizer calls a
    decorated method within another one, the mark is closed only after the outer method, which may
    still use the mark.
    """

    @wraps(method)
    def exclusive(shared_mark: Self, /, *args: Params.args, **kwargs: Params.kwargs) -> Result:
        with shared_mark._lock:
            shared_mark._calls += 1
            try:
                return method(shared_mark, *args, **kwargs)
            finally:
                shared_mark._calls -= 1
                # `_close_or_sample` is needed only if the mark is sampled, or if no `hold_open`
                # keeps the mark open. Otherwise the call is left out to save time.
                if shared_mark._is_sampled or not shared_mark._holders:
                    shared_mark._close_or_sample()

    return exclusive


class SharedMark(Generic[Reading]):
    """A high-water mark that several measurements share. No other code may reset the mark.

    When a measurement starts, the mark is reset. Before each reset the mark is read, and the peak
    of each running measurement is raised to the value of the mark. A reset by other code would lose
    these peaks.

    The mark is *open* while a measurement runs, or while ``hold_open`` keeps it open. If the mark
    uses files or a thread, the files are open and the thread runs as long as the mark is open. A
    forked child inherits the measurements of its parent. In the child they start from scratch, and
    use the mark of the child.

    Args:
        mark: the mark.
        is_sampled: whether the mark misses peaks between two readings, and so must be read
            regularly, by a thread.

    Attributes:
        zero: the lowest possible reading of the mark.
        running: the measurements that are started and not stopped.
    """

    def __init__(self, mark: Mark[Reading], *, is_sampled: bool = False) -> None:
        self.zero = mark.zero
        self.running: list[Measurement[Reading]] = []
        self._mark = mark
        self._is_sampled = is_sampled
        self._is_open = False
        self._calls = 0
        self._sampling: Sampling | None = None
        self._holders: list[float] = []  # the argument `every` of each `hold_open`
        # Measurements that `end_without_waiting` could not stop at once.
        self._abandoned: list[Measurement[Reading]] = []
        # Re-entrant, because a signal handler or a finalizer may run while its thread holds the
        # lock, and may call these methods.
        self._lock = RLock()
        _shared_marks.add(self)

    @_exclusive
    def begin(self, measurement: Measurement[Reading], peak: Reading) -> None:
        """Starts a measurement that is not running, with ``peak`` as its peak so far."""
        if measurement not in self.running:
            # The reset below would lose the peaks of the running measurements.
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
            finally:  # the measurement is stopped even if the mark cannot be read
                self._remove(measurement)

    def end_without_waiting(self, measurement: Measurement[Reading]) -> None:
        """Stops a measurement now, or at the next use of the mark if another thread has the lock.

        A garbage collection may call this method at any time, even in the thread that holds the
        lock.
        """
        if measurement in self.running:
            self._abandoned.append(measurement)
            self._call_unless_locked(self._remove_abandoned)

    @_exclusive
    def restart(self, measurement: Measurement[Reading]) -> None:
        """Forgets the peak of a measurement; a running measurement starts from scratch."""
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
        """Ends one ``hold_open`` with the same ``every``; closes the mark if nothing needs it."""
        self._holders.remove(every)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the body out of all running measurements."""
        self._update()
        try:
            yield
        finally:
            self._forget()

    @_exclusive
    def _update(self) -> None:
        self._update_peaks()

    @_exclusive
    def _forget(self) -> None:
        """Resets the mark, and keeps the peaks of the running measurements."""
        if self.running and self._is_open:
            self._mark.reset()

    def reset_in_child(self) -> None:
        """Makes the mark usable in a forked child.

        The files and the lock that the child has inherited belong to the parent, so the child gets
        new ones. The thread of the parent does not run in the child.
        """
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
        # The sampling thread must not wait for the lock, because the thread that holds the lock may
        # be waiting for the sampling thread to end. Nor must a finalizer, which may run in the
        # sampling thread. If the lock is taken, the mark is read after the next interval instead,
        # and abandoned measurements are removed at the next use of the mark.
        if self._lock.acquire(blocking=False):
            try:
                self._call_exclusively(method)
            finally:
                self._lock.release()

    @_exclusive
    def _call_exclusively(self, method: Callable[[], None]) -> None:
        method()

    def _update_peaks(self) -> None:
        """Reads the mark, and raises the peaks of all running measurements to its value."""
        if self._abandoned:
            self._remove_abandoned()
        if self.running:
            if not self._is_open:  # only in a forked child, which has inherited the measurements
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
        """Closes the mark if nothing needs it; otherwise adapts the interval of the readings."""
        if self._calls:  # a decorated method is still running, and will call this method later
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
        """Makes the thread read the mark at the shortest interval that is needed."""
        every = min([*(measurement.every for measurement in self.running), *self._holders, *also])
        if self._sampling is None or self._sampling.every != every:
            # The new Sampling is stored before it is started. So a finalizer or a signal handler
            # can stop it even before `start()`, and `start()` then does nothing.
            sampling = Sampling(self._update_unless_locked, every)
            former, self._sampling = self._sampling, sampling
            if former is not None:
                former.stop()
            sampling.start()


_shared_marks: WeakSet[SharedMark[Any]] = WeakSet()


def _reset_in_child() -> None:
    for shared_mark in _shared_marks:
        shared_mark.reset_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_in_child)
