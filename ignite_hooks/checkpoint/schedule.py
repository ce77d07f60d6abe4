"""Moves the learning rate schedule of the user's script to the step of the checkpoint."""

import copy
import warnings
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.lr_scheduler import CyclicLR
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ignite_hooks.checkpoint.settings import SCHEDULE_KEYS
from ignite_hooks.checkpoint.settings import ParamGroups
from ignite_hooks.checkpoint.settings import plain
from ignite_hooks.core.torch_schedulers import child_states
from ignite_hooks.core.torch_schedulers import nested_schedulers
from ignite_hooks.core.torch_schedulers import with_child_states
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.optim.lr_scheduler import unwrapped_scheduler

__all__ = ["ScriptSchedule"]

# If the state of a scheduler has one of these keys, the scheduler is a CyclicLR or a OneCycleLR,
# which take their learning rates from their arguments.
_OWN_RATE_KEYS = ("max_lrs", "total_steps")
# Keys of learning rates in the groups of an optimizer, besides "lr".
_RATE_KEYS = ("initial_lr", "max_lr", "min_lr")


class ScriptSchedule:
    """The learning rate schedule that the script of a resumed run gives.

    By default a resumed run has the values of the checkpoint. With
    ``ResumeCheckpoint(override=("scheduler",))`` it has the script's schedule: call
    ``state_after``. With ``override=("lr",)`` it has the checkpoint's schedule, which then starts
    from the script's learning rates: call ``rebased_state``. Then call ``write_group`` to write the
    resulting values to each group of the optimizer.

    Create a ``ScriptSchedule`` before anything is loaded into the trainer. ``state_after`` moves
    the trainer's scheduler and copies its state. Before it returns, it restores the scheduler.

    Args:
        trainer: the trainer, with or without a scheduler.
        script: the settings of the optimizer's groups as the script gives them.
        bases: for each group, the rate that the checkpoint's schedule started from; None if the
            rate is not known.
    """

    def __init__(self, trainer: TrainingEngine, script: ParamGroups, bases: Sequence[Any]) -> None:
        self._scheduler = unwrapped_scheduler(trainer.lr_scheduler)
        self._script = script
        self._bases = bases
        # The values of each group after state_after() has moved the script's scheduler; empty if
        # no scheduler was moved.
        self._moved_values: ParamGroups = []
        # `_is_replaced`: state_after() was called. `_is_rebased`: rebased_state() was called.
        # `_had_momentum`: the checkpoint's schedule has changed the momentum too.
        self._is_replaced = self._is_rebased = self._had_momentum = False

    def state_after(
        self, state: Any, moves: int, *, is_counted: bool, keeps_rates: bool
    ) -> dict[str, Any] | None:
        """Returns the state of the script's scheduler at the step of the checkpoint.

        A move is one call of the scheduler's ``step``. The scheduler is moved from its beginning,
        one move after the other. So the rates are the same, bit by bit, as in a run that had this
        schedule from its first step. A ``ReduceLROnPlateau`` begins at the checkpoint with no
        history, because the metrics of the run so far are not known.

        Args:
            state: the state of the checkpoint's scheduler; None if the checkpoint has no scheduler.
            moves: the number of moves to make.
            is_counted: whether the number of moves that ``state`` contains is used instead of
                ``moves``, if it contains one. Pass True only if the script moves its schedule at
                the same events as the run that wrote the checkpoint.
            keeps_rates: whether the script's schedule keeps its own starting rates. If False, it
                starts from the rates that the checkpoint's schedule started from.

        Returns:
            The state; None if the script has no scheduler.

        Raises:
            ValueError: the scheduler has raised an error during the moves, for example because its
                schedule is too short.
        """
        scheduler = self._scheduler
        self._is_replaced, self._had_momentum = True, _has_value_of(state, "cycle_momentum")
        if scheduler is None:
            return None
        if isinstance(scheduler, ReduceLROnPlateau):
            fresh: dict[str, Any] = copy.deepcopy(scheduler.state_dict())
            return fresh
        if is_counted and (reached := _move_count(state)) is not None:
            moves = reached - (_move_count(scheduler.state_dict()) or 0)
        with self._restored_afterwards():
            # A cyclic schedule takes its rates from its arguments, not from the optimizer. So if
            # one of the two schedules is cyclic, the script's schedule keeps its own rates.
            if not (keeps_rates or self._owns_rates or _has_value_of(state, *_OWN_RATE_KEYS)):
                self._start_from_bases()
            try:
                with warnings.catch_warnings():
                    # torch warns if a scheduler is moved before the optimizer's first step.
                    warnings.simplefilter("ignore")
                    for _ in range(moves):
                        scheduler.step()
            except Exception as error:
                raise ValueError(
                    '`override` must name "scheduler" only if the schedule reaches the step of the '
                    f"checkpoint, but the {type(scheduler).__name__} of the script cannot be moved "
                    f"{moves} times ({type(error).__name__}: {error}): make the schedule longer, "
                    'or leave "scheduler" out'
                ) from error
            self._moved_values = [
                self._scheduled_values(*each)
                for each in zip(self._groups, self._script, strict=True)
            ]
            reached_state: dict[str, Any] = copy.deepcopy(scheduler.state_dict())
            return reached_state

    def rebased_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the checkpoint's scheduler state, changed to start from the script's rates.

        The number of moves in the state does not change. ``write_group`` then scales the rate that
        the schedule has reached. For example, if the schedule has lowered 0.1 to 0.01 so far, and
        the script gives 0.02, the reached rate becomes 0.002.
        """
        self._is_rebased = True
        rebased = dict(copy.deepcopy(state))
        if "base_lrs" in rebased:
            rebased["base_lrs"] = [_base_rate(each) for each in self._script]
        inner_states = [self.rebased_state(each) for each in child_states(state)]
        return with_child_states(rebased, inner_states)

    def write_group(self, group: dict[str, Any], index: int, *, keeps_rate: bool) -> None:
        """Writes the values of this schedule to a group of the checkpoint's optimizer.

        Args:
            group: the settings of the group.
            index: the index of the group.
            keeps_rate: whether the group keeps the learning rate of the checkpoint. If
                ``state_after`` has moved the script's scheduler, the group gets the rate of that
                scheduler in any case.
        """
        script, saved_base = self._script[index], self._bases[index]
        if self._is_replaced:
            # The checkpoint's schedule may have left keys that the script's schedule does not have.
            for name in SCHEDULE_KEYS - script.keys():
                group.pop(name, None)
        if self._had_momentum:
            group |= {n: copy.deepcopy(script[n]) for n in ("momentum", "betas") if n in script}
        if self._moved_values:
            group |= copy.deepcopy(self._moved_values[index])
        elif not keeps_rate:
            rate, base = plain(group["lr"]), _base_rate(script)
            # If the schedule has not changed the rate so far, the script's rate is used as it is:
            # the computation below could change its last digit.
            if self._is_rebased and saved_base is not None and plain(saved_base) not in (0, rate):
                base = base * (rate / plain(saved_base))
            group |= {name: copy.deepcopy(script[name]) for name in _RATE_KEYS if name in script}
            group["lr"] = copy.deepcopy(base if self._is_rebased else script["lr"])

    @property
    def _groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self._scheduler.optimizer.param_groups
        return groups

    @property
    def _owns_rates(self) -> bool:
        """Returns whether the script's scheduler takes its learning rates from its arguments.

        Other schedulers take the rates from the optimizer.
        """
        is_cyclic = any(isinstance(each, CyclicLR) for each in nested_schedulers(self._scheduler))
        return is_cyclic or any("max_lr" in group for group in self._groups)

    def _start_from_bases(self) -> None:
        """Makes the script's schedule start from the first rates of the checkpoint's schedule."""
        for group, base in zip(self._groups, self._bases, strict=False):
            script_base = _base_rate(group)
            if base is None or plain(base) == plain(script_base):
                continue
            # A scheduler may scale "lr" when it is created, as a warm-up does. The new rate must be
            # scaled by the same factor.
            factor = plain(group["lr"]) / plain(script_base) if plain(script_base) else 1.0
            _set_in_group(group, "lr", plain(base) if factor == 1.0 else plain(base) * factor)
            _set_in_group(group, "initial_lr", plain(base))
        for each in nested_schedulers(self._scheduler):
            if hasattr(each, "base_lrs"):
                each.base_lrs = [copy.deepcopy(_base_rate(group)) for group in self._groups]

    def _scheduled_values(
        self, group: Mapping[str, Any], script: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Returns the settings of a group that belong to the schedule.

        These are the settings that a schedule may set, such as "lr", and all settings that the
        moves have changed.

        Args:
            group: the present settings of the group, after the moves.
            script: the settings of the group as the script gives them.
        """
        cycles = any(
            getattr(each, "cycle_momentum", False) for each in nested_schedulers(self._scheduler)
        )
        names = {"lr", *_RATE_KEYS, *SCHEDULE_KEYS, *(("momentum", "betas") if cycles else ())}
        names |= {n for n in group.keys() & script.keys() if plain(group[n]) != plain(script[n])}
        return {n: copy.deepcopy(group[n]) for n in names - {"params"} if n in group}

    @contextmanager
    def _restored_afterwards(self) -> Iterator[None]:
        """Restores the scheduler and the groups of the optimizer after the body."""
        scheduler, groups = self._scheduler, self._groups
        state = copy.deepcopy(scheduler.state_dict())
        # `base_lrs` is restored separately, because a user's state_dict() may leave it out.
        bases = [
            (each, each.base_lrs)
            for each in nested_schedulers(scheduler)
            if hasattr(each, "base_lrs")
        ]
        try:
            yield
        finally:
            for each, base_lrs in bases:
                each.base_lrs = base_lrs
            scheduler.load_state_dict(state)
            for group, script in zip(groups, self._script, strict=True):
                for name in group.keys() - script.keys() - {"params"}:
                    del group[name]
                for name, value in script.items():
                    _set_in_group(group, name, value)


def _base_rate(group: Mapping[str, Any]) -> Any:
    return group.get("initial_lr", group["lr"])


def _set_in_group(group: dict[str, Any], name: str, value: Any) -> None:
    """Writes a setting to a group. A tensor is filled in place, as torch's schedulers do."""
    present = group.get(name)
    if isinstance(present, torch.Tensor):
        present.copy_(torch.as_tensor(value))
    else:
        group[name] = copy.deepcopy(value)


def _has_value_of(state: Any, *names: str) -> bool:
    """Returns whether one of ``names`` has a truthy value in the state of a scheduler.

    The states of the schedulers within the scheduler are searched too.
    """
    is_within = any(_has_value_of(each, *names) for each in child_states(state))
    return is_within or (isinstance(state, Mapping) and any(state.get(name) for name in names))


def _move_count(state: Any) -> int | None:
    """Returns how many times the scheduler of a state was moved; None if the state has no count."""
    if isinstance(state, Mapping) and isinstance(state.get("last_epoch"), int):
        return int(state["last_epoch"])
    # A ChainedScheduler has no count of its own. It moves all of its schedulers together, so the
    # count of the first one is returned.
    within = child_states(state)
    return _move_count(within[0]) if within else None
