"""The processes that train together, and their collectives, which use gloo on the CPU."""

from collections.abc import Callable
from typing import Any
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate import PartialState

from ignite_hooks.core.accelerators import collective_timeout
from ignite_hooks.processes.shared_failure import mark_shared

__all__ = ["Ranks"]

Result = TypeVar("Result")


class Ranks:
    """The rank of this process, with collectives over all ranks.

    Each ``Ranks`` object has a gloo process group of its own. So its collectives do not mix with
    the exchange of gradients, or with the collectives of another ``Ranks`` object in another
    thread. Every rank must create the same number of ``Ranks`` objects, and call the same methods
    in the same order. If there is only one process, no data are exchanged.

    Args:
        accelerator: the accelerator whose timeout applies to each collective; None for torch's
            timeout of 30 minutes.

    Attributes:
        rank: the rank of this process.
        size: the number of processes.
    """

    def __init__(self, accelerator: Accelerator | None = None) -> None:
        state = PartialState()
        self.rank: int = state.process_index
        self.size: int = state.num_processes
        self._group: Any = None
        if self.size > 1:
            timeout = None if accelerator is None else collective_timeout(accelerator)
            self._group = torch.distributed.new_group(backend="gloo", timeout=timeout)

    @property
    def is_rank_0(self) -> bool:
        """Returns whether this is rank 0. Rank 0 does all work that exactly one process must do."""
        return self.rank == 0

    def gather(self, own: Result) -> list[Result]:
        """Returns the objects of all ranks, in the order of the ranks.

        The objects are pickled, which is safe here: the processes of one run trust each other.

        Args:
            own: the object of this rank.
        """
        if self.size == 1:
            return [own]
        gathered: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(gathered, own, group=self._group)
        return gathered

    def call_on_all_ranks(self, callback: Callable[[], Result]) -> list[Result]:
        """Calls ``callback`` on every rank. If ``callback`` fails on any rank, all ranks raise.

        All ranks raise, because a rank that continued would wait for the failed rank in the next
        collective, until the timeout.

        Returns:
            The results of all ranks, in the order of the ranks.

        Raises:
            RuntimeError: the callback failed only on other ranks. If the callback failed on this
                rank, its own exception is raised instead.
        """
        if self.size == 1:
            return [callback()]
        result, failure = None, None
        try:
            result = callback()
        except Exception as error:
            failure = error
        # The text of the exception is sent, because some exceptions cannot be pickled.
        own_problem = None if failure is None else f"{type(failure).__name__}: {failure}"
        outcomes = self.gather((result, own_problem))
        problems = "; ".join(
            f"process {rank}: {text}" for rank, (_, text) in enumerate(outcomes) if text
        )
        if problems:
            raised = failure or RuntimeError(problems)
            mark_shared(raised, problems)
            raise raised
        return [result for result, _ in outcomes]  # type: ignore[misc]

    def call_on_rank_0(self, callback: Callable[[], Result]) -> Result:
        """Calls ``callback`` on rank 0 only, and returns its result on all ranks.

        If the callback fails, all ranks raise an exception.
        """
        result: Result = self.call_on_all_ranks(lambda: callback() if self.is_rank_0 else None)[0]  # type: ignore[assignment]
        return result

    def any_of(self, *flags: bool) -> list[bool]:
        """Returns for each flag whether it is True on at least one rank."""
        if self.size == 1:
            return list(flags)
        tensor = torch.tensor(flags, dtype=torch.int32)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, group=self._group)
        return [bool(flag) for flag in tensor.tolist()]
