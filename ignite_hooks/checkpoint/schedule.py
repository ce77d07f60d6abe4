"""A script's own learning rate schedule, at the step of a checkpoint."""

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

from ignite_hooks.checkpoint.settings import OF_SCHEDULE
from ignite_hooks.checkpoint.settings import Rates
from ignite_hooks.checkpoint.settings import plain
from ignite_hooks.core.torch_schedulers import all_within
from ignite_hooks.core.torch_schedulers import states_within
from ignite_hooks.core.torch_schedulers import with_states_within
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.optim.lr_scheduler import of_torch

__all__ = ["ScriptSchedule"]

_OWN_RATES = ("max_lrs", "total_steps")  # of a CyclicLR, and of a OneCycleLR
_RATES = ("initial_lr", "max_lr", "min_lr")


class ScriptSchedule:
    """The schedule of a trainer that nothing is loaded into yet, and what it makes of the groups.

    The trainer is left as it is: a schedule that is moved here is moved back.

    Args:
        trainer: the trainer, with or without a scheduler.
        script: the settings of its optimizer's groups.
        bases: the rates that the checkpoint's schedule started from, one for each group; None where
            it is not known.
    """

    def __init__(self, trainer: TrainingEngine, script: Rates, bases: Sequence[Any]) -> None:
        self._scheduler = of_torch(trainer.lr_scheduler)
        self._script = script
        self._bases = bases
        self._moved: Rates = []
        self._is_replaced = self._is_rebased = self._had_momentum = False

    def moved(
        self, state: Any, moves: int, *, is_counted: bool, keeps_rates: bool
    ) -> dict[str, Any] | None:
        """Returns the state of the script's scheduler after as many moves as the other has made.

        It is moved from its beginning, one call of ``step`` after the other: the rates are bit by
        bit those of a run that had this schedule from its first step. A ReduceLROnPlateau begins
        here with its own constants, because the metrics of the run so far are not known.

        Args:
            state: the state of the checkpoint's scheduler, or None.
            moves: how often the schedule would have moved, where the state does not tell.
            is_counted: whether the state tells: the other schedule was moved at the same events.
            keeps_rates: whether the schedule starts from the script's learning rates, and not from
                those that the checkpoint's schedule started from.

        Raises:
            ValueError: the schedule cannot be moved that far.
        """
        scheduler = self._scheduler
        self._is_replaced, self._had_momentum = True, _is_anywhere(state, "cycle_momentum")
        if scheduler is None:
            return None
        if isinstance(scheduler, ReduceLROnPlateau):
            fresh: dict[str, Any] = copy.deepcopy(scheduler.state_dict())
            return fresh
        if is_counted and (reached := _place_of(state)) is not None:
            moves = reached - (_place_of(scheduler.state_dict()) or 0)
        with self._moved_back():
            # A cyclic schedule names its rates itself: they are not the optimizer's.
            if not (keeps_rates or self._owns_rates or _is_anywhere(state, *_OWN_RATES)):
                self._start_from_bases()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # there is no step of the optimizer before
                    for _ in range(moves):
                        scheduler.step()
            except Exception as error:
                raise ValueError(
                    f"`override` must name a schedule that reaches the step of the checkpoint, the "
                    f"{type(scheduler).__name__} of the script cannot be moved {moves} times "
                    f'({type(error).__name__}: {error}): make it longer, or leave "scheduler" out'
                ) from error
            self._moved = [
                self._written(*each) for each in zip(self._groups, self._script, strict=True)
            ]
            reached_state: dict[str, Any] = copy.deepcopy(scheduler.state_dict())
            return reached_state

    def rebased(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the state of the checkpoint's scheduler, started from the script's rates.

        Where it is in its course stays. The present rate is the script's times what the schedule
        has made of the checkpoint's so far: a rate that has come down to a tenth of 0.1 is 0.002
        if the script gives 0.02.
        """
        self._is_rebased = True
        rebased = dict(copy.deepcopy(state))
        if "base_lrs" in rebased:
            rebased["base_lrs"] = [_base(each) for each in self._script]
        return with_states_within(rebased, [self.rebased(each) for each in states_within(state)])

    def write(self, group: dict[str, Any], index: int, *, keeps_rate: bool) -> None:
        """Writes to a group of the checkpoint's optimizer where it is now with this schedule.

        Args:
            group: the settings of the group.
            index: the number of the group.
            keeps_rate: whether the learning rate stays where no schedule says otherwise.
        """
        script, before = self._script[index], self._bases[index]
        if self._is_replaced:
            for name in OF_SCHEDULE - script.keys():  # of the other schedule
                group.pop(name, None)
        if self._had_momentum:
            group |= {n: copy.deepcopy(script[n]) for n in ("momentum", "betas") if n in script}
        if self._moved:
            group |= copy.deepcopy(self._moved[index])
        elif not keeps_rate:
            rate, base = plain(group["lr"]), _base(script)
            if self._is_rebased and before is not None and plain(before) not in (0, rate):
                base = base * (rate / plain(before))
            group |= {name: copy.deepcopy(script[name]) for name in _RATES if name in script}
            group["lr"] = copy.deepcopy(base if self._is_rebased else script["lr"])

    @property
    def _groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self._scheduler.optimizer.param_groups
        return groups

    @property
    def _owns_rates(self) -> bool:
        """Whether a scheduler says from which rates it starts, and the optimizer does not."""
        is_cyclic = any(isinstance(each, CyclicLR) for each in all_within(self._scheduler))
        return is_cyclic or any("max_lr" in group for group in self._groups)

    def _start_from_bases(self) -> None:
        """Has the schedule start from the checkpoint's rates, at its first value."""
        for group, base in zip(self._groups, self._bases, strict=False):
            before = _base(group)
            if base is None or plain(base) == plain(before):
                continue
            factor = plain(group["lr"]) / plain(before) if plain(before) else 1.0
            _set(group, "lr", plain(base) if factor == 1.0 else plain(base) * factor)
            _set(group, "initial_lr", plain(base))
        for each in all_within(self._scheduler):
            if hasattr(each, "base_lrs"):
                each.base_lrs = [copy.deepcopy(_base(group)) for group in self._groups]

    def _written(self, group: Mapping[str, Any], script: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what a schedule writes to a group: the rate, and a momentum that it cycles."""
        cycles = any(getattr(each, "cycle_momentum", False) for each in all_within(self._scheduler))
        names = {"lr", *_RATES, *OF_SCHEDULE, *(("momentum", "betas") if cycles else ())}
        names |= {n for n in group.keys() & script.keys() if plain(group[n]) != plain(script[n])}
        return {n: copy.deepcopy(group[n]) for n in names - {"params"} if n in group}

    @contextmanager
    def _moved_back(self) -> Iterator[None]:
        """Restores the scheduler and the groups of the optimizer after the body."""
        scheduler, groups = self._scheduler, self._groups
        state = copy.deepcopy(scheduler.state_dict())
        bases = [
            (each, each.base_lrs) for each in all_within(scheduler) if hasattr(each, "base_lrs")
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
                    _set(group, name, value)


def _base(group: Mapping[str, Any]) -> Any:
    return group.get("initial_lr", group["lr"])


def _set(group: dict[str, Any], name: str, value: Any) -> None:
    """Writes a setting; a tensor stays the object that it is, as torch's schedulers keep it."""
    present = group.get(name)
    if isinstance(present, torch.Tensor):
        present.copy_(torch.as_tensor(value))
    else:
        group[name] = copy.deepcopy(value)


def _is_anywhere(state: Any, *names: str) -> bool:
    """Returns whether one of ``names`` is in the state of a scheduler, or of one within, and on."""
    is_within = any(_is_anywhere(each, *names) for each in states_within(state))
    return is_within or (isinstance(state, Mapping) and any(state.get(name) for name in names))


def _place_of(state: Any) -> int | None:
    """Returns how often the scheduler of a state was moved; None if it does not tell."""
    if isinstance(state, Mapping) and isinstance(state.get("last_epoch"), int):
        return int(state["last_epoch"])
    within = states_within(state)  # of a ChainedScheduler, which moves all of them
    return _place_of(within[0]) if within else None
