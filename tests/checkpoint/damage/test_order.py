"""Tests of the order of the calls of a save, and of the commit rule."""

import pytest

from ignite_hooks.checkpoint.durable import file_record
from ignite_hooks.checkpoint.manifest import Manifest
from tests.checkpoint.damage.calls import Call
from tests.checkpoint.damage.calls import calls_within
from tests.checkpoint.damage.training import folders
from tests.checkpoint.damage.training import trainer_of

OPTIONS = {
    "foreground": {},
    "background": {"background": True},
    "without safetensors": {"safe_serialization": False},
}


class Recording:
    """Records the calls of one save, and the content of each file when it was synced."""

    def __init__(self, directory):
        self.directory = directory
        self.calls, self.synced = [], {}

    def __call__(self, call):
        if call.operation == "fsync" and call.path.is_file():
            self.synced[call.path] = file_record(call.path)
        if call.operation == "rename":  # a file keeps what is known of it
            self.synced[call.target] = self.synced.get(call.path)
        self.calls.append(call)

    def index(self, operation, path, target=None):
        return self.calls.index(Call(operation, path, target))

    def last(self, operation, path):
        return len(self.calls) - 1 - self.calls[::-1].index(Call(operation, path))


@pytest.fixture(params=OPTIONS)
def recording(request, tmp_path):
    """Returns the recording of the save of step 4, which removes the folder of step 1."""
    directory = tmp_path.resolve()
    options = {"at_end": False, **OPTIONS[request.param]}
    trainer = trainer_of(directory, resumes=False, **options)
    trainer.run(max_steps=3)
    recording = Recording(directory)
    with calls_within(directory, recording):
        trainer.run(max_steps=4)
    assert folders(directory) == [f"step_0000000{step}" for step in (2, 3, 4)]
    return recording


def test_listed_files_are_synced_before_the_manifest_exists(recording):
    folder = recording.directory / "step_00000004"
    manifest = Manifest.loads((folder / "manifest.json").read_bytes())
    commit = recording.index("rename", folder / "incomplete.json", folder / "manifest.json")
    written = recording.last("open", folder / "incomplete.json")
    assert len(manifest.files) == 5
    for name, record in manifest.files.items():
        assert recording.synced[folder / name] == record, "what was synced is what is listed"
        assert recording.last("fsync", folder / name) < written
    before = recording.calls[:commit]
    last_file = max(recording.last("fsync", folder / name) for name in manifest.files)
    in_between = before[last_file:]
    assert Call("fsync", folder) in in_between, "the names of the files too"


def test_manifest_is_synced_before_rename_and_folder_after(recording):
    folder = recording.directory / "step_00000004"
    temporary, final = folder / "incomplete.json", folder / "manifest.json"
    commit = recording.index("rename", temporary, final)
    assert recording.calls[commit - 1] == Call("fsync", temporary)
    assert recording.synced[final] == file_record(final)
    after = [call for call in recording.calls[commit + 1 :] if call.operation != "open"]
    assert after[0] == Call("fsync", folder)
    on_it = [call for call in recording.calls[commit + 1 :] if call.path == final]
    assert all(call.operation == "open" for call in on_it), "it is read only"


def test_folder_is_synced_before_its_files_are_written(recording):
    folder = recording.directory / "step_00000004"
    made = recording.index("mkdir", folder)
    marked = recording.index("fsync", recording.directory)
    assert made < recording.index("open", folder / "incomplete.json") < marked
    first_file = min(
        recording.calls.index(Call("fsync", path))
        for path in recording.synced
        if path.parent == folder and path.suffix != ".json"
    )
    assert marked < first_file


def test_old_checkpoint_is_removed_after_commit_manifest_first(recording):
    new, old = recording.directory / "step_00000004", recording.directory / "step_00000001"
    commit = recording.index("rename", new / "incomplete.json", new / "manifest.json")
    synced = recording.calls.index(Call("fsync", new), commit)
    on_old = [
        call
        for call in recording.calls
        if call.operation not in ("open", "fsync")
        and (call.path == old or old in call.path.parents)
    ]
    first = on_old[0]
    assert first == Call("rename", old / "manifest.json", old / "incomplete.json")
    removed = recording.calls.index(first)
    assert removed > synced > commit
    assert recording.calls.index(Call("fsync", old), removed) < recording.calls.index(on_old[1])
    assert {call.operation for call in on_old[1:-1]} == {"unlink"}
    assert on_old[-2:] == [Call("unlink", old / "incomplete.json"), Call("rmdir", old)]


def test_save_renames_and_removes_only_new_and_old_checkpoints(recording):
    changing = [call for call in recording.calls if call.operation in ("rename", "unlink", "rmdir")]
    folders = {call.path if call.operation == "rmdir" else call.path.parent for call in changing}
    names = sorted(folder.name for folder in folders)
    assert names == ["step_00000001", "step_00000004"]
