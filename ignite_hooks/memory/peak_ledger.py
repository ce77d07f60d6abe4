"""Several measurements of one high-water mark at once, each exact for its own time."""

import os
from collections.abc import Callable
from threading import RLock
from typing import Any
from typing import Generic
from typing import TypeVar
from weakref import WeakSet

from ignite_hooks.memory.mark import Mark
from ignite_hooks.memory.mark import Reading
from ignite_hooks.memory.measurement import Measurement
from ignite_hooks.memory.sampling import Sampling

__all__ = ["PeakLedger"]

Result = TypeVar("Result")


class PeakLedger(Generic[Reading]):
    """The one owner of a mark. Nobody else may reset it, or the measurements lose what was.

    Whoever begins to measure needs the mark reset. What it said before then goes to all who were
    measuring, and so does what it says whenever it is read: none of two measurements, one within
    the other, ever has the higher peak inside.

    The mark is open while anyone measures or holds it. A forked child inherits measurements of its
    parent; in the child they begin at the fork, with a mark of its own.

    Args:
        mark: the mark.
        is_sampled: whether it must be read now and then, in a thread, for anything to be seen.
    """

    def __init__(self, mark: Mark[Reading], *, is_sampled: bool = False) -> None:
        self.nothing = mark.nothing
        self.running: list[Measurement[Reading]] = []
        self._mark = mark
        self._is_sampled = is_sampled
        self._is_open = False
        self._users = 0
        self._sampling: Sampling | None = None
        self._holders: list[float] = []
        self._abandoned: list[Measurement[Reading]] = []
        # Re-entrant: a signal's handler or a finalizer may come at any line, and use the ledger.
        self._lock = RLock()
        _ledgers.add(self)

    def begin(self, measurement: Measurement[Reading], peak: Reading) -> None:
        """Measures from now on, ``peak`` counted in, unless it does so already."""
        with self._lock:
            if measurement in self.running:
                return
            self._note()
            self.running.append(measurement)
            try:
                self._open()
                self._use(self._mark.reset)
                measurement.peak = peak
                self._adjust()
            except BaseException:
                self._drop(measurement)
                raise

    def end(self, measurement: Measurement[Reading]) -> None:
        """Measures no more."""
        with self._lock:
            if measurement in self.running:
                try:
                    self._note()
                finally:
                    self._drop(measurement)

    def end_soon(self, measurement: Measurement[Reading]) -> None:
        """Has it ended now or, if the ledger is busy, the next time that the ledger is used.

        A garbage collection may be what calls this, at any line of any thread.
        """
        if measurement not in self.running:
            return
        self._abandoned.append(measurement)
        if self._lock.acquire(blocking=False):
            try:
                self._drop_abandoned()
            finally:
                self._lock.release()

    def restart(self, measurement: Measurement[Reading]) -> None:
        """Forgets the peak; a running measurement begins now."""
        with self._lock:
            if measurement in self.running:
                self._note()
                self._use(self._mark.reset)
            measurement.peak = self.nothing

    def peak_of(self, measurement: Measurement[Reading]) -> Reading:
        """The peak so far."""
        with self._lock:
            if measurement in self.running:
                self._note()
            return measurement.peak

    def hold(self, every: float) -> None:
        """Keeps the mark open, and sampled once in so many seconds at least."""
        with self._lock:
            self._holders.append(every)
            try:
                self._open()
                self._adjust()
            except BaseException:
                self._holders.remove(every)
                self._adjust()
                raise

    def let_go(self, every: float) -> None:
        """Closes the mark, if nobody else needs it."""
        with self._lock:
            self._holders.remove(every)
            self._adjust()

    def begin_in_child(self) -> None:
        """In a forked child: what is open, locked or running is the parent's."""
        self._lock = RLock()
        self._users = 0
        self._sampling = None
        if self._is_open:
            self._is_open = False
            self._mark.close()
        for measurement in self.running:
            measurement.peak = self.nothing

    def _note(self) -> None:
        """Tells all running measurements what the mark says."""
        if self._abandoned:
            self._drop_abandoned()
        if self.running:
            if not self._is_open:  # forked since
                self._open()
                self._adjust()
            reading, higher = self._use(self._mark.read), self._mark.higher
            for measurement in tuple(self.running):
                measurement.peak = higher(measurement.peak, reading)

    def _use(self, act: Callable[[], Result]) -> Result:
        """Calls ``act`` of the mark, which stays open, whatever is ended meanwhile."""
        self._users += 1
        try:
            return act()
        finally:
            self._users -= 1
            if not (self.running or self._holders):
                self._adjust()

    def _drop_abandoned(self) -> None:
        abandoned = []
        while self._abandoned:  # to which other threads may be adding
            abandoned.append(self._abandoned.pop())
        self._drop(*abandoned)

    def _drop(self, *measurements: Measurement[Reading]) -> None:
        for measurement in measurements:
            if measurement in self.running:
                self.running.remove(measurement)
        self._adjust()

    def _open(self) -> None:
        if not self._is_open:
            self._mark.open()
            self._is_open = True

    def _adjust(self) -> None:
        """Closes the mark if nobody needs it; else has it read as often as anyone wants."""
        if self._users:
            return  # and it is done after that
        if not (self.running or self._holders):
            self._is_open = False
            sampling, self._sampling = self._sampling, None
            if sampling is not None:
                sampling.stop()
            self._mark.close()
        elif self._is_sampled:
            every = min([*(measurement.every for measurement in self.running), *self._holders])
            if self._sampling is None or self._sampling.every != every:
                # In this order, should a finalizer or a signal's handler come here meanwhile.
                sampling = Sampling(self._note_unless_busy, every)
                former, self._sampling = self._sampling, sampling
                if former is not None:
                    former.stop()
                sampling.start()

    def _note_unless_busy(self) -> None:
        # Whoever has the lock reads the mark itself, or waits for this thread to end.
        if self._lock.acquire(blocking=False):
            try:
                self._note()
            finally:
                self._lock.release()


_ledgers: WeakSet[PeakLedger[Any]] = WeakSet()


def _begin_in_child() -> None:
    for ledger in _ledgers:
        ledger.begin_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
