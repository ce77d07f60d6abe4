"""Where a pass over the data ends: told with its last batch, and the same for all processes."""

import warnings
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

from accelerate import Accelerator

from ignite_hooks.data.shared_order import what_may_draw_apart
from ignite_hooks.data.sources import PlainIterable
from ignite_hooks.processes.host_group import smallest_of_all

__all__ = ["PassEnd"]

_END = object()


class PassEnd:
    """Fetches the batches of each pass, and tells the last one when it comes, not after it.

    The last batch closes the window of the optimizer, so it must be known before it is trained on.
    A loader that knows its end itself is asked; where the number of batches is certain, they are
    counted; else one is fetched ahead. ``ahead`` holds what is fetched and not given yet, and
    ``length`` the number of batches in a pass, or None where it is not certain.

    Args:
        source: what gives the batches.
        accelerator: of the processes that must end together, after as many batches as the poorest
            of them has; None where each ends by itself.
    """

    def __init__(self, source: PlainIterable, accelerator: Accelerator | None = None) -> None:
        self._source = source
        self._accelerator = accelerator
        self.ahead: deque[Any] = deque()
        self.length: int | None = None
        self._has_told = self._has_told_orders = False
        self.settle()

    def settle(self, digest: int = 0) -> None:
        """Asks anew how many batches a pass has, which may depend on the pass. Collective.

        Args:
            digest: of the global random generators, where the order may be drawn from them; all
                processes must have the same. 0 where they need not.
        """
        length = self._own_length = self._source.length
        if self._accelerator is not None:
            own = (-1 if length is None else length, digest, -digest)
            smallest, lowest, highest = smallest_of_all(own, self._accelerator)
            length = None if smallest < 0 else smallest
            if length is not None and self._own_length is not None:
                self._tell_surplus(self._own_length - length)
            if lowest != -highest:
                self._tell_other_orders()
        self.length = length

    def look(self) -> None:
        """Takes over a number of batches that has changed in this process."""
        length = self._source.length
        if length != self._own_length:
            self.length = self._own_length = length

    def fetch(self, batches: Iterator[Any], data_pass: int, given: int) -> Iterator[bool]:
        """Puts batch after batch in ``ahead``; says of each whether it is the last of the pass.

        Args:
            batches: those of pass ``data_pass`` (from 0) but the first ``given``.
            data_pass: the pass, for the message of an error.
            given: how many of its batches were given before.

        Raises:
            RuntimeError: the pass has more or fewer batches than it was said to have.
        """
        if self._source.ends_itself:
            while self._fill(batches, 1):
                yield bool(self._source.loader.end_of_dataloader)
        elif self.length is not None:
            ahead, length = self.ahead, self.length
            for number in range(given + 1, length + 1):
                ahead.append(next(batches, _END))  # by no name: it would be kept with it
                if ahead[0] is _END:
                    ahead.clear()
                    raise RuntimeError(self._wrong_length(f"only {number - 1}", data_pass))
                yield number == length
            # Samplers draw at their end: a pass that was entered again has to come to it as well.
            if self._own_length == self.length and next(batches, _END) is not _END:
                raise RuntimeError(self._wrong_length("more", data_pass))
        else:
            yield from self._look_ahead(batches)

    def _look_ahead(self, batches: Iterator[Any]) -> Iterator[bool]:
        several = self._accelerator
        window = several.gradient_accumulation_steps if several else 1
        ending = False
        while not ending:
            available = self._fill(batches, window + 1)
            if several:
                (available,) = smallest_of_all([available], several)
            ending = available <= window
            given = available if ending else window
            if ending and several:
                self._tell_surplus(len(self.ahead) - given, "at least ")
            for number in range(1, given + 1):
                yield ending and number == given
        self.ahead.clear()

    def _tell_surplus(self, batches: int, at_least: str = "") -> None:
        """Warns once that this rank has batches that are left out."""
        accelerator = self._accelerator
        if accelerator is not None and batches > 0 and not self._has_told:
            self._has_told = True
            warnings.warn(
                f"rank {accelerator.process_index} has more batches in a pass than another rank, "
                f"{at_least}{batches}: these are left out, so that all ranks make the same steps. "
                "Give every rank as many batches",
                stacklevel=2,
            )

    def _tell_other_orders(self) -> None:
        """Warns once that each rank may take its share of another order."""
        if self._has_told_orders:
            return
        self._has_told_orders = True
        loader = self._source.loader
        warnings.warn(
            f"the global random generators differ between ranks, and {what_may_draw_apart(loader)} "
            "may draw the order of `data` from them: then each rank takes its share of another "
            "order, so that some samples are trained on twice and others never. Give it a "
            "`generator` of its own, or seed all ranks alike",
            stacklevel=2,
        )

    def _fill(self, batches: Iterator[Any], count: int) -> int:
        self.ahead.extend(islice(batches, count - len(self.ahead)))
        return len(self.ahead)

    def _wrong_length(self, given: str, data_pass: int) -> str:
        return (
            f"`data` must give as many batches as its len() says, which is {self.length}; it gave "
            f"{given} in pass {data_pass + 1}: correct __len__ of its batch sampler "
            "(or remove it, and the feed looks ahead)"
        )
