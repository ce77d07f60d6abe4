"""Downloads checkpoints from URLs that fsspec can read.

A failure of the network must not be mistaken for a missing checkpoint, because the run would then
begin from scratch without an error. Every exception of fsspec is therefore translated: to
``_AbsentError`` if the path is certainly absent, and to ``SourceError`` otherwise. The method
``exists()`` of fsspec is not used, because it returns False for any failure.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from xxhash import xxh3_128

from ignite_hooks.checkpoint.downloads import Downloads
from ignite_hooks.checkpoint.layout import MANIFEST
from ignite_hooks.checkpoint.manifest import FileRecord
from ignite_hooks.checkpoint.manifest import Manifest
from ignite_hooks.checkpoint.manifest import is_unrelated_json
from ignite_hooks.checkpoint.regular_file import NotRegularFileError
from ignite_hooks.checkpoint.regular_file import open_regular
from ignite_hooks.checkpoint.source_interface import CheckpointCandidate
from ignite_hooks.checkpoint.source_interface import Listing
from ignite_hooks.checkpoint.source_interface import Source
from ignite_hooks.checkpoint.source_interface import SourceError
from ignite_hooks.checkpoint.source_interface import list_until_stable
from ignite_hooks.checkpoint.store import MAX_MANIFEST_BYTES
from ignite_hooks.checkpoint.store import Checkpoint
from ignite_hooks.checkpoint.store import is_checkpoint_name

__all__ = ["RemoteSource"]

_CHUNK_BYTES = 2**22
_NOT_FOUND_STATUSES = (404, 410)  # not found, gone


class _AbsentError(Exception):
    """An error for a file or folder that is certainly absent."""


class RemoteSource(Source):
    """A checkpoint, or a directory of checkpoints, at a URL.

    Args:
        url: a URL that fsspec can read; URLs may be chained.
        cache: the local folder for downloads.

    Raises:
        ImportError: the package for the protocol is not installed.
        SourceError: no connection can be made.
        ValueError: the URL has no known protocol.
    """

    makes_copies = True

    def __init__(self, url: str, cache: Path) -> None:
        # Imported lazily: the import takes 20 ms, and imports of protocols take more.
        import fsspec
        from fsspec.archive import AbstractArchiveFileSystem

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
            raise self._source_error(error) from error
        self._is_archive = isinstance(self._fs, AbstractArchiveFileSystem)
        # A URL may lead to local files. These are opened with open_regular, because fsspec would
        # block on a FIFO.
        self._is_local = isinstance(self._fs, fsspec.get_filesystem_class("file"))
        if self._is_local and not os.path.lexists(root):
            root = unquote(root)  # Path.as_uri() returns a URL with quoted special characters
        self._root: str = root.rstrip("/") or root

    def find(self) -> Listing:
        """Lists the directory and reads the manifests in it."""
        return list_until_stable(self._list_once)

    def fetch(self, candidate: CheckpointCandidate, *, verify: bool) -> Checkpoint:
        """Returns a local copy of the checkpoint. If there is no copy yet, downloads it first."""
        name, manifest = candidate

        def download(folder: Path) -> None:
            for file, record in manifest.files.items():
                self._download(f"{name}/{file}", record, file, folder / file)

        folder_name = PurePosixPath(name).name or "checkpoint"
        return self._downloads.get(folder_name, manifest, download, verify=verify)

    def address_of(self, candidate: CheckpointCandidate) -> str:
        """Returns the URL of the checkpoint's folder."""
        if candidate.name == self._root:
            return self._url
        # In a chain such as simplecache::zip://path::s3://bucket/file, the first link with a path
        # leads to the folder of checkpoints.
        links = self._url.split("::")
        index = next(number for number, link in enumerate(links) if "://" in link)
        links[index] = f"{links[index].rstrip('/')}/{PurePosixPath(candidate.name).name}"
        return "::".join(links)

    def still_has(self, candidate: CheckpointCandidate) -> bool:
        """Returns whether a checkpoint is still there, and was not replaced since it was listed."""
        self._fs.invalidate_cache()
        try:
            manifest = Manifest.loads(self._read_manifest(candidate.name))
        except _AbsentError:
            return False
        except ValueError:
            return True  # damaged, but neither removed nor replaced
        return CheckpointCandidate(candidate.name, manifest).key == candidate.key

    def _list_once(self) -> Listing:
        """Lists the source once. Another process may save meanwhile, so the list may be wrong."""
        root = self._root
        self._fs.invalidate_cache()  # fsspec caches the listings of directories
        root_candidate = self._read_candidate(root)
        if isinstance(root_candidate, CheckpointCandidate):
            # A single checkpoint is found without listing its folder, because some servers cannot
            # list folders.
            return Listing([root_candidate], {}, {})
        found, damaged, unfinished = [], {}, {}
        for name in self._list_names():
            candidate = self._read_candidate(name)
            if isinstance(candidate, CheckpointCandidate):
                found.append(candidate)
            elif candidate is None:
                unfinished[name] = "no manifest"
            else:
                damaged[name] = "its manifest is damaged"
        # If `root_candidate` is bytes, the source itself has an invalid manifest.json. The source
        # counts as a damaged checkpoint, unless it has checkpoints in it, or another program has
        # written the manifest.json.
        if isinstance(root_candidate, bytes) and not (
            found or damaged or unfinished or is_unrelated_json(root_candidate)
        ):
            damaged[root] = "its manifest is damaged"
        found.sort(key=lambda each: each.manifest.number, reverse=True)
        return Listing(found, damaged, unfinished)

    def _list_names(self) -> list[str]:
        """Returns the paths of the entries in the source that have the name of a checkpoint."""
        try:
            with self._errors_translated():
                entries = self._fs.ls(self._root, detail=True)
        except _AbsentError:
            return []
        names = [entry["name"].rstrip("/") for entry in entries]
        # If the source is a file, ls() returns the file itself.
        if names == [self._root] and entries[0].get("type") == "file":
            raise ValueError(
                f"`source` must be a folder, got the file {self._url}: give a checkpoint, or a "
                "directory of checkpoints"
            )
        return sorted(name for name in names if is_checkpoint_name(PurePosixPath(name).name))

    def _read_candidate(self, name: str) -> CheckpointCandidate | bytes | None:
        """Reads the manifest of a folder.

        Args:
            name: the path of the folder.

        Returns:
            The checkpoint, or None if the folder has no manifest. If the manifest is damaged, its
            bytes, or ``b""`` if it is too long or not a regular file.
        """
        text = b""
        try:
            text = self._read_manifest(name)
            return CheckpointCandidate(name, Manifest.loads(text))
        except _AbsentError:
            return None
        except (NotRegularFileError, ValueError):
            return text

    def _read_manifest(self, name: str) -> bytes:
        # One byte more than the limit is read, so that a file that is too long can be recognized.
        text = b"".join(self._read_chunks(f"{name}/{MANIFEST}", MAX_MANIFEST_BYTES + 1))
        if len(text) > MAX_MANIFEST_BYTES:
            raise ValueError(f"{name}/{MANIFEST} has more than {MAX_MANIFEST_BYTES} bytes")
        return text

    def _download(self, path: str, record: FileRecord, name: str, target: Path) -> None:
        """Downloads a file, and compares its size and checksum with its record.

        At most one byte more than the recorded size is read. This is enough to recognize a file
        that is too long.

        Args:
            path: the path of the file in the source.
            record: the size and the checksum of the file in the manifest.
            name: the path of the file in the checkpoint, for messages.
            target: the path of the local copy.
        """
        checksum, size = xxh3_128(), 0
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with target.open("wb") as copy:
                for chunk in self._read_chunks(path, record.size + 1):
                    checksum.update(chunk)
                    size += len(chunk)
                    copy.write(chunk)
        except _AbsentError as error:
            raise ValueError(f"{name} is missing") from error
        except NotRegularFileError as error:
            raise ValueError(f"{name} cannot be read ({error.strerror})") from error
        if size != record.size:
            # If the file is too long, only a part of it was read, so its size is not known.
            has = f"more than {record.size:,}" if size > record.size else f"{size:,}"
            raise ValueError(f"{name} has {has} bytes, but had {record.size:,} when it was saved")
        if checksum.hexdigest() != record.checksum:
            raise ValueError(f"{name} has changed since it was written")

    def _read_chunks(self, path: str, max_bytes: int) -> Iterator[bytes]:
        """Yields the content of a file in chunks, up to ``max_bytes``."""
        with self._errors_translated():
            local = open_regular(Path(path)) if self._is_local else None
            with local or self._fs.open(path, "rb") as file:
                while max_bytes > 0 and (chunk := file.read(min(_CHUNK_BYTES, max_bytes))):
                    max_bytes -= len(chunk)
                    yield chunk

    @contextmanager
    def _errors_translated(self) -> Iterator[None]:
        """Turns any exception of an fsspec implementation into an _AbsentError or a SourceError."""
        try:
            yield
        except NotRegularFileError:
            raise
        except Exception as error:
            # Archives raise a KeyError for a file that they do not contain.
            is_missing_entry = isinstance(error, KeyError) and self._is_archive
            if is_missing_entry or _is_absent(error):
                raise _AbsentError from error
            raise self._source_error(error) from error

    def _source_error(self, error: Exception) -> SourceError:
        """Returns a SourceError that shows ``error``.

        If ``error`` is a FileNotFoundError with a cause, the cause is shown instead: fsspec's HTTP
        protocol raises FileNotFoundError for every failure, and the cause is the actual failure.
        """
        shown = error.__cause__ if isinstance(error, FileNotFoundError) else error
        shown = shown if isinstance(shown, Exception) else error
        return SourceError(
            f"`source` {self._url} could not be read: {type(shown).__name__}: {shown}: check the "
            "address, the credentials and the network"
        )


def _is_absent(error: BaseException | None) -> bool:
    """Returns whether an error shows that a file is certainly absent.

    Some protocols, such as HTTP, raise FileNotFoundError for every failure, with the actual failure
    as the cause. So only these errors show the absence:

    - an error with the HTTP status 404 or 410;
    - a FileNotFoundError or NotADirectoryError without a cause;
    - a FileNotFoundError or NotADirectoryError whose cause is a LookupError, such as a missing key,
      or is one of the errors in this list.
    """
    if _http_status(error) in _NOT_FOUND_STATUSES:
        return True
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        return False
    cause = error.__cause__
    return cause is None or isinstance(cause, LookupError) or _is_absent(cause)


def _http_status(error: BaseException | None) -> object:
    """Returns the HTTP status that an error holds; None if it holds no status."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            if isinstance(status := getattr(holder, name, None), int):
                return status
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's errors hold the response as a dict
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return None
