"""Streams with a state that Accelerate has rank 0 read for all ranks.

Rank 0 concatenates one batch of its loader for each rank, sends the whole, and each rank keeps its
part. Accelerate asks the loader for an iterator on every rank, but only rank 0 takes batches from
it. So rank 0 alone has a state to save, and alone enters a pass in its middle.

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
from ignite_hooks.core.restoring import restored
from ignite_hooks.data.active_loader import activated
from ignite_hooks.data.place_states import PlaceKeeper
from ignite_hooks.data.place_states import first_of
from ignite_hooks.data.sources import PADDED
from ignite_hooks.data.sources import AdaptedLoader
from ignite_hooks.data.sources import TorchLoader

__all__ = ["DispatchedStream"]


class DispatchedStream(AdaptedLoader):
    """A loader that dispatches a stream with a state.

    Args:
        loader: a ``DataLoaderDispatcher`` of Accelerate.
        even_batches: as in the base class.
    """

    def __init__(self, loader: Any, even_batches: bool = True) -> None:
        super().__init__(loader, even_batches)
        self._is_reader: bool = loader.state.process_index == 0
        base = loader.base_dataloader
        self._reader = (TorchLoader if self._is_reader else _Unread)(base, even_batches)
        if loader.state.num_processes > 1 and not loader._drop_last and even_batches:
            self._reader.caveats = (PADDED,)
        self.places, self.own_states = self._reader.places, self._reader.own_states

    @property
    def is_reader(self) -> bool:
        """Returns whether this is rank 0."""
        return self._is_reader

    @property
    def keeper(self) -> PlaceKeeper | None:
        """The object that keeps the place on rank 0, or would on this rank."""
        return self._reader.keeper

    @property
    def draws_in_workers(self) -> bool:
        """Whether the state on rank 0 has what its workers draw from in it."""
        return self._reader.draws_in_workers

    @property
    def remedy(self) -> str:
        """The remedy for the loader that rank 0 reads, if there is one."""
        return self._reader.remedy

    @property
    def _reads_a_batch(self) -> int:
        """Returns how many batches of its loader rank 0 reads for one batch on each rank."""
        is_split = self.loader.split_batches or self.loader.submesh_tp is not None
        return 1 if is_split else self.loader.state.num_processes

    def _reads(self, position: FeedPosition) -> FeedPosition:
        return position._replace(batches=position.batches * self._reads_a_batch)

    def set_window(self, window: int) -> None:
        """Counts the batches that rank 0 reads, one round of them ahead."""
        rounds = window + 1 + self.loader.skip_batches
        self._reader.set_window(rounds * self._reads_a_batch)

    def facts(self) -> dict[str, int | str | None]:
        """Returns the facts of the base class, and what keeps the place: known on every rank."""
        keeper = self.keeper
        return {**super().facts(), "place": None if keeper is None else keeper.name}

    def place_before(self, position: FeedPosition) -> dict[str, Any] | None:
        """Returns the state of what rank 0 reads; None on other ranks."""
        return self._reader.place_before(self._reads(position)) if self._is_reader else None

    def keeps_place(self, state_dict: Mapping[str, Any]) -> bool:
        """Decides by the facts, which are the same on every rank."""
        place = self.facts()["place"]
        return place is not None and place == state_dict["facts"].get("place")

    def place_differences(
        self, position: FeedPosition, state_dict: Mapping[str, Any] | None
    ) -> list[str]:
        """Returns those of the stream; the last batch is another one without a state, too."""
        is_entered = state_dict is None and position.batches > 0
        caveats = self._reader.caveats if is_entered else ()
        return [*super().place_differences(position, state_dict), *caveats]

    def resume_place(self, position: FeedPosition, state_dict: Mapping[str, Any] | None) -> None:
        """Restores the state of what rank 0 reads."""
        self._reader.resume_place(self._reads(position), state_dict)

    def state_dict(self) -> dict[str, Any]:
        """Returns that of the loader that rank 0 reads."""
        return self._reader.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores that of the loader that rank 0 reads."""
        self._reader.load_state_dict(state_dict)

    @contextmanager
    def active(self, data_pass: int) -> Iterator[None]:
        """Tells the data set and all that is in it the pass, as for a loader of one process."""
        with activated(self.loader):
            self.loader.iteration = data_pass
            self._reader.tell_pass(data_pass)
            yield

    def batches(self, data_pass: int, skip: int) -> Generator[Any, None, None]:
        """Returns the batches of a pass but the first ``skip``, which rank 0 does not send."""
        reads = self._reader.batches(*self._reads(FeedPosition(data_pass, skip)))
        if not self._is_reader:
            deque(reads, maxlen=0)  # Accelerate only asks for this iterator
        batches = self._dispatched(reads)
        yield from batches if self.even_batches else self._without_padding(batches)

    def _dispatched(self, reads: Iterator[Any]) -> Iterator[Any]:
        """Yields what Accelerate makes of the batches that rank 0 reads."""
        loader, base, first = self.loader, self.loader.base_dataloader, deque[Any]()
        # Alone: a feed, whose generator this may be in, can be closed at any time.
        with restored(lambda: setattr(loader, "base_dataloader", base), alone=True):
            loader.base_dataloader = _Reading(base, reads)
            batches = iter(loader)
            first.extend(islice(batches, 1))
        yield from first_of(first, batches)


class _Unread(TorchLoader):
    """The loader of a rank that is sent its batches: a pass is begun, and no batch is read.

    The beginning draws from the random generators, and begins a DataPipe on all ranks together.
    """

    def batches(self, data_pass: int, skip: int) -> Generator[Any, None, None]:
        """Begins the pass, and yields nothing."""
        yield from self.replayed(data_pass, 0)

    def _open(self) -> Iterator[Any]:
        super()._open()
        return iter(())


class _Reading:
    """A loader whose iterator is there already.

    Args:
        loader: has all other attributes.
        batches: the iterator.
    """

    def __init__(self, loader: Any, batches: Iterator[Any]) -> None:
        self._loader = loader
        self._batches = batches

    def __getattr__(self, name: str) -> Any:
        if name == "state_dict":  # of torchdata's loader: asked now, it would begin an iterator
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        return self._batches
