"""Kinds of data, their parts, and how one pass over each is begun, re-entered and ended."""

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

from ignite_hooks.core.object_graph import is_of_library
from ignite_hooks.core.place import FeedPosition
from ignite_hooks.data.active_loader import activated
from ignite_hooks.data.own_states import Objects
from ignite_hooks.data.own_states import OwnStates
from ignite_hooks.data.own_states import has_state
from ignite_hooks.data.place_states import PlaceKeeper
from ignite_hooks.data.place_states import PlaceStates
from ignite_hooks.data.place_states import is_stateful_loader
from ignite_hooks.data.place_states import keeper_of
from ignite_hooks.data.place_states import sampler_keeper
from ignite_hooks.data.place_states import stateful_loader
from ignite_hooks.data.random_state import FoundGenerators
from ignite_hooks.data.random_state import GeneratorSearch
from ignite_hooks.data.random_state import RandomGenerator
from ignite_hooks.data.random_state import RandomState
from ignite_hooks.data.random_state import set_state
from ignite_hooks.data.random_state import state_of
from ignite_hooks.data.worker_states import unsharded
from ignite_hooks.data.worker_states import with_random_state
from ignite_hooks.data.workers import forget_dead_workers
from ignite_hooks.data.workers import started
from ignite_hooks.data.workers import starting_workers

__all__ = [
    "PADDED",
    "AdaptedLoader",
    "OwnLoader",
    "PlainIterable",
    "TorchLoader",
    "data_parts",
    "order_parts",
    "parts_of",
]


def parts_of(loader: Any) -> list[Any]:
    """The data set and the samplers, nested ones too."""
    parts = [loader.dataset]
    samplers = [loader.batch_sampler, loader.sampler]
    while samplers:
        sampler = samplers.pop()
        if sampler is not None and all(sampler is not part for part in parts):
            parts.append(sampler)
            samplers += [getattr(sampler, name, None) for name in ("batch_sampler", "sampler")]
    return parts


def data_parts(loader: Any) -> dict[str, Any]:
    """What a batch of samples comes from, once it is known which samples."""
    return {"dataset": loader.dataset, "collate_fn": loader.collate_fn}


def order_parts(loader: Any) -> dict[str, Any]:
    """What the order of the samples comes from."""
    names = ("generator", "sampler", "batch_sampler")
    return {name: getattr(loader, name, None) for name in names}


_TURNS = (
    "torchdata asks persistent workers in another order after a pass that was entered in its "
    "middle, so batches come in another order: use one worker, or leave out persistent_workers"
)
PADDED = (
    "the samples that Accelerate repeats to fill the last batch of this pass are the first ones "
    "after the place it is entered at; with drop_last=True none are"
)
_WITH_TORCHDATA = (
    " (with torchdata installed a StatefulDataLoader asks the data set's copies in the workers for "
    "their states instead)"
)
# What these have is what they give.
_CERTAIN = (Sequence, Set, Mapping, MappingView, torch.Tensor)


def _parts_of(thing: Any) -> tuple[()] | None:
    """Says that nothing is in an iterator of torch: where it stands is told by the position."""
    return () if issubclass(type(thing), _BaseDataLoaderIter) else None


class PlainIterable:
    """Any iterable of batches. Base of the other kinds.

    Args:
        loader: what is iterated.
        even_batches: whether samples may be given twice, so that every process has as many.
    """

    def __init__(self, loader: Any, even_batches: bool = True) -> None:
        self.loader = loader
        self.even_batches = even_batches
        self._iterator = loader if isinstance(loader, Iterator) else None
        self._search_generators = GeneratorSearch(_parts_of)
        self.own_states = OwnStates()
        self.furthest = FeedPosition(0, 0)  # that was come to before going back
        self.places = PlaceStates()
        self._begun: tuple[int, RandomState] | None = None
        self._opening: tuple[int, RandomState] | None = None  # until the first batch is there

    @property
    def can_repeat(self) -> bool:
        """Whether batches that were given can be given again; an iterator needs a state for it."""
        return self._iterator is None or self.keeper is not None

    @property
    def keeper(self) -> PlaceKeeper | None:
        """The object whose state tells the place in the data, if there is one."""
        has_place = not isinstance(self.loader, _CERTAIN) and has_state(self.loader)
        return keeper_of(self.loader, ("data",)) if has_place else None

    @property
    def reaches_all_ranks(self) -> bool:
        """Returns whether each rank is sure to have a batch, which all of them know."""
        return False

    @property
    def is_reader(self) -> bool:
        """Returns whether this process loads the batches; else another one sends them."""
        return True

    def set_window(self, window: int) -> None:
        """Sets the batches in a full accumulation window, by which a run may roll back."""
        self.places.window = window

    def place_before(self, position: FeedPosition) -> dict[str, Any] | None:
        """Returns the state of the data at a position; None if there is none to be saved."""
        return self.places.state_dict(self, position)

    def keeps_place(self, state_dict: Mapping[str, Any]) -> bool:
        """Returns whether the data resume from their own state, whatever else has changed.

        Args:
            state_dict: that of the feed.
        """
        return self.places.takes(self, state_dict.get("place"))

    def place_differences(
        self, position: FeedPosition, state_dict: Mapping[str, Any] | None
    ) -> list[str]:
        """Returns what keeps batches from being those that followed the place that was saved."""
        return self.places.differences(self, position, state_dict)

    def resume_place(self, position: FeedPosition, state_dict: Mapping[str, Any] | None) -> None:
        """Restores the state that ``place_before`` has returned."""
        self.places.load_state_dict(self, position, state_dict)

    @property
    def draws_in_workers(self) -> bool:
        """Whether the state that tells the place has what workers draw from in it."""
        return False

    @property
    def remedy(self) -> str:
        """What would have the place told by a state, where that is known; else nothing."""
        return ""

    @property
    def length(self) -> int | None:
        """The number of batches in a pass, or None where it is not certain."""
        return self.promised_length if isinstance(self.loader, _CERTAIN) else None

    @property
    def _length_of_pass(self) -> int | None:
        """That of any pass that is begun with its first batch."""
        return self.length

    @property
    def promised_length(self) -> int | None:
        """What ``len()`` says, which is to be shown, not to be relied on; None if there is none."""
        try:
            return len(self.loader) if isinstance(self.loader, Sized) else None
        except (TypeError, NotImplementedError):
            return None

    @property
    def is_entered_exactly(self) -> bool:
        """Whether a pass is entered in its middle with no random number drawn twice."""
        return isinstance(self.loader, Sequence)

    @property
    def is_replayed(self) -> bool:
        """Returns whether a pass without a state is entered by loading its earlier batches."""
        return not isinstance(self.loader, Sequence)

    @property
    def ends_itself(self) -> bool:
        """Whether the loader knows its last batch by itself (``end_of_dataloader``)."""
        return False

    @property
    def generators(self) -> dict[str, RandomGenerator]:
        """The random generators that the loader and the data have for themselves, by name."""
        return dict(self.found_generators.named)

    @property
    def found_generators(self) -> FoundGenerators:
        """The same, and why there may be others."""
        return self._search_generators(self.roots)

    @property
    def roots(self) -> dict[str, Any]:
        """The objects that batches come from, by name; none of what cannot be moved at all."""
        return {"data": self.loader} if self.can_repeat else {}

    @property
    def beside_keeper(self) -> Objects:
        """The objects whose states are not in that of the object that keeps the place."""
        watched, keeper = self.found_generators.watched, self.keeper
        if keeper is None:
            return watched
        return {name: get for name, get in watched.items() if not keeper.has(name)}

    def tell_pass(self, data_pass: int) -> None:
        """Tells the loader, its samplers and the data set which pass comes, from 0.

        They may be anywhere in a loader of loaders. What has ``set_epoch`` tells what is within it.
        """
        with self.own_states.told(self.beside_keeper):
            for each in self._to_tell():
                each.set_epoch(data_pass)

    def _to_tell(self) -> list[Any]:
        if hasattr(self.loader, "set_epoch"):
            return [self.loader]
        return [*self._found_to_tell().values()]

    def _found_to_tell(self) -> dict[str, Any]:
        outermost: dict[str, Any] = {}
        for path, get in self.found_generators.watched.items():
            each = get()
            is_within = any(path.startswith(f"{above}.") for above in outermost)
            if callable(getattr(type(each), "set_epoch", None)) and not is_within:
                outermost[path] = each
        return outermost

    @contextmanager
    def active(self, data_pass: int) -> Iterator[None]:
        """Around one pass, or what is left of it: the loader knows which one it is."""
        self.tell_pass(data_pass)
        yield

    def mark_last(self) -> None:
        """Tells Accelerate that the batch to come is the last of the pass."""

    def batches(self, data_pass: int, skip: int) -> Generator[Any, None, None]:
        """Returns the batches of pass ``data_pass`` (from 0) but the first ``skip``.

        Data that tell their place are given the state that they had there.
        """
        if self.keeper is None:
            return self.replayed(data_pass, skip)
        return self.places.batches(self, FeedPosition(data_pass, skip))

    def replayed(self, data_pass: int, skip: int) -> Generator[Any, None, None]:
        """Yields the batches of a pass but the first ``skip``, without the help of a state.

        A pass that was begun before is entered again: the order of its samples is drawn from the
        generators as they were when it began, and then they are put back as they are now.
        """
        if self._iterator is not None:
            # One that can begin again does so when it is asked for its iterator.
            yield from _without_closing(self._iterator if skip else iter(self._iterator))
        elif self._begun is not None and self._begun[0] == data_pass:
            yield from self._reentered(data_pass, skip, self._begun[1])
        else:
            iterator, first = self._begin(data_pass, skip), deque[Any]()
            first.extend(islice(iterator, 1))  # samplers draw the order now
            self._begun, self._opening = self._opening, None
            if first:
                yield first.popleft()  # by no name: it would be kept with it
                yield from iterator

    def _begin(self, data_pass: int, skip: int) -> Iterator[Any]:
        """Begins a pass, with the random numbers of the first attempt if that broke off."""
        self.own_states.begin(self.beside_keeper)
        if self._opening is not None and self._opening[0] == data_pass:
            self._opening[1].restore()
        else:
            self._opening = (data_pass, RandomState.capture(generators=self.generators))
        return self._reopen(data_pass, skip) if skip else self._open()

    def _reentered(self, data_pass: int, skip: int, begun: RandomState) -> Iterator[Any]:
        """Enters a pass that began with the random generators in a state."""
        with self._as_begun(begun):
            return self._reopen(data_pass, skip)

    @contextmanager
    def _as_begun(self, begun: RandomState) -> Iterator[None]:
        """Puts the generators back to where a pass began while its order is drawn again."""
        with RandomState.preserved(generators=self.generators):
            begun.restore()
            yield

    def continued(self, skip: int) -> Iterator[Any]:
        """Returns the batches that follow a state which the data were given just now.

        Args:
            skip: how many batches of its pass come before that state.
        """
        loaders = [*self._loaders_within().values()] if skip else []
        if loaders:
            with_workers = [each for each in loaders if each.num_workers]
            return _started_late(self.loader, with_workers, _seeded_aside(loaders))
        if self._iterator is None:
            return self._open()
        return _without_closing(self._iterator if skip else iter(self._iterator))

    def begun_with(self, data_pass: int) -> RandomState | None:
        """Returns the global generators as they were when a pass began, if that is known."""
        if self._begun is None or self._begun[0] != data_pass:
            return None
        return replace(self._begun[1], generators={})

    def forget_pass(self) -> None:
        """Takes no pass for begun."""
        self._begun = self._opening = None

    def end_pass(self, data_pass: int, given: int) -> None:
        """Ends a pass all of whose batches were given, and whose end broke off."""

    def facts(self) -> dict[str, int | str | None]:
        """What must be the same for another process to be given the same batches."""
        base = getattr(self.loader, "base_dataloader", self.loader)
        sampler = getattr(base, "batch_sampler", None)
        sized = base if sampler is None else sampler
        return {
            "batches a pass": self._length_of_pass,
            "samples a batch": getattr(sized, "batch_size", None),
            "workers": getattr(base, "num_workers", 0),
        }

    def state_dict(self) -> dict[str, Any]:
        """What it takes to enter the pass that was begun last again, in another process."""
        begun = None
        if self._begun is not None:
            data_pass, random = self._begun
            begun = {"data_pass": data_pass, "random": random.state_dict()}
        found = self.found_generators
        return {
            "begun": begun,
            "generators": {name: state_of(each) for name, each in found.named.items()},
            "objects": self.own_states.state_dict(self.beside_keeper),
        }

    def samples_before(self, position: FeedPosition) -> int | None:
        """Returns the samples of the pass before a position; None if not certain."""
        return None

    @property
    def is_in_order(self) -> bool:
        """Returns whether batches come in the same order again."""
        return True

    @property
    def gone_through(self) -> Any:
        """The sampler that has to be iterated to enter a pass; None if there is none."""
        return None

    def batches_behind(self, samples: int) -> int | None:
        """Returns how many batches come after that many samples; None if not known."""
        return None

    def place_samples(self, position: FeedPosition, samples: int) -> None:
        """Sets how many samples of the pass come before a position."""

    def workers_before(self, position: FeedPosition) -> dict[str, Any] | None:
        """Returns the states of the workers at a position; None without any, or if not known."""
        return None

    def takes_workers(self, state_dict: Mapping[str, Any] | None) -> bool:
        """Returns whether workers can continue from these states."""
        return False

    def place_workers(
        self, position: FeedPosition, state_dict: Mapping[str, Any] | None = None
    ) -> None:
        """Sets the states from which workers continue at a position; None if not known."""

    def order_before(self, position: FeedPosition) -> dict[str, Any] | None:
        """Returns the state of a sampler that is recorded; None without one, or if not known."""
        return None

    def takes_order(self, state_dict: Mapping[str, Any] | None) -> bool:
        """Returns whether a sampler can continue from this state."""
        return False

    def place_order(
        self,
        position: FeedPosition,
        state_dict: Mapping[str, Any] | None = None,
        *,
        ends: bool = False,
    ) -> None:
        """Sets the state from which a sampler continues at a position; None if not known.

        Args:
            position: the place in the data.
            state_dict: what ``order_before`` has returned.
            ends: whether the sampler is to go on to the end of the pass.
        """

    def changes_of_order(self, state_dict: Mapping[str, Any] | None) -> list[str]:
        """Returns what keeps a sampler from continuing from this state."""
        if state_dict is None:
            return []
        now = "there is nothing with a state now"
        if (keeper := self.keeper) is not None:
            now = f"{keeper.name} does not draw ahead for workers now"
        return [f"the state of {state_dict['of']} is not restored, {now}"]

    def has_saved(self, name: str, state_dict: Mapping[str, Any] | None) -> bool:
        """Returns whether the state that was saved tells of the generator of that name."""
        return False

    def doubts(self) -> list[str]:
        """Returns why there may be a state that ``state_dict`` does not have."""
        found = self.found_generators
        staying = [
            f"{path} has workers that stay from pass to pass, and a process that resumes starts "
            "others, with a random number more: without persistent_workers there is no difference"
            for path, loader in self._loaders_within().items()
            if loader.persistent_workers and getattr(loader, "_iterator", None) is not None
        ]
        return [*found.doubts, *self.own_states.doubts(self.beside_keeper), *staying]

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes that pass for begun here. Of the generators those are set that have a state."""
        generators, states = self.generators, state_dict["generators"]
        self._begun = self._opening = None
        if (begun := state_dict["begun"]) is not None:
            random = RandomState.from_state_dict(begun["random"], generators=generators)
            self._begun = begun["data_pass"], random
        for name in generators.keys() & states.keys():
            set_state(generators[name], states[name])
        objects = self.beside_keeper
        self.own_states.load_state_dict(objects, state_dict.get("objects", {}))

    def _loaders_within(self) -> dict[str, DataLoader[Any]]:
        """Returns the loaders in a loader of loaders, by the path to each."""
        if isinstance(self.loader, DataLoader):
            return {}
        found = {path: get() for path, get in self.found_generators.watched.items()}
        return {path: each for path, each in found.items() if isinstance(each, DataLoader)}

    def _open(self) -> Iterator[Any]:
        loaders = [each for each in self._loaders_within().values() if each.num_workers]
        return _started_late(self.loader, loaders) if loaders else iter(self.loader)

    def _reopen(self, data_pass: int, skip: int) -> Iterator[Any]:
        iterator = self._open()
        deque(islice(iterator, skip), maxlen=0)
        return iterator


class AdaptedLoader(PlainIterable):
    """A prepared loader that must iterate itself: it dispatches batches to the other processes."""

    @property
    def keeper(self) -> PlaceKeeper | None:
        """Returns None: it iterates its data in its own way."""
        return None

    @property
    def roots(self) -> dict[str, Any]:
        """The data and the (nested) samplers."""
        return {**data_parts(self.loader), **order_parts(self.loader)}

    @property
    def ends_itself(self) -> bool:
        """It sets ``end_of_dataloader`` with the last batch."""
        return True

    @property
    def length(self) -> int | None:
        """An iterable data set's length is a promise; without padding, each process has its own."""
        is_stream = isinstance(self.loader.dataset, IterableDataset)
        return self.promised_length if self.even_batches and not is_stream else None

    @contextmanager
    def active(self, data_pass: int) -> Iterator[None]:
        """It sets the epoch itself, by its count of iterations."""
        with activated(self.loader):
            self.loader.iteration = data_pass
            yield

    def _open(self) -> Iterator[Any]:
        batches = _started_late(self.loader, [self.loader.base_dataloader])
        return batches if self.even_batches else self._without_padding(batches)

    def _without_padding(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            size = find_batch_size(batch)
            if self.loader.end_of_dataloader and isinstance(self.loader, DataLoaderDispatcher):
                # The last batch of all processes together was filled up with the first samples.
                rank = self.loader.state.process_index
                size = min(max(self.loader.remainder - rank * size, 0), size)
                batch = slice_tensors(batch, slice(0, size))
            if size:
                yield batch


class TorchLoader(PlainIterable):
    """A torch ``DataLoader``, prepared or not, iterated without Accelerate's look-ahead.

    Accelerate fetches one batch ahead to find the end, which moves the draws of random numbers in
    the data set before those of the previous iteration.

    Attributes:
        caveats: what differs in a pass of a stream that is entered by its state.
    """

    def __init__(self, loader: Any, even_batches: bool = True) -> None:
        self._stateful: DataLoader[Any] | None = None
        self.caveats: tuple[str, ...] = ()
        super().__init__(loader, even_batches)
        self._stateful = self._made_stateful()
        self._drew_seed = True  # for the workers of the pass that was begun last
        self._had_workers = False
        self._is_continued = False
        base: Any = self.base
        if is_stateful_loader(base):
            # Accelerate has asked for its state, which began an iterator, and with it drew its
            # random numbers, before any pass.
            base.load_state_dict({})

    @property
    def base(self) -> DataLoader[Any]:
        """The torch loader under Accelerate's adapter."""
        base: DataLoader[Any] = getattr(self.loader, "base_dataloader", self.loader)
        return base if self._stateful is None else self._stateful

    def _made_stateful(self) -> DataLoader[Any] | None:
        """Returns a loader that is iterated in place of torch's, which cannot ask its workers."""
        base = self.base
        if type(base) is not DataLoader or not base.num_workers or not self._is_stateful_stream:
            return None
        return None if _is_seeded(base.dataset) else stateful_loader(base)

    @property
    def _is_stateful_stream(self) -> bool:
        stream = unsharded(self.base.dataset)
        return isinstance(stream, IterableDataset) and has_state(stream)

    @property
    def keeper(self) -> PlaceKeeper | None:
        """A stream or sampler with a state, or the loader whose workers have copies of a stream."""
        base: Any = self.base
        dataset = base.dataset
        if not isinstance(self.base.dataset, IterableDataset):
            return sampler_keeper(base)
        if not self._is_stateful_stream or _is_seeded(dataset):
            return None
        is_shard = isinstance(dataset, IterableDatasetShard)
        pads = is_shard and dataset.num_processes > 1 and not dataset.drop_last
        caveats = (PADDED,) if pads else self.caveats
        if not base.num_workers:
            path = "dataset.dataset" if is_shard else "dataset"
            return PlaceKeeper(unsharded(dataset), (path,), caveats=caveats)
        if not is_stateful_loader(base):
            return None
        if base.persistent_workers and base.num_workers > 1:
            caveats += (_TURNS,)
        return replace(keeper_of(base, ("loader", "dataset"), base.num_workers), caveats=caveats)

    @property
    def remedy(self) -> str:
        """Where workers could be asked for the states of their copies of the data set."""
        can_be_asked = self._is_stateful_stream and not _is_seeded(self.base.dataset)
        return _WITH_TORCHDATA if can_be_asked and self.keeper is None else ""

    @property
    def roots(self) -> dict[str, Any]:
        """The data, the (nested) samplers, and a loader of a class of the user."""
        own = {} if is_of_library(type(self.base)) else {"loader": self.base}
        return {**data_parts(self.base), **order_parts(self.base), **own}

    @property
    def length(self) -> int | None:
        """An iterable data set's length is a promise at best."""
        return None

    def mark_last(self) -> None:
        """As Accelerate's own iteration does before its last batch."""
        if isinstance(self.loader, DataLoaderShard):
            self.loader.end_of_dataloader = True

    def _to_tell(self) -> list[Any]:
        """A prepared loader tells its parts, but not what is within them."""
        parts, direct = parts_of(self.base), [self.loader]
        if not isinstance(self.loader, DataLoaderShard):
            direct = [each for each in parts if hasattr(each, "set_epoch")]
        found = self._found_to_tell().values()
        return direct + [each for each in found if all(each is not part for part in parts)]

    @contextmanager
    def active(self, data_pass: int) -> Iterator[None]:
        """As Accelerate's own iteration begins and ends; samplers and data set know the pass."""
        loader = self.loader
        if not isinstance(loader, DataLoaderShard):
            self.tell_pass(data_pass)
            yield
            return
        if loader.rng_types is not None:
            synchronize_rng_states(loader.rng_types, loader.synchronized_generator)
        with activated(loader):
            loader.begin()
            self.tell_pass(data_pass)
            yield

    def state_dict(self) -> dict[str, Any]:
        """And whether there are workers that stay."""
        return {
            **super().state_dict(),
            "drew_seed": self._drew_seed,
            "has_workers": self._has_workers,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As its base does. Workers that are there end: they are not at that place."""
        super().load_state_dict(state_dict)
        if self.base.persistent_workers and not self.draws_in_workers:
            self.base._iterator = None
        self._drew_seed = state_dict.get("drew_seed", self._drew_seed)
        self._had_workers = state_dict.get("has_workers", False)

    @property
    def _has_workers(self) -> bool:
        """Whether workers stay from pass to pass and are there already, or were where this was."""
        return self._had_workers or self._stays

    @property
    def _stays(self) -> bool:
        # torchdata's loader keeps its last iterator in any case.
        has_iterator = getattr(self.base, "_iterator", None) is not None
        return self.base.persistent_workers and has_iterator and not self._is_data_told

    @property
    def _is_data_told(self) -> bool:
        """Whether the data set is told the pass, of which its copies in workers do not hear."""
        dataset = self.base.dataset
        paths = [path.partition(".")[0] for path in self._found_to_tell()]
        return hasattr(dataset, "set_epoch") or "dataset" in paths

    def _begin(self, data_pass: int, skip: int) -> Iterator[Any]:
        if self.base.persistent_workers and self._is_data_told:
            self.base._iterator = None  # which ends its workers
        self._drew_seed = not self._has_workers  # those that are there are not given a new one
        return super()._begin(data_pass, skip)

    def continued(self, skip: int) -> Iterator[Any]:
        """As its base does."""
        self._is_continued = skip > 0
        try:
            return self._open()
        finally:
            self._is_continued = False

    @contextmanager
    def _as_seeded(self, *, is_continued: bool = False) -> Iterator[None]:
        """While an iteration begins: as many numbers are drawn for workers as in the other one."""
        base = self.base
        forget_dead_workers(base)
        if is_continued:
            with _seeded_aside([base]):
                yield
        elif self._drew_seed == (not self._stays):
            yield
        elif self._drew_seed:
            torch.empty((), dtype=torch.int64).random_(generator=base.generator)
            yield
        else:
            generator, base.generator = base.generator, torch.Generator()
            try:
                yield  # begins workers, whose seed is drawn from that generator
            finally:
                base.generator = generator

    @property
    def _skipped(self) -> int:
        """The batches that its user has Accelerate leave out."""
        return getattr(self.loader, "skip_batches", 0)

    @property
    def draws_in_workers(self) -> bool:
        """Whether the state that tells the place has what workers draw from in it."""
        keeper = self.keeper
        return keeper is not None and keeper.workers > 0

    def _to_start(self) -> DataLoader[Any]:
        """Returns the loader that is iterated for a whole pass."""
        return self.base

    def _open(self) -> Iterator[Any]:
        with ExitStack() as stack:
            stack.enter_context(self._as_seeded(is_continued=self._is_continued))
            if self.draws_in_workers:
                stack.enter_context(with_random_state(self.base))
            batches = started(self._to_start())
        return islice(batches, self._skipped, None) if self._skipped else batches


class OwnLoader(TorchLoader):
    """A loader of a class that changes how it iterates: it is iterated as it is.

    Its number of batches is a promise. No batch is left out but by asking for it.
    """

    @property
    def draws_in_workers(self) -> bool:
        """False: its class may start workers whenever it wants."""
        return False

    @property
    def keeper(self) -> PlaceKeeper | None:
        """The loader: its class may hold samples that its data set has given."""
        is_stream = isinstance(self.base.dataset, IterableDataset)
        # torchdata's goes through a stream again that has no state.
        is_asked = not (is_stream and is_stateful_loader(self.base)) or self._is_stateful_stream
        paths = ("loader", *data_parts(self.base), *order_parts(self.base))
        has_place = has_state(self.loader) and is_asked
        return keeper_of(self.loader, paths, self.base.num_workers) if has_place else None

    def _made_stateful(self) -> None:
        """Returns None: the loader is iterated as it is."""

    def _to_tell(self) -> list[Any]:
        """The loader alone, if it can be told: it may tell its parts another number."""
        return [self.loader] if hasattr(self.loader, "set_epoch") else super()._to_tell()

    def _open(self) -> Iterator[Any]:
        return _started_late(
            self.loader, [self.loader], self._as_seeded(is_continued=self._is_continued)
        )


def _is_seeded(dataset: Any) -> bool:
    """Returns whether Accelerate seeds a generator of a stream whenever it is iterated."""
    stream = unsharded(dataset)
    has_generator = isinstance(getattr(stream, "generator", None), torch.Generator)
    return stream is not dataset and has_generator and not hasattr(stream, "set_epoch")


def _without_closing(iterator: Iterator[Any]) -> Iterator[Any]:
    """Yields what an iterator gives from here on, and does not ask it to begin again."""
    while True:
        try:
            yield next(iterator)
        except StopIteration:
            return


@contextmanager
def _seeded_aside(loaders: Iterable[Any]) -> Iterator[None]:
    """While an iteration begins that had begun before: loaders draw no seed for their workers.

    They draw it from a generator that nobody else uses.
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


def _started_late(
    loader: Any,
    with_workers: Iterable[Any],
    beginning: AbstractContextManager[None] | None = None,
) -> Iterator[Any]:
    """Yields the batches of a loader that may begin its iteration, and workers, with the first.

    Args:
        loader: the loader.
        with_workers: the loaders of torch whose workers begin then.
        beginning: is entered around that.
    """
    first = deque[Any]()
    with ExitStack() as stack:
        stack.enter_context(beginning or nullcontext())
        for each in with_workers:
            stack.enter_context(starting_workers(each, blocks=False))
        batches = iter(loader)
        first.extend(islice(batches, 1))
    while first:
        yield first.popleft()  # by no name: it would be kept with it
    yield from batches
