import os
import shutil
import warnings

import pytest

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks.checkpoint.store import CheckpointStore
from tests.reference import batches_of
from tests.reference import make_trainer

OTHERS = r"has \d checkpoints of other runs, the newest of step \d+: they stay"


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    """Skips fsync: these tests do not ask whether a checkpoint survives a power cut."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def runs(tmp_path):
    """A directory with the checkpoints of steps 8 and 10."""
    trainer_of(tmp_path / "runs").run(max_steps=10)
    return tmp_path / "runs"


def trainer_of(directory, source=None, also_to=(), **options):
    saving = {"every_steps": 2, "keep_last": 2, **options}
    handlers = [SaveCheckpoint(each, **saving) for each in (directory, *also_to)]
    source = None if source is None else ResumeCheckpoint(source, cache_dir=directory / "cache")
    return make_trainer(batches_of(10), handlers=handlers, resume_from=source)


def run_on(trainer, steps):
    """Trains a number of further steps; returns the warnings."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        trainer.run(max_steps=trainer.state.optimizer_step + steps)
    return [str(each.message) for each in warned]


def steps(directory):
    """Returns the steps of the checkpoints, the oldest first."""
    found = CheckpointStore(directory).checkpoints()
    return [each.manifest.step for each in reversed(found)]


def number_of_runs(directory):
    return len({each.manifest.training for each in CheckpointStore(directory).checkpoints()})


def test_a_job_started_again_removes_its_old_checkpoints(runs):
    for _ in range(3):
        assert run_on(trainer_of(runs, runs), 5) == []
    assert steps(runs) == [24, 25]


def test_a_link_to_the_directory_is_the_directory(runs, tmp_path):
    (tmp_path / "link").symlink_to(runs)
    assert run_on(trainer_of(tmp_path / "link", runs), 4) == []
    (runs / "step_00000014" / "trainer.pt").write_bytes(b"damaged")  # so 12 is resumed
    with pytest.warns(UserWarning, match="a checkpoint is skipped"):
        trainer = trainer_of(runs, tmp_path / "link")
    assert run_on(trainer, 6) == []
    assert (steps(runs), number_of_runs(runs)) == ([16, 18], 1)


def test_job_that_falls_back_to_an_older_checkpoint_continues_its_run(runs):
    (runs / "step_00000010" / "trainer.pt").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="a checkpoint is skipped"):
        trainer = trainer_of(runs, runs)
    assert run_on(trainer, 6) == []
    assert (steps(runs), number_of_runs(runs)) == ([12, 14], 1)


def test_a_run_from_scratch_warns_of_other_runs(runs):
    (message,) = run_on(trainer_of(runs), 6)
    assert message.startswith(
        f"{runs} has 2 checkpoints of other runs, the newest of step 10: they stay in the "
        f"directory, and a resume from it loads the newest checkpoint of all runs; continue the "
        f"newest of the other runs with resume_from=ResumeCheckpoint('{runs}'), or give this run "
        f"its own directory"
    )
    assert steps(runs) == [8, 10, 4, 6]


@pytest.mark.parametrize("named", ["step_00000008", "step_00000010"])
@pytest.mark.parametrize("background", [False, True])
def test_branch_from_a_named_checkpoint_prunes_only_its_own(runs, named, background):
    base = runs / named
    start = int(named[-2:])
    trainer = trainer_of(runs, base, background=background)
    assert [OTHERS[:3] in each for each in run_on(trainer, 6)] == [True]
    assert steps(runs) == [8, 10, start + 4, start + 6]
    run_on(trainer_of(runs, base), 4)
    assert steps(runs) == [8, 10, start + 4, start + 6, start + 2, start + 4]
    assert number_of_runs(runs) == 3


def test_a_restarted_branch_continues_the_branch(runs):
    run_on(trainer_of(runs, runs / "step_00000008"), 4)
    for _ in range(2):
        assert run_on(trainer_of(runs, runs), 4) == []
    assert steps(runs) == [8, 10, 18, 20]
    assert number_of_runs(runs) == 2


@pytest.mark.parametrize("source", ["runs", "runs/step_00000010", "file://{}/runs"])
def test_branches_into_a_new_directory_keep_each_other(runs, tmp_path, source):
    source = source.format(tmp_path) if "{" in source else tmp_path / source
    first, second = (trainer_of(tmp_path / "new", source) for _ in range(2))
    assert run_on(first, 6) == []
    (message,) = run_on(second, 4)
    assert "has 2 checkpoints of other runs, the newest of step 16" in message
    assert steps(tmp_path / "new") == [14, 16, 12, 14]
    assert steps(runs) == [8, 10]


@pytest.mark.parametrize(("target", "count"), [("step_00000010", 1), ("step_00000008", 2)])
def test_a_link_with_another_name_continues_only_the_newest(runs, target, count):
    (runs / "latest").symlink_to(target)
    run_on(trainer_of(runs, runs / "latest"), 6)
    assert number_of_runs(runs) == count
    assert (runs / target).exists() == (count == 2)


def test_moved_and_linked_newest_checkpoint_is_continued(runs, tmp_path):
    shutil.move(runs / "step_00000010", tmp_path / "archive")
    (runs / "step_00000010").symlink_to(tmp_path / "archive")
    assert run_on(trainer_of(runs, runs), 6) == []
    assert steps(runs) == [14, 16]


@pytest.mark.parametrize("named", [False, True])
def test_trainer_branches_if_another_continued_its_run(runs, named):
    first = trainer_of(runs, runs / "step_00000010" if named else runs)
    if not named:
        run_on(first, 2)
    second = trainer_of(runs, runs)
    run_on(second, 4)
    there = steps(runs)
    assert [OTHERS[:3] in each for each in run_on(first, 6)] == [True]
    assert steps(runs)[:2] == there
    assert number_of_runs(runs) == 2


def test_run_with_two_directories_continues_in_both(runs, tmp_path):
    def start(steps_of_run):
        warned = run_on(trainer_of(runs, runs, also_to=[tmp_path / "copy"]), steps_of_run)
        shutil.rmtree(CheckpointStore(runs).checkpoints()[0].folder)  # the copy is ahead
        return warned

    assert [start(5), start(5), start(5)] == [[], [], []]
    assert (number_of_runs(runs), number_of_runs(tmp_path / "copy")) == (1, 1)
    assert len(steps(tmp_path / "copy")) == 2


@pytest.mark.parametrize("lags", [False, True])
def test_resume_from_a_copy_continues_if_both_have_the_newest(runs, tmp_path, lags):
    shutil.copytree(runs, tmp_path / "copy")
    if lags:
        run_on(trainer_of(runs, runs), 2)
    run_on(trainer_of(runs, tmp_path / "copy"), 6)
    assert number_of_runs(runs) == 1 + lags


def test_saving_after_a_resume_without_a_run_begins_a_branch(runs):
    handler = SaveCheckpoint(runs, keep_last=1)
    trainer = make_trainer(batches_of(10), checkpoint=handler)
    ResumeCheckpoint(runs / "step_00000008").attach(trainer)
    handler(trainer)
    assert steps(runs) == [8, 10, 8]
    assert number_of_runs(runs) == 2


def test_manual_save_after_another_trainer_begins_a_branch(runs):
    handler = SaveCheckpoint(runs, every_steps=2, at_end=False, keep_last=1)
    first = make_trainer(batches_of(10), checkpoint=handler, resume_from=ResumeCheckpoint(runs))
    run_on(first, 3)
    run_on(trainer_of(runs, runs), 4)
    there = steps(runs)
    handler(first)
    assert steps(runs) == [*there, 13]
    assert number_of_runs(runs) == 2


def test_save_checkpoint_may_be_attached_after_the_resume(runs):
    trainer = make_trainer(batches_of(10), resume_from=ResumeCheckpoint(runs))
    SaveCheckpoint(runs, every_steps=2, keep_last=2).attach(trainer)
    assert run_on(trainer, 6) == []
    assert steps(runs) == [14, 16]
