"""Checkpoints somewhere else, read by a protocol of fsspec through a folder of this machine.

A failure of the network must not be taken for the absence of a checkpoint: a run would silently
begin from scratch. Whatever fsspec raises is either a path that is surely absent or a
``SourceError``. ``exists()`` of fsspec is not used: it returns False whatever fails.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from xxhash import xxh3_128

from ignite_hooks.checkpoint.candidates import Candidate
from ignite_hooks.checkpoint.candidates import Look
from ignite_hooks.checkpoint.candidates import Source
from ignite_hooks.checkpoint.candidates import SourceError
from ignite_hooks.checkpoint.candidates import settled
from ignite_hooks.checkpoint.downloads import Downloads
from ignite_hooks.checkpoint.layout import MANIFEST
from ignite_hooks.checkpoint.manifest import FileRecord
from ignite_hooks.checkpoint.manifest import Manifest
from ignite_hooks.checkpoint.manifest import is_foreign
from ignite_hooks.checkpoint.regular_file import NotRegularFileError
from ignite_hooks.checkpoint.regular_file import open_regular
from ignite_hooks.checkpoint.store import MAX_MANIFEST_BYTES
from ignite_hooks.checkpoint.store import Checkpoint
from ignite_hooks.checkpoint.store import is_checkpoint_name

__all__ = ["RemoteSource"]

_CHUNK = 2**22
_NOT_FOUND = (404, 410)


class _MissingError(Exception):
    """The file or folder is surely absent."""


class RemoteSource(Source):
    """A checkpoint, or a directory of them, at a URL.

    Args:
        url: what fsspec understands; URLs may be chained.
        cache: the folder for downloads.

    Raises:
        ImportError: the package for the protocol is not installed.
        SourceError: the place cannot be connected to.
        ValueError: the URL has no known protocol.
    """

    makes_copies = True

    def __init__(self, url: str, cache: Path) -> None:
        import fsspec  # only here: it takes 20 ms, and its protocols more

        self._url = url
        self._downloads = Downloads(cache)
        self._fs: Any
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise ImportError(
                f"`source` {url} needs a package that is not installed: {error}"
            ) from error
        except ValueError as error:
            raise ValueError(
                f"`source` must be a URL that fsspec can read, got {url}: {error}"
            ) from error
        except Exception as error:
            raise self._failure(error) from error
        # A FIFO would be opened, and waited for. The other protocols have none.
        self._is_local = isinstance(self._fs, fsspec.get_filesystem_class("file"))
        if self._is_local and not os.path.lexists(root):
            root = unquote(root)  # as Path.as_uri() quotes it
        self._root: str = root.rstrip("/") or root

    def find(self) -> Look:
        """Looks at the names and the manifests there."""
        return settled(self._look)

    def fetch(self, candidate: Candidate, *, verify: bool) -> Checkpoint:
        """Downloads it, unless it is in the folder for downloads already."""
        name, manifest = candidate

        def download(folder: Path) -> None:
            for file, record in manifest.files.items():
                self._download(f"{name}/{file}", record, file, folder / file)

        own_name = PurePosixPath(name).name or "checkpoint"
        return self._downloads.get(own_name, manifest, download, verify=verify)

    def address_of(self, candidate: Candidate) -> str:
        """Returns the URL of its folder."""
        if candidate.name == self._root:
            return self._url
        # The first link of a chain that has a path is the one that is looked into.
        links = self._url.split("::")
        place = next(number for number, link in enumerate(links) if "://" in link)
        links[place] = f"{links[place].rstrip('/')}/{PurePosixPath(candidate.name).name}"
        return "::".join(links)

    def still_has(self, candidate: Candidate) -> bool:
        """Reads its manifest again."""
        self._fs.invalidate_cache()
        try:
            manifest = Manifest.loads(self._manifest(candidate.name))
        except _MissingError:
            return False
        except ValueError:
            return True
        return Candidate(candidate.name, manifest).key == candidate.key

    def _look(self) -> Look:
        root = self._root
        self._fs.invalidate_cache()
        own = self._candidate(root)
        if isinstance(own, Candidate):  # without a listing, which not every server makes
            return Look([own], {}, {})
        found, damaged, unfinished = [], {}, {}
        for name in self._names():
            one = self._candidate(name)
            if isinstance(one, Candidate):
                found.append(one)
            elif one is None:
                unfinished[name] = "no manifest"
            else:
                damaged[name] = "its manifest is damaged"
        if isinstance(own, bytes) and not (found or damaged or unfinished or is_foreign(own)):
            damaged[root] = "its manifest is damaged"
        found.sort(key=lambda each: each.manifest.number, reverse=True)
        return Look(found, damaged, unfinished)

    def _names(self) -> list[str]:
        """Lists the directory: the names of checkpoints."""
        try:
            with self._explained():
                entries = self._fs.ls(self._root, detail=True)
        except _MissingError:
            return []
        names = [entry["name"].rstrip("/") for entry in entries]
        if names == [self._root] and entries[0].get("type") == "file":
            raise ValueError(
                f"`source` must be a folder, got the file {self._url}: give a checkpoint or a "
                "directory of them"
            )
        return sorted(name for name in names if is_checkpoint_name(PurePosixPath(name).name))

    def _candidate(self, name: str) -> Candidate | bytes | None:
        """Reads a manifest: the checkpoint, the text if it is damaged, None if it is absent."""
        text = b""
        try:
            text = self._manifest(name)
            return Candidate(name, Manifest.loads(text))
        except _MissingError:
            return None
        except (NotRegularFileError, ValueError):
            return text

    def _manifest(self, name: str) -> bytes:
        text = b"".join(self._read(f"{name}/{MANIFEST}", MAX_MANIFEST_BYTES + 1))
        if len(text) > MAX_MANIFEST_BYTES:
            raise ValueError(f"{name}/{MANIFEST} has more than {MAX_MANIFEST_BYTES} bytes")
        return text

    def _download(self, path: str, record: FileRecord, name: str, target: Path) -> None:
        """Copies a file, and no more of it than it should have, and compares it on the way."""
        checksum, size = xxh3_128(), 0
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with target.open("wb") as copy:
                for chunk in self._read(path, record.size + 1):
                    checksum.update(chunk)
                    size += len(chunk)
                    copy.write(chunk)
        except _MissingError as error:
            raise ValueError(f"{name} is missing") from error
        except NotRegularFileError as error:
            raise ValueError(f"{name} cannot be read ({error.strerror})") from error
        if size != record.size:
            has = f"more than {record.size:,}" if size > record.size else f"{size:,}"
            raise ValueError(f"{name} has {has} bytes and had {record.size:,}")
        if checksum.hexdigest() != record.checksum:
            raise ValueError(f"{name} has changed since it was written")

    def _read(self, path: str, limit: int) -> Iterator[bytes]:
        """Yields the content of a file, up to so many bytes."""
        with self._explained():
            local = open_regular(Path(path)) if self._is_local else None
            with local or self._fs.open(path, "rb") as file:
                while limit > 0 and (chunk := file.read(min(_CHUNK, limit))):
                    limit -= len(chunk)
                    yield chunk

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns any exception of an implementation into a _MissingError or a SourceError."""
        try:
            yield
        except NotRegularFileError:
            raise
        except Exception as error:
            if _is_missing(error):
                raise _MissingError from error
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> SourceError:
        shown = error.__cause__ if isinstance(error, FileNotFoundError) else error
        shown = shown if isinstance(shown, Exception) else error
        return SourceError(
            f"`source` {self._url} could not be read: {type(shown).__name__}: {shown}: check the "
            "address, the credentials and the network"
        )


def _is_missing(error: BaseException | None) -> bool:
    """Returns whether an error means that the file is surely absent.

    Some protocols, HTTP among them, raise FileNotFoundError for every failure. The cause of the
    error tells them apart: a key that a dict lacks, or the status that the server answered with.
    """
    if _status(error) in _NOT_FOUND:
        return True
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        return False
    cause = error.__cause__
    return cause is None or isinstance(cause, LookupError) or _is_missing(cause)


def _status(error: BaseException | None) -> object:
    """Returns the HTTP status in an error; each library has another place for it."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            if isinstance(status := getattr(holder, name, None), int):
                return status
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return None
