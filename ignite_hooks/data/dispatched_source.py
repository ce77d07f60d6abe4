"""The source for streams with a state that rank 0 reads for all ranks.

Accelerate's ``DataLoaderDispatcher`` concatenates one batch for each rank on rank 0, sends the
whole, and each rank keeps its part. The loader is asked for an iterator on every rank, but only
rank 0 takes batches from it. So only rank 0 has a state to save, and enters a pass in its middle.

The loader that Accelerate reads from is replaced while its iteration begins.
``tests/data/test_dispatched_source.py`` fails if ``DataLoaderDispatcher`` asks for the iterator at
another time.
"""

from collections import deque
from collections.abc import Generator
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

from ignite_hooks.core.place import FeedPosition
from ignite_hooks.core.undo_stack import undo_on_exit
from ignite_hooks.data.active_loader import activated
from ignite_hooks.data.snapshots import PlaceKeeper
from ignite_hooks.data.snapshots import chain_first
from ignite_hooks.data.sources import PADDING_CAVEAT
from ignite_hooks.data.sources import AdaptedLoader
from ignite_hooks.data.sources import TorchLoader

__all__ = ["DispatchedStream"]


class DispatchedStream(AdaptedLoader):
    """A prepared loader that dispatches a stream with a state.

    Args:
        loader: a ``DataLoaderDispatcher`` of Accelerate.
        even_batches: whether samples may be repeated, so that every process has as many batches.
    """

    def __init__(self, loader: Any, even_batches: bool = True) -> None:
        super().__init__(loader, even_batches)
        self._is_reader: bool = loader.state.process_index == 0
        base = loader.base_dataloader
        self._reader = (TorchLoader if self._is_reader else _UnreadLoader)(base, even_batches)
        if loader.state.num_processes > 1 and not loader._drop_last and even_batches:
            self._reader.caveats = (PADDING_CAVEAT,)
        self.snapshots, self.object_states = self._reader.snapshots, self._reader.object_states

    @property
    def is_reader(self) -> bool:
        """Returns whether this is rank 0."""
        return self._is_reader

    @property
    def keeper(self) -> PlaceKeeper | None:
        """The object whose state holds the position on rank 0; on other ranks their copy of it."""
        return self._reader.keeper

    @property
    def draws_in_workers(self) -> bool:
        """Returns whether the state on rank 0 includes the random states of its workers."""
        return self._reader.draws_in_workers

    @property
    def remedy(self) -> str:
        """The hint for the loader that rank 0 reads; empty if there is none."""
        return self._reader.remedy

    @property
    def _reads_per_batch(self) -> int:
        """The number of batches that rank 0 reads for one batch on each rank."""
        is_split = self.loader.split_batches or self.loader.submesh_tp is not None
        return 1 if is_split else self.loader.state.num_processes

    def _reader_position(self, position: FeedPosition) -> FeedPosition:
        """Returns the position in the loader that rank 0 reads, for a position of the feed."""
        return position._replace(batches=position.batches * self._reads_per_batch)

    def set_window(self, window: int) -> None:
        """Sets how far a run may roll back, in batches that rank 0 reads."""
        # Accelerate reads one round ahead to find the end.
        rounds = window + 1 + self.loader.skip_batches
        self._reader.set_window(rounds * self._reads_per_batch)

    def facts(self) -> dict[str, int | str | None]:
        """Returns the facts of the base class, and the name of the object that holds the position.

        The name is known on every rank, although only rank 0 has the state.
        """
        keeper = self.keeper
        return {**super().facts(), "place": None if keeper is None else keeper.name}

    def place_state_at(self, position: FeedPosition) -> dict[str, Any] | None:
        """Returns the state of the loader that rank 0 reads; None on other ranks."""
        return (
            self._reader.place_state_at(self._reader_position(position))
            if self._is_reader
            else None
        )

    def resumes_from_own_state(self, state_dict: Mapping[str, Any]) -> bool:
        """Returns whether rank 0 resumes from a state: by the facts, so equally on every rank."""
        place = self.facts()["place"]
        return place is not None and place == state_dict["facts"].get("place")

    def place_state_differences(
        self, position: FeedPosition, state_dict: Mapping[str, Any] | None
    ) -> list[str]:
        """Returns the reasons of the base class, and the caveats of a pass without a state.

        Without a state, too, the last batch is filled up with other samples.
        """
        is_entered = state_dict is None and position.batches > 0
        caveats = self._reader.caveats if is_entered else ()
        return [*super().place_state_differences(position, state_dict), *caveats]

    def load_place_state(
        self, position: FeedPosition, state_dict: Mapping[str, Any] | None
    ) -> None:
        """Restores the state of the loader that rank 0 reads."""
        self._reader.load_place_state(self._reader_position(position), state_dict)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the loader that rank 0 reads, without its position."""
        return self._reader.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores a state of ``state_dict``."""
        self._reader.load_state_dict(state_dict)

    @contextmanager
    def active(self, data_pass: int) -> Iterator[None]:
        """Announces the pass to the data set, nested objects included, as with one process."""
        with activated(self.loader):
            self.loader.iteration = data_pass
            self._reader.set_pass(data_pass)
            yield

    def batches(self, data_pass: int, skip: int) -> Generator[Any, None, None]:
        """Yields the batches of a pass without the first ``skip``, which rank 0 does not send."""
        reads = self._reader.batches(*self._reader_position(FeedPosition(data_pass, skip)))
        if not self._is_reader:
            # Runs the generator, which begins the pass; Accelerate asks for its batches only on
            # rank 0.
            deque(reads, maxlen=0)
        batches = self._dispatch(reads)
        yield from batches if self.even_batches else self._without_padding(batches)

    def _dispatch(self, reads: Iterator[Any]) -> Iterator[Any]:
        """Yields this rank's part of the batches that rank 0 reads."""
        loader, base, first = self.loader, self.loader.base_dataloader, deque[Any]()
        # `out_of_order`: this may run in the generator of a feed, which can be closed at any time,
        # while changes that were made later are still in use.
        with undo_on_exit(lambda: setattr(loader, "base_dataloader", base), out_of_order=True):
            # Accelerate asks the loader for its iterator when the first batch is fetched.
            loader.base_dataloader = _LoaderWithIterator(base, reads)
            batches = iter(loader)
            first.extend(islice(batches, 1))
        yield from chain_first(first, batches)


class _UnreadLoader(TorchLoader):
    """The loader of a rank other than 0: a pass is begun, but no batch is read.

    Beginning a pass draws from the random generators as on rank 0, and starts a DataPipe, which
    must start on all ranks together.
    """

    def batches(self, data_pass: int, skip: int) -> Generator[Any, None, None]:
        """Begins the pass, and yields no batch."""
        yield from self.replay_batches(data_pass, 0)

    def _open_iterator(self) -> Iterator[Any]:
        super()._open_iterator()
        return iter(())


class _LoaderWithIterator:
    """A stand-in for a loader, which returns a given iterator.

    Args:
        loader: the loader, to which all other attributes are forwarded.
        batches: the iterator.
    """

    def __init__(self, loader: Any, batches: Iterator[Any]) -> None:
        self._loader = loader
        self._batches = batches

    def __getattr__(self, name: str) -> Any:
        # Accelerate asks a loader of torchdata for its state, which would begin another iterator.
        if name == "state_dict":
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        return self._batches
