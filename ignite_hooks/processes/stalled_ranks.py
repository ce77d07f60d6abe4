"""Detection of ranks that wait for each other at different places of the loop.

torch reports no error in this case until the timeout of the collective.
"""

import json

from ignite_hooks.processes.store_connection import StoreConnection
from ignite_hooks.processes.watched_run import RunPlace

__all__ = ["StalledRanks"]


class StalledRanks:
    """Compares the places of ranks that make no progress.

    For example, an evaluator of this package that only rank 0 runs waits in a collective for the
    other ranks, which wait for rank 0 in the next batch, or at the end of the same event.

    A rank that is at the same place and line of code in two successive checks writes both to the
    store. Ranks at equal places and lines do the same work, however long it takes, so there is a
    warning only if these differ.

    Args:
        store: the store that the ranks share.
        rank: this rank.
        size: the number of ranks.
        after_seconds: the time without progress before a rank compares, and between two warnings.
    """

    def __init__(self, store: StoreConnection, rank: int, size: int, after_seconds: float) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._after_seconds = after_seconds
        self._standing: tuple[RunPlace, str] | None = None  # at the last check
        self._since = 0.0
        self._is_written = False

    def begin(self) -> None:
        """Begins a run; clears what this rank wrote in a run before."""
        self._standing, self._is_written = None, False
        self._store.put(_key(self._rank), "")

    def check(self, place: RunPlace, line: str, now: float) -> str | None:
        """Returns a warning if this rank and another one have stalled at different places.

        Args:
            place: the present place of this rank's run.
            line: the line of the user's code in which its main thread is.
            now: the time in seconds.
        """
        standing = (place, line)
        if standing != self._standing:
            self._standing, self._since = standing, now
            if self._is_written:
                self._store.put(_key(self._rank), "")
                self._is_written = False
            return None
        if not self._is_written:
            self._store.put(_key(self._rank), json.dumps(standing))
            self._is_written = True
        seconds = now - self._since
        if seconds < self._after_seconds:
            return None
        places = self._places()
        if all(other == standing for other in places.values()):
            return None
        self._since = now
        return self._warning(places)

    def _places(self) -> dict[int, tuple[RunPlace, str]]:
        """Returns the places and lines of the ranks that make no progress, by rank."""
        places = {}
        for rank in range(self._size):
            text = self._store.find(_key(rank))
            if text:
                place, line = json.loads(text)
                places[rank] = (RunPlace(*place), line)
        return places

    def _warning(self, places: dict[int, tuple[RunPlace, str]]) -> str:
        ranks = [
            f"rank {rank}: {'{}; {}'.format(*places[rank]) if rank in places else 'it moves'}"
            for rank in range(self._size)
        ]
        return (
            f"ranks have stood at different places for {self._after_seconds:g} s, and may wait for "
            f"each other for ever. {'. '.join(ranks)}. What exchanges data between the ranks, an "
            "evaluator of this package for instance, must be called by all of them: call it "
            "without `if rank == 0`"
        )


def _key(rank: int) -> str:
    return f"place/{rank}"
