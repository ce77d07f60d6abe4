"""The source for a loader with a sampler: a pass can be entered at any batch without loading."""

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
from ignite_hooks.data.object_states import Objects
from ignite_hooks.data.random_state import GeneratorSearch
from ignite_hooks.data.random_state import RandomGenerator
from ignite_hooks.data.random_state import RandomState
from ignite_hooks.data.recorded_order import RecordedOrder
from ignite_hooks.data.sample_order import batches_after
from ignite_hooks.data.sample_order import elements_per_batch
from ignite_hooks.data.sample_order import enter_at_element
from ignite_hooks.data.sample_order import enter_at_sample
from ignite_hooks.data.sample_order import enter_order
from ignite_hooks.data.sample_order import order_name
from ignite_hooks.data.sample_order import replayed_sampler
from ignite_hooks.data.sample_order import samples_per_batch
from ignite_hooks.data.sample_order import samples_per_pass
from ignite_hooks.data.sample_order import with_recorded_sampler
from ignite_hooks.data.snapshots import order_keeper
from ignite_hooks.data.sources import TorchLoader
from ignite_hooks.data.sources import data_parts
from ignite_hooks.data.sources import dataset_and_samplers
from ignite_hooks.data.sources import order_parts
from ignite_hooks.data.worker_states import WorkerStates
from ignite_hooks.data.worker_states import worker_state_from_plain
from ignite_hooks.data.worker_states import worker_state_to_plain
from ignite_hooks.data.workers import forget_dead_workers
from ignite_hooks.data.workers import hand_over_workers
from ignite_hooks.data.workers import iterate_with_workers

__all__ = ["IndexedLoader"]


class IndexedLoader(TorchLoader):
    """A loader with a sampler, whose length is certain if the sampler's length is.

    A pass can be entered at any position without loading earlier batches. With torch's
    ``BatchSampler`` the position counts samples of all processes, without the repeated ones that
    make the last batches even, so the rest of a pass can have another batch size.
    """

    def __init__(self, loader: Any, even_batches: bool = True) -> None:
        super().__init__(loader, even_batches)
        self._search_data, self._search_order = GeneratorSearch(), GeneratorSearch()
        self._data_pass = 0  # the pass that was announced last
        # A position and the number of samples before it, where that number is not a multiple of the
        # batch size, because the batch size has changed within the pass.
        self._known_samples: tuple[FeedPosition, int] | None = None
        self._worker_states = WorkerStates()
        # A weak reference to the iterator whose persistent workers were started here.
        self._own_iterator: Callable[[], Any] = lambda: None
        self._recorded_order = self._make_recorded_order()
        # A sampler with a state in a loader without workers: Snapshots saves its state, and only
        # its draws from the global generators are recorded here.
        keeper = None if self._is_torchdata else self.keeper
        self._watched_order = None if keeper is None else RecordedOrder(keeper)

    def _make_recorded_order(self) -> RecordedOrder | None:
        """Returns a recorder of the sampler with a state, for workers; None without one."""
        order = self._order
        keeper = order_keeper(self.base) if self._can_track_workers else None
        if keeper is None:
            return None
        is_shard = type(order) is BatchSamplerShard
        is_of_batches = is_shard and order.batch_sampler is keeper.holder
        return RecordedOrder(
            keeper,
            head_size=elements_per_batch(order) if is_shard else 0,
            size=order.batch_size if is_of_batches else None,
        )

    @property
    def objects_outside_keeper(self) -> Objects:
        """The objects whose states are not part of the state of a sampler, by name."""
        found, recorded = super().objects_outside_keeper, self._recorded_order
        if recorded is None or not recorded.has_usable_state:
            return found
        return {name: get for name, get in found.items() if not recorded.keeper.has(name)}

    @property
    def length(self) -> int | None:
        """The number of index batches of this process; None if it is not certain."""
        with self._even_batches_applied():
            known = self._known_samples
            if known is None or known[0].data_pass != self._data_pass:
                return self._full_pass_length
            remaining = self.batches_after(known[1])
            return None if remaining is None else known[0].batches + remaining

    @property
    def _full_pass_length(self) -> int | None:
        """The number of index batches in a pass that begins with its first batch."""
        is_known = samples_per_pass(self._order) is not None
        return batches_after(self._order, 0) if is_known else self.promised_length

    @property
    def reaches_all_ranks(self) -> bool:
        """Returns whether the sampler has enough batches for Accelerate to give each rank one."""
        order = self._order
        if type(order) is not BatchSamplerShard or samples_per_pass(order) is None:
            return False
        # A single batch that is split may have fewer samples than there are ranks; of two batches,
        # the first is full.
        needed = 2 if order.split_batches else order.num_processes
        return len(order.batch_sampler) >= needed

    @property
    def is_entered_exactly(self) -> bool:
        """Returns whether the length is certain.

        Earlier batches are not loaded then, and none is fetched ahead to find the end.
        """
        return self.length is not None

    @property
    def is_replayed(self) -> bool:
        """Returns False: indices are drawn again, but no batch is loaded again."""
        return False

    @property
    def is_in_order(self) -> bool:
        """Returns whether batches arrive in the order of their indices."""
        return self.base.num_workers == 0 or self.base.in_order

    @property
    def _order(self) -> Any:
        """The batch sampler, or the sampler of a loader without batches."""
        return self.base.sampler if self.base.batch_sampler is None else self.base.batch_sampler

    @property
    def _seedable_samplers(self) -> list[SeedableRandomSampler]:
        return [
            part
            for part in dataset_and_samplers(self.base)
            if isinstance(part, SeedableRandomSampler)
        ]

    def set_pass(self, data_pass: int) -> None:
        """Announces the next pass, and notes its number."""
        super().set_pass(data_pass)
        self._data_pass = data_pass

    @contextmanager
    def active(self, data_pass: int) -> Iterator[None]:
        """Prepares the loader for one pass; without padding unless even batches are needed."""
        with self._even_batches_applied(), super().active(data_pass):
            yield

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the base class, and the random state remaining the samplers' order.

        The seeds of Accelerate's seedable samplers are included, because such a sampler takes the
        seed that torch had when the loader was prepared.
        """
        return {
            **super().state_dict(),
            "seeds": [sampler.initial_seed for sampler in self._seedable_samplers],
            "opening": None if self._watched_order is None else self._watched_order.opening,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores a state of ``state_dict``, seeds of samplers included."""
        super().load_state_dict(state_dict)
        seeds = state_dict.get("seeds", ())  # the saved feed may have had another type of data
        for sampler, seed in zip(self._seedable_samplers, seeds, strict=False):
            sampler.initial_seed = seed
        if self._watched_order is not None:
            self._watched_order.load_opening(state_dict.get("opening"))

    def facts(self) -> dict[str, int | str | None]:
        """Returns the facts of the base class, the samples of a pass and the class of the order."""
        with self._even_batches_applied():
            sample_facts = {
                "samples a pass": samples_per_pass(self._order),
                "order": order_name(self._order),
            }
            return {**super().facts(), **sample_facts}

    def samples_before(self, position: FeedPosition) -> int | None:
        """Returns how many samples of the pass come before a position; None if not certain."""
        per_batch = samples_per_batch(self._order)
        if per_batch is None:
            return None
        known, samples = FeedPosition(position.data_pass, 0), 0
        if (
            self._known_samples is not None
            and self._known_samples[0].data_pass == position.data_pass
        ):
            known, samples = self._known_samples
        return samples + (position.batches - known.batches) * per_batch

    @property
    def replayed_sampler(self) -> Any:
        """The sampler that must be iterated to enter a pass; None for the samplers of torch."""
        return replayed_sampler(self._order)

    def batches_after(self, samples: int) -> int | None:
        """Returns how many batches of this process follow ``samples`` samples of a pass."""
        with self._even_batches_applied():
            is_known = samples_per_pass(self._order) is not None
            return batches_after(self._order, samples) if is_known else None

    def set_samples_before(self, position: FeedPosition, samples: int) -> None:
        """Sets how many samples of the pass come before ``position``."""
        self._known_samples = None
        if samples != self.samples_before(position):
            self._known_samples = position, samples

    def end_pass(self, data_pass: int, given: int) -> None:
        """Iterates the samplers to the end of the pass, where some of them draw once more.

        A recorded sampler may be there already, since it is drawn ahead of the batches.
        """
        is_drawn = self._is_recorded_after(data_pass, given)
        if not is_drawn and self._started_pass is not None and self._started_pass[0] == data_pass:
            with self._at_start_of_pass(self._started_pass[1]):
                rest = self._draw_rest(data_pass, given)
            deque(rest, maxlen=0)

    def worker_states_at(self, position: FeedPosition) -> dict[str, Any] | None:
        """Returns the states of the workers at a position; None without workers, or if unknown."""
        if not self._can_track_workers or not (position.batches or self._has_persistent_workers):
            return None
        found = self._worker_states.states_at(*position)
        if found is None and not position.batches:
            found = 0, self._worker_states.states_after(position.data_pass - 1)
        if found is None or not found[1]:
            return None
        return {"first": found[0], "states": [worker_state_to_plain(each) for each in found[1]]}

    def accepts_worker_states(self, state_dict: Mapping[str, Any] | None) -> bool:
        """Returns whether workers can continue from saved states."""
        if state_dict is None or not self._can_track_workers:
            return False
        return len(state_dict["states"]) == self.base.num_workers

    def load_worker_states(
        self, position: FeedPosition, state_dict: Mapping[str, Any] | None = None
    ) -> None:
        """Sets the states from which workers continue at a position; None if unknown."""
        first, states = position.batches, list[bytes | None]()
        if state_dict is not None:
            first, states = (
                state_dict["first"],
                [*map(worker_state_from_plain, state_dict["states"])],
            )
        self._worker_states.begin(position.data_pass, first, states, self.snapshots.window)

    def order_state_at(self, position: FeedPosition) -> dict[str, Any] | None:
        """Returns the state of a recorded sampler; None without one, or if unknown."""
        if self._recorded_order is None:
            return None
        data_pass, _ = position
        first, _ = self._worker_start(*position)
        return self._recorded_order.state_dict(
            data_pass,
            self._elements_before(data_pass, first),
            is_begun=self._started_pass is not None and self._started_pass[0] == data_pass,
        )

    def accepts_order_state(self, state_dict: Mapping[str, Any] | None) -> bool:
        """Returns whether the sampler can continue from a saved state."""
        if self._recorded_order is None or state_dict is None:
            return False
        return bool(state_dict["of"] == self._recorded_order.keeper.name)

    def load_order_state(
        self,
        position: FeedPosition,
        state_dict: Mapping[str, Any] | None = None,
        *,
        ends: bool = False,
    ) -> None:
        """Sets the state from which the sampler continues; see the base class."""
        if self._recorded_order is not None:
            is_taken = self.accepts_order_state(state_dict)
            self._recorded_order.load_state_dict(
                position.data_pass, state_dict if is_taken else None
            )
            if ends:
                self._recorded_order.exhaust()

    def order_state_differences(self, state_dict: Mapping[str, Any] | None) -> list[str]:
        """Returns the reasons why the sampler cannot continue from a saved state."""
        if self._recorded_order is None or state_dict is None:
            return super().order_state_differences(state_dict)
        if self.accepts_order_state(state_dict):
            return self._recorded_order.differences(state_dict)
        now = self._recorded_order.keeper.name
        return [f"the state of {state_dict['of']} is not restored, there is {now} now"]

    def order_state_includes(self, name: str, state_dict: Mapping[str, Any] | None) -> bool:
        """Returns whether a saved state of the sampler includes the generator ``name``."""
        if self._recorded_order is None or not self.accepts_order_state(state_dict):
            return False
        return self._recorded_order.keeper.has(name)

    def _elements_before(self, data_pass: int, batches: int) -> int:
        """Returns how many elements of the recorded sampler come before a batch of a pass."""
        samples = self.samples_before(FeedPosition(data_pass, batches))
        return batches * elements_per_batch(self._order) if samples is None else samples

    def _is_recorded_after(self, data_pass: int, batches: int) -> bool:
        """Returns whether the pass can be entered after a batch from recorded elements."""
        start = self._elements_before(data_pass, batches)
        return self._recorded_order is not None and self._recorded_order.can_enter_at(
            data_pass, start
        )

    @property
    def _order_to_draw(self) -> Any:
        """The order to iterate for a pass: with the recorded sampler, if there is one."""
        order, recorded = self._order, self._recorded_order
        return order if recorded is None else with_recorded_sampler(order, recorded)

    @contextmanager
    def _recording_pass(self, data_pass: int) -> Iterator[None]:
        """Records the sampler, if it has a state, while a pass is begun in the body."""
        recorded = self._recorded_order
        if recorded is None:
            yield
            return
        recorded.rewind(data_pass)
        self._set_capacity(recorded)
        with recorded.beginning(data_pass, self.generators):
            yield

    def _set_capacity(self, recorded: RecordedOrder) -> None:
        """Sets how many elements are kept: enough for any position that a run may return to."""
        base = self.base
        ahead = base.num_workers * (base.prefetch_factor or 0)
        # New workers begin with a batch of worker 0, up to so many batches before the position.
        aligned = base.num_workers - 1
        # Batches that were given and not trained on, or fetched ahead to find the end.
        given = 2 * (self.snapshots.window + 1)
        recorded.capacity = (ahead + aligned + given) * elements_per_batch(self._order)

    @property
    def _can_track_workers(self) -> bool:
        """Returns whether it is certain which worker loads which batch, so states can be tracked.

        Batches that Accelerate skips, and torchdata's own workers, are not tracked.
        """
        base = self.base
        is_in_known_order = base.num_workers > 0 and base.in_order
        return is_in_known_order and not self._is_torchdata and not self._skipped_batches

    @property
    def _is_torchdata(self) -> bool:
        """Returns whether the loader has a state, as torchdata's loaders do."""
        return hasattr(self.base, "load_state_dict")

    def _open_iterator(self) -> Iterator[Any]:
        base = self.base
        if not self._can_track_workers:
            return super()._open_iterator()
        forget_dead_workers(base)
        found = base._iterator
        if found is not None and found is not self._own_iterator():
            # Persistent workers that the user started: they do not send their states.
            self._worker_states.begin(self._data_pass, 0, ())
            with self._recording_pass(self._data_pass):
                return super()._open_iterator()
        _, states = self._worker_states.states_at(self._data_pass, 0) or (
            0,
            [None] * base.num_workers,
        )
        if found is not None:
            # Persistent workers continue from the states in which they ended the last pass.
            states = self._worker_states.states_after(self._data_pass - 1)
        with self._recording_pass(self._data_pass), self._worker_states.starting(base, states):
            batches = super()._open_iterator()
        self._worker_states.begin(self._data_pass, 0, states, self.snapshots.window, self.length)
        if self._recorded_order is not None and base.persistent_workers:
            hand_over_workers(batches, base, self._order_to_draw)
        self._own_iterator = ref(batches)
        return self._worker_states.follow(batches, 0)

    def batches_after_load(self, skip: int) -> Iterator[Any]:
        """Returns the batches that follow a state, after the data have loaded that state."""
        if self._watched_order is not None and skip:
            self._watched_order.continue_next()
        return super().batches_after_load(skip)

    def _loader_to_start(self) -> DataLoader[Any]:
        """Returns the loader to iterate for a whole pass, with the recorded sampler if any."""
        base = self.base
        if self._watched_order is not None:
            return _loader_over(
                base, with_recorded_sampler(self._order, self._watched_order), base.generator
            )
        if self._recorded_order is None:
            return base
        if base.persistent_workers and base._iterator is not None:
            # The running workers are kept; only the order that they load from is replaced.
            hand_over_workers(base._iterator, base, self._order_to_draw)
            return base
        stays, generator = base.persistent_workers, base.generator
        return _loader_over(base, self._order_to_draw, generator, persistent_workers=stays)

    def _reenter_pass(self, data_pass: int, skip: int, begun: RandomState) -> Iterator[Any]:
        first, states = self._worker_start(data_pass, skip)
        if self._recorded_order is None or not self._is_recorded_after(data_pass, first):
            return super()._reenter_pass(data_pass, skip, begun)
        self._set_capacity(self._recorded_order)
        # All elements that were drawn are recorded, so no generator has to be set back.
        rest = enter_at_element(self._order_to_draw, self._elements_before(data_pass, first))
        batches = self._load_batches(rest, self._seed_generator_of(begun), data_pass, first, states)
        return islice(batches, skip - first, None)

    def _seed_generator_of(self, begun: RandomState) -> torch.Generator:
        """Returns a copy of the generator that seeds workers, as it was when a pass began."""
        seeds, loader_generator = torch.Generator(), self.base.generator
        found = [state for each, state in begun.generators.values() if each is loader_generator]
        seeds.set_state(found[0] if found else begun.cpu)
        return seeds

    def _worker_start(self, data_pass: int, skip: int) -> tuple[int, list[bytes | None]]:
        """Returns the first batch to load, at or before ``skip``, and the state of each worker.

        New workers start with a batch of worker 0, so up to ``num_workers - 1`` batches before
        ``skip`` are loaded again. A state is None if it is unknown.
        """
        known = self._worker_states.states_at(data_pass, skip) if self._can_track_workers else None
        return known or (skip, [None] * self.base.num_workers)

    def _open_iterator_at(self, data_pass: int, skip: int) -> Iterator[Any]:
        # Copied before the order is drawn, so that workers get the seeds that they had when the
        # pass began.
        seeds, loader_generator = torch.Generator(), self.base.generator
        seeds.set_state(
            (torch.default_generator if loader_generator is None else loader_generator).get_state()
        )
        first, states = self._worker_start(data_pass, skip)
        batches = self._load_batches(
            self._draw_rest(data_pass, first), seeds, data_pass, first, states
        )
        return islice(batches, skip - first, None)

    def _load_batches(
        self,
        rest: Iterator[Any],
        seeds: torch.Generator,
        data_pass: int,
        first: int,
        states: list[bytes | None],
    ) -> Iterator[Any]:
        """Yields the batches of the index batches ``rest``, from workers with given states.

        Args:
            rest: the index batches.
            seeds: the generator to seed new workers from.
            data_pass: the pass.
            first: the number of the first of the batches in the pass.
            states: the state that each worker begins with; None for one that torch seeds.
        """
        base, stays = self.base, self.base.persistent_workers
        if not self._can_track_workers:
            yield from iterate_with_workers(_loader_over(base, rest, seeds))
            return
        base._iterator = None  # ends persistent workers, which have prefetched other batches
        loader = _loader_over(base, rest, seeds, persistent_workers=stays)
        with self._worker_states.starting(loader, states):
            batches = iterate_with_workers(loader)
        self._worker_states.begin(data_pass, first, states, self.snapshots.window, self.length)
        if stays:
            hand_over_workers(batches, base, self._order_to_draw)
            self._own_iterator = ref(batches)
        yield from self._worker_states.follow(batches, first)

    def _draw_rest(self, data_pass: int, skip: int) -> Iterator[Any]:
        """Draws the order of a pass up to a position, and returns the index batches after it."""
        with self._recording_pass(data_pass):
            return self._index_batches_after(data_pass, skip)

    def _index_batches_after(self, data_pass: int, skip: int) -> Iterator[Any]:
        """Returns the index batches after a position, while the sampler is recorded."""
        base, order = self.base, self._order_to_draw
        is_custom = replayed_sampler(self._order) is self._order
        # A sampler of another class may draw in __iter__, which torch calls before it draws the
        # seed for workers.
        whole = iter(order) if is_custom else order
        if self._drew_seed:
            torch.empty((), dtype=torch.int64).random_(generator=base.generator)
        if is_custom and base.num_workers:
            whole = iter(order)  # torch calls __iter__ twice for workers, and it may draw each time
        samples = self.samples_before(FeedPosition(data_pass, skip))
        if samples is None:
            _, rest = enter_order(whole, skip)
        else:
            rest = enter_at_sample(order, samples)
        return chain([*islice(rest, self._count_drawn_ahead(data_pass, skip))], rest)

    def _count_drawn_ahead(self, data_pass: int, skip: int) -> int:
        """Returns how many index batches after a position had been drawn already.

        They are drawn at once again, so that later draws come at the time of the first iteration.
        """
        asked = self.base.num_workers * (self.base.prefetch_factor or 0)
        if self.length is None:
            asked += 1
        if self.furthest_position.data_pass == data_pass:
            asked += max(0, self.furthest_position.batches - skip)
        return asked if skip else max(asked, 1)

    def doubts(self) -> list[str]:
        """Returns the doubts of the base class, and those about the sampler and the workers."""
        is_over = self._worker_states.is_over and not self._has_running_workers
        order = self._watched_order if self._recorded_order is None else self._recorded_order
        order_doubts = [] if order is None else order.doubts()
        return [
            *super().doubts(),
            *order_doubts,
            *self._seed_doubts(),
            *(() if is_over else self._worker_states.doubts),
        ]

    def _seed_doubts(self) -> list[str]:
        """Returns the reason why workers may get another seed after a resume, if there is one."""
        base, recorded = self.base, self._recorded_order
        if recorded is None or self._order is not recorded.holder or not recorded.draws_on_iter:
            return []  # torch's BatchSampler asks for the iterator after the workers are seeded
        if base.num_workers == 1 and not base.persistent_workers:
            return []
        return [
            f"{recorded.keeper.name} draws from the global random generators when it is asked for "
            "its iterator, before workers are seeded from them: draw with the first element instead"
        ]

    @contextmanager
    def _at_start_of_pass(self, begun: RandomState) -> Iterator[None]:
        """Sets the generators to their states at the start of a pass, during the body.

        Afterwards all get their present states back, except for those that only the order draws
        from: these stay where the draws of the body have moved them.
        """
        own = {id(each) for each in self._order_generators()}
        others = {name: each for name, each in self.generators.items() if id(each) not in own}
        with RandomState.preserved(generators=others):
            begun.restore()
            yield

    def _order_generators(self) -> list[RandomGenerator]:
        """Returns the generators that only the order is drawn from, and no sample."""
        data_generators = self._search_data(data_parts(self.base)).named.values()
        order_generators = self._search_order(order_parts(self.base)).named.values()
        return [
            each for each in order_generators if all(each is not other for other in data_generators)
        ]

    @contextmanager
    def _even_batches_applied(self) -> Iterator[None]:
        """Turns off the padding of Accelerate's batch samplers, unless even batches are needed."""
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


def _loader_over(
    base: DataLoader[Any],
    indices: Iterable[Any],
    generator: torch.Generator | None,
    *,
    persistent_workers: bool = False,
) -> DataLoader[Any]:
    """Returns a loader like ``base`` for one iteration over ``indices``.

    Args:
        base: the loader to copy the settings of.
        indices: index batches, or indices if ``base`` has no batch sampler.
        generator: the generator to seed workers from.
        persistent_workers: whether the workers stay after the iteration.
    """
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
