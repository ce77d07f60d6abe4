"""Compares the settings in a script that resumes a run with the settings of the saved run.

The saved run is the run that saved the checkpoint. A resume restores three kinds of settings from
the checkpoint: those of the optimizer, those of the learning rate schedule, and whether each
parameter is frozen. If ``ResumeCheckpoint(override=…)`` names one of these settings, and the script
has changed it, the script's value is used instead. Other settings, for example gradient
accumulation and clipping, are never restored: the script's values are always used. The resume
report (``ResumeReport``) names each difference with both values.
"""

import copy
import itertools
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import MutableMapping
from collections.abc import Sequence
from math import isclose
from typing import Any
from typing import NamedTuple

from ignite.handlers import ParamGroupScheduler
from ignite.handlers.param_scheduler import BaseParamScheduler
from torch.optim.lr_scheduler import LRScheduler

from ignite_hooks.checkpoint.handler_objects import handlers_with_state
from ignite_hooks.checkpoint.report import EXACT
from ignite_hooks.checkpoint.report import ResumedPart
from ignite_hooks.checkpoint.report import summarize_names
from ignite_hooks.checkpoint.schedule import ScriptSchedule
from ignite_hooks.checkpoint.settings import SCHEDULE_KEYS
from ignite_hooks.checkpoint.settings import ParamGroups
from ignite_hooks.checkpoint.settings import copied_groups
from ignite_hooks.checkpoint.settings import plain
from ignite_hooks.checkpoint.settings import settings_of
from ignite_hooks.checkpoint.settings import settings_record
from ignite_hooks.checkpoint.settings import unrestored_settings_of
from ignite_hooks.core.rules import did_you_mean
from ignite_hooks.core.rules import is_number
from ignite_hooks.core.training_engine import TrainingEngine

__all__ = ["ChangedSettings", "check_override"]

_SCHEDULERS = (BaseParamScheduler, ParamGroupScheduler, LRScheduler)

# These options of an optimizer select an implementation of the same computation, so they are not
# compared.
_IMPLEMENTATION_OPTIONS = {"capturable", "differentiable", "foreach", "fused"}

# Settings that this module does not compare. ``DataFeed.differences`` compares the data, and
# ``ResumeCheckpoint`` compares the number of processes when it chooses a checkpoint.
_COMPARED_ELSEWHERE = {"data", "processes"}

# Maps (class of an optimizer, setting) to the entry that the setting needs in the state of each
# parameter. The optimizer creates the entry at its first step only. If the setting is turned on
# later, ``step()`` raises a KeyError.
_REQUIRED_STATES = {
    ("Adam", "amsgrad"): "max_exp_avg_sq",
    ("AdamW", "amsgrad"): "max_exp_avg_sq",
    ("RMSprop", "centered"): "grad_avg",
    ("RMSprop", "momentum"): "momentum_buffer",
}

# A setting is given by its path, for example ("optimizer", "groups", 0, "lr"). This table maps the
# first key of a path to the name of the setting in ``override``. If the first key is not in the
# table, the name is the last key of the path. In the example above, the name is "lr".
_OVERRIDE_NAMES = {"scheduler": "scheduler", "frozen": "requires_grad"}


class _Difference(NamedTuple):
    """A setting that differs between the saved run and the script that resumes.

    Attributes:
        path: the keys that lead to the setting in the nested dict that ``settings_of`` returns, for
            example ("optimizer", "groups", 0, "lr").
        saved: the value of the saved run.
        given: the value that the resuming script gives.
    """

    path: tuple[Any, ...]
    saved: Any
    given: Any

    @property
    def name(self) -> str:
        """The name of this setting in ``override``."""
        return _OVERRIDE_NAMES.get(self.path[0], str(self.path[-1]))

    @property
    def label(self) -> str:
        """The setting as messages name it: "optimizer: lr", "scheduler: T_max", "accumulation"."""
        first, *others = self.path
        if others[:1] == ["groups"] and len(others) > 2:
            # "groups" and the index are left out, because `sentence` adds the groups to the label.
            others = others[2:]
        parts = [f"[{each}]" if isinstance(each, int) else f".{each}" for each in others]
        name = "".join(parts).removeprefix(".")
        first = {"frozen": "frozen parameters"}.get(first, first)
        return f"{first}: {name}" if name else str(first)

    @property
    def group(self) -> int | None:
        """The index of the parameter group, if the setting is one of a group; otherwise None."""
        is_of_group = self.path[:2] == ("optimizer", "groups") and len(self.path) > 3
        return self.path[2] if is_of_group else None

    def sentence(self, groups: str, *, uses_script: bool) -> str:
        """Returns a sentence for the report that gives both values and says which one is used.

        Args:
            groups: a phrase that lists the groups of the optimizer with this difference, such as
                " of group 1"; empty if all groups have it, or if the setting is not in a group.
            uses_script: True if the script's value is used, False if the checkpoint's is used.
        """
        if self.path[-1] == "code":
            return self._code_sentence(uses_script)
        saved, given = _format_value(self.saved), _format_value(self.given)
        verb = "are" if self.path[0] == "frozen" else "is"
        owner = "script" if uses_script else "checkpoint"
        return (
            f"{self.label}{groups} {verb} {given} in the script, {saved} in the checkpoint: "
            f"the {owner}'s value is used"
        )

    def _code_sentence(self, uses_script: bool) -> str:
        label = self.label.removesuffix(".code")
        # Both values are digests of a function's code. A digest begins with the version of Python,
        # and each version compiles code differently. So different digests show a change of the code
        # only if both have the same version.
        versions = [str(each).split()[:1] for each in (self.saved, self.given)]
        why = "has other code" if versions[0] == versions[1] else "is of another version of Python"
        owner = "script" if uses_script else "checkpoint"
        return f"{label} {why} than the one in the checkpoint: the {owner}'s function is used"


class ChangedSettings:
    """The settings that the resuming script has changed.

    For each changed setting this object decides whether the value of the script or the value of the
    checkpoint is used. Create the object before anything is loaded, while the trainer still has the
    settings that the script gives.

    A setting counts as changed if the two scripts, of the saved run and of this run, give different
    values. The value in the saved state of the optimizer does not matter, because a schedule may
    have changed it.

    An override applies to changed settings only. For example, a user writes a new learning rate
    and ``override=("lr",)`` into the script, and then restarts the job many times with this script.
    The first restart uses the new rate, and records it as the setting of the run. The next restarts
    find no change, so they continue from the rate that the schedule has reached.

    Args:
        trainer: the trainer that resumes.
        saved: the result of ``SettingsRecord.state_dict`` in the saved run.
        override: the names of the settings for which a changed value of the script is used.
    """

    def __init__(self, trainer: TrainingEngine, saved: Any, override: Sequence[str] = ()) -> None:
        saved = _dict_or_empty(plain(saved))
        self._trainer = trainer
        self._override = override
        self._script_settings = plain(settings_of(trainer))
        self._script_groups = copied_groups(trainer)
        # The settings that the script of the saved run gave.
        self._saved_given = _dict_or_empty(saved.get("given"))
        # The settings of the saved run after the handlers of STARTED were called.
        self._saved_started = _dict_or_empty(saved.get("started"))
        # The settings that a resume never restores, for example gradient accumulation.
        self._saved_unrestored = _dict_or_empty(saved.get("unrestored"))
        # Maps "STARTED" and "EPOCH_STARTED" to a pair: the settings of the optimizer's groups
        # before the handlers of the event were called, and after.
        self._saved_writes = _dict_or_empty(saved.get("writes"))
        self._schedule: ScriptSchedule | None = None
        # Pairs of a difference and a bool. The bool is True if the script's value is used.
        self._decisions: list[tuple[_Difference, bool]] = []
        # The same pairs for values that handlers have written to the groups of the optimizer. A key
        # is (event, index of the group, name of the setting).
        self._write_decisions: dict[tuple[Any, ...], tuple[_Difference, bool]] = {}
        self._compare()

    def _compare(self) -> None:
        """Finds the changed settings, and the names in ``override`` that apply to them."""
        self._differences = list(self._restored_differences()) if self._saved_given else []
        changed = {each.name for each in self._differences}
        # `override` has no name for `scheduler_at`, the event at which the scheduler steps. If the
        # event has changed, the scheduler counts as changed.
        if self._script_settings["scheduler_at"] != self._saved_given.get("scheduler_at"):
            changed.add("scheduler")
        # If the checkpoint has no record of its settings, each setting in `override` counts as
        # changed.
        self._overridden = {
            each for each in self._override if each in changed or not self._saved_given
        }

    def translate_names(self, renamed: Mapping[str, str]) -> None:
        """Replaces the checkpoint's names of frozen parameters by the names in this trainer.

        The names differ if a module renames its parameters when it loads an older state.

        Args:
            renamed: maps the name of a parameter in this trainer to its name in the checkpoint.
        """
        new_names = dict(zip(renamed.values(), renamed, strict=True))
        for record in (self._saved_given, self._saved_started):
            names = record.get("frozen")
            if isinstance(names, list):
                found = {new_names.get(each, each) for each in names}
                order = [each for each in self._script_settings["frozen"] if each in found]
                record["frozen"] = [*order, *sorted(map(str, found - {*order}))]
        self._compare()

    def _restored_differences(self) -> Iterator[_Difference]:
        """Yields the differences in the settings that the checkpoint restores.

        The saved run recorded each setting twice: when its first checkpoint handler was attached,
        and when the run started. The resuming script's value is read when ``ResumeCheckpoint`` is
        attached. If it equals one of the two recorded values, the setting counts as unchanged,
        because the script may set the value before or after it attaches the handlers.
        """
        for name in ("optimizer", "scheduler", "frozen"):
            script, path, given = self._script_settings[name], (name,), self._saved_given.get(name)
            since_start = list(_differences(self._saved_started.get(name, given), script, path))
            for each in _differences(given, script, path):
                if any(_is_prefix(each.path, other.path) for other in since_start):
                    yield each

    # The following methods are called before anything is loaded.

    def problems(self, optimizer: Mapping[str, Any]) -> Iterator[str]:
        """Yields the reasons why the saved state of the optimizer does not allow an override.

        For example, ``amsgrad`` cannot be turned on if the optimizer was trained without it.

        Args:
            optimizer: the saved ``state_dict`` of the optimizer.
        """
        class_name = self._script_settings["optimizer"]["class"]
        states = list(optimizer.get("state", {}).values())
        for name in sorted(self._overridden):
            needed = _REQUIRED_STATES.get((class_name, name))
            is_on = any(group.get(name) for group in self._script_groups)
            if needed and is_on and states and not any(needed in each for each in states):
                yield (
                    f"`override` must not turn on {name!r}: the {class_name} was trained without "
                    f"it, so its state has no {needed}; leave {name!r} out of `override`"
                )

    def override_states(
        self,
        states: MutableMapping[str, Any],
        files: tuple[str, str],
        modules: Mapping[str, Any],
        moves: Mapping[str, int],
    ) -> None:
        """Writes the script's values of the overridden settings into the states of a checkpoint.

        Args:
            states: the states that were read from the checkpoint. Maps the name of a file to its
                content, for the optimizer and the scheduler.
            files: the names of the optimizer's file and of the scheduler's file.
            modules: maps the name of a module to its entries in ``trainer.pt``. One entry is a list
                of the names of the frozen parameters. If "requires_grad" is overridden, this method
                replaces the list.
            moves: maps "step", "epoch" and "validation" to the numbers of optimizer steps, epochs
                and validations before the checkpoint. The setting ``scheduler_at`` says which of
                these numbers is the number of the scheduler's moves.

        Raises:
            ValueError: the script's schedule cannot be moved to the step of the checkpoint.
        """
        optimizer, scheduler = files
        groups = states[optimizer]["param_groups"] if optimizer in states else []
        # The state of a scheduler contains the rates that the schedule starts from, so the state
        # also changes if only "lr" is overridden.
        if self._overridden & {"scheduler", "lr"}:
            state = states.pop(scheduler, None)
            schedule = ScriptSchedule(self._trainer, self._script_groups, self._base_rates(groups))
            if "scheduler" in self._overridden:
                at = self._script_settings["scheduler_at"]
                is_counted = at == self._saved_given.get("scheduler_at")
                state = schedule.state_after(
                    state,
                    moves.get(at, 0),
                    is_counted=is_counted,
                    keeps_rates="lr" in self._override,
                )
            elif state is not None:
                state = schedule.rebased_state(state)
            if state is not None:
                states[scheduler] = state
            self._schedule = schedule
        self.override_groups(groups)
        if "requires_grad" in self._overridden:
            for name, about in modules.items():
                names = [
                    each for each in self._script_settings["frozen"] if each.startswith(f"{name}.")
                ]
                about["flags"]["frozen"] = [each.removeprefix(f"{name}.") for each in names]

    def _base_rates(self, groups: ParamGroups) -> list[Any]:
        """Returns the learning rate from which the checkpoint's schedule started, for each group.

        The rate is the ``initial_lr`` that torch's schedulers write to the group. If the group has
        no ``initial_lr``, the rate is the one that the script of the saved run gave. If the
        checkpoint has neither rate, the result for the group is None.
        """
        given = _dict_or_empty(self._saved_given.get("optimizer")).get("groups", [])
        # The form of the record was not checked when it was read, so the types are checked here.
        groups_given = given if isinstance(given, list) else []
        known = [_dict_or_empty(each).get("lr") for each in groups_given]
        bases = (known + [None] * len(self._script_groups))[: len(self._script_groups)]
        bases = [each if is_number(each) else None for each in bases]
        for index, group in enumerate(groups[: len(bases)]):
            bases[index] = group.get("initial_lr", bases[index])
        return bases

    def override_groups(self, groups: ParamGroups) -> None:
        """Writes the script's values of the overridden settings into the groups of an optimizer."""
        for index, (group, script) in enumerate(zip(groups, self._script_groups, strict=False)):
            # A schedule keeps some values in the groups. If only the script has a schedule, the
            # checkpoint's groups lack these values, and get them here.
            only_here = (SCHEDULE_KEYS | {"initial_lr"}) - group.keys()
            for name in script.keys() & (self._overridden - {"lr"} | only_here):
                group[name] = copy.deepcopy(script[name])
            if self._schedule is not None:
                self._schedule.write_group(group, index, keeps_rate="lr" not in self._overridden)

    # The following methods are called after everything is loaded.

    def settle(self) -> None:
        """Notes for each difference whether the script's value is in use now.

        The method also updates the trainer's ``SettingsRecord``, which later checkpoints save. The
        record gets the script's value of each setting for which this value is in use, and the value
        of the saved run for all other settings.
        """
        effective = plain(settings_of(self._trainer))
        given = copy.deepcopy(self._saved_given or effective)
        started = copy.deepcopy(self._saved_started)
        self._decisions = []
        for each in self._differences:
            uses_script = _is_same(_value_at(effective, each.path), each.given)
            is_missing = each.path == ("scheduler",) and None in (each.saved, each.given)
            # If only one of the runs has a scheduler, the part "scheduler" of the report says so,
            # and the part "settings" does not repeat it.
            if not is_missing or "scheduler" in self._overridden:
                self._decisions.append((each, uses_script))
            for settings in (given, started) if uses_script else ():
                _set_value_at(settings, each.path, each.given)
        record = settings_record(self._trainer)
        record.given, record.started = given, started or None
        record.writes = copy.deepcopy(self._saved_writes)

    def compare_writes(self, groups: ParamGroups, event: str) -> None:
        """Finds the values that handlers have written to the optimizer's groups since the resume.

        For example, a handler of STARTED sets a learning rate. On each resume the handler is called
        again, and replaces the restored rate. After this method, the caller restores the rate: it
        writes ``groups`` to the optimizer. For the report, this method notes each written value
        that the saved run did not write, or whose setting is overridden.

        Args:
            groups: the settings from the checkpoint, for each group. If handlers have written a
                setting that ``override`` names, the method puts the written value into ``groups``,
                so that the caller keeps this value.
            event: "STARTED" or "EPOCH_STARTED", the event whose handlers were called last.
        """
        record, present = settings_record(self._trainer), copied_groups(self._trainer)
        handlers = handlers_with_state(self._trainer).values()
        if any(isinstance(each, _SCHEDULERS) for each in handlers):
            # A scheduler computes the rates from its own state, which is restored too. So the rates
            # that it has written until now are not compared.
            present = []
        for index, (group, now) in enumerate(zip(groups, present, strict=False)):
            for name in sorted(group.keys() & now.keys() - _IMPLEMENTATION_OPTIONS):
                restored, written = plain(group[name]), plain(now[name])
                # The values in the saved run, before and after this event's handlers were called.
                before, after = (
                    _value_at(self._saved_writes, (event, n, index, name)) for n in (0, 1)
                )
                is_repeated = _is_repeated_write(before, after, restored, written)
                is_new = name in self._overridden or not is_repeated
                if _is_same(restored, written) or not is_new:
                    continue
                uses_script = name in self._override
                path = ("optimizer", "groups", index, name)
                difference = _Difference(path, restored, written)
                self._write_decisions[event, index, name] = difference, uses_script
                if uses_script:
                    group[name] = copy.deepcopy(now[name])
                    _set_value_at(record.writes, (event, 1, index, name), written)

    def part(self) -> ResumedPart:
        """Returns the part "settings" of the report."""
        if not self._saved_given:
            return ResumedPart("unknown", "the checkpoint has no record of the settings of its run")
        now = plain(unrestored_settings_of(self._trainer))
        unrestored = [
            each
            for each in _differences(self._saved_unrestored, now, ())
            if each.path
            and each.path[0] not in _COMPARED_ELSEWHERE
            # ``scheduler_at`` is None in a run without a scheduler. If only one run has a
            # scheduler, the part "scheduler" of the report says so.
            and (each.path != ("scheduler_at",) or None not in (each.saved, each.given))
        ]
        decided = [*self._decisions, *((each, True) for each in unrestored)]
        reasons = _sentences(decided, len(self._script_groups))
        for event in dict.fromkeys(event for event, *_ in self._write_decisions):
            written = [each for (at, *_), each in self._write_decisions.items() if at == event]
            sentences = _sentences(written, len(self._script_groups))
            reasons += [
                f"{each} (written before the handlers of {event} had returned)"
                for each in sentences
            ]
        if not reasons:
            return EXACT
        everything = [*decided, *self._write_decisions.values()]
        available = {"scheduler", "requires_grad", *itertools.chain(*self._script_groups)}
        unused = dict.fromkeys(each.name for each, uses_script in everything if not uses_script)
        unused = dict.fromkeys(name for name in unused if name in available)
        if unused:
            names = "".join(f'"{name}", ' for name in unused)
            # A tuple with one element keeps its comma: ("lr",).
            names = names.removesuffix(" " if len(unused) == 1 else ", ")
            reasons.append(f"ResumeCheckpoint(override=({names})) uses the script's values")
        if any(uses_script for _, uses_script in everything):
            reasons.append("from here on the run differs from an uninterrupted run")
        return ResumedPart("changed", "; ".join(reasons))


def check_override(trainer: TrainingEngine, override: Sequence[str]) -> None:
    """Raises a ValueError for a name in ``override`` that is not the name of a setting.

    The valid names are "scheduler", "requires_grad" and the settings that all groups of the
    optimizer have.
    """
    groups = trainer.optimizer.param_groups
    common = [name for name in groups[0] if all(name in group for group in groups)]
    names = ["scheduler", "requires_grad", *(name for name in common if name not in _EXCLUDED_KEYS)]
    for name in override:
        if name not in names:
            # Accelerate's wrapper has the optimizer as its attribute ``optimizer``.
            class_name = type(getattr(trainer.optimizer, "optimizer", trainer.optimizer)).__name__
            raise ValueError(
                f"`override` must name settings that the optimizer has, got {name!r} with "
                f"{class_name}: {did_you_mean(name, names)}"
            )


# Keys of an optimizer's group that ``override`` cannot name: they are not settings, or they belong
# to the schedule.
_EXCLUDED_KEYS = {"params", "param_names", "initial_lr"} | SCHEDULE_KEYS


def _differences(saved: Any, given: Any, path: tuple[Any, ...]) -> Iterator[_Difference]:
    """Yields the differences between two values, which are plain data such as lists and dicts.

    Two dicts are compared key by key, unless their entries "class" differ. Two lists of dicts are
    compared element by element if they have the same length. So if only a learning rate differs,
    the path of the difference is ("optimizer", "groups", 0, "lr") and not ("optimizer",). All other
    values are compared as a whole, for example the settings of a StepLR and of a OneCycleLR.

    Args:
        saved: the value of the saved run.
        given: the value that the resuming script gives.
        path: the keys that lead to the two values.
    """
    if (
        isinstance(saved, dict)
        and isinstance(given, dict)
        and saved.get("class") == given.get("class")
    ):
        # The two dicts may describe functions, with the entries "function" (the name) and "code" (a
        # digest). Functions with a digest are compared by the digest, and not by the name.
        names = {"function"} if "code" in saved and "code" in given else set()
        for key in sorted({*saved, *given} - _IMPLEMENTATION_OPTIONS - names):
            yield from _differences(saved.get(key), given.get(key), (*path, key))
    elif _are_lists_of_dicts(saved, given):
        for index, pair in enumerate(zip(saved, given, strict=True)):
            yield from _differences(*pair, (*path, index))
    elif not _is_same(saved, given):
        yield _Difference(path, saved, given)


def _are_lists_of_dicts(*values: Any) -> bool:
    are_lists = all(isinstance(each, list) for each in values)
    is_same_length = are_lists and len({len(each) for each in values}) == 1
    return is_same_length and all(isinstance(e, dict) for each in values for e in each)


def _is_same(one: Any, other: Any) -> bool:
    # `repr` is compared first, because NaN is not equal to itself.
    return repr(one) == repr(other) or bool(one == other)


def _is_repeated_write(before: Any, after: Any, restored: Any, written: Any) -> bool:
    """Returns whether the handlers of an event repeat a write that they made in the saved run.

    A write is repeated if the handlers write the same value again, or if they multiply the value by
    the same factor.

    Args:
        before: the value in the saved run, before the handlers were called.
        after: the value in the saved run, after the handlers were called; None if no value was
            recorded.
        restored: the value in this run, before the handlers were called. This is the value from the
            checkpoint.
        written: the value in this run, after the handlers were called.
    """
    if after is None or _is_same(before, after):
        return False
    if _is_same(after, written):
        return True
    numbers = (before, after, restored, written)
    return all(map(is_number, numbers)) and isclose(after * restored, written * before)


def _is_prefix(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Returns whether two paths are equal, or the longer path begins with the shorter one."""
    return all(mine == theirs for mine, theirs in zip(one, other, strict=False))


def _dict_or_empty(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _value_at(data: Any, path: tuple[Any, ...]) -> Any:
    """Returns the value at a path of keys in plain data; None if there is no such value."""
    for key in path:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _set_value_at(data: Any, path: tuple[Any, ...], value: Any) -> None:
    """Sets the value at a path of keys in plain data.

    Does nothing if a dict or list on the path is missing, or if a list is too short.
    """
    *parents, last = path
    container = _value_at(data, tuple(parents))
    is_item = isinstance(container, list) and isinstance(last, int) and last < len(container)
    if is_item or isinstance(container, dict):
        container[last] = value


def _sentences(decided: Iterable[tuple[_Difference, bool]], groups: int) -> list[str]:
    """Returns sentences for the report. Groups with the same difference share one sentence.

    Args:
        decided: pairs of a difference and a bool. The bool is True if the script's value is used.
        groups: the number of groups that the optimizer has. A sentence about all groups does not
            list their indices.
    """
    alike: dict[str, tuple[_Difference, bool, list[int]]] = {}
    for each, uses_script in decided:
        text = each.sentence("", uses_script=uses_script)
        *_, indices = alike.setdefault(text, (each, uses_script, []))
        indices += [] if each.group is None else [each.group]
    return [
        each.sentence(
            "" if len(indices) in (0, groups) else _group_phrase(indices), uses_script=uses_script
        )
        for each, uses_script, indices in alike.values()
    ]


def _group_phrase(indices: Sequence[int]) -> str:
    return f" of group{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"


def _format_value(value: Any) -> str:
    """Returns plain data as text for a message.

    A dict that describes a class or a function becomes the name of the class or function. A long
    list of names is cut.
    """
    if isinstance(value, dict):
        name = value.get("class", value.get("function"))
        parts = (f"{key}={each}" for key, each in value.items() if each is not None)
        return str(name) if name is not None else ", ".join(parts)
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return summarize_names(value)
    return "none" if value is None or value == [] else str(value)
