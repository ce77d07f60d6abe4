"""The second stage of a save, capture: all of a trainer as contents of the files of ``layout``.

The manifest of each checkpoint names the run of training that it is of, by ``training_id``.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from ignite_hooks.checkpoint.contents import Content
from ignite_hooks.checkpoint.contents import Objects
from ignite_hooks.checkpoint.contents import plain_part
from ignite_hooks.checkpoint.digest import digest_of
from ignite_hooks.checkpoint.layout import OPTIMIZER
from ignite_hooks.checkpoint.layout import SCALER
from ignite_hooks.checkpoint.layout import SCHEDULER
from ignite_hooks.checkpoint.layout import SHARDED
from ignite_hooks.checkpoint.layout import TRAINER
from ignite_hooks.checkpoint.layout import rank_file
from ignite_hooks.checkpoint.layout import registered_file
from ignite_hooks.checkpoint.member_state import Member
from ignite_hooks.checkpoint.members import Members
from ignite_hooks.checkpoint.members import state_names_of_handlers
from ignite_hooks.checkpoint.module_state import left_out_of_state
from ignite_hooks.checkpoint.module_state import module_file
from ignite_hooks.checkpoint.open_contexts import late_changes
from ignite_hooks.checkpoint.plain_names import PlainNames
from ignite_hooks.checkpoint.report import reasons_of_all
from ignite_hooks.checkpoint.report import some
from ignite_hooks.checkpoint.settings import settings_record
from ignite_hooks.checkpoint.unsaved import unsaved_changes
from ignite_hooks.checkpoint.unsaved_attributes import unsaved_attributes
from ignite_hooks.core.accelerators import registered_objects
from ignite_hooks.core.borrowed_weights import step_of_borrowed_weights
from ignite_hooks.core.engine import belongings
from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.engine import is_running
from ignite_hooks.core.handler import attached
from ignite_hooks.core.measured import measured_at
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.data.random_state import GENERATOR_KINDS
from ignite_hooks.data.random_state import GeneratorState
from ignite_hooks.evaluation.data_of_validations import DataOfValidations
from ignite_hooks.optim.optimizer_step import OptimizerStep

__all__ = ["TrainingState", "digests_of", "set_training_id", "training_id"]


def training_id(trainer: TrainingEngine) -> str:
    """Returns the identifier of the trainer's run of training, which no other run has."""
    identifier: str = belongings(trainer).setdefault("training", uuid4().hex)
    return identifier


def set_training_id(trainer: TrainingEngine, identifier: str) -> None:
    """Makes the trainer continue the run of training with that identifier."""
    belongings(trainer)["training"] = identifier


@dataclass(frozen=True)
class TrainingState:
    """What belongs to a trainer, and how each part of it becomes a file.

    Args:
        trainer: the trainer.
        also: objects of the user with a state, and random generators, by name.
        safe_serialization: whether the model goes into safetensors; else into ``torch.save``.
        trust_pickle: whether objects that were registered with the accelerator are saved, which
            Accelerate unpickles.
        uncertain: why a part may not be that of the step, by its name in the ``ResumeReport``.
            ``unknown_parts`` of the trainer, which is saved beside it, says the same of what may
            have a state that cannot be saved.
    """

    trainer: TrainingEngine
    also: Mapping[str, Any] = field(default_factory=dict)
    safe_serialization: bool = True
    trust_pickle: bool = False
    uncertain: Mapping[str, str] = field(default_factory=dict)
    _not_saved: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Gives random generators in ``also`` the methods that other objects have."""
        also = {
            name: GeneratorState(each) if isinstance(each, GENERATOR_KINDS) else each
            for name, each in self.also.items()
        }
        object.__setattr__(self, "also", also)

    def check(self) -> None:
        """Raises a ValueError if something cannot be saved safely."""
        if (step := step_of_borrowed_weights(self.trainer)) is not None:
            raise ValueError(
                "a checkpoint must be of one step, and the model has the weights of step "
                f"{step}, which load_best() has loaded, with the optimizer and the counters of "
                f"step {self.trainer.state.optimizer_step}: save before load_best()"
            )
        registered = registered_objects(self.trainer.accelerator)
        if registered and not self.trust_pickle:
            names = ", ".join(type(each).__name__ for each in registered)
            raise ValueError(
                "objects registered with accelerator.register_for_checkpointing must not be there, "
                f"got {names}: Accelerate unpickles them, which runs code; give them as "
                "SaveCheckpoint(also={name: object}), or say trust_pickle=True"
            )

    @cached_property
    def is_sharded(self) -> bool:
        """Whether no process has the whole model."""
        (optimizer_step,) = attached(self.trainer, OptimizerStep)
        return not optimizer_step.prepared.is_data_parallel

    @cached_property
    def modules(self) -> dict[str, torch.nn.Module]:
        """The trainer's modules by name."""
        return self.trainer.modules

    @cached_property
    def plain_names(self) -> dict[str, PlainNames]:
        """The plain names of what is in each of the modules."""
        return {name: PlainNames(module) for name, module in self.modules.items()}

    @property
    def whole_modules(self) -> dict[str, torch.nn.Module]:
        """Those of which a process has all."""
        return {k: v for k, v in self.modules.items() if not (self.is_sharded and k == "model")}

    def objects(self) -> dict[str, dict[str, Any]]:
        """The states of handlers and of what the user has named, of each kind by name."""
        return {
            "user_state": {name: getattr(self.trainer.state, name) for name in self.user_keys},
            "metrics": plain_part(self.trainer.state.metrics),
            "measured_at": dict(measured_at(self.trainer)),
            "handlers": {
                **_states(self.members.attached, "the handler {}", self.trainer),
                **self._held_states(),
            },
            "also": _states(self.also, "{!r} in `also`", self.trainer),
        }

    @cached_property
    def members(self) -> Members:
        """What the handlers hold when this is asked for first."""
        return Members.of(self.trainer, self.also.values())

    @cached_property
    def data_of_validations(self) -> DataOfValidations:
        """The data of the evaluators that the trainer validates with."""
        return DataOfValidations(self.trainer)

    def _held_states(self) -> dict[str, Any]:
        """Returns the states of what handlers hold, but for those that cannot be saved."""
        states: dict[str, Any] = {}
        for name, each in self.members.held.items():
            try:
                states |= _states({name: each}, "{}", self.trainer)
            except Exception as error:  # it was not attached, and may never be used
                self._not_saved[name] = str(error)
        return states

    def files(
        self,
        rank: int,
        objects: Mapping[str, Any],
        of_first: Mapping[str, Any],
        unknown: Sequence[Mapping[str, str]] = (),
    ) -> dict[str, Content]:
        """Those that the process ``rank`` writes, by name. Every process must ask for its own.

        The tensors are those of the training: they must be written, or copied, before it goes on.

        Args:
            rank: of this process.
            objects: its ``objects()``.
            of_first: the ``digests_of`` those of the first process.
            unknown: the ``unknown_parts`` of each process, for the first to save.
        """
        place = self.trainer.position_state_dict()
        place["evaluations"] = self.data_of_validations.state_dict()
        if rank != 0:
            place["objects"] = _others(objects, of_first)
        files: dict[str, Content] = {rank_file(rank): Objects(place, "the data loader")}
        if rank != 0:
            return files
        about: dict[str, Any] = {
            "kinds": self.kinds(),
            "groups": self.groups(),
            "objects": objects,
            "modules": {},
            "settings": settings_record(self.trainer).state_dict(self.trainer),
            "uncertain": dict(self.uncertain),
            "unknown": reasons_of_all([{**place["unknown"], **self.unknown_parts()}, *unknown[1:]]),
            "in_run": is_running(self.trainer) or is_interrupted(self.trainer),
        }
        for name, module in self.whole_modules.items():
            file, content, about["modules"][name] = module_file(
                name,
                module,
                safe_serialization=self.safe_serialization,
                names=self.plain_names[name],
            )
            files[file] = content
        if not self.is_sharded:
            files[OPTIMIZER] = Objects(self.trainer.optimizer.state_dict(), "the optimizer")
            if (scaler := self.trainer.accelerator.scaler) is not None:
                files[SCALER] = Objects(scaler.state_dict(), "the gradient scaler")
        if (scheduler := self.trainer.lr_scheduler) is not None:
            files[SCHEDULER] = Objects(scheduler.state_dict(), "the scheduler")
        registered_here = [] if self.is_sharded else registered_objects(self.trainer.accelerator)
        for number, registered in enumerate(registered_here):
            name = type(registered).__name__
            content = Objects(registered.state_dict(), name, may_pickle=True)
            files[registered_file(number)] = content
        files[TRAINER] = Objects(about, "a handler, or of an object in `also`,")
        return files

    def unknown_parts(self) -> dict[str, str]:
        """Returns why parts of the report may have a state that cannot be saved, by their names."""
        unknown = {}
        modules = self.whole_modules.items()
        left_out = [
            f"{of}.{each}"
            for of, module in modules
            for each in left_out_of_state(module, self.plain_names[of])
        ]
        if left_out:
            reason = f"left out of the state_dict(): {some(left_out)}; build these as then"
            unknown["model"] = reason
        for part, reason in unsaved_attributes(self.trainer).items():
            unknown[part] = f"{unknown[part]}; {reason}" if part in unknown else reason
        if reason := "; ".join(self.data_of_validations.doubts()):
            unknown["validation data"] = reason
        reason = unsaved_changes(self.trainer, self.members)
        reasons = [reason] if reason else []
        reasons += [f"{name} could not be saved: {why}" for name, why in self._not_saved.items()]
        carried = [*self.members.with_state.values(), *self.also.values()]
        reasons += filter(None, [late_changes(self.trainer, carried)])
        if reasons:
            reasons += filter(None, [unknown.get("handlers")])
            unknown["handlers"] = "; ".join(reasons)
        return unknown

    def write_sharded(self, folder: Path) -> None:
        """Has Accelerate write model and optimizer, all processes together."""
        self.trainer.accelerator.save_state(
            str(folder / SHARDED), safe_serialization=self.safe_serialization
        )

    @property
    def user_keys(self) -> list[str]:
        """The attributes of ``trainer.state`` that the user has named, and those of handlers."""
        keys = [*self.trainer.state_dict_user_keys, *state_names_of_handlers(self.trainer)]
        return [key for key in dict.fromkeys(keys) if key != "optimizer_step"]

    def kinds(self) -> dict[str, str | None]:
        """The classes of what is trained with: a state of another class means something else."""
        optimizer, scheduler = self.trainer.optimizer, self.trainer.lr_scheduler
        return {
            "optimizer": _kind(getattr(optimizer, "optimizer", optimizer)),
            "scheduler": _kind(getattr(scheduler, "scheduler", scheduler)),
            "scaler": _kind(self.trainer.accelerator.scaler),
        }

    def groups(self) -> list[list[str]]:
        """The names of the parameters of each group of the optimizer."""
        names: dict[int, str] = {}
        for of, each in self.plain_names.items():
            for name, parameter in each.plain_state(dict(each.parameters)).items():
                names.setdefault(id(parameter), f"{of}.{name}")
        groups = self.trainer.optimizer.param_groups
        return [[names.get(id(each), "?") for each in group["params"]] for group in groups]


def digests_of(objects: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """A sum of each, to see which are the same in two processes."""
    return {
        kind: {name: digest_of(state) for name, state in states.items()}
        for kind, states in objects.items()
    }


def _others(objects: Mapping[str, Any], sums: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Those that have another sum."""
    found: dict[str, dict[str, Any]] = {}
    for kind, ours in digests_of(objects).items():
        theirs = sums[kind]
        names = [name for name in ours if ours[name] != theirs.get(name)]
        found[kind] = {name: objects[kind][name] for name in names}
    return found


def _states(objects: Mapping[str, Any], what: str, trainer: TrainingEngine) -> dict[str, Any]:
    states = {name: Member(each, trainer).state_dict() for name, each in objects.items()}
    for name, state in states.items():
        Objects(state, what.format(name))
    return states


def _kind(thing: Any) -> str | None:
    return None if thing is None else type(thing).__name__
