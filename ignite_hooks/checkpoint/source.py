"""Sources of checkpoints: places from which checkpoints are read.

A source is the folder of one checkpoint, or a directory of checkpoints. A path leads to a local
source, which this module defines. A URL leads to a remote source, which ``remote.py`` defines.
"""

import os
from pathlib import Path

from ignite_hooks.checkpoint.layout import MANIFEST
from ignite_hooks.checkpoint.manifest import is_unrelated_json
from ignite_hooks.checkpoint.regular_file import open_regular
from ignite_hooks.checkpoint.remote import RemoteSource
from ignite_hooks.checkpoint.source_interface import CheckpointCandidate
from ignite_hooks.checkpoint.source_interface import Listing
from ignite_hooks.checkpoint.source_interface import Source
from ignite_hooks.checkpoint.source_interface import SourceError
from ignite_hooks.checkpoint.source_interface import list_until_stable
from ignite_hooks.checkpoint.store import MAX_MANIFEST_BYTES
from ignite_hooks.checkpoint.store import Checkpoint
from ignite_hooks.checkpoint.store import CheckpointStore
from ignite_hooks.checkpoint.store import find_problems
from ignite_hooks.checkpoint.store import is_checkpoint_name
from ignite_hooks.checkpoint.store import is_still_there
from ignite_hooks.checkpoint.store import read_manifest
from ignite_hooks.core.paths import is_url

__all__ = ["FolderSource", "source_at"]


def source_at(place: str | Path, cache_dir: str | Path | None) -> Source:
    """Returns the source at a path or a URL.

    Args:
        place: the path or the URL.
        cache_dir: the local folder for downloads from a URL.

    Raises:
        ValueError: ``place`` is a URL, and ``cache_dir`` is None.
    """
    if not is_url(place):
        return FolderSource(Path(place))
    if cache_dir is None:
        raise ValueError(
            f"`cache_dir` must be given for a URL, got None for {place}: pass a folder to download "
            "to"
        )
    return RemoteSource(str(place), Path(cache_dir))


class FolderSource(Source):
    """The folder of a checkpoint, or a directory of checkpoints."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self) -> Listing:
        """Lists the folder and reads the manifests in it."""
        return list_until_stable(self._list_once)

    def fetch(self, candidate: CheckpointCandidate, *, verify: bool) -> Checkpoint:
        """Checks the files of the checkpoint, and returns the checkpoint. No file is copied."""
        checkpoint = Checkpoint(Path(candidate.name), candidate.manifest)
        problems = find_problems(checkpoint, reads=verify)
        if problems:
            raise ValueError("; ".join(problems))
        return checkpoint

    def address_of(self, candidate: CheckpointCandidate) -> str:
        """Returns the path of the checkpoint's folder."""
        return candidate.name

    def still_has(self, candidate: CheckpointCandidate) -> bool:
        """Returns whether a checkpoint is still there, and was not replaced since it was listed."""
        return is_still_there(Checkpoint(Path(candidate.name), candidate.manifest))

    def _list_once(self) -> Listing:
        names = self._list_names()
        if MANIFEST in names:
            try:
                return Listing(
                    [CheckpointCandidate(str(self._path), read_manifest(self._path))], {}, {}
                )
            except FileNotFoundError:
                pass  # removed since the folder was listed
            except (OSError, ValueError) as error:
                # The manifest cannot be read. The folder counts as a directory of checkpoints if it
                # has checkpoints in it, or if another program has written the manifest.json.
                # Otherwise the folder counts as a damaged checkpoint.
                is_directory = any(is_checkpoint_name(name) for name in names)
                if not is_directory and not _has_unrelated_json(self._path / MANIFEST):
                    why = f"its manifest cannot be read ({type(error).__name__})"
                    return Listing([], {str(self._path): why}, {})
        store = CheckpointStore(self._path)
        # The store reads the directory several times, and the directory may change in between, so
        # the results may contradict each other. list_until_stable() calls this method until a
        # result can be trusted.
        try:
            found = [
                CheckpointCandidate(str(each.folder), each.manifest) for each in store.checkpoints()
            ]
            damaged = {str(folder): why for folder, why in store.damaged().items()}
            broken = {str(folder): why for folder, why in store.broken().items()}
        except FileNotFoundError:  # the directory was removed while it was listed
            return Listing([], {}, {})
        damaged |= self._find_unreachable(names)
        unfinished = {name: why for name, why in broken.items() if name not in damaged}
        return Listing(found, damaged, unfinished)

    def _list_names(self) -> list[str]:
        """Returns the names of the entries in the folder; an empty list if there is no folder.

        Raises:
            SourceError: the folder cannot be read, or is a dangling link.
            ValueError: the path is a file.
        """
        path = self._path
        try:
            os.stat(os.path.join(path, "."))  # raises if the user may not enter the folder
            return sorted(os.listdir(path))
        except FileNotFoundError:
            if path.is_symlink():
                raise SourceError(
                    f"`source` must be a folder, got the link {path} to {os.readlink(path)}, which "
                    "is not there: mount what it points to, or remove the link"
                ) from None
            return []
        except NotADirectoryError:
            raise ValueError(
                f"`source` must be a folder, got the file {path}: give the directory "
                "of a SaveCheckpoint, or one of the folders in it, step_00000100 for example"
            ) from None
        except OSError as error:
            raise SourceError(
                f"`source` {path} could not be read: {type(error).__name__}: {error.strerror}: "
                "check the permissions, and whether the folder is mounted"
            ) from error

    def _find_unreachable(self, names: list[str]) -> dict[str, str]:
        """Finds the entries that have the name of a checkpoint, but cannot be entered.

        Such an entry is a dangling link, or a special file such as a FIFO. Regular files are left
        out, because they are files of the user.

        Args:
            names: the names of the entries in the folder.

        Returns:
            Maps the path of an entry to the reason why it cannot be entered.
        """
        found = {}
        for path in (self._path / name for name in names if is_checkpoint_name(name)):
            if path.is_dir() or path.is_file() or not os.path.lexists(path):
                # If lexists() returns False, the entry has been removed since the listing.
                continue
            why = "not a folder"
            if path.is_symlink() and not path.exists():
                why = f"a link to {os.readlink(path)}, which is not there"
            found[str(path)] = why
        return found


def _has_unrelated_json(path: Path) -> bool:
    """Returns whether the ``manifest.json`` at ``path`` was written by another program."""
    try:
        with open_regular(path) as file:
            return is_unrelated_json(file.read(MAX_MANIFEST_BYTES))
    except OSError:
        return False
