"""Makes users' paths absolute, and tells paths from URLs.

A path is made absolute as soon as a user gives it. If a library or a handler changes the working
directory later, checkpoints are still written to and read from the same folder.
"""

import os
import re
from pathlib import Path
from pathlib import PurePath
from urllib.parse import unquote
from urllib.parse import urlsplit

__all__ = ["absolute_path", "absolute_source", "is_url", "path_in_url", "url_of_path"]

_URL = re.compile(r"(?:[A-Za-z][\w+.-]*::)*[A-Za-z][\w+.-]*://")
# At least two letters, because "C:/" is a drive and not the scheme of a URL.
_URL_AS_PATH = re.compile(r"[A-Za-z][\w+.-]+:[/\\]")
_LOCAL_SCHEMES = ("file://", "local://")


def is_url(path_or_url: str | PurePath) -> bool:
    """Returns whether the argument is a URL. An existing path that looks like a URL is a path."""
    return _URL.match(str(path_or_url)) is not None and not os.path.exists(path_or_url)


def absolute_path(path: str | Path) -> Path:
    """Returns ``path`` as an absolute path, with ``~`` expanded. Symbolic links are not resolved.

    Raises:
        ValueError: the home directory or the working directory is not known. The message begins
            with "got". Callers put the name of the argument and the rule before the message.
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


def absolute_source(path_or_url: str | Path) -> str | Path:
    """Returns a path as an absolute path, and a URL with its local path made absolute.

    Two kinds of URL contain a local path. In ``file://runs`` the path is ``runs``. In a chain of
    fsspec such as ``zip://checkpoints::runs.zip``, the last link can be a path, here ``runs.zip``.
    All other URLs are returned unchanged.
    """
    if not is_url(path_or_url):
        return absolute_path(path_or_url)
    *links, last = str(path_or_url).split("::")
    scheme = next((each for each in _LOCAL_SCHEMES if last.startswith(each)), "")
    path = last.removeprefix(scheme)
    # If the last link has only lowercase letters, such as "memory", fsspec reads it as a scheme.
    is_local = scheme or (links and "://" not in last and re.search("[^a-z]", last))
    if is_local and not path.startswith("/"):
        last = f"{scheme}{absolute_path(path)}"
    return "::".join([*links, last])


def url_of_path(path: str | Path) -> str | None:
    """Returns the URL from which a ``Path`` was made; None if it was not made from a URL.

    ``Path("s3://bucket")`` merges the two slashes, and becomes ``s3:/bucket``. The function
    restores them. ``file:/runs`` counts as a URL too, because RFC 8089 allows this form.
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
