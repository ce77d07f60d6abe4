"""The settings that a resuming script gives, compared with those of the checkpoint's run.

The checkpoint's optimizer, schedule and frozen parameters replace the script's, unless
``ResumeCheckpoint(override=…)`` names them. What no state holds, accumulation and clipping for
instance, is the script's. Either way the report names each difference, with both values.
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

from ignite_hooks.checkpoint.members import handlers_with_state
from ignite_hooks.checkpoint.report import EXACT
from ignite_hooks.checkpoint.report import ResumedPart
from ignite_hooks.checkpoint.report import some
from ignite_hooks.checkpoint.schedule import ScriptSchedule
from ignite_hooks.checkpoint.settings import OF_SCHEDULE
from ignite_hooks.checkpoint.settings import Rates
from ignite_hooks.checkpoint.settings import plain
from ignite_hooks.checkpoint.settings import rates_of
from ignite_hooks.checkpoint.settings import settings_of
from ignite_hooks.checkpoint.settings import settings_record
from ignite_hooks.checkpoint.settings import unrestored_settings_of
from ignite_hooks.core.rules import close_to
from ignite_hooks.core.rules import is_number
from ignite_hooks.core.training_engine import TrainingEngine

__all__ = ["ChangedSettings", "check_override"]

_SCHEDULERS = (BaseParamScheduler, ParamGroupScheduler, LRScheduler)

# They choose how the same numbers are computed.
_IMPLEMENTATION = {"capturable", "differentiable", "foreach", "fused"}

# Compared by others: the data by its feed, the processes when a checkpoint is chosen.
_COMPARED_ELSEWHERE = {"data", "processes"}

# What an optimizer expects in the state of a parameter, once it has one, where a setting is on.
_STATE_FOR = {
    ("Adam", "amsgrad"): "max_exp_avg_sq",
    ("AdamW", "amsgrad"): "max_exp_avg_sq",
    ("RMSprop", "centered"): "grad_avg",
    ("RMSprop", "momentum"): "momentum_buffer",
}

_NAMES = {"scheduler": "scheduler", "frozen": "requires_grad"}


class _Difference(NamedTuple):
    """A setting that differs: the keys that lead to it, its value then, and the one given now."""

    path: tuple[Any, ...]
    then: Any
    now: Any

    @property
    def name(self) -> str:
        """The name in ``override`` that lets the script win."""
        return _NAMES.get(self.path[0], str(self.path[-1]))

    @property
    def label(self) -> str:
        """The setting for people: "optimizer: lr", "scheduler: T_max", "accumulation"."""
        first, *others = self.path
        if others[:1] == ["groups"] and len(others) > 2:
            others = others[2:]
        parts = [f"[{each}]" if isinstance(each, int) else f".{each}" for each in others]
        name = "".join(parts).removeprefix(".")
        first = {"frozen": "frozen parameters"}.get(first, first)
        return f"{first}: {name}" if name else str(first)

    @property
    def group(self) -> int | None:
        """The number of the optimizer's group that the setting is of, if it is of one."""
        is_of_group = self.path[:2] == ("optimizer", "groups") and len(self.path) > 3
        return self.path[2] if is_of_group else None

    def sentence(self, of_groups: str, *, is_ours: bool) -> str:
        """Says who wins, with both values."""
        if self.path[-1] == "code":
            return self._sentence_of_code(is_ours)
        then, now = _shown(self.then), _shown(self.now)
        if is_ours:
            return f"{self.label}{of_groups} {now} as given is used, {then} in the checkpoint"
        return f"{self.label}{of_groups} {now} given, {then} of the checkpoint is used"

    def _sentence_of_code(self, is_ours: bool) -> str:
        label = self.label.removesuffix(".code")
        versions = [str(each).split()[:1] for each in (self.then, self.now)]
        why = "has other code" if versions[0] == versions[1] else "is of another version of Python"
        winner = "as given" if is_ours else "of the checkpoint"
        return f"{label} {why} than the one in the checkpoint: the function {winner} is used"


class ChangedSettings:
    """The settings that are others than in the checkpoint's run, and who wins.

    To be made before anything is loaded: what the trainer has then is what the script gives. A
    setting that both runs were given alike is no change, whatever it has become meanwhile; so an
    override does nothing to it, and a job that is started again and again does not go back to the
    beginning each time.

    Args:
        trainer: the trainer that resumes.
        saved: the ``state_dict`` of the ``SettingsRecord`` of the checkpoint's run.
        override: the names of the settings that the script decides.
    """

    def __init__(self, trainer: TrainingEngine, saved: Any, override: Sequence[str] = ()) -> None:
        saved = _mapping(plain(saved))
        self._trainer = trainer
        self._override = override
        self._asked = plain(settings_of(trainer))
        self._script = rates_of(trainer)
        self._given = _mapping(saved.get("given"))
        self._started = _mapping(saved.get("started"))
        self._unrestored = _mapping(saved.get("unrestored"))
        self._writes = _mapping(saved.get("writes"))
        self._schedule: ScriptSchedule | None = None
        self._decided: list[tuple[_Difference, bool]] = []  # and whether the script's is used
        self._written: dict[tuple[Any, ...], tuple[_Difference, bool]] = {}  # by handlers
        self._compare()

    def _compare(self) -> None:
        self._differences = list(self._of_restored()) if self._given else []
        changed = {each.name for each in self._differences}
        if self._asked["scheduler_at"] != self._given.get("scheduler_at"):
            changed.add("scheduler")
        self._overridden = {each for each in self._override if each in changed or not self._given}

    def follow_names(self, renamed: Mapping[str, str]) -> None:
        """Takes parameters for the same that a module's own loading renames.

        Args:
            renamed: how the parameters were called, by their names now.
        """
        now = dict(zip(renamed.values(), renamed, strict=True))
        for record in (self._given, self._started):
            names = record.get("frozen")
            if isinstance(names, list):
                found = {now.get(each, each) for each in names}
                order = [each for each in self._asked["frozen"] if each in found]
                record["frozen"] = [*order, *sorted(map(str, found - {*order}))]
        self._compare()

    def _of_restored(self) -> Iterator[_Difference]:
        """Gives the differences in what the checkpoint restores.

        A script may write a setting between the factory and the run. It does not differ if the
        other run had it when it started.
        """
        for name in ("optimizer", "scheduler", "frozen"):
            asked, path, given = self._asked[name], (name,), self._given.get(name)
            since = list(_differences(self._started.get(name, given), asked, path))
            for each in _differences(given, asked, path):
                if any(_overlap(each.path, other.path) for other in since):
                    yield each

    # Before anything is loaded

    def problems(self, optimizer: Mapping[str, Any]) -> Iterator[str]:
        """Gives what keeps the script's settings from being used with the optimizer's state."""
        kind = self._asked["optimizer"]["class"]
        states = list(optimizer.get("state", {}).values())
        for name in sorted(self._overridden):
            needed = _STATE_FOR.get((kind, name))
            is_on = any(group.get(name) for group in self._script)
            if needed and is_on and states and not any(needed in each for each in states):
                yield (
                    f"{kind} was trained without {name}, and with it needs a state, {needed}, from "
                    f"its first step on: leave {name!r} out of `override`"
                )

    def override_states(
        self,
        states: MutableMapping[str, Any],
        files: tuple[str, str],
        modules: Mapping[str, Any],
        moves: Mapping[str, int],
    ) -> None:
        """Replaces in what was read from a checkpoint what the script decides.

        Args:
            states: the states of optimizer and scheduler by their files.
            files: the file of the optimizer and that of the scheduler.
            modules: what is known of each module besides its tensors.
            moves: how often a scheduler has moved by now, by ``scheduler_at``.

        Raises:
            ValueError: the script's schedule cannot be moved that far.
        """
        optimizer, scheduler = files
        groups = states[optimizer]["param_groups"] if optimizer in states else []
        if self._overridden & {"scheduler", "lr"}:
            state = states.pop(scheduler, None)
            schedule = ScriptSchedule(self._trainer, self._script, self._bases(groups))
            if "scheduler" in self._overridden:
                at = self._asked["scheduler_at"]
                is_counted = at == self._given.get("scheduler_at")
                state = schedule.moved(
                    state,
                    moves.get(at, 0),
                    is_counted=is_counted,
                    keeps_rates="lr" in self._override,
                )
            elif state is not None:
                state = schedule.rebased(state)
            if state is not None:
                states[scheduler] = state
            self._schedule = schedule
        self.override_groups(groups)
        if "requires_grad" in self._overridden:
            for name, about in modules.items():
                names = [each for each in self._asked["frozen"] if each.startswith(f"{name}.")]
                about["flags"]["frozen"] = [each.removeprefix(f"{name}.") for each in names]

    def _bases(self, groups: Rates) -> list[Any]:
        """Returns the rates that the checkpoint's schedule started from; None where not known."""
        given = _mapping(self._given.get("optimizer")).get("groups", [])
        known = [_mapping(each).get("lr") for each in given] if isinstance(given, list) else []
        bases = (known + [None] * len(self._script))[: len(self._script)]
        bases = [each if is_number(each) else None for each in bases]
        for index, group in enumerate(groups[: len(bases)]):
            bases[index] = group.get("initial_lr", bases[index])
        return bases

    def override_groups(self, groups: Rates) -> None:
        """Replaces what the script decides in the groups of a loaded optimizer."""
        for index, (group, script) in enumerate(zip(groups, self._script, strict=False)):
            of_schedule = (OF_SCHEDULE | {"initial_lr"}) - group.keys()  # if it is the only one
            for name in script.keys() & (self._overridden - {"lr"} | of_schedule):
                group[name] = copy.deepcopy(script[name])
            if self._schedule is not None:
                self._schedule.write(group, index, keeps_rate="lr" not in self._overridden)

    # After it

    def settle(self) -> None:
        """Notes what the trainer has now: later checkpoints say that their run was given that."""
        effective = plain(settings_of(self._trainer))
        given, started = copy.deepcopy(self._given or effective), copy.deepcopy(self._started)
        self._decided = []
        for each in self._differences:
            is_ours = _is_same(_at(effective, each.path), each.now)
            is_missing = each.path == ("scheduler",) and None in (each.then, each.now)
            if not is_missing or "scheduler" in self._overridden:  # else another part says so
                self._decided.append((each, is_ours))
            for settings in (given, started) if is_ours else ():
                _put(settings, each.path, each.now)
        record = settings_record(self._trainer)
        record.given, record.started = given, started or None
        record.writes = copy.deepcopy(self._writes)

    def look_at_writes(self, groups: Rates, event: str) -> None:
        """Compares what the optimizer has when the handlers of ``event`` have returned.

        Args:
            groups: the settings that are about to be restored. What the script decides is written
                to them.
            event: the name of the event.
        """
        record, present = settings_record(self._trainer), rates_of(self._trainer)
        held = handlers_with_state(self._trainer).values()
        if any(isinstance(each, _SCHEDULERS) for each in held):
            present = []  # its state, which it writes from, is restored too
        for index, (group, now) in enumerate(zip(groups, present, strict=False)):
            for name in sorted(group.keys() & now.keys() - _IMPLEMENTATION):
                restored, written = plain(group[name]), plain(now[name])
                before, after = (_at(self._writes, (event, n, index, name)) for n in (0, 1))
                is_repeated = _is_same_write(before, after, restored, written)
                is_new = name in self._overridden or not is_repeated
                if _is_same(restored, written) or not is_new:
                    continue
                is_ours = name in self._override
                path = ("optimizer", "groups", index, name)
                self._written[event, index, name] = _Difference(path, restored, written), is_ours
                if is_ours:
                    group[name] = copy.deepcopy(now[name])
                    _put(record.writes, (event, 1, index, name), written)

    def part(self) -> ResumedPart:
        """Returns what the report says of the settings."""
        if not self._given:
            return ResumedPart("unknown", "the checkpoint does not say what its run was given")
        now = plain(unrestored_settings_of(self._trainer))
        unrestored = [
            each
            for each in _differences(self._unrestored, now, ())
            if each.path
            and each.path[0] not in _COMPARED_ELSEWHERE
            # Without a scheduler there is no such setting.
            and (each.path != ("scheduler_at",) or None not in (each.then, each.now))
        ]
        decided = [*self._decided, *((each, True) for each in unrestored)]
        reasons = _sentences(decided, len(self._script))
        for event in dict.fromkeys(event for event, *_ in self._written):
            written = [each for (of, *_), each in self._written.items() if of == event]
            sentences = _sentences(written, len(self._script))
            reasons += [f"{each}, written until {event}" for each in sentences]
        if not reasons:
            return EXACT
        everything = [*decided, *self._written.values()]
        there = {"scheduler", "requires_grad", *itertools.chain(*self._script)}
        lost = dict.fromkeys(each.name for each, is_ours in everything if not is_ours)
        lost = dict.fromkeys(name for name in lost if name in there)
        if lost:
            names = "".join(f'"{name}", ' for name in lost)
            names = names.removesuffix(" " if len(lost) == 1 else ", ")
            reasons.append(f"ResumeCheckpoint(override=({names})) lets the script win")
        if any(is_ours for _, is_ours in everything):
            reasons.append("from here on the run differs from one that was never interrupted")
        return ResumedPart("changed", "; ".join(reasons))


def check_override(trainer: TrainingEngine, override: Sequence[str]) -> None:
    """Raises a ValueError for names in ``override`` that the trainer's optimizer does not have."""
    groups = trainer.optimizer.param_groups
    there = [name for name in groups[0] if all(name in group for group in groups)]
    names = ["scheduler", "requires_grad", *(name for name in there if name not in _NO_SETTINGS)]
    for name in override:
        if name not in names:
            kind = type(getattr(trainer.optimizer, "optimizer", trainer.optimizer)).__name__
            raise ValueError(
                f"`override` must name settings that the optimizer has, got {name!r} with "
                f"{kind}: {close_to(name, names)}"
            )


_NO_SETTINGS = {"params", "param_names", "initial_lr"} | OF_SCHEDULE


def _differences(then: Any, now: Any, path: tuple[Any, ...]) -> Iterator[_Difference]:
    """Gives what differs in two pieces of plain data, as deep as both are built alike."""
    if isinstance(then, dict) and isinstance(now, dict) and then.get("class") == now.get("class"):
        names = {"function"} if "code" in then and "code" in now else set()
        for key in sorted({*then, *now} - _IMPLEMENTATION - names):
            yield from _differences(then.get(key), now.get(key), (*path, key))
    elif _are_lists_of_dicts(then, now):
        for index, pair in enumerate(zip(then, now, strict=True)):
            yield from _differences(*pair, (*path, index))
    elif not _is_same(then, now):
        yield _Difference(path, then, now)


def _are_lists_of_dicts(*values: Any) -> bool:
    are_lists = all(isinstance(each, list) for each in values)
    is_same_length = are_lists and len({len(each) for each in values}) == 1
    return is_same_length and all(isinstance(e, dict) for each in values for e in each)


def _is_same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other) or bool(one == other)  # NaN is not equal to itself


def _is_same_write(before: Any, after: Any, restored: Any, written: Any) -> bool:
    """Returns whether handlers do what they did then: write this value, or scale by this factor."""
    if after is None or _is_same(before, after):
        return False
    if _is_same(after, written):
        return True
    numbers = (before, after, restored, written)
    return all(map(is_number, numbers)) and isclose(after * restored, written * before)


def _overlap(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Returns whether one path leads to the other."""
    return all(mine == theirs for mine, theirs in zip(one, other, strict=False))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _at(data: Any, path: tuple[Any, ...]) -> Any:
    """Returns what a path leads to in plain data; None if it leads nowhere."""
    for key in path:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _put(data: Any, path: tuple[Any, ...], value: Any) -> None:
    """Writes to plain data, if the path leads somewhere."""
    *way, last = path
    container = _at(data, tuple(way))
    is_item = isinstance(container, list) and isinstance(last, int) and last < len(container)
    if is_item or isinstance(container, dict):
        container[last] = value


def _sentences(decided: Iterable[tuple[_Difference, bool]], groups: int) -> list[str]:
    """Says who wins; once for several groups of the optimizer if it is the same for them."""
    alike: dict[str, tuple[_Difference, bool, list[int]]] = {}
    for each, is_ours in decided:
        *_, of = alike.setdefault(each.sentence("", is_ours=is_ours), (each, is_ours, []))
        of += [] if each.group is None else [each.group]
    return [
        each.sentence("" if len(of) in (0, groups) else _of_groups(of), is_ours=is_ours)
        for each, is_ours, of in alike.values()
    ]


def _of_groups(indices: Sequence[int]) -> str:
    return f" of group{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"


def _shown(value: Any) -> str:
    """Returns plain data for a message: a class or a function by its name, a long list cut."""
    if isinstance(value, dict):
        name = value.get("class", value.get("function"))
        parts = (f"{key}={each}" for key, each in value.items() if each is not None)
        return str(name) if name is not None else ", ".join(parts)
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return some(value)
    return "none" if value is None or value == [] else str(value)
