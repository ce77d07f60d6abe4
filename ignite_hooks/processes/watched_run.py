"""A run of a trainer that the other ranks are told of if it fails."""

from typing import Literal
from typing import NamedTuple
from typing import get_args

from ignite_hooks.core.training_engine import TrainingEngine

__all__ = ["OnPeerFailure", "Place", "WatchedRun"]

OnPeerFailure = Literal["exit", "wait"]
"""What becomes of a process that is blocked in a collective when another rank has failed."""


class Place(NamedTuple):
    """The place of a rank in its run.

    Args:
        epoch: the present epoch, from 1.
        iteration: batches in all.
        step: optimizer steps in all.
        event: the event that was fired last.
    """

    epoch: int
    iteration: int
    step: int
    event: str

    def __str__(self) -> str:
        counters = f"epoch {self.epoch}, iteration {self.iteration}, step {self.step}"
        return f"{counters}, at {self.event}"


class WatchedRun:
    """A run, its place, and what to do when another rank fails in it.

    Args:
        trainer: whose run it is.
        on_peer_failure: "exit" ends a process that is blocked in a collective, with exit code 1;
            "wait" leaves it there until the timeout of the collective.

    Raises:
        ValueError: ``on_peer_failure`` is neither.
    """

    def __init__(self, trainer: TrainingEngine, on_peer_failure: OnPeerFailure) -> None:
        if on_peer_failure not in get_args(OnPeerFailure):
            raise ValueError(
                f'`on_peer_failure` must be "exit" or "wait", got {on_peer_failure!r}: "exit" ends '
                'a process that waits in a collective for a rank that has failed, "wait" leaves '
                "it there until the timeout"
            )
        self.trainer = trainer
        self.on_peer_failure = on_peer_failure

    @property
    def place(self) -> Place:
        """The place of the run."""
        state, event = self.trainer.state, self.trainer.last_event_name
        name = str(getattr(event, "name", event) or "the start of the run")
        return Place(state.epoch, state.iteration, state.optimizer_step, name)
