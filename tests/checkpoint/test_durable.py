import os

import pytest
from xxhash import xxh3_128

from ignite_hooks.checkpoint.durable import make_folder
from ignite_hooks.checkpoint.durable import record_of
from ignite_hooks.checkpoint.durable import sync_tree


def test_a_record_has_the_size_and_the_published_checksum(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"")
    # The value of XXH3_128bits for no input with seed 0, from the reference implementation.
    assert record_of(file).model_dump() == {
        "size": 0,
        "checksum": "99aa06d3014798d86001c324468d497f",
    }


@pytest.mark.parametrize("size", [1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20])
def test_checksum_covers_every_byte_across_read_chunks(tmp_path, size):
    file, content = tmp_path / "file", bytearray(os.urandom(size))
    file.write_bytes(content)
    record = record_of(file)
    assert record.size == size
    assert record.checksum == xxh3_128(bytes(content)).hexdigest()
    for place in {0, size // 2, size - 1}:
        content[place] ^= 1
        file.write_bytes(content)
        assert record_of(file).checksum != record.checksum
        content[place] ^= 1


def test_sync_tree_syncs_each_folder_after_its_contents(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    for name in ("a", "sub/b", "z"):
        (tmp_path / name).touch()
    synced, opened = [], {}
    real_open, real_sync = os.open, os.fsync

    def note_open(path, *rest, **options):
        descriptor = real_open(path, *rest, **options)
        opened[descriptor] = os.path.relpath(path, tmp_path)
        return descriptor

    def note_sync(descriptor):
        synced.append(opened[descriptor])
        real_sync(descriptor)

    monkeypatch.setattr(os, "open", note_open)
    monkeypatch.setattr(os, "fsync", note_sync)
    before = os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd") else []
    sync_tree(tmp_path)
    assert synced == ["a", "sub/b", "sub", "z", "."]
    assert len(os.listdir("/proc/self/fd")) == len(before) if before else True


def test_a_new_folder_is_on_the_disk_with_those_that_it_is_in(tmp_path, monkeypatch):
    opened, synced = {}, []
    real_open = os.open

    def note(path, *rest):
        descriptor = real_open(path, *rest)
        opened[descriptor] = path
        return descriptor

    monkeypatch.setattr(os, "open", note)
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(opened[descriptor]))
    folder = tmp_path / "a" / "b" / "c"
    make_folder(folder)
    assert folder.is_dir()
    assert sorted(synced) == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    del synced[:]
    make_folder(folder)
    assert synced == []
