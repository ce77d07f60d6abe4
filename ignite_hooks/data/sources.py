"""Kinds of data, their parts, and how one pass over each is begun, re-entered and ended."""

from collections import deque
from collections.abc import Generator
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from collections.abc import Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any

from accelerate.data_loader import DataLoaderDispatcher
from accelerate.data_loader import DataLoaderShard
from accelerate.utils import find_batch_size
from accelerate.utils import slice_tensors
from accelerate.utils import synchronize_rng_states
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset

from ignite_hooks.core.object_graph import is_of_library
from ignite_hooks.data.active_loader import activated
from ignite_hooks.data.own_states import OwnStates
from ignite_hooks.data.random_state import FoundGenerators
from ignite_hooks.data.random_state import GeneratorSearch
from ignite_hooks.data.random_state import RandomGenerator
from ignite_hooks.data.random_state import RandomState
from ignite_hooks.data.random_state import set_state
from ignite_hooks.data.random_state import state_of
from ignite_hooks.data.workers import started
from ignite_hooks.data.workers import starting_workers

__all__ = ["AdaptedLoader", "PlainIterable", "TorchLoader", "data_parts", "order_parts", "parts_of"]


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
        self._search_generators = GeneratorSearch()
        self.own_states = OwnStates()
        self._begun: tuple[int, RandomState] | None = None
        self._opening: tuple[int, RandomState] | None = None  # until the first batch is there

    @property
    def can_repeat(self) -> bool:
        """Whether batches that were given can be given again; an iterator's can not."""
        return self._iterator is None

    @property
    def length(self) -> int | None:
        """The number of batches in a pass, or None where it is not certain."""
        try:
            return len(self.loader) if isinstance(self.loader, Sized) else None
        except TypeError:
            return None

    @property
    def is_entered_exactly(self) -> bool:
        """Whether a pass is entered in its middle with no random number drawn twice."""
        return isinstance(self.loader, Sequence)

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
        """The objects that batches come from, by name. A single iterator cannot be moved at all."""
        return {} if self._iterator is not None else {"data": self.loader}

    def tell_pass(self, data_pass: int) -> None:
        """Tells the loader, its samplers and the data set which pass comes, from 0."""
        if hasattr(self.loader, "set_epoch"):
            with self.own_states.told(self.found_generators.watched):
                self.loader.set_epoch(data_pass)

    @contextmanager
    def active(self, data_pass: int) -> Iterator[None]:
        """Around one pass, or what is left of it: the loader knows which one it is."""
        self.tell_pass(data_pass)
        yield

    def mark_last(self) -> None:
        """Tells Accelerate that the batch to come is the last of the pass."""

    def batches(self, data_pass: int, skip: int) -> Generator[Any, None, None]:
        """The batches of pass ``data_pass`` (from 0) but the first ``skip``.

        A pass that was begun before is entered again: the order of its samples is drawn from the
        generators as they were when it began, and then they are put back as they are now.
        """
        if self._iterator is not None:
            yield from islice(self._iterator, None)  # not closed with this generator
        elif self._begun is not None and self._begun[0] == data_pass:
            with RandomState.preserved(generators=self.generators):
                self._begun[1].restore()
                iterator = self._reopen(skip)
            yield from iterator
            self._end_reopened()
        else:
            iterator, first = self._begin(data_pass, skip), deque[Any]()
            first.extend(islice(iterator, 1))  # samplers draw the order now
            self._begun, self._opening = self._opening, None
            if first:
                yield first.popleft()  # by no name: it would be kept with it
                yield from iterator

    def _begin(self, data_pass: int, skip: int) -> Iterator[Any]:
        """Begins a pass, with the random numbers of the first attempt if that broke off."""
        self.own_states.begin(self.found_generators.watched)
        if self._opening is not None and self._opening[0] == data_pass:
            self._opening[1].restore()
        else:
            self._opening = (data_pass, RandomState.capture(generators=self.generators))
        return self._reopen(skip) if skip else self._open()

    def end_pass(self, data_pass: int, given: int) -> None:
        """Ends a pass all of whose batches were given, and whose end broke off."""

    def facts(self) -> dict[str, int | None]:
        """What must be the same for another process to be given the same batches."""
        base = getattr(self.loader, "base_dataloader", self.loader)
        sampler = getattr(base, "batch_sampler", None)
        sized = base if sampler is None else sampler
        return {
            "batches a pass": self.length,
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
            "objects": self.own_states.state_dict(found.watched),
        }

    def doubts(self) -> list[str]:
        """Returns why there may be a state that ``state_dict`` does not have."""
        found = self.found_generators
        return [*found.doubts, *self.own_states.doubts(found.watched)]

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes that pass for begun here. Of the generators those are set that have a state."""
        generators, states = self.generators, state_dict["generators"]
        self._begun = self._opening = None
        if (begun := state_dict["begun"]) is not None:
            random = RandomState.from_state_dict(begun["random"], generators=generators)
            self._begun = begun["data_pass"], random
        for name in generators.keys() & states.keys():
            set_state(generators[name], states[name])
        objects = self.found_generators.watched
        self.own_states.load_state_dict(objects, state_dict.get("objects", {}))

    def _open(self) -> Iterator[Any]:
        return iter(self.loader)

    def _reopen(self, skip: int) -> Iterator[Any]:
        iterator = self._open()
        deque(islice(iterator, skip), maxlen=0)
        return iterator

    def _end_reopened(self) -> None:
        """After the last batch of a pass that was entered again."""


class AdaptedLoader(PlainIterable):
    """A prepared loader that must iterate itself: it dispatches batches to the other processes."""

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
        return super().length if self.even_batches and not is_stream else None

    @contextmanager
    def active(self, data_pass: int) -> Iterator[None]:
        """It sets the epoch itself, by its count of iterations."""
        with activated(self.loader):
            self.loader.iteration = data_pass
            yield

    def _open(self) -> Iterator[Any]:
        batches = self._from_workers()
        return batches if self.even_batches else self._without_padding(batches)

    def _from_workers(self) -> Iterator[Any]:
        """The loader begins its iteration, and with it its workers, at the first batch."""
        batches, first = iter(self.loader), deque[Any]()
        with starting_workers(self.loader.base_dataloader, blocks=False):
            first.extend(islice(batches, 1))
        while first:
            yield first.popleft()  # by no name: it would be kept with it
        yield from batches

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
    """

    def __init__(self, loader: Any, even_batches: bool = True) -> None:
        super().__init__(loader, even_batches)
        if hasattr(self.base, "load_state_dict"):
            # torchdata's: Accelerate has asked for its state, which began an iterator, and with it
            # drew its random numbers, before any pass.
            self.base.load_state_dict({})

    @property
    def base(self) -> DataLoader[Any]:
        """The torch loader under Accelerate's adapter."""
        base: DataLoader[Any] = getattr(self.loader, "base_dataloader", self.loader)
        return base

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

    def tell_pass(self, data_pass: int) -> None:
        """As Accelerate's loader does; to one that is not prepared, all its parts are told."""
        with self.own_states.told(self.found_generators.watched):
            if isinstance(self.loader, DataLoaderShard):
                self.loader.set_epoch(data_pass)
                return
            for each in parts_of(self.loader):
                if hasattr(each, "set_epoch"):
                    each.set_epoch(data_pass)

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

    def _open(self) -> Iterator[Any]:
        skipped = getattr(self.loader, "skip_batches", 0)
        return islice(started(self.base), skipped, None) if skipped else started(self.base)
