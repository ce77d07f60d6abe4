"""Where checkpoints are looked for: a folder, or a place that fsspec can read."""

import os
import shutil
import tempfile
from abc import ABC
from abc import abstractmethod
from pathlib import Path
from pathlib import PurePosixPath
from typing import Any
from typing import NamedTuple

from xxhash import xxh3_128_hexdigest

from ignite_hooks.checkpoint.durable import sync_tree
from ignite_hooks.checkpoint.manifest import Manifest
from ignite_hooks.checkpoint.store import MANIFEST
from ignite_hooks.checkpoint.store import Checkpoint
from ignite_hooks.checkpoint.store import CheckpointStore
from ignite_hooks.checkpoint.store import find_problems
from ignite_hooks.checkpoint.store import is_checkpoint_name
from ignite_hooks.checkpoint.store import read_manifest

__all__ = ["Candidate", "Source", "source_at"]


class Candidate(NamedTuple):
    """Something that says it is a checkpoint.

    Args:
        name: where it is.
        manifest: what it says of itself.
    """

    name: str
    manifest: Manifest


class Source(ABC):
    """One checkpoint, or several."""

    @abstractmethod
    def find(self) -> tuple[list[Candidate], list[str]]:
        """Those there are, the newest first; and what is damaged, and how."""

    @abstractmethod
    def fetch(self, candidate: Candidate) -> Checkpoint:
        """The checkpoint in a folder of this machine.

        Raises:
            OSError: it can not be read.
            ValueError: it is damaged.
        """


def source_at(place: str | Path, cache_dir: str | Path | None) -> Source:
    """The source at a path or a URL."""
    if "://" not in str(place):
        return _Folder(Path(place))
    if cache_dir is None:
        raise ValueError(
            f"`cache_dir` must be given for a URL, got None for {place}: a folder to download to"
        )
    return _Remote(str(place), Path(cache_dir))


class _Folder(Source):
    """A checkpoint's folder, or a directory of them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self) -> tuple[list[Candidate], list[str]]:
        if self._path.exists() and not self._path.is_dir():
            raise ValueError(
                f"`source` must be a folder, got the file {self._path}: give a checkpoint or a "
                "directory of them"
            )
        if is_checkpoint_name(self._path.name) or (self._path / MANIFEST).exists():
            try:
                return [Candidate(str(self._path), read_manifest(self._path))], []
            except FileNotFoundError:
                return [], []
            except (OSError, ValueError) as error:
                return [], [f"{self._path}: its manifest can not be read ({type(error).__name__})"]
        store = CheckpointStore(self._path)
        found = [Candidate(str(each.folder), each.manifest) for each in store.checkpoints()]
        return found, [f"{folder}: {why}" for folder, why in store.damaged().items()]

    def fetch(self, candidate: Candidate) -> Checkpoint:
        return Checkpoint(Path(candidate.name), candidate.manifest)


class _Remote(Source):
    """The same somewhere else: by a protocol of fsspec, through a folder of this machine."""

    def __init__(self, url: str, cache: Path) -> None:
        import fsspec  # only here: it takes 20 ms, and its protocols more

        self._fs: Any
        self._fs, self._root = fsspec.core.url_to_fs(url)
        self._cache = cache

    def find(self) -> tuple[list[Candidate], list[str]]:
        fs, root = self._fs, self._root.rstrip("/")
        fs.invalidate_cache()
        if not fs.exists(root):
            return [], []
        names = [root]
        if not fs.exists(f"{root}/{MANIFEST}"):
            listed = [str(name).rstrip("/") for name in fs.ls(root, detail=False)]
            names = [name for name in listed if is_checkpoint_name(PurePosixPath(name).name)]
        found, damaged = [], []
        for name in names:
            try:
                found.append(Candidate(name, Manifest.loads(fs.cat_file(f"{name}/{MANIFEST}"))))
            except FileNotFoundError:  # a save that was not finished
                continue
            except ValueError:
                damaged.append(f"{name}: its manifest is damaged")
        return sorted(found, key=lambda each: each.manifest.number, reverse=True), damaged

    def fetch(self, candidate: Candidate) -> Checkpoint:
        """Downloaded under another name, and verified before it gets its own."""
        name, manifest = candidate
        text = manifest.dumps()
        target = self._cache / f"{PurePosixPath(name).name}-{xxh3_128_hexdigest(text)[:16]}"
        if target.exists():
            cached = Checkpoint(target, manifest)
            if not find_problems(cached):
                return cached
            shutil.rmtree(target)
        self._cache.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self._cache, prefix=".download-"))
        try:
            for file in manifest.files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(f"{name}/{file}", str(folder / file))
            (folder / MANIFEST).write_bytes(text)
            problems = find_problems(Checkpoint(folder, manifest))
            if problems:
                raise ValueError("; ".join(problems))
            sync_tree(folder)
            if not target.exists():  # else another process was faster
                os.replace(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return Checkpoint(target, manifest)
