"""A loader with a sampler: it knows its length, and a pass is entered anywhere."""

from collections import deque
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from itertools import chain
from itertools import islice
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader

from ignite_hooks.data.random_state import GeneratorSearch
from ignite_hooks.data.random_state import RandomGenerator
from ignite_hooks.data.random_state import RandomState
from ignite_hooks.data.random_state import set_state
from ignite_hooks.data.random_state import state_of
from ignite_hooks.data.sources import TorchLoader
from ignite_hooks.data.sources import data_parts
from ignite_hooks.data.sources import order_parts
from ignite_hooks.data.sources import parts_of
from ignite_hooks.data.workers import started

__all__ = ["IndexedLoader"]


class IndexedLoader(TorchLoader):
    """One with a sampler: its length is certain if the sampler's is, and no pass begins in vain.

    A pass is entered anywhere without loading the batches before.
    """

    def __init__(self, loader: Any, even_batches: bool = True) -> None:
        super().__init__(loader, even_batches)
        self._search_data, self._search_order = GeneratorSearch(), GeneratorSearch()
        self._at_end: list[tuple[RandomGenerator, Any]] = []

    @property
    def length(self) -> int | None:
        """The number of index batches of this process."""
        with self._even():
            return self.promised_length

    @property
    def is_entered_exactly(self) -> bool:
        """The batches before are not loaded, and with a certain length none is loaded ahead."""
        return self.length is not None

    @property
    def _seedable_samplers(self) -> list[SeedableRandomSampler]:
        return [part for part in parts_of(self.base) if isinstance(part, SeedableRandomSampler)]

    @contextmanager
    def active(self, data_pass: int) -> Iterator[None]:
        """Without even batches if there is no need for them."""
        with self._even(), super().active(data_pass):
            yield

    def state_dict(self) -> dict[str, Any]:
        """And what its samplers are seeded with.

        Accelerate's seedable samplers take the seed that torch had when the loader was prepared.
        """
        return {
            **super().state_dict(),
            "seeds": [sampler.initial_seed for sampler in self._seedable_samplers],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As its base does."""
        super().load_state_dict(state_dict)
        seeds = state_dict.get("seeds", ())  # data of another kind have none
        for sampler, seed in zip(self._seedable_samplers, seeds, strict=False):
            sampler.initial_seed = seed

    def end_pass(self, data_pass: int, given: int) -> None:
        """Has the samplers draw what they draw at their end."""
        if self._begun is not None and self._begun[0] == data_pass:
            deque(self.batches(data_pass, given), maxlen=0)

    def _reopen(self, skip: int) -> Iterator[Any]:
        base = self.base
        begun = RandomState.capture(generators=self.generators)
        if self._drew_seed:
            torch.empty((), dtype=torch.int64).random_(generator=base.generator)
        indices = iter(base.sampler if base.batch_sampler is None else base.batch_sampler)
        remaining: Iterable[Any] = islice(indices, skip, None)
        if self.length is None:
            remaining = chain(list(islice(remaining, 1)), remaining)  # drawn from now on
        else:
            remaining = list(remaining)
        self._at_end = [(each, state_of(each)) for each in self._generators_of_order()]
        begun.restore()
        return started(_over(base, remaining))

    def _end_reopened(self) -> None:
        """Samplers may have drawn at their end, from generators that are not global."""
        if self.length is not None:
            for generator, state in self._at_end:
                set_state(generator, state)

    def _generators_of_order(self) -> list[RandomGenerator]:
        """Those that no sample is made with: a generator may be shared."""
        of_data = self._search_data(data_parts(self.base)).named.values()
        of_order = self._search_order(order_parts(self.base)).named.values()
        return [each for each in of_order if all(each is not other for other in of_data)]

    @contextmanager
    def _even(self) -> Iterator[None]:
        shards = [
            sampler
            for sampler in (self.loader.batch_sampler, self.loader.sampler)
            if isinstance(sampler, BatchSamplerShard) and not self.even_batches
        ]
        before = [shard.even_batches for shard in shards]
        for shard in shards:
            shard.even_batches = False
        try:
            yield
        finally:
            for shard, even_batches in zip(shards, before, strict=True):
                shard.even_batches = even_batches


def _over(base: DataLoader[Any], indices: Iterable[Any]) -> DataLoader[Any]:
    """A loader like ``base`` that goes over ``indices`` and then ends."""
    order = {"sampler": indices, "batch_size": None}
    if base.batch_sampler is not None:
        order = {"batch_sampler": indices}
    return DataLoader(
        base.dataset,
        **order,  # type: ignore[arg-type]
        num_workers=base.num_workers,
        collate_fn=base.collate_fn,
        pin_memory=base.pin_memory,
        timeout=base.timeout,
        worker_init_fn=base.worker_init_fn,
        multiprocessing_context=base.multiprocessing_context,
        generator=base.generator,
        prefetch_factor=base.prefetch_factor,
        in_order=base.in_order,
    )
