"""Describes a run whose failure is reported to the other ranks."""

from typing import Literal
from typing import NamedTuple
from typing import get_args

from ignite_hooks.core.training_engine import TrainingEngine

__all__ = ["OnPeerFailure", "RunPlace", "WatchedRun"]

OnPeerFailure = Literal["exit", "wait"]
"""The behavior of a process that is blocked in a collective because another rank has failed.

"exit" ends the process, and "wait" leaves it blocked until the collective times out.
"""


class RunPlace(NamedTuple):
    """The place of a rank in its run.

    Args:
        epoch: the present epoch, from 1.
        iteration: the number of batches since the run began.
        step: the number of optimizer steps since the run began.
        event: the name of the event that was fired last.
    """

    epoch: int
    iteration: int
    step: int
    event: str

    def __str__(self) -> str:
        counters = f"epoch {self.epoch}, iteration {self.iteration}, step {self.step}"
        return f"{counters}, at {self.event}"


class WatchedRun:
    """A run of a trainer, its present place, and what to do if another rank fails.

    Args:
        trainer: the trainer that runs.
        on_peer_failure: what to do if another rank fails while this process is blocked in a
            collective. "exit" ends the process with exit code 1. "wait" leaves the process blocked
            until the collective times out.

    Raises:
        ValueError: ``on_peer_failure`` is neither "exit" nor "wait".
    """

    def __init__(self, trainer: TrainingEngine, on_peer_failure: OnPeerFailure) -> None:
        if on_peer_failure not in get_args(OnPeerFailure):
            raise ValueError(
                f'`on_peer_failure` must be "exit" or "wait", got {on_peer_failure!r}: if another '
                'rank has failed, "exit" ends a process that is blocked in a collective, and '
                '"wait" leaves the process there until the timeout'
            )
        self.trainer = trainer
        self.on_peer_failure = on_peer_failure

    @property
    def place(self) -> RunPlace:
        """The present place of this rank in the run."""
        state, event = self.trainer.state, self.trainer.last_event_name
        name = str(getattr(event, "name", event) or "the start of the run")
        return RunPlace(state.epoch, state.iteration, state.optimizer_step, name)
