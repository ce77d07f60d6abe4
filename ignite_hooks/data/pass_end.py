"""Detects the last batch of a pass before this batch is given to the engine.

A pass is one iteration over the whole data.
"""

import warnings
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

from accelerate import Accelerator

from ignite_hooks.data.shared_order import rank_dependent_part
from ignite_hooks.data.sources import PlainIterable
from ignite_hooks.processes.host_group import min_over_ranks

__all__ = ["PassEnd"]

_END = object()


class PassEnd:
    """Fetches the batches of each pass, and detects the last batch before it is given.

    The last batch closes the accumulation window (the batches whose gradients are accumulated for
    one optimizer step). So when this batch is given, it must be known that no batch follows. There
    are three cases:

    - The loader marks its last batch itself (``end_of_dataloader``): this mark is used.
    - The number of batches is certain: the batches are counted.
    - Otherwise at least one batch is fetched ahead.

    Attributes:
        ahead: batches that were fetched and not given yet.
        length: the number of batches in a pass; None if the number is not certain. If all ranks end
            a pass together, this is the smallest number of all ranks.

    Args:
        source: the source of the batches.
        accelerator: if given, all of its ranks end a pass after the same number of batches: the
            smallest number that a rank has. None if each rank ends a pass at its own last batch.
    """

    def __init__(self, source: PlainIterable, accelerator: Accelerator | None = None) -> None:
        self._source = source
        self._accelerator = accelerator
        self.ahead: deque[Any] = deque()
        self.length: int | None = None
        self._warned_of_surplus = self._warned_of_different_orders = False
        self.synchronize_length()

    def synchronize_length(self, digest: int = 0) -> None:
        """Sets ``length`` to the smallest number of batches of all ranks. Collective.

        Args:
            digest: a hash of the states of the global random generators, if each rank draws the
                order of the samples from them; otherwise 0. If the digests of the ranks differ, a
                warning is given.
        """
        # `_local_length` keeps the number of this rank alone.
        length = self._local_length = self._source.length
        if self._accelerator is not None:
            # The minimum of -digest is the negative of the maximum of digest. So one collective
            # finds both the minimum and the maximum. If they differ, the digests differ.
            own = (-1 if length is None else length, digest, -digest)
            smallest, lowest, highest = min_over_ranks(own, self._accelerator)
            length = None if smallest < 0 else smallest
            if length is not None and self._local_length is not None:
                self._warn_of_surplus(self._local_length - length)
            if lowest != -highest:
                self._warn_of_different_orders()
        self.length = length

    def update_length(self) -> None:
        """Updates ``length`` if this process's number of batches has changed. Not collective."""
        length = self._source.length
        if length != self._local_length:
            self.length = self._local_length = length

    def fetch(self, batches: Iterator[Any], data_pass: int, given: int) -> Iterator[bool]:
        """Fetches batches into ``ahead``. Yields for each batch whether it is the last of the pass.

        After each ``yield`` of this method, the caller takes one batch from ``ahead``.

        Args:
            batches: the remaining batches of the pass.
            data_pass: the number of the pass, from 0, for error messages.
            given: the number of batches of the pass that were given before.

        Raises:
            RuntimeError: the pass has more or fewer batches than the ``len()`` of the data.
        """
        if self._source.knows_its_end:
            while self._fetch_up_to(batches, 1):
                yield bool(self._source.loader.end_of_dataloader)
        elif self.length is not None:
            ahead, length = self.ahead, self.length
            for number in range(given + 1, length + 1):
                # The batch is not assigned to a variable, because the variable would keep the batch
                # alive while this generator is suspended.
                ahead.append(next(batches, _END))
                if ahead[0] is _END:
                    ahead.clear()
                    raise RuntimeError(self._wrong_length_message(f"only {number - 1}", data_pass))
                yield number == length
            # A plain loop requests one more batch after the last one, and some samplers draw random
            # numbers at this request. So this rank makes the request, too, if it has given its own
            # last batch.
            if self._local_length == self.length and next(batches, _END) is not _END:
                raise RuntimeError(self._wrong_length_message("more", data_pass))
        else:
            yield from self._look_ahead(batches)

    def _look_ahead(self, batches: Iterator[Any]) -> Iterator[bool]:
        """Does the work of ``fetch`` if the number of batches is not certain.

        One process fetches one batch ahead. Several processes fetch a full accumulation window and
        one more batch, so that the ranks exchange their numbers of fetched batches only once per
        window.
        """
        accelerator = self._accelerator
        window = accelerator.gradient_accumulation_steps if accelerator else 1
        ending = False
        while not ending:
            available = self._fetch_up_to(batches, window + 1)
            if accelerator:
                (available,) = min_over_ranks([available], accelerator)
            ending = available <= window
            given = available if ending else window
            if ending and accelerator:
                self._warn_of_surplus(len(self.ahead) - given, "at least ")
            for number in range(1, given + 1):
                yield ending and number == given
        self.ahead.clear()  # drops surplus batches: another rank has fewer batches in this pass

    def _warn_of_surplus(self, batches: int, at_least: str = "") -> None:
        """Warns once if batches of this rank are left out, because another rank has fewer.

        Args:
            batches: the number of batches that are left out.
            at_least: the words before this number in the warning: "at least " if more batches may
                be left out.
        """
        accelerator = self._accelerator
        if accelerator is not None and batches > 0 and not self._warned_of_surplus:
            self._warned_of_surplus = True
            warnings.warn(
                f"rank {accelerator.process_index} has more batches in a pass than another rank "
                f"({at_least}{batches} more): the surplus is left out, so that all ranks make the "
                "same steps. Give every rank the same number of batches",
                stacklevel=2,
            )

    def _warn_of_different_orders(self) -> None:
        """Warns once that the ranks may use different orders of the samples."""
        if self._warned_of_different_orders:
            return
        self._warned_of_different_orders = True
        part = rank_dependent_part(self._source.loader)
        warnings.warn(
            f"the global random generators differ between ranks, and {part} "
            "may draw the order of `data` from them: then each rank takes its share from a "
            "different order, so that some samples are trained on twice and others never. Seed "
            f"all ranks alike, or give {part} its own `generator`",
            stacklevel=2,
        )

    def _fetch_up_to(self, batches: Iterator[Any], count: int) -> int:
        """Fills ``ahead`` up to ``count`` batches, if there are as many; returns ``len(ahead)``."""
        self.ahead.extend(islice(batches, count - len(self.ahead)))
        return len(self.ahead)

    def _wrong_length_message(self, given: str, data_pass: int) -> str:
        """Returns the error message for data whose ``len()`` is not its number of batches.

        Args:
            given: the words for the number of batches that the data gave: "only 3" or "more".
            data_pass: the number of the pass, from 0.
        """
        return (
            f"`data` must give as many batches as its len() says, which is {self.length}; it gave "
            f"{given} in pass {data_pass + 1}: correct __len__ of its batch sampler, or remove "
            "__len__ (then one batch is fetched ahead)"
        )
