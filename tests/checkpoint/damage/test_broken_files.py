"""Tests that a damaged file is found and named, and an older checkpoint is used instead."""

import shutil

import pytest
import torch

from ignite_hooks import ResumeCheckpoint
from ignite_hooks.checkpoint.__main__ import main
from ignite_hooks.checkpoint.store import CheckpointStore
from ignite_hooks.checkpoint.store import find_problems
from tests.checkpoint.damage.training import EPOCHS
from tests.checkpoint.damage.training import trainer_of
from tests.reference import make_trainer
from tests.reference import weights

FILES = {
    True: ["model.safetensors", "optimizer.bin", "rank_00000.pt", "scheduler.bin", "trainer.pt"],
    False: ["model.bin", "optimizer.bin", "rank_00000.pt", "scheduler.bin", "trainer.pt"],
}


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def flip_one_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 << 4
    path.write_bytes(content)


def append(path):
    path.write_bytes(path.read_bytes() + b"\0")


def delete(path):
    path.unlink()


def make_a_folder_of(path):
    path.unlink()
    path.mkdir()


WAYS = [truncate, empty, flip_one_bit, append, delete, make_a_folder_of]


@pytest.fixture(scope="module", params=[True, False], ids=["safetensors", "torch.save"])
def saved(request, tmp_path_factory):
    """Returns a folder with two checkpoints, saved within an epoch, and the files of each."""
    directory = tmp_path_factory.mktemp("saved")
    trainer = trainer_of(directory, resumes=False, safe_serialization=request.param)
    trainer.run(max_steps=5)
    shutil.rmtree(directory / "step_00000003")
    files = FILES[request.param]
    found = sorted(path.name for path in (directory / "step_00000005").iterdir())
    assert found == sorted([*files, "manifest.json"])
    return directory, files


@pytest.fixture
def directory(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.grid(5)
@pytest.mark.parametrize("damage", WAYS)
def test_damaged_file_is_named_and_older_checkpoint_is_used(saved, directory, damage, capsys):
    for name in saved[1]:
        path = directory / "step_00000005" / name
        content = path.read_bytes()
        damage(path)
        with pytest.warns(UserWarning, match=f"step_00000005: {name}"):
            trainer = trainer_of(directory)
        assert trainer.resume_report.step == 4
        assert main(["verify", str(directory)]) == 1
        assert f"step_00000005: {name}" in capsys.readouterr().out
        if path.is_dir():
            path.rmdir()
        path.write_bytes(content)
    assert main(["verify", str(directory)]) == 0


@pytest.mark.parametrize("damage", [truncate, empty, make_a_folder_of])
def test_unreadable_manifest_warns_and_older_checkpoint_is_used(directory, damage, capsys):
    damage(directory / "step_00000005" / "manifest.json")
    with pytest.warns(UserWarning, match="step_00000005"):
        trainer = trainer_of(directory)
    assert trainer.resume_report.step == 4
    assert main(["verify", str(directory)]) == 1
    assert "step_00000005: not a checkpoint" in capsys.readouterr().out


def test_a_folder_without_a_manifest_is_no_checkpoint(directory, capsys):
    delete(directory / "step_00000005" / "manifest.json")
    with pytest.warns(UserWarning, match="step_00000005: no manifest"):
        assert trainer_of(directory).resume_report.step == 4
    assert main(["verify", str(directory)]) == 1
    assert "step_00000005: not a checkpoint" in capsys.readouterr().out


def flips(content):
    """Yields a different bit of every third byte; all bits would take minutes."""
    for position in range(0, len(content), 3):
        yield position, 1 << (position % 8)


def test_bit_flip_in_manifest_never_goes_undetected(directory):
    """The manifest must be damaged, or must contradict the files that it lists."""
    path = directory / "step_00000005" / "manifest.json"
    content = path.read_bytes()
    undetected = []
    for position, bit in flips(content):
        changed = bytearray(content)
        changed[position] ^= bit
        path.write_bytes(changed)
        store = CheckpointStore(directory)
        is_damaged = path.parent in store.damaged()
        if not is_damaged:
            (found,) = (c for c in store.checkpoints() if c.folder == path.parent)
            if not find_problems(found):
                undetected.append(bytes(changed[max(position - 12, 0) : position + 12]))
    assert undetected == []


@pytest.mark.parametrize("damage", [truncate, flip_one_bit, delete])
def test_error_lists_all_damaged_checkpoints_and_loads_nothing(directory, damage):
    for folder in directory.glob("step_*"):
        damage(folder / "optimizer.bin")
    trainer = make_trainer(dropout=0.5)
    before = weights(trainer.model)
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(ValueError, match=r"step_00000005: optimizer(.|\n)*step_00000004: optimizer"),
    ):
        ResumeCheckpoint(directory, on_missing="start").attach(trainer)
    assert torch.equal(weights(trainer.model), before)
    assert trainer.resume_report is None


def test_the_fallback_ends_in_the_same_bits(directory, final):
    flip_one_bit(directory / "step_00000005" / "rank_00000.pt")
    with pytest.warns(UserWarning, match="rank_00000.pt has changed"):
        trainer = trainer_of(directory)
    trainer.run(max_epochs=EPOCHS)
    assert torch.equal(weights(trainer.model), final)
