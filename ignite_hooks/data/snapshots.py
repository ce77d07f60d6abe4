"""Snapshots of data that have a state: a pass resumes from one without loading earlier batches.

Data can hold an object with ``state_dict`` and ``load_state_dict`` whose state contains the
position in the pass: a stream, a loader, a sampler. Here this object is called the keeper of the
place. A feed often has fetched batches that it has not given yet, so the present state of the
keeper is ahead of the feed's position. Therefore snapshots of the last positions are kept.

Two private attributes of torchdata are used. ``StatefulDataLoader._iterator`` shows whether a
loader with persistent workers has begun. ``torchdata.nodes.Loader._it`` is the iterator of a
loader: one that has looked for a batch after the end of its pass returns the state from before
that look for ever, and has to be replaced. ``tests/data/test_data_states.py`` fails when either
changes its meaning.
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
from ignite_hooks.data.object_states import Objects
from ignite_hooks.data.object_states import ObjectStates
from ignite_hooks.data.object_states import has_state_dict
from ignite_hooks.data.object_states import is_plain_data
from ignite_hooks.data.random_state import RandomGenerator
from ignite_hooks.data.random_state import RandomState
from ignite_hooks.data.random_state import generator_state
from ignite_hooks.data.random_state import set_generator_state
from ignite_hooks.data.worker_states import end_streams

__all__ = [
    "PlaceKeeper",
    "Snapshots",
    "chain_first",
    "is_same_state",
    "is_stateful_loader",
    "order_keeper",
    "place_keeper",
    "sampler_keeper",
    "stateful_loader",
]

_T = TypeVar("_T")
_NO_POSITION = FeedPosition(-1, 0)  # equal to the position of no feed: passes count from 0
_DATA_SET = "data set"  # between two passes the state of a loader has this key alone


def is_stateful_loader(loader: Any) -> bool:
    """Returns whether a loader is a ``StatefulDataLoader`` of torchdata, or of a subclass."""
    modules = (kind.__module__ for kind in type(loader).__mro__)
    return any(module.startswith("torchdata.stateful_dataloader") for module in modules)


def stateful_loader(loader: DataLoader[Any]) -> DataLoader[Any] | None:
    """Returns a ``StatefulDataLoader`` like ``loader``; None where torchdata is not installed.

    Args:
        loader: a loader of an iterable data set, which has no sampler.
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
    """The keeper of the place: an object whose state determines which batch it gives next.

    Args:
        holder: the object.
        paths: the names of the objects whose states are part of its state, its own name first.
        workers: the number of worker processes whose states are part of its state.
        caveats: known reasons why the rest of a pass may differ although the state is restored.
    """

    holder: Any
    paths: tuple[str, ...]
    workers: int = 0
    caveats: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The path and the class of the object; an object of equal name can load its state."""
        workers = f", {self.workers} workers" if self.workers else ""
        return f"{self.paths[0]} ({type(self.holder).__qualname__}{workers})"

    def has(self, name: str) -> bool:
        """Returns whether the state of the object of that name is part of the keeper's state."""
        # The name of a random generator ends with its class: "sampler.rng (PCG64)".
        return any(f"{name}.".startswith((f"{path}.", f"{path} (")) for path in self.paths)

    def state_dict(self, *, is_at_start: bool) -> Any:
        """Returns a copy of the state, which later batches do not change.

        Args:
            is_at_start: whether the next batch is the first one of a pass.
        """
        return copy.deepcopy(self.holder.state_dict())

    def load_state_dict(self, state_dict: Any, *, is_at_start: bool) -> None:
        """Loads a state: the next iteration of the object continues from there.

        Args:
            state_dict: a state that ``state_dict`` has returned.
            is_at_start: whether the next batch is the first one of a pass.
        """
        self.holder.load_state_dict(copy.deepcopy(state_dict))


class _StatefulLoaderKeeper(PlaceKeeper):
    """A ``StatefulDataLoader`` as keeper: between two passes its data set is asked instead.

    Before its first iteration, ``state_dict`` of the loader would begin one; and a loader that
    resumes from the state of a finished iteration begins two. The data set of this process has the
    whole state between two passes unless there are workers. Their copies of the data set end with
    the pass; those of persistent workers stay, so then the loader is asked after all.
    """

    def state_dict(self, *, is_at_start: bool) -> Any:
        loader = self.holder
        if not is_at_start or (loader.persistent_workers and loader._iterator is not None):
            return super().state_dict(is_at_start=is_at_start)
        saves_data_set = not loader.num_workers and has_state_dict(loader.dataset)
        return {_DATA_SET: copy.deepcopy(loader.dataset.state_dict())} if saves_data_set else {}

    def load_state_dict(self, state_dict: Any, *, is_at_start: bool) -> None:
        if state_dict.keys() <= {_DATA_SET}:
            self.holder.load_state_dict({})  # drops the iterator, so that the next one is new
            for state in state_dict.values():  # one or none
                self.holder.dataset.load_state_dict(copy.deepcopy(state))
            return
        state_dict = copy.deepcopy(state_dict)
        if not is_at_start:
            end_streams(state_dict)
        super().load_state_dict(state_dict, is_at_start=is_at_start)


class _NodesKeeper(PlaceKeeper):
    """A ``torchdata.nodes.Loader`` as keeper.

    When such a loader resumes from the state at the end of a pass, it looks for one more batch,
    finds none and resets its nodes. This happens in its ``__iter__``, and nodes may draw random
    numbers in it.
    """

    def load_state_dict(self, state_dict: Any, *, is_at_start: bool) -> None:
        super().load_state_dict(state_dict, is_at_start=is_at_start)
        if is_at_start:
            # Reset the nodes here, where the caller restores the random generators afterwards.
            iter(self.holder)
            self.holder._it = None  # which has cached the state of before that reset


def place_keeper(holder: Any, paths: tuple[str, ...], workers: int = 0) -> PlaceKeeper:
    """Returns the keeper for an object with a state, of the subclass that the object needs.

    Args:
        holder: the object.
        paths: as in ``PlaceKeeper``.
        workers: as in ``PlaceKeeper``.
    """
    if is_stateful_loader(holder):
        return _StatefulLoaderKeeper(holder, paths, workers)
    classes = type(holder).__mro__
    is_of_nodes = any(each.__module__ == "torchdata.nodes.loader" for each in classes)
    return (_NodesKeeper if is_of_nodes else PlaceKeeper)(holder, paths, workers)


def sampler_keeper(loader: DataLoader[Any]) -> PlaceKeeper | None:
    """Returns the outermost sampler of a loader that has a state; None if no state can be used.

    With workers the sampler is ahead of the batches that have arrived, because torch prefetches.
    There the elements that a sampler yields are recorded (``RecordedOrder``). Accelerate's samplers
    for several processes draw ahead too: without workers, the state of a sampler below them would
    belong to a later batch, so only torch's own ``BatchSampler`` is looked into.
    """
    if loader.num_workers:
        return None
    batches = loader.batch_sampler
    if batches is not None and has_state_dict(batches):
        return PlaceKeeper(batches, ("batch_sampler",))
    # The `sampler` of a loader that Accelerate prepared is a default one: the sampler of the user
    # is only in the batch sampler.
    samples: Any = batches.sampler if type(batches) is BatchSampler else loader.sampler
    is_usable = (batches is None or type(batches) is BatchSampler) and has_state_dict(samples)
    return PlaceKeeper(samples, ("batch_sampler.sampler", "sampler")) if is_usable else None


def order_keeper(loader: DataLoader[Any]) -> PlaceKeeper | None:
    """Returns the outermost sampler of a loader that has a state, also below Accelerate's samplers.

    The keeper has the paths of all attributes of the loader that lead to this sampler.
    """
    found: dict[int, tuple[Any, list[str]]] = {}
    for root in ("batch_sampler", "sampler"):
        path, order = root, getattr(loader, root)
        while type(order) in (BatchSampler, BatchSamplerShard):
            within = "sampler" if type(order) is BatchSampler else "batch_sampler"
            path, order = f"{path}.{within}", getattr(order, within)
        if has_state_dict(order):
            found.setdefault(id(order), (order, []))[1].append(path)
    if not found:
        return None
    holder, paths = next(iter(found.values()))
    return PlaceKeeper(holder, tuple(paths))


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of everything that determines the rest of a pass.

    Args:
        keeper: the state of the keeper of the place.
        objects: the states of the objects that are not part of the keeper's state, by name.
        random: the states of the global random generators.
        generators: the states of the random generators of the data, by name.
    """

    keeper: Any
    objects: dict[str, Any]
    random: RandomState
    generators: dict[str, Any]

    def restore(self, source: "Source", *, is_at_start: bool) -> None:
        """Restores all but the global generators.

        Args:
            source: the data.
            is_at_start: whether the next batch is the first one of a pass.
        """
        assert source.keeper is not None
        _set_generators(source, self.generators)
        source.object_states.load_state_dict(
            source.objects_outside_keeper, copy.deepcopy(self.objects)
        )
        # Last: a keeper may set generators itself, and knows better where they were.
        source.keeper.load_state_dict(self.keeper, is_at_start=is_at_start)

    def state_dict(self) -> dict[str, Any]:
        """Returns the snapshot as numbers, lists, dicts and tensors."""
        return {**vars(self), "random": self.random.state_dict()}

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any]) -> "Snapshot":
        """Returns the snapshot from which ``state_dict`` was made."""
        return cls(
            keeper=state_dict["keeper"],
            objects=dict(state_dict["objects"]),
            random=RandomState.from_state_dict(state_dict["random"]),
            generators=dict(state_dict["generators"]),
        )


class Source(Protocol):
    """The interface of the data whose snapshots are taken and restored."""

    @property
    def keeper(self) -> PlaceKeeper | None:
        """The keeper of the place; None if no object of the data is one."""

    @property
    def generators(self) -> dict[str, RandomGenerator]:
        """The random generators of the data, by name."""

    @property
    def objects_outside_keeper(self) -> Objects:
        """The objects whose states are not part of the keeper's state."""

    object_states: ObjectStates

    def replay_batches(self, data_pass: int, skip: int) -> Generator[Any, None, None]:
        """Yields the batches of a pass except the first ``skip``, without restoring a state."""

    def batches_after_load(self, skip: int) -> Iterator[Any]:
        """Returns the batches that follow a state which has just been loaded.

        Args:
            skip: the number of batches of the pass before that state.
        """

    def set_pass(self, data_pass: int) -> None:
        """Calls ``set_epoch`` of the data with the number of the coming pass, from 0."""

    def random_state_at_start(self, data_pass: int) -> RandomState | None:
        """Returns the states of the global generators at the start of a pass; None if unknown."""

    def forget_pass(self) -> None:
        """Forgets that a pass has begun, so that the next batches begin one."""


class Snapshots:
    """The snapshots before the last batches of a pass, and before its first batch.

    Attributes:
        window: the number of batches in a full accumulation window. A feed may roll back, or look
            ahead, by as many.
    """

    def __init__(self) -> None:
        self.window = 1
        self._snapshots: dict[FeedPosition, Snapshot] = {}
        # After the last batch that has been fetched. The end of a pass counts as a batch.
        self._fetched = FeedPosition(0, 0)
        self._has_ended = True  # whether the last pass was iterated to its end
        self._is_fetching = False  # whether a batch was requested and has not arrived
        # Whether the snapshot before the pass was taken before `set_epoch` was called for it.
        self._needs_set_epoch = False
        # The states of the data's generators before `set_epoch`, which may reseed them.
        self._generators_before: dict[str, Any] | None = None
        self._is_resumed = False  # whether the snapshot to continue from came from a checkpoint
        self._sharing: list[Snapshots] = []  # with the same keeper, which is to be restored once

    def note_generators(self, source: Source) -> None:
        """Notes the states of the data's generators; to be called before ``set_epoch``."""
        if self._generators_before is None and source.keeper is not None:
            generators = source.generators.items()
            self._generators_before = {name: generator_state(each) for name, each in generators}

    def batches(self, source: Source, position: FeedPosition) -> Generator[Any, None, None]:
        """Yields the batches that follow ``position``, and takes a snapshot before each."""
        if position.batches and self._is_live(position):
            self._record(position, _take_snapshot(source))
        kept = (each for each in self._snapshots if each.data_pass == position.data_pass)
        start = max((each for each in kept if each <= position), default=None)
        if start is None or not self._changes_with_batches(start):
            if not position.batches:
                self._record(position, _take_snapshot(source, is_at_start=True))
            yield from self._with_snapshots(source, source.replay_batches(*position), position)
        elif position.batches or self._count_ahead(position):
            yield from self._resumed_batches(source, start, position)
        else:
            batches = self._restored_pass(source, position)
            yield from self._with_snapshots(source, batches, position)

    def _resumed_batches(
        self, source: Source, start: FeedPosition, position: FeedPosition
    ) -> Generator[Any, None, None]:
        """Yields the batches after ``position``, loaded from the snapshot at ``start``.

        Batches that had been fetched ahead of ``position`` are fetched again at once, with the
        states that the random generators had the first time.

        Args:
            source: the data.
            start: the last position up to ``position`` that has a snapshot.
            position: the position of the feed.
        """
        assert source.keeper is not None
        if not self._is_resumed:  # else the resume report has named the caveats
            for caveat in source.keeper.caveats:
                warnings.warn(caveat, stacklevel=2)
        self._is_resumed = False
        snapshot, ahead = self._snapshots[start], self._count_ahead(position)
        states = self._generators_before or {}
        if not ahead or self._is_fetching:
            # The generators of the keeper stay where its state and the batches put them.
            states = _without_keeper(source, states)
        with RandomState.preserved():
            self._restore(source, start)
            # A keeper that only counts its batches draws their order again when it is iterated.
            if (begun := source.random_state_at_start(start.data_pass)) is not None:
                begun.restore()
            iterator = source.batches_after_load(start.batches)
            if start.batches:
                snapshot.random.restore()
            batches = self._with_snapshots(source, iterator, start)
            deque(islice(batches, position.batches - start.batches), maxlen=0)
            fetched = deque(islice(batches, ahead))
        _set_generators(source, states)
        yield from chain_first(fetched, batches)

    def _restored_pass(self, source: Source, position: FeedPosition) -> Generator[Any, None, None]:
        """Yields the batches of a pass from the snapshot before it.

        Mostly this snapshot was taken at the end of another pass. Some objects that are restored
        to the end of a pass give that end once more before they begin the next pass.
        """
        with RandomState.preserved():
            self._restore(source, position)
        random = RandomState.capture(generators=source.generators)
        batches = source.replay_batches(*position)
        if not (first := deque(islice(batches, 1))):  # the end of the former pass, once more
            random.restore()
            source.forget_pass()
            batches = source.replay_batches(*position)
        yield from chain_first(first, batches)

    def restore_once(self, others: Iterable["Snapshots"]) -> None:
        """Lets only one of several feeds restore the keeper that they share, where a pass begins.

        The feed that is iterated first restores it. The snapshots of all were taken at the same
        time, so another restore would undo the batches given since the first.

        Args:
            others: the snapshots of the other feeds.
        """
        self._sharing = [*others]

    def _restore(self, source: Source, position: FeedPosition) -> None:
        for each in self._sharing:
            kept = {place: state for place, state in each._snapshots.items() if place.batches}
            each._snapshots = kept
        self._sharing = []
        self._snapshots[position].restore(source, is_at_start=not position.batches)
        if self._needs_set_epoch and not position.batches:
            source.set_pass(position.data_pass)

    def _with_snapshots(
        self, source: Source, iterator: Iterator[Any], position: FeedPosition
    ) -> Generator[Any, None, None]:
        """Yields the batches of an iterator that begins at ``position``; takes the snapshots."""
        # Searched once, not before each batch: the search goes through all objects of the data.
        generators, objects = (
            source.generators,
            source.object_states.stateful(source.objects_outside_keeper),
        )
        fetched, self._generators_before = deque[Any](), None
        # Not taken again: some keepers begin an iteration when asked for their state before it.
        is_recorded = position in self._snapshots
        with ExitStack() as stack:
            if (close := getattr(iterator, "close", None)) is not None:
                stack.callback(close)
            while True:
                if not is_recorded:
                    self._record(position, _take_snapshot(source, generators, objects))
                is_recorded = False
                self._is_fetching = True
                fetched.extend(islice(iterator, 1))
                position = position._replace(batches=position.batches + 1)
                self._fetched, self._has_ended = position, not fetched
                self._is_fetching = False
                if not fetched:
                    return
                # Without a name: this suspended frame would keep the batch in memory.
                yield fetched.popleft()

    def _record(self, position: FeedPosition, snapshot: Snapshot) -> None:
        """Keeps a snapshot, and drops those to which no feed goes back any more."""
        if not position.batches:
            self._snapshots.clear()
            self._fetched, self._needs_set_epoch = position, False
        self._snapshots[position] = snapshot
        # A window by which the run rolls back, one by which the feed looks ahead, and one batch
        # more for each.
        former = position._replace(batches=position.batches - 2 * (self.window + 1))
        if former.batches > 0:
            self._snapshots.pop(former, None)

    def _is_live(self, position: FeedPosition) -> bool:
        """Returns whether a snapshot at ``position`` is missing and can be taken now.

        The present state of the data belongs to ``position`` if no later batch was requested.
        """
        is_there = position == self._fetched and not self._is_fetching
        return is_there and position not in self._snapshots

    def _changes_with_batches(self, position: FeedPosition) -> bool:
        """Returns whether the keeper's state at ``position`` differs from that one batch before.

        A state that stays the same cannot contain the position.
        """
        former = self._snapshots.get(position._replace(batches=position.batches - 1))
        return former is None or not is_same_state(former.keeper, self._snapshots[position].keeper)

    def _count_ahead(self, position: FeedPosition) -> int:
        """Returns the number of batches fetched after ``position``; the end counts as one."""
        is_of_pass = self._fetched.data_pass == position.data_pass
        return max(0, self._fetched.batches - position.batches) if is_of_pass else 0

    def state_dict(self, source: Source, position: FeedPosition) -> dict[str, Any] | None:
        """Returns the snapshot at ``position`` as plain data; None if none can be saved."""
        keeper = source.keeper
        if keeper is None:
            return None
        if self._is_live(position) and position.batches:
            self._record(position, _take_snapshot(source))
        snapshot = self._snapshots.get(position)
        if snapshot is None and not position.batches:
            snapshot = _take_snapshot(source, is_at_start=True)
        elif snapshot is None or not self._changes_with_batches(position):
            return None
        if not is_plain_data(snapshot.keeper):
            return None
        return {
            **snapshot.state_dict(),
            "of": keeper.name,
            "ahead": self._count_ahead(position),
            "is_cut": not (position.batches or self._has_ended),
        }

    def load_state_dict(
        self, source: Source, position: FeedPosition, state_dict: Mapping[str, Any] | None
    ) -> None:
        """Loads the snapshot that was saved at ``position``; the next batches continue from it.

        A snapshot of another keeper is ignored.

        Args:
            source: the data.
            position: the position at which the feed resumes.
            state_dict: what ``state_dict`` has returned; None if there was no snapshot.
        """
        self._snapshots.clear()
        self._generators_before = None
        self.note_generators(source)
        self._fetched, self._has_ended, self._is_fetching = _NO_POSITION, True, False
        self._needs_set_epoch = not position.batches
        if self.can_restore(source, state_dict):
            assert state_dict is not None
            self._snapshots[position] = Snapshot.from_state_dict(state_dict)
            self._fetched = position._replace(batches=position.batches + state_dict["ahead"])
            self._has_ended = not state_dict["is_cut"]
            self._is_resumed = True

    @staticmethod
    def can_restore(source: Source, state_dict: Mapping[str, Any] | None) -> bool:
        """Returns whether the snapshot is of a keeper of this name, so that it can be restored."""
        keeper = source.keeper
        return keeper is not None and state_dict is not None and keeper.name == state_dict["of"]

    def restores(self, source: Source, state_dict: Mapping[str, Any] | None, name: str) -> bool:
        """Returns whether restoring the snapshot restores the generator of that name."""
        keeper = source.keeper
        return self.can_restore(source, state_dict) and keeper is not None and keeper.has(name)

    @staticmethod
    def differences(
        source: Source, position: FeedPosition, state_dict: Mapping[str, Any] | None
    ) -> list[str]:
        """Returns why the next batches may differ from those that followed the saved snapshot."""
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
        has_caveats = position.batches > 0 or keeper.workers > 0
        return [*keeper.caveats] if has_caveats else []

    def doubts(self, source: Source) -> list[str]:
        """Returns why no snapshot is saved; an empty list if one is, or if there is no keeper."""
        newest = next(reversed(self._snapshots), None)
        if source.keeper is None or newest is None:
            return []
        if not is_plain_data(self._snapshots[newest].keeper):
            return [
                f"the state_dict of {source.keeper.name} has more in it than tensors, numbers, "
                "texts, lists and dicts, and is not saved: batches are gone through again instead"
            ]
        if not self._changes_with_batches(newest):
            return [
                f"the state_dict of {source.keeper.name} is the same after a batch as before it, "
                "and is not saved: batches are gone through again instead"
            ]
        return []


def _take_snapshot(
    source: Source,
    generators: Mapping[str, RandomGenerator] | None = None,
    objects: Mapping[str, Any] | None = None,
    *,
    is_at_start: bool = False,
) -> Snapshot:
    """Takes a snapshot of the present states.

    Args:
        source: the data.
        generators: the random generators of the data, by name; default: they are searched.
        objects: the objects with a state besides the keeper, by name; default: they are searched.
        is_at_start: whether the next batch is the first one of a pass.
    """
    if generators is None:
        generators = source.generators
    if objects is None:
        objects = source.object_states.stateful(source.objects_outside_keeper)
    assert source.keeper is not None
    return Snapshot(
        source.keeper.state_dict(is_at_start=is_at_start),
        {name: copy.deepcopy(each.state_dict()) for name, each in objects.items()},
        RandomState.capture(),
        {name: generator_state(each) for name, each in generators.items()},
    )


def _without_keeper(source: Source, named: Mapping[str, _T]) -> dict[str, _T]:
    """Returns the entries of all generators that are not part of the keeper's state."""
    keeper = source.keeper
    return {name: each for name, each in named.items() if keeper is None or not keeper.has(name)}


def _set_generators(source: Source, states: Mapping[str, Any]) -> None:
    for name, generator in source.generators.items():
        if name in states:
            set_generator_state(generator, states[name])


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
    return bool(is_plain_data(one) and one == other)


def chain_first(first: deque[Any], rest: Generator[Any, None, None]) -> Generator[Any, None, None]:
    """Yields the batches in ``first``, then those of ``rest``, which is closed with this generator.

    Args:
        first: batches that were taken from ``rest``; each leaves the deque when it is given.
        rest: the remaining batches.
    """
    with closing(rest):
        while first:
            yield first.popleft()  # without a name: this frame would keep the batch in memory
        yield from rest
