"""Tests of readers beside a run that saves each step and keeps only the newest checkpoint."""

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
"""The C functions that a read calls. The writer can act right before or after each call."""

READS_PER_WRITER = 50
"""The reads beside one writer, whose life is limited."""

STRIDE = 16
"""Each case of a test takes every 16th call; all cases together take all calls."""


def resume_often(directory, reads):
    """Returns the step of each resume. Each warning is an error."""
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
            child.wait_for("started")
            steps += resume_often(directory, READS_PER_WRITER)
    return steps


def assert_never_older(steps):
    assert steps == sorted(steps)
    assert steps[-1] > steps[0] + 10, "nothing was pruned meanwhile"


def test_no_read_fails_beside_a_run_that_prunes(nursery, quick_path):
    assert_never_older(read_beside_writers(nursery, quick_path / "saved", READS_PER_WRITER))


@pytest.mark.slow
def test_no_read_of_a_thousand_fails_beside_a_run_that_prunes(nursery, quick_path):
    steps = read_beside_writers(nursery, quick_path / "saved", 1000)
    assert_never_older(steps)
    print(f"{len(steps)} reads, {len(set(steps))} checkpoints, {steps[-1]} saved")


@pytest.mark.parametrize("reads", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_commands_do_not_fail_beside_a_run_that_prunes(nursery, quick_path, reads, capsys):
    trainer_of(quick_path, resumes=False).run(max_steps=1)
    with nursery.child("save_and_prune", directory=str(quick_path)) as child:
        child.wait_for("started")
        for _ in range(reads):
            for command in ("list", "show"):
                assert main([command, str(quick_path)]) == 0
            main(["verify", str(quick_path)])
    shown = capsys.readouterr().out
    assert "damaged" not in shown
    assert "cannot be read" not in shown


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns a folder with checkpoints of the steps 4 and 5, and the weights by step."""
    directory, weights_by_step = tmp_path_factory.mktemp("saved"), {}
    trainer = trainer_of(directory, resumes=False, keep_last=2)
    for step in (4, 5):
        trainer.run(max_steps=step)
        weights_by_step[step] = weights(trainer.model)
    return directory, weights_by_step


@contextmanager
def prune_at_call(saved, directory, call_number):
    """Commits step 5 and prunes step 4 at a call within the block; yields whether it has."""
    remaining, has_moved = [call_number], []
    shutil.copytree(saved / "step_00000004", directory / "step_00000004")
    later = shutil.copytree(saved / "step_00000005", directory / "later")

    def move_on():
        later.rename(directory / "step_00000005")
        CheckpointStore(directory).remove(directory / "step_00000004")

    def count(frame, event, function):
        if event in ("c_call", "c_return") and function.__name__ in CALLS and not has_moved:
            remaining[0] -= 1
            if remaining[0] == 0:
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
@pytest.mark.parametrize("first", range(1, STRIDE + 1))
@pytest.mark.parametrize("is_named", [False, True])
def test_checkpoint_may_be_pruned_at_any_call_of_a_resume(saved, tmp_path, first, is_named):
    call_number, has_moved = first, [True]
    while has_moved:
        directory = tmp_path / str(call_number)
        directory.mkdir()
        source = directory / "step_00000004" if is_named else directory
        trainer = trainer_of(directory, resumes=False)
        before = weights(trainer.model)
        error = None
        with prune_at_call(saved[0], directory, call_number) as has_moved:
            try:
                ResumeCheckpoint(source).attach(trainer)
            except FileNotFoundError as missing:
                error = str(missing)
        if error is None:
            assert torch.equal(weights(trainer.model), saved[1][trainer.resume_report.step])
            assert trainer.resume_report.is_exact
        else:
            assert is_named
            assert "removed meanwhile" in error or "which does not exist" in error
            assert torch.equal(weights(trainer.model), before)
        call_number += STRIDE
    assert call_number > 3 * STRIDE


def test_checkpoint_replaced_during_the_read_is_read_again(saved, tmp_path, monkeypatch):
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
