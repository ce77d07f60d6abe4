import os
from pathlib import Path

import pytest

from ignite_hooks.core.paths import absolute_path
from ignite_hooks.core.paths import absolute_source
from ignite_hooks.core.paths import is_url
from ignite_hooks.core.paths import path_in_url
from ignite_hooks.core.paths import url_of_path


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The working directory, beside the home directory."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("runs", "here/runs"),
        (".", "here"),
        ("../runs/", "here/../runs"),
        ("~", "home"),
        ("~/runs", "home/runs"),
        ("./~", "here/~"),
        ("a~b", "here/a~b"),
        ("run 1:2/a", "here/run 1:2/a"),
    ],
)
@pytest.mark.parametrize("path_type", [str, Path])
def test_path_is_made_absolute_from_here_or_home(tmp_path, path_type, given, expected):
    if (path_type, given) == (Path, "./~"):
        expected = "home"  # a Path keeps no leading "./"
    assert absolute_path(path_type(given)) == tmp_path / expected


def test_a_symbolic_link_is_not_resolved(here):
    (here / "real").mkdir()
    (here / "link").symlink_to(here / "real")
    assert absolute_path("link/../runs") == here / "link" / ".." / "runs"


def test_unknown_home_is_an_error_with_a_remedy():
    with pytest.raises(ValueError, match=r"got '~no-such-user/x', .*'./~no-such-user/x' for"):
        absolute_path("~no-such-user/x")


def test_relative_path_in_a_removed_directory_is_an_error(here):
    os.rmdir(here)
    with pytest.raises(ValueError, match="got 'runs', and the working directory is gone; write"):
        absolute_path("runs")
    assert absolute_path("/runs") == Path("/runs")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("s3://bucket/runs", True),
        ("memory://runs", True),
        ("file:///runs", True),
        ("zip://runs::file:///a.zip", True),
        ("simplecache::s3://bucket", True),
        ("/data/a://b", False),
        ("runs/a://b", False),
        ("s3:bucket", False),
        ("C://runs", True),
    ],
)
def test_a_url_begins_with_a_scheme(place, expected):
    assert is_url(place) == expected


def test_an_existing_path_is_no_url(here):
    (here / "a:").mkdir()
    assert is_url("a://b")
    (here / "a:" / "b").mkdir()
    assert not is_url("a://b")
    assert absolute_source("a://b") == here / "a:" / "b"
    assert url_of_path(Path("a:/b")) is None


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("s3://bucket/runs", "s3://bucket/runs"),
        ("file:///runs", "file:///runs"),
        ("file://runs", "file://{here}/runs"),
        ("zip://a::runs.zip", "zip://a::{here}/runs.zip"),
        ("zip://a::~/runs.zip", "zip://a::{home}/runs.zip"),
        ("zip://a::file://runs.zip", "zip://a::file://{here}/runs.zip"),
        ("zip://a::s3://bucket/runs.zip", "zip://a::s3://bucket/runs.zip"),
        ("zip://a::memory", "zip://a::memory"),
    ],
)
def test_local_path_within_a_url_is_made_absolute(tmp_path, here, source, expected):
    assert absolute_source(source) == expected.format(here=here, home=tmp_path / "home")


@pytest.mark.parametrize(
    ("path", "url"),
    [
        (Path("s3://bucket/runs"), "s3://bucket/runs"),
        (Path("file:///runs"), "file:///runs"),
        ("file:/runs", "file:///runs"),
        ("s3:/bucket", "s3://bucket"),
        (Path("C:/runs"), None),
        (Path("runs/s3:/bucket"), None),
        ("runs", None),
    ],
)
def test_a_url_that_was_made_a_path_is_recognized(path, url):
    assert url_of_path(path) == url


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///a/b", "/a/b"),
        ("file:///a%20b", "/a b"),
        ("file://localhost/a", "/a"),
        ("s3://bucket/a", None),
    ],
)
def test_only_a_file_url_has_a_path(url, path):
    assert path_in_url(url) == path
