"""Tests of directories with other entries than checkpoints, which are skipped or reported."""

import json
import os
import shutil
import socket
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks.checkpoint.__main__ import main
from ignite_hooks.checkpoint.manifest import with_checksum
from ignite_hooks.checkpoint.source import source_at
from ignite_hooks.checkpoint.source_interface import SourceError
from tests.reference import batches_of
from tests.reference import make_trainer

WEB_APP = json.dumps({"name": "a web app", "icons": [], "version": 3, "files": {}})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with a checkpoint of step 1."""
    folder = tmp_path_factory.mktemp("saved")
    make_trainer(batches_of(1), checkpoint=SaveCheckpoint(folder)).run()
    return folder


@pytest.fixture
def directory(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def resumed(source, **options):
    """Returns the step from which a trainer resumes."""
    trainer = make_trainer(batches_of(1), resume_from=ResumeCheckpoint(source, **options))
    return trainer.state.optimizer_step


def found(place):
    return [each.manifest.step for each in source_at(place, None).find().candidates]


@pytest.mark.parametrize("text", [WEB_APP, "[]", '"manifest"', "3"])
def test_manifest_of_another_program_is_ignored(directory, text, capsys):
    (directory / "manifest.json").write_text(text)
    assert resumed(directory) == 1
    for command in ("list", "show", "verify"):
        assert main([command, str(directory)]) == 0
        assert "step_00000001" in capsys.readouterr().out
    shutil.rmtree(directory / "step_00000001")
    assert resumed(directory, on_missing="start") == 0


@pytest.mark.parametrize("text", ["{", "", "\0" * 99, "<html></html>"])
def test_invalid_manifest_beside_checkpoints_is_ignored(directory, text):
    (directory / "manifest.json").write_text(text)
    assert resumed(directory) == 1


@pytest.mark.parametrize("name", ["the best", "step_00000001"])
@pytest.mark.parametrize("damage", ["emptied", "cut", "a key", "another key", "a value"])
def test_damaged_manifest_of_a_named_checkpoint_is_an_error(directory, tmp_path, name, damage):
    folder = shutil.move(directory / "step_00000001", tmp_path / name)
    path = Path(folder) / "manifest.json"
    text = path.read_text()
    changed = {
        "emptied": "",
        "cut": text[: len(text) // 3],
        "a key": text.replace("manifest_checksum", "manifest_checksun"),
        "another key": text.replace("data_pass", "data_pats"),
        "a value": text.replace('"step": 1', '"step": 5'),
    }[damage]
    assert changed != text
    path.write_text(changed)
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(ValueError, match=f"{name}: its manifest cannot be read"),
    ):
        resumed(folder, on_missing="start")


@pytest.mark.parametrize("name", ["step_00000500", "step_00000001", "step_00000001-2"])
def test_directory_may_have_the_name_of_a_checkpoint(directory, tmp_path, name, capsys):
    source = directory.rename(tmp_path / name)
    assert resumed(source) == 1
    assert resumed(source / "step_00000001") == 1
    assert main(["verify", str(source)]) == 0
    (source / "manifest.json").write_text(WEB_APP)
    assert resumed(source) == 1
    shutil.rmtree(source / "step_00000001")
    (source / "notes.txt").write_text("mine")
    assert resumed(source, on_missing="start") == 0


def fifo(path):
    os.mkfifo(path)


def listening(path):
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as each:
            each.bind(path.name)
    finally:
        os.chdir(here)


def device(path):
    path.symlink_to("/dev/zero")


def dangling(path):
    path.symlink_to("/nowhere/at/all")


def a_loop(path):
    path.symlink_to(path)


MAKERS = [fifo, listening, device, dangling, a_loop, Path.mkdir]


@pytest.mark.parametrize("make", MAKERS)
def test_manifest_that_is_not_a_file_is_reported_and_skipped(directory, make, capsys):
    folder = directory / "step_00000009"
    folder.mkdir()
    make(folder / "manifest.json")
    with pytest.warns(UserWarning, match="skipped, .*step_00000009: ") as caught:
        trainer = make_trainer(
            batches_of(1), checkpoint=SaveCheckpoint(directory), resume_from=directory
        )
    assert trainer.state.optimizer_step == 1
    assert len([each for each in caught if "skipped" in str(each.message)]) == 1
    trainer.run(max_epochs=2)
    assert found(directory) == [2, 1]
    assert main(["verify", str(directory)]) == 1
    assert "step_00000009: not a checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize("make", [*MAKERS[:-1]])
def test_entry_named_like_a_checkpoint_but_no_folder_is_skipped(directory, make):
    make(directory / "step_00000009")
    message = "skipped, .*step_00000009: (not a folder|a link to .* not)"
    with pytest.warns(UserWarning, match=message):
        assert resumed(directory) == 1


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "rank_00000.pt"])
def test_checkpoint_with_an_entry_that_is_no_file_is_skipped(directory, make, verify, name):
    newer = shutil.copytree(directory / "step_00000001", directory / "step_00000001-2")
    text = json.loads((newer / "manifest.json").read_text())
    (newer / "manifest.json").write_bytes(with_checksum(json.dumps({**text, "number": 2}).encode()))
    file = directory / "step_00000001-2" / name
    file.unlink()
    make(file)
    with pytest.warns(UserWarning, match=f"skipped, .*step_00000001-2: {name} cannot be read"):
        assert resumed(directory, verify=verify) == 1


def test_only_damaged_checkpoints_are_an_error_and_no_fresh_start(directory):
    (directory / "step_00000001").rename(directory.parent / "moved")
    (directory / "step_00000001").symlink_to("/archive/step_00000001")
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(ValueError, match="a link to /archive/step_00000001, which is not there"),
    ):
        resumed(directory, on_missing="start")


def test_plain_file_named_like_a_checkpoint_is_ignored(directory):
    (directory / "step_00000009").write_text("mine")
    assert resumed(directory) == 1


def test_dangling_link_as_source_is_an_error(tmp_path):
    (tmp_path / "checkpoints").symlink_to("/mnt/not/mounted")
    with pytest.raises(SourceError, match=r"got the link .* to /mnt/not/mounted, which is not"):
        resumed(tmp_path / "checkpoints", on_missing="start")


@contextmanager
def as_nobody():
    """Becomes another user if the test runs as root, who may read everything."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


@pytest.fixture
def public(directory):
    """A copy of the directory that other users can reach."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        copied = shutil.copytree(directory, Path(folder) / "checkpoints")
        copied.chmod(0o755)
        yield copied


@pytest.mark.parametrize("mode", [0, 0o400, 0o100])
def test_unreadable_source_is_an_error_that_names_it(public, mode, capsys):
    if hasattr(os, "chown") and os.geteuid() == 0:
        os.chown(public, 65534, -1)
    public.chmod(mode)
    try:
        with as_nobody():
            with pytest.raises(SourceError, match=r"`source` .*checkpoints could not be read"):
                source_at(public, None).find()
            assert main(["list", str(public)]) == 2
            assert "could not be read: PermissionError" in capsys.readouterr().err
    finally:
        public.chmod(0o700)


@pytest.mark.parametrize("mode", [0, 0o400])
def test_unreadable_checkpoint_folder_is_skipped(public, mode):
    folder = shutil.copytree(public / "step_00000001", public / "step_00000009")
    if os.geteuid() == 0:
        os.chown(folder, 65534, -1)
    folder.chmod(mode)
    try:
        with as_nobody():
            listing = source_at(public, None).find()
            assert [each.manifest.step for each in listing.candidates] == [1]
            assert list(listing.damaged) == [str(folder)]
            assert "Permission denied" in listing.damaged[str(folder)]
    finally:
        folder.chmod(0o700)
