"""A note that the modules of a trainer have borrowed weights: the weights of another step.

``load_best`` loads such weights, for example for a test after the training. The counters, the
optimizer and the scheduler keep the state of the trainer's present step. A checkpoint would mix the
states of two steps, so saving raises an error as long as the note exists. The next run of the
trainer removes the note with a warning. Loading a checkpoint removes it too.
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
    """Removes the note: the weights count as those of the trainer's present step again."""
    engine_storage(trainer).pop("borrowed_weights", None)
