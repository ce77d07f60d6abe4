"""Measurements of one high-water mark, several at once, each exact for its own time."""

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
Given = ParamSpec("Given")
Result = TypeVar("Result")


class Measurement(Generic[Reading]):
    """The peak of a mark from ``start()`` to ``stop()``, whoever else measures meanwhile.

    Args:
        ledger: the owner of the mark.
        every: seconds between samples, where the mark has to be sampled.
    """

    def __init__(self, ledger: "PeakLedger[Reading]", every: float) -> None:
        self.ledger = ledger
        self.every = every
        self.peak = ledger.nothing

    @property
    def is_running(self) -> bool:
        """Whether it measures now."""
        return self in self.ledger.running

    def start(self) -> None:
        """Begins anew; while it is running already it goes on."""
        self.ledger.begin(self, self.ledger.nothing)

    def go_on(self) -> None:
        """Begins after a pause, with the peak there was."""
        self.ledger.begin(self, self.peak)

    def stop(self) -> None:
        """Ends it; the peak stays. While it is not running nothing happens."""
        self.ledger.end(self)

    def abandon(self) -> None:
        """``stop`` for finalizers: it waits for nobody."""
        self.ledger.end_soon(self)

    def reset(self) -> None:
        """Forgets the peak. While it is running it begins anew now."""
        self.ledger.restart(self)

    def result(self) -> Reading:
        """The peak so far, or of the last time."""
        return self.ledger.peak_of(self) if self in self.ledger.running else self.peak

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps open what starting would open and stopping would close, to start often."""
        self.ledger.hold(self.every)
        try:
            yield
        finally:
            self.ledger.let_go(self.every)


def _in_turn(
    act: Callable[Concatenate[Self, Given], Result],
) -> Callable[Concatenate[Self, Given], Result]:
    """One after another; the mark stays open for ``act``, whatever is ended meanwhile."""

    @wraps(act)
    def in_turn(ledger: Self, /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        with ledger._lock:
            ledger._users += 1
            try:
                return act(ledger, *args, **kwargs)
            finally:
                ledger._users -= 1
                if ledger._is_sampled or not ledger._holders:
                    ledger._adjust()

    return in_turn


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

    @_in_turn
    def begin(self, measurement: Measurement[Reading], peak: Reading) -> None:
        """Measures from now on, ``peak`` counted in, unless it does so already."""
        if measurement not in self.running:
            if self.running or self._abandoned:
                self._note()
            if self._is_sampled or not self._is_open:
                self._open(measurement.every)
            self._mark.reset()
            measurement.peak = peak
            self.running.append(measurement)

    @_in_turn
    def end(self, measurement: Measurement[Reading]) -> None:
        """Measures no more."""
        if measurement in self.running:
            try:
                self._note()
            finally:
                self._drop(measurement)

    def end_soon(self, measurement: Measurement[Reading]) -> None:
        """Has it ended now or, if the ledger is busy, the next time that the ledger is used.

        A garbage collection may be what calls this, at any line of any thread.
        """
        if measurement in self.running:
            self._abandoned.append(measurement)
            self._unless_busy(self._drop_abandoned)

    @_in_turn
    def restart(self, measurement: Measurement[Reading]) -> None:
        """Forgets the peak; a running measurement begins now."""
        if measurement in self.running:
            self._note()
            self._mark.reset()
        measurement.peak = self.nothing

    @_in_turn
    def peak_of(self, measurement: Measurement[Reading]) -> Reading:
        """The peak so far."""
        if measurement in self.running:
            self._note()
        return measurement.peak

    @_in_turn
    def hold(self, every: float) -> None:
        """Keeps the mark open, and sampled once in so many seconds at least."""
        self._open(every)
        self._holders.append(every)

    @_in_turn
    def let_go(self, every: float) -> None:
        """Closes the mark, if nobody else needs it."""
        self._holders.remove(every)

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

    def _note_unless_busy(self) -> None:
        self._unless_busy(self._note)

    def _unless_busy(self, act: Callable[[], None]) -> None:
        # Whoever has the lock does it too, or waits for this thread to end.
        if self._lock.acquire(blocking=False):
            try:
                self._take_turn(act)
            finally:
                self._lock.release()

    @_in_turn
    def _take_turn(self, act: Callable[[], None]) -> None:
        act()

    def _note(self) -> None:
        """Tells all running measurements what the mark says."""
        if self._abandoned:
            self._drop_abandoned()
        if self.running:
            if not self._is_open:  # this is a child, forked since
                self._open()
            reading, higher = self._mark.read(), self._mark.higher
            for measurement in tuple(self.running):
                measurement.peak = higher(measurement.peak, reading)

    def _drop_abandoned(self) -> None:
        while self._abandoned:  # to which other threads may be adding
            self._drop(self._abandoned.pop())

    def _drop(self, measurement: Measurement[Reading]) -> None:
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
            self._sample(*every)

    def _adjust(self) -> None:
        """Closes the mark if nobody needs it; else has it read as often as anyone wants."""
        if self._users:  # the outermost one does it
            return
        if not (self._holders or self.running):
            sampling, self._sampling = self._sampling, None
            if sampling is not None:
                sampling.stop()
            if self._is_open:
                self._is_open = False
                self._mark.close()
        elif self._is_sampled:
            self._sample()

    def _sample(self, *also: float) -> None:
        every = min([*(measurement.every for measurement in self.running), *self._holders, *also])
        if self._sampling is None or self._sampling.every != every:
            # In this order, should a finalizer or a signal's handler come here meanwhile.
            sampling = Sampling(self._note_unless_busy, every)
            former, self._sampling = self._sampling, sampling
            if former is not None:
                former.stop()
            sampling.start()


_ledgers: WeakSet[PeakLedger[Any]] = WeakSet()


def _begin_in_child() -> None:
    for ledger in _ledgers:
        ledger.begin_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
