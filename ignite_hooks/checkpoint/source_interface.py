"""The interface of a source: a place, local or remote, from which checkpoints are read.

``source.py`` and ``remote.py`` implement the interface. While a source is listed, another process
may save new checkpoints to it and prune old ones. So a single listing may mix the states before and
after such a change. ``list_until_stable`` repeats a listing until its result can be trusted.
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
    """Raised if a source cannot be read, for example because the network fails.

    The checkpoints of the source may be intact. So callers must not treat this error like a missing
    or damaged checkpoint, and must not start a run from scratch.
    """


class CheckpointCandidate(NamedTuple):
    """A checkpoint in a listing. Only its manifest has been read, its other files have not.

    Attributes:
        name: the path of the checkpoint's folder; for a remote source, the path on its server.
        manifest: the manifest of the checkpoint.
    """

    name: str
    manifest: Manifest

    @property
    def key(self) -> tuple[str, bytes]:
        """A key to compare candidates. Equal keys mean the same checkpoint with the same manifest.

        The key holds the manifest as text. Manifests cannot be compared with ``==``, because a
        metric may be NaN, and NaN does not equal NaN.
        """
        return self.name, self.manifest.dumps()


class Listing(NamedTuple):
    """The result of one listing of a source.

    Attributes:
        candidates: the checkpoints, the newest first.
        damaged: maps the path of a damaged checkpoint's folder to a text that names the damage, for
            example a manifest that cannot be read.
        unfinished: maps the path of a folder without a manifest to a text for messages. The save or
            the removal of such a checkpoint is in progress, or was interrupted.
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
            verify: whether to compare the checksums of the files that this machine already has. If
                False, only the sizes of these files are compared. The checksums of files that this
                call downloads are always compared.

        Raises:
            SourceError: the files cannot be read now; the checkpoint may be intact.
            ValueError: the checkpoint is damaged.
        """

    @abstractmethod
    def address_of(self, candidate: CheckpointCandidate) -> str:
        """Returns the path or URL of a checkpoint. This address is a valid source itself."""

    @abstractmethod
    def still_has(self, candidate: CheckpointCandidate) -> bool:
        """Returns whether a checkpoint is still there, and was not replaced since it was listed.

        Raises:
            SourceError: the source cannot be read.
        """


def list_until_stable(list_once: Callable[[], Listing]) -> Listing:
    """Calls ``list_once`` until its result can be trusted.

    A listing first reads the names of the folders and then their manifests. In between, another
    process may complete a new checkpoint and prune an old one. The listing then misses the newest
    checkpoint. It may also miss all checkpoints, or report a pruned checkpoint as damaged.

    A listing can be trusted in two cases: if every folder in it is a complete checkpoint, or if it
    equals the previous listing. If another process saves very often, there may be no such listing.
    So from the 20th listing on, the first listing that has a checkpoint is returned.
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
                # A checkpoint that two listings in a row report as damaged is really damaged. A
                # checkpoint that only this listing reports as damaged may just have been pruned.
                lasting = {
                    name: why for name, why in current.damaged.items() if name in previous.damaged
                }
                return current._replace(damaged=lasting)
        previous = current


def _listing_key(listing: Listing) -> tuple[object, ...]:
    return [each.key for each in listing.candidates], listing.damaged, listing.unfinished
