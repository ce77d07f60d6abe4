"""The schedulers within torch's combined schedulers, and the private constants of others.

The private members used here, and what they are taken to mean:

- ``SequentialLR._schedulers``, ``ChainedScheduler._schedulers``: the schedulers within, in order;
  the entry of the same name in their ``state_dict`` has the states of these schedulers.
- ``SequentialLR._milestones``: the numbers of calls of ``step`` at which the second scheduler and
  each further one begin.
- ``OneCycleLR._schedule_phases``: two phases, or three, each with its ``end_step``.
- ``OneCycleLR._anneal_func_type``: "cos" or "linear".

``tests/core/test_torch_schedulers.py`` fails when torch changes what one means.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

__all__ = [
    "child_schedulers",
    "child_states",
    "milestones_of",
    "nested_schedulers",
    "one_cycle_constants",
    "with_child_states",
]

_CHILDREN = "_schedulers"  # the attribute, and the key in a state_dict


def child_schedulers(scheduler: Any) -> list[Any]:
    """Returns the schedulers that a SequentialLR or a ChainedScheduler combines, else nothing."""
    # A user's scheduler may have an attribute of this name with another meaning.
    children = getattr(scheduler, _CHILDREN, ())
    if not isinstance(children, list | tuple):
        return []
    return [each for each in children if isinstance(each, LRScheduler)]


def nested_schedulers(scheduler: Any) -> Iterator[Any]:
    """Yields a scheduler, and all schedulers that are nested in it at any depth."""
    yield scheduler
    for each in child_schedulers(scheduler):
        yield from nested_schedulers(each)


def child_states(state: Any) -> list[Mapping[str, Any]]:
    """Returns the states of the schedulers within a combined scheduler, from its state."""
    children = state.get(_CHILDREN) if isinstance(state, Mapping) else None
    if not isinstance(children, list | tuple):
        return []
    return [each for each in children if isinstance(each, Mapping)]


def with_child_states(state: dict[str, Any], states: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns a copy of ``state`` with other states of the schedulers within it."""
    return {**state, _CHILDREN: states} if states else state


def milestones_of(scheduler: Any) -> list[int]:
    """Returns the numbers of ``step`` calls at which a SequentialLR moves to its next scheduler."""
    return list(scheduler._milestones)


def one_cycle_constants(scheduler: Any) -> dict[str, Any]:
    """Returns the arguments of a OneCycleLR that it keeps in another form only."""
    phases = getattr(scheduler, "_schedule_phases", ())
    if not phases:
        return {}
    # OneCycleLR computes end_step = pct_start * total_steps - 1. Rounding removes the error of
    # solving this for pct_start, so that the value equals the argument.
    return {
        "pct_start": round((phases[0]["end_step"] + 1) / scheduler.total_steps, 6),
        "three_phase": len(phases) == 3,
        "anneal_strategy": str(getattr(scheduler, "_anneal_func_type", None)),
    }
