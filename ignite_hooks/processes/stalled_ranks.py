"""Detection of ranks that wait for each other at different places of the loop.

A place is an epoch, iteration, step and event (``RunPlace``). Without this detection, such ranks
wait until torch reports that the collective has timed out.
"""

import json

from ignite_hooks.processes.store_connection import StoreConnection
from ignite_hooks.processes.watched_run import RunPlace

__all__ = ["StalledRanks"]


class StalledRanks:
    """Compares the places of ranks that make no progress.

    For example, a handler runs an evaluator of this package only on rank 0. The evaluator waits in
    a collective for the other ranks. The other ranks have continued, and wait for rank 0 in a later
    collective, such as that of the next backward pass.

    If a rank is at the same place and line of code in two successive checks, the rank writes the
    place and the line to the store. There is a warning only if the places or lines in the store
    differ. Ranks at the same place and line do the same work, which may take long.

    Args:
        store: the store that the ranks share.
        rank: this rank.
        size: the number of ranks.
        after_seconds: the time without progress before the first warning, and between two warnings.
    """

    def __init__(self, store: StoreConnection, rank: int, size: int, after_seconds: float) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._after_seconds = after_seconds
        self._last_place: tuple[RunPlace, str] | None = None  # the place and line at the last check
        # The time of the first check that found this place and line, or of the last warning about
        # them.
        self._since = 0.0
        self._is_written = False  # whether the store has this place and line

    def begin(self) -> None:
        """Begins a run, and clears the place that this rank wrote in an earlier run."""
        self._last_place, self._is_written = None, False
        self._store.put(_key(self._rank), "")

    def check(self, place: RunPlace, line: str, now: float) -> str | None:
        """Returns a warning if ranks have stalled at different places or lines; otherwise None.

        Args:
            place: the present place of this rank in its run.
            line: the line of the user's code that the main thread of this rank executes.
            now: the present time in seconds.
        """
        standing = (place, line)
        if standing != self._last_place:
            self._last_place, self._since = standing, now
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
        """Returns a dict that maps each rank without progress to its place and line."""
        places = {}
        for rank in range(self._size):
            text = self._store.find(_key(rank))
            if text:
                place, line = json.loads(text)
                places[rank] = (RunPlace(*place), line)
        return places

    def _warning(self, places: dict[int, tuple[RunPlace, str]]) -> str:
        ranks = [
            f"rank {rank}: {'{}; {}'.format(*places[rank]) if rank in places else 'in progress'}"
            for rank in range(self._size)
        ]
        return (
            f"ranks have stood at different places for {self._after_seconds:g} s, and may wait for "
            f"each other for ever. {'. '.join(ranks)}. Code that exchanges data between ranks, for "
            "example an evaluator of this package, must be called on every rank: call it without "
            "`if rank == 0`"
        )


def _key(rank: int) -> str:
    return f"place/{rank}"
