"""One measurement of a mark, from its start to its stop."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from typing import Generic

from ignite_hooks.memory.mark import Reading

if TYPE_CHECKING:
    from ignite_hooks.memory.ledger import PeakLedger

__all__ = ["Measurement"]


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
