"""Decisions of all ranks of a run, between two steps: stops, and saves by the clock.

A rank that stops alone leaves the others waiting for its gradients. So what one rank asks for is
obeyed by all of them, at the same step boundary. Nobody waits for the exchange: it is begun as the
last act of one boundary and read at the next, when a whole step lies between the two::

    boundary n        ask()     begins to tell whether anything is asked for here
    boundary n + 1    settle()  what was asked for anywhere is obeyed on all ranks
    end of an epoch   settle_now()  the same within one call, so that no stop leaks into the next;
                                    also at STARTED, and at a limit, after which no boundary comes

Only where something was asked for, the ranks exchange what that is. With one process there is no
exchange: what is asked for is obeyed at once, by other means.
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
    """Something that any rank can ask all ranks to do.

    Attributes:
        asked: returns what this rank asks for, an object that can be pickled, or None. It is called
            at each boundary.
        obey: is called on every rank where one has asked, with what each has, in their order.
    """

    asked: Callable[[], Any]
    obey: Callable[[Sequence[Any]], None]


class Decisions:
    """The questions of one run, and the exchange that is under way.

    Args:
        accelerator: one of several processes.
        every: the number of boundaries from one exchange to the next; more is cheaper and later.
    """

    def __init__(self, accelerator: Accelerator, every: int) -> None:
        self._accelerator = accelerator
        self._every = every
        self._boundaries = 0  # of this run, at which an exchange could have begun
        self._pending: tuple[Any, torch.Tensor] | None = None
        self._questions: list[Question] = []
        host_group(accelerator)  # here, where all ranks are

    def add(self, question: Question) -> Callable[[], None]:
        """Adds a question, on every rank in the same order; returns what undoes this."""
        self._questions.append(question)
        return lambda: self._questions.remove(question)

    def begin(self) -> None:
        """Begins a run: an exchange that a failure has left under way is dropped."""
        self._boundaries, self._pending = 0, None

    def ask(self) -> None:
        """Begins an exchange, if one is due at this boundary. Does not wait."""
        self._boundaries += 1
        if self._boundaries % self._every == 0:
            self._pending = self._exchange(async_op=True)

    def settle(self) -> None:
        """Ends the exchange that is under way, if one is: what any rank asks for is obeyed."""
        if self._pending is None:
            return
        (work, is_any_asked), self._pending = self._pending, None
        work.wait()
        if is_any_asked.item():
            self._obey()

    def settle_now(self) -> None:
        """Obeys what any rank asks for by now, without a boundary between."""
        self._pending = None  # what it would tell of is still asked for
        _, is_any_asked = self._exchange(async_op=False)
        if is_any_asked.item():
            self._obey()

    def _exchange(self, *, async_op: bool) -> tuple[Any, torch.Tensor]:
        """Tells whether this rank asks for anything; returns the work, and whether any does."""
        is_asked = any(each.asked() is not None for each in self._questions)
        is_any_asked = torch.tensor([is_asked], dtype=torch.int32)
        group, op = host_group(self._accelerator), distributed.ReduceOp.MAX
        work = distributed.all_reduce(is_any_asked, op, group=group, async_op=async_op)
        return work, is_any_asked

    def _obey(self) -> None:
        own = [each.asked() for each in self._questions]
        of_ranks: list[Any] = [None] * self._accelerator.num_processes
        distributed.all_gather_object(of_ranks, own, group=host_group(self._accelerator))
        numbers = [len(asked) for asked in of_ranks]
        if len(set(numbers)) > 1:
            raise RuntimeError(
                "every rank must have the same handlers that can stop or save a run, and they have "
                f"{numbers}, by rank: attach each SaveCheckpoint on every rank"
            )
        for question, asked in zip(
            tuple(self._questions), zip(*of_ranks, strict=True), strict=True
        ):
            if any(each is not None for each in asked):
                question.obey(asked)


def name_ranks(asked: Sequence[bool]) -> str:
    """Returns " on rank 1", the first that has asked; "" if all have.

    Args:
        asked: of each rank whether it has.
    """
    return "" if all(asked) else f" on rank {list(asked).index(True)}"
