"""Tests that SIGKILL at any time loses only what came after the last checkpoint."""

import shutil
from random import Random
from signal import SIGKILL

import pytest
import torch

from tests.checkpoint.damage.training import STEPS
from tests.checkpoint.damage.training import folders
from tests.checkpoint.damage.training import trainer_of
from tests.checkpoint.damage.training import whole_steps

MAX_KILL_NUMBER = 600
"""More calls than two saves make, so that most children get a little further each time."""


class Job:
    """A run that is started again each time it is killed."""

    def __init__(self, nursery, directory, final, **saving):
        self.nursery, self.directory, self.final = nursery, directory, final
        self.saving = saving
        self.number = 0
        self.restart()

    def restart(self):
        self.number += 1
        self.saved = 0

    def start(self, kill=None, **task):
        """Returns whether the run was killed. No checkpoint reported as saved may be lost."""
        folder = self.directory / str(self.number)
        with self.nursery.child("train", directory=str(folder), **self.saving, **task) as child:
            if kill is not None:
                kill(child)
            child.wait()
        assert child.reported("failure") == []
        for step in child.reported("resumed"):
            assert step >= self.saved
        self.saved = max([self.saved, *child.reported("saved")])
        if child.status == -SIGKILL:
            return True
        assert child.status == 0
        (found,) = child.reported("weights")
        assert torch.equal(torch.tensor(found), self.final)
        assert whole_steps(folder)[-3:] == [STEPS - 2, STEPS - 1, STEPS]
        # A removal that was killed after the last save is left to the next one.
        assert len(folders(folder)) <= 4
        self.restart()
        return False


def kill_after_saves(number):
    """Returns a function that kills the child after some saves, wherever it is by then."""

    def kill(child):
        for _ in range(number):
            child.wait_for("saved")
        if child.status is None:
            child.send(SIGKILL)

    return kill


def random_kills(job, random, number):
    remaining = number
    while remaining:
        if random.random() < 0.3:
            remaining -= job.start(kill_after_saves(random.randint(1, 2)))
        else:
            remaining -= job.start(killed_at=random.randint(1, MAX_KILL_NUMBER))
    while job.start():
        pass


@pytest.mark.exhaustive
@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
def test_run_killed_repeatedly_ends_in_identical_bits(nursery, quick_path, final, background):
    random_kills(Job(nursery, quick_path, final, background=background), Random(1), 8)


@pytest.mark.slow
@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
def test_run_killed_thirty_times_ends_in_identical_bits(nursery, quick_path, final, background):
    random_kills(Job(nursery, quick_path, final, background=background), Random(2), 30)


def saved_before(directory):
    """Saves three checkpoints, so that the next save removes the oldest."""
    trainer_of(directory, resumes=False).run(max_steps=3)
    return directory


def killed_within_a_save(nursery, source, directory, kill_number):
    """Returns the steps of whole checkpoints; None if the save had fewer calls."""
    shutil.copytree(source, directory)
    task = {"killed_at": kill_number, "counted_from": 7, "limits": {"max_steps": 4}}
    child = nursery.run("train", directory=str(directory), at_end=False, **task)
    if child.status == 0:
        return None
    assert (child.status, child.reported("resumed")) == (-SIGKILL, [3])
    return whole_steps(directory)


def assert_cleaned_up(nursery, directory):
    child = nursery.run("train", directory=str(directory))
    assert child.status == 0, child.reported("traceback")
    assert len(folders(directory)) == len(whole_steps(directory)) == 3


def test_empty_folder_of_a_killed_save_is_cleaned_up(tmp_path):
    (tmp_path / "step_00000001").mkdir()
    trainer_of(tmp_path, resumes=False).run(max_steps=2)
    assert folders(tmp_path) == ["step_00000001", "step_00000002"]
    assert whole_steps(tmp_path) == [1, 2]


def sweep(nursery, path, kill_numbers, clean_up_every):
    source = saved_before(path / "before")
    seen = []
    for kill_number in kill_numbers:
        directory = path / str(kill_number)
        steps = killed_within_a_save(nursery, source, directory, kill_number)
        if steps is None:
            break
        seen.append(steps)
        if kill_number % clean_up_every == 0:
            assert_cleaned_up(nursery, directory)
        shutil.rmtree(directory)
    else:
        pytest.fail("the sweep has not come to the end of the save")
    return seen


def assert_never_fewer_than_before(seen):
    """Asserts that the oldest checkpoint is removed only when the new one is there."""
    assert all(set(steps) >= {2, 3} for steps in seen)
    assert [steps for steps in seen if 1 not in steps and 4 not in steps] == []


def test_kill_during_save_leaves_the_old_or_new_checkpoint(nursery, quick_path):
    assert_never_fewer_than_before(sweep(nursery, quick_path, range(3, 2000, 29), 2))


@pytest.mark.slow
def test_kill_at_every_call_of_a_save_loses_no_checkpoint(nursery, quick_path):
    seen = sweep(nursery, quick_path, range(1, 2000), 1)
    assert_never_fewer_than_before(seen)
