"""The comparison of two checkpoints: tensors by norm, everything else by value.

The tensors are read one after another, and nothing is unpickled. Files that would have to be, and
those of random generators and of sharded models, are compared by their checksums.
"""

import math
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import safe_open

from ignite_hooks.checkpoint.contents import load_objects
from ignite_hooks.checkpoint.differences import Comparison
from ignite_hooks.checkpoint.differences import Difference
from ignite_hooks.checkpoint.differences import Part
from ignite_hooks.checkpoint.differences import Row
from ignite_hooks.checkpoint.digest import digest_of
from ignite_hooks.checkpoint.layout import OPTIMIZER
from ignite_hooks.checkpoint.layout import SCALER
from ignite_hooks.checkpoint.layout import SCHEDULER
from ignite_hooks.checkpoint.layout import TRAINER
from ignite_hooks.checkpoint.layout import module_files
from ignite_hooks.checkpoint.manifest import SCHEMA
from ignite_hooks.checkpoint.manifest import Manifest
from ignite_hooks.checkpoint.plain_data import flattened
from ignite_hooks.checkpoint.store import Checkpoint

__all__ = ["compared"]

ABSENT = "-"
NOT_RECORDED = "not recorded"

_CHUNK = 2**20  # elements that are subtracted at once, in float64
_MAPPED = 2**26  # bytes of a file that are read before its memory is given back
_FILES = {OPTIMIZER: "optimizer", SCHEDULER: "scheduler", SCALER: "scaler"}
_COUNTERS = {
    "step": "step",
    "epoch": "epoch",
    "iteration": "iteration",
    "data_pass": "passes",
    "batches": "batches of this pass",
    "world_size": "processes",
    "global_batch": "global batch",
    "metric": "metric",
    "metric_value": "metric value",
    "ended_by": "ended by",
    "version": "layout",
}


def compared(first: Checkpoint, second: Checkpoint) -> Comparison:
    """Compares two checkpoints, whose files must be whole.

    Raises:
        ValueError: a file is not as a ``SaveCheckpoint`` writes it.
    """
    states = [_States(each) for each in (first, second)]
    parts = {
        name: _part(*(each.parts.get(name, {}) for each in states))
        for name in dict.fromkeys([*states[0].parts, *states[1].parts])
    }
    ours, theirs = first.manifest, second.manifest
    read = states[0].files | states[1].files
    rows = {
        "counters": _rows(_counters(ours), _counters(theirs)),
        "settings": _settings(ours.settings, theirs.settings),
        "versions": _rows(ours.versions, theirs.versions),
        "contents": _contents(ours.contents, theirs.contents),
        "files": _rows(_checksums(ours, read), _checksums(theirs, read)),
    }
    return Comparison(parts, rows)


class _States:
    """The states in a checkpoint, by part and name. Tensors stay in the files until they are read.

    Attributes:
        parts: the values of each part by name, as functions that read them.
        files: the files that are read whole, so that their checksums need not be compared.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        folder, manifest = checkpoint
        if manifest.version > SCHEMA:
            raise ValueError(
                f"{folder} has the layout {manifest.version} of a newer ignite_hooks, and this one "
                f"reads up to {SCHEMA}: update the package"
            )
        self.parts: dict[str, dict[str, Callable[[], Any]]] = {}
        self.files: set[str] = set()
        try:
            self._read(folder, set(manifest.files))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{TRAINER} of {folder} must be as a SaveCheckpoint writes it, got another content "
                f"({type(error).__name__}: {error})"
            ) from error

    def _read(self, folder: Path, names: set[str]) -> None:
        about = load_objects(folder / TRAINER, mapped=True) if TRAINER in names else {}
        for name, of_module in about.get("modules", {}).items():
            self._read_module(folder, name, names, of_module)
        for file, part in _FILES.items():
            if file in names:
                self._add(part, load_objects(folder / file, mapped=True))
                self.files.add(file)
        objects = about.get("objects", {})
        for kind, states in objects.items():
            for name, state in states.items() if kind in ("handlers", "also") else ():
                self._add(f"{kind}/{name}", state)
        rest = {
            kind: states for kind, states in objects.items() if kind not in ("handlers", "also")
        }
        elsewhere = ("objects", "modules", "settings")  # the manifest has the settings too
        others = {name: each for name, each in about.items() if name not in elsewhere}
        flags = {name: each["flags"] for name, each in about.get("modules", {}).items()}
        self._add("trainer", {**rest, "flags": flags, **others})
        self.files.add(TRAINER)

    def _read_module(
        self, folder: Path, name: str, names: set[str], about: Mapping[str, Any]
    ) -> None:
        safe_file, pickle_file = module_files(name)
        if pickle_file in names:
            self._add(name, load_objects(folder / pickle_file, mapped=True))
        elif safe_file in names:
            tensors = _Tensors(folder / safe_file)
            readers = {key: tensors.reader(key) for key in tensors.names}
            readers |= {alias: readers[first] for alias, first in about["aliases"].items()}
            self.parts[name] = dict(sorted(readers.items()))
            self._add(name, about["extra"])
            if lazy := about.get("lazy"):
                self._add(name, {key: f"lazy {kind}" for key, kind in lazy.items()})
        self.files |= {safe_file, pickle_file}

    def _add(self, part: str, state: Any) -> None:
        values = dict(flattened(state, separator="/"))
        readers = {name: _returning(value) for name, value in values.items() if value != {}}
        self.parts.setdefault(part, {}).update(readers)


class _Tensors:
    """A file of safetensors, whose tensors are read one after another.

    What is read of a mapped file stays in the memory of the process as long as the file is open,
    so it is opened again from time to time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._left = 0
        self._file: Any = None
        self.names = list(self._opened().keys())

    def reader(self, name: str) -> Callable[[], torch.Tensor]:
        """Returns a function that reads a tensor."""

        def read() -> torch.Tensor:
            tensor: torch.Tensor = self._opened().get_tensor(name)
            self._left -= tensor.nbytes
            return tensor

        return read

    def _opened(self) -> Any:
        if self._left <= 0:
            self._left = _MAPPED
            try:
                self._file = safe_open(self._path, framework="pt")
            except SafetensorError as error:
                raise ValueError(f"{self._path} cannot be read ({error})") from error
        return self._file


def _part(ours: Mapping[str, Callable[[], Any]], theirs: Mapping[str, Callable[[], Any]]) -> Part:
    names = dict.fromkeys([*ours, *theirs])
    found = []
    for name in names:
        if name not in theirs:
            found.append(Difference(name, note="only in the first", is_structural=True))
        elif name not in ours:
            found.append(Difference(name, note="only in the second", is_structural=True))
        elif (difference := _difference(name, ours[name](), theirs[name]())) is not None:
            found.append(difference)
    return Part(len(names), sorted(found, key=_largest_first))


def _largest_first(difference: Difference) -> tuple[bool, bool, float]:
    norm = difference.norm
    return not difference.is_structural, norm is not None and not difference.note, -(norm or 0)


def _difference(name: str, ours: Any, theirs: Any) -> Difference | None:
    """Returns how two values differ; None if they are the same bit for bit."""
    if not (isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor)):
        if type(ours) is type(theirs) and digest_of(ours) == digest_of(theirs):
            return None
        kinds = [_kind(each) for each in (ours, theirs)]
        return Difference(name, note=" | ".join(kinds))
    if ours.shape != theirs.shape or ours.layout != theirs.layout:
        kinds = [f"{tuple(each.shape)} {_dtype(each)}" for each in (ours, theirs)]
        return Difference(name, note=" | ".join(kinds), is_structural=True)
    notes = []
    if ours.dtype != theirs.dtype:
        notes.append(f"{_dtype(ours)} | {_dtype(theirs)}")
    try:
        pairs = list(_dense(ours, theirs))
        if not notes and all(_same_bits(*pair) for pair in pairs):
            return None
        norm, reference, odd = _norms(*pairs[0])
    except (NotImplementedError, RuntimeError, TypeError):  # a dtype without arithmetic
        return Difference(name, note="; ".join([*notes, "not the same bytes"]))
    if odd:
        notes.append(f"{odd} of {ours.numel()} elements not finite in one, or not the same")
    elif norm == 0 and not notes:
        notes.append("the same numbers in other bits")
    relative = norm / reference if reference else (math.inf if norm else 0.0)
    return Difference(name, norm, relative, "; ".join(notes))


def _dense(ours: torch.Tensor, theirs: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields tensors to compare: first those to subtract, then what makes them the same bits."""
    if ours.is_quantized or theirs.is_quantized:
        yield ours.dequantize(), theirs.dequantize()
        yield ours.int_repr(), theirs.int_repr()
    elif ours.layout == torch.strided:
        yield ours, theirs
    else:
        yield ours.to_dense(), theirs.to_dense()


def _same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    if ours.dtype != theirs.dtype:
        return False
    return torch.equal(*(each.reshape(-1).view(torch.uint8) for each in (ours, theirs)))


def _norms(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[float, float, int]:
    """Returns the norms of the difference and of the first, and how many others differ.

    Both norms are those of the elements that are finite in both. Others are the same if they are
    equal, or NaN in both.
    """
    wide = torch.complex128 if ours.is_complex() or theirs.is_complex() else torch.float64
    norm = reference = 0.0
    odd = 0
    ours, theirs = ours.reshape(-1), theirs.reshape(-1)
    for begin in range(0, ours.numel(), _CHUNK):
        first, second = (each[begin : begin + _CHUNK].to(wide) for each in (ours, theirs))
        if not (first - second).isfinite().all():
            is_finite = first.isfinite() & second.isfinite()
            is_same = (first == second) | (first.isnan() & second.isnan())
            odd += int((~is_finite & ~is_same).sum())
            first, second = first[is_finite], second[is_finite]
        norm = math.hypot(norm, _norm(first - second))
        reference = math.hypot(reference, _norm(first))
    return norm, reference, odd


def _norm(values: torch.Tensor) -> float:
    """Returns the norm; the squares of large or small numbers would not be finite, or zero."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * float(torch.linalg.vector_norm(values / largest))


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)}"
    return repr(value)


def _dtype(tensor: torch.Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return dtype if tensor.layout == torch.strided else f"{dtype} {tensor.layout}"


def _returning(value: Any) -> Callable[[], Any]:
    return lambda: value


def _rows(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[Row]:
    """Returns the entries that differ; an entry that one of the two lacks is a difference."""
    found = []
    for name in dict.fromkeys([*ours, *theirs]):
        first, second = ours.get(name, ABSENT), theirs.get(name, ABSENT)
        if first != second and digest_of(first) != digest_of(second):  # a NaN equals itself
            found.append(Row(name, first, second))
    return found


def _settings(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[Row]:
    if bool(ours) == bool(theirs):
        return _rows(dict(flattened(ours)), dict(flattened(theirs)))
    recorded = {True: "recorded", False: NOT_RECORDED}
    return [Row("all", recorded[bool(ours)], recorded[bool(theirs)])]


def _contents(ours: Mapping[str, list[str]], theirs: Mapping[str, list[str]]) -> list[Row]:
    """Returns the kinds of contents that differ, with the names that only one of the two has."""
    found = []
    for kind in dict.fromkeys([*ours, *theirs]):
        names = ours.get(kind, []), theirs.get(kind, [])
        only = [[n for n in names[side] if n not in names[1 - side]] for side in (0, 1)]
        if any(only):
            found.append(Row(kind, *(", ".join(each) or ABSENT for each in only)))
    return found


def _counters(manifest: Manifest) -> dict[str, Any]:
    return {name: getattr(manifest, key) for key, name in _COUNTERS.items()}


def _checksums(manifest: Manifest, read: set[str]) -> dict[str, str]:
    """Returns size and checksum of the files that are not read."""
    return {
        name: f"{record.size} B, {record.checksum[:8]}"
        for name, record in manifest.files.items()
        if name not in read
    }
