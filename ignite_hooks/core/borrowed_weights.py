"""Weights of another step than the trainer's own, which it has for a test pass.

Counters, optimizer and scheduler stay as they are then. A checkpoint of both would be of no step,
so that none is taken until training continues.
"""

from typing import Any

from ignite_hooks.core.engine import belongings

__all__ = ["forget_borrowed_weights", "note_borrowed_weights", "step_of_borrowed_weights"]


def note_borrowed_weights(trainer: Any, step: int) -> None:
    """Notes that the trainer's modules have the weights of ``step``."""
    belongings(trainer)["borrowed_weights"] = step


def step_of_borrowed_weights(trainer: Any) -> int | None:
    """Returns the step whose weights the trainer's modules have; None for its own."""
    step: int | None = belongings(trainer).get("borrowed_weights")
    return step


def forget_borrowed_weights(trainer: Any) -> None:
    """Takes the weights for the trainer's own."""
    belongings(trainer).pop("borrowed_weights", None)
