"""A note that a trainer's modules have borrowed weights: the weights of another step, for a test.

While the modules have borrowed weights, the counters, the optimizer and the scheduler keep the
state of the trainer's present step. A checkpoint would mix the states of two steps, so no
checkpoint is taken until training continues.
"""

from typing import Any

from ignite_hooks.core.engine import engine_storage

__all__ = ["forget_borrowed_weights", "note_borrowed_weights", "step_of_borrowed_weights"]


def note_borrowed_weights(trainer: Any, step: int) -> None:
    """Notes that the trainer's modules have the weights of ``step``."""
    engine_storage(trainer)["borrowed_weights"] = step


def step_of_borrowed_weights(trainer: Any) -> int | None:
    """Returns the step of the borrowed weights; None if the modules have no borrowed weights."""
    step: int | None = engine_storage(trainer).get("borrowed_weights")
    return step


def forget_borrowed_weights(trainer: Any) -> None:
    """Removes the note: from now on the modules have the weights of the trainer's present step."""
    engine_storage(trainer).pop("borrowed_weights", None)
