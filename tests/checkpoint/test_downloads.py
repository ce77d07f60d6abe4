"""Tests of the cache of downloads, which several processes use at once."""

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ignite_hooks.checkpoint.downloads import Downloads
from ignite_hooks.checkpoint.source_interface import SourceError
from ignite_hooks.checkpoint.store import Checkpoint
from ignite_hooks.checkpoint.store import CheckpointStore
from ignite_hooks.checkpoint.store import find_problems
from ignite_hooks.checkpoint.store import read_manifest
from tests.checkpoint.stored import FILES
from tests.checkpoint.stored import fill
from tests.checkpoint.stored import save

ROOT = Path(__file__).parents[2]


@pytest.fixture
def manifest(tmp_path):
    return read_manifest(save(CheckpointStore(tmp_path / "source"), 1))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def get(cache, manifest, download=fill, verify=True):
    return Downloads(cache).get("one", manifest, download, verify=verify)


def entries(cache):
    return sorted(name for name in os.listdir(cache) if name != ".lock")


CHILD = """
import sys
from pathlib import Path
from ignite_hooks.checkpoint.downloads import Downloads
from ignite_hooks.checkpoint.store import find_problems, read_manifest
from tests.checkpoint.stored import fill

def download(folder):
    print("ready", flush=True)
    sys.stdin.readline()
    fill(folder)

cache, source = map(Path, sys.argv[1:])
checkpoint = Downloads(cache).get("one", read_manifest(source), download, verify=True)
print(find_problems(checkpoint), checkpoint.folder.stat().st_ino, flush=True)
"""


class Child:
    """A process that starts a download, and waits in the middle until it may proceed."""

    def __init__(self, cache, source):
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(cache), str(source)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def read_line(self):
        return self.process.stdout.readline().strip()

    def proceed(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self):
        self.process.communicate()


@pytest.fixture
def child(cache, manifest, tmp_path):
    (source,) = (tmp_path / "source").iterdir()
    children = []

    def start():
        children.append(Child(cache, source))
        return children[-1]

    yield start
    for each in children:
        each.process.kill()
        each.end()


@pytest.mark.parametrize("is_damaged", [False, True])
def test_concurrent_downloads_of_one_checkpoint_share_a_copy(cache, manifest, child, is_damaged):
    if is_damaged:
        (get(cache, manifest).folder / "model.safetensors").write_bytes(b"damage!")
    children = [child() for _ in range(3)]
    assert [each.read_line() for each in children] == ["ready"] * 3
    for each in children:
        each.proceed()
    problems, folders = zip(*(each.read_line().split() for each in children), strict=True)
    assert set(problems) == {"[]"}
    assert len(set(folders)) == 1, "all processes use the first copy"
    assert len(entries(cache)) == 1


def test_draft_of_a_killed_process_is_removed_a_live_one_kept(cache, manifest, child):
    killed, alive = child(), child()
    assert [killed.read_line(), alive.read_line()] == ["ready"] * 2
    killed.process.send_signal(signal.SIGKILL)
    killed.end()
    assert len(entries(cache)) == 2
    get(cache, manifest)
    assert len(entries(cache)) == 2, "one draft was removed, and one is a checkpoint now"
    alive.proceed()
    assert alive.read_line().startswith("[] ")
    assert len(entries(cache)) == 1


def test_space_of_a_killed_download_can_be_used(cache, manifest, child, monkeypatch):
    killed = child()
    assert killed.read_line() == "ready"
    killed.process.send_signal(signal.SIGKILL)
    killed.end()
    (draft,) = entries(cache)
    usage = shutil.disk_usage(cache)
    monkeypatch.setattr(
        shutil,
        "disk_usage",
        lambda path: usage._replace(free=0 if draft in entries(cache) else 10**9),
    )
    get(cache, manifest)
    assert len(entries(cache)) == 1


def test_damaged_copy_of_a_faster_process_is_replaced(cache, manifest):
    def download(folder):
        fill(folder)
        winner = get(cache, manifest)
        (winner.folder / "model.safetensors").write_bytes(b"damage!")

    checkpoint = get(cache, manifest, download)
    assert find_problems(checkpoint) == []
    assert len(entries(cache)) == 1


def test_download_works_without_file_locks(cache, manifest, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (cache / ".download-of-another").mkdir(parents=True)
    assert find_problems(get(cache, manifest)) == []
    assert ".download-of-another" in entries(cache), "another process may still use it"


def test_open_file_stays_readable_when_its_folder_is_replaced(cache, manifest):
    name, content = next(iter(FILES.items()))
    folder = get(cache, manifest).folder
    with (folder / name).open("rb") as file:
        for other in FILES.keys() - {name}:
            (folder / other).unlink()
        assert find_problems(get(cache, manifest)) == []
        assert file.read() == content


@pytest.mark.parametrize("damage", ["deleted", "damaged", "another"])
@pytest.mark.parametrize("verify", [True, False])
def test_cached_copy_with_a_damaged_manifest_is_replaced(cache, manifest, damage, verify):
    path = get(cache, manifest).folder / "manifest.json"
    if damage == "deleted":
        path.unlink()
    elif damage == "damaged":
        path.write_text("{")
    else:
        path.write_bytes(manifest.model_copy(update={"step": 9}).dumps())
    checkpoint = get(cache, manifest, verify=verify)
    assert read_manifest(checkpoint.folder) == manifest


@pytest.mark.parametrize("verify", [True, False])
def test_without_verify_only_sizes_are_compared(cache, manifest, verify):
    folder = get(cache, manifest).folder
    file = folder / "model.safetensors"
    changed = bytes(len(file.read_bytes()))
    file.write_bytes(changed)
    get(cache, manifest, verify=verify)
    assert (file.read_bytes() == changed) == (not verify)
    file.write_bytes(b"")
    assert find_problems(get(cache, manifest, verify=verify)) == []


def test_threads_of_one_process_share_a_copy(cache, manifest):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: get(cache, manifest), range(8)))
    assert all(find_problems(each) == [] for each in found)
    assert len(entries(cache)) == 1


def test_unwritable_cache_folder_is_an_error_that_names_it(tmp_path, manifest):
    (tmp_path / "cache").write_text("mine")
    with pytest.raises(SourceError, match=r"`cache_dir` .*/cache could not be written: FileExists"):
        get(tmp_path / "cache", manifest)


def test_full_disk_during_a_download_leaves_no_files(cache, manifest):
    def download(folder):
        fill(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(SourceError, match=r"`cache_dir` .* No space left on device: check"):
        get(cache, manifest, download)
    assert entries(cache) == []


def test_downloaded_checkpoint_has_the_mode_of_the_umask(cache, manifest):
    checkpoint = get(cache, manifest)
    assert isinstance(checkpoint, Checkpoint)
    plain = cache / "plain"
    plain.mkdir()
    assert checkpoint.folder.stat().st_mode == plain.stat().st_mode
