"""Tests that fail each call of a save in turn: reported, nothing lost, and the next save works."""

import errno
import os
import shutil
import warnings

import pytest
from ignite.engine import Events

from ignite_hooks.checkpoint.store import CheckpointStore
from tests.checkpoint.damage.calls import calls_within
from tests.checkpoint.damage.training import folders
from tests.checkpoint.damage.training import trainer_of
from tests.checkpoint.damage.training import whole_steps

WAYS = {
    "foreground": ({}, 1),
    "background": ({"background": True}, 3),
}
"""The options of ``SaveCheckpoint``, and the stride of the calls that are made to fail."""


class Disk:
    """A listener that fails once, at the ``number``-th call of the next save."""

    def __init__(self):
        self.number = self.remaining = self.failed = None

    def fail_at(self, number):
        self.number, self.remaining, self.failed = number, None, None
        self.error = errno.ENOSPC if number % 2 else errno.EIO

    def arm(self):
        """Starts to count, after the checks at the start of a run."""
        if self.number is not None:
            self.remaining, self.number = self.number, None

    def __call__(self, call):
        if self.remaining is None or self.failed is not None:
            return
        self.remaining -= 1
        if self.remaining == 0:
            self.failed = call
            raise OSError(self.error, os.strerror(self.error), str(call.path))


def run_one_step(trainer):
    """Returns the error that was raised, or None, and the warnings."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            trainer.run(max_steps=trainer.state.optimizer_step + 1)
        except OSError as error:
            return error, warned
    return None, warned


def newest(directory):
    return CheckpointStore(directory).checkpoints()[0].manifest.step


def problems_after_failure(disk, directory, before, step, error, warned):
    """Yields what is wrong after the save of ``step`` has failed."""
    whole = whole_steps(directory)
    if error is not None and error.errno != disk.error:
        yield f"another error: {error!r}"
    if error is None and newest(directory) != step:
        yield f"no error, and the newest is {newest(directory)}"
    if not set(before[1:]) <= set(whole):
        yield f"there were {before}, there are {whole}"
    if step not in whole and whole != before:
        yield f"one was taken away before the new one was complete: {whole}"
    is_of_folder = disk.failed.path.name == f"step_{step:08d}"  # its name may not be on the disk
    if error is not None and step in whole and not is_of_folder:
        yield "an error, but it is complete"


def problems_of_next_save(trainer, directory):
    """Yields what is wrong with the save after a failed one."""
    error, warned = run_one_step(trainer)
    step = trainer.state.optimizer_step
    if error is not None or warned:
        yield f"the next save: {error!r}, {[str(each.message) for each in warned]}"
    if newest(directory) != step:
        yield f"after the next save the newest is {newest(directory)}"
    if len(folders(directory)) != 3 or len(whole_steps(directory)) != 3:
        yield f"after the next save there are {folders(directory)}"


def remove_broken_folders(directory):
    """Removes what one failure has left, so that it is not seen after the next failure."""
    for folder in CheckpointStore(directory).broken():
        shutil.rmtree(folder)


@pytest.mark.exhaustive
@pytest.mark.parametrize("way", WAYS)
def test_failure_of_any_call_of_a_save_loses_no_checkpoint(quick_path, way):
    disk = Disk()
    saving, stride = WAYS[way]
    trainer = trainer_of(quick_path, resumes=False, at_end=False, **saving)
    trainer.run(max_steps=3)
    trainer.add_event_handler(Events.ITERATION_STARTED, disk.arm)
    problems, operations = [], set()
    with calls_within(quick_path, disk):
        for number in range(1, 200, stride):
            before = whole_steps(quick_path)
            disk.fail_at(number)
            raised, warned = run_one_step(trainer)
            disk.remaining = None
            if disk.failed is None:
                break
            step = trainer.state.optimizer_step
            found = [*problems_after_failure(disk, quick_path, before, step, raised, warned)]
            found += problems_of_next_save(trainer, quick_path)
            remove_broken_folders(quick_path)
            call = disk.failed
            operations.add(call.operation)
            where = f"{call.operation} of {call.path.relative_to(quick_path)}"
            problems += [f"{number}, {where} for step {step}: {each}" for each in found]
        else:
            problems.append("a save has more calls than that")
    assert not problems, "\n".join(problems)
    assert operations >= {"open", "fsync"}
    assert stride > 1 or operations == {"mkdir", "open", "fsync", "rename", "unlink", "rmdir"}
