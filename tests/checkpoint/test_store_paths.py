"""Tests of links and other entries than checkpoints in a directory of checkpoints."""

import logging
import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

from ignite_hooks.checkpoint.manifest import FileRecord
from ignite_hooks.checkpoint.store import CheckpointStore
from ignite_hooks.checkpoint.store import find_problems
from tests.checkpoint.stored import OURS
from tests.checkpoint.stored import fill
from tests.checkpoint.stored import manifest_of
from tests.checkpoint.stored import save


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "runs")


@pytest.fixture
def elsewhere(tmp_path):
    """A folder outside of the directory, with a file that must stay."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "precious").write_text("mine")
    return folder


def steps(store):
    return [each.manifest.step for each in store.checkpoints()]


def content(folder):
    """Returns each path within a folder, with the bytes of each file."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def moved(folder, target):
    """Moves a checkpoint to another path, and leaves a link in its place."""
    shutil.move(folder, target)
    folder.symlink_to(target, target_is_directory=True)
    return target


# A checkpoint that is a link


def test_moved_checkpoint_is_listed_by_its_link(store, elsewhere):
    save(store, 1)
    moved(save(store, 2), elsewhere / "any name")
    assert [each.folder.name for each in store.checkpoints()] == ["step_00000002", "step_00000001"]
    assert [find_problems(each) for each in store.checkpoints()] == [[], []]
    assert store.broken() == {}
    assert store.next_number() == 3


def test_only_the_link_of_a_pruned_checkpoint_is_removed(store, elsewhere, caplog):
    target = moved(save(store, 1), elsewhere / "step_00000001")
    before = content(elsewhere)
    for step in (2, 3, 4):
        save(store, step)
        with caplog.at_level(logging.INFO):
            store.retain(OURS, 2, 0, None, "max")
    assert sorted(path.name for path in store.directory.iterdir()) == [
        "step_00000003",
        "step_00000004",
    ]
    assert content(elsewhere) == before
    assert [record.message for record in caplog.records] == [
        f"the link {store.directory / 'step_00000001'} was removed, and the checkpoint {target} "
        "stays"
    ]


@pytest.mark.parametrize("names", [["step_00000009"], ["step_00000000"], ["step_00000009-2", "a"]])
def test_link_beside_its_folder_is_not_a_second_checkpoint(store, names):
    folders = [save(store, step) for step in (1, 2, 3)]
    for name in names:
        (store.directory / name).symlink_to(folders[0].name)
    assert steps(store) == [3, 2, 1]
    store.retain(OURS, 2, 0, None, "max")
    assert steps(store) == [3, 2]


def test_two_links_to_one_checkpoint_count_as_one(store, elsewhere):
    target = moved(save(store, 1), elsewhere / "one")
    (store.directory / "step_00000001-2").symlink_to(target)
    save(store, 2)
    assert steps(store) == [2, 1]


def test_targets_of_links_are_not_cleaned_up(store, elsewhere):
    (elsewhere / "incomplete.json").touch()
    (elsewhere / "empty").mkdir()
    (store.directory).mkdir()
    (store.directory / "step_00000007").symlink_to(elsewhere)
    (store.directory / "step_00000008").symlink_to(elsewhere / "empty")
    before = content(elsewhere)
    save(store, 1)
    assert content(elsewhere) == before


# Files of users


@pytest.mark.parametrize(
    "paths", [["notes.txt"], [".nfs000000000012ab"], ["eval/scores.json"], ["rank_0/mine", "a/b"]]
)
def test_user_files_of_a_removed_checkpoint_are_no_checkpoint(store, paths):
    folder = save(store, 1)
    for path in paths:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text("mine")
    save(store, 2)
    store.retain(OURS, 1, 0, None, "max")
    assert {name for name, text in content(folder).items() if text is not None} == set(paths)
    assert (store.broken(), store.damaged(), steps(store)) == ({}, {}, [2])
    assert save(store, 1).name == "step_00000001-2"
    assert store.broken() == {}


@pytest.mark.parametrize("name", ["trainer.pt", "rank_00000.pt", "rank_00012.pt"])
def test_a_folder_that_has_lost_its_manifest_is_damaged(store, name):
    folder = save(store, 1)
    (folder / "manifest.json").unlink()
    (folder / name).touch()
    assert store.broken() == store.damaged() == {folder: "no manifest"}


# Nothing outside the directory is removed


def interrupted_removal(store, step, names):
    """Creates the folder of an interrupted removal, with the given names in its manifest."""
    folder = store.begin(step)
    fill(folder)
    files = dict.fromkeys(names, FileRecord(size=1, checksum=""))
    manifest = manifest_of(store, folder, step).model_copy(update={"files": files})
    (folder / "incomplete.json").write_bytes(manifest.dumps())
    return folder


@pytest.mark.parametrize(
    "name", ["link/precious", "link/deep/../precious", "/etc/hosts", "../../elsewhere/precious"]
)
def test_listed_paths_outside_of_the_folder_are_not_removed(store, elsewhere, name):
    folder = interrupted_removal(store, 7, [name, "link/more"])
    (folder / "link").symlink_to(elsewhere)
    (elsewhere / "more").touch()
    before = content(elsewhere)
    save(store, 1)
    assert content(elsewhere) == before
    assert steps(store) == [1]


def test_files_behind_a_linked_sub_folder_are_not_removed(store):
    folder = interrupted_removal(store, 7, ["link/mine"])
    (folder / "own").mkdir()
    (folder / "own" / "mine").write_text("mine")
    (folder / "link").symlink_to("own")
    save(store, 1)
    assert (folder / "own" / "mine").read_text() == "mine"


def test_listed_links_are_removed_and_listed_folders_kept(store, elsewhere):
    folder = interrupted_removal(
        store, 7, ["file", "folder", "eval", "eval/scores", "none/x", "model.safetensors/x"]
    )
    (folder / "file").symlink_to(elsewhere / "precious")
    (folder / "folder").symlink_to(elsewhere)
    (folder / "eval").mkdir()
    (folder / "eval" / "plot").touch()
    before = content(elsewhere)
    save(store, 1)
    assert content(elsewhere) == before
    assert set(content(folder)) >= {"eval", "eval/plot"}
    assert not {"file", "folder", "incomplete.json"} & set(os.listdir(folder))


def test_links_in_the_folder_of_a_killed_save_are_not_followed(store, elsewhere):
    folder = store.begin(7)
    fill(folder)
    (folder / "link").symlink_to(elsewhere)
    (folder / "rank_0" / "link").symlink_to(elsewhere)
    (folder / "file").symlink_to(elsewhere / "precious")
    before = content(elsewhere)
    save(store, 1)
    assert content(elsewhere) == before
    assert not folder.exists()


def test_sub_folder_that_becomes_a_link_is_left_alone(store, elsewhere, monkeypatch):
    folder = save(store, 1)
    (elsewhere / "rng.json").write_text("mine")
    unlink = Path.unlink

    def swap(path, *options, **named):
        unlink(path, *options, **named)
        if path.name == "model.safetensors":
            (folder / "rank_0").rename(folder / "moved")
            (folder / "rank_0").symlink_to(elsewhere)

    monkeypatch.setattr(Path, "unlink", swap)
    store.remove(folder)
    assert (elsewhere / "rng.json").read_text() == "mine"


# What could stop a save


def fifo(path):
    os.mkfifo(path)


def listening(path):
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(path.name)
    finally:
        os.chdir(here)


MAKERS = {
    "file": Path.touch,
    "fifo": fifo,
    "socket": listening,
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a fifo": lambda path: (fifo(path.parent / "pipe"), path.symlink_to("pipe")),
    "link to the directory": lambda path: path.symlink_to("."),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_name_in_use_does_not_stop_a_save(store, kind):
    save(store, 1)
    MAKERS[kind](store.directory / "step_00000002")
    assert save(store, 2).name == "step_00000002-2"
    store.retain(OURS, 1, 0, None, "max")
    assert steps(store) == [2]
    assert os.path.lexists(store.directory / "step_00000002")
    assert store.broken() == {}


@pytest.mark.parametrize("kind", [*MAKERS, "folder"])
@pytest.mark.parametrize("name", ["manifest.json", "incomplete.json"])
def test_special_files_in_a_folder_do_not_stop_a_save(store, name, kind):
    folder = store.directory / "step_00000009"
    folder.mkdir(parents=True)
    {**MAKERS, "folder": Path.mkdir}[kind](folder / name)
    assert store.begin(1).name == "step_00000001"
    assert store.next_number() == 1
    if (name, kind) != ("incomplete.json", "file"):  # the remains of a killed save
        assert os.path.lexists(folder / name)
    if name == "manifest.json":
        why = "its manifest is damaged" if kind == "file" else "its manifest is not a file"
        assert store.damaged() == {folder: why}


@pytest.fixture
def unprivileged():
    """A directory, and a function after which files of others cannot be read."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o777)
    is_root = os.geteuid() == 0

    def give_up_rights():
        if is_root:
            os.seteuid(65534)

    yield directory, give_up_rights
    if is_root:
        os.seteuid(0)
    for path in directory.iterdir():
        path.chmod(0o777)
    shutil.rmtree(directory)


@pytest.mark.parametrize("name", ["manifest.json", "incomplete.json", "trainer.pt"])
def test_unreadable_folders_do_not_stop_a_save(unprivileged, name):
    directory, give_up_rights = unprivileged
    store = CheckpointStore(directory)
    theirs = directory / "step_00000009"
    theirs.mkdir()
    (theirs / name).touch()
    theirs.chmod(0)
    give_up_rights()
    save(store, 1)
    save(store, 2)
    store.retain(OURS, 1, 0, None, "max")
    assert [each.manifest.number for each in store.checkpoints()] == [2]
    assert store.damaged() == {theirs: "it cannot be read (Permission denied)"}


def test_remains_that_cannot_be_removed_only_warn(unprivileged):
    directory, give_up_rights = unprivileged
    store = CheckpointStore(directory)
    theirs = store.begin(9)
    (theirs / "file").touch()
    give_up_rights()
    with pytest.warns(
        UserWarning, match="interrupted save .*step_00000009, could not be removed: "
    ):
        save(store, 1)
    assert steps(store) == [1]


def test_failed_removal_does_not_keep_other_checkpoints(store, monkeypatch):
    for step in range(1, 5):
        save(store, step)
    replace = os.replace

    def refuse(source, target):
        if "step_00000003" in str(source):
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        store.retain(OURS, 1, 0, None, "max")
    assert steps(store) == [4, 3]


@pytest.mark.parametrize("action", ["commit", "remove"])
def test_folder_that_changes_during_its_check_is_not_broken(store, monkeypatch, action):
    folder = store.begin(1)
    fill(folder)
    manifest = manifest_of(store, folder, 1)
    stat, listdir = Path.stat, os.listdir

    def commit_and_list(path):
        if path == folder:
            store.commit(folder, manifest)
        return listdir(path)

    def stat_and_remove(path, **options):
        found = stat(path, **options)
        if path == folder / "manifest.json":
            monkeypatch.undo()
            store.remove(folder)
        return found

    if action == "commit":
        (folder / "trainer.pt").touch()
        monkeypatch.setattr(os, "listdir", commit_and_list)
    else:
        store.commit(folder, manifest)
        monkeypatch.setattr(Path, "stat", stat_and_remove)
    assert store.damaged() == {}
