"""Sources of checkpoints: a folder of this machine, or a place that fsspec can read."""

import os
from pathlib import Path

from ignite_hooks.checkpoint.candidates import Candidate
from ignite_hooks.checkpoint.candidates import Look
from ignite_hooks.checkpoint.candidates import Source
from ignite_hooks.checkpoint.candidates import SourceError
from ignite_hooks.checkpoint.candidates import settled
from ignite_hooks.checkpoint.layout import MANIFEST
from ignite_hooks.checkpoint.manifest import is_foreign
from ignite_hooks.checkpoint.regular_file import open_regular
from ignite_hooks.checkpoint.remote import RemoteSource
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
    """The source at a path or a URL."""
    if not is_url(place):
        return FolderSource(Path(place))
    if cache_dir is None:
        raise ValueError(
            f"`cache_dir` must be given for a URL, got None for {place}: a folder to download to"
        )
    return RemoteSource(str(place), Path(cache_dir))


class FolderSource(Source):
    """A checkpoint's folder, or a directory of them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self) -> Look:
        """Looks at the names and the manifests in the folder."""
        return settled(self._look)

    def fetch(self, candidate: Candidate, *, verify: bool) -> Checkpoint:
        """Looks at its files where they are."""
        checkpoint = Checkpoint(Path(candidate.name), candidate.manifest)
        problems = find_problems(checkpoint, reads=verify)
        if problems:
            raise ValueError("; ".join(problems))
        return checkpoint

    def address_of(self, candidate: Candidate) -> str:
        """Returns the path of its folder."""
        return candidate.name

    def still_has(self, candidate: Candidate) -> bool:
        """Reads its manifest again."""
        return is_still_there(Checkpoint(Path(candidate.name), candidate.manifest))

    def _look(self) -> Look:
        names = self._names()
        if MANIFEST in names:
            try:
                return Look([Candidate(str(self._path), read_manifest(self._path))], {}, {})
            except FileNotFoundError:  # it has been removed since
                pass
            except (OSError, ValueError) as error:
                is_directory = any(is_checkpoint_name(name) for name in names)
                if not is_directory and not _is_foreign(self._path / MANIFEST):
                    why = f"its manifest cannot be read ({type(error).__name__})"
                    return Look([], {str(self._path): why}, {})
        store = CheckpointStore(self._path)
        try:
            found = [Candidate(str(each.folder), each.manifest) for each in store.checkpoints()]
            damaged = {str(folder): why for folder, why in store.damaged().items()}
            broken = {str(folder): why for folder, why in store.broken().items()}
        except FileNotFoundError:  # the directory itself has been removed
            return Look([], {}, {})
        damaged |= self._unreachable(names)
        unfinished = {name: why for name, why in broken.items() if name not in damaged}
        return Look(found, damaged, unfinished)

    def _names(self) -> list[str]:
        """Lists the folder; an absent folder is an empty one."""
        path = self._path
        try:
            os.stat(os.path.join(path, "."))  # whether it may be entered, too
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
                f"`source` must be a folder, got the file {path}: give a checkpoint or a "
                "directory of them"
            ) from None
        except OSError as error:
            raise SourceError(
                f"`source` {path} could not be read: {type(error).__name__}: {error.strerror}: "
                "check the permissions, and whether it is mounted"
            ) from error

    def _unreachable(self, names: list[str]) -> dict[str, str]:
        """Finds names of checkpoints that lead to no folder; a plain file is a user's own."""
        found = {}
        for path in (self._path / name for name in names if is_checkpoint_name(name)):
            if path.is_dir() or path.is_file() or not os.path.lexists(path):
                continue
            is_link = path.is_symlink() and not path.exists()
            why = f"a link to {os.readlink(path)}, which is not there" if is_link else "no folder"
            found[str(path)] = why
        return found


def _is_foreign(path: Path) -> bool:
    """Returns whether a manifest is the file of another program."""
    try:
        with open_regular(path) as file:
            return is_foreign(file.read(MAX_MANIFEST_BYTES))
    except OSError:
        return False
