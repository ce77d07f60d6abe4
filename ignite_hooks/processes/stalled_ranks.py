"""Ranks that wait for each other at different places of the loop, which no error tells."""

import json

from ignite_hooks.processes.store_connection import StoreConnection
from ignite_hooks.processes.watched_run import Place

__all__ = ["StalledRanks"]


class StalledRanks:
    """Compares the places of ranks that do not move.

    An evaluator of this package that is run by rank 0 alone waits in a collective for the others,
    which wait for rank 0 in the next batch, or at the end of the same event. A rank that has not
    moved between two looks, to another place or line, writes both to the store. Ranks that stand at
    the same place and line do the same work, however long it takes.

    Args:
        store: what the ranks share.
        rank: this rank.
        size: the number of ranks.
        after_seconds: how long a rank stands before it compares, and between two warnings.
    """

    def __init__(self, store: StoreConnection, rank: int, size: int, after_seconds: float) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._after_seconds = after_seconds
        self._standing: tuple[Place, str] | None = None
        self._since = 0.0
        self._is_written = False

    def begin(self) -> None:
        """Takes back what an earlier run has written."""
        self._standing, self._is_written = None, False
        self._store.put(_key(self._rank), "")

    def look(self, place: Place, line: str, now: float) -> str | None:
        """Returns a warning if this rank and another have stood at different places for long.

        Args:
            place: where the run of this rank is.
            line: the line of the user's code in which it is.
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

    def _places(self) -> dict[int, tuple[Place, str]]:
        """Returns the places of the ranks that do not move."""
        places = {}
        for rank in range(self._size):
            text = self._store.find(_key(rank))
            if text:
                place, line = json.loads(text)
                places[rank] = (Place(*place), line)
        return places

    def _warning(self, places: dict[int, tuple[Place, str]]) -> str:
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
