"""The settings that a resuming script gives, compared with those of the checkpoint's run.

The checkpoint's optimizer, schedule and frozen parameters replace the script's, unless
``ResumeCheckpoint(override=…)`` names them. Settings that no state holds, for example gradient
accumulation and clipping, are the script's. Either way the resume report names each difference,
with both values.
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

# Options that choose how an optimizer computes the same numbers: another choice is no difference.
_IMPLEMENTATION_OPTIONS = {"capturable", "differentiable", "foreach", "fused"}

# Compared elsewhere: the data by ``Feed.differences``, the number of processes by
# ``ResumeCheckpoint`` when it chooses a checkpoint.
_COMPARED_ELSEWHERE = {"data", "processes"}

# The state of each parameter that an optimizer needs where a setting is on. It creates that state
# at its first step only: a setting turned on later raises a KeyError in ``step()``.
_REQUIRED_STATES = {
    ("Adam", "amsgrad"): "max_exp_avg_sq",
    ("AdamW", "amsgrad"): "max_exp_avg_sq",
    ("RMSprop", "centered"): "grad_avg",
    ("RMSprop", "momentum"): "momentum_buffer",
}

_OVERRIDE_NAMES = {"scheduler": "scheduler", "frozen": "requires_grad"}


class _Difference(NamedTuple):
    """A setting that differs between the checkpoint's run and the script that resumes.

    Attributes:
        path: the keys that lead to the setting in ``settings_of``.
        saved: the value of the checkpoint's run.
        given: the value that the script gives.
    """

    path: tuple[Any, ...]
    saved: Any
    given: Any

    @property
    def name(self) -> str:
        """The name in ``override`` that lets the script decide this setting."""
        return _OVERRIDE_NAMES.get(self.path[0], str(self.path[-1]))

    @property
    def label(self) -> str:
        """The setting as messages name it: "optimizer: lr", "scheduler: T_max", "accumulation"."""
        first, *others = self.path
        if others[:1] == ["groups"] and len(others) > 2:
            others = others[2:]  # the message names the groups at its end: see _sentences
        parts = [f"[{each}]" if isinstance(each, int) else f".{each}" for each in others]
        name = "".join(parts).removeprefix(".")
        first = {"frozen": "frozen parameters"}.get(first, first)
        return f"{first}: {name}" if name else str(first)

    @property
    def group(self) -> int | None:
        """The index of the optimizer's group that has the setting; None for other settings."""
        is_of_group = self.path[:2] == ("optimizer", "groups") and len(self.path) > 3
        return self.path[2] if is_of_group else None

    def sentence(self, groups: str, *, uses_script: bool) -> str:
        """Returns the sentence of the report, which says which of the two values is used.

        Args:
            groups: the phrase that names the optimizer's groups, if not all of them differ.
            uses_script: whether the script's value is used, and not the checkpoint's.
        """
        if self.path[-1] == "code":
            return self._code_sentence(uses_script)
        saved, given = _format_value(self.saved), _format_value(self.given)
        if uses_script:
            return f"{self.label}{groups} {given} as given is used, {saved} in the checkpoint"
        return f"{self.label}{groups} {given} given, {saved} of the checkpoint is used"

    def _code_sentence(self, uses_script: bool) -> str:
        label = self.label.removesuffix(".code")
        # A digest of code begins with the version of Python: digests of two versions always differ.
        versions = [str(each).split()[:1] for each in (self.saved, self.given)]
        why = "has other code" if versions[0] == versions[1] else "is of another version of Python"
        winner = "as given" if uses_script else "of the checkpoint"
        return f"{label} {why} than the one in the checkpoint: the function {winner} is used"


class ChangedSettings:
    """The settings that the script changes, and whether its value or the checkpoint's is used.

    Create one before anything is loaded, while the trainer has the settings that the script gives.
    A setting that the scripts of both runs give alike is not changed, whatever value it has in the
    optimizer by now. An override leaves such a setting alone: a job that is restarted many times
    with the same override does not reset its learning rate each time.

    Args:
        trainer: the trainer that resumes.
        saved: the ``state_dict`` of the ``SettingsRecord`` of the checkpoint's run.
        override: the names of the settings that the script decides.
    """

    def __init__(self, trainer: TrainingEngine, saved: Any, override: Sequence[str] = ()) -> None:
        saved = _dict_or_empty(plain(saved))
        self._trainer = trainer
        self._override = override
        self._script_settings = plain(settings_of(trainer))
        self._script_groups = copied_groups(trainer)
        self._saved_given = _dict_or_empty(saved.get("given"))
        self._saved_started = _dict_or_empty(saved.get("started"))
        self._saved_unrestored = _dict_or_empty(saved.get("unrestored"))
        self._saved_writes = _dict_or_empty(saved.get("writes"))
        self._schedule: ScriptSchedule | None = None
        # Differences, each with whether the script's value is used.
        self._decisions: list[tuple[_Difference, bool]] = []
        # The same for values that handlers write, by event, group and name of the setting.
        self._write_decisions: dict[tuple[Any, ...], tuple[_Difference, bool]] = {}
        self._compare()

    def _compare(self) -> None:
        self._differences = list(self._restored_differences()) if self._saved_given else []
        changed = {each.name for each in self._differences}
        # The events that move a schedule are part of the schedule, and have no name of their own.
        if self._script_settings["scheduler_at"] != self._saved_given.get("scheduler_at"):
            changed.add("scheduler")
        # A checkpoint without a record of its settings cannot show what is unchanged.
        self._overridden = {
            each for each in self._override if each in changed or not self._saved_given
        }

    def translate_names(self, renamed: Mapping[str, str]) -> None:
        """Translates the names of frozen parameters that a module's own loading renames.

        Args:
            renamed: the names of parameters in the checkpoint, by their names in this trainer.
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

        A script may write a setting between the factory and the run: some of these writes come
        before this comparison, others after it. So a value counts as unchanged if the checkpoint's
        run had it either when its first handler was attached or when it started.
        """
        for name in ("optimizer", "scheduler", "frozen"):
            script, path, given = self._script_settings[name], (name,), self._saved_given.get(name)
            since_start = list(_differences(self._saved_started.get(name, given), script, path))
            for each in _differences(given, script, path):
                if any(_is_prefix(each.path, other.path) for other in since_start):
                    yield each

    # Called before anything is loaded

    def problems(self, optimizer: Mapping[str, Any]) -> Iterator[str]:
        """Yields why the script's settings cannot be used with the state of the optimizer."""
        class_name = self._script_settings["optimizer"]["class"]
        states = list(optimizer.get("state", {}).values())
        for name in sorted(self._overridden):
            needed = _REQUIRED_STATES.get((class_name, name))
            is_on = any(group.get(name) for group in self._script_groups)
            if needed and is_on and states and not any(needed in each for each in states):
                yield (
                    f"{class_name} was trained without {name}, and with it needs a state, "
                    f"{needed}, from its first step on: leave {name!r} out of `override`"
                )

    def override_states(
        self,
        states: MutableMapping[str, Any],
        files: tuple[str, str],
        modules: Mapping[str, Any],
        moves: Mapping[str, int],
    ) -> None:
        """Writes the settings that the script decides into the states read from a checkpoint.

        Args:
            states: the states of optimizer and scheduler by their files.
            files: the file of the optimizer and that of the scheduler.
            modules: what the checkpoint says of each module besides its tensors.
            moves: how many times a scheduler was stepped so far, by ``scheduler_at``.

        Raises:
            ValueError: the script's schedule cannot be moved that far.
        """
        optimizer, scheduler = files
        groups = states[optimizer]["param_groups"] if optimizer in states else []
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
        """Returns the rates that the checkpoint's schedule started from; None where not known.

        ``initial_lr``, which torch's schedulers write, is the best source. Schedules without one
        start from the rate that the run was given.
        """
        given = _dict_or_empty(self._saved_given.get("optimizer")).get("groups", [])
        # Plain data of a checkpoint may have any form: it is checked, not trusted.
        groups_given = given if isinstance(given, list) else []
        known = [_dict_or_empty(each).get("lr") for each in groups_given]
        bases = (known + [None] * len(self._script_groups))[: len(self._script_groups)]
        bases = [each if is_number(each) else None for each in bases]
        for index, group in enumerate(groups[: len(bases)]):
            bases[index] = group.get("initial_lr", bases[index])
        return bases

    def override_groups(self, groups: ParamGroups) -> None:
        """Writes the settings that the script decides into the groups of an optimizer."""
        for index, (group, script) in enumerate(zip(groups, self._script_groups, strict=False)):
            # If only the script has a schedule, the keys that it keeps in the groups are missing.
            only_here = (SCHEDULE_KEYS | {"initial_lr"}) - group.keys()
            for name in script.keys() & (self._overridden - {"lr"} | only_here):
                group[name] = copy.deepcopy(script[name])
            if self._schedule is not None:
                self._schedule.write_group(group, index, keeps_rate="lr" not in self._overridden)

    # Called after everything is loaded

    def settle(self) -> None:
        """Notes whose values are in use now, and records these as given for later checkpoints."""
        effective = plain(settings_of(self._trainer))
        given = copy.deepcopy(self._saved_given or effective)
        started = copy.deepcopy(self._saved_started)
        self._decisions = []
        for each in self._differences:
            uses_script = _is_same(_value_at(effective, each.path), each.given)
            is_missing = each.path == ("scheduler",) and None in (each.saved, each.given)
            # The part "scheduler" of the report names a scheduler that only one of the runs has.
            if not is_missing or "scheduler" in self._overridden:
                self._decisions.append((each, uses_script))
            for settings in (given, started) if uses_script else ():
                _set_value_at(settings, each.path, each.given)
        record = settings_record(self._trainer)
        record.given, record.started = given, started or None
        record.writes = copy.deepcopy(self._saved_writes)

    def compare_writes(self, groups: ParamGroups, event: str) -> None:
        """Compares what the handlers of ``event`` have written to the optimizer's groups.

        These writes come after the checkpoint was loaded. The settings are restored once more
        afterwards, from ``groups``, so that a handler which sets a rate at STARTED does not set it
        again on each resume.

        Args:
            groups: the settings that are about to be restored. A written value that the script
                decides replaces the one in them.
            event: the name of the event.
        """
        record, present = settings_record(self._trainer), copied_groups(self._trainer)
        handlers = handlers_with_state(self._trainer).values()
        if any(isinstance(each, _SCHEDULERS) for each in handlers):
            # A scheduler among the handlers computes the rates from its own state, which is
            # restored too: what it has written until now says nothing of the script.
            present = []
        for index, (group, now) in enumerate(zip(groups, present, strict=False)):
            for name in sorted(group.keys() & now.keys() - _IMPLEMENTATION_OPTIONS):
                restored, written = plain(group[name]), plain(now[name])
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
            return ResumedPart("unknown", "the checkpoint does not say what its run was given")
        now = plain(unrestored_settings_of(self._trainer))
        unrestored = [
            each
            for each in _differences(self._saved_unrestored, now, ())
            if each.path
            and each.path[0] not in _COMPARED_ELSEWHERE
            # Without a scheduler there is nothing that ``scheduler_at`` could set.
            and (each.path != ("scheduler_at",) or None not in (each.saved, each.given))
        ]
        decided = [*self._decisions, *((each, True) for each in unrestored)]
        reasons = _sentences(decided, len(self._script_groups))
        for event in dict.fromkeys(event for event, *_ in self._write_decisions):
            written = [each for (at, *_), each in self._write_decisions.items() if at == event]
            sentences = _sentences(written, len(self._script_groups))
            reasons += [f"{each}, written until {event}" for each in sentences]
        if not reasons:
            return EXACT
        everything = [*decided, *self._write_decisions.values()]
        available = {"scheduler", "requires_grad", *itertools.chain(*self._script_groups)}
        unused = dict.fromkeys(each.name for each, uses_script in everything if not uses_script)
        unused = dict.fromkeys(name for name in unused if name in available)
        if unused:
            names = "".join(f'"{name}", ' for name in unused)
            names = names.removesuffix(" " if len(unused) == 1 else ", ")  # a tuple of one: ("lr",)
            reasons.append(f"ResumeCheckpoint(override=({names})) lets the script win")
        if any(uses_script for _, uses_script in everything):
            reasons.append("from here on the run differs from one that was never interrupted")
        return ResumedPart("changed", "; ".join(reasons))


def check_override(trainer: TrainingEngine, override: Sequence[str]) -> None:
    """Raises a ValueError for names in ``override`` that the trainer's optimizer does not have."""
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


# Keys of an optimizer's group that are not settings, or follow from the schedule's.
_EXCLUDED_KEYS = {"params", "param_names", "initial_lr"} | SCHEDULE_KEYS


def _differences(saved: Any, given: Any, path: tuple[Any, ...]) -> Iterator[_Difference]:
    """Yields the differences of two pieces of plain data, the innermost ones where possible.

    Two dicts are compared key by key if they are of the same class, two lists of dicts element by
    element if they have the same length. All else differs as a whole.
    """
    if (
        isinstance(saved, dict)
        and isinstance(given, dict)
        and saved.get("class") == given.get("class")
    ):
        # The name of a function does not matter where its code is compared.
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
    return repr(one) == repr(other) or bool(one == other)  # NaN is not equal to itself


def _is_repeated_write(before: Any, after: Any, restored: Any, written: Any) -> bool:
    """Returns whether a handler repeats a write of the checkpoint's run.

    Either it writes the same value again, or it scales the present value by the same factor.

    Args:
        before: the value before the handlers in the checkpoint's run.
        after: the value after them in the checkpoint's run; None if that was not recorded.
        restored: the value in the checkpoint, which the handlers found now.
        written: the value after the handlers now.
    """
    if after is None or _is_same(before, after):
        return False
    if _is_same(after, written):
        return True
    numbers = (before, after, restored, written)
    return all(map(is_number, numbers)) and isclose(after * restored, written * before)


def _is_prefix(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Returns whether one of two paths is the beginning of the other, or the same."""
    return all(mine == theirs for mine, theirs in zip(one, other, strict=False))


def _dict_or_empty(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _value_at(data: Any, path: tuple[Any, ...]) -> Any:
    """Returns the value at a path of keys in plain data; None without one."""
    for key in path:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _set_value_at(data: Any, path: tuple[Any, ...], value: Any) -> None:
    """Sets the value at a path of keys in plain data, if the container for it is there."""
    *parents, last = path
    container = _value_at(data, tuple(parents))
    is_item = isinstance(container, list) and isinstance(last, int) and last < len(container)
    if is_item or isinstance(container, dict):
        container[last] = value


def _sentences(decided: Iterable[tuple[_Difference, bool]], groups: int) -> list[str]:
    """Returns the sentences of the report; groups with the same difference share a sentence.

    Args:
        decided: the differences, each with whether the script's value is used.
        groups: the number of the optimizer's groups. A sentence that is true of all of them does
            not list them.
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

    A class or a function becomes its name, and a long list of names is cut.
    """
    if isinstance(value, dict):
        name = value.get("class", value.get("function"))
        parts = (f"{key}={each}" for key, each in value.items() if each is not None)
        return str(name) if name is not None else ", ".join(parts)
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return summarize_names(value)
    return "none" if value is None or value == [] else str(value)
