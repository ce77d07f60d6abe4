"""A folder for downloads that several processes use at once."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ignite_hooks.checkpoint.candidates import SourceError
from ignite_hooks.checkpoint.downloads import Downloads
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


def shown(cache):
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
    """A process that downloads, and waits in the middle of it."""

    def __init__(self, cache, source):
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(cache), str(source)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def line(self):
        return self.process.stdout.readline().strip()

    def go_on(self):
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
def test_processes_that_download_the_same_all_have_it(cache, manifest, child, is_damaged):
    if is_damaged:
        (get(cache, manifest).folder / "model.safetensors").write_bytes(b"damage!")
    children = [child() for _ in range(3)]
    assert [each.line() for each in children] == ["ready"] * 3
    for each in children:
        each.go_on()
    problems, folders = zip(*(each.line().split() for each in children), strict=True)
    assert set(problems) == {"[]"}
    assert len(set(folders)) == 1, "the first one's download is everybody's"
    assert len(shown(cache)) == 1


def test_leftover_of_a_killed_download_goes_and_a_live_one_stays(cache, manifest, child):
    killed, alive = child(), child()
    assert [killed.line(), alive.line()] == ["ready"] * 2
    killed.process.send_signal(signal.SIGKILL)
    killed.end()
    assert len(shown(cache)) == 2
    get(cache, manifest)
    assert len(shown(cache)) == 2, "one was removed, and one has become a checkpoint"
    alive.go_on()
    assert alive.line().startswith("[] ")
    assert len(shown(cache)) == 1


def test_loser_takes_the_winners_only_if_it_is_whole(cache, manifest):
    def download(folder):
        fill(folder)
        winner = get(cache, manifest)
        (winner.folder / "model.safetensors").write_bytes(b"damage!")

    checkpoint = get(cache, manifest, download)
    assert find_problems(checkpoint) == []
    assert len(shown(cache)) == 1


def test_download_goes_on_where_nothing_can_be_locked(cache, manifest, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (cache / ".download-of-another").mkdir(parents=True)
    assert find_problems(get(cache, manifest)) == []
    assert ".download-of-another" in shown(cache), "it may be alive"


def test_file_that_is_open_stays_readable_while_its_folder_is_replaced(cache, manifest):
    name, content = next(iter(FILES.items()))
    folder = get(cache, manifest).folder
    with (folder / name).open("rb") as file:
        for other in FILES.keys() - {name}:
            (folder / other).unlink()
        assert find_problems(get(cache, manifest)) == []
        assert file.read() == content


@pytest.mark.parametrize("damage", ["deleted", "damaged", "another"])
@pytest.mark.parametrize("verify", [True, False])
def test_manifest_that_is_not_as_it_was_written_has_all_replaced(cache, manifest, damage, verify):
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
def test_without_verification_only_sizes_are_looked_at(cache, manifest, verify):
    folder = get(cache, manifest).folder
    file = folder / "model.safetensors"
    changed = bytes(len(file.read_bytes()))
    file.write_bytes(changed)
    get(cache, manifest, verify=verify)
    assert (file.read_bytes() == changed) == (not verify)
    file.write_bytes(b"")
    assert find_problems(get(cache, manifest, verify=verify)) == []


def test_threads_of_one_process_share_it_too(cache, manifest):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: get(cache, manifest), range(8)))
    assert all(find_problems(each) == [] for each in found)
    assert len(shown(cache)) == 1


def test_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path, manifest):
    (tmp_path / "cache").write_text("mine")
    with pytest.raises(SourceError, match=r"`cache_dir` .*/cache could not be written: FileExists"):
        get(tmp_path / "cache", manifest)


def test_disk_that_fills_up_in_mid_download_leaves_nothing(cache, manifest):
    def download(folder):
        fill(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(SourceError, match=r"`cache_dir` .* No space left on device: check"):
        get(cache, manifest, download)
    assert shown(cache) == []


def test_checkpoint_has_the_permissions_that_the_umask_gives(cache, manifest):
    checkpoint = get(cache, manifest)
    assert isinstance(checkpoint, Checkpoint)
    plain = cache / "plain"
    plain.mkdir()
    assert checkpoint.folder.stat().st_mode == plain.stat().st_mode
