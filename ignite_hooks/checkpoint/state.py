"""Captures a trainer's state as the contents of files: the second stage of a save.

``writer.py`` has a table of all stages, and ``layout.py`` has the names of the files.

A run of training may stop and be resumed in a new process several times. All checkpoints of the
run have the same ``training_id`` in their manifests. A branch, which is a new run that begins at a
checkpoint of another run, has a new id.
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
from ignite_hooks.checkpoint.handler_objects import HandlerObjects
from ignite_hooks.checkpoint.handler_objects import state_names_of_handlers
from ignite_hooks.checkpoint.layout import OPTIMIZER
from ignite_hooks.checkpoint.layout import SCALER
from ignite_hooks.checkpoint.layout import SCHEDULER
from ignite_hooks.checkpoint.layout import SHARDED
from ignite_hooks.checkpoint.layout import TRAINER
from ignite_hooks.checkpoint.layout import rank_file
from ignite_hooks.checkpoint.layout import registered_file
from ignite_hooks.checkpoint.module_state import left_out_of_state
from ignite_hooks.checkpoint.module_state import module_file
from ignite_hooks.checkpoint.object_state import StatefulObject
from ignite_hooks.checkpoint.open_contexts import late_changes
from ignite_hooks.checkpoint.plain_names import PlainNames
from ignite_hooks.checkpoint.report import merge_reasons
from ignite_hooks.checkpoint.report import summarize_names
from ignite_hooks.checkpoint.settings import settings_record
from ignite_hooks.checkpoint.unsaved import unsaved_changes
from ignite_hooks.checkpoint.unsaved_attributes import unsaved_attributes
from ignite_hooks.core.accelerators import registered_objects
from ignite_hooks.core.borrowed_weights import step_of_borrowed_weights
from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.engine import is_running
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.stale_metrics import measured_at
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.data.random_state import GENERATOR_CLASSES
from ignite_hooks.data.random_state import GeneratorState
from ignite_hooks.evaluation.validation_data import ValidationData
from ignite_hooks.optim.optimizer_step import OptimizerStep

__all__ = ["TrainingState", "digests_of", "set_training_id", "training_id"]


def training_id(trainer: TrainingEngine) -> str:
    """Returns the unique identifier of the trainer's run; creates it on the first call."""
    identifier: str = engine_storage(trainer).setdefault("training", uuid4().hex)
    return identifier


def set_training_id(trainer: TrainingEngine, identifier: str) -> None:
    """Makes the next checkpoints of the trainer belong to the run with this identifier."""
    engine_storage(trainer)["training"] = identifier


@dataclass(frozen=True)
class TrainingState:
    """The state of a trainer, part by part, as the contents of files.

    The parts are looked up on first use and cached, so each save must create a new instance.

    Args:
        trainer: the trainer.
        also: maps a name to an object of the user that has a state, or to a random generator.
        safe_serialization: whether the model is written in the format of safetensors. If False, the
            model is written by ``torch.save``.
        trust_pickle: whether objects that were registered with the accelerator are saved. A resume
            has to unpickle these objects.
        uncertain: the parts of the state that may have changed since the saved step because the run
            failed. Maps the name of a part in the ``ResumeReport``, for example "handlers", to the
            reason. Empty if the run has not failed.
    """

    trainer: TrainingEngine
    also: Mapping[str, Any] = field(default_factory=dict)
    safe_serialization: bool = True
    trust_pickle: bool = False
    uncertain: Mapping[str, str] = field(default_factory=dict)
    # Maps the name of an object that a handler holds to the reason why its state cannot be saved.
    _unsavable: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Replaces each random generator in ``also`` by an object that has a ``state_dict``."""
        also = {
            name: GeneratorState(each) if isinstance(each, GENERATOR_CLASSES) else each
            for name, each in self.also.items()
        }
        object.__setattr__(self, "also", also)  # the dataclass is frozen

    def check(self) -> None:
        """Checks that the state can be saved.

        Raises:
            ValueError: the model has the weights of another step, or an object is registered with
                the accelerator although ``trust_pickle`` is False.
        """
        if (step := step_of_borrowed_weights(self.trainer)) is not None:
            raise ValueError(
                "the model, the optimizer and the counters of a checkpoint must be of the same "
                f"step, but the model has the weights of step {step}, which load_best() has "
                f"loaded, and the trainer is at step {self.trainer.state.optimizer_step}: save "
                "before load_best()"
            )
        registered = registered_objects(self.trainer.accelerator)
        if registered and not self.trust_pickle:
            names = ", ".join(type(each).__name__ for each in registered)
            raise ValueError(
                "no object may be registered with accelerator.register_for_checkpointing, got "
                f"{names}: Accelerate unpickles such objects, which can run code; pass them as "
                "SaveCheckpoint(also={name: object}), or set trust_pickle=True"
            )

    @cached_property
    def is_sharded(self) -> bool:
        """True if the model is split over processes, so that no process has the whole model."""
        (optimizer_step,) = attached_handlers(self.trainer, OptimizerStep)
        return not optimizer_step.prepared.is_data_parallel

    @cached_property
    def modules(self) -> dict[str, torch.nn.Module]:
        """The trainer's modules by name."""
        return self.trainer.modules

    @cached_property
    def plain_names(self) -> dict[str, PlainNames]:
        """The plain names of the parameters and submodules of each module.

        A plain name is a name without the parts that wrappers such as ``torch.compile`` add.
        """
        return {name: PlainNames(module) for name, module in self.modules.items()}

    @property
    def whole_modules(self) -> dict[str, torch.nn.Module]:
        """The modules of which each process has all parameters."""
        # Only the model can be split. A loss function is whole on each process.
        return {k: v for k, v in self.modules.items() if not (self.is_sharded and k == "model")}

    def objects(self) -> dict[str, dict[str, Any]]:
        """Returns the states of handlers, of metrics and of the user's objects.

        Returns:
            A dict with five sections, each of which maps names to values. "user_state" has the
            attributes of ``trainer.state`` that are registered to be saved. "metrics" has the
            values of metrics, and "measured_at" the iterations in which validations measured them.
            "handlers" has the states of handlers and of the objects that they hold. "also" has the
            states of the objects in ``also``.

        Raises:
            TypeError: a state cannot be saved without pickle.
        """
        return {
            "user_state": {name: getattr(self.trainer.state, name) for name in self.user_keys},
            "metrics": plain_part(self.trainer.state.metrics),
            "measured_at": dict(measured_at(self.trainer)),
            "handlers": {
                **_capture_states(self.handler_objects.attached, "the handler {}", self.trainer),
                **self._held_states(),
            },
            "also": _capture_states(self.also, "{!r} in `also`", self.trainer),
        }

    @cached_property
    def handler_objects(self) -> HandlerObjects:
        """The handlers, and the objects that the handlers hold."""
        return HandlerObjects.of(self.trainer, self.also.values())

    @cached_property
    def data_of_validations(self) -> ValidationData:
        """The data that the trainer's validations use."""
        return ValidationData(self.trainer)

    def _held_states(self) -> dict[str, Any]:
        """Returns the states of the objects that handlers hold, by the names of the objects.

        A state that cannot be saved is left out, and the reason is added to ``_unsavable``.
        """
        states: dict[str, Any] = {}
        for name, each in self.handler_objects.held.items():
            try:
                states |= _capture_states({name: each}, "{}", self.trainer)
            # The run may never use the object, so the checkpoint is made without its state.
            except Exception as error:
                self._unsavable[name] = str(error)
        return states

    def files(
        self,
        rank: int,
        objects: Mapping[str, Any],
        rank0_digests: Mapping[str, Any],
        unknown: Sequence[Mapping[str, str]] = (),
    ) -> dict[str, Content]:
        """Returns the contents of the files that this process writes, by the names of the files.

        Each process must call this method for its own files. The tensors in the contents share
        memory with the tensors of the trainer. So the contents must be written or copied before the
        training continues.

        Args:
            rank: the rank of this process.
            objects: the result of ``objects()`` on this process.
            rank0_digests: the result of ``digests_of`` for the objects of rank 0. Only the other
                ranks use it.
            unknown: for each rank, in the order of the ranks, the parts that may have unsaved state
                on this rank, with the reasons (as in ``unknown_parts``). Only rank 0 uses this
                argument. The first dict is ignored, because the parts of rank 0 are computed here.
        """
        rank_content = self.trainer.position_state_dict()
        rank_content["evaluations"] = self.data_of_validations.state_dict()
        # Most states are the same on all processes. Rank 0 writes all of its states, and each other
        # process writes only its states that differ from those of rank 0.
        if rank != 0:
            rank_content["objects"] = _differing_states(objects, rank0_digests)
        # The second argument completes the message "the state of … must be made of tensors".
        files: dict[str, Content] = {rank_file(rank): Objects(rank_content, "the data loader")}
        if rank != 0:
            return files
        # "kinds" and "groups" let a resume check that the optimizer is built as in the saved run.
        # "modules" has the information that is needed to read the file of each module. "uncertain"
        # and "unknown" name the parts that may not be restored exactly, with the reasons.
        trainer_content: dict[str, Any] = {
            "kinds": self.class_names(),
            "groups": self.groups(),
            "objects": objects,
            "modules": {},
            "settings": settings_record(self.trainer).state_dict(self.trainer),
            "uncertain": dict(self.uncertain),
            "unknown": merge_reasons(
                [{**rank_content["unknown"], **self.unknown_parts()}, *unknown[1:]]
            ),
            # If this is False, a resume does not restore the eval mode of a module: an evaluation
            # between two runs may have left the module in this mode.
            "in_run": is_running(self.trainer) or is_interrupted(self.trainer),
        }
        for name, module in self.whole_modules.items():
            file, content, trainer_content["modules"][name] = module_file(
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
        # If the model is split over processes, Accelerate's `save_state` writes the model, and the
        # registered objects too.
        registered_here = [] if self.is_sharded else registered_objects(self.trainer.accelerator)
        for number, registered in enumerate(registered_here):
            name = type(registered).__name__
            content = Objects(registered.state_dict(), name, may_pickle=True)
            files[registered_file(number)] = content
        files[TRAINER] = Objects(trainer_content, "a handler, or of an object in `also`,")
        return files

    def unknown_parts(self) -> dict[str, str]:
        """Returns the parts that may have state that no checkpoint saves, with the reasons.

        The result maps the name of a part in the ``ResumeReport`` to the reason. Call ``objects()``
        first, because that method notes the states that cannot be saved.
        """
        unknown = {}
        modules = self.whole_modules.items()
        left_out = [
            f"{module_name}.{each}"
            for module_name, module in modules
            for each in left_out_of_state(module, self.plain_names[module_name])
        ]
        if left_out:
            reason = (
                f"left out of the state_dict(): {summarize_names(left_out)}; build these with the "
                "same values as in the saved run"
            )
            unknown["model"] = reason
        for part, reason in unsaved_attributes(self.trainer).items():
            unknown[part] = f"{unknown[part]}; {reason}" if part in unknown else reason
        if reason := "; ".join(self.data_of_validations.doubts()):
            unknown["validation data"] = reason
        reason = unsaved_changes(self.trainer, self.handler_objects)
        reasons = [reason] if reason else []
        reasons += [f"{name} could not be saved: {why}" for name, why in self._unsavable.items()]
        saved_objects = [*self.handler_objects.with_state.values(), *self.also.values()]
        reasons += filter(None, [late_changes(self.trainer, saved_objects)])
        if reasons:
            reasons += filter(None, [unknown.get("handlers")])
            unknown["handlers"] = "; ".join(reasons)
        return unknown

    def write_sharded(self, folder: Path) -> None:
        """Writes a model that is split over processes, and its optimizer, with ``save_state``.

        All processes must call this method together.
        """
        self.trainer.accelerator.save_state(
            str(folder / SHARDED), safe_serialization=self.safe_serialization
        )

    @property
    def user_keys(self) -> list[str]:
        """The names of the attributes of ``trainer.state`` to save.

        The user has registered some of these attributes, and handlers of Ignite write the others.
        """
        keys = [*self.trainer.state_dict_user_keys, *state_names_of_handlers(self.trainer)]
        # The trainer adds `optimizer_step` to the keys for Ignite's own Checkpoint. It is left out
        # here, because this package saves it with the counters.
        return [key for key in dict.fromkeys(keys) if key != "optimizer_step"]

    def class_names(self) -> dict[str, str | None]:
        """Returns the class names of optimizer, scheduler and scaler.

        A resume compares the names, because an object of another class would read the state
        differently.
        """
        optimizer, scheduler = self.trainer.optimizer, self.trainer.lr_scheduler
        return {
            "optimizer": _class_name(getattr(optimizer, "optimizer", optimizer)),
            "scheduler": _class_name(getattr(scheduler, "scheduler", scheduler)),
            "scaler": _class_name(self.trainer.accelerator.scaler),
        }

    def groups(self) -> list[list[str]]:
        """Returns, for each parameter group of the optimizer, the names of its parameters.

        A parameter that belongs to no module of the trainer has the name "?".
        """
        names: dict[int, str] = {}
        for module_name, each in self.plain_names.items():
            for name, parameter in each.plain_state(dict(each.parameters)).items():
                # A parameter that two modules share gets its name in the first module.
                names.setdefault(id(parameter), f"{module_name}.{name}")
        groups = self.trainer.optimizer.param_groups
        return [[names.get(id(each), "?") for each in group["params"]] for group in groups]


def digests_of(objects: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Returns a digest (a hash) of each state, to find the states that differ between processes.

    Args:
        objects: the result of ``TrainingState.objects``: sections that map names to states.

    Returns:
        The same sections, which map the names to digests.
    """
    return {
        section: {name: digest_of(state) for name, state in states.items()}
        for section, states in objects.items()
    }


def _differing_states(
    objects: Mapping[str, Any], rank0_digests: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Returns the states whose digests differ from those of rank 0."""
    differing: dict[str, dict[str, Any]] = {}
    for section, own_digests in digests_of(objects).items():
        digests = rank0_digests[section]
        names = [name for name in own_digests if own_digests[name] != digests.get(name)]
        differing[section] = {name: objects[section][name] for name in names}
    return differing


def _capture_states(
    objects: Mapping[str, Any], description: str, trainer: TrainingEngine
) -> dict[str, Any]:
    """Returns the states of objects, after a check that they can be saved without pickle.

    Args:
        objects: maps names to objects.
        description: describes an object in an error message; ``{}`` stands for its name.
        trainer: the trainer.
    """
    states = {name: StatefulObject(each, trainer).state_dict() for name, each in objects.items()}
    for name, state in states.items():
        # The constructor raises a TypeError for a state that needs pickle.
        Objects(state, description.format(name))
    return states


def _class_name(thing: Any) -> str | None:
    return None if thing is None else type(thing).__name__
