"""Tracks the random states of loader workers batch by batch, so that new workers can continue.

torch seeds the global random generators of each worker when it starts, and each worker has a copy
of the data set, with its own random generators and state. How far these have moved depends on the
samples, which the main process does not see. So a worker sends its states along with a batch
whenever they have changed. The batches themselves are left as they are.

Worker ``w`` of ``W`` loads the batches ``w``, ``w + W``, and so on. To continue at any batch, up to
``W - 1`` batches before it are loaded again, so that the iteration starts with worker 0.
"""

import os
import pickle
from collections import deque
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import ExitStack
from contextlib import contextmanager
from itertools import count
from typing import Any
from typing import NamedTuple

import torch
from accelerate.data_loader import IterableDatasetShard
from torch.utils.data import get_worker_info

from ignite_hooks.core.restoring import restored
from ignite_hooks.data.own_states import OwnStates
from ignite_hooks.data.random_state import GeneratorSearch
from ignite_hooks.data.random_state import RandomState
from ignite_hooks.data.random_state import set_state

__all__ = ["WorkerStates", "as_data", "end_streams", "from_data", "unsharded", "with_random_state"]

_STREAM, _RANDOM, _IS_OVER = "stream", "random", "is_over"
_MAX_BYTES = 2**20  # of the states of objects that a worker sends with a batch
_MAX_WATCHED = 500  # objects that are compared after each batch; more of them less often


class WorkerStates:
    """The states of the workers of one loader, pass by pass.

    Attributes:
        doubts: changes in the workers' copies of the data set that no state holds.
    """

    def __init__(self) -> None:
        self.doubts: dict[str, None] = {}
        self._data_pass = 0
        self._first = 0  # the batch of this pass that worker 0 loaded first
        # For each worker the numbers of its batches, each with the state after it.
        self._behind: list[deque[tuple[int, bytes | None]]] = []
        self._next, self._is_over = 0, False
        self._length: int | None = None
        # In shared memory: workers send their states while it is not 0, and send the whole state
        # when the number has changed.
        self._iteration: torch.Tensor = torch.zeros((), dtype=torch.int64)
        self._iteration.share_memory_()  # type: ignore[no-untyped-call]
        self._iterations = 0

    @contextmanager
    def starting(self, loader: Any, states: Sequence[bytes | None]) -> Iterator[None]:
        """Has workers that a ``DataLoader`` starts in the body begin with states, and send theirs.

        Args:
            loader: the loader; its attributes are restored afterwards.
            states: one for each worker; None for a worker that begins as torch seeds it.
        """
        worker = _Worker(loader.collate_fn, loader.worker_init_fn, self._iteration, states)
        self._iterations += 1
        self._iteration.fill_(self._iterations)
        with ExitStack() as stack:
            for name, function in (("collate_fn", worker.collate), ("worker_init_fn", worker.init)):
                # Alone: a feed, whose generator this may be in, can be closed at any time.
                undo = _setting(loader, name, getattr(loader, name))
                stack.enter_context(restored(undo, alone=True))
                setattr(loader, name, function)
            yield

    def begin(
        self,
        data_pass: int,
        first: int,
        states: Iterable[bytes | None],
        window: int = 1,
        length: int | None = None,
    ) -> None:
        """Notes that the workers start a pass, or the rest of one.

        Args:
            data_pass: the pass.
            first: the batch of the pass that worker 0 loads first.
            states: one for each worker; empty if they are not known.
            window: batches in a full accumulation window, by which a run may roll back.
            length: the number of batches of the pass, if that is certain.
        """
        given = [*states]
        self._length = length
        self._data_pass, self._first, self._next = data_pass, first, first
        self._is_over = False
        self._behind = [deque([(first - 1, each)], 3 + window // len(given)) for each in given]

    def follow(self, batches: Iterator[Any], first: int) -> Iterator[Any]:
        """Yields the batches that workers send with their states; ``first`` is the first number."""
        try:
            # Without a name: a suspended frame would keep the last batch alive.
            yield from map(self._note, batches, count(first))
            self._is_over = True
        finally:
            self._iteration.fill_(0)

    def _note(self, loaded: Any, number: int) -> Any:
        self._next = number + 1
        if not isinstance(loaded, _Loaded):  # by a thread
            self._behind = []
            return loaded
        if self._behind:
            behind = self._behind[(number - self._first) % len(self._behind)]
            behind.append((number, behind[-1][1] if loaded.state is None else loaded.state))
        self.doubts |= dict.fromkeys(loaded.doubts)
        return loaded.batch

    def at(self, data_pass: int, number: int) -> tuple[int, list[bytes | None]] | None:
        """Returns how to continue a pass at its batch ``number``; None if that is not known.

        Returns:
            The batch to start with, and the state of each worker there.
        """
        if data_pass != self._data_pass or number < self._first or not self._behind:
            return None
        start = number - (number - self._first) % len(self._behind)
        before = [[each for each in behind if each[0] < start] for behind in self._behind]
        return (start, [each[-1][1] for each in before]) if all(before) else None

    def after(self, data_pass: int) -> list[bytes | None]:
        """Returns the states of the workers after a whole pass; an empty list if not known.

        Workers prefetch, so after a pass that was left early their states have moved further.
        """
        newest = [behind[-1][1] for behind in self._behind]
        is_over = data_pass == self._data_pass and self.is_over
        return newest if is_over and None not in newest else []

    @property
    def is_over(self) -> bool:
        """Whether all batches of the pass have been given."""
        return self._is_over or self._next == self._length


@contextmanager
def with_random_state(loader: Any) -> Iterator[None]:
    """Adds the random states of a worker to the state of its stream.

    torchdata asks each worker for the state of its copy of the stream after each batch, and loads
    it before the copy is iterated. This holds for the workers of a ``StatefulDataLoader`` that are
    started in the body.
    """
    found = loader.worker_init_fn
    with restored(_setting(loader, "worker_init_fn", found), alone=True):
        loader.worker_init_fn = _StreamInit(found)
        yield


def unsharded(dataset: Any) -> Any:
    """Returns the stream of which Accelerate has each process take its part, or the data set."""
    return dataset.dataset if isinstance(dataset, IterableDatasetShard) else dataset


def end_streams(state_dict: Any) -> None:
    """Notes in the state of a ``StatefulDataLoader`` which workers have come to their end.

    torchdata iterates their streams again, and a stream whose state is reset at its end would give
    all of its samples a second time.
    """
    workers = (state_dict.get("_snapshot") or {}).get("_worker_snapshots") or {}
    for worker in workers.values():
        state, fetcher = worker.get("dataset_state"), worker.get("fetcher_state")
        if isinstance(state, dict) and _STREAM in state and fetcher is not None:
            state[_IS_OVER] = state[_IS_OVER] or bool(fetcher.get("fetcher_ended"))


def _initialized(init: Callable[[int], Any] | None, worker_id: int, main: int) -> Any:
    """Calls the user's ``worker_init_fn``; returns the worker's copy of the data set.

    Returns None if the worker is a thread of process ``main``, which has no copy.
    """
    if init is not None:
        init(worker_id)
    info = get_worker_info()
    return None if os.getpid() == main or info is None else info.dataset


class _StreamInit:
    """The ``worker_init_fn`` of a loader of streams that have a state.

    Args:
        init: the user's ``worker_init_fn``, or None.
    """

    def __init__(self, init: Callable[[int], Any] | None) -> None:
        self._init = init
        self._main = os.getpid()

    def __call__(self, worker_id: int) -> None:
        stream = _initialized(self._init, worker_id, self._main)
        if stream is None:
            return
        states = _StreamStates(stream)
        stream.state_dict, stream.load_state_dict = states.state_dict, states.load_state_dict


class _StreamStates:
    """The methods of a stream in a worker.

    Args:
        stream: the stream, of a class that has them, or Accelerate's part of it.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        with_state = unsharded(stream)
        self._state_dict, self._load_state_dict = with_state.state_dict, with_state.load_state_dict
        self._generators = GeneratorSearch()({"dataset": stream}).named
        self._is_over = False

    def state_dict(self) -> dict[str, Any]:
        random = RandomState.capture(generators=self._generators)
        return {
            _STREAM: self._state_dict(),
            _RANDOM: random.state_dict(),
            _IS_OVER: self._is_over,
        }

    def load_state_dict(self, state_dict: Any) -> None:
        if state_dict.keys() != {_STREAM, _RANDOM, _IS_OVER}:  # of a user's own workers
            self._load_state_dict(state_dict)
            return
        random = RandomState.from_state_dict(state_dict[_RANDOM], generators=self._generators)
        random.restore()
        self._load_state_dict(state_dict[_STREAM])
        if state_dict[_IS_OVER]:
            self._end_pass()

    def _end_pass(self) -> None:
        """Has the next iteration of the stream give nothing, and the one after it all."""
        kind = type(self._stream)

        def iterate(stream: Any) -> Iterator[Any]:
            if not self._is_over:
                self._is_over = True
                return iter(())
            stream.__class__, self._is_over = kind, False
            return iter(stream)

        self._stream.__class__ = type(kind.__name__, (kind,), {"__iter__": iterate})


def _setting(loader: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(loader, name, value)


class _Loaded(NamedTuple):
    """A batch with the state of its worker. A tuple, because torch pins the contents of tuples."""

    batch: Any
    state: bytes | None
    doubts: tuple[str, ...]


class _Worker:
    """The ``collate_fn`` and the ``worker_init_fn`` of a loader whose workers are followed.

    Args:
        collate: the user's ``collate_fn``.
        init: the user's ``worker_init_fn``, or None.
        iteration: the number of the iteration, 0 for one that is not followed; shared memory.
        states: the states to begin with, by worker.
    """

    def __init__(
        self,
        collate: Callable[[Any], Any],
        init: Callable[[int], Any] | None,
        iteration: torch.Tensor,
        states: Sequence[bytes | None],
    ) -> None:
        self._collate = collate
        self._init = init
        self._iteration = iteration
        self._states = [*states]
        self._main = os.getpid()

    def init(self, worker_id: int) -> None:
        """Calls the user's function, then restores the state of this worker if there is one."""
        dataset = _initialized(self._init, worker_id, self._main)
        if dataset is None:
            return
        self._roots = {"dataset": dataset, "collate_fn": self._collate}
        self._search, self._own = GeneratorSearch(), OwnStates()
        self._found = self._search(self._roots)
        self._own.begin(self._found.watched)
        self._watched, self._is_too_big = self._found.watched, False
        self._loaded, self._told_in = 0, 0
        self._told, self._told_objects = RandomState.capture(), b""
        if worker_id < len(self._states) and (state := self._states[worker_id]) is not None:
            self._restore(state)

    def collate(self, samples: Any) -> Any:
        """Calls the user's function; adds the state of the worker to what it returns."""
        batch = self._collate(samples)
        iteration = 0 if os.getpid() == self._main else int(self._iteration)
        if not iteration:
            return batch
        self._loaded += 1
        state = self._state(iteration)
        return _Loaded(batch, state, self._doubts())

    def _state(self, iteration: int) -> bytes | None:
        """Returns the state; None if it equals the one sent last in this iteration."""
        objects = self._states_of_objects()
        is_told = iteration == self._told_in and not self._told.has_moved()
        if is_told and objects == self._told_objects:
            return None
        self._told = RandomState.capture(generators=self._found.named)
        self._told_objects, self._told_in = objects, iteration
        states = {name: state for name, (_, state) in self._told.generators.items()}
        random = (self._told.python, self._told.numpy, self._told.cpu.numpy(), states)
        return pickle.dumps((random, objects))

    def _states_of_objects(self) -> bytes:
        packed = b"" if self._is_too_big else pickle.dumps(self._own.state_dict(self._watched))
        self._is_too_big = self._is_too_big or len(packed) > _MAX_BYTES
        return pickle.dumps({}) if self._is_too_big else packed

    def _restore(self, packed: bytes) -> None:
        random, objects = _unpacked(packed)
        self._own.load_state_dict(self._watched, objects)
        random.restore_global()
        for name in self._found.named.keys() & random.generators.keys():
            set_state(self._found.named[name], random.generators[name][1])

    def _doubts(self) -> tuple[str, ...]:
        if len(self._watched) > _MAX_WATCHED and self._loaded % 64 not in (1, 2, 4, 8, 16, 32):
            return ()
        now = self._search(self._roots)
        made = now.named.keys() - self._found.named.keys()
        big = ["the state_dict of the data set is too big to be saved for each worker"]
        return (
            *(f"in workers: {each}" for each in self._own.doubts(now.watched)),
            *(big if self._is_too_big else ()),
            *(f"{name} is made in the workers, and its state is not saved" for name in made),
        )


def _unpacked(packed: bytes) -> tuple[RandomState, dict[str, Any]]:
    (python, numpy, cpu, states), objects = pickle.loads(packed)
    generators = {name: (None, state) for name, state in states.items()}
    random = RandomState(python, numpy, torch.from_numpy(cpu), None, generators)
    return random, pickle.loads(objects)


def as_data(packed: bytes | None) -> dict[str, Any] | None:
    """Returns a state as plain data, for a checkpoint."""
    if packed is None:
        return None
    random, objects = _unpacked(packed)
    return {"random": random.state_dict(), "objects": objects}


def from_data(state: Any) -> bytes | None:
    """Returns the state that ``as_data`` has returned as plain data."""
    if state is None:
        return None
    random = RandomState.from_state_dict(state["random"])
    told = (random.python, random.numpy, random.cpu.numpy(), state["random"]["generators"])
    return pickle.dumps((told, pickle.dumps(state["objects"])))
