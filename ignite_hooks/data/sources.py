"""Sources of batches, with one class for each type of data.

A feed (``DataFeed``) gives batches to an engine and keeps the position in the data. A feed reads
its data through a source. The data may be an iterable, a torch ``DataLoader`` or a loader that
Accelerate prepared. ``prepare_source`` chooses the class of the source.

A pass is one iteration over the whole data. A source begins, resumes and ends passes. "To enter a
pass" means to begin the iteration at a given batch. A plain loop enters a pass at batch 0. After a
resume, or after a rollback to the last optimizer step, a pass may be entered in its middle.

Some data include an object whose state contains the position, for example a stream with a
``state_dict``. A ``PositionKeeper`` (in short, the keeper) wraps this object (see
``snapshots.py``).
"""

from collections import deque
from collections.abc import Generator
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import MappingView
from collections.abc import Sequence
from collections.abc import Set
from collections.abc import Sized
from contextlib import AbstractContextManager
from contextlib import ExitStack
from contextlib import contextmanager
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from accelerate.data_loader import DataLoaderDispatcher
from accelerate.data_loader import DataLoaderShard
from accelerate.data_loader import IterableDatasetShard
from accelerate.utils import find_batch_size
from accelerate.utils import slice_tensors
from accelerate.utils import synchronize_rng_states
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from ignite_hooks.core.object_graph import is_library_code
from ignite_hooks.core.place import FeedPosition
from ignite_hooks.data.active_loader import activated
from ignite_hooks.data.object_states import Objects
from ignite_hooks.data.object_states import ObjectStates
from ignite_hooks.data.object_states import has_state_dict
from ignite_hooks.data.random_state import FoundGenerators
from ignite_hooks.data.random_state import GeneratorSearch
from ignite_hooks.data.random_state import RandomGenerator
from ignite_hooks.data.random_state import RandomState
from ignite_hooks.data.random_state import generator_state
from ignite_hooks.data.random_state import set_generator_state
from ignite_hooks.data.snapshots import PositionKeeper
from ignite_hooks.data.snapshots import Snapshots
from ignite_hooks.data.snapshots import is_stateful_loader
from ignite_hooks.data.snapshots import keeper_for_snapshots
from ignite_hooks.data.snapshots import make_keeper
from ignite_hooks.data.snapshots import stateful_loader
from ignite_hooks.data.worker_states import unsharded
from ignite_hooks.data.worker_states import with_random_state
from ignite_hooks.data.workers import forget_dead_workers
from ignite_hooks.data.workers import iterate_with_workers
from ignite_hooks.data.workers import starting_workers

__all__ = [
    "PADDING_CAVEAT",
    "AdaptedLoader",
    "CustomLoader",
    "PlainIterable",
    "TorchLoader",
    "data_parts",
    "dataset_and_samplers",
    "order_parts",
]


def dataset_and_samplers(loader: Any) -> list[Any]:
    """Returns the data set and the samplers of a loader, nested samplers included."""
    parts = [loader.dataset]
    samplers = [loader.batch_sampler, loader.sampler]
    while samplers:
        sampler = samplers.pop()
        if sampler is not None and all(sampler is not part for part in parts):
            parts.append(sampler)
            samplers += [getattr(sampler, name, None) for name in ("batch_sampler", "sampler")]
    return parts


def data_parts(loader: Any) -> dict[str, Any]:
    """Returns the data set and the ``collate_fn`` of a loader, by name."""
    return {"dataset": loader.dataset, "collate_fn": loader.collate_fn}


def order_parts(loader: Any) -> dict[str, Any]:
    """Returns the generator and the samplers of a loader, by name; some may be None."""
    names = ("generator", "sampler", "batch_sampler")
    return {name: getattr(loader, name, None) for name in names}


# Caveats: reasons why the rest of a resumed pass may differ from the saved run, although the state
# of the data is restored.
_WORKER_ORDER_CAVEAT = (
    "after a pass that was entered in its middle, torchdata takes batches from persistent workers "
    "in another order than the saved run did: use one worker, or leave out persistent_workers"
)
PADDING_CAVEAT = (
    "the samples that Accelerate repeats to fill the last batch of this pass are the first samples "
    "after the resumed position, not those of the saved run; with drop_last=True no sample is "
    "repeated"
)
# The end of a message about a resume that is not exact (see `TorchLoader.remedy`).
_TORCHDATA_HINT = (
    " (with torchdata installed, a StatefulDataLoader saves the states of the data set's copies in "
    "the workers instead)"
)
# The len() of these types is certain: an iteration gives exactly this number of elements.
_CERTAIN_LENGTH_TYPES = (Sequence, Set, Mapping, MappingView, torch.Tensor)


def _skip_torch_iterators(thing: Any) -> tuple[()] | None:
    """Excludes the contents of torch's loader iterators from the search for generators.

    A resume makes a new iterator at the saved position, so the contents of the old one need not be
    saved.

    Returns:
        An empty tuple for an iterator: the search visits none of its parts. None for any other
        object: the search visits all of its parts.
    """
    return () if issubclass(type(thing), _BaseDataLoaderIter) else None


class PlainIterable:
    """The source for any iterable of batches, and the base class of the other sources.

    Attributes:
        object_states: saves and restores the states of users' objects, for example of a data set
            with a ``state_dict``.
        position_before_move: the position that the feed had before it was last moved, for example
            by a rollback. Only ``IndexedLoader`` uses it (``_count_drawn_ahead``).
        snapshots: the snapshots at the last positions of the feed; none without a keeper. A
            snapshot contains all states that determine the rest of a pass.

    Args:
        loader: the loader or iterable to iterate.
        even_batches: whether samples may be repeated, so that all processes have equally many
            batches.
    """

    def __init__(self, loader: Any, even_batches: bool = True) -> None:
        self.loader = loader
        self.even_batches = even_batches
        self._iterator = loader if isinstance(loader, Iterator) else None
        self._search_generators = GeneratorSearch(_skip_torch_iterators)
        self.object_states = ObjectStates()
        self.position_before_move = FeedPosition(0, 0)
        self.snapshots = Snapshots()
        # The number of the pass that was begun last, and the random state before the order of its
        # samples was drawn.
        self._started_pass: tuple[int, RandomState] | None = None
        # The same two values for a pass whose first batch has not arrived yet. If the fetch of this
        # batch is interrupted, the pass begins later with the same random state.
        self._requested_pass: tuple[int, RandomState] | None = None

    @property
    def can_repeat(self) -> bool:
        """Returns whether earlier batches can be given again.

        False for an iterator without a ``state_dict``, and True for all other data.
        """
        return self._iterator is None or self.keeper is not None

    @property
    def keeper(self) -> PositionKeeper | None:
        """The keeper, which wraps the object whose state contains the position in the data.

        None if there is no such object. A list or another container needs no keeper, because its
        iteration can begin at any batch.
        """
        keeps_position = not isinstance(self.loader, _CERTAIN_LENGTH_TYPES) and has_state_dict(
            self.loader
        )
        return make_keeper(self.loader, ("data",)) if keeps_position else None

    @property
    def reaches_all_ranks(self) -> bool:
        """Returns whether it is certain that every rank has at least one batch in a pass.

        All ranks return the same value. The value is False here, because a rank does not know how
        many batches the other ranks have.
        """
        return False

    @property
    def is_reader(self) -> bool:
        """Returns whether this process loads its batches; False if rank 0 sends them."""
        return True

    def set_window_size(self, batches: int) -> None:
        """Sets the number of batches in a full accumulation window.

        An accumulation window is the batches that make one optimizer step. A run may roll back by
        this many batches.
        """
        self.snapshots.window_size = batches

    def snapshot_at(self, position: FeedPosition) -> dict[str, Any] | None:
        """Returns the snapshot of the data at a position; None if no snapshot can be saved."""
        return self.snapshots.state_dict(self, position)

    def can_restore_on_reader(self, state_dict: Mapping[str, Any]) -> bool:
        """Returns whether the process that loads the batches can restore a saved snapshot.

        The snapshot is then used even if the data have changed, for example in the number of
        batches.

        Args:
            state_dict: the saved state of the feed.
        """
        return self.snapshots.can_restore(self, state_dict.get("place"))

    def snapshot_differences(
        self, position: FeedPosition, state_dict: Mapping[str, Any] | None
    ) -> list[str]:
        """Returns the reasons why a resumed run may get other batches than the saved run.

        The saved run is the run that saved the snapshot ``state_dict``.
        """
        return self.snapshots.differences(self, position, state_dict)

    def load_snapshot(self, position: FeedPosition, state_dict: Mapping[str, Any] | None) -> None:
        """Loads a return value of ``snapshot_at``: a snapshot, or None if none was saved."""
        self.snapshots.load_state_dict(self, position, state_dict)

    @property
    def draws_in_workers(self) -> bool:
        """Returns whether the state of the data includes the random states of its workers."""
        return False

    @property
    def remedy(self) -> str:
        """A hint how to make a resume exact, as the end of a message; empty if there is none."""
        return ""

    @property
    def length(self) -> int | None:
        """The number of batches in a pass; None if the number is not certain."""
        return self.promised_length if isinstance(self.loader, _CERTAIN_LENGTH_TYPES) else None

    @property
    def _full_pass_length(self) -> int | None:
        """The number of batches in a pass that is iterated from its first batch on.

        In a subclass, ``length`` is another number if the present pass was resumed in its middle
        with another batch size.
        """
        return self.length

    @property
    def promised_length(self) -> int | None:
        """The ``len()`` of the loader, for display only; None if the loader has none."""
        try:
            return len(self.loader) if isinstance(self.loader, Sized) else None
        except (TypeError, NotImplementedError):
            return None

    @property
    def is_entered_exactly(self) -> bool:
        """Returns whether a pass can be entered in its middle without repeating random draws.

        True for a sequence, which contains finished batches.
        """
        return isinstance(self.loader, Sequence)

    @property
    def is_replayed(self) -> bool:
        """Returns whether a pass can be entered in its middle only by loading its earlier batches.

        The result ignores the keeper, whose saved state would make this loading unnecessary.
        """
        return not isinstance(self.loader, Sequence)

    @property
    def knows_its_end(self) -> bool:
        """Returns whether the loader marks its last batch itself (``end_of_dataloader``)."""
        return False

    @property
    def generators(self) -> dict[str, RandomGenerator]:
        """The random generators that belong to the loader and the data, by name."""
        return dict(self.found_generators.named)

    @property
    def found_generators(self) -> FoundGenerators:
        """The random generators by name, with reasons why the search may have missed others."""
        return self._search_generators(self.roots)

    @property
    def roots(self) -> dict[str, Any]:
        """The objects to search for random generators and states, by name.

        These are the objects that make the batches. If batches cannot be repeated, the dict is
        empty, because no state is saved for such data.
        """
        return {"data": self.loader} if self.can_repeat else {}

    @property
    def objects_outside_keeper(self) -> Objects:
        """The objects within the data, by name, without those that the keeper's state includes.

        The states of these objects are saved separately.
        """
        watched, keeper = self.found_generators.watched, self.keeper
        if keeper is None:
            return watched
        return {name: get for name, get in watched.items() if not keeper.has(name)}

    def set_pass(self, data_pass: int) -> None:
        """Announces the next pass: calls ``set_epoch`` of the loader, or of the objects inside it.

        Objects may be nested at any depth, for example in an iterable of the user that contains
        several loaders. An object with a ``set_epoch`` is expected to forward the call to the
        objects inside it.

        Args:
            data_pass: the number of the pass, from 0.
        """
        with self.object_states.around_set_epoch(self.objects_outside_keeper):
            for each in self._epoch_targets():
                each.set_epoch(data_pass)

    def _epoch_targets(self) -> list[Any]:
        """Returns the objects whose ``set_epoch`` is called to announce a pass."""
        if hasattr(self.loader, "set_epoch"):
            return [self.loader]
        return [*self._nested_epoch_targets().values()]

    def _nested_epoch_targets(self) -> dict[str, Any]:
        """Returns the outermost objects with a ``set_epoch``. The keys are the objects' paths."""
        outermost: dict[str, Any] = {}
        for path, get in self.found_generators.watched.items():
            each = get()
            is_within = any(path.startswith(f"{above}.") for above in outermost)
            if callable(getattr(type(each), "set_epoch", None)) and not is_within:
                outermost[path] = each
        return outermost

    @contextmanager
    def active(self, data_pass: int) -> Iterator[None]:
        """Prepares the loader for a pass, or for the rest of a pass.

        The body of the ``with`` iterates the pass.
        """
        self.set_pass(data_pass)
        yield

    def mark_last_batch(self) -> None:
        """Tells Accelerate that the next batch is the last of the pass. Does nothing here."""

    def batches(self, data_pass: int, skip: int) -> Generator[Any, None, None]:
        """Returns the batches of pass ``data_pass`` (from 0), without the first ``skip``.

        If there is a keeper and a usable snapshot, the data are first restored to the snapshot.
        """
        if self.keeper is None:
            return self.replay_batches(data_pass, skip)
        return self.snapshots.batches(self, FeedPosition(data_pass, skip))

    def replay_batches(self, data_pass: int, skip: int) -> Generator[Any, None, None]:
        """Yields the batches of a pass without the first ``skip``, and does not use the keeper.

        If the pass was begun before, the random generators are set to their states at the start of
        the pass, the same order of samples is drawn again, and the generators are set back.
        """
        if self._iterator is not None:
            # iter() makes some iterators begin again, so it is called only at the start of a pass.
            yield from _remaining_batches(self._iterator if skip else iter(self._iterator))
        elif self._started_pass is not None and self._started_pass[0] == data_pass:
            yield from self._reenter_pass(data_pass, skip, self._started_pass[1])
        else:
            iterator, first = self._begin_pass(data_pass, skip), deque[Any]()
            # The samplers draw the order of the pass when the first batch is fetched. So the pass
            # counts as begun only when this batch has come.
            first.extend(islice(iterator, 1))
            self._started_pass, self._requested_pass = self._requested_pass, None
            if first:
                # The batch is not assigned to a variable, because the variable would keep the batch
                # alive while this generator is suspended.
                yield first.popleft()
                yield from iterator

    def _begin_pass(self, data_pass: int, skip: int) -> Iterator[Any]:
        """Begins a pass, and notes the random state at its start.

        If an earlier attempt to begin the same pass was interrupted, the random state that the
        earlier attempt noted is restored first.
        """
        self.object_states.begin(self.objects_outside_keeper)
        if self._requested_pass is not None and self._requested_pass[0] == data_pass:
            self._requested_pass[1].restore()
        else:
            self._requested_pass = (data_pass, RandomState.capture(generators=self.generators))
        return self._open_iterator_at(data_pass, skip) if skip else self._open_iterator()

    def _reenter_pass(self, data_pass: int, skip: int, begun: RandomState) -> Iterator[Any]:
        """Enters a pass again. Draws its order from ``begun``, the random state at its start."""
        with self._at_start_of_pass(begun):
            return self._open_iterator_at(data_pass, skip)

    @contextmanager
    def _at_start_of_pass(self, begun: RandomState) -> Iterator[None]:
        """Sets the generators to their states at the start of a pass, during the body."""
        with RandomState.preserved(generators=self.generators):
            begun.restore()
            yield

    def batches_after_load(self, skip: int) -> Iterator[Any]:
        """Returns the batches that follow the state that was loaded into the keeper.

        Args:
            skip: the number of batches of the pass that precede the position of the loaded state.
        """
        loaders = [*self._inner_loaders().values()] if skip else []
        if loaders:
            with_workers = [each for each in loaders if each.num_workers]
            return _start_on_first_batch(
                self.loader, with_workers, _with_copied_generators(loaders)
            )
        if self._iterator is None:
            return self._open_iterator()
        return _remaining_batches(self._iterator if skip else iter(self._iterator))

    def random_state_at_start(self, data_pass: int) -> RandomState | None:
        """Returns the states of the global generators at the start of a pass; None if unknown."""
        if self._started_pass is None or self._started_pass[0] != data_pass:
            return None
        return replace(self._started_pass[1], generators={})

    def forget_pass(self) -> None:
        """Forgets that a pass was begun, so that the next pass draws its order from scratch."""
        self._started_pass = self._requested_pass = None

    def end_pass(self, data_pass: int, given: int) -> None:
        """Ends a pass that has given all its batches, but whose iterator was not exhausted.

        This happens if a run stops directly after the last batch of a pass. Does nothing here. A
        subclass exhausts its samplers, because some samplers draw random numbers at their end.

        Args:
            data_pass: the number of the pass, from 0.
            given: the number of batches in the pass, all of which were given.
        """

    def facts(self) -> dict[str, int | str | None]:
        """Returns the facts: properties of the data, by name, which are saved in checkpoints.

        A resume gives the same batches only if the facts have not changed. Messages about a change
        contain the names.
        """
        base = getattr(self.loader, "base_dataloader", self.loader)
        sampler = getattr(base, "batch_sampler", None)
        sized = base if sampler is None else sampler
        return {
            "batches a pass": self._full_pass_length,
            "samples a batch": getattr(sized, "batch_size", None),
            "workers": getattr(base, "num_workers", 0),
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that another process needs to enter the pass that was begun last.

        The keys are:

        - "begun": the number of this pass and the random state at its start; None before the first
          pass.
        - "generators": the present states of the random generators of the data, by name.
        - "objects": the present states of the objects outside the keeper, by name.
        """
        begun = None
        if self._started_pass is not None:
            data_pass, random = self._started_pass
            begun = {"data_pass": data_pass, "random": random.state_dict()}
        found = self.found_generators
        return {
            "begun": begun,
            "generators": {name: generator_state(each) for name, each in found.named.items()},
            "objects": self.object_states.state_dict(self.objects_outside_keeper),
        }

    def samples_before(self, position: FeedPosition) -> int | None:
        """Returns how many samples of the pass come before a position; None if not certain."""
        return None

    @property
    def is_in_order(self) -> bool:
        """Returns whether batches come in the same order when a pass is entered again.

        A subclass returns False if the loader has workers and was made with ``in_order=False``.
        """
        return True

    @property
    def replayed_sampler(self) -> Any:
        """The sampler that is iterated from its first element when a pass is entered in its middle.

        None if there is no such sampler.
        """
        return None

    def batches_after(self, samples: int) -> int | None:
        """Returns how many batches of a pass come after ``samples`` samples; None if unknown."""
        return None

    def set_samples_before(self, position: FeedPosition, samples: int) -> None:
        """Sets how many samples of the pass come before ``position``.

        The number of batches does not determine this number if the batch size has changed since the
        save. Does nothing here.
        """

    def worker_states_at(self, position: FeedPosition) -> dict[str, Any] | None:
        """Returns the states of the workers at a position; None without workers or if unknown."""
        return None

    def accepts_worker_states(self, state_dict: Mapping[str, Any] | None) -> bool:
        """Returns whether workers can continue from the saved states ``state_dict``."""
        return False

    def load_worker_states(
        self, position: FeedPosition, state_dict: Mapping[str, Any] | None = None
    ) -> None:
        """Sets the states from which workers continue at ``position``. Does nothing here.

        Args:
            position: the position in the data.
            state_dict: a return value of ``worker_states_at``; None if no state can be used.
        """

    def order_state_at(self, position: FeedPosition) -> dict[str, Any] | None:
        """Returns the state of the sampler at a position; None if the state is not known.

        If workers prefetch, the sampler is ahead of the position. A resume then needs the state of
        the sampler, and the elements that the sampler has yielded after the position. A *recorded
        sampler* is a sampler with a state whose elements a subclass records (see
        ``recorded_order.py``). Here no sampler is recorded.
        """
        return None

    def accepts_order_state(self, state_dict: Mapping[str, Any] | None) -> bool:
        """Returns whether the recorded sampler can continue from the saved state ``state_dict``."""
        return False

    def load_order_state(
        self,
        position: FeedPosition,
        state_dict: Mapping[str, Any] | None = None,
        *,
        ends: bool = False,
    ) -> None:
        """Sets the state from which the recorded sampler continues. Does nothing here.

        Args:
            position: the position in the data.
            state_dict: a return value of ``order_state_at``; None if no state can be used.
            ends: whether no batch of the pass is left. The sampler is then iterated to its end.
        """

    def order_state_differences(self, state_dict: Mapping[str, Any] | None) -> list[str]:
        """Returns the reason why the saved state of a sampler is not restored.

        The list is empty if no state was saved.
        """
        if state_dict is None:
            return []
        now = "there is nothing with a state now"
        if (keeper := self.keeper) is not None:
            now = (
                "it was saved while workers prefetched, and "
                f"{keeper.name} does not run ahead of the batches now"
            )
        return [f"the state of {state_dict['of']} is not restored, because {now}"]

    def order_state_includes(self, name: str, state_dict: Mapping[str, Any] | None) -> bool:
        """Returns whether the saved state of a recorded sampler includes the generator ``name``."""
        return False

    def doubts(self) -> list[str]:
        """Returns the reasons why the saved state of the data may be incomplete."""
        found = self.found_generators
        persistent = [
            f"{path} has persistent workers: a resume in a new process starts new workers, and "
            "draws one more random number to seed them; leave out persistent_workers to resume "
            "exactly"
            for path, loader in self._inner_loaders().items()
            if loader.persistent_workers and getattr(loader, "_iterator", None) is not None
        ]
        object_doubts = self.object_states.doubts(self.objects_outside_keeper)
        return [*found.doubts, *object_doubts, *persistent]

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores a return value of the method ``state_dict``.

        If the saved process had begun a pass, this pass counts as begun in this process too.
        Generators without a saved state are left unchanged.
        """
        generators, states = self.generators, state_dict["generators"]
        self._started_pass = self._requested_pass = None
        if (begun := state_dict["begun"]) is not None:
            random = RandomState.from_state_dict(begun["random"], generators=generators)
            self._started_pass = begun["data_pass"], random
        for name in generators.keys() & states.keys():
            set_generator_state(generators[name], states[name])
        objects = self.objects_outside_keeper
        self.object_states.load_state_dict(objects, state_dict.get("objects", {}))

    def _inner_loaders(self) -> dict[str, DataLoader[Any]]:
        """Returns the torch loaders that an iterable of the user contains, by path.

        Such an iterable may, for example, take batches from several loaders in turn. Empty if the
        data are a torch loader themselves.
        """
        if isinstance(self.loader, DataLoader):
            return {}
        found = {path: get() for path, get in self.found_generators.watched.items()}
        return {path: each for path, each in found.items() if isinstance(each, DataLoader)}

    def _open_iterator(self) -> Iterator[Any]:
        """Returns a new iterator over a whole pass."""
        loaders = [each for each in self._inner_loaders().values() if each.num_workers]
        return _start_on_first_batch(self.loader, loaders) if loaders else iter(self.loader)

    def _open_iterator_at(self, data_pass: int, skip: int) -> Iterator[Any]:
        """Returns a new iterator over a pass without the first ``skip`` batches."""
        iterator = self._open_iterator()
        deque(islice(iterator, skip), maxlen=0)
        return iterator


class AdaptedLoader(PlainIterable):
    """The source for a prepared loader that reads data on rank 0 and sends batches to all ranks.

    Only Accelerate's own iteration sends the batches of rank 0 to the other ranks. So this source
    iterates the prepared loader. ``TorchLoader`` iterates the torch loader inside a prepared loader
    instead.
    """

    @property
    def keeper(self) -> PositionKeeper | None:
        """Returns None: Accelerate itself iterates the data, and restores no state of the data.

        So a resume loads the earlier batches of a pass again.
        """
        return None

    @property
    def roots(self) -> dict[str, Any]:
        """The data set, ``collate_fn`` and samplers, by name."""
        return {**data_parts(self.loader), **order_parts(self.loader)}

    @property
    def knows_its_end(self) -> bool:
        """Returns True: Accelerate sets ``end_of_dataloader`` with the last batch."""
        return True

    @property
    def length(self) -> int | None:
        """The number of batches in a pass; None if the number is not certain.

        The number is not certain in two cases:

        - The data set is iterable, so its ``len()`` may be wrong.
        - ``even_batches`` is False, so some processes may get no samples of the last batch.
        """
        is_stream = isinstance(self.loader.dataset, IterableDataset)
        return self.promised_length if self.even_batches and not is_stream else None

    @contextmanager
    def active(self, data_pass: int) -> Iterator[None]:
        """Sets the number of the pass. Accelerate's iteration calls ``set_epoch`` with it."""
        with activated(self.loader):
            self.loader.iteration = data_pass
            yield

    def _open_iterator(self) -> Iterator[Any]:
        batches = _start_on_first_batch(self.loader, [self.loader.base_dataloader])
        return batches if self.even_batches else self._without_padding(batches)

    def _without_padding(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yields the batches of this rank without the repeated samples in the last batch."""
        for batch in batches:
            size = find_batch_size(batch)
            if self.loader.end_of_dataloader and isinstance(self.loader, DataLoaderDispatcher):
                # The ranks share one large last batch. Only its first `remainder` samples are new.
                # The other samples are repetitions, which fill the batch.
                rank = self.loader.state.process_index
                size = min(max(self.loader.remainder - rank * size, 0), size)
                batch = slice_tensors(batch, slice(0, size))
            if size:
                yield batch


class TorchLoader(PlainIterable):
    """The source for a torch ``DataLoader``, prepared or not.

    The loader is iterated without Accelerate's look-ahead. Accelerate fetches one batch ahead to
    find the end of the data. With this look-ahead, the data set first draws the random numbers
    for the next batch, and then the model draws random numbers for the present batch (for dropout,
    say). A plain PyTorch loop draws them in the other order.

    This class itself is for streams (iterable data sets). The subclass ``IndexedLoader`` is for
    loaders with a sampler.

    Attributes:
        caveats: known reasons why the rest of a resumed pass may differ from the saved run,
            although the state of a stream is restored.
    """

    def __init__(self, loader: Any, even_batches: bool = True) -> None:
        self._stateful_loader: DataLoader[Any] | None = None
        self.caveats: tuple[str, ...] = ()
        super().__init__(loader, even_batches)
        self._stateful_loader = self._make_stateful_loader()
        # Whether a seed for workers was drawn when the last pass began. This is False if persistent
        # workers were running already.
        self._drew_seed = True
        # Whether persistent workers ran in the process whose state was loaded.
        self._had_persistent_workers = False
        # Whether the next iterator continues a pass in its middle.
        self._continues_pass = False
        base: Any = self.base
        if is_stateful_loader(base):
            # When Accelerate prepares the loader, it calls `state_dict`, and the loader creates an
            # iterator before `set_epoch` is called. The first pass must not use this iterator.
            # Loading an empty state drops it.
            base.load_state_dict({})

    @property
    def base(self) -> DataLoader[Any]:
        """The loader to iterate: the torch loader inside Accelerate's adapter.

        If ``_make_stateful_loader`` has made a torchdata loader, the torchdata loader is iterated
        in place of the torch loader.
        """
        base: DataLoader[Any] = getattr(self.loader, "base_dataloader", self.loader)
        return base if self._stateful_loader is None else self._stateful_loader

    def _make_stateful_loader(self) -> DataLoader[Any] | None:
        """Returns a torchdata loader to iterate in place of torch's loader.

        If workers load a stream, each worker has a copy of it. torch's loader cannot ask the
        workers for the states of these copies, but a torchdata loader can. Returns None if no
        torchdata loader is needed, or if torchdata is not installed.
        """
        base = self.base
        if type(base) is not DataLoader or not base.num_workers or not self._is_stateful_stream:
            return None
        return None if _is_reseeded(base.dataset) else stateful_loader(base)

    @property
    def _is_stateful_stream(self) -> bool:
        """Returns whether the data set is a stateful stream: an iterable data set with a state.

        If the data set is a shard that Accelerate made, the data set inside the shard is examined.
        """
        stream = unsharded(self.base.dataset)
        return isinstance(stream, IterableDataset) and has_state_dict(stream)

    @property
    def keeper(self) -> PositionKeeper | None:
        """The keeper; None if no object has a usable state.

        The keeper wraps one of these objects: a sampler with a state; a stream with a state, if it
        is iterated in this process; or a torchdata loader whose workers have copies of the stream.
        """
        base: Any = self.base
        dataset = base.dataset
        if not isinstance(self.base.dataset, IterableDataset):
            return keeper_for_snapshots(base)
        if not self._is_stateful_stream or _is_reseeded(dataset):
            return None
        is_shard = isinstance(dataset, IterableDatasetShard)
        pads = is_shard and dataset.num_processes > 1 and not dataset.drop_last
        caveats = (PADDING_CAVEAT,) if pads else self.caveats
        if not base.num_workers:
            path = "dataset.dataset" if is_shard else "dataset"
            return PositionKeeper(unsharded(dataset), (path,), caveats=caveats)
        if not is_stateful_loader(base):
            return None
        if base.persistent_workers and base.num_workers > 1:
            caveats += (_WORKER_ORDER_CAVEAT,)
        return replace(make_keeper(base, ("loader", "dataset"), base.num_workers), caveats=caveats)

    @property
    def remedy(self) -> str:
        """A hint to install torchdata, if workers load a stream with a usable state; else empty."""
        can_be_asked = self._is_stateful_stream and not _is_reseeded(self.base.dataset)
        return _TORCHDATA_HINT if can_be_asked and self.keeper is None else ""

    @property
    def roots(self) -> dict[str, Any]:
        """The objects to search for random generators and states, by name.

        These are the data set, the ``collate_fn`` and the samplers. The loader is one of them if
        its class is from the user's code.
        """
        own = {} if is_library_code(type(self.base)) else {"loader": self.base}
        return {**data_parts(self.base), **order_parts(self.base), **own}

    @property
    def length(self) -> int | None:
        """Returns None: the ``len()`` of an iterable data set may be wrong."""
        return None

    def mark_last_batch(self) -> None:
        """Sets ``end_of_dataloader``, as Accelerate's own iteration does before the last batch."""
        if isinstance(self.loader, DataLoaderShard):
            self.loader.end_of_dataloader = True

    def _epoch_targets(self) -> list[Any]:
        """Returns the objects whose ``set_epoch`` is called to announce a pass.

        ``set_epoch`` of a prepared loader calls ``set_epoch`` of the data set and the samplers, but
        not of objects inside these. So the objects inside are returned as well.
        """
        parts, direct = dataset_and_samplers(self.base), [self.loader]
        if not isinstance(self.loader, DataLoaderShard):
            direct = [each for each in parts if hasattr(each, "set_epoch")]
        found = self._nested_epoch_targets().values()
        return direct + [each for each in found if all(each is not part for part in parts)]

    @contextmanager
    def active(self, data_pass: int) -> Iterator[None]:
        """Calls ``set_epoch``. In the body, a prepared loader is the active loader of Accelerate.

        Accelerate reads from its active loader whether the present batch is the last.
        """
        loader = self.loader
        if not isinstance(loader, DataLoaderShard):
            self.set_pass(data_pass)
            yield
            return
        # `DataLoaderShard.__iter__` begins with this call, too. `__iter__` itself is not called,
        # because it fetches a batch ahead.
        if loader.rng_types is not None:
            synchronize_rng_states(loader.rng_types, loader.synchronized_generator)
        with activated(loader):
            loader.begin()
            self.set_pass(data_pass)
            yield

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the base class, with two more keys about the seeds of workers.

        - "drew_seed": whether a seed for workers was drawn when the last pass began.
        - "has_workers": see ``_has_persistent_workers``.
        """
        return {
            **super().state_dict(),
            "drew_seed": self._drew_seed,
            "has_workers": self._has_persistent_workers,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores a state, and ends persistent workers, which have prefetched other batches.

        A torchdata loader ends its workers itself when it loads its own state.
        """
        super().load_state_dict(state_dict)
        if self.base.persistent_workers and not self.draws_in_workers:
            self.base._iterator = None
        self._drew_seed = state_dict.get("drew_seed", self._drew_seed)
        self._had_persistent_workers = state_dict.get("has_workers", False)

    @property
    def _has_persistent_workers(self) -> bool:
        """Returns whether persistent workers run in this process, or ran in the saved process."""
        return self._had_persistent_workers or self._has_running_workers

    @property
    def _has_running_workers(self) -> bool:
        """Returns whether persistent workers run and will also load the next pass."""
        # torchdata's loader also sets `_iterator` if its workers are not persistent.
        has_iterator = getattr(self.base, "_iterator", None) is not None
        return self.base.persistent_workers and has_iterator and not self._dataset_sets_epoch

    @property
    def _dataset_sets_epoch(self) -> bool:
        """Returns whether the data set, or an object in it, has a ``set_epoch``.

        Running persistent workers do not notice a call of ``set_epoch``, because their copies of
        the data set were made when the workers started. So new workers are started for each pass.
        """
        dataset = self.base.dataset
        paths = [path.partition(".")[0] for path in self._nested_epoch_targets()]
        return hasattr(dataset, "set_epoch") or "dataset" in paths

    def _begin_pass(self, data_pass: int, skip: int) -> Iterator[Any]:
        if self.base.persistent_workers and self._dataset_sets_epoch:
            self.base._iterator = None  # ends the workers
        # torch draws no new seed for persistent workers that are running.
        self._drew_seed = not self._has_persistent_workers
        return super()._begin_pass(data_pass, skip)

    def batches_after_load(self, skip: int) -> Iterator[Any]:
        """Returns the batches that follow the state that was loaded into the keeper."""
        self._continues_pass = skip > 0
        try:
            return self._open_iterator()
        finally:
            self._continues_pass = False

    @contextmanager
    def _matching_seed_draws(self, *, is_continued: bool = False) -> Iterator[None]:
        """Makes the body advance the loader's generator as the saved process did.

        When an iteration begins, torch draws a seed for its workers from the loader's generator. If
        persistent workers are running already, torch draws no seed. The present process may differ
        from the saved process in two ways:

        - The saved process drew a seed, but workers are running here: a draw is added.
        - The saved process had running workers, but new workers start here: their seed is drawn
          from a temporary generator.

        Args:
            is_continued: whether the iteration continues a pass in its middle. The generator then
                stays unchanged: the seed was drawn when the pass began.
        """
        base = self.base
        forget_dead_workers(base)
        if is_continued:
            with _with_copied_generators([base]):
                yield
        elif self._drew_seed == (not self._has_running_workers):
            yield
        elif self._drew_seed:
            torch.empty((), dtype=torch.int64).random_(generator=base.generator)
            yield
        else:
            generator, base.generator = base.generator, torch.Generator()
            try:
                yield  # the seed of the new workers is drawn from the temporary generator
            finally:
                base.generator = generator

    @property
    def _skipped_batches(self) -> int:
        """The number of batches that Accelerate's ``skip_first_batches`` leaves out."""
        return getattr(self.loader, "skip_batches", 0)

    @property
    def draws_in_workers(self) -> bool:
        """Returns whether the state of the data includes the random states of its workers."""
        keeper = self.keeper
        return keeper is not None and keeper.workers > 0

    def _loader_to_start(self) -> DataLoader[Any]:
        """Returns the loader to iterate for a whole pass. A subclass may wrap its sampler."""
        return self.base

    def _open_iterator(self) -> Iterator[Any]:
        with ExitStack() as stack:
            stack.enter_context(self._matching_seed_draws(is_continued=self._continues_pass))
            if self.draws_in_workers:
                stack.enter_context(with_random_state(self.base))
            batches = iterate_with_workers(self._loader_to_start())
        return islice(batches, self._skipped_batches, None) if self._skipped_batches else batches


class CustomLoader(TorchLoader):
    """The source for a loader whose class overrides the iteration or the state methods.

    ``__iter__`` of the loader is used unchanged. The ``len()`` of such a loader may be wrong, and a
    batch can be skipped only by loading it.
    """

    @property
    def draws_in_workers(self) -> bool:
        """Returns False: the class may start workers at any time, which cannot be tracked."""
        return False

    @property
    def keeper(self) -> PositionKeeper | None:
        """The keeper, which wraps the loader itself; None if the loader has no usable state.

        The state of a sampler or data set alone is not enough, because the loader may buffer
        samples.
        """
        is_stream = isinstance(self.base.dataset, IterableDataset)
        # If a stream has no state, the state of torchdata's loader is only a count of batches.
        # Such a state is not used, because this source can skip the same number of batches itself.
        has_usable_state = (
            not (is_stream and is_stateful_loader(self.base)) or self._is_stateful_stream
        )
        paths = ("loader", *data_parts(self.base), *order_parts(self.base))
        keeps_position = has_state_dict(self.loader) and has_usable_state
        return make_keeper(self.loader, paths, self.base.num_workers) if keeps_position else None

    def _make_stateful_loader(self) -> None:
        """Returns None: the user's loader is not replaced, because its own iteration is used."""

    def _epoch_targets(self) -> list[Any]:
        """Returns the loader alone if the loader has a ``set_epoch``.

        The parts of the loader are left out: the loader may call their ``set_epoch`` itself, with
        another number.
        """
        return [self.loader] if hasattr(self.loader, "set_epoch") else super()._epoch_targets()

    def _open_iterator(self) -> Iterator[Any]:
        return _start_on_first_batch(
            self.loader, [self.loader], self._matching_seed_draws(is_continued=self._continues_pass)
        )


def _is_reseeded(dataset: Any) -> bool:
    """Returns whether Accelerate's shard seeds a stream's generator at the start of each pass.

    The state of such a stream is of no use for a resume: the shard would overwrite the restored
    state of the generator.
    """
    stream = unsharded(dataset)
    has_generator = isinstance(getattr(stream, "generator", None), torch.Generator)
    return stream is not dataset and has_generator and not hasattr(stream, "set_epoch")


def _remaining_batches(iterator: Iterator[Any]) -> Iterator[Any]:
    """Yields the remaining batches of an iterator, without calling ``iter()`` or ``close()``.

    ``iter()`` makes some iterators begin again. ``close()`` would end the iterator, but its batches
    may be needed later.
    """
    while True:
        try:
            yield next(iterator)
        except StopIteration:
            return


@contextmanager
def _with_copied_generators(loaders: Iterable[Any]) -> Iterator[None]:
    """Makes loaders draw the seeds of workers from copies of their generators, during the body.

    The body begins a new iteration to continue a pass. The seed of this pass was drawn from
    the generators when the pass began, so the generators must not change now.
    """
    found = [(each, each.generator) for each in loaders]
    for loader, generator in found:
        state = torch.get_rng_state() if generator is None else generator.get_state()
        loader.generator = torch.Generator()
        loader.generator.set_state(state)
    try:
        yield
    finally:
        for loader, generator in found:
            loader.generator = generator


def _start_on_first_batch(
    loader: Any,
    with_workers: Iterable[Any],
    beginning: AbstractContextManager[None] | None = None,
) -> Iterator[Any]:
    """Yields the batches of a loader whose workers may start only when a batch is requested.

    Args:
        loader: the loader.
        with_workers: the torch loaders whose workers may start with the first batch.
        beginning: a context manager that is active until the first batch has been fetched.
    """
    first = deque[Any]()
    with ExitStack() as stack:
        stack.enter_context(beginning or nullcontext())
        for each in with_workers:
            stack.enter_context(starting_workers(each, blocks=False))
        batches = iter(loader)
        first.extend(islice(batches, 1))
    while first:
        # The batch is not assigned to a variable, because the variable would keep the batch alive
        # while this generator is suspended.
        yield first.popleft()
    yield from batches
