"""SIGKILL at any moment costs what came after the last checkpoint, and nothing else."""

import shutil
from random import Random
from signal import SIGKILL

import pytest
import torch

from tests.checkpoint.damage.training import STEPS
from tests.checkpoint.damage.training import folders
from tests.checkpoint.damage.training import trainer_of
from tests.checkpoint.damage.training import whole_steps

MOMENTS = 600
"""More than two saves have, so that most of those that are killed get a little further."""


class Job:
    """A training that is started again each time it was killed."""

    def __init__(self, nursery, directory, final, **saving):
        self.nursery, self.directory, self.final = nursery, directory, final
        self.saving = saving
        self.number = 0
        self.begin_anew()

    def begin_anew(self):
        self.number += 1
        self.saved = 0

    def start(self, kill=None, **task):
        """Whether it was killed. Nothing that was announced as saved may be lost."""
        where = self.directory / str(self.number)
        with self.nursery.child("train", directory=str(where), **self.saving, **task) as child:
            if kill is not None:
                kill(child)
            child.wait()
        assert child.told("failure") == []
        for step in child.told("resumed"):
            assert step >= self.saved
        self.saved = max([self.saved, *child.told("saved")])
        if child.status == -SIGKILL:
            return True
        assert child.status == 0
        (found,) = child.told("weights")
        assert torch.equal(torch.tensor(found), self.final)
        assert whole_steps(where)[-3:] == [STEPS - 2, STEPS - 1, STEPS]
        # A removal that was killed after the last save is left to the next one.
        assert len(folders(where)) <= 4
        self.begin_anew()
        return False


def kill_when_heard(number):
    """From outside: the child goes on meanwhile, so that it can be anywhere."""

    def kill(child):
        for _ in range(number):
            child.until("saved")
        if child.status is None:
            child.send(SIGKILL)

    return kill


def random_kills(job, random, number):
    left = number
    while left:
        if random.random() < 0.3:
            left -= job.start(kill_when_heard(random.randint(1, 2)))
        else:
            left -= job.start(killed_at=random.randint(1, MOMENTS))
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
    """Three checkpoints, so that the next save takes the oldest away."""
    trainer_of(directory, resumes=False).run(max_steps=3)
    return directory


def killed_within_a_save(nursery, source, directory, moment):
    """The steps of the checkpoints that are whole; None if it was not killed any more."""
    shutil.copytree(source, directory)
    task = {"killed_at": moment, "counted_from": 7, "limits": {"max_steps": 4}}
    child = nursery.run("train", directory=str(directory), at_end=False, **task)
    if child.status == 0:
        return None
    assert (child.status, child.told("resumed")) == (-SIGKILL, [3])
    return whole_steps(directory)


def assert_cleaned_up(nursery, directory):
    child = nursery.run("train", directory=str(directory))
    assert child.status == 0, child.told("traceback")
    assert len(folders(directory)) == len(whole_steps(directory)) == 3


def test_empty_folder_of_a_killed_save_is_cleaned_up(tmp_path):
    (tmp_path / "step_00000001").mkdir()
    trainer_of(tmp_path, resumes=False).run(max_steps=2)
    assert folders(tmp_path) == ["step_00000001", "step_00000002"]
    assert whole_steps(tmp_path) == [1, 2]


def sweep(nursery, path, moments, clean_up_every):
    source = saved_before(path / "before")
    seen = []
    for moment in moments:
        directory = path / str(moment)
        steps = killed_within_a_save(nursery, source, directory, moment)
        if steps is None:
            break
        seen.append(steps)
        if moment % clean_up_every == 0:
            assert_cleaned_up(nursery, directory)
        shutil.rmtree(directory)
    else:
        pytest.fail("the sweep has not come to the end of the save")
    return seen


def assert_never_fewer_than_before(seen):
    """First those that were there, then the new one too, and only then without the oldest."""
    assert all(set(steps) >= {2, 3} for steps in seen)
    assert [steps for steps in seen if 1 not in steps and 4 not in steps] == []


def test_kill_during_save_leaves_the_old_or_new_checkpoint(nursery, quick_path):
    assert_never_fewer_than_before(sweep(nursery, quick_path, range(3, 2000, 29), 2))


@pytest.mark.slow
def test_kill_at_every_call_of_a_save_loses_no_checkpoint(nursery, quick_path):
    seen = sweep(nursery, quick_path, range(1, 2000), 1)
    assert_never_fewer_than_before(seen)
