"""Tests of sources: how checkpoints are listed, and the files that a download leaves."""

import io
import json
import os
import shutil

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks.checkpoint.manifest import with_checksum
from ignite_hooks.checkpoint.source import source_at
from ignite_hooks.checkpoint.source_interface import SourceError
from ignite_hooks.checkpoint.store import read_manifest
from tests.ids import stable_id
from tests.reference import batches_of
from tests.reference import make_trainer
from tests.reference import weights


@pytest.fixture
def memory():
    """The file system of memory://, empty before and after the test."""
    MemoryFileSystem.store.clear()
    yield fsspec.filesystem("memory")
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def directory(tmp_path):
    """A directory with checkpoints of the steps 1, 2 and 3."""
    folder = tmp_path / "checkpoints"
    checkpoint = SaveCheckpoint(folder, every_steps=1, keep_last="all")
    make_trainer(batches_of(3), checkpoint=checkpoint).run()
    return folder


@pytest.fixture(params=["file", "memory"])
def remote(request, directory, memory):
    """The URL of these checkpoints."""
    if request.param == "file":
        return directory.as_uri()
    memory.put(str(directory), "/runs/checkpoints", recursive=True)
    return "memory://runs/checkpoints"


def step_of(number):
    return f"step_{number:08d}"


def found(place, cache=None):
    look = source_at(place, cache).find()
    damaged = [f"{name}: {why}" for name, why in look.damaged.items()]
    return [each.manifest.step for each in look.candidates], damaged


def resumed(source, **options):
    """Returns the step from which a trainer resumes."""
    trainer = make_trainer(batches_of(3), resume_from=ResumeCheckpoint(source, **options))
    return trainer.state.optimizer_step


def renumber(folder, number):
    path = folder / "manifest.json"
    path.write_bytes(
        with_checksum(json.dumps({**json.loads(path.read_text()), "number": number}).encode())
    )


def files_of(cache):
    """Returns the names of downloads, complete or in progress."""
    names = os.listdir(cache) if cache.exists() else []
    return sorted(name for name in names if name != ".lock")


def test_directory_lists_checkpoints_newest_first_by_number(directory):
    assert found(directory) == ([3, 2, 1], [])
    renumber(directory / step_of(1), 9)
    assert found(directory) == ([1, 3, 2], [])
    assert resumed(directory) == 1


def test_folder_of_a_single_checkpoint_may_have_any_name(directory, tmp_path):
    assert found(directory / step_of(2)) == ([2], [])
    copied = shutil.copytree(directory / step_of(2), tmp_path / "the best")
    assert found(copied) == ([2], [])
    assert resumed(str(copied)) == 2
    (tmp_path / "newest").symlink_to(directory / step_of(3))
    assert resumed(tmp_path / "newest") == 3


def test_unfinished_saves_are_not_found(directory, tmp_path):
    (tmp_path / "empty").mkdir()
    for step in (1, 2, 3):
        folder = directory / step_of(step)
        (folder / "manifest.json").rename(folder / "incomplete.json")
    for place in (directory, directory / step_of(1), tmp_path / "empty", tmp_path / "none"):
        assert found(place) == ([], [])
        assert found(place.as_uri(), tmp_path / "cache") == ([], [])
    assert found("memory://nowhere", tmp_path / "cache") == ([], [])


def test_damaged_manifest_is_reported(directory, tmp_path):
    (directory / step_of(2) / "manifest.json").write_text("{")
    for place in (directory, directory.as_uri()):
        steps, (damage,) = found(place, tmp_path / "cache")
        assert steps == [3, 1]
        assert "step_00000002: its manifest is damaged" in damage
    for place in (directory / step_of(2), (directory / step_of(2)).as_uri()):
        steps, (damage,) = found(place, tmp_path / "cache")
        assert steps == []
        assert "step_00000002: its manifest " in damage


def test_file_in_place_of_the_directory_is_an_error(tmp_path):
    path = tmp_path / "checkpoints"
    path.write_text("mine")
    with pytest.raises(ValueError, match="checkpoints"):
        make_trainer(batches_of(3), resume_from=ResumeCheckpoint(path, on_missing="start"))


def test_url_needs_a_cache_dir():
    with pytest.raises(ValueError, match="`cache_dir` must be given for a URL, got None for s3://"):
        source_at("s3://bucket/checkpoints", None)
    with pytest.raises(ValueError, match="`cache_dir` must be given for a URL"):
        make_trainer(batches_of(3), resume_from="memory://runs/checkpoints")


def test_url_lists_the_same_checkpoints_as_the_directory(directory, remote, tmp_path):
    cache = tmp_path / "cache"
    assert found(remote, cache) == ([3, 2, 1], [])
    assert found(f"{remote}/", cache) == ([3, 2, 1], [])
    assert found(f"{remote}/{step_of(2)}", cache) == ([2], [])
    assert not cache.exists(), "a look downloads nothing"
    whole = make_trainer(batches_of(3), resume_from=directory)
    trainer = make_trainer(batches_of(3), resume_from=ResumeCheckpoint(remote, cache_dir=cache))
    assert (weights(trainer.model) == weights(whole.model)).all()
    assert trainer.resume_report.checkpoint.parent == cache


def test_only_the_fetched_checkpoint_is_downloaded(remote, tmp_path):
    cache = tmp_path / "deep" / "cache"
    assert resumed(remote, cache_dir=cache) == 3
    (name,) = files_of(cache)
    assert name.startswith("step_00000003-")
    manifest = read_manifest(cache / name)
    assert sorted(path.name for path in (cache / name).iterdir()) == sorted(
        [*manifest.files, "manifest.json"]
    )


def test_files_in_sub_folders_are_downloaded(directory, tmp_path):
    folder = directory / step_of(3)
    (folder / "sharded" / "deep").mkdir(parents=True)
    (folder / "sharded" / "deep" / "part").write_bytes(b"")
    text = json.loads((folder / "manifest.json").read_text())
    text["files"]["sharded/deep/part"] = {
        "size": 0,
        "checksum": "99aa06d3014798d86001c324468d497f",
    }
    (folder / "manifest.json").write_bytes(with_checksum(json.dumps(text).encode()))
    source = source_at(directory.as_uri(), tmp_path / "cache")
    checkpoint = source.fetch(source.find().candidates[0], verify=True)
    assert (checkpoint.folder / "sharded" / "deep" / "part").exists()


class CountedFiles:
    """Counts the opened files of a file system, and makes one of them fail while it is read."""

    def __init__(self, monkeypatch, fails_at=None, error=None):
        self.count = 0
        real = MemoryFileSystem.open

        def open_file(fs, path, *rest, **options):
            if path.endswith("manifest.json"):
                return real(fs, path, *rest, **options)
            self.count += 1
            if self.count == fails_at:
                return FailingFile(error)
            return real(fs, path, *rest, **options)

        monkeypatch.setattr(MemoryFileSystem, "open", open_file)


class FailingFile(io.BytesIO):
    """A file that raises an error after the first bytes."""

    def __init__(self, error):
        super().__init__(b"half")
        self.error = error

    def read(self, size=-1):
        content = super().read(size)
        if not content:
            raise self.error
        return content


@pytest.fixture
def in_memory(directory, memory):
    memory.put(str(directory), "/runs/checkpoints", recursive=True)
    return "memory://runs/checkpoints"


def test_cached_files_are_not_downloaded_again(in_memory, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    downloads = CountedFiles(monkeypatch)
    assert resumed(in_memory, cache_dir=cache) == 3
    first = downloads.count
    assert first == 4
    assert resumed(in_memory, cache_dir=cache) == 3
    assert downloads.count == first


@pytest.mark.parametrize("damage", ["truncated", "a bit", "deleted"])
def test_damaged_cached_checkpoint_is_replaced(in_memory, tmp_path, damage):
    cache = tmp_path / "cache"
    resumed(in_memory, cache_dir=cache)
    (name,) = files_of(cache)
    file = cache / name / "model.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "deleted":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(content[:-3])
    else:
        content[-1] ^= 1
        file.write_bytes(content)
    assert resumed(in_memory, cache_dir=cache) == 3
    assert files_of(cache) == [name]


def test_cache_distinguishes_checkpoints_of_the_same_name(in_memory, tmp_path):
    cache, other = tmp_path / "cache", tmp_path / "other"
    resumed(in_memory, cache_dir=cache)
    trainer = make_trainer(batches_of(4)[1:], checkpoint=SaveCheckpoint(other))
    trainer.run()
    resume = ResumeCheckpoint(other.as_uri(), cache_dir=cache)
    second = make_trainer(batches_of(3), resume_from=resume)
    assert (weights(second.model) == weights(trainer.model)).all()
    assert len(files_of(cache)) == 2


@pytest.mark.parametrize("fails_at", [1, 2, 4])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ConnectionError("gone")], ids=stable_id)
def test_failed_download_leaves_no_files(in_memory, tmp_path, monkeypatch, fails_at, error):
    cache = tmp_path / "cache"
    source = source_at(in_memory, cache)
    candidate = source.find().candidates[0]
    with monkeypatch.context() as patched:
        CountedFiles(patched, fails_at, error)
        with pytest.raises((KeyboardInterrupt, SourceError)):
            source.fetch(candidate, verify=True)
    assert files_of(cache) == []
    assert source.fetch(candidate, verify=True).folder.is_dir()


def test_download_gets_its_name_only_when_it_is_complete(in_memory, tmp_path, monkeypatch):
    cache, seen = tmp_path / "cache", []
    real = MemoryFileSystem.open

    def open_file(fs, *rest, **options):
        seen.extend(files_of(cache))
        return real(fs, *rest, **options)

    monkeypatch.setattr(MemoryFileSystem, "open", open_file)
    resumed(in_memory, cache_dir=cache)
    assert seen
    assert all(name.startswith(".download-") for name in seen)


@pytest.mark.parametrize("damage", ["truncated", "deleted"])
@pytest.mark.parametrize("verify", [True, False])
def test_older_checkpoint_is_used_if_a_remote_file_is_damaged(
    in_memory, memory, tmp_path, damage, verify
):
    name = f"/runs/checkpoints/{step_of(3)}/optimizer.bin"
    content = memory.cat_file(name)
    memory.rm_file(name)
    if damage == "truncated":
        memory.pipe_file(name, content[:-10])
    cache = tmp_path / "cache"
    with pytest.warns(UserWarning, match=r"skipped, .*step_00000003.*optimizer\.bin"):
        assert resumed(in_memory, cache_dir=cache, verify=verify) == 2
    (kept,) = files_of(cache)
    assert kept.startswith("step_00000002-")


def test_new_checkpoints_at_the_url_are_seen(directory, tmp_path):
    cache, source = tmp_path / "cache", directory.as_uri()
    shutil.move(directory / step_of(3), tmp_path / "later")
    assert resumed(source, cache_dir=cache) == 2
    shutil.move(tmp_path / "later", directory / step_of(3))
    assert resumed(source, cache_dir=cache) == 3
    assert len(files_of(cache)) == 2
