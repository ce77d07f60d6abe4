"""The interface of a source of checkpoints, local or remote.

Another process may save and prune in the source at the same time, and listing a folder is not
atomic: ``list_until_stable`` repeats a listing until its result can be trusted.
"""

from abc import ABC
from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from ignite_hooks.checkpoint.manifest import Manifest
from ignite_hooks.checkpoint.store import Checkpoint

__all__ = ["CheckpointCandidate", "Listing", "Source", "SourceError", "list_until_stable"]

_MAX_LISTINGS = 20


class SourceError(OSError):
    """A source cannot be read, so the state of its checkpoints is unknown.

    It differs from damage and from absence: a network that fails must not start a run from scratch.
    """


class CheckpointCandidate(NamedTuple):
    """A folder with a manifest, whose other files have not been checked.

    Args:
        name: the path of the folder, in the terms of its source.
        manifest: its manifest.
    """

    name: str
    manifest: Manifest

    @property
    def key(self) -> tuple[str, bytes]:
        """Returns a key that is equal for the same checkpoint.

        Manifests cannot be compared with ``==``: a metric may be NaN, and one NaN does not equal
        another.
        """
        return self.name, self.manifest.dumps()


class Listing(NamedTuple):
    """The result of one listing of a source.

    Args:
        candidates: the checkpoints, the newest first.
        damaged: folders that were checkpoints and are damaged, with the reason, by name.
        unfinished: folders that are not, or no longer, a checkpoint, with the reason, by name.
    """

    candidates: list[CheckpointCandidate]
    damaged: dict[str, str]
    unfinished: dict[str, str]


class Source(ABC):
    """A place that holds one checkpoint or several."""

    makes_copies = False
    """Whether ``fetch`` downloads a copy of a checkpoint to each machine."""

    @abstractmethod
    def find(self) -> Listing:
        """Returns a consistent listing of the checkpoints.

        Raises:
            SourceError: the source cannot be read.
            ValueError: the source is a file.
        """

    @abstractmethod
    def fetch(self, candidate: CheckpointCandidate, *, verify: bool) -> Checkpoint:
        """Returns a checkpoint in a folder of this machine, with all its files.

        Args:
            candidate: the checkpoint to fetch.
            verify: whether to compare the checksums of files that are on this machine already;
                otherwise only their sizes are compared. Downloads are always verified.

        Raises:
            SourceError: the files cannot be read now; the checkpoint may be intact.
            ValueError: the checkpoint is damaged.
        """

    @abstractmethod
    def address_of(self, candidate: CheckpointCandidate) -> str:
        """Returns the path or the URL of a checkpoint, which is itself a valid source."""

    @abstractmethod
    def still_has(self, candidate: CheckpointCandidate) -> bool:
        """Returns whether a listed checkpoint has been neither removed nor replaced since.

        Raises:
            SourceError: the source cannot be read.
        """


def list_until_stable(list_once: Callable[[], Listing]) -> Listing:
    """Calls ``list_once`` until its result can be trusted.

    A checkpoint may be pruned, and the next one committed, between the listing of the names and the
    reading of the manifests. Such a listing can miss all checkpoints, or the newest one, and can
    show damage where nothing is damaged. A listing is trusted if all its folders are checkpoints,
    or if it equals the listing before it. Where another process saves so fast that this never
    happens, the 20th listing or a later one is returned as soon as it has a checkpoint.
    """
    previous: Listing | None = None
    count = 0
    while True:
        count += 1
        current = list_once()
        if current.candidates and not current.damaged and not current.unfinished:
            return current
        if previous is not None:
            if _listing_key(current) == _listing_key(previous):
                return current
            if current.candidates and count >= _MAX_LISTINGS:
                # Damage in two listings in a row is real; damage in one alone may be a save.
                lasting = {
                    name: why for name, why in current.damaged.items() if name in previous.damaged
                }
                return current._replace(damaged=lasting)
        previous = current


def _listing_key(listing: Listing) -> tuple[object, ...]:
    return [each.key for each in listing.candidates], listing.damaged, listing.unfinished
