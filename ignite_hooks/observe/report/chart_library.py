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


MIN_LENGTH = 100_000
"""The smallest number of characters of a bundle that contains Vega."""


def chart_library() -> str:
    """Returns the JavaScript, about 0.9 MB. It defines the global function ``vegaEmbed``.

    A cache that cannot be written is no error: the next page then builds the JavaScript again. So
    does a file in the cache that is damaged, which its first line tells: the hash of the rest.

    Raises:
        RuntimeError: this version of vl-convert-python has no such bundle.
    """
    name = f"vega-{version('vl-convert-python')}-{_digest(SNIPPET)[:8]}.js"
    path = None
    with suppress(OSError, RuntimeError):  # RuntimeError: there is no home directory
        path = _cache_folder() / name
        found = path.read_text(encoding="utf-8")
        digest, _, code = found.partition("\n")
        if digest == _digest(code):
            return code
    code = _bundle()
    if path is not None:
        with suppress(OSError):
            _write(path, f"{_digest(code)}\n{code}")
    return code


def _bundle() -> str:
    try:
        from vl_convert import javascript_bundle

        code: str = javascript_bundle(SNIPPET)
    except (ImportError, TypeError):
        code = ""
    if len(code) < MIN_LENGTH:  # a name that a bundle does not have is no error of vl-convert
        raise RuntimeError(
            "a report needs a vl-convert-python that bundles Vega-Embed, not version "
            f"{version('vl-convert-python')}: pip install 'vl-convert-python>=1.7,<2'"
        )
    return code


def _cache_folder() -> Path:
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        chosen = os.environ.get("XDG_CACHE_HOME", "")
        # The specification of the variable says to ignore a relative path.
        base = chosen if os.path.isabs(chosen) else Path.home() / ".cache"
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
