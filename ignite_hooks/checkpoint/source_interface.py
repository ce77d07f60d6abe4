"""The interface of a source: a place, local or remote, from which checkpoints are read.

``source.py`` and ``remote.py`` implement the interface. Another process may save and prune
checkpoints in a source while it is being listed, so a single listing may show a state that the
source never had. ``list_until_stable`` therefore repeats a listing until its result can be trusted.
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

    The error is raised, for example, when the network fails. It must not be treated like a missing
    or damaged checkpoint: the run would start from scratch although its checkpoints may be intact.
    """


class CheckpointCandidate(NamedTuple):
    """A checkpoint that a source has listed: its manifest was read, its other files were not.

    Attributes:
        name: the path of the checkpoint's folder; for a remote source, the path on its server.
        manifest: the manifest of the checkpoint.
    """

    name: str
    manifest: Manifest

    @property
    def key(self) -> tuple[str, bytes]:
        """A key by which two listings of the same checkpoint are equal.

        The key holds the text of the manifest. Manifests themselves cannot be compared with ``==``,
        because a metric may be NaN, and NaN does not equal NaN.
        """
        return self.name, self.manifest.dumps()


class Listing(NamedTuple):
    """The result of one listing of a source.

    Attributes:
        candidates: the checkpoints, the newest first.
        damaged: folders whose save was finished and whose manifest cannot be read now. The dict
            gives the reason by the name of the folder.
        unfinished: folders without a manifest: their save, or their removal, is in progress or was
            interrupted. The dict gives the reason by the name of the folder.
    """

    candidates: list[CheckpointCandidate]
    damaged: dict[str, str]
    unfinished: dict[str, str]


class Source(ABC):
    """A place that holds one checkpoint or several.

    Attributes:
        makes_copies: whether ``fetch`` downloads a copy of the checkpoint to each machine.
    """

    makes_copies = False

    @abstractmethod
    def find(self) -> Listing:
        """Returns a consistent listing of the checkpoints.

        Raises:
            SourceError: the source cannot be read.
            ValueError: the source is a file.
        """

    @abstractmethod
    def fetch(self, candidate: CheckpointCandidate, *, verify: bool) -> Checkpoint:
        """Returns a checkpoint with all its files in a folder that this machine can read.

        Args:
            candidate: the checkpoint to fetch.
            verify: whether to compare the checksums of files that are on this machine already.
                If False, only their sizes are compared. The checksums of files that are downloaded
                now are always compared.

        Raises:
            SourceError: the files cannot be read now; the checkpoint may be intact.
            ValueError: the checkpoint is damaged.
        """

    @abstractmethod
    def address_of(self, candidate: CheckpointCandidate) -> str:
        """Returns the path or URL of a checkpoint. This address is a valid source itself."""

    @abstractmethod
    def still_has(self, candidate: CheckpointCandidate) -> bool:
        """Returns whether a checkpoint is neither removed nor replaced since it was listed.

        Raises:
            SourceError: the source cannot be read.
        """


def list_until_stable(list_once: Callable[[], Listing]) -> Listing:
    """Calls ``list_once`` until its result can be trusted.

    A listing first reads the names of the folders and then their manifests. If another process
    prunes a checkpoint and commits the next one in between, the listing can miss the newest
    checkpoint or all checkpoints, and can call an intact checkpoint damaged.

    A listing can be trusted if all its folders are checkpoints, or if it equals the previous
    listing. If the other process saves so fast that neither ever happens, the first listing with a
    checkpoint is returned, beginning with the 20th.
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
                # Damage that two listings in a row show is real. Damage in one of them alone may be
                # a checkpoint that was being pruned.
                lasting = {
                    name: why for name, why in current.damaged.items() if name in previous.damaged
                }
                return current._replace(damaged=lasting)
        previous = current


def _listing_key(listing: Listing) -> tuple[object, ...]:
    return [each.key for each in listing.candidates], listing.damaged, listing.unfinished
