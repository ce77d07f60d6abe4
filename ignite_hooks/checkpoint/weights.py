"""Weights out of a checkpoint, without a trainer: for a test, for inference, to train on from.

``checkpoints`` lists what is there, ``load_weights`` loads a model, or any other module that was
saved, and ``export_weights`` writes its weights into one file of safetensors.
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

from ignite_hooks.checkpoint.candidates import Candidate
from ignite_hooks.checkpoint.candidates import Source
from ignite_hooks.checkpoint.candidates import SourceError
from ignite_hooks.checkpoint.choice import Which
from ignite_hooks.checkpoint.choice import best_of_each_run
from ignite_hooks.checkpoint.choice import best_of_run
from ignite_hooks.checkpoint.choice import chosen
from ignite_hooks.checkpoint.choice import first_of
from ignite_hooks.checkpoint.contents import Tensors
from ignite_hooks.checkpoint.contents import load_objects
from ignite_hooks.checkpoint.durable import give_mode_of
from ignite_hooks.checkpoint.durable import sync
from ignite_hooks.checkpoint.layout import SHARDED
from ignite_hooks.checkpoint.layout import TRAINER
from ignite_hooks.checkpoint.layout import module_files
from ignite_hooks.checkpoint.module_state import Restored
from ignite_hooks.checkpoint.module_state import fit_of_module
from ignite_hooks.checkpoint.module_state import give_to_module
from ignite_hooks.checkpoint.module_state import read_module
from ignite_hooks.checkpoint.module_state import split_state
from ignite_hooks.checkpoint.plain_names import PlainNames
from ignite_hooks.checkpoint.source import source_at
from ignite_hooks.core.checked_dataclass import handler_config
from ignite_hooks.core.fields import Directory
from ignite_hooks.core.fields import SourcePath
from ignite_hooks.core.paths import is_url
from ignite_hooks.core.rules import is_integer
from ignite_hooks.core.torch_modules import unwrapped

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

_WRAPPERS = {"module", "_orig_mod"}


@dataclass(frozen=True)
class CheckpointEntry:
    """A checkpoint, by what its manifest says.

    Args:
        step: committed optimizer steps.
        epoch: complete epochs.
        metric: the name of the metric that tells the best, None if there is none.
        metric_value: its value then; None if it was not measured there.
        is_best: whether it is the best of its run, among the checkpoints that are in the source. A
            NaN is never the best; of equals the newer is.
        path: its folder; of a source that is a URL, its URL.
        run: the identifier of the run of training. A directory may have checkpoints of several.
        saved_at: when it was taken, with its time zone.
        number: counts the checkpoints of a directory in the order of their commits.
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
    """The checkpoint that weights were loaded from, and what did not match with ``strict=False``.

    Args:
        missing: names that the module has and the checkpoint has not: they are as they were.
        unexpected: names that the checkpoint has and the module has not: they are not loaded.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()


def checkpoints(source: str | Path) -> list[CheckpointEntry]:
    """Returns the checkpoints at a place, the newest first. No weights are read.

    Args:
        source: a directory of checkpoints, one checkpoint, or a URL of either. Damaged ones are
            left out, with a warning. Of a URL without checkpoints the list is empty, because not
            every server knows of an empty folder.

    Raises:
        FileNotFoundError: there is no such directory.
        OSError: it cannot be read.
        ValueError: it is a file.
    """
    reader = CheckpointReader(source)
    candidates = reader.look()
    return [reader.entry_of(each, candidates) for each in candidates]


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

    The files are verified, and nothing in them is run. If the weights do not fit, the module is as
    it was, and the error lists the names and shapes that differ. Parameters and buffers keep their
    device and their dtype: values of another dtype are converted, with a warning. Which parameters
    are frozen, and which submodules are in eval mode, stays as it is.

    The module may be wrapped, by ``torch.compile``, ``DistributedDataParallel`` or an accelerator,
    and so may have been the one that was saved.

    Args:
        module: the module.
        source: a directory of checkpoints, one checkpoint, or a URL of either. From one checkpoint
            that one is loaded, "best" or not.
        which: "best" is the one with the best metric of the run that has the newest checkpoint;
            "last" is the newest that is whole, as a resume would take it; a number is a step (of
            several with that step, the newest); a name or a path is that of a folder in ``source``.
        part: "model", "loss_fn", or the name of what was saved beside: "also/NAME",
            "handlers/NAME". A further name leads into a state that holds others,
            "also/teacher/ema". Of an averaged model, whose names begin with ``module.``, the
            weights can be loaded into a plain one.
        strict: whether names must be the same on both sides, as in torch's ``load_state_dict``.
        map_location: where tensors are put before they are copied into the module, as in
            ``torch.load``. It matters for modules that keep the tensors they are given.
        cache_dir: the folder that a URL is downloaded to. Only the files that are needed are.
        verify: compare the checksums of these files first.

    Raises:
        FileNotFoundError: there is no checkpoint.
        OSError: the source cannot be read.
        TypeError: an argument has the wrong type.
        ValueError: there is no such checkpoint or part, or it is damaged; the weights do not fit.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"`module` must be a torch.nn.Module, got {type(module).__name__}: build the model "
            "first, the checkpoint has its weights alone"
        )
    is_place = map_location is None or isinstance(map_location, str | torch.device | Mapping)
    if not is_place and not callable(map_location):
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
    """Writes the weights of a checkpoint into one file, and returns which checkpoint it was.

    The file is one of safetensors, for ``safetensors.torch.load_model`` and all else that reads
    such. Tied weights are in it once, as safetensors demands: ``load_model`` knows of that, and
    ``load_state_dict(load_file(path))`` misses the second name. Its metadata name the step, the
    epoch, the metric and the versions. The file is there when it is complete, and replaces another.

    Args:
        source: as in ``load_weights``.
        path: the file, which ends in ``.safetensors``. Its folder must be there.
        which: as in ``load_weights``.
        part: as in ``load_weights``. The names of weights are those that were saved.
        cache_dir: as in ``load_weights``.
        verify: as in ``load_weights``.

    Raises:
        FileNotFoundError: there is no checkpoint, or no such folder.
        OSError: the source cannot be read, or the file cannot be written.
        ValueError: there is no such checkpoint or part, or it is damaged; it has something that is
            not a tensor, or of a kind that safetensors cannot hold.
    """
    target = Path(path).expanduser().absolute()
    if target.suffix != ".safetensors":
        raise ValueError(
            f"`path` must be a file that ends in .safetensors, got {str(path)!r}: the format is "
            "known by it"
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"`path` must be in a folder that is there, got {str(path)!r}: make the folder first"
        )
    reader = CheckpointReader(source, cache_dir)
    entry, found = reader.read(which, part, verify=verify)
    kept, aliases, extra = split_state(found.state)
    if extra:
        kinds = [f"{name} ({_kind_of(value)})" for name, value in sorted(extra.items())]
        raise ValueError(
            f"{part!r} of {entry.path} must be made of tensors that safetensors can hold, got "
            f"{first_of(kinds)}: load it with load_weights(), and save what you need of it"
        )
    metadata = {"format": "pt", **_described(entry, reader.versions), **aliases}
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        draft, usual = Path(folder) / target.name, Path(folder) / "mode"
        Tensors(kept, metadata).write(draft)
        usual.touch()
        give_mode_of(usual, [draft])
        sync(draft)
        os.replace(draft, target)
    sync(target.parent)
    return entry


class FoundPart(NamedTuple):
    """The state of a part of a checkpoint; ``about`` is None for what is no module of a trainer."""

    state: dict[str, Any]
    about: Mapping[str, Any] | None


@checked_dataclass(frozen=True, config=handler_config)
class _Arguments:
    source: SourcePath
    cache_dir: Directory | None = None


class PreparedWeights:
    """Weights that fit a module, and are not loaded yet.

    Args:
        module: the module.
        found: the state.
        part: what it is of, for messages.
        address: where it is from, for messages.
        strict: whether all names must be on both sides.
        map_location: as in ``load_weights``.

    Raises:
        ValueError: they do not fit.
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
        self._module = unwrapped(module)
        self._strict = strict
        self._name = f"{part!r} of {address}"
        state = _named_as(self._module, found.state, is_object=found.about is None)
        try:
            self._state = {name: _mapped(value, map_location) for name, value in state.items()}
        except (AssertionError, RuntimeError) as error:  # as torch says it of a device
            raise ValueError(
                f"`map_location` must be a place that there is, got {map_location!r} ({error}): "
                'say "cpu", or leave it out'
            ) from error
        self._about = {"metadata": {} if found.about is None else found.about["metadata"]}
        fit = fit_of_module(
            part, self._state, self._about, self._module, strict=strict, keeps_parameters=False
        )
        if fit.differences:
            raise ValueError(
                f"{self._name} does not fit the module, which is as it was: "
                f"{first_of(fit.differences, '; ')}: build the module as it was built then"
                + (", or say strict=False to load what has the same names" if strict else "")
            )

    def load(self) -> Restored:
        """Loads them; warns of what is not, in the module, as it is in the checkpoint."""
        restored = give_to_module(self._module, self._state, self._about, strict=self._strict)
        if restored.converted:
            warnings.warn(
                f"the module has other dtypes than {self._name}, and the values are converted: "
                f"{first_of(sorted(restored.converted))}",
                stacklevel=3,
            )
        if restored.unlike:
            warnings.warn(
                f"the loading of the module itself has changed or left out, of {self._name}: "
                f"{first_of(sorted(restored.unlike))}",
                stacklevel=3,
            )
        return restored


class CheckpointReader:
    """Reads the checkpoints of a source, as users name it."""

    def __init__(self, source: str | Path, cache_dir: str | Path | None = None) -> None:
        try:
            checked = _Arguments(source=source, cache_dir=cache_dir)
        except ValidationError as error:  # the message alone: the class of it is nobody's business
            raise ValueError(str(error.errors()[0]["ctx"]["error"])) from None
        self._source_name = checked.source
        self._is_remote = is_url(checked.source)
        self._can_fetch = cache_dir is not None or not self._is_remote
        self._source: Source = source_at(checked.source, checked.cache_dir or os.devnull)
        self.versions: Mapping[str, str] = {}
        self._told: set[str] = set()

    def look(self) -> list[Candidate]:
        """Returns the checkpoints that are there, the newest first; warns of damaged ones."""
        look = self._source.find()
        for name, why in look.damaged.items():
            self._warn_of_skipped(f"{name}: {why}")
        if not look.candidates and not self._is_remote and not os.path.isdir(self._source_name):
            raise FileNotFoundError(
                f"`source` must be a directory of checkpoints or one of them, got "
                f"{self._source_name}, which is not there: check the path"
            )
        return look.candidates

    def entry_of(self, candidate: Candidate, others: list[Candidate]) -> CheckpointEntry:
        """Describes a checkpoint among the others of its source."""
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
        """Reads a part of a checkpoint.

        A checkpoint may be pruned while it is read, by the run that saves there. That is no damage:
        the search begins again.
        """
        _check(which, part)
        if not self._can_fetch:
            raise ValueError(
                f"`cache_dir` must be given for a URL, got None for {self._source_name}: a folder "
                "to download to"
            )
        removed: set[tuple[str, bytes]] = set()
        damaged: dict[str, str] = {}
        while True:
            candidates = self.look()
            wanted = chosen(candidates, which, self._source, str(self._source_name))
            for candidate in (each for each in wanted if each.name not in damaged):
                try:
                    found = self.read_part(candidate, part, verify=verify)
                    if self._source.still_has(candidate):
                        self.versions = candidate.manifest.versions
                        return self.entry_of(candidate, candidates), found
                except SourceError:
                    raise
                except (OSError, ValueError) as error:
                    if self._source.still_has(candidate):
                        if which != "last" or not isinstance(error, _DamagedError):
                            raise
                        damaged[candidate.name] = str(error)
                        self._warn_of_skipped(str(error))
                        continue
                if candidate.key in removed:
                    raise FileNotFoundError(
                        f"{candidate.name} was removed while it was read: give another, or keep it"
                    )
                removed.add(candidate.key)
                break
            else:
                problems = "; ".join(damaged.values())
                raise ValueError(f"`source` must have a checkpoint that is whole, got: {problems}")

    def read_part(self, candidate: Candidate, part: str, *, verify: bool) -> FoundPart:
        """Reads a part of one checkpoint; ``verify`` compares the checksums of its files first."""
        manifest = candidate.manifest
        needed = {TRAINER, *module_files(part)} & manifest.files.keys()
        if part == "model" and any(name.startswith(f"{SHARDED}/") for name in manifest.files):
            raise ValueError(
                f"{candidate.name} has a model that is split over processes (FSDP, DeepSpeed), "
                "which is read by the processes together: resume from it with as many, and save "
                "the whole model there"
            )
        files = {name: manifest.files[name] for name in sorted(needed)}
        # What is not needed, the optimizer above all, is neither read nor downloaded.
        reduced = candidate._replace(manifest=manifest.model_copy(update={"files": files}))
        try:
            folder = self._source.fetch(reduced, verify=verify).folder
        except SourceError:
            raise
        except (OSError, ValueError) as error:
            raise _DamagedError(f"{candidate.name} is damaged: {error}") from error
        if TRAINER not in needed:
            raise ValueError(f"{candidate.name} must have a file {TRAINER}, got none: is it ours?")
        try:
            about = load_objects(folder / TRAINER)
            return _part_of(about, part, folder, needed)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{TRAINER} of {candidate.name} must be as a SaveCheckpoint writes it, got another "
                f"content ({type(error).__name__}: {error})"
            ) from error

    def best_of_run(self, run: str) -> tuple[Candidate, CheckpointEntry]:
        """Returns the best checkpoint of a run."""
        candidates = self.look()
        best = best_of_run(candidates, run, str(self._source_name))
        return best, self.entry_of(best, candidates)

    def _warn_of_skipped(self, problem: str) -> None:
        if problem not in self._told:
            self._told.add(problem)
            warnings.warn(f"a checkpoint is skipped, {problem}", stacklevel=4)


class _DamagedError(ValueError):
    """A file of a checkpoint is not as it was written."""


def _check(which: Which, part: str) -> None:
    """Raises for a checkpoint or a part that cannot be meant."""
    if not (is_integer(which) or isinstance(which, str | Path)):
        raise TypeError(
            f'`which` must be "best", "last", a step, or the name or path of a checkpoint, got '
            f"{which!r}"
        )
    if not isinstance(part, str) or not part:
        raise TypeError(
            f'`part` must be a name, "model", "loss_fn" or "also/ema" for instance, got {part!r}'
        )


def _part_of(about: Mapping[str, Any], part: str, folder: Path, files: Iterable[str]) -> FoundPart:
    """Finds a part in what a checkpoint says of itself."""
    modules, objects = about["modules"], about["objects"]
    if part in modules:
        state = read_module(folder, part, set(files), modules[part])
        if state is not None:
            return FoundPart(state, modules[part])
    kind, *path = part.split("/")
    found = objects.get(kind) if kind in ("also", "handlers") else None
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    if isinstance(found, Mapping) and {"module", "flags"} <= found.keys():
        found = found["module"]
    if path and isinstance(found, Mapping):
        return FoundPart(dict(found), None)
    names = [
        *modules,
        *(f"{kind}/{name}" for kind in ("also", "handlers") for name in objects[kind]),
    ]
    raise ValueError(
        f"`part` must be one that was saved with a state, got {part!r}; {folder.name} has "
        f"{first_of(names)}"
    )


def _named_as(module: torch.nn.Module, state: dict[str, Any], *, is_object: bool) -> dict[str, Any]:
    """Returns a state with the names of a module, where it has those of a wrapper before them.

    A state of a module of the trainer has plain names. What else was saved may be that of a
    wrapper, of an averaged model or a compiled one for instance, and have entries besides.
    """
    names = PlainNames(module)
    ours = names.plain_state(module.state_dict()).keys()
    if not ours - state.keys():
        return state
    plain: dict[str, Any] = {}
    for name, value in state.items():
        plain[".".join(part for part in name.split(".") if part != "_orig_mod")] = value
    candidates = [plain]
    while is_object and any(name.startswith("module.") for name in plain):
        start = "module."
        plain = {n.removeprefix(start): v for n, v in plain.items() if n.startswith(start)}
        candidates.append(plain)
    return next((each for each in candidates if ours and not ours - each.keys()), state)


def _mapped(value: Any, location: MapLocation) -> Any:
    """Puts a tensor, or those in a container, where ``map_location`` says."""
    if isinstance(value, Mapping):
        return {name: _mapped(each, location) for name, each in value.items()}
    if location is None or not isinstance(value, torch.Tensor) or is_lazy(value):
        return value
    if isinstance(location, Mapping):
        target = location.get(str(value.device))
        return value if target is None else value.to(target)
    if not callable(location):
        return value.to(location)
    storage = location(value.untyped_storage(), "cpu") if value.layout == torch.strided else None
    if storage is None:
        return value
    empty = torch.empty(0, dtype=value.dtype, device=storage.device)
    return empty.set_(storage, value.storage_offset(), value.size(), value.stride())


def _described(entry: CheckpointEntry, versions: Mapping[str, str]) -> dict[str, str]:
    about = {
        "step": entry.step,
        "epoch": entry.epoch,
        "metric": entry.metric,
        "metric_value": entry.metric_value,
        "run": entry.run,
        "saved_at": entry.saved_at.isoformat(),
    }
    known = {name: str(value) for name, value in about.items() if value is not None}
    return {**known, **{f"version of {name}": version for name, version in versions.items()}}


def _kind_of(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    if is_lazy(value):
        return "of a lazy module"
    return f"{value.layout}" if value.layout != torch.strided else f"{value.dtype}"
