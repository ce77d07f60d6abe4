import os
import pathlib
import sys
from math import inf
from math import nan

import pytest

from ignite_hooks.checkpoint import store as store_module
from ignite_hooks.checkpoint.store import CheckpointStore
from ignite_hooks.checkpoint.store import find_problems
from ignite_hooks.checkpoint.store import has_all_files
from ignite_hooks.checkpoint.store import is_still_there
from ignite_hooks.checkpoint.store import read_manifest
from tests.checkpoint.stored import FILES
from tests.checkpoint.stored import OURS
from tests.checkpoint.stored import damaged
from tests.checkpoint.stored import fill
from tests.checkpoint.stored import manifest_of
from tests.checkpoint.stored import save


def names(store):
    return sorted(path.name for path in store.directory.iterdir())


def steps(store):
    return [each.manifest.step for each in store.checkpoints()]


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "runs" / "checkpoints")


def test_checkpoint_is_listed_only_after_its_commit(store):
    assert store.checkpoints() == []
    folder = store.begin(500)
    assert folder == store.directory / "step_00000500"
    fill(folder)
    assert store.checkpoints() == []
    store.commit(folder, manifest_of(store, folder, 500))
    (checkpoint,) = store.checkpoints()
    assert checkpoint.folder == folder
    assert checkpoint.manifest.files.keys() == FILES.keys()
    assert find_problems(checkpoint) == []
    assert sorted(os.listdir(folder)) == ["manifest.json", "model.safetensors", "rank_0"]


def test_last_commit_is_the_newest_whatever_its_step(store):
    for step in (10, 20, 5):
        save(store, step)
    assert steps(store) == [5, 20, 10]
    assert [each.manifest.number for each in store.checkpoints()] == [3, 2, 1]


def test_second_checkpoint_of_a_step_keeps_the_first(store):
    first, second, third = (save(store, 7) for _ in range(3))
    assert [each.name for each in (first, second, third)] == [
        "step_00000007",
        "step_00000007-2",
        "step_00000007-3",
    ]
    assert [each.folder for each in store.checkpoints()] == [third, second, first]


def test_steps_of_more_than_eight_digits_are_found(store):
    folder = save(store, 123_456_789)
    assert folder.name == "step_123456789"
    assert steps(store) == [123_456_789]


@pytest.mark.parametrize("killed", ["at once", "half filled", "in the manifest", "before renaming"])
def test_remains_of_a_killed_save_are_removed_by_the_next(store, killed):
    save(store, 1)
    folder = store.begin(2)
    if killed != "at once":
        fill(folder)
        (folder / "rank_0" / "more").touch()
    text = manifest_of(store, folder, 2).dumps() if killed not in ("at once",) else b""
    if killed == "in the manifest":
        (folder / "incomplete.json").write_bytes(text[:100])
    if killed == "before renaming":
        (folder / "rank_0" / "more").unlink()
        (folder / "incomplete.json").write_bytes(text)
    assert steps(store) == [1]
    assert folder.exists()
    assert save(store, 2) == folder
    assert steps(store) == [2, 1]
    assert find_problems(store.checkpoints()[0]) == []
    assert not (folder / "rank_0" / "more").exists()


def test_killed_removal_is_finished_by_the_next_save(store, monkeypatch):
    folder = save(store, 1)
    save(store, 2)
    real_unlink = os.unlink
    unlinked = []

    def die(path, **options):
        if unlinked:
            raise KeyboardInterrupt
        unlinked.append(path)
        real_unlink(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", die)
        if sys.version_info < (3, 11):  # Path has its own copy of the functions
            patched.setattr(pathlib._normal_accessor, "unlink", die)
        with pytest.raises(KeyboardInterrupt):
            store.remove(folder)
    assert len(unlinked) == 1
    assert steps(store) == [2]
    assert folder.exists()
    save(store, 3)
    assert not folder.exists()


def test_other_files_and_folders_are_never_touched(store):
    save(store, 1)
    foreign = {
        "notes.txt": "file",
        "step_00000009": "folder of a user",
        "step_9": "folder",
        "best": "folder",
        "step_00000008": "file",
    }
    for name, kind in foreign.items():
        path = store.directory / name
        if kind == "file":
            path.write_text("mine")
        else:
            path.mkdir()
            (path / "mine").write_text("mine")
    elsewhere = store.directory.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "incomplete.json").touch()
    (store.directory / "step_00000007").symlink_to(elsewhere)
    for step in (2, 3, 4):
        save(store, step)
        store.retain(OURS, 1, 0, None, "max")
    assert names(store) == sorted([*foreign, "step_00000004", "step_00000007"])
    assert (store.directory / "step_00000009" / "mine").read_text() == "mine"
    assert (elsewhere / "incomplete.json").exists()
    assert save(store, 9).name == "step_00000009-2"


def test_user_files_survive_removal_of_their_checkpoint(store):
    folder = save(store, 1)
    (folder / "notes.txt").write_text("mine")
    (folder / "rank_0" / "notes.txt").write_text("mine")
    store.remove(folder)
    assert sorted(map(str, (path.relative_to(folder) for path in folder.rglob("*")))) == [
        "notes.txt",
        "rank_0",
        "rank_0/notes.txt",
    ]
    assert store.checkpoints() == []


def kept(store, values, keep_last, keep_best, mode="max", metric="accuracy"):
    for step, value in enumerate(values, start=1):
        save(store, step, metric="accuracy", metric_value=value)
        store.retain(OURS, keep_last, keep_best, metric, mode)
    return sorted(steps(store))


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "mode", "expected"),
    [
        (3, 0, "max", [4, 5, 6]),
        (1, 0, "max", [6]),
        (None, 0, "max", [1, 2, 3, 4, 5, 6]),
        (None, 1, "max", [1, 2, 3, 4, 5, 6]),
        (1, 1, "max", [2, 6]),
        (1, 2, "max", [2, 4, 6]),
        (1, 1, "min", [1, 6]),
        (2, 2, "min", [1, 3, 5, 6]),
    ],
)
def test_the_newest_and_the_best_are_kept(store, keep_last, keep_best, mode, expected):
    assert kept(store, [0.1, 0.9, 0.3, 0.5, 0.4, 0.35], keep_last, keep_best, mode) == expected


def test_nan_and_none_are_never_the_best(store):
    assert kept(store, [nan, 0.2, None, nan, 0.1, nan], 1, 3) == [2, 5, 6]


def test_infinities_are_values(store):
    assert kept(store, [0.0, inf, 1.0, -inf, 2.0], 1, 1) == [2, 5]


def test_newer_checkpoint_wins_a_tie(store):
    assert kept(store, [0.5, 0.5, 0.5, 0.1, 0.1], 1, 1) == [3, 5]


def test_values_of_another_metric_are_never_the_best(store):
    assert kept(store, [0.9, 0.8, 0.7], 1, 2, metric="f1") == [3]


def test_retention_uses_manifests_and_survives_a_resume(store):
    kept(store, [0.9, 0.1, 0.2], 1, 1)
    other = CheckpointStore(store.directory)
    save(other, 4, metric="accuracy", metric_value=0.3)
    other.retain(OURS, 1, 1, "accuracy", "max")
    assert sorted(steps(other)) == [1, 4]


def test_checkpoints_of_another_run_are_not_pruned(store):
    for step, value in ((10, 0.9), (20, 0.8)):
        save(store, step, training="theirs", metric="accuracy", metric_value=value)
    assert kept(store, [0.1, 0.3, 0.2], 1, 1) == [2, 3, 10, 20]


@pytest.mark.parametrize("how", ["deleted", "emptied", "truncated", "longer"])
def test_incomplete_checkpoint_is_not_counted_and_is_pruned(store, how):
    folders = [save(store, step, metric="f1", metric_value=step) for step in (1, 2, 3)]
    damaged(folders[2], how)
    store.retain(OURS, 2, 1, "f1", "max")
    assert sorted(steps(store)) == [1, 2, 3]
    save(store, 4)
    store.retain(OURS, 2, 1, "f1", "max")
    assert sorted(steps(store)) == [2, 3, 4]
    save(store, 5)
    store.retain(OURS, 2, 1, "f1", "max")
    assert sorted(steps(store)) == [2, 4, 5]


@pytest.mark.parametrize(("owner", "call"), [(os, "fsync"), (pathlib.Path, "touch")])
def test_failed_begin_leaves_no_folder(store, monkeypatch, owner, call):
    store.directory.mkdir(parents=True)

    def fail(*args, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(owner, call, fail)
    with pytest.raises(OSError, match="No space left"):
        store.begin(1)
    assert names(store) == []


@pytest.fixture
def read(monkeypatch):
    """The steps of the manifests that are read, in order."""
    steps, real = [], store_module.read_manifest

    def note(folder):
        manifest = real(folder)
        steps.append(manifest.step)
        return manifest

    monkeypatch.setattr(store_module, "read_manifest", note)
    return steps


def test_each_manifest_is_read_once_however_many_saves_follow(store, read):
    for step in range(1, 6):
        save(store, step)
        store.retain(OURS, 2, 0, None, "max")
    assert sorted(read) == [1, 2, 3, 4, 5]


def test_manifest_that_has_changed_is_read_again(store, read):
    folder = save(store, 1)
    (first,) = store.checkpoints()
    manifest = first.manifest.model_copy(update={"ended_by": "somebody"})
    CheckpointStore(store.directory).amend(folder, manifest)
    (found,) = store.checkpoints()
    assert (read, found.manifest.ended_by) == ([1, 1], "somebody")
    (folder / "manifest.json").write_bytes(b"damaged")
    assert store.checkpoints() == []


def test_replaced_checkpoint_of_the_same_name_is_read_again(store):
    folder = save(store, 1)
    assert steps(store) == [1]
    other = CheckpointStore(store.directory.parent / "other")
    save(other, 1, training="theirs")
    store.remove(folder)
    (other.directory / folder.name).rename(folder)
    (found,) = store.checkpoints()
    assert found.manifest.training == "theirs"


def test_save_and_removal_sync_in_the_documented_order(store, monkeypatch):
    save(store, 1)
    calls, opened = [], {}
    real = {name: getattr(os, name) for name in ("open", "fsync", "replace", "unlink", "rmdir")}

    def short(path):
        return os.path.relpath(path, store.directory)

    def note_open(path, *rest, **options):
        descriptor = real["open"](path, *rest, **options)
        opened[descriptor] = path
        return descriptor

    def note_fsync(descriptor):
        calls.append(f"fsync {short(opened[descriptor])}")
        real["fsync"](descriptor)

    def note(name):
        def act(*paths, **options):
            calls.append(" ".join([name, *map(short, paths)]))
            real[name](*paths, **options)

        return act

    monkeypatch.setattr(os, "open", note_open)
    monkeypatch.setattr(os, "fsync", note_fsync)
    for name in ("replace", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, note(name))
        if sys.version_info < (3, 11):  # Path has its own copy of the functions
            monkeypatch.setattr(pathlib._normal_accessor, name, note(name))
    save(store, 2)
    store.retain(OURS, 1, 0, None, "max")
    one, two = "step_00000001", "step_00000002"
    assert calls == [
        f"fsync {two}",
        "fsync .",
        f"fsync {two}/incomplete.json",
        f"replace {two}/incomplete.json {two}/manifest.json",
        f"fsync {two}",
        f"replace {one}/manifest.json {one}/incomplete.json",
        f"fsync {one}",
        f"unlink {one}/model.safetensors",
        f"unlink {one}/rank_0/rng.json",
        f"rmdir {one}/rank_0",
        f"fsync {one}",
        f"unlink {one}/incomplete.json",
        f"rmdir {one}",
        "fsync .",
    ]


# Damage to a folder


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("deleted", "cannot be read (No such file or directory)"),
        ("a folder", "cannot be read (Is a directory)"),
        ("emptied", "has 0 bytes, but had 7 when it was saved"),
        ("truncated", "has 6 bytes, but had 7 when it was saved"),
        ("longer", "has 8 bytes, but had 7 when it was saved"),
        ("a bit flipped", "has changed since it was written"),
    ],
)
def test_each_kind_of_damage_is_found_and_reported(store, how, said):
    damaged(save(store, 1), how)
    (checkpoint,) = store.checkpoints()
    assert find_problems(checkpoint) == [f"model.safetensors {said}"]
    assert has_all_files(checkpoint) == (how == "a bit flipped")


@pytest.mark.parametrize("text", [b"", b"{}", b"x" * 100, b" " * (2**24 + 1)], ids=len)
def test_folder_with_damaged_manifest_is_ignored_but_kept(store, text):
    folder = save(store, 1)
    (folder / "manifest.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"(?i)manifest"):
        read_manifest(folder)
    assert store.checkpoints() == []
    save(store, 2)
    store.retain(OURS, 1, 0, None, "max")
    assert folder.exists()


def test_manifest_over_the_size_limit_is_not_parsed(store):
    file = save(store, 1) / "manifest.json"
    file.write_bytes(file.read_bytes() + b" " * 2**24)
    assert store.checkpoints() == []
    assert list(store.broken().values()) == ["its manifest is damaged"]


def test_removed_or_replaced_checkpoint_is_not_damaged(store):
    folder = save(store, 1, metric="loss", metric_value=nan)
    (checkpoint,) = store.checkpoints()
    assert is_still_there(checkpoint)
    damaged(folder, "deleted")
    assert is_still_there(checkpoint)
    store.remove(folder)
    assert not is_still_there(checkpoint)
    assert save(store, 1) == folder
    assert not is_still_there(checkpoint)
    (folder / "manifest.json").write_text("{")
    assert is_still_there(checkpoint)
