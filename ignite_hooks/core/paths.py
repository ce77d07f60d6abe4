"""Paths as users write them: relative paths, ``~``, and URLs, which are not paths.

A path is made absolute when it is given. A library or a handler that changes the working directory
later then does not change where a checkpoint is written to or read from.
"""

import os
import re
from pathlib import Path
from pathlib import PurePath
from urllib.parse import unquote
from urllib.parse import urlsplit

__all__ = ["absolute_path", "absolute_source", "is_url", "path_in_url", "url_of_path"]

_URL = re.compile(r"(?:[A-Za-z][\w+.-]*::)*[A-Za-z][\w+.-]*://")
_URL_AS_PATH = re.compile(r"[A-Za-z][\w+.-]+:[/\\]")  # two letters: "C:/" is a drive, not a scheme
_LOCAL_SCHEMES = ("file://", "local://")


def is_url(place: str | PurePath) -> bool:
    """Returns whether ``place`` is a URL. An existing path with the same spelling is a path."""
    return _URL.match(str(place)) is not None and not os.path.exists(place)


def absolute_path(path: str | Path) -> Path:
    """Returns ``path`` as an absolute path, with ``~`` expanded. Symbolic links are not resolved.

    Raises:
        ValueError: the home or the working directory is not known. The message begins with "got",
            as callers put the argument and the rule before it.
    """
    text = os.fspath(path)
    if text.startswith("~"):
        try:
            path = Path(path).expanduser()
        except RuntimeError as error:
            raise ValueError(
                f"got {text!r}, whose home directory is not known; write the whole path, or "
                f"{f'./{text}'!r} for a folder of that name"
            ) from error
    try:
        return Path(path).absolute()
    except FileNotFoundError as error:
        raise ValueError(
            f"got {text!r}, and the working directory is gone; write the whole path"
        ) from error


def absolute_source(place: str | Path) -> str | Path:
    """Returns an absolute path; in a URL, the local path within is made absolute.

    Such local paths are ``runs`` in ``file://runs``, and the last link ``runs.zip`` in the chain
    ``zip://checkpoints::runs.zip`` of fsspec.
    """
    if not is_url(place):
        return absolute_path(place)
    *links, last = str(place).split("::")
    scheme = next((each for each in _LOCAL_SCHEMES if last.startswith(each)), "")
    path = last.removeprefix(scheme)
    # fsspec takes a last link of lowercase letters alone, such as "memory", for a scheme.
    is_local = scheme or (links and "://" not in last and re.search("[^a-z]", last))
    if is_local and not path.startswith("/"):
        last = f"{scheme}{absolute_path(path)}"
    return "::".join([*links, last])


def url_of_path(path: str | Path) -> str | None:
    """Returns the URL that a path was made from; None if it was made from none.

    ``Path("s3://bucket")`` merges the slashes to ``s3:/bucket``. ``file:/runs`` counts as a URL
    too: RFC 8089 allows this form.
    """
    text = str(path)
    if _URL_AS_PATH.match(text) is None or os.path.exists(path):
        return None
    scheme, _, rest = text.partition(":")
    rest = rest.replace("\\", "/").lstrip("/")
    return f"{scheme}:///{rest}" if scheme == "file" else f"{scheme}://{rest}"


def path_in_url(url: str) -> str | None:
    """Returns the path in a ``file:`` URL; None for other URLs."""
    parts = urlsplit(url)
    return unquote(parts.path) if parts.scheme == "file" and parts.path else None
