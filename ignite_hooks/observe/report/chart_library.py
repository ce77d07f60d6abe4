"""The JavaScript that draws the charts of a page: Vega, from the package vl-convert-python.

Building it takes about 1.5 s and 100 MiB of memory, so it is kept in the user's cache.
"""

import os
import sys
import tempfile
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

__all__ = ["chart_library"]

SNIPPET = "window.vegaEmbed = vegaEmbed;"
"""Of the names in the bundle, this one alone is defined in all versions of vl-convert."""


def chart_library() -> str:
    """Returns the JavaScript, about 0.9 MB. It defines the global function ``vegaEmbed``.

    A cache that cannot be written is no error: the next page then builds the JavaScript again. So
    does a file in the cache that is damaged, which its first line tells: the hash of the rest.
    """
    name = f"vega-{version('vl-convert-python')}-{_digest(SNIPPET)[:8]}.js"
    path = None
    with suppress(OSError, RuntimeError):  # RuntimeError: there is no home directory
        path = _cache_folder() / name
        found = path.read_text(encoding="utf-8")
        digest, _, code = found.partition("\n")
        if digest == _digest(code):
            return code
    from vl_convert import javascript_bundle

    code = javascript_bundle(SNIPPET)
    if path is not None:
        with suppress(OSError):
            _write(path, f"{_digest(code)}\n{code}")
    return code


def _cache_folder() -> Path:
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ignite-hooks"


def _write(path: Path, text: str) -> None:
    """Writes a file in one go, because several processes may write it, and read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()
