"""The interface of a place where checkpoints are looked for, local or remote.

Another process may save and prune there at the same time, and a listing of a folder is not atomic:
``settled`` looks again until the answer does not depend on when each name was read.
"""

from abc import ABC
from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from ignite_hooks.checkpoint.manifest import Manifest
from ignite_hooks.checkpoint.store import Checkpoint

__all__ = ["Candidate", "Look", "Source", "SourceError", "settled"]

_MAX_LOOKS = 20


class SourceError(OSError):
    """The way to the checkpoints fails: which of them are there, or whole, is not known."""


class Candidate(NamedTuple):
    """A folder with a manifest, whose files have not been looked at.

    Args:
        name: where it is.
        manifest: its manifest.
    """

    name: str
    manifest: Manifest

    @property
    def key(self) -> tuple[str, bytes]:
        """Equal for the same checkpoint. Manifests are not: a metric may be NaN."""
        return self.name, self.manifest.dumps()


class Look(NamedTuple):
    """The result of one look at a source.

    Args:
        candidates: the checkpoints, the newest first.
        damaged: the others that have been one, by name, and why they are none.
        unfinished: those that are not, or no longer, a checkpoint, by name, and why.
    """

    candidates: list[Candidate]
    damaged: dict[str, str]
    unfinished: dict[str, str]


class Source(ABC):
    """A place with one checkpoint or several."""

    makes_copies = False
    """Whether a checkpoint is fetched to each machine."""

    @abstractmethod
    def find(self) -> Look:
        """Returns the checkpoints that were there at one point in time.

        Raises:
            SourceError: the place cannot be read.
            ValueError: the place is a file.
        """

    @abstractmethod
    def fetch(self, candidate: Candidate, *, verify: bool) -> Checkpoint:
        """Returns the checkpoint in a folder of this machine, with all its files.

        Args:
            candidate: which one.
            verify: whether files that are on this machine already are read and compared with
                their checksums, or only their sizes.

        Raises:
            SourceError: the files cannot be read now; the checkpoint may be whole.
            ValueError: the checkpoint is damaged.
        """

    @abstractmethod
    def address_of(self, candidate: Candidate) -> str:
        """Returns the path or the URL that a source of this one checkpoint is made from."""

    @abstractmethod
    def still_has(self, candidate: Candidate) -> bool:
        """Returns whether a checkpoint that was found has not been removed since.

        Raises:
            SourceError: the place cannot be read.
        """


def settled(look: Callable[[], Look]) -> Look:
    """Calls ``look`` until its result can be trusted.

    A checkpoint may be pruned, and the next one committed, between the listing of the names and
    the reading of the manifests. Such a look can miss all checkpoints, or the newest, and can show
    damage where nothing is damaged. A look is trusted if it shows nothing but checkpoints, or the
    same as the look before it. Where a process saves faster than that, the last of many looks is
    taken if it shows a checkpoint.
    """
    before: Look | None = None
    looks = 0
    while True:
        looks += 1
        now = look()
        if now.candidates and not now.damaged and not now.unfinished:
            return now
        if before is not None:
            if _key(now) == _key(before):
                return now
            if now.candidates and looks >= _MAX_LOOKS:
                lasting = {name: why for name, why in now.damaged.items() if name in before.damaged}
                return now._replace(damaged=lasting)
        before = now


def _key(look: Look) -> tuple[object, ...]:
    return [each.key for each in look.candidates], look.damaged, look.unfinished
