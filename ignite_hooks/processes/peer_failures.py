"""A context manager around a run, in which ranks report their failures to each other.

Without a report, the other ranks would wait for the failed rank in their next collective.
"""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING
from typing import Any

from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.processes.watched_run import OnPeerFailure
from ignite_hooks.processes.watched_run import WatchedRun

if TYPE_CHECKING:
    from ignite_hooks.processes.peer_watch import PeerWatch

__all__ = ["PeerFailures"]


class PeerFailures(AbstractContextManager["PeerFailures", None]):
    """Reports a failure in the body to the other ranks, and raises their failures in the body.

    A trainer enters this context around each run. With one process the context does nothing.

    Args:
        trainer: the trainer of the runs.
        on_peer_failure: what to do if another rank fails while this process is blocked in a
            collective. "exit" ends the process. "wait" leaves it blocked until the collective times
            out.

    Raises:
        ValueError: ``on_peer_failure`` is neither "exit" nor "wait".
    """

    def __init__(self, trainer: TrainingEngine, on_peer_failure: OnPeerFailure) -> None:
        self._run = WatchedRun(trainer, on_peer_failure)
        self._peers: PeerWatch | None = None  # set during a run with several processes

    def __enter__(self) -> "PeerFailures":
        self._peers = None
        if self._run.trainer.accelerator.num_processes > 1:
            # The import is here because some builds of torch lack torch.distributed.
            from ignite_hooks.processes.peer_watch import PeerWatch

            peers = PeerWatch.of_default_group()
            if peers is not None:
                peers.enter(self._run)
            self._peers = peers
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        peers, self._peers = self._peers, None
        if peers is None:
            return
        try:
            if error is not None:
                peers.explain(error, peers.report(error, self._run))
        finally:
            peers.leave(self._run)

    def report(self, error: BaseException) -> None:
        """Reports a failure to the other ranks at once.

        Without this call, the failure is reported when the error leaves the context.
        """
        if self._peers is not None:
            self._peers.report(error, self._run)
