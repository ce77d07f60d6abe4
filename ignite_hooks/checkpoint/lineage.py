"""The run of training that the checkpoints of a trainer belong to.

Each checkpoint has the id of its run, and a run removes its own old checkpoints only. A trainer
that resumes must not continue a run which another trainer continues too: each would remove the
other's checkpoints. So a trainer continues the run of the checkpoint only if it saves to the
directory that it has resumed from, and no other trainer has saved checkpoints of that run there
since. Otherwise a new run begins, a branch. A branch begins if:

- the trainer has resumed from a checkpoint given by its own name, ``runs/step_00000010``, which may
  be the beginning of other branches as well;
- the trainer has resumed from another directory, unless the same checkpoint is the newest of its
  run in this directory too, as in a copy of the directory;
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
from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.paths import is_url
from ignite_hooks.core.training_engine import TrainingEngine

__all__ = ["Lineage", "lineage_of"]

logger = getLogger(__name__)


@dataclass
class Lineage:
    """The history of a trainer's run: the checkpoint that it resumed from, and those it has saved.

    Rank 0 keeps it, because rank 0 writes the manifests.

    Attributes:
        directories: the directories that the trainer saves to, with symbolic links resolved.
        known_numbers: the number of the newest checkpoint in each directory that the trainer knows
            of, because it was there at the resume or was written by the trainer itself.
        resumed: the checkpoint that the trainer has resumed from since its last run.
        is_named: whether that checkpoint was given by its own name.
    """

    directories: set[str] = field(default_factory=set)
    known_numbers: dict[str, int] = field(default_factory=dict)
    resumed: Manifest | None = None
    is_named: bool = False

    def note_resumed(self, source: str | Path, checkpoint: Checkpoint, newest: int) -> None:
        """Notes which checkpoint the trainer has resumed from; it may have been removed since.

        Args:
            source: the path or the URL that was given.
            checkpoint: the checkpoint that was found there.
            newest: the number of the newest checkpoint that was there, damaged or not.
        """
        path = Path(source)
        is_itself = checkpoint.folder == path
        self.resumed, self.known_numbers = checkpoint.manifest, {}
        name = str(source).rstrip("/").rpartition("/")[2] if is_url(source) else path.name
        self.is_named = is_checkpoint_name(name) and (is_itself or is_url(source))
        if is_itself and not self.is_named:
            # A link with another name, for example "latest": it counts as its target's directory.
            self.known_numbers[os.path.dirname(os.path.realpath(path))] = self.resumed.number
        elif not is_url(source) and not is_itself:
            self.known_numbers[os.path.realpath(path)] = newest

    def has_resumed_from(self, directory: str) -> bool:
        """Returns whether the trainer has resumed from a directory and has not run since."""
        return self.resumed is not None and directory in self.known_numbers

    def decide_run(self, trainer: TrainingEngine) -> None:
        """Decides which run the next checkpoints belong to.

        It is called at the start of each run of the trainer, and before a save between two runs.
        """
        run = training_id(trainer)
        newest = {each: _newest_manifest(run, each) for each in self.directories}
        if not self._is_continued({each: found for each, found in newest.items() if found}):
            set_training_id(trainer, uuid4().hex)
            newest = dict.fromkeys(newest)
            logger.info("a branch begins: a new run, which removes its own checkpoints only")
        self.resumed = None
        self.known_numbers = {each: found.number if found else 0 for each, found in newest.items()}

    def _is_continued(self, newest: dict[str, Manifest]) -> bool:
        """Returns whether the trainer may continue its run.

        Args:
            newest: the newest checkpoint of the run in each directory that has one.
        """
        if self.resumed is None or self.known_numbers.keys() & self.directories:
            # A larger number than the known one: another trainer has saved here since.
            return all(
                m.number <= self.known_numbers.get(each, m.number) for each, m in newest.items()
            )
        # Texts are compared because a metric value of NaN would make equal manifests unequal.
        texts = {manifest.dumps() for manifest in newest.values()}
        return not self.is_named and texts == {self.resumed.dumps()}


def lineage_of(trainer: TrainingEngine) -> Lineage:
    """Returns the lineage that is kept with a trainer."""
    lineage: Lineage = engine_storage(trainer).setdefault("lineage", Lineage())
    return lineage


def _newest_manifest(run: str, directory: str) -> Manifest | None:
    """Returns the manifest of the newest checkpoint of a run in a directory; None without one."""
    found = CheckpointStore(Path(directory)).checkpoints()
    return next((each.manifest for each in found if each.manifest.training == run), None)
