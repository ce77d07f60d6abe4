import errno
import os
import re

import pytest
from xxhash import xxh3_128

from ignite_hooks.checkpoint.durable import file_record
from ignite_hooks.checkpoint.durable import make_folder
from ignite_hooks.checkpoint.durable import sync_tree
from ignite_hooks.core.warn_once import warn_once


def test_record_has_the_size_and_the_xxh3_checksum(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"")
    # The value of XXH3_128bits for no input with seed 0, from the reference implementation.
    assert file_record(file).model_dump() == {
        "size": 0,
        "checksum": "99aa06d3014798d86001c324468d497f",
    }


@pytest.mark.parametrize("size", [1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20])
def test_checksum_covers_every_byte_across_read_chunks(tmp_path, size):
    file, content = tmp_path / "file", bytearray(os.urandom(size))
    file.write_bytes(content)
    record = file_record(file)
    assert record.size == size
    assert record.checksum == xxh3_128(bytes(content)).hexdigest()
    for place in {0, size // 2, size - 1}:
        content[place] ^= 1
        file.write_bytes(content)
        assert file_record(file).checksum != record.checksum
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


def test_new_folder_and_its_new_parents_are_synced(tmp_path, monkeypatch):
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


# File systems that cannot sync folders

UNABLE = ["EINVAL", "ENOTSUP", "EBADF", "EACCES", "EPERM", "ENOSYS", "EISDIR"]


@pytest.fixture
def failing(monkeypatch):
    """Returns a function that makes a call of ``os`` fail, for folders or for files."""
    warn_once.cache_clear()

    def fail(call, name, for_files=False):
        real, number = getattr(os, call), getattr(errno, name)

        def call_or_fail(target, *rest, **options):
            if os.path.isfile(target) == for_files:
                raise OSError(number, os.strerror(number))
            return real(target, *rest, **options)

        monkeypatch.setattr(os, call, call_or_fail)

    yield fail
    warn_once.cache_clear()


@pytest.mark.parametrize("call", ["open", "fsync"])
@pytest.mark.parametrize("name", UNABLE)
def test_file_system_that_cannot_sync_folders_warns_once(tmp_path, failing, name, call):
    (tmp_path / "a").mkdir()
    (tmp_path / "file").touch()
    failing(call, name)
    message = r"cannot sync folders \(.*\): a power loss may lose the newest .*; give keep_last=2"
    with pytest.warns(UserWarning, match=message):
        make_folder(tmp_path / "a" / "b" / "c")
    sync_tree(tmp_path)
    assert (tmp_path / "a" / "b" / "c").is_dir()


@pytest.mark.parametrize(
    ("name", "for_files"), [("EIO", False), ("ENOSPC", False), *((n, True) for n in UNABLE)]
)
def test_other_errors_of_a_sync_are_raised(tmp_path, failing, name, for_files):
    (tmp_path / "file").touch()
    failing("fsync", name, for_files)
    with pytest.raises(OSError, match=re.escape(os.strerror(getattr(errno, name)))):
        sync_tree(tmp_path)
