"""States from which data go on at one of their batches, without giving those before it again.

An object with ``state_dict`` and ``load_state_dict`` that gives the batches of a pass, or the
samples of them, tells with its state where it is. A feed often has fetched batches that it has not
given: the state that belongs to its position is older than the present one.

Two private members of torchdata are used, and ``tests/data/test_data_states.py`` fails when they
change their meaning: ``StatefulDataLoader._iterator``, by which a loader whose workers stay is
known to have begun, and ``torchdata.nodes.Loader._it``, its iterator. One that has found that its
pass is over tells the state of then for ever.
"""

import copy
import importlib
import warnings
from collections import deque
from collections.abc import Generator
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import ExitStack
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any
from typing import Protocol
from typing import TypeVar

import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler
from torch.utils.data import DataLoader

from ignite_hooks.core.place import FeedPosition
from ignite_hooks.data.own_states import Objects
from ignite_hooks.data.own_states import OwnStates
from ignite_hooks.data.own_states import has_state
from ignite_hooks.data.own_states import is_plain
from ignite_hooks.data.random_state import RandomGenerator
from ignite_hooks.data.random_state import RandomState
from ignite_hooks.data.random_state import set_state
from ignite_hooks.data.random_state import state_of
from ignite_hooks.data.worker_states import end_streams

__all__ = [
    "PlaceKeeper",
    "PlaceStates",
    "first_of",
    "is_same_state",
    "is_stateful_loader",
    "keeper_of",
    "keeper_of_order",
    "sampler_keeper",
    "stateful_loader",
]

_T = TypeVar("_T")
_NOWHERE = FeedPosition(-1, 0)
_DATA_SET = "data set"  # the only state in that of a loader between two passes


def is_stateful_loader(loader: Any) -> bool:
    """Returns whether a loader is a ``StatefulDataLoader`` of torchdata, or of a subclass."""
    modules = (kind.__module__ for kind in type(loader).__mro__)
    return any(module.startswith("torchdata.stateful_dataloader") for module in modules)


def stateful_loader(loader: DataLoader[Any]) -> DataLoader[Any] | None:
    """Returns a ``StatefulDataLoader`` like ``loader``; None where torchdata is not installed.

    Args:
        loader: a loader of a stream, whose samples no sampler chooses.
    """
    try:
        torchdata: Any = importlib.import_module("torchdata.stateful_dataloader")
    except ImportError:
        return None
    made: DataLoader[Any] = torchdata.StatefulDataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        in_order=loader.in_order,
    )
    return made


@dataclass(frozen=True)
class PlaceKeeper:
    """An object whose state tells which batch it gives next.

    Args:
        holder: the object.
        paths: the names of the objects whose states are in its state; the first is its own.
        workers: the number of worker processes that the state is of.
        caveats: what of the rest of a pass is not in the state, as far as that is known.
    """

    holder: Any
    paths: tuple[str, ...]
    workers: int = 0
    caveats: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Tells which object it is, and of which kind: one of the same name takes its state."""
        workers = f", {self.workers} workers" if self.workers else ""
        return f"{self.paths[0]} ({type(self.holder).__qualname__}{workers})"

    def has(self, name: str) -> bool:
        """Returns whether its state tells of what has that name."""
        return any(f"{name}.".startswith((f"{path}.", f"{path} (")) for path in self.paths)

    def state_dict(self, *, is_at_start: bool) -> Any:
        """Returns a copy of its state, which later batches do not change.

        Args:
            is_at_start: whether the next batch is the first one of a pass.
        """
        return copy.deepcopy(self.holder.state_dict())

    def load_state_dict(self, state_dict: Any, *, is_at_start: bool) -> None:
        """Has it go on there when it is iterated next."""
        self.holder.load_state_dict(copy.deepcopy(state_dict))


class _StatefulLoaderKeeper(PlaceKeeper):
    """A ``StatefulDataLoader``, which would begin an iteration if it were asked before the first.

    An iteration that is over it would begin twice. So between two passes the data set is asked; its
    copies in workers end with the pass, unless the workers stay.
    """

    def state_dict(self, *, is_at_start: bool) -> Any:
        loader = self.holder
        if not is_at_start or (loader.persistent_workers and loader._iterator is not None):
            return super().state_dict(is_at_start=is_at_start)
        is_asked = not loader.num_workers and has_state(loader.dataset)
        return {_DATA_SET: copy.deepcopy(loader.dataset.state_dict())} if is_asked else {}

    def load_state_dict(self, state_dict: Any, *, is_at_start: bool) -> None:
        if state_dict.keys() <= {_DATA_SET}:
            self.holder.load_state_dict({})
            for state in state_dict.values():
                self.holder.dataset.load_state_dict(copy.deepcopy(state))
            return
        state_dict = copy.deepcopy(state_dict)
        if not is_at_start:
            end_streams(state_dict)
        super().load_state_dict(state_dict, is_at_start=is_at_start)


class _NodesKeeper(PlaceKeeper):
    """A ``torchdata.nodes.Loader``, which goes through a pass again to see that it is over."""

    def load_state_dict(self, state_dict: Any, *, is_at_start: bool) -> None:
        super().load_state_dict(state_dict, is_at_start=is_at_start)
        if is_at_start:
            iter(self.holder)  # now: what it draws at random is put back after this
            self.holder._it = None


def keeper_of(holder: Any, paths: tuple[str, ...], workers: int = 0) -> PlaceKeeper:
    """Returns an object with a state as the one that keeps the place.

    Args:
        holder: the object.
        paths: as in ``PlaceKeeper``.
        workers: likewise.
    """
    if is_stateful_loader(holder):
        return _StatefulLoaderKeeper(holder, paths, workers)
    is_of_nodes = any(kind.__module__ == "torchdata.nodes.loader" for kind in type(holder).__mro__)
    return (_NodesKeeper if is_of_nodes else PlaceKeeper)(holder, paths, workers)


def sampler_keeper(loader: DataLoader[Any]) -> PlaceKeeper | None:
    """Returns the outermost sampler of a loader that has a state; None if there is none.

    Workers are given samples ahead of the batches that have come: there the elements that a sampler
    yields are recorded (``RecordedOrder``). Accelerate's samplers for several processes draw ahead:
    where these draw without workers, a state would be of a later batch.
    """
    if loader.num_workers:
        return None
    batches = loader.batch_sampler
    if batches is not None and has_state(batches):
        return PlaceKeeper(batches, ("batch_sampler",))
    # That of a loader of Accelerate has the sampler within its batch sampler alone.
    samples: Any = batches.sampler if type(batches) is BatchSampler else loader.sampler
    is_asked = (batches is None or type(batches) is BatchSampler) and has_state(samples)
    return PlaceKeeper(samples, ("batch_sampler.sampler", "sampler")) if is_asked else None


def keeper_of_order(loader: DataLoader[Any]) -> PlaceKeeper | None:
    """Returns the outermost sampler of a loader that has a state, also below Accelerate's."""
    found: dict[int, tuple[Any, list[str]]] = {}
    for root in ("batch_sampler", "sampler"):
        path, order = root, getattr(loader, root)
        while type(order) in (BatchSampler, BatchSamplerShard):
            within = "sampler" if type(order) is BatchSampler else "batch_sampler"
            path, order = f"{path}.{within}", getattr(order, within)
        if has_state(order):
            found.setdefault(id(order), (order, []))[1].append(path)
    if not found:
        return None
    holder, paths = next(iter(found.values()))
    return PlaceKeeper(holder, tuple(paths))


@dataclass(frozen=True)
class PlaceState:
    """What the rest of a pass is made with.

    Args:
        keeper: the state of the object that keeps the place.
        objects: the states of objects that its state does not tell of, by name.
        random: the global random generators.
        generators: the states of those of the data, by name.
    """

    keeper: Any
    objects: dict[str, Any]
    random: RandomState
    generators: dict[str, Any]

    def restore(self, source: "Source", *, is_at_start: bool) -> None:
        """Restores all but the global generators.

        The object that keeps the place comes last: it may set generators.
        """
        assert source.keeper is not None
        _set_generators(source, self.generators)
        source.own_states.load_state_dict(source.beside_keeper, copy.deepcopy(self.objects))
        source.keeper.load_state_dict(self.keeper, is_at_start=is_at_start)

    def state_dict(self) -> dict[str, Any]:
        """Returns the same as numbers, lists, dicts and tensors."""
        return {**vars(self), "random": self.random.state_dict()}

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any]) -> "PlaceState":
        """Returns the state that ``state_dict`` was made of."""
        return cls(
            keeper=state_dict["keeper"],
            objects=dict(state_dict["objects"]),
            random=RandomState.from_state_dict(state_dict["random"]),
            generators=dict(state_dict["generators"]),
        )


class Source(Protocol):
    """Data that tell their place, as their states are taken and given back."""

    @property
    def keeper(self) -> PlaceKeeper | None:
        """The object whose state tells the place in the data."""

    @property
    def generators(self) -> dict[str, RandomGenerator]:
        """The random generators of the data, by name."""

    @property
    def beside_keeper(self) -> Objects:
        """The objects whose states are not in that of the object that keeps the place."""

    own_states: OwnStates

    def replayed(self, data_pass: int, skip: int) -> Generator[Any, None, None]:
        """Yields the batches of a pass but the first ``skip``, without the help of a state."""

    def continued(self, skip: int) -> Iterator[Any]:
        """Returns the batches that follow a state which the data were given just now."""

    def tell_pass(self, data_pass: int) -> None:
        """Tells the data which pass comes, from 0."""

    def begun_with(self, data_pass: int) -> RandomState | None:
        """Returns the global generators as they were when a pass began, if that is known."""

    def forget_pass(self) -> None:
        """Takes no pass for begun."""


class PlaceStates:
    """The states before the last batches of a pass, and before its first one.

    Attributes:
        window: batches of a window of the optimizer, by which a feed may go back, or look ahead.
    """

    def __init__(self) -> None:
        self.window = 1
        self._before: dict[FeedPosition, PlaceState] = {}
        self._fetched = FeedPosition(0, 0)  # behind the last batch that has come; the end counts
        self._has_ended = True  # whether the last pass was gone through to its end
        self._is_fetching = False  # whether a batch was asked for and has not come
        self._is_untold = False  # whether the place before the pass is from before ``set_epoch``
        self._left: dict[str, Any] | None = None  # the generators as they were left
        self._is_resumed = False  # whether the pass is entered at a place that was loaded
        self._partners: list[PlaceStates] = []  # of the same object, to restore it once

    def arrive(self, source: Source) -> None:
        """Notes the generators of the data, before a pass is entered that ``set_epoch`` begins."""
        if self._left is None and source.keeper is not None:
            self._left = {name: state_of(each) for name, each in source.generators.items()}

    def batches(self, source: Source, position: FeedPosition) -> Generator[Any, None, None]:
        """Yields the batches that follow ``position``, and notes the place before each."""
        if position.batches and self._is_live(position):
            self._note(position, _place_of(source))
        kept = (each for each in self._before if each.data_pass == position.data_pass)
        start = max((each for each in kept if each <= position), default=None)
        if start is None or not self._is_told(start):
            if not position.batches:
                self._note(position, _place_of(source, is_at_start=True))
            yield from self._noting(source, source.replayed(*position), position)
        elif position.batches or self._ahead_of(position):
            yield from self._entered(source, start, position)
        else:
            yield from self._noting(source, self._begun_from(source, position), position)

    def _entered(
        self, source: Source, start: FeedPosition, position: FeedPosition
    ) -> Generator[Any, None, None]:
        """Goes on at ``position``, from the last place up to it that was noted.

        Batches that had been fetched there and not been given are fetched with the random numbers
        of then.
        """
        assert source.keeper is not None
        if not self._is_resumed:  # else the report of the resume has named them
            for caveat in source.keeper.caveats:
                warnings.warn(caveat, stacklevel=2)
        self._is_resumed = False
        place, ahead = self._before[start], self._ahead_of(position)
        left = self._left or {}
        if not ahead or self._is_fetching:  # the others are where the state has put them
            left = _beside(source, left)
        with RandomState.preserved():
            self._restore(source, start)
            # What only counts its batches draws their order again as it is iterated.
            if (begun := source.begun_with(start.data_pass)) is not None:
                begun.restore()
            iterator = source.continued(start.batches)
            if start.batches:
                place.random.restore()
            batches = self._noting(source, iterator, start)
            deque(islice(batches, position.batches - start.batches), maxlen=0)
            fetched = deque(islice(batches, ahead))
        _set_generators(source, left)
        yield from first_of(fetched, batches)

    def _begun_from(self, source: Source, position: FeedPosition) -> Generator[Any, None, None]:
        """Begins a pass with the state of before, which is mostly that of the end of another."""
        with RandomState.preserved():
            self._restore(source, position)
        random = RandomState.capture(generators=source.generators)
        batches = source.replayed(*position)
        if not (first := deque(islice(batches, 1))):  # that end has come once more
            random.restore()
            source.forget_pass()
            batches = source.replayed(*position)
        yield from first_of(first, batches)

    def restore_once(self, others: Iterable["PlaceStates"]) -> None:
        """Has the first of these that restores its place be the only one, where a pass begins.

        They are of one object, and their states of one moment: what is done with the object after
        the first of them would be undone by the next.
        """
        self._partners = [*others]

    def _restore(self, source: Source, position: FeedPosition) -> None:
        for each in self._partners:
            each._before = {place: state for place, state in each._before.items() if place.batches}
        self._partners = []
        self._before[position].restore(source, is_at_start=not position.batches)
        if self._is_untold and not position.batches:
            source.tell_pass(position.data_pass)

    def _noting(
        self, source: Source, iterator: Iterator[Any], position: FeedPosition
    ) -> Generator[Any, None, None]:
        generators, objects = source.generators, source.own_states.stateful(source.beside_keeper)
        fetched, self._left = deque[Any](), None
        is_noted = position in self._before  # asked now, some objects would begin an iteration
        with ExitStack() as stack:
            if (close := getattr(iterator, "close", None)) is not None:
                stack.callback(close)
            while True:
                if not is_noted:
                    self._note(position, _place_of(source, generators, objects))
                is_noted = False
                self._is_fetching = True
                fetched.extend(islice(iterator, 1))
                position = position._replace(batches=position.batches + 1)
                self._fetched, self._has_ended = position, not fetched
                self._is_fetching = False
                if not fetched:
                    return
                yield fetched.popleft()  # by no name: it would be kept with it

    def _note(self, position: FeedPosition, place: PlaceState) -> None:
        if not position.batches:
            self._before.clear()
            self._fetched, self._is_untold = position, False
        self._before[position] = place
        former = position._replace(batches=position.batches - 2 * (self.window + 1))
        if former.batches > 0:
            self._before.pop(former, None)

    def _is_live(self, position: FeedPosition) -> bool:
        """Returns whether the data are at ``position`` now, with nothing fetched behind it."""
        is_there = position == self._fetched and not self._is_fetching
        return is_there and position not in self._before

    def _is_told(self, position: FeedPosition) -> bool:
        """Returns whether the state at ``position`` is another than that of one batch before."""
        former = self._before.get(position._replace(batches=position.batches - 1))
        return former is None or not is_same_state(former.keeper, self._before[position].keeper)

    def _ahead_of(self, position: FeedPosition) -> int:
        """Returns how many batches were fetched after ``position``; the end counts as one."""
        is_of_pass = self._fetched.data_pass == position.data_pass
        return max(0, self._fetched.batches - position.batches) if is_of_pass else 0

    def state_dict(self, source: Source, position: FeedPosition) -> dict[str, Any] | None:
        """Returns the place at ``position``; None where there is none that can be saved."""
        keeper = source.keeper
        if keeper is None:
            return None
        if self._is_live(position) and position.batches:
            self._note(position, _place_of(source))
        place = self._before.get(position)
        if place is None and not position.batches:
            place = _place_of(source, is_at_start=True)
        elif place is None or not self._is_told(position):
            return None
        if not is_plain(place.keeper):
            return None
        return {
            **place.state_dict(),
            "of": keeper.name,
            "ahead": self._ahead_of(position),
            "is_cut": not (position.batches or self._has_ended),
        }

    def load_state_dict(
        self, source: Source, position: FeedPosition, state_dict: Mapping[str, Any] | None
    ) -> None:
        """Goes on at ``position`` with the state that was saved there, if it is of such data."""
        self._before.clear()
        self._left = None
        self.arrive(source)
        self._fetched, self._has_ended, self._is_fetching = _NOWHERE, True, False
        self._is_untold = not position.batches
        if self.takes(source, state_dict):
            assert state_dict is not None
            self._before[position] = PlaceState.from_state_dict(state_dict)
            self._fetched = position._replace(batches=position.batches + state_dict["ahead"])
            self._has_ended = not state_dict["is_cut"]
            self._is_resumed = True

    @staticmethod
    def takes(source: Source, state_dict: Mapping[str, Any] | None) -> bool:
        """Returns whether the object that keeps the place is of the kind whose state was saved."""
        keeper = source.keeper
        return keeper is not None and state_dict is not None and keeper.name == state_dict["of"]

    def restores(self, source: Source, state_dict: Mapping[str, Any] | None, name: str) -> bool:
        """Returns whether the state that was saved tells of the generator of that name."""
        keeper = source.keeper
        return self.takes(source, state_dict) and keeper is not None and keeper.has(name)

    @staticmethod
    def differences(
        source: Source, position: FeedPosition, state_dict: Mapping[str, Any] | None
    ) -> list[str]:
        """Returns what keeps batches from being those that followed the place that was saved."""
        keeper = source.keeper
        if state_dict is None:
            return []
        if keeper is None or keeper.name != state_dict["of"]:
            now = "nothing with a state" if keeper is None else keeper.name
            return [f"the state of {state_dict['of']} is not restored, there is {now} now"]
        if state_dict["is_cut"]:
            return [
                f"the pass before was left in its middle: {keeper.name} begins the next one where "
                "its state says, and may give what was left of it first"
            ]
        is_told = position.batches > 0 or keeper.workers > 0
        return [*keeper.caveats] if is_told else []

    def doubts(self, source: Source) -> list[str]:
        """Returns why the place is not saved."""
        newest = next(reversed(self._before), None)
        if source.keeper is None or newest is None:
            return []
        if not is_plain(self._before[newest].keeper):
            return [
                f"the state_dict of {source.keeper.name} has more in it than tensors, numbers, "
                "texts, lists and dicts, and is not saved: batches are gone through again instead"
            ]
        if not self._is_told(newest):
            return [
                f"the state_dict of {source.keeper.name} is the same after a batch as before it, "
                "and is not saved: batches are gone through again instead"
            ]
        return []


def _place_of(
    source: Source,
    generators: Mapping[str, RandomGenerator] | None = None,
    objects: Mapping[str, Any] | None = None,
    *,
    is_at_start: bool = False,
) -> PlaceState:
    """Takes the states of now.

    Args:
        source: the data.
        generators: those of the data; default: they are searched.
        objects: the objects with a state beside the one that keeps the place.
        is_at_start: whether a pass is about to begin.
    """
    if generators is None:
        generators = source.generators
    if objects is None:
        objects = source.own_states.stateful(source.beside_keeper)
    assert source.keeper is not None
    return PlaceState(
        source.keeper.state_dict(is_at_start=is_at_start),
        {name: copy.deepcopy(each.state_dict()) for name, each in objects.items()},
        RandomState.capture(),
        {name: state_of(each) for name, each in generators.items()},
    )


def _beside(source: Source, named: Mapping[str, _T]) -> dict[str, _T]:
    """Returns those of the generators that the object that keeps the place has no part in."""
    keeper = source.keeper
    return {name: each for name, each in named.items() if keeper is None or not keeper.has(name)}


def _set_generators(source: Source, states: Mapping[str, Any]) -> None:
    for name, generator in source.generators.items():
        if name in states:
            set_state(generator, states[name])


def is_same_state(one: Any, other: Any) -> bool:
    """Returns whether two states have the same values."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            is_same_state(one[key], other[key]) for key in one
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same_state, one, other))
    return bool(is_plain(one) and one == other)


def first_of(first: deque[Any], rest: Generator[Any, None, None]) -> Generator[Any, None, None]:
    """Yields what was taken from the batches of ``rest``, and the others."""
    with closing(rest):
        while first:
            yield first.popleft()  # by no name: it would be kept with it
        yield from rest
