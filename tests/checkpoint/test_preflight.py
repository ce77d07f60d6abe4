import shutil
import warnings
from collections import namedtuple

import pytest
import torch

from ignite_hooks import SaveCheckpoint
from ignite_hooks.checkpoint.preflight import check_directory
from ignite_hooks.checkpoint.preflight import warn_if_full
from tests.reference import batches_of
from tests.reference import make_trainer

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch):
    """A function that sets the free bytes of the disk."""

    def leave(number):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, number))

    return leave


def test_directory_is_created_with_parents_and_left_empty(tmp_path):
    directory = tmp_path / "runs" / "one"
    check_directory(directory)
    check_directory(directory)
    assert list(directory.iterdir()) == []


def test_files_that_are_there_stay_as_they_are(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    check_directory(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("below", ["file", "file/checkpoints"])
def test_a_path_that_cannot_be_a_directory_is_an_error(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"`directory` must be a folder .*file.*: give a"):
        check_directory(tmp_path / below)


def test_a_directory_that_is_not_writable_is_an_error(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")  # root, as tests may be run, is not refused

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(ValueError, match=r"`directory` .* \(PermissionError: .*Permission denied"):
        check_directory(tmp_path)


def test_invalid_directory_is_refused_before_training(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="`directory` must be a folder"):
        make_trainer(batches_of(2), checkpoint=SaveCheckpoint(tmp_path / "file"))


def test_directory_is_checked_again_at_run_start(tmp_path):
    trainer = make_trainer(batches_of(2), checkpoint=SaveCheckpoint(tmp_path / "checkpoints"))
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "checkpoints").touch()
    with pytest.raises(ValueError, match="`directory` must be a folder"):
        trainer.run()
    assert trainer.state.iteration == 0


def test_warns_without_room_for_two_checkpoints(tmp_path, free):
    trainer = make_trainer()
    numbers = sum(parameter.numel() for parameter in trainer.model.parameters())
    two = 2 * 3 * 4 * numbers  # each with two of Adam's, of four bytes
    free(two)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_full(tmp_path, trainer)
    free(two - 1)
    with pytest.warns(UserWarning, match=r"has 0 MiB left, and two checkpoints take some 0 MiB"):
        warn_if_full(tmp_path, trainer)


def test_size_counts_frozen_parameters_once_and_buffers(tmp_path, free):
    trainer = make_trainer()
    trainer.model.requires_grad_(False)
    trainer.model[0].bias.requires_grad_(True)
    trainer.model.register_buffer("table", torch.zeros(100))
    numbers = sum(parameter.numel() for parameter in trainer.model.parameters())
    two = 2 * 4 * (numbers + 100 + 2 * 8)
    free(two)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_full(tmp_path, trainer)
    free(two - 1)
    with pytest.warns(UserWarning, match="two checkpoints"):
        warn_if_full(tmp_path, trainer)


def test_a_run_with_little_room_warns_and_continues(tmp_path, free):
    trainer = make_trainer(batches_of(2), checkpoint=SaveCheckpoint(tmp_path, at_end=False))
    free(3 * 2**20)
    trainer.run()
    free(100)
    with pytest.warns(UserWarning, match="has 0 MiB left"):
        trainer.run(max_epochs=2)
    assert trainer.state.epoch == 2
