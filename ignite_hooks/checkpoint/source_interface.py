"""The interface of a source: a place, local or remote, from which checkpoints are read.

``source.py`` and ``remote.py`` implement the interface. While a source is listed, another process
may save new checkpoints there and prune old ones. So a single listing may show a state that the
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
    """An error for a source that cannot be read, so that the state of its checkpoints is unknown.

    The error is raised, for example, when the network fails. Callers must not treat the error like
    a missing or damaged checkpoint: the run would start from scratch although its checkpoints may
    be intact.
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
        """A key to compare candidates: equal if both are the same checkpoint, unchanged.

        The key holds the manifest as text. Manifests cannot be compared with ``==``, because a
        metric may be NaN, and NaN does not equal NaN.
        """
        return self.name, self.manifest.dumps()


class Listing(NamedTuple):
    """The result of one listing of a source.

    Attributes:
        candidates: the checkpoints, the newest first.
        damaged: maps the path of a damaged checkpoint's folder to the reason. For example, the
            folder has a manifest that cannot be read.
        unfinished: maps the path of a folder without a manifest to the reason. The save or the
            removal of such a checkpoint is in progress, or was interrupted.
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
            verify: whether to compare the checksums of the files that are on this machine already;
                if False, only the sizes of these files are compared. The checksums of files that
                this call downloads are compared in any case.

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
    process may complete a new checkpoint and prune an old one. Then the listing can miss the newest
    checkpoint or even all checkpoints, or can call a checkpoint damaged that was only pruned.

    A listing can be trusted if all its folders are checkpoints, or if it equals the previous
    listing. Another process may save so often that no listing can be trusted. So from the 20th
    listing on, the first listing that has a checkpoint is returned.
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
                # A checkpoint that is damaged in two listings in a row is really damaged. One that
                # is damaged only in this listing may just have been pruned.
                lasting = {
                    name: why for name, why in current.damaged.items() if name in previous.damaged
                }
                return current._replace(damaged=lasting)
        previous = current


def _listing_key(listing: Listing) -> tuple[object, ...]:
    return [each.key for each in listing.candidates], listing.damaged, listing.unfinished
