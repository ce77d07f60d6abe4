"""A loader with a sampler: it knows its length, and a pass is entered anywhere."""

from collections import deque
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from itertools import chain
from itertools import islice
from typing import Any
from weakref import ref

import torch
from accelerate.data_loader import BatchSamplerShard
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader

from ignite_hooks.core.place import FeedPosition
from ignite_hooks.data.own_states import Objects
from ignite_hooks.data.place_states import keeper_of_order
from ignite_hooks.data.random_state import GeneratorSearch
from ignite_hooks.data.random_state import RandomGenerator
from ignite_hooks.data.random_state import RandomState
from ignite_hooks.data.recorded_order import RecordedOrder
from ignite_hooks.data.sample_order import batches_behind
from ignite_hooks.data.sample_order import elements_a_batch
from ignite_hooks.data.sample_order import entered
from ignite_hooks.data.sample_order import entered_at_element
from ignite_hooks.data.sample_order import entered_at_sample
from ignite_hooks.data.sample_order import gone_through
from ignite_hooks.data.sample_order import name_of
from ignite_hooks.data.sample_order import samples_a_batch
from ignite_hooks.data.sample_order import samples_of
from ignite_hooks.data.sample_order import with_recorded
from ignite_hooks.data.sources import TorchLoader
from ignite_hooks.data.sources import data_parts
from ignite_hooks.data.sources import order_parts
from ignite_hooks.data.sources import parts_of
from ignite_hooks.data.worker_states import WorkerStates
from ignite_hooks.data.worker_states import as_data
from ignite_hooks.data.worker_states import from_data
from ignite_hooks.data.workers import forget_dead_workers
from ignite_hooks.data.workers import keep_workers
from ignite_hooks.data.workers import started

__all__ = ["IndexedLoader"]


class IndexedLoader(TorchLoader):
    """A loader with a sampler: its length is certain if the sampler's is.

    A pass is entered at any position without loading earlier batches. With torch's ``BatchSampler``
    the position counts samples of all processes, without the duplicates that even out the batches,
    so the rest of a pass can have another batch size.
    """

    def __init__(self, loader: Any, even_batches: bool = True) -> None:
        super().__init__(loader, even_batches)
        self._search_data, self._search_order = GeneratorSearch(), GeneratorSearch()
        self._data_pass = 0  # the pass that was announced last
        # A position, and the samples before it where these are not a multiple of the batch size.
        self._known_place: tuple[FeedPosition, int] | None = None
        self._workers = WorkerStates()
        self._own_workers: Callable[[], Any] = lambda: None  # the iterator with those that stay
        self._recorded = self._recorded_order()
        # A sampler that is asked for its state without workers: only what it draws is watched.
        keeper = None if self._is_torchdata else self.keeper
        self._watched = None if keeper is None else RecordedOrder(keeper)

    def _recorded_order(self) -> RecordedOrder | None:
        """Returns the sampler that has a state, to be iterated for workers; None without any."""
        order = self._order
        keeper = keeper_of_order(self.base) if self._can_follow else None
        if keeper is None:
            return None
        is_shard = type(order) is BatchSamplerShard
        is_of_batches = is_shard and order.batch_sampler is keeper.holder
        return RecordedOrder(
            keeper,
            head_size=elements_a_batch(order) if is_shard else 0,
            size=order.batch_size if is_of_batches else None,
        )

    @property
    def beside_keeper(self) -> Objects:
        """The objects whose states are not in that of a sampler."""
        found, recorded = super().beside_keeper, self._recorded
        if recorded is None or not recorded.tells_place:
            return found
        return {name: get for name, get in found.items() if not recorded.keeper.has(name)}

    @property
    def length(self) -> int | None:
        """The number of index batches of this process."""
        with self._even():
            known = self._known_place
            if known is None or known[0].data_pass != self._data_pass:
                return self._length_of_pass
            behind = self.batches_behind(known[1])
            return None if behind is None else known[0].batches + behind

    @property
    def _length_of_pass(self) -> int | None:
        is_known = samples_of(self._order) is not None
        return batches_behind(self._order, 0) if is_known else self.promised_length

    @property
    def reaches_all_ranks(self) -> bool:
        """Returns whether Accelerate divides enough batches."""
        order = self._order
        if type(order) is not BatchSamplerShard or samples_of(order) is None:
            return False
        needed = 2 if order.split_batches else order.num_processes
        return len(order.batch_sampler) >= needed

    @property
    def is_entered_exactly(self) -> bool:
        """The batches before are not loaded, and with a certain length none is loaded ahead."""
        return self.length is not None

    @property
    def is_replayed(self) -> bool:
        """Returns False: indices may be drawn again, but no batch is loaded again."""
        return False

    @property
    def is_in_order(self) -> bool:
        """Returns whether batches come in the order of their indices."""
        return self.base.num_workers == 0 or self.base.in_order

    @property
    def _order(self) -> Any:
        return self.base.sampler if self.base.batch_sampler is None else self.base.batch_sampler

    @property
    def _seedable_samplers(self) -> list[SeedableRandomSampler]:
        return [part for part in parts_of(self.base) if isinstance(part, SeedableRandomSampler)]

    def tell_pass(self, data_pass: int) -> None:
        """As its base does."""
        super().tell_pass(data_pass)
        self._data_pass = data_pass

    @contextmanager
    def active(self, data_pass: int) -> Iterator[None]:
        """Without even batches if there is no need for them."""
        with self._even(), super().active(data_pass):
            yield

    def state_dict(self) -> dict[str, Any]:
        """And what its samplers are seeded with, and draw their order with.

        Accelerate's seedable samplers take the seed that torch had when the loader was prepared.
        """
        return {
            **super().state_dict(),
            "seeds": [sampler.initial_seed for sampler in self._seedable_samplers],
            "opening": None if self._watched is None else self._watched.opening,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As its base does."""
        super().load_state_dict(state_dict)
        seeds = state_dict.get("seeds", ())  # data of another kind have none
        for sampler, seed in zip(self._seedable_samplers, seeds, strict=False):
            sampler.initial_seed = seed
        if self._watched is not None:
            self._watched.load_opening(state_dict.get("opening"))

    def facts(self) -> dict[str, int | str | None]:
        """Returns the facts of the base class, how many samples a pass has, and their order."""
        with self._even():
            of_samples = {"samples a pass": samples_of(self._order), "order": name_of(self._order)}
            return {**super().facts(), **of_samples}

    def samples_before(self, position: FeedPosition) -> int | None:
        """Returns the samples of the pass before a position; None if not certain."""
        a_batch = samples_a_batch(self._order)
        if a_batch is None:
            return None
        known, samples = FeedPosition(position.data_pass, 0), 0
        if self._known_place is not None and self._known_place[0].data_pass == position.data_pass:
            known, samples = self._known_place
        return samples + (position.batches - known.batches) * a_batch

    @property
    def gone_through(self) -> Any:
        """The sampler that has to be iterated to enter a pass; None for those of torch."""
        return gone_through(self._order)

    def batches_behind(self, samples: int) -> int | None:
        """Returns how many batches of this process come after that many samples."""
        with self._even():
            is_known = samples_of(self._order) is not None
            return batches_behind(self._order, samples) if is_known else None

    def place_samples(self, position: FeedPosition, samples: int) -> None:
        """Sets how many samples of the pass come before a position."""
        self._known_place = None
        if samples != self.samples_before(position):
            self._known_place = position, samples

    def end_pass(self, data_pass: int, given: int) -> None:
        """Has the samplers draw what they draw at their end.

        One that is recorded has come to it: workers are given samples ahead.
        """
        is_drawn = self._reaches(data_pass, given)
        if not is_drawn and self._begun is not None and self._begun[0] == data_pass:
            with self._as_begun(self._begun[1]):
                rest = self._draw_rest(data_pass, given)
            deque(rest, maxlen=0)

    def workers_before(self, position: FeedPosition) -> dict[str, Any] | None:
        """Returns the states of the workers at a position; None without any, or if not known."""
        if not self._can_follow or not (position.batches or self._has_workers):
            return None
        found = self._workers.at(*position)
        if found is None and not position.batches:
            found = 0, self._workers.after(position.data_pass - 1)
        if found is None or not found[1]:
            return None
        return {"first": found[0], "states": [as_data(each) for each in found[1]]}

    def takes_workers(self, state_dict: Mapping[str, Any] | None) -> bool:
        """Returns whether workers can continue from these states."""
        if state_dict is None or not self._can_follow:
            return False
        return len(state_dict["states"]) == self.base.num_workers

    def place_workers(
        self, position: FeedPosition, state_dict: Mapping[str, Any] | None = None
    ) -> None:
        """Sets the states from which workers continue at a position; None if not known."""
        first, states = position.batches, list[bytes | None]()
        if state_dict is not None:
            first, states = state_dict["first"], [*map(from_data, state_dict["states"])]
        self._workers.begin(position.data_pass, first, states, self.places.window)

    def order_before(self, position: FeedPosition) -> dict[str, Any] | None:
        """Returns the state of a sampler that is recorded; None without one, or if not known."""
        if self._recorded is None:
            return None
        data_pass, _ = position
        first, _ = self._followed(*position)
        return self._recorded.state_dict(
            data_pass,
            self._elements_before(data_pass, first),
            is_begun=self._begun is not None and self._begun[0] == data_pass,
        )

    def takes_order(self, state_dict: Mapping[str, Any] | None) -> bool:
        """Returns whether the sampler can continue from this state."""
        if self._recorded is None or state_dict is None:
            return False
        return bool(state_dict["of"] == self._recorded.keeper.name)

    def place_order(
        self,
        position: FeedPosition,
        state_dict: Mapping[str, Any] | None = None,
        *,
        ends: bool = False,
    ) -> None:
        """As its base does."""
        if self._recorded is not None:
            is_taken = self.takes_order(state_dict)
            self._recorded.load_state_dict(position.data_pass, state_dict if is_taken else None)
            if ends:
                self._recorded.exhaust()

    def changes_of_order(self, state_dict: Mapping[str, Any] | None) -> list[str]:
        """Returns what keeps the sampler from continuing from this state."""
        if self._recorded is None or state_dict is None:
            return super().changes_of_order(state_dict)
        if self.takes_order(state_dict):
            return self._recorded.differences(state_dict)
        now = self._recorded.keeper.name
        return [f"the state of {state_dict['of']} is not restored, there is {now} now"]

    def has_saved(self, name: str, state_dict: Mapping[str, Any] | None) -> bool:
        """Returns whether the state of the sampler tells of the generator of that name."""
        if self._recorded is None or not self.takes_order(state_dict):
            return False
        return self._recorded.keeper.has(name)

    def _elements_before(self, data_pass: int, batches: int) -> int:
        """Returns how many elements of the recorded sampler a pass has before a batch."""
        samples = self.samples_before(FeedPosition(data_pass, batches))
        return batches * elements_a_batch(self._order) if samples is None else samples

    def _reaches(self, data_pass: int, batches: int) -> bool:
        """Returns whether the elements of a pass after a batch are recorded."""
        start = self._elements_before(data_pass, batches)
        return self._recorded is not None and self._recorded.reaches(data_pass, start)

    @property
    def _drawn_order(self) -> Any:
        """The index batches of a pass, drawn from the recorded sampler if there is one."""
        order, recorded = self._order, self._recorded
        return order if recorded is None else with_recorded(order, recorded)

    @contextmanager
    def _beginning(self, data_pass: int) -> Iterator[None]:
        """Around the start of an iteration over a pass: the sampler is recorded."""
        recorded = self._recorded
        if recorded is None:
            yield
            return
        recorded.rewind(data_pass)
        self._set_capacity(recorded)
        with recorded.beginning(data_pass, self.generators):
            yield

    def _set_capacity(self, recorded: RecordedOrder) -> None:
        """Keeps as many elements as were drawn after any position that a run may go back to."""
        base = self.base
        ahead = base.num_workers * (base.prefetch_factor or 0)
        aligned = base.num_workers - 1  # batches before the position, which worker 0 begins with
        given = 2 * (self.places.window + 1)  # and not trained on, or looked ahead at
        recorded.capacity = (ahead + aligned + given) * elements_a_batch(self._order)

    @property
    def _can_follow(self) -> bool:
        """Returns whether it is certain which worker loads which batch."""
        base = self.base
        is_followed = base.num_workers > 0 and base.in_order
        return is_followed and not self._is_torchdata and not self._skipped

    @property
    def _is_torchdata(self) -> bool:
        return hasattr(self.base, "load_state_dict")

    def _open(self) -> Iterator[Any]:
        base = self.base
        if not self._can_follow:
            return super()._open()
        forget_dead_workers(base)
        found = base._iterator
        if found is not None and found is not self._own_workers():
            self._workers.begin(self._data_pass, 0, ())  # started by the user
            with self._beginning(self._data_pass):
                return super()._open()
        _, states = self._workers.at(self._data_pass, 0) or (0, [None] * base.num_workers)
        if found is not None:
            states = self._workers.after(self._data_pass - 1)
        with self._beginning(self._data_pass), self._workers.starting(base, states):
            batches = super()._open()
        self._workers.begin(self._data_pass, 0, states, self.places.window, self.length)
        if self._recorded is not None and base.persistent_workers:
            keep_workers(batches, base, self._drawn_order)
        self._own_workers = ref(batches)
        return self._workers.follow(batches, 0)

    def continued(self, skip: int) -> Iterator[Any]:
        """As its base does."""
        if self._watched is not None and skip:
            self._watched.continue_next()
        return super().continued(skip)

    def _to_start(self) -> DataLoader[Any]:
        """Returns the loader, over the recorded sampler if there is one."""
        base = self.base
        if self._watched is not None:
            return _over(base, with_recorded(self._order, self._watched), base.generator)
        if self._recorded is None:
            return base
        if base.persistent_workers and base._iterator is not None:
            keep_workers(base._iterator, base, self._drawn_order)
            return base
        stays, generator = base.persistent_workers, base.generator
        return _over(base, self._drawn_order, generator, persistent_workers=stays)

    def _reentered(self, data_pass: int, skip: int, begun: RandomState) -> Iterator[Any]:
        first, states = self._followed(data_pass, skip)
        if self._recorded is None or not self._reaches(data_pass, first):
            return super()._reentered(data_pass, skip, begun)
        self._set_capacity(self._recorded)
        # All that was drawn is recorded: no generator goes back.
        rest = entered_at_element(self._drawn_order, self._elements_before(data_pass, first))
        batches = self._load(rest, self._seeds_of(begun), data_pass, first, states)
        return islice(batches, skip - first, None)

    def _seeds_of(self, begun: RandomState) -> torch.Generator:
        """Returns the generator that workers were seeded from, as it was when a pass began."""
        seeds, of_loader = torch.Generator(), self.base.generator
        found = [state for each, state in begun.generators.values() if each is of_loader]
        seeds.set_state(found[0] if found else begun.cpu)
        return seeds

    def _followed(self, data_pass: int, skip: int) -> tuple[int, list[bytes | None]]:
        """Returns the batch to start workers with, and the state of each, if that is known."""
        followed = self._workers.at(data_pass, skip) if self._can_follow else None
        return followed or (skip, [None] * self.base.num_workers)

    def _reopen(self, data_pass: int, skip: int) -> Iterator[Any]:
        # Taken before the order is drawn: workers are seeded as they were when the pass began.
        seeds, of_loader = torch.Generator(), self.base.generator
        seeds.set_state((torch.default_generator if of_loader is None else of_loader).get_state())
        first, states = self._followed(data_pass, skip)
        batches = self._load(self._draw_rest(data_pass, first), seeds, data_pass, first, states)
        return islice(batches, skip - first, None)

    def _load(
        self,
        rest: Iterator[Any],
        seeds: torch.Generator,
        data_pass: int,
        first: int,
        states: list[bytes | None],
    ) -> Iterator[Any]:
        """Yields the batches of these indices, from workers that begin with these states."""
        base, stays = self.base, self.base.persistent_workers
        if not self._can_follow:
            yield from started(_over(base, rest, seeds))
            return
        base._iterator = None  # ends persistent workers, which have prefetched too far
        loader = _over(base, rest, seeds, persistent_workers=stays)
        with self._workers.starting(loader, states):
            batches = started(loader)
        self._workers.begin(data_pass, first, states, self.places.window, self.length)
        if stays:
            keep_workers(batches, base, self._drawn_order)
            self._own_workers = ref(batches)
        yield from self._workers.follow(batches, first)

    def _draw_rest(self, data_pass: int, skip: int) -> Iterator[Any]:
        """Draws what was drawn up to a position, and returns the index batches after it."""
        with self._beginning(data_pass):
            return self._drawn_rest(data_pass, skip)

    def _drawn_rest(self, data_pass: int, skip: int) -> Iterator[Any]:
        base, order = self.base, self._drawn_order
        is_others = gone_through(self._order) is self._order
        whole = iter(order) if is_others else order  # may draw, before torch draws the seed
        if self._drew_seed:
            torch.empty((), dtype=torch.int64).random_(generator=base.generator)
        if is_others and base.num_workers:
            whole = iter(order)  # torch asks for the iterator twice
        samples = self.samples_before(FeedPosition(data_pass, skip))
        if samples is None:
            _, rest = entered(whole, skip)
        else:
            rest = entered_at_sample(order, samples)
        return chain([*islice(rest, self._count_asked(data_pass, skip))], rest)

    def _count_asked(self, data_pass: int, skip: int) -> int:
        """Returns how many index batches after a position had been drawn already."""
        asked = self.base.num_workers * (self.base.prefetch_factor or 0)
        if self.length is None:
            asked += 1
        if self.furthest.data_pass == data_pass:
            asked += max(0, self.furthest.batches - skip)
        return asked if skip else max(asked, 1)

    def doubts(self) -> list[str]:
        """Returns those of the base class, and what has changed in the present workers."""
        is_over = self._workers.is_over and not self._stays
        order = self._watched if self._recorded is None else self._recorded
        of_order = [] if order is None else order.doubts()
        return [
            *super().doubts(),
            *of_order,
            *self._doubts_of_seeds(),
            *(() if is_over else self._workers.doubts),
        ]

    def _doubts_of_seeds(self) -> list[str]:
        """Returns why workers may be seeded otherwise after a resume."""
        base, recorded = self.base, self._recorded
        if recorded is None or self._order is not recorded.holder or not recorded.draws_when_asked:
            return []  # a batch sampler of torch asks for it after the workers are seeded
        if base.num_workers == 1 and not base.persistent_workers:
            return []
        return [
            f"{recorded.keeper.name} draws from the global random generators when it is asked for "
            "its iterator, before workers are seeded from them: draw with the first element instead"
        ]

    @contextmanager
    def _as_begun(self, begun: RandomState) -> Iterator[None]:
        """Leaves the generators that only the order draws from where the draws leave them."""
        own = {id(each) for each in self._generators_of_order()}
        others = {name: each for name, each in self.generators.items() if id(each) not in own}
        with RandomState.preserved(generators=others):
            begun.restore()
            yield

    def _generators_of_order(self) -> list[RandomGenerator]:
        """Returns the generators that only the order draws from, and no sample."""
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


def _over(
    base: DataLoader[Any],
    indices: Iterable[Any],
    generator: torch.Generator | None,
    *,
    persistent_workers: bool = False,
) -> DataLoader[Any]:
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
        generator=generator,
        prefetch_factor=base.prefetch_factor,
        in_order=base.in_order,
        persistent_workers=persistent_workers,
    )
