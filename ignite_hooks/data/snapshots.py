"""Takes and restores snapshots of data, so that a pass resumes without loading earlier batches.

A pass is one iteration over the whole data. The data may include an object whose state contains the
position in the pass: a stream, a loader or a sampler with ``state_dict`` and ``load_state_dict``. A
``PositionKeeper`` (in short, the keeper) wraps this object. The state of the keeper is the state of
the wrapped object.

A feed (``DataFeed``) gives the batches of the data to an engine. The feed often fetches batches
before the engine needs them, so the present state of the keeper is ahead of the feed's position.
Therefore a snapshot is taken before each batch is fetched, and the latest snapshots are kept.

Two private attributes of torchdata are used:

- ``StatefulDataLoader._iterator`` shows whether a loader has started its persistent workers.
- ``torchdata.nodes.Loader._it`` is the iterator of a loader. If the loader resumes from the end of
  a pass, this iterator caches the loaded state. From then on, ``state_dict`` of the loader returns
  only the cached state. So the keeper sets the attribute to None after such a resume, and the
  loader creates a new iterator.

``tests/data/test_data_states.py`` fails if the meaning of either attribute changes.
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
    "PositionKeeper",
    "Snapshots",
    "chain_first",
    "is_same_state",
    "is_stateful_loader",
    "keeper_for_recording",
    "keeper_for_snapshots",
    "make_keeper",
    "stateful_loader",
]

_T = TypeVar("_T")
_NO_POSITION = FeedPosition(-1, 0)  # no feed has this position, because passes count from 0
# The key of the data set's state in what `_StatefulLoaderKeeper` saves between two passes.
_DATA_SET = "data set"


def is_stateful_loader(loader: Any) -> bool:
    """Returns whether a loader is a ``StatefulDataLoader`` of torchdata, subclasses included."""
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
class PositionKeeper:
    """A wrapper of an object of the data whose state determines which batch comes next.

    Args:
        wrapped: the object, with ``state_dict`` and ``load_state_dict``.
        paths: attribute paths in the data. The first path leads to the object, for example
            "dataset". Further paths lead to the same object, or to other objects whose states are
            part of the object's state.
        workers: the number of worker processes whose states are part of the object's state.
        caveats: known reasons why the rest of a resumed pass may differ from the saved run,
            although the state is restored.
    """

    wrapped: Any
    paths: tuple[str, ...]
    workers: int = 0
    caveats: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The path and class of the wrapped object, and the number of workers if there are any.

        Keepers with equal names have compatible states. A saved state is restored only if the
        keeper has the same name at the save and at the resume.
        """
        workers = f", {self.workers} workers" if self.workers else ""
        return f"{self.paths[0]} ({type(self.wrapped).__qualname__}{workers})"

    def has(self, name: str) -> bool:
        """Returns whether the keeper's state includes the object or random generator ``name``.

        Args:
            name: for an object, its attribute path, for example "dataset.transform". For a random
                generator, its attribute path and its class, for example "sampler.rng (PCG64)".
        """
        return any(f"{name}.".startswith((f"{path}.", f"{path} (")) for path in self.paths)

    def state_dict(self, *, is_at_start: bool) -> Any:
        """Returns a copy of the state. Later batches do not change the copy.

        Args:
            is_at_start: whether the next batch is the first one of a pass.
        """
        return copy.deepcopy(self.wrapped.state_dict())

    def load_state_dict(self, state_dict: Any, *, is_at_start: bool) -> None:
        """Loads a state: the next iteration of the object continues from that state.

        Args:
            state_dict: a return value of the method ``state_dict``.
            is_at_start: whether the next batch is the first one of a pass.
        """
        self.wrapped.load_state_dict(copy.deepcopy(state_dict))


class _StatefulLoaderKeeper(PositionKeeper):
    """The keeper for a ``StatefulDataLoader``.

    Within a pass, the keeper saves the state of the loader. Between two passes, it saves:

    - without workers, the state of the data set in this process;
    - with workers that are not running between the passes, nothing, because no worker has a copy of
      the data set then;
    - with persistent workers that are running, the state of the loader, because only this state
      contains the states of the workers' copies of the data set.

    In the first two cases, the keeper does not use the state of the loader, for two reasons:

    - Before the first iteration, a call of the loader's ``state_dict`` begins an iteration.
    - After a pass, the state of the loader says that its iteration has finished. If a loader
      resumes from such a state, its ``__iter__`` creates two iterators: the first resumes the
      finished iteration, and the second begins the next one.
    """

    def state_dict(self, *, is_at_start: bool) -> Any:
        loader = self.wrapped
        if not is_at_start or (loader.persistent_workers and loader._iterator is not None):
            return super().state_dict(is_at_start=is_at_start)
        saves_data_set = not loader.num_workers and has_state_dict(loader.dataset)
        return {_DATA_SET: copy.deepcopy(loader.dataset.state_dict())} if saves_data_set else {}

    def load_state_dict(self, state_dict: Any, *, is_at_start: bool) -> None:
        if state_dict.keys() <= {_DATA_SET}:
            # An empty state makes the loader drop its iterator and create a new one.
            self.wrapped.load_state_dict({})
            for state in state_dict.values():  # at most one state: that of the data set
                self.wrapped.dataset.load_state_dict(copy.deepcopy(state))
            return
        state_dict = copy.deepcopy(state_dict)
        if not is_at_start:
            # Some workers may have ended their streams before the save. Without this call torchdata
            # would iterate these streams a second time.
            end_streams(state_dict)
        super().load_state_dict(state_dict, is_at_start=is_at_start)


class _NodesKeeper(PositionKeeper):
    """The keeper for a ``torchdata.nodes.Loader``.

    When such a loader resumes from the state at the end of a pass, its ``__iter__`` looks for one
    more batch, finds none, and resets the nodes. Nodes may draw random numbers during the reset.
    """

    def load_state_dict(self, state_dict: Any, *, is_at_start: bool) -> None:
        super().load_state_dict(state_dict, is_at_start=is_at_start)
        if is_at_start:
            # `iter` resets the nodes now. If the nodes draw random numbers, these draws have no
            # effect, because the caller restores the random generators later.
            iter(self.wrapped)
            # The new iterator has cached the state from before the reset, so the iterator is
            # dropped.
            self.wrapped._it = None


def make_keeper(wrapped: Any, paths: tuple[str, ...], workers: int = 0) -> PositionKeeper:
    """Returns a keeper for an object with a state. The object's type determines the keeper class.

    Args:
        wrapped: see ``PositionKeeper``.
        paths: see ``PositionKeeper``.
        workers: see ``PositionKeeper``.
    """
    if is_stateful_loader(wrapped):
        return _StatefulLoaderKeeper(wrapped, paths, workers)
    classes = type(wrapped).__mro__
    is_of_nodes = any(each.__module__ == "torchdata.nodes.loader" for each in classes)
    return (_NodesKeeper if is_of_nodes else PositionKeeper)(wrapped, paths, workers)


def keeper_for_snapshots(loader: DataLoader[Any]) -> PositionKeeper | None:
    """Returns a keeper for the outermost sampler with a state, if snapshots can use this state.

    Otherwise returns None. Snapshots need a sampler that is not ahead of the batches:

    - With workers, torch prefetches, so the sampler is ahead. A ``RecordedOrder`` then records the
      elements that the sampler yields, and takes the place of snapshots (see
      ``keeper_for_recording``).
    - Accelerate's samplers for several processes draw ahead, too. So a sampler inside another
      sampler is used only if the outer sampler is torch's own ``BatchSampler``.
    """
    if loader.num_workers:
        return None
    batches = loader.batch_sampler
    if batches is not None and has_state_dict(batches):
        return PositionKeeper(batches, ("batch_sampler",))
    # In a loader that Accelerate prepared, `loader.sampler` is torch's default sampler. The user's
    # sampler is found only inside the batch sampler.
    samples: Any = batches.sampler if type(batches) is BatchSampler else loader.sampler
    is_usable = (batches is None or type(batches) is BatchSampler) and has_state_dict(samples)
    return PositionKeeper(samples, ("batch_sampler.sampler", "sampler")) if is_usable else None


def keeper_for_recording(loader: DataLoader[Any]) -> PositionKeeper | None:
    """Returns a keeper for the outermost sampler with a state, for use by a ``RecordedOrder``.

    Returns None if no sampler has a state. Unlike in ``keeper_for_snapshots``, the sampler may be
    inside a sampler of Accelerate. The ``paths`` of the keeper are all paths in the loader that
    lead to the sampler.
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
    wrapped, paths = next(iter(found.values()))
    return PositionKeeper(wrapped, tuple(paths))


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of the states that determine the rest of a pass.

    Args:
        keeper: the state of the keeper.
        objects: maps the names of objects to their states. An object is left out if the keeper's
            state includes it.
        random: the states of the global random generators.
        generators: the states of the random generators of the data, by name.
    """

    keeper: Any
    objects: dict[str, Any]
    random: RandomState
    generators: dict[str, Any]

    def restore(self, source: "Source", *, is_at_start: bool) -> None:
        """Restores all states except those of the global random generators.

        Args:
            source: the source of the data.
            is_at_start: whether the next batch is the first one of a pass.
        """
        assert source.keeper is not None
        _set_generators(source, self.generators)
        source.object_states.load_state_dict(
            source.objects_outside_keeper, copy.deepcopy(self.objects)
        )
        # The keeper is restored last, because it may set generators itself.
        source.keeper.load_state_dict(self.keeper, is_at_start=is_at_start)

    def state_dict(self) -> dict[str, Any]:
        """Returns the snapshot as a dict of numbers, lists, dicts and tensors."""
        return {**vars(self), "random": self.random.state_dict()}

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any]) -> "Snapshot":
        """Creates a snapshot from a return value of the method ``state_dict``."""
        return cls(
            keeper=state_dict["keeper"],
            objects=dict(state_dict["objects"]),
            random=RandomState.from_state_dict(state_dict["random"]),
            generators=dict(state_dict["generators"]),
        )


class Source(Protocol):
    """The attributes and methods that a source must have for this module.

    A source is the adapter through which a feed reads its data (see ``sources.py``).
    """

    @property
    def keeper(self) -> PositionKeeper | None:
        """The keeper; None if no object of the data has a state that contains the position."""

    @property
    def generators(self) -> dict[str, RandomGenerator]:
        """The random generators of the data, by name."""

    @property
    def objects_outside_keeper(self) -> Objects:
        """The objects that are not part of the keeper's state, and are saved separately."""

    object_states: ObjectStates

    def replay_batches(self, data_pass: int, skip: int) -> Generator[Any, None, None]:
        """Yields the batches of a pass from index ``skip`` on."""

    def batches_after_load(self, skip: int) -> Iterator[Any]:
        """Returns the batches that follow the state that was loaded into the keeper.

        Args:
            skip: the number of batches of the pass before the loaded state.
        """

    def set_pass(self, data_pass: int) -> None:
        """Calls ``set_epoch`` of the data with the number of the next pass; the first pass is 0."""

    def random_state_at_start(self, data_pass: int) -> RandomState | None:
        """Returns the states of the global generators at the start of a pass; None if unknown."""

    def forget_pass(self) -> None:
        """Forgets that a pass was begun, so that the next request of a batch begins a pass."""


class Snapshots:
    """The snapshots at the latest positions of a feed, and at the start of its present pass.

    Attributes:
        window_size: the number of batches in a full accumulation window (the batches that make one
            optimizer step). A feed may roll back or look ahead by this many batches.
    """

    def __init__(self) -> None:
        self.window_size = 1
        self._snapshots: dict[FeedPosition, Snapshot] = {}
        # The position after the last batch that was fetched. When a pass of n batches has ended,
        # its `batches` is n + 1.
        self._fetched = FeedPosition(0, 0)
        self._has_ended = True  # whether the last pass was iterated to its end
        self._is_fetching = False  # whether a batch was requested and has not arrived
        # Whether the snapshot at the start of the pass was taken before the call of `set_epoch` for
        # this pass. In this case `set_epoch` must be called after the snapshot is restored.
        self._needs_set_epoch = False
        # The states of the data's generators before `set_epoch`, which may seed the generators.
        self._generators_before: dict[str, Any] | None = None
        # Whether `differences` has named the caveats of the keeper already. If so, no warnings
        # repeat the caveats when the loaded snapshot is restored.
        self._are_caveats_reported = False
        # The `Snapshots` of other feeds whose keepers wrap the same object. The feed that is
        # iterated first restores the object, for all of these feeds.
        self._sharing: list[Snapshots] = []

    def note_generators(self, source: Source) -> None:
        """Notes the states of the data's random generators.

        Call this method before ``set_epoch``, which may seed the generators again.
        """
        if self._generators_before is None and source.keeper is not None:
            generators = source.generators.items()
            self._generators_before = {name: generator_state(each) for name, each in generators}

    def batches(self, source: Source, position: FeedPosition) -> Generator[Any, None, None]:
        """Yields the batches after ``position``, and takes a snapshot before each batch.

        If there is a usable snapshot at or before ``position``, the data are restored to the
        snapshot. Otherwise all earlier batches of the pass are loaded again.
        """
        if position.batches and self._can_record(position):
            self._record(position, _take_snapshot(source))
        kept = (each for each in self._snapshots if each.data_pass == position.data_pass)
        start = max((each for each in kept if each <= position), default=None)
        # A snapshot is not usable if the keeper's state does not change with the batches: such a
        # state cannot contain the position.
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
        """Yields the batches after ``position``, after restoring the snapshot at ``start``.

        Batches after ``position`` that were fetched before are now fetched a second time. For the
        second fetch, the global random generators get the states from before the first fetch. Then
        the generators get back the states from before this call, because the second fetch must not
        add draws.

        Args:
            source: the source of the data.
            start: the last position at or before ``position`` that has a snapshot.
            position: the position of the feed.
        """
        assert source.keeper is not None
        if not self._are_caveats_reported:
            for caveat in source.keeper.caveats:
                warnings.warn(caveat, stacklevel=2)
        self._are_caveats_reported = False
        snapshot, ahead = self._snapshots[start], self._count_ahead(position)
        states = self._generators_before or {}
        if not ahead or self._is_fetching:
            # Generators that the keeper's state includes get the right states from the keeper and
            # the fetches below. Their noted states may be wrong: an interrupted request may have
            # left a generator in the middle of a batch.
            states = _without_keeper(source, states)
        with RandomState.preserved():
            self._restore(source, start)
            # The state of some objects is only a count of batches. Such an object draws the order
            # of the batches again when it is iterated. To get the same order, the global generators
            # are set to their states at the start of the pass.
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
        """Yields the batches of a pass, after restoring the snapshot at its start.

        This snapshot was often taken at the end of the previous pass. When an object is restored to
        such a state, its first iteration may give no batch, and its second begins the next pass.
        """
        with RandomState.preserved():
            self._restore(source, position)
        random = RandomState.capture(generators=source.generators)
        batches = source.replay_batches(*position)
        if not (first := deque(islice(batches, 1))):  # the object was still in the previous pass
            random.restore()
            source.forget_pass()
            batches = source.replay_batches(*position)
        yield from chain_first(first, batches)

    def restore_keeper_once(self, others: Iterable["Snapshots"]) -> None:
        """Lets only one of several feeds restore the object that all their keepers wrap.

        The snapshots of these feeds are at the start of a pass, and were taken at the same time.
        The feed that is iterated first restores the object. A second restore would undo the
        progress that the object has made since.

        Args:
            others: the ``Snapshots`` of the other feeds.
        """
        self._sharing = [*others]

    def _restore(self, source: Source, position: FeedPosition) -> None:
        for other in self._sharing:
            # Drops the snapshot at the start of the pass, so that the other feed restores nothing.
            other._snapshots = {at: each for at, each in other._snapshots.items() if at.batches}
        self._sharing = []
        self._snapshots[position].restore(source, is_at_start=not position.batches)
        if self._needs_set_epoch and not position.batches:
            source.set_pass(position.data_pass)

    def _with_snapshots(
        self, source: Source, iterator: Iterator[Any], position: FeedPosition
    ) -> Generator[Any, None, None]:
        """Yields the batches of ``iterator``, and takes a snapshot before each of them.

        Args:
            source: the source of the data.
            iterator: the batches after ``position``.
            position: the position before the first of these batches.
        """
        # The search for generators and objects visits all objects of the data, so it is done only
        # once in a pass.
        generators, objects = (
            source.generators,
            source.object_states.stateful(source.objects_outside_keeper),
        )
        fetched, self._generators_before = deque[Any](), None
        # An existing snapshot at `position` is not taken again, because `state_dict` of some
        # objects begins an iteration if it is called before the first batch.
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
                # The batch is not assigned to a variable, because the variable would keep the batch
                # in memory while this generator is suspended.
                yield fetched.popleft()

    def _record(self, position: FeedPosition, snapshot: Snapshot) -> None:
        """Keeps a snapshot, and drops older snapshots to which the feed cannot return any more."""
        if not position.batches:
            self._snapshots.clear()
            self._fetched, self._needs_set_epoch = position, False
        self._snapshots[position] = snapshot
        # The feed may have fetched one window of batches ahead, and the run may roll back by one
        # window. These two windows have 2 * window_size + 1 positions, each with a snapshot.
        # `_changes_with_batches` also needs the snapshot one batch before the first position.
        former = position._replace(batches=position.batches - 2 * (self.window_size + 1))
        if former.batches > 0:
            self._snapshots.pop(former, None)

    def _can_record(self, position: FeedPosition) -> bool:
        """Returns whether a snapshot at ``position`` is missing and can be taken now.

        The state of the data belongs to ``position`` until the next batch is requested.
        """
        is_present = position == self._fetched and not self._is_fetching
        return is_present and position not in self._snapshots

    def _changes_with_batches(self, position: FeedPosition) -> bool:
        """Returns whether the batch before ``position`` has changed the keeper's state.

        Also returns True if the state before this batch is not known.
        """
        former = self._snapshots.get(position._replace(batches=position.batches - 1))
        return former is None or not is_same_state(former.keeper, self._snapshots[position].keeper)

    def _count_ahead(self, position: FeedPosition) -> int:
        """Returns the number of batches of the pass that were fetched after ``position``.

        The end of the pass counts as one batch.
        """
        is_of_pass = self._fetched.data_pass == position.data_pass
        return max(0, self._fetched.batches - position.batches) if is_of_pass else 0

    def state_dict(self, source: Source, position: FeedPosition) -> dict[str, Any] | None:
        """Returns the snapshot at ``position`` as plain data; None if no snapshot can be saved.

        The dict has the fields of the ``Snapshot`` and these keys:

        - "of": the name of the keeper.
        - "ahead": the number of batches of the pass that were fetched after ``position``.
        - "is_cut": True if ``position`` is the start of a pass, and the previous pass was left
          before its end.
        """
        keeper = source.keeper
        if keeper is None:
            return None
        if self._can_record(position) and position.batches:
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
        """Loads the snapshot that was saved at ``position``.

        A snapshot of a keeper with another name is ignored.

        Args:
            source: the source of the data.
            position: the position at which the feed resumes.
            state_dict: a return value of the method ``state_dict``; None if no snapshot was saved.
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
            assert source.keeper is not None
            self._are_caveats_reported = _has_caveats(source.keeper, position)

    @staticmethod
    def can_restore(source: Source, state_dict: Mapping[str, Any] | None) -> bool:
        """Returns whether a saved snapshot can be restored: the keeper's name must be the same."""
        keeper = source.keeper
        return keeper is not None and state_dict is not None and keeper.name == state_dict["of"]

    def restores(self, source: Source, state_dict: Mapping[str, Any] | None, name: str) -> bool:
        """Returns whether restoring a saved snapshot restores the random generator ``name``."""
        keeper = source.keeper
        return self.can_restore(source, state_dict) and keeper is not None and keeper.has(name)

    @staticmethod
    def differences(
        source: Source, position: FeedPosition, state_dict: Mapping[str, Any] | None
    ) -> list[str]:
        """Returns the reasons why the next batches may differ from those of the saved run.

        The saved run is the run that saved the snapshot ``state_dict``.
        """
        keeper = source.keeper
        if state_dict is None:
            return []
        if keeper is None or keeper.name != state_dict["of"]:
            now = "nothing with a state" if keeper is None else keeper.name
            return [f"the state of {state_dict['of']} is not restored, because there is {now} now"]
        if state_dict["is_cut"]:
            return [
                f"the previous pass was left before its end: {keeper.name} begins the next pass "
                "from its restored state, and may first give the rest of the previous pass"
            ]
        return [*keeper.caveats] if _has_caveats(keeper, position) else []

    def doubts(self, source: Source) -> list[str]:
        """Returns the reason why the keeper's state is not saved; an empty list if it is saved."""
        newest = next(reversed(self._snapshots), None)
        if source.keeper is None or newest is None:
            return []
        if not is_plain_data(self._snapshots[newest].keeper):
            return [
                f"the state_dict of {source.keeper.name} contains something other than "
                "tensors, numbers, texts, lists and dicts, and is not saved: a resume iterates "
                "earlier batches again"
            ]
        if not self._changes_with_batches(newest):
            return [
                f"the state_dict of {source.keeper.name} is the same after a batch as before it, "
                "and is not saved: a resume iterates earlier batches again"
            ]
        return []


def _has_caveats(keeper: PositionKeeper, position: FeedPosition) -> bool:
    """Returns whether the caveats of the keeper hold for a resume at ``position``.

    Without workers, a resume at the start of a pass gives the same batches as the saved run.
    """
    return position.batches > 0 or keeper.workers > 0


def _take_snapshot(
    source: Source,
    generators: Mapping[str, RandomGenerator] | None = None,
    objects: Mapping[str, Any] | None = None,
    *,
    is_at_start: bool = False,
) -> Snapshot:
    """Takes a snapshot of the present states.

    Args:
        source: the source of the data.
        generators: the random generators of the data, by name; None to search the data for them.
        objects: the objects whose states are saved in addition to the keeper's state, by name; None
            to search the data for them.
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
    """Returns the entries of ``named`` whose generators are not part of the keeper's state.

    Args:
        source: the source of the data.
        named: maps the names of random generators to any values.
    """
    keeper = source.keeper
    return {name: each for name, each in named.items() if keeper is None or not keeper.has(name)}


def _set_generators(source: Source, states: Mapping[str, Any]) -> None:
    for name, generator in source.generators.items():
        if name in states:
            set_generator_state(generator, states[name])


def is_same_state(one: Any, other: Any) -> bool:
    """Returns whether two states have the same values.

    Values that are not plain data count as different.
    """
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
    """Yields the batches in ``first``, then the batches of ``rest``.

    Args:
        first: batches that were taken from ``rest``. A batch is removed when it is yielded.
        rest: the remaining batches. It is closed when this generator is closed or exhausted.
    """
    with closing(rest):
        while first:
            # The batch is not assigned to a variable, because the variable would keep the batch in
            # memory while this generator is suspended.
            yield first.popleft()
        yield from rest
