"""Reads private members of torch's learning rate schedulers.

The module uses these members, and relies on the meaning given here:

- ``SequentialLR._schedulers``, ``ChainedScheduler._schedulers``: the list of the combined
  schedulers. The ``state_dict`` of a ``SequentialLR`` or ``ChainedScheduler`` has an entry
  ``_schedulers`` with the states of the combined schedulers.
- ``SequentialLR._milestones``: one number for each combined scheduler except the first. If it is
  10, the scheduler begins at the tenth call of ``step``.
- ``OneCycleLR._schedule_phases``: two phases, or three, each with its ``end_step``.
- ``OneCycleLR._anneal_func_type``: "cos" or "linear".

``tests/core/test_torch_schedulers.py`` fails when torch changes the meaning of a member.
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

# The attribute with the combined schedulers, and the entry of a ``state_dict`` with their states.
_CHILDREN = "_schedulers"


def child_schedulers(scheduler: Any) -> list[Any]:
    """Returns the schedulers that a SequentialLR or ChainedScheduler combines; [] for others."""
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
    """Returns the states of the combined schedulers in ``state``; [] if there are none.

    Args:
        state: the ``state_dict`` of any scheduler.
    """
    children = state.get(_CHILDREN) if isinstance(state, Mapping) else None
    if not isinstance(children, list | tuple):
        return []
    return [each for each in children if isinstance(each, Mapping)]


def with_child_states(state: dict[str, Any], states: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns a copy of ``state`` in which ``states`` replace the states of combined schedulers.

    Args:
        state: the ``state_dict`` of any scheduler.
        states: the new states of the schedulers that it combines. If the list is empty, ``state``
            is returned unchanged.
    """
    return {**state, _CHILDREN: states} if states else state


def milestones_of(scheduler: Any) -> list[int]:
    """Returns the milestones of a SequentialLR, which the top of this file explains."""
    return list(scheduler._milestones)


def one_cycle_constants(scheduler: Any) -> dict[str, Any]:
    """Returns the constructor arguments that a OneCycleLR does not keep in their original form."""
    phases = getattr(scheduler, "_schedule_phases", ())
    if not phases:
        return {}
    # OneCycleLR keeps only end_step = pct_start * total_steps - 1. Here the equation is solved for
    # pct_start. Rounding removes the error of the division.
    return {
        "pct_start": round((phases[0]["end_step"] + 1) / scheduler.total_steps, 6),
        "three_phase": len(phases) == 3,
        "anneal_strategy": str(getattr(scheduler, "_anneal_func_type", None)),
    }
