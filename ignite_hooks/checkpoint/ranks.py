"""The processes of one training, and how they agree without asking the device."""

from collections.abc import Callable
from typing import Any
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate import PartialState

from ignite_hooks.core.accelerators import timeout_of
from ignite_hooks.processes.shared_failure import note_shared

__all__ = ["Ranks"]

Result = TypeVar("Result")


class Ranks:
    """This process among the others. With one process nothing is exchanged.

    They talk to each other on the host, over a group of their own: another ``Ranks``, in a thread
    say, or the exchange of gradients is not disturbed.
    Every process must make as many of these, and call the same methods in the same order.

    Args:
        accelerator: its timeout is that of each exchange; default: torch's, of 30 minutes.
    """

    def __init__(self, accelerator: Accelerator | None = None) -> None:
        state = PartialState()
        self.rank: int = state.process_index
        self.size: int = state.num_processes
        self._group: Any = None
        if self.size > 1:
            timeout = None if accelerator is None else timeout_of(accelerator)
            self._group = torch.distributed.new_group(backend="gloo", timeout=timeout)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that does what one process does."""
        return self.rank == 0

    def gather(self, own: Result) -> list[Result]:
        """What each process gives, in their order. It is pickled on the way, among themselves."""
        if self.size == 1:
            return [own]
        gathered: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(gathered, own, group=self._group)
        return gathered

    def agree(self, act: Callable[[], Result]) -> list[Result]:
        """Calls ``act`` in each process; returns what each returned, or raises in all of them.

        Raises:
            RuntimeError: it failed elsewhere. A failure in this process is raised as it is.
        """
        if self.size == 1:
            return [act()]
        result, failure = None, None
        try:
            result = act()
        except Exception as error:
            failure = error
        told = None if failure is None else f"{type(failure).__name__}: {failure}"
        outcomes = self.gather((result, told))
        problems = "; ".join(
            f"process {rank}: {text}" for rank, (_, text) in enumerate(outcomes) if text
        )
        if problems:
            raised = failure or RuntimeError(problems)
            note_shared(raised, problems)
            raise raised
        return [result for result, _ in outcomes]  # type: ignore[misc]

    def first_alone(self, act: Callable[[], Result]) -> Result:
        """Calls ``act`` in the first process; what it returns, or raises, in all."""
        result: Result = self.agree(lambda: act() if self.is_first else None)[0]  # type: ignore[assignment]
        return result

    def any_of(self, *flags: bool) -> list[bool]:
        """Each flag, set if any process has set it."""
        if self.size == 1:
            return list(flags)
        tensor = torch.tensor(flags, dtype=torch.int32)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, group=self._group)
        return [bool(flag) for flag in tensor.tolist()]
