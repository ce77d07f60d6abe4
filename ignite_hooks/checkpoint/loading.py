"""Loads the files of a checkpoint into a trainer: all of them, or none.

``LoadedState`` reads or opens all files when it is created, so another process may then remove the
folder of the checkpoint. Only a sharded model, which is split over processes, needs the folder
until it is loaded, because Accelerate reads its files. All files are compared with the trainer
before the trainer is changed.

An object may refuse its state, which means that its ``load_state_dict`` raises an error. So the
objects that are not modules are loaded first, within ``rolled_back_on_failure``: if one of them
refuses its state, the others get their previous states back.

In this file "saved" refers to the checkpoint, and "current" or "present" to the trainer that
resumes. The states of objects are saved in sections. The section "also" is for the objects that the
user gave as ``SaveCheckpoint(also={name: object})``. The section "handlers" is for the handlers
that have a state, and for the objects that handlers hold and that have a state.
"""

import copy
import io
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from contextlib import suppress
from typing import Any

import torch

from ignite_hooks.checkpoint.changed_settings import ChangedSettings
from ignite_hooks.checkpoint.content_checks import has_user_rates
from ignite_hooks.checkpoint.content_checks import module_problems
from ignite_hooks.checkpoint.content_checks import optimizer_file_problems
from ignite_hooks.checkpoint.content_checks import optimizer_problems
from ignite_hooks.checkpoint.content_checks import rank_file_problems
from ignite_hooks.checkpoint.content_checks import scaler_problems
from ignite_hooks.checkpoint.content_checks import scheduler_problems
from ignite_hooks.checkpoint.content_checks import scheduler_step_problems
from ignite_hooks.checkpoint.content_checks import trainer_file_problems
from ignite_hooks.checkpoint.content_checks import user_module_problems
from ignite_hooks.checkpoint.contents import load_objects
from ignite_hooks.checkpoint.description import versions
from ignite_hooks.checkpoint.handler_objects import handlers_with_state
from ignite_hooks.checkpoint.layout import OPTIMIZER
from ignite_hooks.checkpoint.layout import SCALER
from ignite_hooks.checkpoint.layout import SCHEDULER
from ignite_hooks.checkpoint.layout import SHARDED
from ignite_hooks.checkpoint.layout import TRAINER
from ignite_hooks.checkpoint.layout import rank_file
from ignite_hooks.checkpoint.layout import registered_file
from ignite_hooks.checkpoint.layout import registered_files
from ignite_hooks.checkpoint.module_state import check_module_fit
from ignite_hooks.checkpoint.module_state import load_into_module
from ignite_hooks.checkpoint.module_state import read_module
from ignite_hooks.checkpoint.module_state import rename_flags
from ignite_hooks.checkpoint.module_state import set_flags
from ignite_hooks.checkpoint.object_state import StatefulObject
from ignite_hooks.checkpoint.object_state import has_module
from ignite_hooks.checkpoint.regular_file import open_regular
from ignite_hooks.checkpoint.report import EXACT
from ignite_hooks.checkpoint.report import ResumedPart
from ignite_hooks.checkpoint.report import ResumeReport
from ignite_hooks.checkpoint.report import report_generators
from ignite_hooks.checkpoint.report import report_named_objects
from ignite_hooks.checkpoint.report import summarize_names
from ignite_hooks.checkpoint.state import TrainingState
from ignite_hooks.checkpoint.state import set_training_id
from ignite_hooks.checkpoint.store import Checkpoint
from ignite_hooks.core.accelerators import registered_objects
from ignite_hooks.core.borrowed_weights import forget_borrowed_weights
from ignite_hooks.core.stale_metrics import forget_validations
from ignite_hooks.core.stale_metrics import measured_at
from ignite_hooks.data.random_state import GeneratorState

__all__ = ["LoadedState", "rolled_back_on_failure"]


class LoadedState:
    """The content of a checkpoint for one process, with the methods that load it into the trainer.

    A caller first checks ``problems``, ``object_problems``, ``differences`` and ``state_problems``,
    in this order. If all four are empty, the caller calls ``apply``. When the run starts, handlers
    of STARTED may change restored states, so the caller calls ``complete`` after these handlers. If
    the run resumes in the middle of an epoch, the caller calls ``complete`` once more after the
    handlers of EPOCH_STARTED.

    Args:
        checkpoint: the checkpoint.
        state: the current state of the trainer, which the checkpoint replaces.
        rank: the rank of this process.
        override: the names of the settings that keep the script's values instead of getting the
            saved ones.
        replay: what to do with data that cannot restore their position. If True, the data are
            iterated from the beginning of the pass up to the saved position. If False, the run
            continues with the next pass.

    Attributes:
        folder: the folder of the checkpoint.
        manifest: the manifest of the checkpoint.
        problems: the errors in ``trainer.pt``, ``optimizer.bin`` and the file of this process. Each
            error is a text that names the file and the field. The methods rely on these files: if
            there are errors, only ``close`` may be called.

    Raises:
        ValueError: a file cannot be read, or loading it would run code.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        state: TrainingState,
        rank: int,
        override: Sequence[str] = (),
        replay: bool = True,
    ) -> None:
        self._checkpoint = checkpoint
        self._report_parts: dict[str, ResumedPart | None] = {}
        # Maps the name of a handler to the reason why its state was not restored completely.
        self._unrestored: dict[str, str] = {}
        # The settings of the optimizer's groups. Both `apply` and `complete` load them.
        self._group_settings: list[dict[str, Any]] = []
        # Maps the current name of a parameter to its saved name, if the two names differ.
        self._saved_names: dict[str, str] = {}
        self.folder, self.manifest = checkpoint
        self._state = state
        self._trainer = state.trainer
        names = set(checkpoint.manifest.files)
        self._is_sharded = any(name.startswith(f"{SHARDED}/") for name in names)
        registered = registered_files(names)
        # Accelerate uses pickle for the files of the objects that the user has registered with
        # `register_for_checkpointing`, and for the files of sharded models.
        pickled = registered + sorted(name for name in names if name.startswith(f"{SHARDED}/"))
        if pickled and not state.trust_pickle:
            raise ValueError(
                f"{summarize_names(pickled)} would have to be unpickled, which runs code: give "
                "trust_pickle=True if you trust the writer of the checkpoint"
            )
        self._registered = [load_objects(self.folder / n, trust_pickle=True) for n in registered]
        self._contents = {
            name: load_objects(self.folder / name, mapped=name == TRAINER)
            for name in (SCHEDULER, SCALER, TRAINER, rank_file(rank))
            if name in names
        }
        if OPTIMIZER in names:
            self._contents[OPTIMIZER] = load_objects(self.folder / OPTIMIZER, mapped=True)
        self._optimizer_file: io.BufferedReader | None = None
        self.problems = [*self._problems_of_structure(rank_file(rank))]
        if self.problems:
            return
        self._scheduler_state = self._contents.get(SCHEDULER)
        self._rank_content: dict[str, Any] = self._contents.get(rank_file(rank), {})
        if "data" in self._rank_content:
            data = {**self._rank_content["data"], "replay": replay}
            self._rank_content = {**self._rank_content, "data": data}
        self._trainer_content: dict[str, Any] = self._contents.get(TRAINER, {})
        saved_settings = self._trainer_content.get("settings")
        self._changed_settings = ChangedSettings(self._trainer, saved_settings, override)
        self._is_scheduler_overridden = "scheduler" in override
        # `complete` is called after STARTED, and then after EPOCH_STARTED. Each call takes the last
        # entry.
        self._rate_events = ["EPOCH_STARTED", "STARTED"]
        # `trainer.pt` holds the states of rank 0. The file of another rank holds only those states
        # that differ from the states of rank 0.
        own = self._rank_content.get("objects", {})
        self._object_states = {
            section: {**states, **own.get(section, {})}
            for section, states in self._trainer_content.get("objects", {}).items()
        }
        self._module_states = {}
        for name, metadata in self._trainer_content.get("modules", {}).items():
            try:
                state_dict = read_module(self.folder, name, names, metadata)
            except KeyError as error:
                self.problems.append(f"{TRAINER}: modules.{name}.aliases: {error} is not a tensor")
                return
            if state_dict is not None:
                self._module_states[name] = state_dict
        # On a CPU, `apply` reads the optimizer's state late, to keep the peak of memory low. The
        # file is opened already here, because the folder may be removed in the meantime. It is
        # opened last, so that an error above leaves no file open.
        if OPTIMIZER in names and self._trainer.accelerator.device.type == "cpu":
            self._optimizer_file = open_regular(self.folder / OPTIMIZER)

    def close(self) -> None:
        """Closes the optimizer's file if it is open. ``apply`` must not be called afterwards."""
        if self._optimizer_file is not None:
            self._optimizer_file.close()

    def _problems_of_structure(self, own_file: str) -> Iterator[str]:
        """Yields the errors for the attribute ``problems``.

        Args:
            own_file: the name of the file of this process.
        """
        if TRAINER in self._contents:
            yield from trainer_file_problems(self._contents[TRAINER])
        if own_file in self._contents:
            yield from rank_file_problems(own_file, self._contents[own_file], self.manifest)
        if OPTIMIZER in self._contents:
            yield from optimizer_file_problems(self._contents[OPTIMIZER])

    def object_problems(self) -> Iterator[str]:
        """Yields the errors in the saved states of objects that are modules.

        Such an object is a module in ``also``, or a handler that is a module.
        """
        for section, objects in self._stateful_objects().items() if self._object_states else ():
            for name in objects.keys() & self._object_states[section].keys():
                state = self._object_states[section][name]
                if objects[name].is_module and has_module(state):
                    yield from user_module_problems(f"objects.{section}.{name}", state)

    def state_problems(self) -> Iterator[str]:
        """Yields the errors in the saved states of model, optimizer, scheduler and gradient scaler.

        Call this method only after ``differences`` has returned an empty list. The checks assume
        that the saved objects have the same classes as the current ones.
        """
        trainer = self._trainer
        current, saved = self._state.class_names(), self._trainer_content["kinds"]
        is_same_torch = self.manifest.versions.get("torch") == versions()["torch"]
        is_same_scheduler = saved["scheduler"] == current["scheduler"]
        is_used = not self._is_scheduler_overridden and trainer.lr_scheduler is not None
        yield from module_problems(self._module_states)
        if OPTIMIZER in self._contents:
            yield from optimizer_problems(
                self._contents[OPTIMIZER],
                trainer.optimizer,
                is_same_torch=is_same_torch,
                is_same_scheduler=is_same_scheduler,
                has_free_rates=has_user_rates(trainer.lr_scheduler),
            )
        if self._scheduler_state is not None and is_used:
            found = [
                *scheduler_problems(
                    self._scheduler_state, trainer.lr_scheduler, is_same_torch=is_same_torch
                )
            ]
            # The saved groups of a sharded optimizer are in Accelerate's files, which are not read
            # here. The groups of the trainer's optimizer are used instead.
            optimizer_content = self._contents.get(OPTIMIZER, {})
            groups = optimizer_content.get("param_groups", trainer.optimizer.param_groups)
            yield from found or scheduler_step_problems(
                self._scheduler_state, trainer.lr_scheduler, groups
            )
        scaler = trainer.accelerator.scaler
        if SCALER in self._contents and scaler is not None:
            yield from scaler_problems(self._contents[SCALER], scaler)

    def differences(self) -> list[str]:
        """Returns the differences between checkpoint and trainer that make loading impossible.

        Each difference is a text, with the saved value and the current value if both exist.
        """
        found = []
        for name in (TRAINER, OPTIMIZER):
            if name not in self._contents and not (self._state.is_sharded and name != TRAINER):
                found.append(f"{name} is missing")
        if not self._rank_content:
            found.append("the counters of this process are missing")
        if self._state.is_sharded != self._is_sharded:
            found.append(
                "the model must be split over processes (FSDP, DeepSpeed) in both the checkpoint "
                "and the trainer, or in neither"
            )
        if found:  # the comparisons below need these files
            return found
        current = self._state.class_names()
        for part, saved_class in self._trainer_content["kinds"].items():
            current_class = current[part]
            is_overridden = part == "scheduler" and self._is_scheduler_overridden
            # If only the checkpoint or only the trainer has a scheduler or scaler, loading is
            # possible, and the report says that the part is missing.
            if (
                None not in (saved_class, current_class)
                and saved_class != current_class
                and not is_overridden
            ):
                hint = '; override=("scheduler",) takes the new one' if part == "scheduler" else ""
                found.append(f"the {part} was {saved_class}, and is now {current_class}{hint}")
        for name in self._module_states.keys() - self._state.whole_modules.keys():
            found.append(f"the checkpoint has a {name} with a state, this run has none")
        for name, module in self._state.whole_modules.items():
            metadata = self._trainer_content["modules"].get(name, {})
            fit = check_module_fit(name, self._module_states.get(name), metadata, module)
            found += fit.differences
            if fit.renamed:
                metadata["flags"] = rename_flags(metadata["flags"], fit.renamed)
                for current_name, saved_name in fit.renamed.items():
                    self._saved_names[f"{name}.{current_name}"] = f"{name}.{saved_name}"
        if self._saved_names:
            # In the saved settings, frozen parameters have their names of the saved run.
            self._changed_settings.translate_names(self._saved_names)
        if not self._state.is_sharded:
            found += self._optimizer_differences()
            found += self._changed_settings.problems(self._contents[OPTIMIZER])
        for section, objects in self._stateful_objects().items():
            for name in objects.keys() & self._object_states[section].keys():
                state = self._object_states[section][name]
                found += objects[name].differences(f"{section}/{name}", state)
        return found

    def apply(self) -> ResumeReport:
        """Loads the checkpoint into the trainer, and returns a report on each part of its state.

        If an object refuses its state, the trainer is left unchanged.

        Raises:
            ValueError: an object refuses its state.
        """
        parts, trainer = self._report_parts, self._trainer
        self._apply_overrides()
        with rolled_back_on_failure(self._objects_to_roll_back(), trainer.state):
            self._load_objects()
        # Modules need no rollback, because `differences` has shown that the states fit them. A
        # rollback would need a copy of each module, which may be large.
        parts["model"] = self._load_modules()
        forget_borrowed_weights(trainer)
        self._load_stateful_objects(are_modules=True)
        self._module_states = {}
        if self._state.is_sharded:
            trainer.accelerator.load_state(str(self.folder / SHARDED))
            self._changed_settings.override_groups(trainer.optimizer.param_groups)
        elif self._optimizer_file is not None:
            # `_load_objects` has loaded the optimizer's state from a file that is mapped into
            # memory. On a CPU the optimizer's tensors would stay views of this file, so the state
            # is read once more, without mapping.
            content = load_objects(self._optimizer_file)
            self._changed_settings.override_groups(content["param_groups"])
            trainer.optimizer.load_state_dict(content)
            self.close()
        parts["optimizer"] = EXACT
        self._report_data()
        parts["validation data"] = self._load_validation_data()
        parts["random generators"] = self._generators_part()
        trainer.load_position_state_dict(self._rank_content)
        set_training_id(trainer, self._checkpoint.manifest.training)
        parts["counters"] = EXACT
        self._changed_settings.settle()
        # `complete` does not need these states, so their memory is freed now.
        self._contents, self._registered = {}, []
        return self._report()

    def _objects_to_roll_back(self) -> Iterator[Any]:
        """Yields the objects that get their previous state back if ``_load_objects`` fails.

        These are the objects that ``_load_objects`` loads, except an optimizer with a state.
        """
        trainer = self._trainer
        for objects in self._stateful_objects().values():
            yield from (each for each in objects.values() if not each.is_module)
        yield from registered_objects(trainer.accelerator)
        small = [trainer.lr_scheduler, trainer.accelerator.scaler]
        # An optimizer with a state is not rolled back, because a copy of its state would take much
        # memory. It is loaded last, and if torch's optimizers refuse a state, they are unchanged.
        if not trainer.optimizer.state:
            small.append(trainer.optimizer)
        yield from (each for each in small if each is not None)

    def _load_objects(self) -> None:
        """Loads the states of all objects that are not modules.

        Raises:
            ValueError: an object refuses its state.
        """
        trainer, parts = self._trainer, self._report_parts
        self._load_stateful_objects(are_modules=False)
        parts["also"] = report_named_objects(
            self._state.also, self._object_states["also"], "`also`"
        )
        self._load_metrics()
        registered_here = registered_objects(trainer.accelerator)
        pairs = zip(registered_here, self._registered, strict=False)
        for number, (registered, content) in enumerate(pairs):
            _load_state(registered, content, registered_file(number))
        saved_count, current_count = len(self._registered), len(registered_here)
        if saved_count != current_count:
            reason = f"the checkpoint has {saved_count}, this run has {current_count}"
            parts["registered objects"] = ResumedPart("missing", reason)
        elif current_count:
            parts["registered objects"] = EXACT
        self._load_user_state(self._trainer.state_dict_user_keys)
        parts["scheduler"] = self._load_single(SCHEDULER, trainer.lr_scheduler)
        if not self._state.is_sharded:
            parts["scaler"] = self._load_single(SCALER, trainer.accelerator.scaler)
            groups = self._contents[OPTIMIZER]["param_groups"]
            self._group_settings = [_settings_without_parameters(group) for group in groups]
            _load_state(trainer.optimizer, self._contents[OPTIMIZER], OPTIMIZER)

    def _apply_overrides(self) -> None:
        """Replaces the saved value of each setting in ``override`` by the script's value."""
        manifest = self._checkpoint.manifest
        # The number of calls of the scheduler's ``step`` so far, for a scheduler that moves after
        # each step, each epoch or each validation.
        moves = {"step": manifest.step, "epoch": manifest.epoch}
        moves["validation"] = self._rank_content.get("validation", 0)
        files, modules = (OPTIMIZER, SCHEDULER), self._trainer_content["modules"]
        self._changed_settings.override_states(self._contents, files, modules, moves)
        self._scheduler_state = self._contents.get(SCHEDULER)

    def complete(self) -> ResumeReport:
        """Loads once more the states that handlers of STARTED and EPOCH_STARTED may have changed.

        For example, handlers reset their own state, draw random numbers, set learning rates or put
        the model in train mode. This method also compares the data with the checkpoint once more,
        because the user may have given new data to ``run``.

        Returns:
            The report, which may differ from the report of ``apply``.
        """
        if self._rate_events:
            self._changed_settings.compare_writes(self._group_settings, self._rate_events.pop())
        self._load_stateful_objects(sections=["handlers"])
        for name, each in self._state.also.items():
            if isinstance(each, GeneratorState) and name in self._object_states["also"]:
                # Handlers of STARTED may have drawn from the generator.
                each.load_state_dict(self._object_states["also"][name])
        self._load_metrics()
        self._load_user_state()
        self._restore_rates()
        for name, module in self._state.whole_modules.items():
            flags = self._trainer_content["modules"][name]["flags"]
            # The flags say which parameters are frozen and which modules are in eval mode. The name
            # "" is the module itself. If the checkpoint was saved between two runs, an evaluation
            # may have left the module in eval mode. Such flags are ignored, because this run
            # trains.
            is_eval_between_runs = "" in flags["eval"] and not self._trainer_content["in_run"]
            if not is_eval_between_runs:
                set_flags(module, flags)
        self._report_data()
        # Evaluators may have been attached since `apply`.
        self._report_parts["validation data"] = self._load_validation_data()
        self._report_parts["random generators"] = self._generators_part()
        return self._report()

    def _restore_rates(self) -> None:
        """Restores the settings of the optimizer's groups and the state of the scheduler."""
        groups = self._trainer.optimizer.param_groups
        for group, settings in zip(groups, self._group_settings, strict=False):
            group.update(copy.deepcopy(settings))
        if self._scheduler_state is not None and self._trainer.lr_scheduler is not None:
            self._trainer.lr_scheduler.load_state_dict(copy.deepcopy(self._scheduler_state))

    def _report(self) -> ResumeReport:
        """Returns a report that says for each part of the state how exactly it was restored."""
        self._report_parts["settings"] = self._changed_settings.part()
        known = {name: part for name, part in self._report_parts.items() if part is not None}
        # Each mapping has the names of parts, and the reasons why these parts may not be exact.
        doubts = [
            ("approximate", self._trainer_content.get("uncertain", {})),
            ("unknown", self._trainer_content.get("unknown", {})),
            ("unknown", self._rank_content.get("unknown", {})),
            ("unknown", self._trainer.unknown_parts()),
        ]
        for level, reasons in doubts:
            for name, reason in reasons.items():
                known[name] = known.get(name, EXACT).with_reason(level, reason)
        return ResumeReport(self.folder, self._checkpoint.manifest.step, known)

    def _stateful_objects(self) -> dict[str, dict[str, StatefulObject]]:
        """Returns the current objects of the sections "also" and "handlers".

        Returns:
            A dict that maps each section to a dict of its objects by name.
        """
        trainer, also = self._trainer, self._state.also
        # An object in `also` can be a handler, too. If the checkpoint has its state in "also", it
        # is left out of "handlers". If the script of the saved run did not list it in `also`, the
        # checkpoint has its state in "handlers".
        saved_in_also = [each for name, each in also.items() if name in self._object_states["also"]]
        sections = {"also": also, "handlers": handlers_with_state(trainer, saved_in_also)}
        return {
            section: {name: StatefulObject(each, trainer) for name, each in objects.items()}
            for section, objects in sections.items()
        }

    def _load_stateful_objects(
        self, *, sections: Iterable[str] = ("also", "handlers"), are_modules: bool | None = None
    ) -> None:
        """Loads the saved states of objects in the sections "also" and "handlers".

        Args:
            sections: the sections to load: "also", "handlers" or both.
            are_modules: True to load only the objects that are modules, False to load only the
                others, None to load all objects.
        """
        objects = self._stateful_objects()
        missing: dict[str, str] = {}
        for section in sections:
            states = self._object_states[section]
            for name, stateful in objects[section].items():
                if name not in states or are_modules not in (None, stateful.is_module):
                    continue
                try:
                    path = f"{TRAINER}: objects.{section}.{name}"
                    _load_state(stateful, states[name], path, stateful.class_name)
                except OSError as error:  # a handler may read a file that this machine lacks
                    if section == "also":
                        raise
                    stateful.missing = str(error)
                if stateful.missing:
                    missing[name] = stateful.missing
        self._unrestored |= missing
        part = report_named_objects(
            objects["handlers"], self._object_states["handlers"], "the trainer"
        )
        if part is not None and self._unrestored:
            reasons = [f"{name}: {why}" for name, why in self._unrestored.items()]
            reasons = [part.reason, *reasons] if part.reason else reasons
            part = ResumedPart("missing", "; ".join(reasons), part.names)
        self._report_parts["handlers"] = part

    def _load_metrics(self) -> None:
        """Restores ``state.metrics``, and the iterations at which validations measured metrics."""
        forget_validations(self._trainer)
        self._trainer.state.metrics.update(self._object_states["metrics"])
        measured_at(self._trainer).update(self._object_states["measured_at"])

    def _load_user_state(self, keys: Collection[str] | None = None) -> None:
        """Sets the saved attributes of ``trainer.state``.

        ``apply`` leaves out the attributes of Ignite's handlers, ``complete`` sets all attributes.
        A handler of Ignite may be attached after ``apply``, and raises an error if the state has
        its attribute already.

        Args:
            keys: the names of the attributes to set; None for all saved attributes.
        """
        for key, value in self._object_states["user_state"].items():
            if keys is None or key in keys:
                setattr(self._trainer.state, key, copy.deepcopy(value))

    def _report_data(self) -> None:
        """Adds to the report how the present data differ from the data at the save."""
        feed = self._trainer.feed
        if feed is None:
            return
        # `changes` are changes of the data, such as another batch size. `differences` are reasons
        # why the next batches may differ from those of an uninterrupted run.
        changes = feed.data_changes(self._rank_content["data"])
        differences = feed.differences(self._rank_content["data"])
        level = "approximate" if differences else "changed" if changes else "exact"
        reasons = [*changes, *differences, *feed.replay_notes(self._rank_content["data"])]
        self._report_parts["data"] = ResumedPart(level, "; ".join(reasons))

    def _load_validation_data(self) -> ResumedPart | None:
        """Moves the data of evaluators to their saved positions.

        Returns:
            The part of the report about these data; None if the trainer has no evaluators.
        """
        data, states = self._state.data_of_validations, self._rank_content.get("evaluations")
        names = data.names
        if not names or states is None:
            reason = "this checkpoint does not hold the positions of evaluators in their data"
            return ResumedPart("unknown", reason) if names else None
        data.load_state_dict(states)
        changes, differences = data.changes(states), data.differences(states)
        level = "approximate" if differences else "changed" if changes else "exact"
        return ResumedPart(level, "; ".join([*changes, *differences]))

    def _optimizer_differences(self) -> Iterator[str]:
        """Yields the differences between the saved and the current parameters of the optimizer."""
        saved = [len(group["params"]) for group in self._contents[OPTIMIZER]["param_groups"]]
        current = [len(group["params"]) for group in self._trainer.optimizer.param_groups]
        if saved != current:
            yield f"the optimizer had groups of {saved} parameters, and now has groups of {current}"
        elif self._trainer_content["groups"] != [
            [self._saved_names.get(parameter, parameter) for parameter in group]
            for group in self._state.groups()
        ]:
            yield "the optimizer had its parameters in another order"

    def _load_modules(self) -> ResumedPart:
        """Loads all modules except a model that is split over processes.

        Returns:
            The part of the report about these modules.
        """
        converted, unlike = set[str](), set[str]()
        for name, module in self._state.whole_modules.items():
            metadata = self._trainer_content["modules"][name]
            restored = load_into_module(module, self._module_states[name], metadata)
            converted |= restored.converted
            unlike |= restored.unlike
        reasons = [f"other dtypes: {summarize_names(converted)}"] if converted else []
        if unlike:
            reasons.append(
                f"changed or left out by the module's own loading: {summarize_names(unlike)}"
            )
        return ResumedPart("approximate", "; ".join(reasons)) if reasons else EXACT

    def _load_single(self, file: str, target: Any) -> ResumedPart | None:
        """Loads the scheduler or the gradient scaler from its file.

        Args:
            file: the name of the file, which the checkpoint may lack.
            target: the scheduler or the scaler of the trainer; None if the trainer has none.

        Returns:
            The part of the report about this object; None if neither the checkpoint nor the trainer
            has one.
        """
        content = self._contents.get(file)
        if target is None:
            reason = "the checkpoint has one, this run has none"
            return None if content is None else ResumedPart("missing", reason)
        if content is None:
            reason = "the checkpoint has none, and the present one starts from scratch"
            return ResumedPart("missing", reason)
        _load_state(target, copy.deepcopy(content), file)  # CyclicLR pops entries from the state
        return EXACT

    def _generators_part(self) -> ResumedPart:
        """Returns the part of the report about the random generators."""
        if self._rank_content.get("has_drawn_since"):
            reason = "the run was stopped after it had drawn batches that no step has used"
            return ResumedPart("approximate", reason)
        has_device = self._rank_content["random"]["device"] is not None
        if has_device != (self._trainer.accelerator.device.type != "cpu"):
            reason = (
                "the checkpoint is from another kind of device: the random generator of this "
                "device cannot load the saved state"
            )
            return ResumedPart("approximate", reason)
        saved_names = self._rank_content["random"]["generators"].keys()
        return report_generators(saved_names, self._trainer.generators.keys())


def _load_state(target: Any, state: Any, path: str, class_name: str | None = None) -> None:
    """Loads a state into an object.

    Args:
        target: the object.
        state: the state.
        path: the file and the fields that lead to the state, for messages.
        class_name: the name of the class of the object, for messages; None for the class of
            ``target``.

    Raises:
        ValueError: the object refuses the state.
    """
    try:
        target.load_state_dict(state)
    except (OSError, MemoryError, torch.OutOfMemoryError):  # not the fault of the state
        raise
    except Exception as error:
        raise ValueError(
            f"{path} must be a state that a {class_name or type(target).__name__} loads, but its "
            f"load_state_dict raised {type(error).__name__}: {error}"
        ) from error


@contextmanager
def rolled_back_on_failure(objects: Iterable[Any], state: Any) -> Iterator[None]:
    """Undoes what the body has loaded if the body raises an error.

    Args:
        objects: objects with ``state_dict`` and ``load_state_dict``. After an error, each object
            gets back the state that it had before the body.
        state: the state of an engine. After an error, its attributes and metrics are restored.
    """
    before = [(each, copy.deepcopy(each.state_dict())) for each in objects]
    attributes, metrics = dict(vars(state)), dict(state.metrics)
    try:
        yield
    except BaseException:
        for each, previous_state in before:
            # If an object refuses its previous state, the other objects are restored nonetheless.
            with suppress(Exception):
                each.load_state_dict(previous_state)
        vars(state).clear()
        vars(state).update(attributes)
        state.metrics.clear()
        state.metrics.update(metrics)
        raise


def _settings_without_parameters(group: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of the settings of an optimizer's group, without the parameters."""
    return {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
