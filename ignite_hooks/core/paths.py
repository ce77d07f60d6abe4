"""Paths as users write them: relative ones, ``~``, and URLs, which are no paths.

A path is made absolute when it is given. Whatever changes the working directory later, a library
or a handler for instance, then changes no place that was named before.
"""

import os
import re
from pathlib import Path
from pathlib import PurePath
from urllib.parse import unquote
from urllib.parse import urlsplit

__all__ = ["absolute_path", "absolute_source", "is_url", "path_in_url", "url_of_path"]

_URL = re.compile(r"(?:[A-Za-z][\w+.-]*::)*[A-Za-z][\w+.-]*://")
_URL_AS_PATH = re.compile(r"[A-Za-z][\w+.-]+:[/\\]")  # "C:/" is a drive, and no scheme
_LOCAL_SCHEMES = ("file://", "local://")


def is_url(place: str | PurePath) -> bool:
    """Returns whether ``place`` is a URL; a path of that spelling that exists is none."""
    return _URL.match(str(place)) is not None and not os.path.exists(place)


def absolute_path(path: str | Path) -> Path:
    """Returns ``path`` from the root of the file system on, with ``~`` expanded.

    Symbolic links stay as they are named.

    Raises:
        ValueError: the home or the working directory is not known. The message begins with "got".
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
    """Returns a path as ``absolute_path`` does, and a URL with the local path in it made absolute.

    Such a path is that of ``file://runs``, or the last link of ``zip://checkpoints::runs.zip``.
    """
    if not is_url(place):
        return absolute_path(place)
    *links, last = str(place).split("::")
    scheme = next((each for each in _LOCAL_SCHEMES if last.startswith(each)), "")
    path = last.removeprefix(scheme)
    is_local = scheme or (links and "://" not in last and re.search("[^a-z]", last))
    if is_local and not path.startswith("/"):  # fsspec takes a word of small letters for a scheme
        last = f"{scheme}{absolute_path(path)}"
    return "::".join([*links, last])


def url_of_path(path: str | Path) -> str | None:
    """Returns the URL that was made a path, as ``Path("s3://bucket")`` does; else None.

    ``file:/runs`` is one as well: the standard lets the other slashes be left out.
    """
    text = str(path)
    if _URL_AS_PATH.match(text) is None or os.path.exists(path):
        return None
    scheme, _, rest = text.partition(":")
    rest = rest.replace("\\", "/").lstrip("/")
    return f"{scheme}:///{rest}" if scheme == "file" else f"{scheme}://{rest}"


def path_in_url(url: str) -> str | None:
    """Returns the path that a ``file:`` URL stands for; None for other URLs."""
    parts = urlsplit(url)
    return unquote(parts.path) if parts.scheme == "file" and parts.path else None
