"""Decisions that all ranks of a run make together: to stop the run, or to save a checkpoint.

A *request* is made on one rank, for example by a call of ``terminate()``, or by a signal or a clock
that asks for a save. If that rank stopped alone, the other ranks would wait for its gradients. So
all ranks obey the request, at the same step boundary. A *step boundary* is a point of the loop
between two optimizer steps.

The ranks exchange their requests without waiting for each other: an exchange begins at one
boundary, and is finished at the next boundary, a whole step later::

    boundary n       begin_exchange()   is there a request on any rank?
    boundary n + 1   finish_exchange()  if so, all ranks exchange the requests and obey them

``exchange_now()`` does both in one call, and waits. The loop calls it at three points:

- at STARTED
- at the end of an epoch, so that all ranks obey a request before the next epoch
- when a limit such as ``max_steps`` is reached, because no boundary follows

With one process, this module is not used: the trainer obeys a request at once.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import distributed

from ignite_hooks.processes.host_group import host_group

__all__ = ["Decisions", "Question", "name_ranks"]


class Question(NamedTuple):
    """A question that the ranks ask each other, such as whether any rank has a request to stop.

    Attributes:
        asked: a function that returns the request of this rank, or None if there is no request. A
            request must be picklable. The function is called in each exchange. As long as a request
            is not obeyed, each call must return the request again.
        obey: a function that is called on every rank if any rank has made a request. Its argument
            is the sequence of the requests by rank, with None for a rank without a request.
    """

    asked: Callable[[], Any]
    obey: Callable[[Sequence[Any]], None]


class Decisions:
    """The questions of a trainer, and the exchange of requests that is in progress.

    Args:
        accelerator: an accelerator of several processes.
        every: the number of boundaries from one exchange to the next. With a larger number the
            exchanges cost less, but requests are obeyed later.
    """

    def __init__(self, accelerator: Accelerator, every: int) -> None:
        self._accelerator = accelerator
        self._every = every
        self._boundaries = 0  # the number of boundaries so far in this run
        # The return value of `_exchange` for an exchange that has begun and is not finished.
        self._pending: tuple[Any, torch.Tensor] | None = None
        self._questions: list[Question] = []
        # Making a process group is collective. The group is made here, because every rank calls
        # this constructor.
        host_group(accelerator)

    def add(self, question: Question) -> Callable[[], None]:
        """Adds a question, and returns a function that removes the question.

        Every rank must add the same questions in the same order.
        """
        self._questions.append(question)
        return lambda: self._questions.remove(question)

    def begin(self) -> None:
        """Begins a run, and drops an exchange that a failed run has left pending."""
        self._boundaries, self._pending = 0, None

    def begin_exchange(self) -> None:
        """Begins an exchange, if it is due at this boundary. Does not wait for the other ranks."""
        self._boundaries += 1
        if self._boundaries % self._every == 0:
            self._pending = self._exchange(async_op=True)

    def finish_exchange(self) -> None:
        """Finishes the pending exchange, if there is one, and obeys the requests of all ranks."""
        if self._pending is None:
            return
        (work, is_any_asked), self._pending = self._pending, None
        work.wait()
        if is_any_asked.item():
            self._obey()

    def exchange_now(self) -> None:
        """Exchanges and obeys the present requests of all ranks. Waits for the other ranks."""
        # A pending exchange is dropped. Its requests are not lost: `asked` returns them again.
        self._pending = None
        _, is_any_asked = self._exchange(async_op=False)
        if is_any_asked.item():
            self._obey()

    def _exchange(self, *, async_op: bool) -> tuple[Any, torch.Tensor]:
        """Starts the collective that determines whether any rank has a request.

        Returns:
            The work handle of the collective, and a tensor. When the collective has finished, the
            tensor is 1 if any rank has a request, and 0 otherwise.
        """
        is_asked = any(each.asked() is not None for each in self._questions)
        # `all_reduce` writes the maximum over all ranks into this tensor.
        is_any_asked = torch.tensor([is_asked], dtype=torch.int32)
        group, op = host_group(self._accelerator), distributed.ReduceOp.MAX
        work = distributed.all_reduce(is_any_asked, op, group=group, async_op=async_op)
        return work, is_any_asked

    def _obey(self) -> None:
        """Gathers the requests of all ranks, and calls ``obey`` of each question with a request."""
        own = [each.asked() for each in self._questions]
        requests: list[Any] = [None] * self._accelerator.num_processes
        distributed.all_gather_object(requests, own, group=host_group(self._accelerator))
        # The n-th request of each rank belongs to the n-th question. So all ranks must have the
        # same number of questions.
        numbers = [len(asked) for asked in requests]
        if len(set(numbers)) > 1:
            raise RuntimeError(
                "every rank must have the same handlers that can stop or save a run, but the "
                f"numbers of these handlers are {numbers}, by rank: attach each SaveCheckpoint on "
                "every rank"
            )
        for question, asked in zip(
            tuple(self._questions), zip(*requests, strict=True), strict=True
        ):
            if any(each is not None for each in asked):
                question.obey(asked)


def name_ranks(asked: Sequence[bool]) -> str:
    """Returns the end of a message that says which rank has made a request.

    Args:
        asked: for each rank, whether this rank has made the request.

    Returns:
        The first rank that has made the request, for example " on rank 1"; an empty text if all
        ranks have made the request.
    """
    return "" if all(asked) else f" on rank {list(asked).index(True)}"
