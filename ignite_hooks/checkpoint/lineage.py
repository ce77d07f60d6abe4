"""The run of training that the checkpoints of a trainer belong to.

Each checkpoint names its run, and a run removes its own old checkpoints only. So a trainer that
resumes must not take over a run that others continue: it would remove their checkpoints. It
continues the run of the checkpoint if it saves to the directory that it has resumed from, and
nobody has added to that run there since. Otherwise it begins a run of its own, a branch:

- it has resumed from a checkpoint that was named, ``runs/step_00000010``, which may have, or get,
  other branches;
- it has resumed from elsewhere, unless the same checkpoint is the newest of its run here too, as
  with a copy of the directory;
- another trainer has continued the run in the meantime.
"""

import os
from dataclasses import dataclass
from dataclasses import field
from logging import getLogger
from pathlib import Path
from uuid import uuid4

from ignite_hooks.checkpoint.manifest import Manifest
from ignite_hooks.checkpoint.state import set_training_id
from ignite_hooks.checkpoint.state import training_id
from ignite_hooks.checkpoint.store import Checkpoint
from ignite_hooks.checkpoint.store import CheckpointStore
from ignite_hooks.checkpoint.store import is_checkpoint_name
from ignite_hooks.core.engine import belongings
from ignite_hooks.core.paths import is_url
from ignite_hooks.core.training_engine import TrainingEngine

__all__ = ["Lineage", "lineage_of"]

logger = getLogger(__name__)


@dataclass
class Lineage:
    """What a trainer knows of its run of training. One process keeps it, which writes manifests.

    Attributes:
        directories: the directories that the trainer saves to, without links in their paths.
        known: the number of the newest checkpoint of the run in a directory, as the trainer has
            found it when it resumed, or has written it.
        resumed: the checkpoint that the trainer has resumed from since its last run.
        is_named: whether that checkpoint was given by its own name.
    """

    directories: set[str] = field(default_factory=set)
    known: dict[str, int] = field(default_factory=dict)
    resumed: Manifest | None = None
    is_named: bool = False

    def note_resumed(self, source: str | Path, checkpoint: Checkpoint, newest: int) -> None:
        """Notes that the trainer has resumed. The checkpoint may have been removed since.

        Args:
            source: the path or the URL that was given.
            checkpoint: the checkpoint that was found there.
            newest: the number of the newest that was there then, damaged or not.
        """
        place = Path(source)
        is_itself = checkpoint.folder == place
        self.resumed, self.known = checkpoint.manifest, {}
        name = str(source).rstrip("/").rpartition("/")[2] if is_url(source) else place.name
        self.is_named = is_checkpoint_name(name) and (is_itself or is_url(source))
        if is_itself and not self.is_named:  # a link with a name of its own, "latest" for instance
            self.known[os.path.dirname(os.path.realpath(place))] = self.resumed.number
        elif not is_url(source) and not is_itself:
            self.known[os.path.realpath(place)] = newest

    def is_to_continue(self, directory: str) -> bool:
        """Returns whether the trainer has resumed from a directory and has not run since."""
        return self.resumed is not None and directory in self.known

    def settle(self, trainer: TrainingEngine) -> None:
        """Decides which run the next checkpoints belong to: before a run, or a save without one."""
        run = training_id(trainer)
        newest = {each: _newest_of(run, each) for each in self.directories}
        if not self._continues({each: found for each, found in newest.items() if found}):
            set_training_id(trainer, uuid4().hex)
            newest = dict.fromkeys(newest)
            logger.info("a branch begins: a run of training that removes its own checkpoints only")
        self.resumed = None
        self.known = {each: found.number if found else 0 for each, found in newest.items()}

    def _continues(self, newest: dict[str, Manifest]) -> bool:
        if self.resumed is None or self.known.keys() & self.directories:
            return all(m.number <= self.known.get(each, m.number) for each, m in newest.items())
        texts = {manifest.dumps() for manifest in newest.values()}  # a NaN does not equal itself
        return not self.is_named and texts == {self.resumed.dumps()}


def lineage_of(trainer: TrainingEngine) -> Lineage:
    """Returns the lineage that is kept with a trainer."""
    lineage: Lineage = belongings(trainer).setdefault("lineage", Lineage())
    return lineage


def _newest_of(run: str, directory: str) -> Manifest | None:
    found = CheckpointStore(Path(directory)).checkpoints()
    return next((each.manifest for each in found if each.manifest.training == run), None)
