"""Failures of one rank are told to the others, which would wait for it in their next collective."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING
from typing import Any

from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.processes.watched_run import OnPeerFailure
from ignite_hooks.processes.watched_run import WatchedRun

if TYPE_CHECKING:
    from ignite_hooks.processes.peer_watch import Ranks

__all__ = ["PeerFailures"]


class PeerFailures(AbstractContextManager["PeerFailures", None]):
    """Tells a failure within it to the other ranks, and raises here what another rank tells.

    A trainer enters it around each run. With one process it does nothing.

    Args:
        trainer: whose runs these are.
        on_peer_failure: what becomes of this process if it is blocked then.

    Raises:
        ValueError: ``on_peer_failure`` is neither "exit" nor "wait".
    """

    def __init__(self, trainer: TrainingEngine, on_peer_failure: OnPeerFailure) -> None:
        self._run = WatchedRun(trainer, on_peer_failure)
        self._ranks: Ranks | None = None  # within a run of several processes

    def __enter__(self) -> "PeerFailures":
        self._ranks = None
        if self._run.trainer.accelerator.num_processes > 1:
            # One process needs no torch.distributed, which some builds of torch have not.
            from ignite_hooks.processes.peer_watch import Ranks

            ranks = Ranks.of_process()
            if ranks is not None:
                ranks.enter(self._run)
            self._ranks = ranks
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        ranks, self._ranks = self._ranks, None
        if ranks is None:
            return
        try:
            if error is not None:
                ranks.explain(error, ranks.tell(error, self._run))
        finally:
            ranks.leave(self._run)

    def tell(self, error: BaseException) -> None:
        """Tells the other ranks of a failure at once, before the run is unwound."""
        if self._ranks is not None:
            self._ranks.tell(error, self._run)
