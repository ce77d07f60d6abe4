"""Learning rate schedulers of torch: those that they are made of, and constants kept private.

The private members used here, and what they are taken to mean:

- ``SequentialLR._schedulers``, ``ChainedScheduler._schedulers``: the schedulers within, in order;
  the entry of the same name in their ``state_dict`` has the states of those.
- ``SequentialLR._milestones``: the calls of ``step`` at which the second and each further begins.
- ``OneCycleLR._schedule_phases``: two phases, or three, each with its ``end_step``.
- ``OneCycleLR._anneal_func_type``: "cos" or "linear".

``tests/core/test_torch_schedulers.py`` fails when one of them changes its meaning.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

__all__ = [
    "all_within",
    "milestones_of",
    "one_cycle_constants",
    "schedulers_within",
    "states_within",
    "with_states_within",
]

_WITHIN = "_schedulers"


def schedulers_within(scheduler: Any) -> list[Any]:
    """Returns the schedulers that a SequentialLR or a ChainedScheduler is made of."""
    within = getattr(scheduler, _WITHIN, ())
    is_several = isinstance(within, list | tuple)
    return [each for each in within if isinstance(each, LRScheduler)] if is_several else []


def all_within(scheduler: Any) -> Iterator[Any]:
    """Gives a scheduler, and those that it is made of, however deep."""
    yield scheduler
    for each in schedulers_within(scheduler):
        yield from all_within(each)


def states_within(state: Any) -> list[Mapping[str, Any]]:
    """Returns the states of the schedulers within, from the state of the whole."""
    within = state.get(_WITHIN) if isinstance(state, Mapping) else None
    if not isinstance(within, list | tuple):
        return []
    return [each for each in within if isinstance(each, Mapping)]


def with_states_within(state: dict[str, Any], within: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns ``state`` with other states of the schedulers within."""
    return {**state, _WITHIN: within} if within else state


def milestones_of(scheduler: Any) -> list[int]:
    """Returns the calls of ``step`` at which a SequentialLR changes to its next scheduler."""
    return list(scheduler._milestones)


def one_cycle_constants(scheduler: Any) -> dict[str, Any]:
    """Returns the arguments of a OneCycleLR that it keeps in other words."""
    phases = getattr(scheduler, "_schedule_phases", ())
    if not phases:
        return {}
    return {
        "pct_start": round((phases[0]["end_step"] + 1) / scheduler.total_steps, 6),
        "three_phase": len(phases) == 3,
        "anneal_strategy": str(getattr(scheduler, "_anneal_func_type", None)),
    }
