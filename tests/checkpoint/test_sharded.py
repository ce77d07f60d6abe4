"""Models that are split over processes, as far as one process can test them."""

import os
import stat

import pytest
import torch

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks.checkpoint.state import TrainingState
from tests.reference import batches_of
from tests.reference import make_trainer
from tests.reference import weights


@pytest.fixture
def split(monkeypatch):
    """Treats the model as split, so that Accelerate writes and reads it."""
    monkeypatch.setattr(TrainingState, "is_sharded", True)


def saved(folder, **options):
    trainer = make_trainer(batches_of(3), dropout=0.5)
    SaveCheckpoint(folder, every_steps=1, keep_last="all", **options).attach(trainer)
    trainer.run(max_epochs=2)
    return trainer


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("safe_serialization", [False, True])
def test_accelerate_writes_and_reads_model_and_optimizer(tmp_path, background, safe_serialization):
    trainer = saved(tmp_path, background=background, safe_serialization=safe_serialization)
    folder = tmp_path / "step_00000002"
    model = "model.safetensors" if safe_serialization else "pytorch_model.bin"
    assert {"optimizer.bin", model} <= {path.name for path in (folder / "sharded").iterdir()}
    assert not (folder / "optimizer.bin").exists()
    for step in range(1, 7):
        resumed = make_trainer(batches_of(3), dropout=0.5)
        with torch.no_grad():
            for each in resumed.model.parameters():
                each.add_(1)
        source = tmp_path / f"step_{step:08d}"
        ResumeCheckpoint(source, trust_pickle=True).attach(resumed)
        assert resumed.resume_report.is_exact
        resumed.run()
        assert torch.equal(weights(resumed.model), weights(trainer.model))


@pytest.mark.usefixtures("split")
def test_sharded_files_are_in_the_manifest_and_verified(tmp_path):
    saved(tmp_path)
    damaged = tmp_path / "step_00000006" / "sharded" / "optimizer.bin"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    resumed = make_trainer(batches_of(3))
    with pytest.warns(UserWarning, match="sharded/optimizer.bin has"):
        ResumeCheckpoint(tmp_path, trust_pickle=True).attach(resumed)
    assert resumed.resume_report.step == 5


@pytest.mark.usefixtures("split")
def test_sharded_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        saved(tmp_path)
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "step_00000006").rglob("*") if path.is_file()]
    assert len(files) > 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}


@pytest.mark.usefixtures("split")
def test_unpickling_by_accelerate_needs_trust_pickle(tmp_path):
    saved(tmp_path)
    with (
        pytest.warns(UserWarning, match="a checkpoint is skipped"),
        pytest.raises(ValueError, match=r"sharded/.* would have to be unpickled, which runs code"),
    ):
        ResumeCheckpoint(tmp_path).attach(make_trainer(batches_of(3)))


@pytest.mark.parametrize("was_split", [True, False])
def test_sharded_and_unsharded_checkpoints_are_not_mixed(tmp_path, monkeypatch, was_split):
    monkeypatch.setattr(TrainingState, "is_sharded", was_split)
    saved(tmp_path)
    monkeypatch.setattr(TrainingState, "is_sharded", not was_split)
    with pytest.raises(ValueError, match=r"the model must be split over processes|is missing"):
        ResumeCheckpoint(tmp_path, trust_pickle=True).attach(make_trainer(batches_of(3)))
