"""The way from the files of a checkpoint back into a trainer: all that is asked for, or nothing.

``LoadedState`` reads everything and compares it with the trainer before it changes anything. From
then on the folder is not needed any more, and may be pruned by the run that saves there. What can
be refused while it is loaded is loaded under ``rolled_back_on_failure``.
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
from ignite_hooks.checkpoint.content_checks import asks_user
from ignite_hooks.checkpoint.content_checks import problem_of_moving
from ignite_hooks.checkpoint.content_checks import problems_of_groups
from ignite_hooks.checkpoint.content_checks import problems_of_module_of_user
from ignite_hooks.checkpoint.content_checks import problems_of_modules
from ignite_hooks.checkpoint.content_checks import problems_of_optimizer
from ignite_hooks.checkpoint.content_checks import problems_of_rank
from ignite_hooks.checkpoint.content_checks import problems_of_scaler
from ignite_hooks.checkpoint.content_checks import problems_of_scheduler
from ignite_hooks.checkpoint.content_checks import problems_of_trainer
from ignite_hooks.checkpoint.contents import load_objects
from ignite_hooks.checkpoint.layout import OPTIMIZER
from ignite_hooks.checkpoint.layout import SCALER
from ignite_hooks.checkpoint.layout import SCHEDULER
from ignite_hooks.checkpoint.layout import SHARDED
from ignite_hooks.checkpoint.layout import TRAINER
from ignite_hooks.checkpoint.layout import rank_file
from ignite_hooks.checkpoint.layout import registered_file
from ignite_hooks.checkpoint.layout import registered_files
from ignite_hooks.checkpoint.member_state import Member
from ignite_hooks.checkpoint.member_state import has_module
from ignite_hooks.checkpoint.members import handlers_with_state
from ignite_hooks.checkpoint.module_state import fit_of_module
from ignite_hooks.checkpoint.module_state import flags_renamed
from ignite_hooks.checkpoint.module_state import give_to_module
from ignite_hooks.checkpoint.module_state import read_module
from ignite_hooks.checkpoint.module_state import set_flags
from ignite_hooks.checkpoint.regular_file import open_regular
from ignite_hooks.checkpoint.report import EXACT
from ignite_hooks.checkpoint.report import ResumedPart
from ignite_hooks.checkpoint.report import ResumeReport
from ignite_hooks.checkpoint.report import part_of_generators
from ignite_hooks.checkpoint.report import part_of_named
from ignite_hooks.checkpoint.report import some
from ignite_hooks.checkpoint.state import TrainingState
from ignite_hooks.checkpoint.state import set_training_id
from ignite_hooks.checkpoint.store import Checkpoint
from ignite_hooks.core.accelerators import registered_objects
from ignite_hooks.core.borrowed_weights import forget_borrowed_weights
from ignite_hooks.core.measured import forget_validations
from ignite_hooks.core.measured import measured_at
from ignite_hooks.data.random_state import GeneratorState

__all__ = ["LoadedState", "rolled_back_on_failure"]


class LoadedState:
    """What a checkpoint holds for one process, read, and not yet given to the trainer.

    Args:
        checkpoint: the checkpoint.
        state: what belongs to the trainer.
        rank: the process.
        override: the names of the settings that the script decides.
        replay: whether batches may be gone through again to get to the place in the data.

    Attributes:
        problems: what no checkpoint of this layout holds, by file and field, as far as it keeps the
            rest from being read; then nothing else may be asked.

    Raises:
        ValueError: a file is not what it should be, or holds code.
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
        self._parts: dict[str, ResumedPart | None] = {}
        self._missing: dict[str, str] = {}  # what of handlers could not be restored
        self._rates: list[dict[str, Any]] = []
        self._renamed: dict[str, str] = {}  # parameters of this training, and how they were called
        self.folder, self.manifest = checkpoint
        self._state = state
        self._trainer = state.trainer
        names = set(checkpoint.manifest.files)
        self._is_sharded = any(name.startswith(f"{SHARDED}/") for name in names)
        registered = registered_files(names)
        pickled = registered + sorted(name for name in names if name.startswith(f"{SHARDED}/"))
        if pickled and not state.trust_pickle:
            raise ValueError(
                f"{some(pickled)} would have to be unpickled, which runs code: say "
                "trust_pickle=True if you know who wrote it"
            )
        self._registered = [load_objects(self.folder / n, trust_pickle=True) for n in registered]
        self._objects = {
            name: load_objects(self.folder / name, mapped=name == TRAINER)
            for name in (SCHEDULER, SCALER, TRAINER, rank_file(rank))
            if name in names
        }
        if OPTIMIZER in names:
            self._objects[OPTIMIZER] = load_objects(self.folder / OPTIMIZER, mapped=True)
        self._optimizer_file: io.BufferedReader | None = None
        self.problems = [*self._problems_of_frame(rank_file(rank))]
        if self.problems:
            return
        self._scheduler = self._objects.get(SCHEDULER)
        self._place: dict[str, Any] = self._objects.get(rank_file(rank), {})
        if "data" in self._place:
            self._place = {**self._place, "data": {**self._place["data"], "replay": replay}}
        self._about: dict[str, Any] = self._objects.get(TRAINER, {})
        self._changed = ChangedSettings(self._trainer, self._about.get("settings"), override)
        self._overrides_scheduler = "scheduler" in override
        self._events = ["EPOCH_STARTED", "STARTED"]  # after which the rates are restored
        own = self._place.get("objects", {})
        self._states = {
            kind: {**states, **own.get(kind, {})}
            for kind, states in self._about.get("objects", {}).items()
        }
        self._modules = {}
        for name, about in self._about.get("modules", {}).items():
            try:
                state_dict = read_module(self.folder, name, names, about)
            except KeyError as error:
                self.problems.append(f"{TRAINER}: modules.{name}.aliases: {error} is no tensor")
                return
            if state_dict is not None:
                self._modules[name] = state_dict
        # On a CPU the optimizer is read when the model's memory is free again. By then the folder
        # may have been pruned; a file that is open stays readable. It is opened last: what fails
        # before it leaves nothing open.
        if OPTIMIZER in names and self._trainer.accelerator.device.type == "cpu":
            self._optimizer_file = open_regular(self.folder / OPTIMIZER)

    def close(self) -> None:
        """Closes what ``apply`` has not read; it cannot be called then."""
        if self._optimizer_file is not None:
            self._optimizer_file.close()

    def _problems_of_frame(self, own_file: str) -> Iterator[str]:
        """Yields the problems of the files that say how the others are to be read."""
        if TRAINER in self._objects:
            yield from problems_of_trainer(self._objects[TRAINER])
        if own_file in self._objects:
            yield from problems_of_rank(own_file, self._objects[own_file], self.manifest)
        if OPTIMIZER in self._objects:
            yield from problems_of_groups(self._objects[OPTIMIZER])

    def problems_of_members(self) -> Iterator[str]:
        """Yields the problems of the states of modules in `also` and of handlers."""
        for kind, members in self._members().items() if self._states else ():
            for name in members.keys() & self._states[kind].keys():
                state = self._states[kind][name]
                if members[name].is_module and has_module(state):
                    yield from problems_of_module_of_user(f"objects.{kind}.{name}", state)

    def problems_of_states(self) -> Iterator[str]:
        """Yields the problems of states that are of objects like those of the trainer."""
        trainer, ours, theirs = self._trainer, self._state.kinds(), self._about["kinds"]
        is_same_torch = self.manifest.versions.get("torch") == torch.__version__
        is_same_scheduler = theirs["scheduler"] == ours["scheduler"]
        is_used = not self._overrides_scheduler and trainer.lr_scheduler is not None
        yield from problems_of_modules(self._modules)
        if OPTIMIZER in self._objects:
            yield from problems_of_optimizer(
                self._objects[OPTIMIZER],
                trainer.optimizer,
                is_same_torch=is_same_torch,
                is_same_scheduler=is_same_scheduler,
                has_free_rates=asks_user(trainer.lr_scheduler),
            )
        if self._scheduler is not None and is_used:
            found = [
                *problems_of_scheduler(
                    self._scheduler, trainer.lr_scheduler, is_same_torch=is_same_torch
                )
            ]
            of_optimizer = self._objects.get(OPTIMIZER, {})  # where it is split it is elsewhere
            groups = of_optimizer.get("param_groups", trainer.optimizer.param_groups)
            yield from found or problem_of_moving(self._scheduler, trainer.lr_scheduler, groups)
        scaler = trainer.accelerator.scaler
        if SCALER in self._objects and scaler is not None:
            yield from problems_of_scaler(self._objects[SCALER], scaler)

    def differences(self) -> list[str]:
        """What keeps it from being loaded: each with what it was and what it is."""
        found = []
        for name in (TRAINER, OPTIMIZER):
            if name not in self._objects and not (self._state.is_sharded and name != TRAINER):
                found.append(f"{name} is missing")
        if not self._place:
            found.append("the counters of this process are missing")
        if self._state.is_sharded != self._is_sharded:
            found.append("one of both is split over processes (FSDP, DeepSpeed), the other is not")
        if found:
            return found
        ours = self._state.kinds()
        for what, kind in self._about["kinds"].items():
            is_overridden = what == "scheduler" and self._overrides_scheduler
            if None not in (kind, ours[what]) and kind != ours[what] and not is_overridden:
                hint = '; override=("scheduler",) takes the new one' if what == "scheduler" else ""
                found.append(f"the {what} was a {kind}, it is a {ours[what]}{hint}")
        for name in self._modules.keys() - self._state.whole_modules.keys():
            found.append(f"the checkpoint has a {name} with a state, this training has none")
        for name, module in self._state.whole_modules.items():
            about = self._about["modules"].get(name, {})
            fit = fit_of_module(name, self._modules.get(name), about, module)
            found += fit.differences
            if fit.renamed:
                about["flags"] = flags_renamed(about["flags"], fit.renamed)
                for now, then in fit.renamed.items():
                    self._renamed[f"{name}.{now}"] = f"{name}.{then}"
        if self._renamed:
            self._changed.follow_names(self._renamed)
        if not self._state.is_sharded:
            found += self._differences_of_optimizer()
            found += self._changed.problems(self._objects[OPTIMIZER])
        for kind, members in self._members().items():
            for name in members.keys() & self._states[kind].keys():
                found += members[name].differences(f"{kind}/{name}", self._states[kind][name])
        return found

    def apply(self) -> ResumeReport:
        """Gives it all to the trainer; if something refuses what it is given, nothing."""
        parts, trainer = self._parts, self._trainer
        self._override()
        with rolled_back_on_failure(self._objects_with_state(), trainer.state):
            self._give_to_objects()
        # Modules are not rolled back: they were compared, and are big to copy.
        parts["model"] = self._load_modules()
        forget_borrowed_weights(trainer)
        self._load_members(are_modules=True)
        self._modules = {}
        if self._state.is_sharded:
            trainer.accelerator.load_state(str(self.folder / SHARDED))
            self._changed.override_groups(trainer.optimizer.param_groups)
        elif self._optimizer_file is not None:  # else its tensors would stay in the file
            content = load_objects(self._optimizer_file)
            self._changed.override_groups(content["param_groups"])
            trainer.optimizer.load_state_dict(content)
            self.close()
        parts["optimizer"] = EXACT
        self._look_at_data()
        parts["validation data"] = self._load_data_of_validations()
        parts["random generators"] = self._random_report()
        trainer.load_position_state_dict(self._place)
        set_training_id(trainer, self._checkpoint.manifest.training)
        parts["counters"] = EXACT
        self._changed.settle()
        self._objects, self._registered = {}, []  # this may stay for a while
        return self._report()

    def _objects_with_state(self) -> Iterator[Any]:
        trainer = self._trainer
        for members in self._members().values():
            yield from (each for each in members.values() if not each.is_module)
        yield from registered_objects(trainer.accelerator)
        small = [trainer.lr_scheduler, trainer.accelerator.scaler]
        if not trainer.optimizer.state:  # else it is big to copy, and it is the last to be asked
            small.append(trainer.optimizer)
        yield from (each for each in small if each is not None)

    def _give_to_objects(self) -> None:
        trainer, parts = self._trainer, self._parts
        self._load_members(are_modules=False)
        parts["also"] = part_of_named(self._state.also, self._states["also"], "`also`")
        self._load_metrics()
        registered_here = registered_objects(trainer.accelerator)
        pairs = zip(registered_here, self._registered, strict=False)
        for number, (registered, content) in enumerate(pairs):
            _load(registered, content, registered_file(number))
        then, now = len(self._registered), len(registered_here)
        if then != now:
            reason = f"{then} registered objects then, {now} now"
            parts["registered objects"] = ResumedPart("missing", reason)
        elif now:
            parts["registered objects"] = EXACT
        self._load_user_state(self._trainer.state_dict_user_keys)
        parts["scheduler"] = self._load_single(SCHEDULER, trainer.lr_scheduler)
        if not self._state.is_sharded:
            parts["scaler"] = self._load_single(SCALER, trainer.accelerator.scaler)
            self._rates = [_settings(group) for group in self._objects[OPTIMIZER]["param_groups"]]
            _load(trainer.optimizer, self._objects[OPTIMIZER], OPTIMIZER)

    def _override(self) -> None:
        """Has the script win in what was read, where it is to."""
        manifest = self._checkpoint.manifest
        moves = {"step": manifest.step, "epoch": manifest.epoch}
        moves["validation"] = self._place.get("validation", 0)
        files, modules = (OPTIMIZER, SCHEDULER), self._about["modules"]
        self._changed.override_states(self._objects, files, modules, moves)
        self._scheduler = self._objects.get(SCHEDULER)

    def complete(self) -> ResumeReport:
        """The same for handlers once more, which may have been reset, and for data given since."""
        if self._events:
            self._changed.look_at_writes(self._rates, self._events.pop())
        self._load_members(kinds=["handlers"])
        for name, each in self._state.also.items():
            if isinstance(each, GeneratorState) and name in self._states["also"]:
                each.load_state_dict(self._states["also"][name])  # handlers of STARTED have drawn
        self._load_metrics()
        self._load_user_state()
        self._set_rates()
        for name, module in self._state.whole_modules.items():
            flags = self._about["modules"][name]["flags"]
            was_put_aside = "" in flags["eval"] and not self._about["in_run"]
            if not was_put_aside:  # else a run puts it in train mode, and then its handlers decide
                set_flags(module, flags)
        self._look_at_data()
        self._parts["validation data"] = self._load_data_of_validations()
        self._parts["random generators"] = self._random_report()
        return self._report()

    def _set_rates(self) -> None:
        """Learning rates and the like, which handlers of STARTED and EPOCH_STARTED may set."""
        for group, settings in zip(self._trainer.optimizer.param_groups, self._rates, strict=False):
            group.update(copy.deepcopy(settings))
        if self._scheduler is not None and self._trainer.lr_scheduler is not None:
            self._trainer.lr_scheduler.load_state_dict(copy.deepcopy(self._scheduler))

    def _report(self) -> ResumeReport:
        self._parts["settings"] = self._changed.part()
        known = {name: part for name, part in self._parts.items() if part is not None}
        doubts = [
            ("approximate", self._about.get("uncertain", {})),
            ("unknown", self._about.get("unknown", {})),
            ("unknown", self._place.get("unknown", {})),
            ("unknown", self._trainer.unknown_parts()),
        ]
        for level, reasons in doubts:
            for name, reason in reasons.items():
                known[name] = known.get(name, EXACT).doubted(level, reason)
        return ResumeReport(self.folder, self._checkpoint.manifest.step, known)

    def _members(self) -> dict[str, dict[str, Member]]:
        """Returns the objects of `also` and of handlers that there are now, by kind and name."""
        trainer, also = self._trainer, self._state.also
        saved_in_also = [each for name, each in also.items() if name in self._states["also"]]
        kinds = {"also": also, "handlers": handlers_with_state(trainer, saved_in_also)}
        return {
            kind: {name: Member(each, trainer) for name, each in objects.items()}
            for kind, objects in kinds.items()
        }

    def _load_members(
        self, *, kinds: Iterable[str] = ("also", "handlers"), are_modules: bool | None = None
    ) -> None:
        """Gives objects their states: modules, others, or both."""
        members = self._members()
        missing: dict[str, str] = {}
        for kind in kinds:
            states = self._states[kind]
            for name, member in members[kind].items():
                if name not in states or are_modules not in (None, member.is_module):
                    continue
                try:
                    _load(member, states[name], f"{TRAINER}: objects.{kind}.{name}", member.kind)
                except OSError as error:  # of files that another machine may not have
                    if kind == "also":
                        raise
                    member.missing = str(error)
                if member.missing:
                    missing[name] = member.missing
        self._missing |= missing
        part = part_of_named(members["handlers"], self._states["handlers"], "the trainer")
        if part is not None and self._missing:
            reasons = [f"{name}: {why}" for name, why in self._missing.items()]
            reasons = [part.reason, *reasons] if part.reason else reasons
            part = ResumedPart("missing", "; ".join(reasons), part.names)
        self._parts["handlers"] = part

    def _load_metrics(self) -> None:
        forget_validations(self._trainer)
        self._trainer.state.metrics.update(self._states["metrics"])
        measured_at(self._trainer).update(self._states["measured_at"])

    def _load_user_state(self, keys: Collection[str] | None = None) -> None:
        """Sets attributes of the state: all, or some of them.

        Handlers of Ignite that are attached later refuse a state that has theirs already.
        """
        for key, value in self._states["user_state"].items():
            if keys is None or key in keys:
                setattr(self._trainer.state, key, copy.deepcopy(value))

    def _look_at_data(self) -> None:
        feed = self._trainer.feed
        if feed is None:
            return
        changes = feed.changes(self._place["data"])
        differences = feed.differences(self._place["data"])
        level = "approximate" if differences else "changed" if changes else "exact"
        reasons = [*changes, *differences, *feed.remarks(self._place["data"])]
        self._parts["data"] = ResumedPart(level, "; ".join(reasons))

    def _load_data_of_validations(self) -> ResumedPart | None:
        """Moves the data of evaluators to their places; some may be attached after the resume."""
        data, states = self._state.data_of_validations, self._place.get("evaluations")
        names = data.names
        if not names or states is None:
            reason = "this checkpoint does not hold the places of evaluators in their data"
            return ResumedPart("unknown", reason) if names else None
        data.load_state_dict(states)
        changes, differences = data.changes(states), data.differences(states)
        level = "approximate" if differences else "changed" if changes else "exact"
        return ResumedPart(level, "; ".join([*changes, *differences]))

    def _differences_of_optimizer(self) -> Iterator[str]:
        theirs = [len(group["params"]) for group in self._objects[OPTIMIZER]["param_groups"]]
        ours = [len(group["params"]) for group in self._trainer.optimizer.param_groups]
        if theirs != ours:
            yield f"the optimizer had groups of {theirs} parameters, it has {ours}"
        elif self._about["groups"] != [
            [self._renamed.get(parameter, parameter) for parameter in group]
            for group in self._state.groups()
        ]:
            yield "the optimizer had its parameters in another order"

    def _load_modules(self) -> ResumedPart:
        converted, unlike = set[str](), set[str]()
        for name, module in self._state.whole_modules.items():
            restored = give_to_module(module, self._modules[name], self._about["modules"][name])
            converted |= restored.converted
            unlike |= restored.unlike
        reasons = [f"other number formats: {some(converted)}"] if converted else []
        if unlike:
            reasons.append(f"its own loading has changed or left out: {some(unlike)}")
        return ResumedPart("approximate", "; ".join(reasons)) if reasons else EXACT

    def _load_single(self, file: str, target: Any) -> ResumedPart | None:
        content = self._objects.get(file)
        if target is None:
            reason = "the checkpoint has one, this training has none"
            return None if content is None else ResumedPart("missing", reason)
        if content is None:
            return ResumedPart("missing", "the checkpoint has none: it begins anew")
        _load(target, copy.deepcopy(content), file)  # CyclicLR takes entries out of it
        return EXACT

    def _random_report(self) -> ResumedPart:
        if self._place.get("has_drawn_since"):
            reason = "the run was stopped when batches were drawn that no step was made with"
            return ResumedPart("approximate", reason)
        has_device = self._place["random"]["device"] is not None
        if has_device != (self._trainer.accelerator.device.type != "cpu"):
            reason = "another kind of device: its generator has no state of the other's"
            return ResumedPart("approximate", reason)
        then, now = self._place["random"]["generators"].keys(), self._trainer.generators.keys()
        return part_of_generators(then, now)


def _load(target: Any, state: Any, path: str, kind: str | None = None) -> None:
    """Has an object take a state over; what it raises is told with the place of the state.

    Args:
        target: the object.
        state: its state.
        path: where the state is.
        kind: the name of the object's class, if ``target`` only stands for it.
    """
    try:
        target.load_state_dict(state)
    except (OSError, MemoryError, torch.OutOfMemoryError):  # none of the state's making
        raise
    except Exception as error:
        raise ValueError(
            f"{path} must be a state that a {kind or type(target).__name__} loads, which says: "
            f"{type(error).__name__}: {error}"
        ) from error


@contextmanager
def rolled_back_on_failure(objects: Iterable[Any], state: Any) -> Iterator[None]:
    """Restores ``state``, and the states of all ``objects``, if the body fails.

    Args:
        objects: objects with ``state_dict`` and ``load_state_dict``.
        state: the state of an engine; its attributes, and the metrics in it, are restored.
    """
    before = [(each, copy.deepcopy(each.state_dict())) for each in objects]
    attributes, metrics = dict(vars(state)), dict(state.metrics)
    try:
        yield
    except BaseException:
        for each, its_state in before:
            # An object that refuses even its own state cannot keep the others from theirs.
            with suppress(Exception):
                each.load_state_dict(its_state)
        vars(state).clear()
        vars(state).update(attributes)
        state.metrics.clear()
        state.metrics.update(metrics)
        raise


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """Of a group of parameters, all but these."""
    return {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
