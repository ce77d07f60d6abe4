"""The source of batches for a stream that has a state and that only rank 0 reads.

A stream is an iterable data set. It has a state if it has ``state_dict`` and ``load_state_dict``. A
pass is one iteration over the whole stream. The keeper is the object whose state contains the
position in the pass: the stream, or the loader whose workers have copies of the stream. A snapshot
has the states of everything that determines the rest of a pass (see ``snapshots.py``).

On rank 0, Accelerate's ``DataLoaderDispatcher`` concatenates one batch for each rank and sends the
result to all ranks. Each rank keeps its part. The dispatcher reads the batches from its
``base_dataloader``. Every rank calls ``iter`` on this loader, but only rank 0 fetches batches from
the iterator. So only rank 0 has a state to save.

When a run resumes in the middle of a pass, ``iter`` of ``base_dataloader`` must return an iterator
that is at the position of the run. So while an iteration of the dispatcher begins, a stand-in
replaces ``base_dataloader``. On rank 0, ``iter`` of the stand-in returns an iterator that this
module has moved to the position. The test ``tests/data/test_dispatched_source.py`` fails if
``DataLoaderDispatcher`` calls ``iter`` on ``base_dataloader`` at another time.
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
from ignite_hooks.data.snapshots import PositionKeeper
from ignite_hooks.data.snapshots import chain_first
from ignite_hooks.data.sources import PADDING_CAVEAT
from ignite_hooks.data.sources import AdaptedLoader
from ignite_hooks.data.sources import TorchLoader

__all__ = ["DispatchedStream"]


class DispatchedStream(AdaptedLoader):
    """A prepared loader that dispatches a stream with a state.

    Args:
        loader: a ``DataLoaderDispatcher`` of Accelerate.
        even_batches: whether samples may be repeated, so that all processes have equally many
            batches.
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
        """Returns whether this process is rank 0, which reads the stream."""
        return self._is_reader

    @property
    def keeper(self) -> PositionKeeper | None:
        """The object whose state contains the position. Only its state on rank 0 is used."""
        return self._reader.keeper

    @property
    def draws_in_workers(self) -> bool:
        """Returns whether the state on rank 0 includes the random states of its workers."""
        return self._reader.draws_in_workers

    @property
    def remedy(self) -> str:
        """A hint how to make a resume exact, as the end of a message; empty if there is none."""
        return self._reader.remedy

    @property
    def _reads_per_batch(self) -> int:
        """The number of batches that rank 0 reads for one batch on each rank."""
        is_split = self.loader.split_batches or self.loader.submesh_tp is not None
        return 1 if is_split else self.loader.state.num_processes

    def _reader_position(self, position: FeedPosition) -> FeedPosition:
        """Converts a position of the feed to the position in the loader that rank 0 reads."""
        return position._replace(batches=position.batches * self._reads_per_batch)

    def set_window_size(self, batches: int) -> None:
        """Sets the number of batches in a full accumulation window.

        An accumulation window is the batches that make one optimizer step. A run may roll back by
        a whole window. The source that reads ``base_dataloader`` gets a larger window size, because
        rank 0 also reads the batches of the other ranks, and reads ahead.
        """
        # A round is one batch for each rank. Accelerate reads one round ahead to find the end of
        # the data, and reads the batches that a ``SkipDataLoader`` skips.
        rounds = batches + 1 + self.loader.skip_batches
        self._reader.set_window_size(rounds * self._reads_per_batch)

    def facts(self) -> dict[str, int | str | None]:
        """Returns the facts of the base class, and the name of the keeper.

        Facts are properties that must be equal for a resume to give the same batches. Every rank
        knows the name of the keeper, although only rank 0 has its state.
        """
        keeper = self.keeper
        return {**super().facts(), "place": None if keeper is None else keeper.name}

    def snapshot_at(self, position: FeedPosition) -> dict[str, Any] | None:
        """Returns a snapshot of the loader that rank 0 reads; None on other ranks."""
        return (
            self._reader.snapshot_at(self._reader_position(position)) if self._is_reader else None
        )

    def can_restore_on_reader(self, state_dict: Mapping[str, Any]) -> bool:
        """Returns whether rank 0 can restore a saved snapshot.

        Compares the names of the keepers in the facts. All ranks have the facts, but only rank 0
        has the snapshot.
        """
        keeper_name = self.facts()["place"]
        return keeper_name is not None and keeper_name == state_dict["facts"].get("place")

    def snapshot_differences(
        self, position: FeedPosition, state_dict: Mapping[str, Any] | None
    ) -> list[str]:
        """Returns the reasons why the rest of a resumed pass may differ.

        Without a snapshot, the padding caveat is added here: Accelerate fills up the last batch
        with other samples than those of the saved run. With a snapshot, the base class adds it.
        """
        lacks_snapshot = state_dict is None and position.batches > 0
        caveats = self._reader.caveats if lacks_snapshot else ()
        return [*super().snapshot_differences(position, state_dict), *caveats]

    def load_snapshot(self, position: FeedPosition, state_dict: Mapping[str, Any] | None) -> None:
        """Loads a snapshot of the loader that rank 0 reads."""
        self._reader.load_snapshot(self._reader_position(position), state_dict)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the loader that rank 0 reads, without its position."""
        return self._reader.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores a return value of the method ``state_dict``."""
        self._reader.load_state_dict(state_dict)

    @contextmanager
    def active(self, data_pass: int) -> Iterator[None]:
        """Calls ``set_epoch`` of the data before the body; ends the loader's iteration after it."""
        with activated(self.loader):
            self.loader.iteration = data_pass
            self._reader.set_pass(data_pass)
            yield

    def batches(self, data_pass: int, skip: int) -> Generator[Any, None, None]:
        """Yields the batches of a pass from index ``skip`` on. Rank 0 skips the earlier batches."""
        reads = self._reader.batches(*self._reader_position(FeedPosition(data_pass, skip)))
        if not self._is_reader:
            # On this rank, `reads` is a generator that begins the pass and yields no batch. It is
            # run here, because Accelerate fetches batches only on rank 0.
            deque(reads, maxlen=0)
        batches = self._dispatch(reads)
        yield from batches if self.even_batches else self._without_padding(batches)

    def _dispatch(self, reads: Iterator[Any]) -> Iterator[Any]:
        """Yields this rank's part of the batches that rank 0 reads."""
        loader, base, first = self.loader, self.loader.base_dataloader, deque[Any]()
        # `out_of_order=True`, because this block may run in the generator of a feed. A feed can be
        # closed while blocks that were entered later are still open.
        with undo_on_exit(lambda: setattr(loader, "base_dataloader", base), out_of_order=True):
            # Accelerate calls `iter` on `base_dataloader` when the first batch is fetched.
            loader.base_dataloader = _LoaderWithIterator(base, reads)
            batches = iter(loader)
            first.extend(islice(batches, 1))
        yield from chain_first(first, batches)


class _UnreadLoader(TorchLoader):
    """The loader on a rank other than 0. Each pass is begun, but no batch is read.

    At the beginning of a pass, torch draws from the random generators, and this rank must make the
    same draws as rank 0. A DataPipe must also be started on all ranks together.
    """

    def batches(self, data_pass: int, skip: int) -> Generator[Any, None, None]:
        """Begins the pass, and yields no batch."""
        yield from self.replay_batches(data_pass, 0)

    def _open_iterator(self) -> Iterator[Any]:
        super()._open_iterator()
        return iter(())


class _LoaderWithIterator:
    """A stand-in for a loader. ``iter`` returns a given iterator.

    Args:
        loader: the loader whose attributes the stand-in has, except ``state_dict``.
        batches: the iterator.
    """

    def __init__(self, loader: Any, batches: Iterator[Any]) -> None:
        self._loader = loader
        self._batches = batches

    def __getattr__(self, name: str) -> Any:
        # Accelerate calls `state_dict` of a torchdata loader, which would create another iterator.
        if name == "state_dict":
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        return self._batches
