"""Compares two checkpoints: tensors by the norm of their difference, other values by equality.

Tensors are read one at a time, and nothing is unpickled. Three kinds of files are compared only by
their checksums: the file of each process, with its random states (``rank_00000.pt``); the files of
a model that is split over processes; and the files of objects that were registered with the
accelerator.
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

__all__ = ["compare_checkpoints"]

ABSENT = "-"
NOT_RECORDED = "not recorded"

_CHUNK_ELEMENTS = 2**20  # larger tensors are subtracted in pieces of 8 MiB in float64
_MAX_MAPPED_BYTES = 2**26  # after reading this number of bytes, a mapped file is opened again
# Maps the name of a file to the name of its part in the comparison.
_PARTS_BY_FILE = {OPTIMIZER: "optimizer", SCHEDULER: "scheduler", SCALER: "scaler"}
# Maps a field of the manifest to its label in the comparison.
_COUNTER_LABELS = {
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


def compare_checkpoints(first: Checkpoint, second: Checkpoint) -> Comparison:
    """Compares two checkpoints whose files have been verified.

    Raises:
        ValueError: the content of a file is not what a ``SaveCheckpoint`` writes, or a newer
            version of this package has written the checkpoint.
    """
    states = [_StateReaders(each) for each in (first, second)]
    parts = {
        name: _compare_parts(*(each.parts.get(name, {}) for each in states))
        for name in dict.fromkeys([*states[0].parts, *states[1].parts])
    }
    ours, theirs = first.manifest, second.manifest
    read = states[0].files | states[1].files
    rows = {
        "counters": _compare_entries(_counters(ours), _counters(theirs)),
        "settings": _compare_settings(ours.settings, theirs.settings),
        "versions": _compare_entries(ours.versions, theirs.versions),
        "contents": _compare_contents(ours.contents, theirs.contents),
        "files": _compare_entries(_checksums(ours, read), _checksums(theirs, read)),
    }
    return Comparison(parts, rows)


class _StateReaders:
    """The readers of a checkpoint's values. A reader is a function that returns one value.

    A tensor in a safetensors file stays on the disk until its reader is called.

    Attributes:
        parts: maps the name of a part, such as "model" or "optimizer", to a dict. This dict maps
            the name of a value to the reader of the value.
        files: the names of the files that the readers cover completely. The checksums of these
            files are not compared.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        folder, manifest = checkpoint
        if manifest.version > SCHEMA:
            raise ValueError(
                f"{folder} must have a layout up to {SCHEMA}, got layout {manifest.version} of a "
                "newer ignite_hooks: update the package"
            )
        self.parts: dict[str, dict[str, Callable[[], Any]]] = {}
        self.files: set[str] = set()
        try:
            self._read_parts(folder, set(manifest.files))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{TRAINER} of {folder} must be as a SaveCheckpoint writes it, got another content "
                f"({type(error).__name__}: {error})"
            ) from error

    def _read_parts(self, folder: Path, names: set[str]) -> None:
        """Fills ``parts`` and ``files`` from the files of a checkpoint."""
        # The content of trainer.pt: the states of objects, and information about the modules.
        trainer_content = load_objects(folder / TRAINER, mapped=True) if TRAINER in names else {}
        for name, module_info in trainer_content.get("modules", {}).items():
            self._read_module(folder, name, names, module_info)
        for file, part in _PARTS_BY_FILE.items():
            if file in names:
                self._add_readers(part, load_objects(folder / file, mapped=True))
                self.files.add(file)
        # Each handler, and each object that the user gave as `also`, is a part of its own. The rest
        # of trainer.pt is the part "trainer".
        objects = trainer_content.get("objects", {})
        for kind, states in objects.items():
            for name, state in states.items() if kind in ("handlers", "also") else ():
                self._add_readers(f"{kind}/{name}", state)
        other_objects = {
            kind: states for kind, states in objects.items() if kind not in ("handlers", "also")
        }
        # Objects and modules are added separately; `_compare_settings` compares the settings.
        handled = ("objects", "modules", "settings")
        other_entries = {
            name: each for name, each in trainer_content.items() if name not in handled
        }
        flags = {name: each["flags"] for name, each in trainer_content.get("modules", {}).items()}
        self._add_readers("trainer", {**other_objects, "flags": flags, **other_entries})
        self.files.add(TRAINER)

    def _read_module(
        self, folder: Path, name: str, names: set[str], module_info: Mapping[str, Any]
    ) -> None:
        """Adds the readers of a module, from its safetensors or its ``torch.save`` file."""
        safe_file, pickle_file = module_files(name)
        if pickle_file in names:
            self._add_readers(name, load_objects(folder / pickle_file, mapped=True))
        elif safe_file in names:
            tensors = _SafetensorsReader(folder / safe_file)
            readers = {key: tensors.reader(key) for key in tensors.names}
            # A safetensors file has a tied weight only under its first name. The other names of the
            # weight are its aliases.
            readers |= {alias: readers[first] for alias, first in module_info["aliases"].items()}
            self.parts[name] = dict(sorted(readers.items()))
            # `extra` has the values that a safetensors file cannot hold.
            self._add_readers(name, module_info["extra"])
            # A lazy tensor is not initialized and has no value. So only its kind is compared:
            # whether the tensor is a parameter or a buffer.
            if lazy := module_info.get("lazy"):
                self._add_readers(name, {key: f"lazy {kind}" for key, kind in lazy.items()})
        self.files |= {safe_file, pickle_file}

    def _add_readers(self, part: str, state: Any) -> None:
        """Adds a reader for each value in a loaded state. A name is a path like "state/0/step"."""
        values = dict(flattened(state, separator="/"))
        readers = {name: _make_reader(value) for name, value in values.items() if value != {}}
        self.parts.setdefault(part, {}).update(readers)


class _SafetensorsReader:
    """Reads single tensors of a safetensors file with bounded memory.

    The file is mapped into memory. The pages that have been read count as memory of the process
    until the file is closed, so the file is closed and opened again after every 64 MiB.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes_until_reopen = 0
        self._file: Any = None
        self.names = list(self._open_file().keys())

    def reader(self, name: str) -> Callable[[], torch.Tensor]:
        """Returns a function that reads the tensor with the given name."""

        def read() -> torch.Tensor:
            tensor: torch.Tensor = self._open_file().get_tensor(name)
            self._bytes_until_reopen -= tensor.nbytes
            return tensor

        return read

    def _open_file(self) -> Any:
        """Returns the open file, reopened if ``_MAX_MAPPED_BYTES`` have been read from it."""
        if self._bytes_until_reopen <= 0:
            self._bytes_until_reopen = _MAX_MAPPED_BYTES
            try:
                self._file = safe_open(self._path, framework="pt")
            except SafetensorError as error:
                raise ValueError(f"{self._path} cannot be read ({error})") from error
        return self._file


def _compare_parts(
    ours: Mapping[str, Callable[[], Any]], theirs: Mapping[str, Callable[[], Any]]
) -> Part:
    names = dict.fromkeys([*ours, *theirs])
    found = []
    for name in names:
        if name not in theirs:
            found.append(Difference(name, note="only in the first", is_structural=True))
        elif name not in ours:
            found.append(Difference(name, note="only in the second", is_structural=True))
        elif (difference := _compare_values(name, ours[name](), theirs[name]())) is not None:
            found.append(difference)
    return Part(len(names), sorted(found, key=_most_important_first))


def _most_important_first(difference: Difference) -> tuple[bool, bool, float]:
    """Returns a key that sorts the most important differences first.

    Structural differences come first (see ``Difference.is_structural``), then differences that have
    no norm or have a note, then all others. Within each of these three kinds, the largest norm
    comes first.
    """
    norm = difference.norm
    return not difference.is_structural, norm is not None and not difference.note, -(norm or 0)


def _compare_values(name: str, ours: Any, theirs: Any) -> Difference | None:
    """Returns the difference of two values; None if they are equal bit for bit."""
    if not (isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor)):
        # Types are compared, too: a list and a tuple of the same values have the same digest.
        if type(ours) is type(theirs) and digest_of(ours) == digest_of(theirs):
            return None
        descriptions = [_describe_value(each) for each in (ours, theirs)]
        return Difference(name, note=" | ".join(descriptions))
    if ours.shape != theirs.shape or ours.layout != theirs.layout:
        descriptions = [f"{tuple(each.shape)} {_describe_dtype(each)}" for each in (ours, theirs)]
        return Difference(name, note=" | ".join(descriptions), is_structural=True)
    notes = []
    if ours.dtype != theirs.dtype:
        notes.append(f"{_describe_dtype(ours)} | {_describe_dtype(theirs)}")
    try:
        pairs = list(_tensors_to_compare(ours, theirs))
        if not notes and all(_same_bits(*pair) for pair in pairs):
            return None
        norm, reference, different_nonfinite = _difference_norms(*pairs[0])
    except (NotImplementedError, RuntimeError, TypeError):  # some dtypes cannot be subtracted
        return Difference(name, note="; ".join([*notes, "not the same bytes"]))
    if different_nonfinite:
        notes.append(
            f"{different_nonfinite} of {ours.numel()} elements differ by a NaN or an infinity"
        )
    elif norm == 0 and not notes:
        notes.append("equal numbers with different bits")
    relative = norm / reference if reference else (math.inf if norm else 0.0)
    return Difference(name, norm, relative, "; ".join(notes))


def _tensors_to_compare(
    ours: torch.Tensor, theirs: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields pairs of strided tensors that hold the values of ``ours`` and ``theirs``.

    The caller compares the bits of all pairs, and subtracts the tensors of the first pair. For
    quantized tensors the first pair holds the dequantized numbers, and a second pair holds the
    integers. The second pair is needed, because different integers with different scales may
    dequantize to equal numbers.
    """
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


def _difference_norms(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[float, float, int]:
    """Returns the norm of the difference, the norm of ``ours``, and the number of non-finite pairs.

    Both norms cover only the elements that are finite in both tensors. A *non-finite pair* is two
    different elements at the same index, at least one of which is NaN or infinite. Two NaN count as
    equal.
    """
    wide = torch.complex128 if ours.is_complex() or theirs.is_complex() else torch.float64
    norm = reference = 0.0
    different_nonfinite = 0
    ours, theirs = ours.reshape(-1), theirs.reshape(-1)
    for begin in range(0, ours.numel(), _CHUNK_ELEMENTS):
        first, second = (each[begin : begin + _CHUNK_ELEMENTS].to(wide) for each in (ours, theirs))
        if not (first - second).isfinite().all():
            is_finite = first.isfinite() & second.isfinite()
            is_same = (first == second) | (first.isnan() & second.isnan())
            different_nonfinite += int((~is_finite & ~is_same).sum())
            first, second = first[is_finite], second[is_finite]
        norm = math.hypot(norm, _scaled_norm(first - second))
        reference = math.hypot(reference, _scaled_norm(first))
    return norm, reference, different_nonfinite


def _scaled_norm(values: torch.Tensor) -> float:
    """Returns the Euclidean norm.

    The values are first divided by the largest magnitude, because the square of a value may
    overflow or underflow.
    """
    largest = float(values.abs().max()) if values.numel() else 0.0
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * float(torch.linalg.vector_norm(values / largest))


def _describe_value(value: Any) -> str:
    """Returns the shape of a tensor, or the repr of any other value."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)}"
    return repr(value)


def _describe_dtype(tensor: torch.Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return dtype if tensor.layout == torch.strided else f"{dtype} {tensor.layout}"


def _make_reader(value: Any) -> Callable[[], Any]:
    """Returns a reader for a value that is in memory already."""
    return lambda: value


def _compare_entries(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[Row]:
    """Returns a row for each entry that differs or that only one of the two mappings has."""
    found = []
    for name in dict.fromkeys([*ours, *theirs]):
        first, second = ours.get(name, ABSENT), theirs.get(name, ABSENT)
        # NaN != NaN, so values that are not equal are compared by digest as well.
        if first != second and digest_of(first) != digest_of(second):
            found.append(Row(name, first, second))
    return found


def _compare_settings(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[Row]:
    """Returns a row for each setting that differs.

    If only one of the two checkpoints has a record of its settings, a single row says so.
    """
    if bool(ours) == bool(theirs):
        return _compare_entries(dict(flattened(ours)), dict(flattened(theirs)))
    recorded = {True: "recorded", False: NOT_RECORDED}
    return [Row("all", recorded[bool(ours)], recorded[bool(theirs)])]


def _compare_contents(ours: Mapping[str, list[str]], theirs: Mapping[str, list[str]]) -> list[Row]:
    """Returns a row for each kind of saved objects, such as "handlers", whose names differ.

    The row has two values: the names that only the first checkpoint has, and the names that only
    the second one has.
    """
    found = []
    for kind in dict.fromkeys([*ours, *theirs]):
        names = ours.get(kind, []), theirs.get(kind, [])
        only = [[n for n in names[side] if n not in names[1 - side]] for side in (0, 1)]
        if any(only):
            found.append(Row(kind, *(", ".join(each) or ABSENT for each in only)))
    return found


def _counters(manifest: Manifest) -> dict[str, Any]:
    return {name: getattr(manifest, key) for key, name in _COUNTER_LABELS.items()}


def _checksums(manifest: Manifest, read: set[str]) -> dict[str, str]:
    """Maps the name of each file that is not in ``read`` to the file's size and checksum."""
    return {
        name: f"{record.size} B, {record.checksum[:8]}"
        for name, record in manifest.files.items()
        if name not in read
    }
