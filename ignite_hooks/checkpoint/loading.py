"""From the files of a checkpoint back into a trainer: all that is asked for, or nothing."""

import copy
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ignite_hooks.checkpoint.contents import load_objects
from ignite_hooks.checkpoint.members import handlers_with_state
from ignite_hooks.checkpoint.resume_report import ResumedPart
from ignite_hooks.checkpoint.resume_report import ResumeReport
from ignite_hooks.checkpoint.state import SHARDED
from ignite_hooks.checkpoint.state import TRAINER
from ignite_hooks.checkpoint.state import TrainingState
from ignite_hooks.checkpoint.state import rank_file
from ignite_hooks.checkpoint.store import Checkpoint

__all__ = ["LoadedState"]

OPTIMIZER = "optimizer.bin"
EXACT = ResumedPart("exact")


class LoadedState:
    """What a checkpoint holds for one process, read, and not yet given to the trainer.

    Args:
        checkpoint: the checkpoint.
        state: what belongs to the trainer.
        rank: the process.

    Raises:
        ValueError: a file is not what it should be, or holds code.
    """

    def __init__(self, checkpoint: Checkpoint, state: TrainingState, rank: int) -> None:
        self._checkpoint = checkpoint
        self._parts: dict[str, ResumedPart | None] = {}
        self.folder = checkpoint.folder
        self._state = state
        self._trainer = state.trainer
        names = set(checkpoint.manifest.files)
        registered = sorted(name for name in names if name.startswith("custom_checkpoint_"))
        pickled = registered + sorted(name for name in names if name.startswith(f"{SHARDED}/"))
        if pickled and not state.trust_pickle:
            raise ValueError(
                f"{_some(pickled)} would have to be unpickled, which runs code: say "
                "trust_pickle=True if you know who wrote it"
            )
        self._registered = [load_objects(self.folder / n, trust_pickle=True) for n in registered]
        self._objects = {
            name: load_objects(self.folder / name)
            for name in ("scheduler.bin", "scaler.pt", TRAINER, rank_file(rank))
            if name in names
        }
        if OPTIMIZER in names:  # looked at now, and read when the model's memory is free again
            self._objects[OPTIMIZER] = load_objects(self.folder / OPTIMIZER, mapped=True)
        self._place: dict[str, Any] = self._objects.get(rank_file(rank), {})
        self._about: dict[str, Any] = self._objects.get(TRAINER, {})
        self._modules = dict(self._read_modules(names))

    def differences(self) -> list[str]:
        """What keeps it from being loaded: each with what it was and what it is."""
        found = []
        for name in (TRAINER, OPTIMIZER):
            if name not in self._objects and not (self._state.is_sharded and name != TRAINER):
                found.append(f"{name} is missing")
        if not self._place:
            found.append("the counters of this process are missing")
        if self._state.is_sharded != (self.folder / SHARDED).is_dir():
            found.append("one of both is split over processes (FSDP, DeepSpeed), the other is not")
        if found:
            return found
        ours = self._state.kinds()
        for what, kind in self._about["kinds"].items():
            if None not in (kind, ours[what]) and kind != ours[what]:
                found.append(f"the {what} was a {kind}, it is a {ours[what]}")
        for name, module in self._state.whole_modules.items():
            found += _differences_of_module(name, self._modules.get(name), module)
        if not self._state.is_sharded:
            found += self._differences_of_optimizer()
        return found

    def apply(self) -> ResumeReport:
        """Gives it all to the trainer; what the user's objects and handlers refuse comes first."""
        trainer, parts = self._trainer, self._parts
        also, states = self._state.also, self._about["also"]
        for name in [name for name in also if name in states]:
            also[name].load_state_dict(states[name])
        parts["also"] = _part_of_named(also, states, "`also`")
        self._load_handlers()
        accelerator = trainer.accelerator
        for registered, content in zip(accelerator._custom_objects, self._registered, strict=False):
            registered.load_state_dict(content)
        for key, value in self._about["user_state"].items():
            setattr(trainer.state, key, value)
        parts["model"] = self._load_modules()
        self._modules = {}
        if self._state.is_sharded:
            accelerator.load_state(str(self.folder / SHARDED))
            parts["optimizer"] = EXACT
        else:
            trainer.optimizer.load_state_dict(load_objects(self.folder / OPTIMIZER))
            parts["optimizer"] = EXACT
            parts["scaler"] = self._load_single("scaler.pt", accelerator.scaler)
        parts["scheduler"] = self._load_single("scheduler.bin", trainer.lr_scheduler)
        self._look_at_data()
        parts["random generators"] = self._random_report()
        trainer.load_place_state_dict(self._place)
        parts["counters"] = EXACT
        self._objects, self._registered = {}, []  # this may stay for a while
        return self._report()

    def complete(self) -> ResumeReport:
        """The same for handlers once more, which may have been reset, and for data given since."""
        self._load_handlers()
        self._look_at_data()
        return self._report()

    def _report(self) -> ResumeReport:
        known = {name: part for name, part in self._parts.items() if part is not None}
        return ResumeReport(self.folder, self._checkpoint.manifest.step, known)

    def _load_handlers(self) -> None:
        handlers, states = handlers_with_state(self._trainer), self._about["handlers"]
        for name in [name for name in handlers if name in states]:
            handlers[name].load_state_dict(copy.deepcopy(states[name]))
        self._trainer.state.metrics.update(self._about["metrics"])
        self._parts["handlers"] = _part_of_named(handlers, states, "the trainer")

    def _look_at_data(self) -> None:
        feed = self._trainer.feed
        if feed is None:
            return
        differences = feed.differences(self._place["data"])
        if differences:
            self._parts["data"] = ResumedPart("approximate", "; ".join(differences))
        else:
            self._parts["data"] = EXACT

    def _read_modules(self, names: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in ("model", "loss_fn"):
            if f"{name}.bin" in names:
                yield name, load_objects(self.folder / f"{name}.bin", mapped=True)
            elif f"{name}.safetensors" in names:
                about = self._about["modules"][name]
                try:
                    tensors = load_file(self.folder / f"{name}.safetensors")
                except SafetensorError as error:
                    raise ValueError(f"{name}.safetensors can not be read ({error})") from error
                aliases = {alias: tensors[first] for alias, first in about["aliases"].items()}
                yield name, {**tensors, **aliases, **about["extra"]}

    def _differences_of_optimizer(self) -> Iterator[str]:
        theirs = [len(group["params"]) for group in self._objects[OPTIMIZER]["param_groups"]]
        ours = [len(group["params"]) for group in self._trainer.optimizer.param_groups]
        if theirs != ours:
            yield f"the optimizer had groups of {theirs} parameters, it has {ours}"

    def _load_modules(self) -> ResumedPart:
        changed = set()
        for name, module in self._state.whole_modules.items():
            before = {key: getattr(t, "dtype", None) for key, t in module.state_dict().items()}
            state = self._modules[name]
            changed |= {k for k, t in state.items() if getattr(t, "dtype", None) != before[k]}
            module.load_state_dict(state)
        if changed:
            return ResumedPart("approximate", f"other number formats: {_some(changed)}")
        return EXACT

    def _load_single(self, file: str, target: Any) -> ResumedPart | None:
        content = self._objects.get(file)
        if target is None:
            reason = "the checkpoint has one, this training has none"
            return None if content is None else ResumedPart("missing", reason)
        if content is None:
            return ResumedPart("missing", "the checkpoint has none: it begins anew")
        target.load_state_dict(content)
        return EXACT

    def _random_report(self) -> ResumedPart:
        has_device = self._place["random"]["device"] is not None
        if has_device != (self._trainer.accelerator.device.type != "cpu"):
            reason = "another kind of device: its generator has no state of the other's"
            return ResumedPart("approximate", reason)
        return EXACT


def _part_of_named(
    targets: Mapping[str, Any], states: Mapping[str, Any], what: str
) -> ResumedPart | None:
    """What is to be said of objects that had a state, and of those that have one."""
    new, gone = targets.keys() - states.keys(), states.keys() - targets.keys()
    reasons = [f"not in the checkpoint: {_some(new)}"] if new else []
    reasons += [f"not in {what} any more: {_some(gone)}"] if gone else []
    if reasons:
        return ResumedPart("missing", "; ".join(reasons))
    return EXACT if targets else None


def _differences_of_module(
    name: str, theirs: Mapping[str, Any] | None, module: torch.nn.Module
) -> Iterator[str]:
    ours = module.state_dict()
    if theirs is None:
        yield f"the {name} is not in the checkpoint"
        return
    for key in sorted({*ours, *theirs}):
        if key not in ours:
            yield f"the {name} has no {key}, the checkpoint has"
        elif key not in theirs:
            yield f"the {name} has {key}, the checkpoint has not"
        elif _shape(theirs[key]) != _shape(ours[key]):
            yield f"{key} had the shape {_shape(theirs[key])}, it has {_shape(ours[key])}"


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _some(names: Any) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if len(others) > 2 else ", ".join([first, *others])
