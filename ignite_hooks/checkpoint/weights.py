"""Loads the weights of a checkpoint without a trainer, for testing, inference or fine-tuning.

A source is a directory of checkpoints, a single checkpoint, or the URL of either. ``checkpoints``
lists the checkpoints of a source. ``load_weights`` loads the weights of a model, or of any other
saved module. ``export_weights`` writes such weights to a safetensors file.
"""

import os
import tempfile
import warnings
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from logging import getLogger
from pathlib import Path
from typing import Any
from typing import NamedTuple
from typing import TypeAlias

import torch
from pydantic import ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from torch.nn.parameter import is_lazy

from ignite_hooks.checkpoint.choice import Which
from ignite_hooks.checkpoint.choice import best_of_each_run
from ignite_hooks.checkpoint.choice import best_of_run
from ignite_hooks.checkpoint.choice import join_first
from ignite_hooks.checkpoint.choice import select_checkpoints
from ignite_hooks.checkpoint.contents import Tensors
from ignite_hooks.checkpoint.contents import load_objects
from ignite_hooks.checkpoint.durable import copy_file_mode
from ignite_hooks.checkpoint.durable import sync
from ignite_hooks.checkpoint.layout import SHARDED
from ignite_hooks.checkpoint.layout import TRAINER
from ignite_hooks.checkpoint.layout import module_files
from ignite_hooks.checkpoint.module_state import ModuleLoadResult
from ignite_hooks.checkpoint.module_state import check_module_fit
from ignite_hooks.checkpoint.module_state import load_into_module
from ignite_hooks.checkpoint.module_state import read_module
from ignite_hooks.checkpoint.module_state import split_state
from ignite_hooks.checkpoint.plain_names import PlainNames
from ignite_hooks.checkpoint.source import source_at
from ignite_hooks.checkpoint.source_interface import CheckpointCandidate
from ignite_hooks.checkpoint.source_interface import Source
from ignite_hooks.checkpoint.source_interface import SourceError
from ignite_hooks.core.checked_dataclass import handler_config
from ignite_hooks.core.fields import Directory
from ignite_hooks.core.fields import SourcePath
from ignite_hooks.core.paths import is_url
from ignite_hooks.core.rules import is_integer
from ignite_hooks.core.torch_modules import unwrap_module

__all__ = [
    "CheckpointEntry",
    "CheckpointReader",
    "FoundPart",
    "LoadedWeights",
    "PreparedWeights",
    "checkpoints",
    "export_weights",
    "load_weights",
]

logger = getLogger(__name__)

MapLocation: TypeAlias = str | torch.device | Mapping[str, str] | Callable[[Any, str], Any] | None


@dataclass(frozen=True)
class CheckpointEntry:
    """The description of a checkpoint, read from its file ``manifest.json``.

    Attributes:
        step: the number of committed optimizer steps. A step is committed if it has changed the
            parameters.
        epoch: the number of complete epochs.
        metric: the name of the metric that decides which checkpoint is best; None without a metric.
        metric_value: the value of the metric, measured with the saved weights; None if there is no
            such value.
        is_best: whether the checkpoint is the best of its run. The checkpoint is compared
            only with checkpoints in the ``source`` that the caller has given. A checkpoint whose
            value is NaN is never the best. Of two checkpoints with equal values, the newer one is
            better.
        path: the folder of the checkpoint, or its URL if the source is a URL.
        run: the identifier of the run of training that saved the checkpoint. A directory may have
            checkpoints of several runs.
        saved_at: the time of the save, with its time zone.
        number: a number that grows with each checkpoint saved to the directory. The newest
            checkpoint of a directory has the largest number.
    """

    step: int
    epoch: int
    metric: str | None
    metric_value: float | None
    is_best: bool
    path: Path | str
    run: str
    saved_at: datetime
    number: int


@dataclass(frozen=True)
class LoadedWeights(CheckpointEntry):
    """The result of ``load_weights``: the loaded checkpoint, and the names that were not loaded.

    With ``strict=True``, ``missing`` and ``unexpected`` are empty.

    Attributes:
        missing: names of parameters and buffers that only the module has. Their values in the
            module are unchanged.
        unexpected: names that only the checkpoint has. Their values are not loaded.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()


def checkpoints(source: str | Path) -> list[CheckpointEntry]:
    """Returns the checkpoints of a source, the newest first. No weights are read.

    Args:
        source: a directory of checkpoints, a single checkpoint, or the URL of either. Damaged
            checkpoints are left out, with a warning. A URL without checkpoints gives an empty list
            and no error, because some servers give the same answer for an empty folder and for a
            missing one.

    Raises:
        FileNotFoundError: the directory does not exist.
        OSError: the source cannot be read.
        ValueError: the source is a file.
    """
    reader = CheckpointReader(source)
    candidates = reader.list_candidates()
    return [reader.make_entry(each, candidates) for each in candidates]


def load_weights(
    module: torch.nn.Module,
    source: str | Path,
    which: Which = "best",
    part: str = "model",
    *,
    strict: bool = True,
    map_location: MapLocation = None,
    cache_dir: str | Path | None = None,
    verify: bool = True,
) -> LoadedWeights:
    """Loads the weights of a checkpoint into a module, and returns which checkpoint it was.

    The files are verified, and no code in them is run. If the weights do not fit, the module is
    left unchanged, and a ValueError lists the names and shapes that differ. Parameters and buffers
    keep their device and their dtype: values of another dtype are converted, with a warning. Frozen
    parameters stay frozen, and submodules keep their train or eval mode.

    The module may be wrapped by ``torch.compile``, ``DistributedDataParallel`` or an accelerator,
    whether or not the saved module was wrapped.

    Args:
        module: the module.
        source: a directory of checkpoints, a single checkpoint, or the URL of either. A single
            checkpoint is loaded even if it is not the best of its run.
        which: the checkpoint to load. "last" selects the newest undamaged checkpoint, as a
            resume does. "best" selects the checkpoint with the best metric; only checkpoints of the
            same run as the newest checkpoint are compared. An int selects the newest
            checkpoint of that step. Any other text, or a path, selects the checkpoint folder with
            that name or path in ``source``.
        part: the saved object to load. "model" is the model, and "loss_fn" is a loss function with
            a state. "also/NAME" is an object in ``SaveCheckpoint(also=...)``, and "handlers/NAME"
            is an object saved with the handlers. Further names select a state within a state:
            "also/teacher/ema" is the entry "ema" in the state of "teacher". An averaged model
            (``AveragedModel``) can be loaded into the plain model too: the prefix ``module.`` is
            then removed from its names.
        strict: whether the module and the checkpoint must have the same names, as in torch's
            ``load_state_dict``.
        map_location: the device to which the saved tensors are moved before they are loaded, as in
            ``torch.load``. The device matters only if the module's own loading code keeps the
            saved tensors. Usually loading copies their values into the tensors of the module.
        cache_dir: the folder for downloads from a URL. Only the necessary files are downloaded.
        verify: whether to compare the necessary files with their recorded checksums before loading
            them. Downloaded files are always compared.

    Raises:
        FileNotFoundError: the source has no checkpoint.
        OSError: the source cannot be read.
        TypeError: an argument has the wrong type.
        ValueError: the checkpoint or the part does not exist or is damaged, the weights do not fit,
            or ``source`` is a URL and ``cache_dir`` is missing.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"`module` must be a torch.nn.Module, got {type(module).__name__}: build the model "
            "first, because a checkpoint has only weights"
        )
    is_data = map_location is None or isinstance(map_location, str | torch.device | Mapping)
    if not is_data and not callable(map_location):
        raise TypeError(
            "`map_location` must be a device, a mapping of devices or a function, as for "
            f"torch.load, got {map_location!r}"
        )
    reader = CheckpointReader(source, cache_dir)
    entry, found = reader.read(which, part, verify=verify)
    prepared = PreparedWeights(
        module, found, part, entry.path, strict=strict, map_location=map_location
    )
    missing, unexpected = prepared.load().unmatched
    logger.info("%s is loaded from %s", part, entry.path)
    return LoadedWeights(**vars(entry), missing=missing, unexpected=unexpected)


def export_weights(
    source: str | Path,
    path: str | Path,
    which: Which = "best",
    part: str = "model",
    *,
    cache_dir: str | Path | None = None,
    verify: bool = True,
) -> CheckpointEntry:
    """Writes the weights of a checkpoint to a safetensors file; returns which checkpoint it was.

    Load the file with ``safetensors.torch.load_model``. A tied weight, which has several names in
    the model, is stored under one of these names only, as safetensors demands. ``load_model``
    restores the other names, but ``model.load_state_dict(load_file(path))`` reports them as
    missing. The metadata of the file has the step, the epoch, the metric, and the versions of the
    packages. An existing file at ``path`` is replaced only when the new file is complete.

    Args:
        source: as in ``load_weights``.
        path: the file to write, which must end in ``.safetensors``. Its folder must exist.
        which: as in ``load_weights``.
        part: as in ``load_weights``. The weights keep the names that they have in the checkpoint.
        cache_dir: as in ``load_weights``.
        verify: as in ``load_weights``.

    Raises:
        FileNotFoundError: the source has no checkpoint, or the folder of ``path`` does not exist.
        OSError: the source cannot be read, or the file cannot be written.
        ValueError: the checkpoint or the part does not exist or is damaged, the part has a value
            that safetensors cannot store, ``path`` has another ending, or ``source`` is a URL and
            ``cache_dir`` is missing.
    """
    target = Path(path).expanduser().absolute()
    # The path is checked before anything is read, so that an error comes before a large download.
    if target.suffix != ".safetensors":
        raise ValueError(
            f"`path` must be a file that ends in .safetensors, got {str(path)!r}: other programs "
            "recognize the format by the ending"
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"`path` must be in a folder that exists, got {str(path)!r}: make the folder first"
        )
    reader = CheckpointReader(source, cache_dir)
    entry, found = reader.read(which, part, verify=verify)
    kept, aliases, extra = split_state(found.state)
    if extra:
        kinds = [f"{name} ({_describe_value(value)})" for name, value in sorted(extra.items())]
        raise ValueError(
            f"{part!r} of {entry.path} must consist of tensors that safetensors can store, got "
            f"{join_first(kinds)}: load {part!r} with load_weights(), and save what you need of it"
        )
    # The other names of tied weights are in the metadata, as with safetensors' own `save_model`.
    metadata = {"format": "pt", **_export_metadata(entry, reader.versions), **aliases}
    # The file is written to a temporary folder and then moved, so that `path` never has a half
    # written file. The folder is beside the target, because os.replace() works only within one file
    # system.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        draft, mode_file = Path(folder) / target.name, Path(folder) / "mode"
        Tensors(kept, metadata).write(draft)
        # safetensors creates files that only their owner may read. So the usual mode is copied from
        # a new, empty file.
        mode_file.touch()
        copy_file_mode(mode_file, [draft])
        sync(draft)
        os.replace(draft, target)
    sync(target.parent)
    return entry


class FoundPart(NamedTuple):
    """The state of one part of a checkpoint, for example of the model.

    Attributes:
        state: maps names to tensors and other values, like a ``state_dict``.
        about: what the file ``trainer.pt`` says about the module, such as the versions of its
            submodules. None if the part is neither the trainer's model nor its loss function.
    """

    state: dict[str, Any]
    about: Mapping[str, Any] | None


@checked_dataclass(frozen=True, config=handler_config)
class _Arguments:
    """The arguments of ``CheckpointReader``, which pydantic checks and converts."""

    source: SourcePath
    cache_dir: Directory | None = None


class PreparedWeights:
    """Weights that were checked to fit a module. ``load`` loads the weights into the module.

    Args:
        module: the module, which may be wrapped.
        found: the state of the part.
        part: the name of the part, for messages.
        address: the path or URL of the checkpoint, for messages.
        strict: whether the module and the state must have the same names.
        map_location: as in ``load_weights``.

    Raises:
        ValueError: the weights do not fit the module, or the device ``map_location`` is absent.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        found: FoundPart,
        part: str,
        address: Path | str,
        *,
        strict: bool = True,
        map_location: MapLocation = None,
    ) -> None:
        self._module = unwrap_module(module)
        self._strict = strict
        self._label = f"{part!r} of {address}"
        state = _with_module_names(self._module, found.state, is_object=found.about is None)
        try:
            self._state = {
                name: _map_to_location(value, map_location) for name, value in state.items()
            }
        except (AssertionError, RuntimeError) as error:  # raised by torch if the device is absent
            raise ValueError(
                f"`map_location` must be an available device, got {map_location!r} ({error}): "
                'say "cpu", or leave it out'
            ) from error
        self._about = {"metadata": {} if found.about is None else found.about["metadata"]}
        fit = check_module_fit(
            part, self._state, self._about, self._module, strict=strict, keeps_parameters=False
        )
        if fit.differences:
            raise ValueError(
                f"{self._label} does not fit the module, which is unchanged: "
                f"{join_first(fit.differences, '; ')}: build the module as in the run that saved "
                "the checkpoint"
                + (", or say strict=False to load what has the same names" if strict else "")
            )

    def load(self) -> ModuleLoadResult:
        """Loads the weights into the module; warns of values that loading changed or left out."""
        restored = load_into_module(self._module, self._state, self._about, strict=self._strict)
        if restored.converted:
            warnings.warn(
                "the module has other dtypes than the checkpoint, so that these values of "
                f"{self._label} were converted: {join_first(sorted(restored.converted))}",
                stacklevel=3,
            )
        if restored.unlike:
            warnings.warn(
                "the module customizes its loading, which has changed or left out these values of "
                f"{self._label}: {join_first(sorted(restored.unlike))}",
                stacklevel=3,
            )
        return restored


class CheckpointReader:
    """A reader of the checkpoints of a source.

    Args:
        source: a directory of checkpoints, a single checkpoint, or the URL of either.
        cache_dir: the folder for downloads from a URL. ``read`` needs this folder if ``source`` is
            a URL, ``list_candidates`` does not.

    Attributes:
        versions: the package versions in the manifest of the checkpoint that ``read`` returned
            last, by package name. The mapping is empty before the first ``read``.
    """

    def __init__(self, source: str | Path, cache_dir: str | Path | None = None) -> None:
        try:
            checked = _Arguments(source=source, cache_dir=cache_dir)
        except ValidationError as error:
            # Only the message of the error is used, because an error of pydantic names the private
            # class _Arguments.
            raise ValueError(str(error.errors()[0]["ctx"]["error"])) from None
        self._source_name = checked.source
        self._is_remote = is_url(checked.source)
        self._can_fetch = cache_dir is not None or not self._is_remote
        # For a URL, source_at() requires a folder, even if nothing will be downloaded. If the user
        # gave no `cache_dir`, it gets os.devnull, and read() raises an error before any download.
        self._source: Source = source_at(checked.source, checked.cache_dir or os.devnull)
        self.versions: Mapping[str, str] = {}
        self._reported_problems: set[str] = set()

    def list_candidates(self, *, callers: int = 1) -> list[CheckpointCandidate]:
        """Returns the checkpoints of the source, the newest first; warns of damaged checkpoints.

        Args:
            callers: the number of functions of this package between the user's line and this
                method. The warnings point to the user's line.

        Raises:
            FileNotFoundError: the source is a path that does not exist.
            SourceError: the source cannot be read.
        """
        listing = self._source.find()
        for name, why in listing.damaged.items():
            self._warn_of_skipped(f"{name}: {why}", callers + 1)
        if not listing.candidates and not self._is_remote and not os.path.isdir(self._source_name):
            raise FileNotFoundError(
                f"`source` must be a checkpoint or a directory of checkpoints, got "
                f"{self._source_name}, which is not there: check the path"
            )
        return listing.candidates

    def make_entry(
        self, candidate: CheckpointCandidate, others: list[CheckpointCandidate]
    ) -> CheckpointEntry:
        """Returns the entry of a checkpoint.

        Args:
            candidate: the checkpoint.
            others: all checkpoints of the source, to find the best one of each run.
        """
        manifest = candidate.manifest
        best = best_of_each_run(others).get(manifest.training)
        address = self._source.address_of(candidate)
        return CheckpointEntry(
            step=manifest.step,
            epoch=manifest.epoch,
            metric=manifest.metric,
            metric_value=manifest.metric_value,
            is_best=best is not None and best.key == candidate.key,
            path=address if self._is_remote else Path(address),
            run=manifest.training,
            saved_at=manifest.saved_at,
            number=manifest.number,
        )

    def read(self, which: Which, part: str, *, verify: bool) -> tuple[CheckpointEntry, FoundPart]:
        """Finds the checkpoint that ``which`` selects, and reads a part of it.

        A run that saves to the source may remove the checkpoint while this method reads it. If so,
        the method lists the source again, and reads the checkpoint that ``which`` then selects.

        Raises:
            FileNotFoundError: the source has no checkpoint, or two attempts to read the checkpoint
                found that it was removed.
            ValueError: the checkpoint or the part does not exist or is damaged, or the source is a
                URL and ``cache_dir`` was not given.
        """
        _check_arguments(which, part)
        if not self._can_fetch:
            raise ValueError(
                f"`cache_dir` must be given for a URL, got None for {self._source_name}: pass a "
                "folder to download to"
            )
        removed: set[tuple[str, bytes]] = set()
        damaged: dict[str, str] = {}
        while True:
            candidates = self.list_candidates(callers=2)
            wanted = select_checkpoints(candidates, which, self._source, str(self._source_name))
            for candidate in (each for each in wanted if each.name not in damaged):
                try:
                    found = self.read_part(candidate, part, verify=verify)
                    if self._source.still_has(candidate):
                        self.versions = candidate.manifest.versions
                        return self.make_entry(candidate, candidates), found
                except SourceError:
                    raise
                except (OSError, ValueError) as error:
                    if self._source.still_has(candidate):
                        # With "last", the next older checkpoint is used instead of a damaged one.
                        # Any other `which` selects a single checkpoint.
                        if which != "last" or not isinstance(error, _DamagedError):
                            raise
                        damaged[candidate.name] = str(error)
                        self._warn_of_skipped(str(error), 2)
                        continue
                # The checkpoint was removed while it was read, so the source is listed again, but
                # only once for each checkpoint.
                if candidate.key in removed:
                    raise FileNotFoundError(
                        f"{candidate.name} was removed while it was read: give another checkpoint, "
                        "or keep this one"
                    )
                removed.add(candidate.key)
                break
            else:
                problems = "; ".join(damaged.values())
                raise ValueError(f"`source` must have an undamaged checkpoint, got: {problems}")

    def read_part(self, candidate: CheckpointCandidate, part: str, *, verify: bool) -> FoundPart:
        """Reads a part of one checkpoint.

        Args:
            candidate: the checkpoint.
            part: the name of the part, as in ``load_weights``.
            verify: whether to compare the necessary files with their recorded checksums first.

        Raises:
            SourceError: the source cannot be read.
            ValueError: the part does not exist or cannot be read, or a necessary file is damaged.
        """
        manifest = candidate.manifest
        needed = {TRAINER, *module_files(part)} & manifest.files.keys()
        if part == "model" and any(name.startswith(f"{SHARDED}/") for name in manifest.files):
            raise ValueError(
                f"{candidate.name} has a model that is split over processes (FSDP, DeepSpeed), "
                "which only these processes together can read: resume from the checkpoint with "
                f"{manifest.world_size} processes, and save the whole model in that run"
            )
        files = {name: manifest.files[name] for name in sorted(needed)}
        # Files that the part does not need, such as the optimizer, are neither read nor downloaded.
        reduced = candidate._replace(manifest=manifest.model_copy(update={"files": files}))
        try:
            folder = self._source.fetch(reduced, verify=verify).folder
        except SourceError:
            raise
        except (OSError, ValueError) as error:
            raise _DamagedError(f"{candidate.name} is damaged: {error}") from error
        if TRAINER not in needed:
            raise ValueError(
                f"{candidate.name} must have a file {TRAINER}, got none: was the checkpoint "
                "written by a SaveCheckpoint?"
            )
        try:
            trainer_content = load_objects(folder / TRAINER)
            return _find_part(trainer_content, part, folder, needed)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{TRAINER} of {candidate.name} must have the contents that a SaveCheckpoint "
                f"writes, got other contents ({type(error).__name__}: {error})"
            ) from error

    def best_of_run(self, run: str) -> tuple[CheckpointCandidate, CheckpointEntry]:
        """Returns the best checkpoint of a run, and its entry."""
        candidates = self.list_candidates(callers=3)
        best = best_of_run(candidates, run, str(self._source_name))
        return best, self.make_entry(best, candidates)

    def _warn_of_skipped(self, problem: str, callers: int) -> None:
        # Each new listing finds the same problem again, but one warning is enough.
        if problem not in self._reported_problems:
            self._reported_problems.add(problem)
            warnings.warn(f"a checkpoint is skipped, {problem}", stacklevel=callers + 2)


class _DamagedError(ValueError):
    """Raised if a file of a checkpoint is damaged or missing."""


def _check_arguments(which: Which, part: str) -> None:
    """Raises TypeError for a ``which`` or ``part`` of the wrong type."""
    if not (is_integer(which) or isinstance(which, str | Path)):
        raise TypeError(
            f'`which` must be "best", "last", a step, or the name or path of a checkpoint, got '
            f"{which!r}"
        )
    if not isinstance(part, str) or not part:
        raise TypeError(
            f'`part` must be a name, "model", "loss_fn" or "also/ema" for instance, got {part!r}'
        )


def _find_part(
    trainer_content: Mapping[str, Any], part: str, folder: Path, files: Iterable[str]
) -> FoundPart:
    """Finds a part of a checkpoint by its name.

    Args:
        trainer_content: the content of ``trainer.pt``. Its key "modules" has the descriptions of
            the trainer's modules, and its key "objects" has the states of all other objects.
        part: the name of the part, as in ``load_weights``.
        folder: the folder of the checkpoint.
        files: the names of the files in the folder that may be read.

    Raises:
        ValueError: the checkpoint has no such part.
    """
    modules, objects = trainer_content["modules"], trainer_content["objects"]
    if part in modules:
        state = read_module(folder, part, set(files), modules[part])
        if state is not None:
            return FoundPart(state, modules[part])
    kind, *path = part.split("/")
    found = objects.get(kind) if kind in ("also", "handlers") else None
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    # A module that does not belong to the trainer is saved as a mapping. "module" is its
    # state_dict(), and "flags" has its frozen parameters and its submodules in eval mode.
    if isinstance(found, Mapping) and {"module", "flags"} <= found.keys():
        found = found["module"]
    if path and isinstance(found, Mapping):
        return FoundPart(dict(found), None)
    names = [
        *modules,
        *(f"{kind}/{name}" for kind in ("also", "handlers") for name in objects[kind]),
    ]
    raise ValueError(
        f"`part` must name an object that was saved with a state, got {part!r}; {folder.name} has "
        f"{join_first(names)}"
    )


def _with_module_names(
    module: torch.nn.Module, state: dict[str, Any], *, is_object: bool
) -> dict[str, Any]:
    """Returns a state without wrappers' prefixes in its names, if the names then fit a module.

    For example, ``torch.compile`` adds the prefix ``_orig_mod.``, and ``AveragedModel`` adds the
    prefix ``module.``.

    Args:
        module: the module.
        state: the state.
        is_object: True for an object in ``also`` or an object that a handler holds, False for one
            of the trainer's modules, which are saved without the prefix ``module.``.
    """
    names = PlainNames(module)
    module_names = names.plain_state(module.state_dict()).keys()
    if not module_names - state.keys():
        return state
    plain: dict[str, Any] = {}
    for name, value in state.items():
        plain[".".join(part for part in name.split(".") if part != "_orig_mod")] = value
    candidates = [plain]
    # AveragedModel and DataParallel add "module." to the name of each parameter, nested wrappers
    # several times. Entries without the prefix, such as the counter of AveragedModel, belong to the
    # wrapper and are left out.
    while is_object and any(name.startswith("module.") for name in plain):
        start = "module."
        plain = {n.removeprefix(start): v for n, v in plain.items() if n.startswith(start)}
        candidates.append(plain)
    return next(
        (each for each in candidates if module_names and not module_names - each.keys()), state
    )


def _map_to_location(value: Any, location: MapLocation) -> Any:
    """Moves a tensor, or the tensors in a mapping, to the devices that ``location`` gives."""
    if isinstance(value, Mapping):
        return {name: _map_to_location(each, location) for name, each in value.items()}
    if location is None or not isinstance(value, torch.Tensor) or is_lazy(value):
        return value
    if isinstance(location, Mapping):
        target = location.get(str(value.device))
        return value if target is None else value.to(target)
    if not callable(location):
        return value.to(location)
    # As in torch.load, the function is called with the storage of the tensor and the location of
    # the storage. A sparse tensor has no storage, and stays where it is.
    storage = location(value.untyped_storage(), "cpu") if value.layout == torch.strided else None
    if storage is None:
        return value
    empty = torch.empty(0, dtype=value.dtype, device=storage.device)
    return empty.set_(storage, value.storage_offset(), value.size(), value.stride())


def _export_metadata(entry: CheckpointEntry, versions: Mapping[str, str]) -> dict[str, str]:
    """Returns the metadata of an exported file. All values are strings, as safetensors demands."""
    export_info = {
        "step": entry.step,
        "epoch": entry.epoch,
        "metric": entry.metric,
        "metric_value": entry.metric_value,
        "run": entry.run,
        "saved_at": entry.saved_at.isoformat(),
    }
    known = {name: str(value) for name, value in export_info.items() if value is not None}
    return {**known, **{f"version of {name}": version for name, version in versions.items()}}


def _describe_value(value: Any) -> str:
    """Returns why safetensors cannot store a value: its type, layout or dtype."""
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    if is_lazy(value):
        return "of a lazy module"
    return f"{value.layout}" if value.layout != torch.strided else f"{value.dtype}"
