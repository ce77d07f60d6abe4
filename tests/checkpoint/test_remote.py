"""Tests of remote sources: a failure of the network is an error, and not an absent checkpoint."""

import errno
import io
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler
from http.server import HTTPServer
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks.checkpoint.manifest import with_checksum
from ignite_hooks.checkpoint.source import source_at
from ignite_hooks.checkpoint.source_interface import SourceError
from ignite_hooks.checkpoint.store import MAX_MANIFEST_BYTES
from tests.checkpoint.test_source import files_of
from tests.checkpoint.test_source import found
from tests.checkpoint.test_source import resumed
from tests.checkpoint.test_source import step_of
from tests.ids import stable_id
from tests.reference import batches_of
from tests.reference import make_trainer
from tests.reference import weights
from tests.versions import needs


class Remote(fsspec.AbstractFileSystem):
    """A file system of a local folder, in which ``plan`` can make calls fail."""

    protocol = "remote"
    cachable = False
    root = None
    plan = None

    def ls(self, path, detail=True, **options):
        self.run_plan("ls", path)
        folder = self.root / path
        if not folder.is_dir():
            raise FileNotFoundError(path)
        return [{"name": f"{path}/{each.name}", "size": 0} for each in folder.iterdir()]

    def open(self, path, mode="rb", **options):
        self.run_plan("open", path)
        file = self.root / path
        if not file.is_file():
            raise FileNotFoundError(path)
        return Stream(self, path, file.read_bytes())

    def run_plan(self, call, path):
        if type(self).plan is not None:
            type(self).plan(call, path)


class Stream(io.BytesIO):
    """A file whose reads after the first one can be made to fail."""

    def __init__(self, fs, path, content):
        super().__init__(content)
        self.fs, self.path = fs, path

    def read(self, size=-1):
        if self.tell():
            self.fs.run_plan("read", self.path)
        return super().read(size)


fsspec.register_implementation("remote", Remote, clobber=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with checkpoints of the steps 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("saved")
    checkpoint = SaveCheckpoint(folder, every_steps=1, keep_last="all")
    make_trainer(batches_of(3), checkpoint=checkpoint).run()
    return folder


@pytest.fixture
def directory(saved, tmp_path, monkeypatch):
    """A copy of these checkpoints at remote://runs, without a ``plan``."""
    monkeypatch.setattr(Remote, "root", tmp_path / "remote")
    monkeypatch.setattr(Remote, "plan", None)
    return shutil.copytree(saved, tmp_path / "remote" / "runs")


def failing(error, call, name, times=10**9):
    """Returns a plan that makes calls fail whose path ends with a name."""
    remaining = [times]

    def plan(made, path):
        if made == call and path.endswith(name) and remaining[0]:
            remaining[0] -= 1
            raise error

    return plan


class AnswerError(Exception):
    """An HTTP status as HTTP libraries raise it."""

    def __init__(self, status):
        super().__init__(f"{status}, message='no'")
        self.status = status


class ClientError(Exception):
    """An HTTP status as botocore raises it."""

    def __init__(self, status):
        super().__init__(f"an error occurred ({status})")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


def not_found_because_of(cause):
    error = FileNotFoundError("remote://runs")
    error.__cause__ = cause
    return error


FAILURES = {
    "no route": ConnectionError("network is unreachable"),
    "too slow": TimeoutError("timed out"),
    "403": PermissionError("Access Denied"),
    "500": AnswerError(500),
    "no credentials": RuntimeError("Unable to locate credentials"),
    "full": OSError(errno.EIO, "Input/output error"),
    "401 as fsspec's HTTP has it": not_found_because_of(AnswerError(401)),
    "500 as fsspec's HTTP has it": not_found_because_of(AnswerError(500)),
    "no route as fsspec's HTTP has it": not_found_because_of(ConnectionError("refused")),
    "503 of S3": not_found_because_of(ClientError(503)),
}

ABSENCES = {
    "no such path": FileNotFoundError("remote://runs"),
    "a file in the way": NotADirectoryError("remote://runs"),
    "not in a dict": not_found_because_of(KeyError("runs")),
    "404 as fsspec's HTTP has it": not_found_because_of(AnswerError(404)),
    "404": AnswerError(404),
    "404 of S3": not_found_because_of(ClientError(404)),
}


@pytest.mark.parametrize("call", ["ls", "open"])
@pytest.mark.parametrize("kind", FAILURES)
def test_network_failure_is_an_error_and_changes_nothing(directory, tmp_path, kind, call):
    name = "runs" if call == "ls" else "runs/manifest.json"
    Remote.plan = failing(FAILURES[kind], call, name)
    trainer = make_trainer(batches_of(3))
    before = weights(trainer.model)
    resume = ResumeCheckpoint("remote://runs", cache_dir=tmp_path / "cache", on_missing="start")
    with pytest.raises(OSError, match=r"`source` remote://runs could not be read: .*: check the"):
        resume.attach(trainer)
    assert torch.equal(weights(trainer.model), before)
    assert trainer.resume_report is None


@pytest.mark.parametrize("kind", ABSENCES)
def test_absent_remote_folder_means_no_checkpoint_yet(directory, tmp_path, kind):
    Remote.plan = lambda call, path: (_ for _ in ()).throw(ABSENCES[kind])
    assert resumed("remote://runs", cache_dir=tmp_path / "cache", on_missing="start") == 0


def test_object_store_without_folders_has_no_checkpoint_yet(directory, tmp_path):
    assert found("remote://bucket/of/nothing", tmp_path) == ([], [])
    (directory / "notes").mkdir()
    assert found("remote://runs/notes", tmp_path) == ([], [])


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("open", f"{step_of(3)}/manifest.json"),
        ("open", f"{step_of(3)}/model.safetensors"),
        ("read", f"{step_of(3)}/optimizer.bin"),
        ("read", f"{step_of(1)}/manifest.json"),
    ],
)
@pytest.mark.parametrize("error", [ConnectionError("gone"), AnswerError(500)], ids=stable_id)
def test_failure_during_a_download_does_not_use_an_older_one(
    directory, tmp_path, call, name, error
):
    Remote.plan = failing(error, call, name)
    trainer = make_trainer(batches_of(3))
    resume = ResumeCheckpoint("remote://runs", cache_dir=tmp_path / "cache", on_missing="start")
    with pytest.raises(SourceError, match="could not be read"):
        resume.attach(trainer)
    assert trainer.state.optimizer_step == 0
    assert files_of(tmp_path / "cache") == []


@pytest.mark.parametrize("damage", ["missing", "shorter", "longer", "changed"])
def test_older_checkpoint_is_used_if_the_newest_is_damaged(directory, tmp_path, damage):
    file = directory / step_of(3) / "optimizer.bin"
    content = file.read_bytes()
    changed = {"shorter": content[:-9], "longer": content + b"0", "changed": b"0" + content[1:]}
    file.write_bytes(changed.get(damage, b""))
    if damage == "missing":
        file.unlink()
    with pytest.warns(UserWarning, match=r"skipped, .*step_00000003: optimizer\.bin (has|is miss)"):
        assert resumed("remote://runs", cache_dir=tmp_path / "cache") == 2


def test_checkpoint_pruned_during_its_download_is_not_damaged(directory, tmp_path):
    later = shutil.move(directory / step_of(3), tmp_path / "later")

    def plan(call, path):
        if call == "open" and path.endswith(f"{step_of(2)}/optimizer.bin"):
            shutil.rmtree(directory / step_of(2))
            shutil.move(later, directory / step_of(3))

    Remote.plan = plan
    assert resumed("remote://runs", cache_dir=tmp_path / "cache") == 3


def test_checkpoint_pruned_after_the_listing_is_searched_again(directory, tmp_path):
    shutil.rmtree(directory / step_of(1))
    later = shutil.move(directory / step_of(3), tmp_path / "later")

    def plan(call, path):
        if call == "open" and path.endswith(f"{step_of(2)}/manifest.json"):
            Remote.plan = None
            shutil.rmtree(directory / step_of(2))
            shutil.move(later, directory / step_of(3))

    Remote.plan = plan
    assert found("remote://runs", tmp_path / "cache") == ([3], [])


def test_error_says_that_a_named_checkpoint_was_removed(directory, tmp_path):
    def plan(call, path):
        if path.endswith("optimizer.bin"):
            shutil.rmtree(directory / step_of(3))

    Remote.plan = plan
    resume = ResumeCheckpoint(
        f"remote://runs/{step_of(3)}", cache_dir=tmp_path / "cache", on_missing="start"
    )
    with pytest.raises(FileNotFoundError, match="step_00000003 was removed meanwhile"):
        resume.attach(make_trainer(batches_of(3)))


class Endless(io.RawIOBase):
    """A file without an end, which counts the bytes that are read."""

    total = 0

    def read(self, size=-1):
        assert 0 < size < 2**26
        assert Endless.total < 2**28
        Endless.total += size
        return bytes(size)


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_download_stops_at_the_recorded_size(directory, tmp_path, monkeypatch, name):
    real, size = Remote.open, (directory / step_of(3) / name).stat().st_size
    monkeypatch.setattr(Endless, "total", 0)

    def open_file(fs, path, mode="rb", **options):
        is_it = path.endswith(f"{step_of(3)}/{name}")
        return Endless() if is_it else real(fs, path, mode, **options)

    monkeypatch.setattr(Remote, "open", open_file)
    with pytest.warns(UserWarning, match="skipped, .*step_00000003"):
        assert resumed("remote://runs", cache_dir=tmp_path / "cache") == 2
    reads = 2  # of a damaged manifest
    limit = reads * MAX_MANIFEST_BYTES + reads if name == "manifest.json" else size + 1
    assert Endless.total <= limit


def test_full_cache_disk_is_an_error_with_both_sizes(directory, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1234))
    with pytest.raises(
        OSError, match=r"`cache_dir` must have room .* \d+,\d+ bytes, .* with 1,234 b"
    ):
        resumed("remote://runs", cache_dir=tmp_path / "cache", on_missing="start")


def test_missing_protocol_package_is_an_error_that_names_it(tmp_path, monkeypatch):
    about = {"class": "nowherefs.Nowhere", "err": "Install nowherefs to access Nowhere"}
    monkeypatch.setitem(known_implementations, "nowhere", about)
    with pytest.raises(ImportError, match=r"`source` nowhere://x needs .*Install nowherefs"):
        source_at("nowhere://x", tmp_path)
    with pytest.raises(
        ValueError, match="`source` must be a URL that fsspec can read, got no-such"
    ):
        source_at("no-such://x", tmp_path)


@needs("fsspec>=2024.2")
def test_url_of_a_file_is_an_error(directory, tmp_path):
    place = (directory / step_of(3) / "model.safetensors").as_uri()
    with pytest.raises(ValueError, match="`source` must be a folder, got the file"):
        found(place, tmp_path / "cache")


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("zip", "a directory"),
        ("zip", "its content"),
        ("zip", "a checkpoint"),
        ("tar", "a directory"),
    ],
)
def test_archive_is_read(directory, tmp_path, what, kind):
    root, base = (directory, None) if what == "its content" else (directory.parent, "runs")
    archive = shutil.make_archive(str(tmp_path / "archive"), kind, root, base)
    inside = {"a directory": "runs", "its content": "", "a checkpoint": f"runs/{step_of(3)}"}
    for place in (archive, f"file://{archive}"):
        url = f"{kind}://{inside[what]}::{place}"
        assert resumed(url, cache_dir=tmp_path / "cache") == 3
        shutil.rmtree(tmp_path / "cache")


@pytest.mark.parametrize("name", ["my runs", "50% done", "50%25 done", "größer"])
def test_file_url_with_quoted_characters_is_found(directory, tmp_path, name):
    moved = directory.rename(tmp_path / name)
    for url in (moved.as_uri(), f"file://{moved}"):
        assert found(url, tmp_path / "cache") == ([3, 2, 1], [])


def test_local_path_that_looks_like_a_url_is_local_if_it_exists(directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s3:/").mkdir()
    directory.rename("s3:/runs")
    assert found("s3://runs", None) == ([3, 2, 1], [])


def test_absent_archive_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="could not be read: FileNotFoundError"):
        resumed("zip://::/no/archive.zip", cache_dir=tmp_path, on_missing="start")


def test_manifest_of_another_program_is_ignored(directory, tmp_path):
    (directory / "manifest.json").write_text(json.dumps({"name": "a web app", "icons": []}))
    assert resumed("remote://runs", cache_dir=tmp_path / "cache") == 3
    for step in (1, 2, 3):
        shutil.rmtree(directory / step_of(step))
    assert found("remote://runs", tmp_path / "cache") == ([], [])


def test_directory_may_be_named_like_a_checkpoint(directory, tmp_path):
    directory.rename(directory.parent / "step_00000500")
    assert found("remote://step_00000500", tmp_path) == ([3, 2, 1], [])
    assert found("file://" + str(directory.parent / "step_00000500"), tmp_path) == ([3, 2, 1], [])


def test_checkpoint_with_a_nan_metric_can_be_read(directory, tmp_path):
    for step in (1, 2, 3):
        path = directory / step_of(step) / "manifest.json"
        text = {**json.loads(path.read_text()), "metric": "loss", "metric_value": "NaN"}
        path.write_bytes(with_checksum(json.dumps(text).encode()))
    (directory / "step_00000009").mkdir()
    calls = []
    Remote.plan = lambda call, path: calls.append(call)
    assert found("remote://runs", tmp_path / "cache") == ([3, 2, 1], [])
    assert calls.count("ls") == 2, "the second listing equals the first"
    assert resumed("remote://runs", cache_dir=tmp_path / "cache") == 3
    assert resumed(directory) == 3


class StatusHandler(BaseHTTPRequestHandler):
    """A handler that answers all requests with one status."""

    def do_GET(self):
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with HTTPServer(("127.0.0.1", 0), StatusHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
def test_http_statuses_are_absence_or_error(server, tmp_path, status):
    pytest.importorskip("aiohttp", reason="fsspec's HTTP needs it")
    server.status = status
    url = f"http://127.0.0.1:{server.server_port}/runs"
    options = {"cache_dir": tmp_path, "on_missing": "start"}
    if status == 404:
        assert resumed(url, **options) == 0
    else:
        with pytest.raises(SourceError, match=f"{status}"):
            resumed(url, **options)


def test_unreachable_server_is_an_error(server, tmp_path):
    pytest.importorskip("aiohttp", reason="fsspec's HTTP needs it")
    server.server_close()
    url = f"http://127.0.0.1:{server.server_port}/runs"
    with pytest.raises(SourceError, match="could not be read"):
        resumed(url, cache_dir=tmp_path, on_missing="start")


@pytest.mark.parametrize("error", [None, PermissionError(errno.EACCES, "Permission denied")])
def test_unreadable_local_url_is_an_error_and_not_empty(directory, tmp_path, monkeypatch, error):
    url = directory.as_uri()
    if error is None:
        assert resumed(url, cache_dir=tmp_path / "cache", on_missing="start") == 3
        return

    def ls(*_, **__):
        raise error

    monkeypatch.setattr(LocalFileSystem, "ls", ls)
    with pytest.raises(SourceError, match=f"{Path(directory).name} could not be read: Permission"):
        resumed(url, cache_dir=tmp_path / "cache", on_missing="start")
