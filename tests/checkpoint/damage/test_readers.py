"""Readers beside a run that saves each step, and prunes all but the newest at once."""

import shutil
import sys
import threading
from contextlib import contextmanager

import pytest
import torch

from ignite_hooks import ResumeCheckpoint
from ignite_hooks.checkpoint import resume
from ignite_hooks.checkpoint.__main__ import main
from ignite_hooks.checkpoint.store import CheckpointStore
from tests.checkpoint.damage.training import trainer_of
from tests.reference import weights

CALLS = {"open", "stat", "lstat", "listdir", "scandir", "fstat", "readinto", "from_file"}
"""Functions in C that reading is made of. The moment before each counts, and the one after it."""

READS = 50
"""For each writer: how long one of them lives is limited."""

EVERY = 16
"""Of those moments a test has each so many; all of its cases have all."""


def resume_often(directory, reads):
    """The step of each resume. All that warns is an error."""
    steps = []
    for _ in range(reads):
        trainer = trainer_of(directory, resumes=False)
        ResumeCheckpoint(directory).attach(trainer)
        steps.append(trainer.resume_report.step)
    return steps


def read_beside_writers(nursery, directory, reads):
    trainer_of(directory, resumes=False).run(max_steps=1)
    steps = []
    while len(steps) < reads:
        with nursery.child("save_and_prune", directory=str(directory)) as child:
            child.until("started")
            steps += resume_often(directory, READS)
    return steps


def assert_never_back(steps):
    assert steps == sorted(steps)
    assert steps[-1] > steps[0] + 10, "nothing was pruned meanwhile"


def test_no_read_fails_beside_a_run_that_prunes(nursery, quick_path):
    assert_never_back(read_beside_writers(nursery, quick_path / "saved", READS))


@pytest.mark.slow
def test_none_of_a_thousand_reads_fails_beside_a_run_that_prunes(nursery, quick_path):
    steps = read_beside_writers(nursery, quick_path / "saved", 1000)
    assert_never_back(steps)
    print(f"{len(steps)} reads, {len(set(steps))} checkpoints, {steps[-1]} saved")


@pytest.mark.parametrize("reads", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_no_look_from_the_terminal_fails_beside_a_run_that_prunes(
    nursery, quick_path, reads, capsys
):
    trainer_of(quick_path, resumes=False).run(max_steps=1)
    with nursery.child("save_and_prune", directory=str(quick_path)) as child:
        child.until("started")
        for _ in range(reads):
            for command in ("list", "show"):
                assert main([command, str(quick_path)]) == 0
            main(["verify", str(quick_path)])
    shown = capsys.readouterr().out
    assert "damaged" not in shown
    assert "cannot be read" not in shown


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of the steps 4 and 5, and the weights of each."""
    directory, at = tmp_path_factory.mktemp("saved"), {}
    trainer = trainer_of(directory, resumes=False, keep_last=2)
    for step in (4, 5):
        trainer.run(max_steps=step)
        at[step] = weights(trainer.model)
    return directory, at


@contextmanager
def writer_moves_on(saved, directory, moment):
    """Commits step 5 at a moment of the block, and prunes step 4; yields whether it has."""
    left, has_moved = [moment], []
    shutil.copytree(saved / "step_00000004", directory / "step_00000004")
    later = shutil.copytree(saved / "step_00000005", directory / "later")

    def move_on():
        later.rename(directory / "step_00000005")
        CheckpointStore(directory).remove(directory / "step_00000004")

    def count(frame, event, function):
        if event in ("c_call", "c_return") and function.__name__ in CALLS and not has_moved:
            left[0] -= 1
            if left[0] == 0:
                has_moved.append(True)
                move_on()

    threading.setprofile(count)
    sys.setprofile(count)
    try:
        yield has_moved
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


@pytest.mark.grid(11)
@pytest.mark.parametrize("first", range(1, EVERY + 1))
@pytest.mark.parametrize("names_it", [False, True])
def test_checkpoint_may_be_pruned_at_any_moment_of_a_resume(saved, tmp_path, first, names_it):
    moment, has_moved = first, [True]
    while has_moved:
        directory = tmp_path / str(moment)
        directory.mkdir()
        source = directory / "step_00000004" if names_it else directory
        trainer = trainer_of(directory, resumes=False)
        before = weights(trainer.model)
        error = None
        with writer_moves_on(saved[0], directory, moment) as has_moved:
            try:
                ResumeCheckpoint(source).attach(trainer)
            except FileNotFoundError as its_error:
                error = str(its_error)
        if error is None:
            assert torch.equal(weights(trainer.model), saved[1][trainer.resume_report.step])
            assert trainer.resume_report.is_exact
        else:
            assert names_it
            assert "removed meanwhile" in error or "there is none" in error
            assert torch.equal(weights(trainer.model), before)
        moment += EVERY
    assert moment > 3 * EVERY


def test_checkpoint_that_is_replaced_while_it_is_read_is_read_again(saved, tmp_path, monkeypatch):
    folder = shutil.copytree(saved[0] / "step_00000004", tmp_path / "step_00000004")
    real = resume.LoadedState

    def read(*arguments):
        loaded = real(*arguments)
        monkeypatch.setattr(resume, "LoadedState", real)
        shutil.rmtree(folder)
        shutil.copytree(saved[0] / "step_00000005", folder)
        return loaded

    monkeypatch.setattr(resume, "LoadedState", read)
    trainer = trainer_of(tmp_path)
    assert trainer.resume_report.step == 5
    assert torch.equal(weights(trainer.model), saved[1][5])
