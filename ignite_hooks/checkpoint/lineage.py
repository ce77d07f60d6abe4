"""The run of training that the checkpoints of a trainer belong to.

A run of training is what one training job does from its first step to its last, with all resumes
in between. Each checkpoint has the id of its run, and a run removes only its own old checkpoints.
Two trainers must not continue the same run, because each would remove the checkpoints of the other.

After a resume a trainer either continues the run of the checkpoint, or begins a new run, called a
branch. A branch begins in three cases:

- The user gave the checkpoint by its own name, for example ``runs/step_00000010``, and not by its
  directory. Several branches may begin at the same checkpoint.
- The trainer saves to another directory than the one it has resumed from. But if the newest
  checkpoint of the run in this other directory equals the resumed checkpoint, the run continues,
  because one directory is a copy of the other.
- Another trainer has saved a checkpoint of the run to the same directory since the resume.
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
    """The history of a trainer's run, which decides whether the trainer continues the run.

    Only rank 0 uses this object, because only rank 0 writes manifests.

    Attributes:
        directories: the directories that the trainer saves to, with symbolic links resolved.
        known_numbers: maps a directory to the number of the newest checkpoint that the trainer has
            found there at the resume, or has saved there. Checkpoints are numbered in the order of
            the saves, so a checkpoint with a larger number was saved by another trainer.
        resumed: the manifest of the checkpoint that the trainer has resumed from; None without a
            resume, and after ``decide_run``.
        is_named: whether the user gave the checkpoint of the resume by its own name, such as
            ``step_00000010``, and not by its directory.
    """

    directories: set[str] = field(default_factory=set)
    known_numbers: dict[str, int] = field(default_factory=dict)
    resumed: Manifest | None = None
    is_named: bool = False

    def note_resumed(self, source: str | Path, checkpoint: Checkpoint, newest: int) -> None:
        """Notes which checkpoint the trainer has resumed from.

        No file is read, because the checkpoint may have been removed in the meantime.

        Args:
            source: the path or the URL that the user gave.
            checkpoint: the checkpoint that was found at the source.
            newest: the number of the newest checkpoint at the source, damaged or not.
        """
        path = Path(source)
        # True if the source is the folder of one checkpoint, False for a directory of checkpoints.
        is_checkpoint = checkpoint.folder == path
        self.resumed, self.known_numbers = checkpoint.manifest, {}
        name = str(source).rstrip("/").rpartition("/")[2] if is_url(source) else path.name
        self.is_named = is_checkpoint_name(name) and (is_checkpoint or is_url(source))
        if is_checkpoint and not self.is_named:
            # The source is a link to a checkpoint, for example "latest". A resume from such a link
            # counts as a resume from the directory in which the checkpoint lies.
            self.known_numbers[os.path.dirname(os.path.realpath(path))] = self.resumed.number
        elif not is_url(source) and not is_checkpoint:
            self.known_numbers[os.path.realpath(path)] = newest

    def has_resumed_from(self, directory: str) -> bool:
        """Returns whether the trainer has resumed from ``directory``, and has not trained since."""
        return self.resumed is not None and directory in self.known_numbers

    def decide_run(self, trainer: TrainingEngine) -> None:
        """Decides which run the next checkpoints belong to: the trainer's run, or a new branch.

        This method is called at the start of each ``trainer.run()``, and before a save that is made
        while the trainer does not run.
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
            newest: the directories that the trainer saves to. Each directory is mapped to the
                manifest of the run's newest checkpoint in it. A directory without a checkpoint of
                the run is left out.
        """
        if self.resumed is None or self.known_numbers.keys() & self.directories:
            # Either the trainer has not resumed since the last decision, or it saves to the
            # directory that it has resumed from. In both cases, a larger number than the known one
            # shows that another trainer has saved a checkpoint in the directory.
            return all(
                m.number <= self.known_numbers.get(each, m.number) for each, m in newest.items()
            )
        # A resume by name always begins a branch. After a resume from another directory, the run
        # continues only if the resumed checkpoint is also the newest checkpoint of the run in the
        # directories that the trainer saves to. Manifests are compared as text, because NaN as the
        # value of a metric would make equal manifests unequal.
        texts = {manifest.dumps() for manifest in newest.values()}
        return not self.is_named and texts == {self.resumed.dumps()}


def lineage_of(trainer: TrainingEngine) -> Lineage:
    """Returns the lineage of a trainer."""
    lineage: Lineage = engine_storage(trainer).setdefault("lineage", Lineage())
    return lineage


def _newest_manifest(run: str, directory: str) -> Manifest | None:
    """Returns the manifest of a run's newest checkpoint in a directory.

    Returns None if the directory has no checkpoint of the run.
    """
    found = CheckpointStore(Path(directory)).checkpoints()
    return next((each.manifest for each in found if each.manifest.training == run), None)
