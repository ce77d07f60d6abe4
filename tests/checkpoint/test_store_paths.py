"""Links, and what is not a checkpoint, in a directory of checkpoints."""

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
    """A folder outside of the directory, with something that must stay."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "precious").write_text("mine")
    return folder


def steps(store):
    return [each.manifest.step for each in store.checkpoints()]


def content(folder):
    """Each path within a folder, and the bytes of each file."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def moved(folder, target):
    """Moves a checkpoint elsewhere, with a link left in its place."""
    shutil.move(folder, target)
    folder.symlink_to(target, target_is_directory=True)
    return target


# A checkpoint that is a link


def test_moved_and_linked_checkpoint_is_one_of_the_directory(store, elsewhere):
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
def test_a_second_name_of_a_checkpoint_does_not_count(store, names):
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


def test_what_a_link_leads_to_is_not_cleaned_up(store, elsewhere):
    (elsewhere / "incomplete.json").touch()
    (elsewhere / "empty").mkdir()
    (store.directory).mkdir()
    (store.directory / "step_00000007").symlink_to(elsewhere)
    (store.directory / "step_00000008").symlink_to(elsewhere / "empty")
    before = content(elsewhere)
    save(store, 1)
    assert content(elsewhere) == before


# What a user has put there


@pytest.mark.parametrize(
    "paths", [["notes.txt"], [".nfs000000000012ab"], ["eval/scores.json"], ["rank_0/mine", "a/b"]]
)
def test_folder_of_a_removed_checkpoint_with_user_files_is_none(store, paths):
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


def left_over(store, step, names):
    """A folder with the list of a removal that was broken off, of names that were made up."""
    folder = store.begin(step)
    fill(folder)
    files = dict.fromkeys(names, FileRecord(size=1, checksum=""))
    manifest = manifest_of(store, folder, step).model_copy(update={"files": files})
    (folder / "incomplete.json").write_bytes(manifest.dumps())
    return folder


@pytest.mark.parametrize(
    "name", ["link/precious", "link/deep/../precious", "/etc/hosts", "../../elsewhere/precious"]
)
def test_list_that_leads_out_of_the_folder_removes_nothing_there(store, elsewhere, name):
    folder = left_over(store, 7, [name, "link/more"])
    (folder / "link").symlink_to(elsewhere)
    (elsewhere / "more").touch()
    before = content(elsewhere)
    save(store, 1)
    assert content(elsewhere) == before
    assert steps(store) == [1]


def test_link_to_a_sub_folder_of_the_user_removes_nothing_there(store):
    folder = left_over(store, 7, ["link/mine"])
    (folder / "own").mkdir()
    (folder / "own" / "mine").write_text("mine")
    (folder / "link").symlink_to("own")
    save(store, 1)
    assert (folder / "own" / "mine").read_text() == "mine"


def test_listed_links_go_and_listed_folders_of_the_user_stay(store, elsewhere):
    folder = left_over(
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


IN_ITS_PLACE = {
    "file": Path.touch,
    "fifo": fifo,
    "socket": listening,
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a fifo": lambda path: (fifo(path.parent / "pipe"), path.symlink_to("pipe")),
    "link to the directory": lambda path: path.symlink_to("."),
}


@pytest.mark.parametrize("kind", IN_ITS_PLACE)
def test_a_name_that_is_taken_does_not_stop_a_save(store, kind):
    save(store, 1)
    IN_ITS_PLACE[kind](store.directory / "step_00000002")
    assert save(store, 2).name == "step_00000002-2"
    store.retain(OURS, 1, 0, None, "max")
    assert steps(store) == [2]
    assert os.path.lexists(store.directory / "step_00000002")
    assert store.broken() == {}


@pytest.mark.parametrize("kind", [*IN_ITS_PLACE, "folder"])
@pytest.mark.parametrize("name", ["manifest.json", "incomplete.json"])
def test_odd_files_in_a_folder_do_not_stop_a_save(store, name, kind):
    folder = store.directory / "step_00000009"
    folder.mkdir(parents=True)
    {**IN_ITS_PLACE, "folder": Path.mkdir}[kind](folder / name)
    assert store.begin(1).name == "step_00000001"
    assert store.next_number() == 1
    if (name, kind) != ("incomplete.json", "file"):  # the rest of a save that was killed
        assert os.path.lexists(folder / name)
    if name == "manifest.json":
        why = "its manifest is damaged" if kind == "file" else "its manifest is not a file"
        assert store.damaged() == {folder: why}


@pytest.fixture
def unprivileged():
    """A directory, and no right to what others have in it."""
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
def test_folders_that_may_not_be_entered_do_not_stop_a_save(unprivileged, name):
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


def test_remains_that_cannot_be_removed_are_told_and_do_not_stop_a_save(unprivileged):
    directory, give_up_rights = unprivileged
    store = CheckpointStore(directory)
    theirs = store.begin(9)
    (theirs / "file").touch()
    give_up_rights()
    with pytest.warns(UserWarning, match="broken off, .*step_00000009, could not be removed: "):
        save(store, 1)
    assert steps(store) == [1]


def test_a_checkpoint_that_cannot_be_removed_does_not_keep_the_others(store, monkeypatch):
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


@pytest.mark.parametrize("act", ["commit", "remove"])
def test_folder_that_changes_while_it_is_looked_at_is_not_broken(store, monkeypatch, act):
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

    if act == "commit":
        (folder / "trainer.pt").touch()
        monkeypatch.setattr(os, "listdir", commit_and_list)
    else:
        store.commit(folder, manifest)
        monkeypatch.setattr(Path, "stat", stat_and_remove)
    assert store.damaged() == {}
