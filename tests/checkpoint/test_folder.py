import pytest

from ignite_hooks.checkpoint.folder import find_problems
from ignite_hooks.checkpoint.folder import has_its_files
from ignite_hooks.checkpoint.folder import read_manifest
from ignite_hooks.checkpoint.store import CheckpointStore
from tests.checkpoint.stored import OURS
from tests.checkpoint.stored import damaged
from tests.checkpoint.stored import save


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("deleted", "can not be read (No such file or directory)"),
        ("a folder", "can not be read (Is a directory)"),
        ("emptied", "has 0 bytes and had 7"),
        ("truncated", "has 6 bytes and had 7"),
        ("longer", "has 8 bytes and had 7"),
        ("a bit flipped", "has changed since it was written"),
    ],
)
def test_each_damage_is_found_and_said(store, how, said):
    damaged(save(store, 1), how)
    (checkpoint,) = store.checkpoints()
    assert find_problems(checkpoint) == [f"model.safetensors {said}"]
    assert has_its_files(checkpoint) == (how == "a bit flipped")


@pytest.mark.parametrize("text", [b"", b"{}", b"x" * 100, b" " * (2**24 + 1)], ids=len)
def test_a_folder_with_a_damaged_manifest_is_no_checkpoint_and_stays_to_be_looked_at(store, text):
    folder = save(store, 1)
    (folder / "manifest.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"(?i)manifest"):
        read_manifest(folder)
    assert store.checkpoints() == []
    save(store, 2)
    store.retain(OURS, 1, 0, None, "max")
    assert folder.exists()


def test_a_manifest_that_is_too_long_to_be_one_is_not_parsed(store):
    file = save(store, 1) / "manifest.json"
    file.write_bytes(file.read_bytes() + b" " * 2**24)
    assert store.checkpoints() == []
    assert list(store.broken().values()) == ["its manifest is damaged"]
