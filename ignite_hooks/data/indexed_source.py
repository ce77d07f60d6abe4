"""Iterates a loader that has a sampler, from any batch on, without loading earlier batches.

- A *source* is the adapter through which a feed reads a loader. A *feed* iterates the data for an
  engine.
- A *pass* is one iteration over the whole data. To *enter* a pass means to begin its iteration at a
  given batch.
- The *order* of a loader is its batch sampler. If the loader makes no batches, the order is its
  sampler.
- An *index batch* is the list of the indices of one batch.
- A *recorder* is a ``RecordedOrder`` around a sampler that has a ``state_dict``. The recorder keeps
  what the sampler has yielded last.
- An *element* is one thing that a recorded sampler yields: an index or an index batch.
- A *keeper* (``PositionKeeper``) saves and restores the state of a sampler that has a
  ``state_dict``. This state contains the position in the pass.
"""

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
from ignite_hooks.data.snapshots import keeper_for_recording
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
    """The source for a loader with a sampler.

    The number of batches in a pass is certain if the sampler has a ``len()``.

    A pass can be entered at any position without loading earlier batches. With torch's
    ``BatchSampler`` the source also knows how many samples all processes together have read before
    a position. So a resumed run can continue after the same sample with another batch size. The
    samples that Accelerate repeats to fill the last batches are not counted.
    """

    def __init__(self, loader: Any, even_batches: bool = True) -> None:
        super().__init__(loader, even_batches)
        self._search_data, self._search_order = GeneratorSearch(), GeneratorSearch()
        self._data_pass = 0  # the argument of the last call of `set_pass`
        # If the batch size has changed in the middle of a pass, this is the position of the change
        # and the number of samples before this position. Otherwise None.
        self._known_samples: tuple[FeedPosition, int] | None = None
        self._worker_states = WorkerStates()
        # A weak reference to the iterator whose persistent workers this object has started.
        self._own_iterator: Callable[[], Any] = lambda: None
        self._recorder_with_workers = self._make_recorded_order()
        # Without workers, the state of the sampler is saved in the snapshots (see `snapshots.py`).
        # So the recorder for a loader without workers only notes the states that the global
        # generators have before the sampler draws its order from them.
        keeper = None if self._is_torchdata else self.keeper
        self._recorder_without_workers = None if keeper is None else RecordedOrder(keeper)

    def _make_recorded_order(self) -> RecordedOrder | None:
        """Returns a recorder of the sampler, if there are workers and the sampler has a state."""
        order = self._order
        keeper = keeper_for_recording(self.base) if self._can_track_workers else None
        if keeper is None:
            return None
        is_shard = type(order) is BatchSamplerShard
        is_of_batches = is_shard and order.batch_sampler is keeper.wrapped
        return RecordedOrder(
            keeper,
            head_size=elements_per_batch(order) if is_shard else 0,
            size=order.batch_size if is_of_batches else None,
        )

    @property
    def objects_outside_keeper(self) -> Objects:
        """The objects of the data by name, without those that the keeper's state includes."""
        found, recorded = super().objects_outside_keeper, self._recorder_with_workers
        if recorded is None or not recorded.has_usable_state:
            return found
        return {name: get for name, get in found.items() if not recorded.keeper.has(name)}

    @property
    def length(self) -> int | None:
        """The number of index batches of this process in a pass; None if the number is not certain.

        If the batch size has changed within the present pass, the number includes the batches
        before and after the change.
        """
        with self._even_batches_applied():
            known = self._known_samples
            if known is None or known[0].data_pass != self._data_pass:
                return self._full_pass_length
            remaining = self.batches_after(known[1])
            return None if remaining is None else known[0].batches + remaining

    @property
    def _full_pass_length(self) -> int | None:
        """The number of index batches in a pass within which the batch size does not change."""
        is_known = samples_per_pass(self._order) is not None
        return batches_after(self._order, 0) if is_known else self.promised_length

    @property
    def reaches_all_ranks(self) -> bool:
        """Returns whether the sampler has enough batches for Accelerate to give each rank one."""
        order = self._order
        if type(order) is not BatchSamplerShard or samples_per_pass(order) is None:
            return False
        # With split batches, each rank gets a part of every full batch. If there are two batches,
        # the first one is full, so two are enough. If there is only one batch, it may have fewer
        # samples than there are ranks.
        needed = 2 if order.split_batches else order.num_processes
        return len(order.batch_sampler) >= needed

    @property
    def is_entered_exactly(self) -> bool:
        """Returns whether a pass can be entered in its middle without repeating random draws.

        If the length is not certain, the feed fetches batches ahead, to find the end of the pass. A
        resumed run loads these batches a second time, and so draws their random numbers again.
        """
        return self.length is not None

    @property
    def is_replayed(self) -> bool:
        """Returns False: to enter a pass, indices are drawn again, but no batch is loaded again."""
        return False

    @property
    def is_in_order(self) -> bool:
        """Returns whether batches arrive in the order in which the sampler yields their indices."""
        return self.base.num_workers == 0 or self.base.in_order

    @property
    def _order(self) -> Any:
        """The batch sampler; the sampler if the loader does not make batches."""
        return self.base.sampler if self.base.batch_sampler is None else self.base.batch_sampler

    @property
    def _seedable_samplers(self) -> list[SeedableRandomSampler]:
        return [
            part
            for part in dataset_and_samplers(self.base)
            if isinstance(part, SeedableRandomSampler)
        ]

    def set_pass(self, data_pass: int) -> None:
        """Calls ``set_epoch`` for the next pass, and notes the number of the pass."""
        super().set_pass(data_pass)
        self._data_pass = data_pass

    @contextmanager
    def active(self, data_pass: int) -> Iterator[None]:
        """Prepares the loader for one pass, with padding only if ``even_batches`` is True."""
        with self._even_batches_applied(), super().active(data_pass):
            yield

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the base class, and the random state that the order depends on.

        This random state has two keys:

        - ``seeds``: the seeds of Accelerate's seedable samplers. Such a sampler keeps the seed that
          torch had when the loader was prepared, and a resumed run may start with another seed.
        - ``opening``: the states of the global generators before the sampler drew the order of the
          pass from them; None if the order was not drawn from these generators (see
          ``RecordedOrder.opening``).
        """
        return {
            **super().state_dict(),
            "seeds": [sampler.initial_seed for sampler in self._seedable_samplers],
            "opening": None
            if self._recorder_without_workers is None
            else self._recorder_without_workers.opening,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores a return value of ``state_dict``, the seeds of samplers included."""
        super().load_state_dict(state_dict)
        seeds = state_dict.get("seeds", ())  # missing if another class saved the state
        for sampler, seed in zip(self._seedable_samplers, seeds, strict=False):
            sampler.initial_seed = seed
        if self._recorder_without_workers is not None:
            self._recorder_without_workers.load_opening(state_dict.get("opening"))

    def facts(self) -> dict[str, int | str | None]:
        """Returns the facts of the base class, the samples in a pass and the name of the order.

        Facts are properties of the data, which are saved in checkpoints. A resumed run gets the
        same batches only if its facts equal the saved facts.
        """
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
        """The sampler that must be iterated from its start to enter a pass in its middle.

        None for the samplers of torch and Accelerate, which need no such iteration (see
        ``sample_order.py``).
        """
        return replayed_sampler(self._order)

    def batches_after(self, samples: int) -> int | None:
        """Returns how many batches of this process are left after a number of samples of a pass."""
        with self._even_batches_applied():
            is_known = samples_per_pass(self._order) is not None
            return batches_after(self._order, samples) if is_known else None

    def set_samples_before(self, position: FeedPosition, samples: int) -> None:
        """Sets how many samples of the pass come before ``position``."""
        self._known_samples = None
        if samples != self.samples_before(position):
            self._known_samples = position, samples

    def end_pass(self, data_pass: int, given: int) -> None:
        """Iterates the samplers to the end of the pass, if they have not reached it.

        This is needed because some samplers draw random numbers after their last element.
        """
        is_drawn = self._is_recorded_after(data_pass, given)
        if not is_drawn and self._started_pass is not None and self._started_pass[0] == data_pass:
            with self._at_start_of_pass(self._started_pass[1]):
                rest = self._draw_rest(data_pass, given)
            deque(rest, maxlen=0)

    def worker_states_at(self, position: FeedPosition) -> dict[str, Any] | None:
        """Returns the states from which new workers continue the pass at a position.

        Returns:
            None if there are no workers, or if the states are not known. Otherwise a dict with two
            keys. ``first`` is the number of the batch that worker 0 loads first. ``states`` has the
            state of each worker before the worker loads its first batch.
        """
        if not self._can_track_workers or not (position.batches or self._has_persistent_workers):
            return None
        found = self._worker_states.states_at(*position)
        if found is None and not position.batches:
            found = 0, self._worker_states.states_after(position.data_pass - 1)
        if found is None or not found[1]:
            return None
        return {"first": found[0], "states": [worker_state_to_plain(each) for each in found[1]]}

    def accepts_worker_states(self, state_dict: Mapping[str, Any] | None) -> bool:
        """Returns whether workers can continue from saved states. Each worker needs one state."""
        if state_dict is None or not self._can_track_workers:
            return False
        return len(state_dict["states"]) == self.base.num_workers

    def load_worker_states(
        self, position: FeedPosition, state_dict: Mapping[str, Any] | None = None
    ) -> None:
        """Sets the states from which workers continue. Without states, torch seeds the workers."""
        first, states = position.batches, list[bytes | None]()
        if state_dict is not None:
            first, states = (
                state_dict["first"],
                [*map(worker_state_from_plain, state_dict["states"])],
            )
        self._worker_states.begin(position.data_pass, first, states, self.snapshots.window_size)

    def order_state_at(self, position: FeedPosition) -> dict[str, Any] | None:
        """Returns the state of the recorded sampler at a position.

        None if there is no recorded sampler, or if the state is not known.
        """
        if self._recorder_with_workers is None:
            return None
        data_pass, _ = position
        first, _ = self._worker_start(*position)
        return self._recorder_with_workers.state_dict(
            data_pass,
            self._elements_before(data_pass, first),
            is_begun=self._started_pass is not None and self._started_pass[0] == data_pass,
        )

    def accepts_order_state(self, state_dict: Mapping[str, Any] | None) -> bool:
        """Returns whether the recorded sampler can continue from a saved state.

        The path and the class of the sampler must be the same as at the save.
        """
        if self._recorder_with_workers is None or state_dict is None:
            return False
        return bool(state_dict["of"] == self._recorder_with_workers.keeper.name)

    def load_order_state(
        self,
        position: FeedPosition,
        state_dict: Mapping[str, Any] | None = None,
        *,
        ends: bool = False,
    ) -> None:
        """Sets the state from which the recorded sampler continues at ``position``.

        Args:
            position: the position in the data.
            state_dict: a return value of ``order_state_at``; None if no state can be used.
            ends: whether to iterate the sampler to its end, because no batch of the pass is left.
        """
        if self._recorder_with_workers is not None:
            accepts_order = self.accepts_order_state(state_dict)
            self._recorder_with_workers.load_state_dict(
                position.data_pass, state_dict if accepts_order else None
            )
            if ends:
                self._recorder_with_workers.exhaust()

    def order_state_differences(self, state_dict: Mapping[str, Any] | None) -> list[str]:
        """Returns the reasons why the sampler cannot continue from a saved state."""
        if self._recorder_with_workers is None or state_dict is None:
            return super().order_state_differences(state_dict)
        if self.accepts_order_state(state_dict):
            return self._recorder_with_workers.differences(state_dict)
        now = self._recorder_with_workers.keeper.name
        return [f"the state of {state_dict['of']} is not restored, because there is {now} now"]

    def order_state_includes(self, name: str, state_dict: Mapping[str, Any] | None) -> bool:
        """Returns whether a saved state of the sampler includes the generator ``name``."""
        if self._recorder_with_workers is None or not self.accepts_order_state(state_dict):
            return False
        return self._recorder_with_workers.keeper.has(name)

    def _elements_before(self, data_pass: int, batches: int) -> int:
        """Returns how many elements of the recorded sampler come before a batch of a pass."""
        samples = self.samples_before(FeedPosition(data_pass, batches))
        return batches * elements_per_batch(self._order) if samples is None else samples

    def _is_recorded_after(self, data_pass: int, batches: int) -> bool:
        """Returns whether recorded elements suffice to enter a pass after ``batches`` batches."""
        start = self._elements_before(data_pass, batches)
        return self._recorder_with_workers is not None and self._recorder_with_workers.can_enter_at(
            data_pass, start
        )

    @property
    def _order_to_draw(self) -> Any:
        """The order to iterate in a pass, with the recorder, if any, in place of the sampler."""
        order, recorded = self._order, self._recorder_with_workers
        return order if recorded is None else with_recorded_sampler(order, recorded)

    @contextmanager
    def _recording_pass(self, data_pass: int) -> Iterator[None]:
        """Starts the recording of a pass; does nothing if there is no recorder.

        The caller must start the iteration of the sampler within the ``with`` block.
        """
        recorded = self._recorder_with_workers
        if recorded is None:
            yield
            return
        recorded.rewind(data_pass)
        self._set_capacity(recorded)
        with recorded.beginning(data_pass, self.generators):
            yield

    def _set_capacity(self, recorded: RecordedOrder) -> None:
        """Makes the recorder keep enough elements for each position the run may return to."""
        base = self.base
        prefetched = base.num_workers * (base.prefetch_factor or 0)
        loaded_again = base.num_workers - 1  # see `_worker_start`
        # The run may roll back by one accumulation window (the batches of one optimizer step), and
        # the feed may fetch one window and one batch ahead. One more batch is a margin.
        given = 2 * (self.snapshots.window_size + 1)
        recorded.capacity = (prefetched + loaded_again + given) * elements_per_batch(self._order)

    @property
    def _can_track_workers(self) -> bool:
        """Returns whether the states of workers can be tracked.

        Tracking requires that it is certain which worker loads which batch. Tracking is not
        supported if Accelerate's ``skip_first_batches`` is used, or for the workers of torchdata.
        """
        base = self.base
        is_in_known_order = base.num_workers > 0 and base.in_order
        return is_in_known_order and not self._is_torchdata and not self._skipped_batches

    @property
    def _is_torchdata(self) -> bool:
        """Returns whether the loader itself has a state, as the loaders of torchdata have."""
        return hasattr(self.base, "load_state_dict")

    def _open_iterator(self) -> Iterator[Any]:
        base = self.base
        if not self._can_track_workers:
            return super()._open_iterator()
        forget_dead_workers(base)
        found = base._iterator
        if found is not None and found is not self._own_iterator():
            # The user's own iteration started these persistent workers. Such workers do not send
            # their states.
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
        self._worker_states.begin(
            self._data_pass, 0, states, self.snapshots.window_size, self.length
        )
        if self._recorder_with_workers is not None and base.persistent_workers:
            hand_over_workers(batches, base, self._order_to_draw)
        self._own_iterator = ref(batches)
        return self._worker_states.follow(batches, 0)

    def batches_after_load(self, skip: int) -> Iterator[Any]:
        """Returns the batches that follow the state that was loaded into the keeper."""
        if self._recorder_without_workers is not None and skip:
            self._recorder_without_workers.continue_next()
        return super().batches_after_load(skip)

    def _loader_to_start(self) -> DataLoader[Any]:
        """Returns the loader for a whole pass, with indices from the recorder if there is one."""
        base = self.base
        if self._recorder_without_workers is not None:
            return _loader_over(
                base,
                with_recorded_sampler(self._order, self._recorder_without_workers),
                base.generator,
            )
        if self._recorder_with_workers is None:
            return base
        if base.persistent_workers and base._iterator is not None:
            # The running workers are kept. Only the order from which they load is replaced.
            hand_over_workers(base._iterator, base, self._order_to_draw)
            return base
        stays, generator = base.persistent_workers, base.generator
        return _loader_over(base, self._order_to_draw, generator, persistent_workers=stays)

    def _reenter_pass(self, data_pass: int, skip: int, begun: RandomState) -> Iterator[Any]:
        first, states = self._worker_start(data_pass, skip)
        if self._recorder_with_workers is None or not self._is_recorded_after(data_pass, first):
            return super()._reenter_pass(data_pass, skip, begun)
        self._set_capacity(self._recorder_with_workers)
        # The elements are recorded and need not be drawn again, so no generator is set back.
        rest = enter_at_element(self._order_to_draw, self._elements_before(data_pass, first))
        batches = self._load_batches(rest, self._seed_generator_of(begun), data_pass, first, states)
        return islice(batches, skip - first, None)

    def _seed_generator_of(self, begun: RandomState) -> torch.Generator:
        """Returns a copy of the generator that seeds workers, as it was at the start of a pass."""
        seeds, loader_generator = torch.Generator(), self.base.generator
        found = [state for each, state in begun.generators.values() if each is loader_generator]
        seeds.set_state(found[0] if found else begun.cpu)
        return seeds

    def _worker_start(self, data_pass: int, skip: int) -> tuple[int, list[bytes | None]]:
        """Returns where new workers start, to continue a pass after its first ``skip`` batches.

        New workers start with a batch of worker 0, so up to ``num_workers - 1`` batches before
        batch ``skip`` are loaded again.

        Returns:
            The number of the first batch to load, and the state of each worker before its first
            batch. A state is None if it is not known.
        """
        known = self._worker_states.states_at(data_pass, skip) if self._can_track_workers else None
        return known or (skip, [None] * self.base.num_workers)

    def _open_iterator_at(self, data_pass: int, skip: int) -> Iterator[Any]:
        # The generator that seeds the workers is copied first, because drawing the order may change
        # the generator.
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
        """Yields the batches for the index batches in ``rest``.

        Args:
            rest: the index batches.
            seeds: the generator to seed new workers from.
            data_pass: the number of the pass, from 0.
            first: the number of batches of the pass before ``rest``.
            states: the state from which each worker begins; None for a worker that torch seeds.
        """
        base, stays = self.base, self.base.persistent_workers
        if not self._can_track_workers:
            yield from iterate_with_workers(_loader_over(base, rest, seeds))
            return
        base._iterator = None  # ends persistent workers, which have prefetched other batches
        loader = _loader_over(base, rest, seeds, persistent_workers=stays)
        with self._worker_states.starting(loader, states):
            batches = iterate_with_workers(loader)
        self._worker_states.begin(data_pass, first, states, self.snapshots.window_size, self.length)
        if stays:
            hand_over_workers(batches, base, self._order_to_draw)
            self._own_iterator = ref(batches)
        yield from self._worker_states.follow(batches, first)

    def _draw_rest(self, data_pass: int, skip: int) -> Iterator[Any]:
        """Draws the order of a pass, skips ``skip`` index batches, and returns the others."""
        with self._recording_pass(data_pass):
            return self._index_batches_after(data_pass, skip)

    def _index_batches_after(self, data_pass: int, skip: int) -> Iterator[Any]:
        """Does the work of ``_draw_rest``, which calls this method within ``_recording_pass``."""
        base, order = self.base, self._order_to_draw
        is_custom = replayed_sampler(self._order) is self._order
        # This method makes the same draws in the same sequence as torch. torch calls __iter__ of
        # the order before it draws the seed for workers, and an order of a user's class may draw
        # random numbers in __iter__.
        whole = iter(order) if is_custom else order
        if self._drew_seed:
            torch.empty((), dtype=torch.int64).random_(generator=base.generator)
        if is_custom and base.num_workers:
            # With workers, torch calls __iter__ a second time, after it has drawn the seed.
            whole = iter(order)
        samples = self.samples_before(FeedPosition(data_pass, skip))
        if samples is None:
            _, rest = enter_order(whole, skip)
        else:
            rest = enter_at_sample(order, samples)
        return chain([*islice(rest, self._count_drawn_ahead(data_pass, skip))], rest)

    def _count_drawn_ahead(self, data_pass: int, skip: int) -> int:
        """Returns how many index batches to draw ahead when a pass is entered at a position.

        The number is the same as in an unbroken run. So all later index batches are drawn at the
        same points of the run.
        """
        # Index batches are drawn ahead for the workers.
        drawn = self.base.num_workers * (self.base.prefetch_factor or 0)
        if self.length is None:
            drawn += 1  # the feed fetches one batch ahead to find the end
        if self.position_before_move.data_pass == data_pass:
            # The run had reached a later position before it moved back to this one.
            drawn += max(0, self.position_before_move.batches - skip)
        # Many samplers draw the whole order with the first index. At the start of a pass, this must
        # happen now, while the generators have their states from the start of the pass.
        return drawn if skip else max(drawn, 1)

    def doubts(self) -> list[str]:
        """Returns the reasons why ``state_dict`` may lack some of the state of the data.

        The reasons are those of the base class, and those that concern the sampler, the seeds of
        workers, or the states of workers.
        """
        is_over = self._worker_states.is_over and not self._has_running_workers
        order = (
            self._recorder_without_workers
            if self._recorder_with_workers is None
            else self._recorder_with_workers
        )
        order_doubts = [] if order is None else order.doubts()
        return [
            *super().doubts(),
            *order_doubts,
            *self._seed_doubts(),
            *(() if is_over else self._worker_states.doubts),
        ]

    def _seed_doubts(self) -> list[str]:
        """Returns the reason why workers may get other seeds after a resume, if there is one."""
        base, recorded = self.base, self._recorder_with_workers
        if recorded is None or self._order is not recorded.holder or not recorded.draws_on_iter:
            # torch calls `iter` of the order, then seeds the workers, and then requests the first
            # index batch. So a sampler draws before the seeding only in its `__iter__`, and only if
            # it is the order itself: a batch sampler of torch or Accelerate calls `iter` of its
            # sampler when the first index batch is requested.
            return []
        if base.num_workers == 1 and not base.persistent_workers:
            # A single worker continues a pass from its saved state, so its seed does not matter. Of
            # several workers, some may have no state yet, and start from their seeds.
            return []
        return [
            f"{recorded.keeper.name} draws from the global random generators when its __iter__ is "
            "called, before workers are seeded from these generators: change the sampler to draw "
            "when its first element is requested"
        ]

    @contextmanager
    def _at_start_of_pass(self, begun: RandomState) -> Iterator[None]:
        """Sets the generators to their states at the start of a pass, during the body.

        After the body, all generators get their previous states back, except those that only the
        order uses: the rest of the order is still to be drawn from them.
        """
        own = {id(each) for each in self._order_generators()}
        others = {name: each for name, each in self.generators.items() if id(each) not in own}
        with RandomState.preserved(generators=others):
            begun.restore()
            yield

    def _order_generators(self) -> list[RandomGenerator]:
        """Returns the order's generators, except those that the data set or ``collate_fn`` uses."""
        data_generators = self._search_data(data_parts(self.base)).named.values()
        order_generators = self._search_order(order_parts(self.base)).named.values()
        return [
            each for each in order_generators if all(each is not other for other in data_generators)
        ]

    @contextmanager
    def _even_batches_applied(self) -> Iterator[None]:
        """Turns off the padding of Accelerate's batch samplers during the body.

        Does nothing if all processes must get the same number of batches (``even_batches``).
        """
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
        base: the loader whose settings are copied.
        indices: index batches, or indices if ``base`` has no batch sampler.
        generator: the generator to seed workers from.
        persistent_workers: whether the workers keep running after the iteration.
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
