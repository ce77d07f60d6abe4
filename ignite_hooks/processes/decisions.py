"""Decisions that all ranks of a run make together between two steps: stops, and saves by time.

A rank that stops alone leaves the others waiting for its gradients. So all ranks obey a request of
any rank, at the same step boundary. The exchange costs no waiting time: it begins at the end of one
boundary and is read at the next, a whole step later::

    boundary n       begin_exchange()   is there a request on any rank?
    boundary n + 1   finish_exchange()  all ranks obey the requests of any rank
    end of an epoch  exchange_now()     both in one call, so that no request is left for the next
                                        epoch; also at STARTED, and at a limit, after which no
                                        boundary follows

The requests themselves are exchanged only if there are any. With one process nothing is exchanged:
a request is then obeyed at once, elsewhere.
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
    """A kind of request that any rank can make to all ranks.

    Attributes:
        asked: returns the request of this rank, an object that can be pickled, or None. It is
            called at each boundary.
        obey: is called on every rank if any rank has made a request, with the requests of all
            ranks in their order, None for a rank without one.
    """

    asked: Callable[[], Any]
    obey: Callable[[Sequence[Any]], None]


class Decisions:
    """The questions of one run, and the pending exchange of requests.

    Args:
        accelerator: an accelerator of several processes.
        every: the number of boundaries from one exchange to the next. A larger number costs less,
            and requests are obeyed later.
    """

    def __init__(self, accelerator: Accelerator, every: int) -> None:
        self._accelerator = accelerator
        self._every = every
        self._boundaries = 0  # in this run
        self._pending: tuple[Any, torch.Tensor] | None = None
        self._questions: list[Question] = []
        host_group(accelerator)  # made here, because making a group is collective

    def add(self, question: Question) -> Callable[[], None]:
        """Adds a question; returns a function that removes it.

        Every rank must add the same questions in the same order.
        """
        self._questions.append(question)
        return lambda: self._questions.remove(question)

    def begin(self) -> None:
        """Begins a run; drops an exchange that is still pending after a failure."""
        self._boundaries, self._pending = 0, None

    def begin_exchange(self) -> None:
        """Begins an exchange, if one is due at this boundary. Does not wait for the other ranks."""
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
        """Exchanges and obeys the requests that any rank has now. Waits for the other ranks."""
        self._pending = None  # nothing is lost: its requests are still there
        _, is_any_asked = self._exchange(async_op=False)
        if is_any_asked.item():
            self._obey()

    def _exchange(self, *, async_op: bool) -> tuple[Any, torch.Tensor]:
        """Exchanges whether any rank has a request.

        Returns:
            The work handle of the collective, and a tensor that is 1 afterwards if any rank has a
            request.
        """
        is_asked = any(each.asked() is not None for each in self._questions)
        # `all_reduce` writes the maximum over all ranks into this tensor.
        is_any_asked = torch.tensor([is_asked], dtype=torch.int32)
        group, op = host_group(self._accelerator), distributed.ReduceOp.MAX
        work = distributed.all_reduce(is_any_asked, op, group=group, async_op=async_op)
        return work, is_any_asked

    def _obey(self) -> None:
        """Gathers the requests of all ranks, and calls ``obey`` where there are any."""
        own = [each.asked() for each in self._questions]
        requests: list[Any] = [None] * self._accelerator.num_processes
        distributed.all_gather_object(requests, own, group=host_group(self._accelerator))
        # The requests of the ranks are matched by the order of the questions.
        numbers = [len(asked) for asked in requests]
        if len(set(numbers)) > 1:
            raise RuntimeError(
                "every rank must have the same handlers that can stop or save a run, and they have "
                f"{numbers}, by rank: attach each SaveCheckpoint on every rank"
            )
        for question, asked in zip(
            tuple(self._questions), zip(*requests, strict=True), strict=True
        ):
            if any(each is not None for each in asked):
                question.obey(asked)


def name_ranks(asked: Sequence[bool]) -> str:
    """Returns " on rank 1" for the first rank that has made a request; "" if all ranks have.

    Args:
        asked: for each rank whether it has made the request.
    """
    return "" if all(asked) else f" on rank {list(asked).index(True)}"
