"""Counts the calls of one save: Python functions by stage and by file, and fsyncs.

python -m tests.benchmarks.calls
"""

import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import ignite_hooks
from ignite_hooks import SaveCheckpoint
from ignite_hooks.checkpoint.triggers import CheckpointTriggers
from ignite_hooks.checkpoint.writer import CheckpointWriter
from tests.reference import batches_of
from tests.reference import make_trainer

__all__ = ["SaveProfile"]

PACKAGE = str(Path(ignite_hooks.__file__).parent) + os.sep
# The functions that begin a stage; each stage ends where the next one begins.
BEGINNINGS = {
    CheckpointWriter._capture.__code__: "capture",
    CheckpointWriter._begin.__code__: "write",
    CheckpointWriter._commit.__code__: "commit",
}


class SaveProfile:
    """Counts the calls of a save, from where it is due to CHECKPOINT_SAVED.

    The save is the sixth of a run with a model of two layers and ``keep_last=3``, so one checkpoint
    is removed. Calls of C functions are not counted. The profile is not a handler of the trainer,
    because a save searches handlers for states.

    Args:
        directory: where to save.
    """

    def __init__(self, directory):
        self.of_package, self.of_all = Counter(), Counter()  # by stage
        self.by_file = Counter()
        self.fsyncs = 0
        self._stage = "due"
        handler = SaveCheckpoint(directory, every_steps=1, keep_last=3, at_end=False)
        trainer = make_trainer(batches_of(6), checkpoint=handler)
        self._fsync, schedule = os.fsync, CheckpointTriggers.schedule
        announce_once = CheckpointWriter._announce_once

        def begin(*arguments):
            if trainer.state.optimizer_step == 6:
                os.fsync = self._count_fsync
                sys.setprofile(self._count)
            schedule(*arguments)

        def end(*arguments):
            announce_once(*arguments)
            sys.setprofile(None)
            os.fsync = self._fsync

        of_triggers = patch.object(CheckpointTriggers, "schedule", begin)
        with of_triggers, patch.object(CheckpointWriter, "_announce_once", end):
            trainer.run(max_epochs=1)

    def _count_fsync(self, descriptor):
        self.fsyncs += 1
        self._fsync(descriptor)

    def _count(self, frame, event, _):
        code = frame.f_code
        if event != "call" or code.co_filename == __file__:
            return
        self._stage = BEGINNINGS.get(code, self._stage)
        self.of_all[self._stage] += 1
        if code.co_filename.startswith(PACKAGE):
            self.of_package[self._stage] += 1
            self.by_file[code.co_filename.removeprefix(PACKAGE)] += 1

    def lines(self):
        yield "| stage | calls of the package | calls of all Python functions |"
        yield "|---|---|---|"
        for stage in ("due", "capture", "write", "commit"):
            yield f"| {stage} | {self.of_package[stage]:,} | {self.of_all[stage]:,} |"
        yield f"| all | {self.of_package.total():,} | {self.of_all.total():,} |"

    def summary(self):
        most = ", ".join(f"{name} {calls}" for name, calls in self.by_file.most_common(6))
        return f"{len(self.by_file)} files of the package ({most}, …), {self.fsyncs} fsyncs"


def table():
    with tempfile.TemporaryDirectory() as directory:
        return [*SaveProfile(directory).lines()]


def main():
    with tempfile.TemporaryDirectory() as directory:
        profile = SaveProfile(directory)
    print("\n".join([*profile.lines(), "", profile.summary()]))


if __name__ == "__main__":
    main()
