"""Tracks the states of loader workers batch by batch, so that new workers can continue from them.

torch seeds the global random generators of a worker when the worker starts. Each worker has a copy
of the data set, and this copy has its own random generators and state. How many random numbers a
worker has drawn depends on its samples, so the main process cannot know the number. Therefore a
worker sends its states along with a batch whenever they have changed. The user gets the batches
without the states.

A *pass* goes over the whole data once. An *iteration* of the loader may begin in the middle of a
pass. Each iteration asks worker 0 first, and then the other workers in turn. So an iteration can
continue a pass only at a batch that worker 0 has to load. For example, 4 workers began a pass at
batch 0, so worker 0 loads the batches 0, 4, 8, and so on. To continue this pass at batch 6, new
workers begin at batch 4, and load the batches 4 and 5 a second time.
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

from ignite_hooks.core.undo_stack import undo_on_exit
from ignite_hooks.data.object_states import ObjectStates
from ignite_hooks.data.random_state import GeneratorSearch
from ignite_hooks.data.random_state import RandomState
from ignite_hooks.data.random_state import set_generator_state

__all__ = [
    "WorkerStates",
    "end_streams",
    "unsharded",
    "with_random_state",
    "worker_state_from_plain",
    "worker_state_to_plain",
]

# A stream is an iterable data set, of which each worker has a copy. `_StreamStates.state_dict` has
# these keys: the user's state of the stream, the states of the worker's random generators, and
# whether the stream has ended in the present pass.
_STREAM, _RANDOM, _IS_OVER = "stream", "random", "is_over"
_MAX_BYTES = 2**20  # the largest size of the object states that a worker sends with a batch
_MAX_WATCHED = 500  # the largest number of objects that are compared after every batch


class WorkerStates:
    """The states of the workers of one loader, pass by pass.

    Attributes:
        doubts: sentences about changes in the workers that a saved state does not contain. They
            are the keys of a dict, so that each sentence occurs once.
    """

    def __init__(self) -> None:
        self.doubts: dict[str, None] = {}
        self._data_pass = 0
        self._first_batch = 0  # the number of the batch that worker 0 loaded first in this pass
        # The history of each worker: a pair for each of its last batches, with the number of the
        # batch and the state of the worker after this batch.
        self._history: list[deque[tuple[int, bytes | None]]] = []
        # The number of the batch that is yielded next, and whether the loader is exhausted.
        self._next_batch, self._has_ended = 0, False
        self._length: int | None = None
        # The number of the present iteration; 0 while no iteration is tracked. Workers read the
        # number from shared memory, because persistent workers live through several iterations.
        # While the number is 0, workers send no states. Otherwise a worker sends its states with
        # its first batch of the iteration, and with a later batch only if they have changed.
        self._iteration: torch.Tensor = torch.zeros((), dtype=torch.int64)
        self._iteration.share_memory_()  # type: ignore[no-untyped-call]
        self._iteration_count = 0  # the number of all iterations that were tracked so far

    @contextmanager
    def starting(self, loader: Any, states: Sequence[bytes | None]) -> Iterator[None]:
        """Gives initial states to the workers that the loader starts in the body.

        These workers send their states along with the batches that they load.

        Args:
            loader: the loader. Its attributes are replaced during the body.
            states: the initial state of each worker. With None, the worker starts from torch's
                seed.
        """
        worker = _TrackedWorker(loader.collate_fn, loader.worker_init_fn, self._iteration, states)
        self._iteration_count += 1
        self._iteration.fill_(self._iteration_count)
        with ExitStack() as stack:
            for name, function in (("collate_fn", worker.collate), ("worker_init_fn", worker.init)):
                # With `out_of_order=True`, scopes that the body has left open stay open, for
                # example the scope of a suspended generator.
                undo = _attribute_setter(loader, name, getattr(loader, name))
                stack.enter_context(undo_on_exit(undo, out_of_order=True))
                setattr(loader, name, function)
            yield

    def begin(
        self,
        data_pass: int,
        first: int,
        states: Iterable[bytes | None],
        window_size: int = 1,
        length: int | None = None,
    ) -> None:
        """Notes that the workers begin to load a pass, from its first batch or from a later batch.

        Args:
            data_pass: the number of the pass.
            first: the number of the batch that worker 0 loads first.
            states: the state of each worker before its first batch; empty if the states are not
                known.
            window_size: the number of batches in a full accumulation window (the batches that make
                one optimizer step). A run may roll back to the start of the present window.
            length: the number of batches of the pass; None if it is not known for certain.
        """
        known = [*states]
        self._length = length
        self._data_pass, self._first_batch, self._next_batch = data_pass, first, first
        self._has_ended = False
        # A rollback goes back at most window_size + W batches, where W is the number of workers:
        # one window, one batch that the loader is ahead of the run, and up to W - 1 batches,
        # because new workers begin with a batch of worker 0. Of these batches, each worker loads at
        # most window_size // W + 2. One more entry has the state before these batches, from which a
        # new worker starts.
        self._history = [
            deque([(first - 1, each)], 3 + window_size // len(known)) for each in known
        ]

    def follow(self, batches: Iterator[Any], first: int) -> Iterator[Any]:
        """Yields the user's batches, and keeps the states that workers have sent with the batches.

        Args:
            batches: the batches with states, as the loader gives them.
            first: the number of the first of these batches, counted from the start of the pass.
        """
        try:
            # `map` has no loop variable. The variable of a loop would keep the batch in memory
            # while this generator is suspended.
            yield from map(self._unpack_batch, batches, count(first))
            self._has_ended = True
        finally:
            self._iteration.fill_(0)  # the user's own iterations get plain batches

    def _unpack_batch(self, loaded: Any, number: int) -> Any:
        """Returns the user's batch, and keeps the state that the worker has sent with it.

        Args:
            loaded: the batch with its state, as the loader gives it.
            number: the number of the batch in the pass.
        """
        self._next_batch = number + 1
        if not isinstance(loaded, _BatchWithState):  # a worker that is a thread sends no state
            self._history = []
            return loaded
        if self._history:
            history = self._history[(number - self._first_batch) % len(self._history)]
            history.append((number, history[-1][1] if loaded.state is None else loaded.state))
        self.doubts |= dict.fromkeys(loaded.doubts)
        return loaded.batch

    def states_at(self, data_pass: int, number: int) -> tuple[int, list[bytes | None]] | None:
        """Returns where and with which states new workers must start, to continue a pass.

        Args:
            data_pass: the number of the pass.
            number: the number of the batch at which the pass continues.

        Returns:
            The number of the batch that worker 0 must load first (at most ``number``), and the
            state of each worker before its first batch. None if the states are not known.
        """
        if data_pass != self._data_pass or number < self._first_batch or not self._history:
            return None
        start = number - (number - self._first_batch) % len(self._history)
        before = [[each for each in history if each[0] < start] for history in self._history]
        return (start, [each[-1][1] for each in before]) if all(before) else None

    def states_after(self, data_pass: int) -> list[bytes | None]:
        """Returns the states of the workers after a whole pass; an empty list if not known.

        The states are not known if the pass was left early: the workers have loaded further
        batches, whose states have not arrived.
        """
        newest = [history[-1][1] for history in self._history]
        is_over = data_pass == self._data_pass and self.is_over
        return newest if is_over and None not in newest else []

    @property
    def is_over(self) -> bool:
        """Returns whether all batches of the pass have been yielded."""
        return self._has_ended or self._next_batch == self._length


@contextmanager
def with_random_state(loader: Any) -> Iterator[None]:
    """Makes workers add their random states to the states of their streams.

    A stream is an iterable data set, of which each worker has a copy. After each batch torchdata
    asks a worker for the state of its copy. When a pass is resumed, torchdata loads this state
    before it iterates over the copy.

    Args:
        loader: a ``StatefulDataLoader``, which starts the workers in the body.
    """
    user_init = loader.worker_init_fn
    undo = _attribute_setter(loader, "worker_init_fn", user_init)
    # With `out_of_order=True`, scopes that the body has left open stay open.
    with undo_on_exit(undo, out_of_order=True):
        loader.worker_init_fn = _StreamInit(user_init)
        yield


def unsharded(dataset: Any) -> Any:
    """Returns the data set inside a shard of Accelerate. Other data sets are returned unchanged."""
    return dataset.dataset if isinstance(dataset, IterableDatasetShard) else dataset


def end_streams(state_dict: Any) -> None:
    """Marks, in the state of a ``StatefulDataLoader``, the streams that have ended.

    The streams of some workers may end before the pass is over. When the pass is resumed, torchdata
    iterates all streams, also those that have ended. If a stream resets its state at its end, this
    iteration would give all samples of the stream a second time. A marked stream gives no samples.

    Args:
        state_dict: the state of the loader in the middle of a pass. It is changed in place.
    """
    workers = (state_dict.get("_snapshot") or {}).get("_worker_snapshots") or {}
    for worker in workers.values():
        state, fetcher = worker.get("dataset_state"), worker.get("fetcher_state")
        if isinstance(state, dict) and _STREAM in state and fetcher is not None:
            state[_IS_OVER] = state[_IS_OVER] or bool(fetcher.get("fetcher_ended"))


def _call_user_init(init: Callable[[int], Any] | None, worker_id: int, main_pid: int) -> Any:
    """Calls the user's ``worker_init_fn``, and returns the worker's copy of the data set.

    Returns None if the worker is a thread of the main process: a thread shares the data set.
    """
    if init is not None:
        init(worker_id)
    info = get_worker_info()
    return None if os.getpid() == main_pid or info is None else info.dataset


class _StreamInit:
    """A ``worker_init_fn`` that adds the random states of the worker to the state of its stream.

    Args:
        init: the user's ``worker_init_fn``, or None.
    """

    def __init__(self, init: Callable[[int], Any] | None) -> None:
        self._init = init
        self._main_pid = os.getpid()

    def __call__(self, worker_id: int) -> None:
        stream = _call_user_init(self._init, worker_id, self._main_pid)
        if stream is None:
            return
        states = _StreamStates(stream)
        # Methods of the instance take precedence over the methods of its class.
        stream.state_dict, stream.load_state_dict = states.state_dict, states.load_state_dict


class _StreamStates:
    """The methods ``state_dict`` and ``load_state_dict`` for a stream in a worker.

    The state consists of the user's state of the stream and the states of the random generators.

    Args:
        stream: a stream whose class has the two methods, or Accelerate's shard of such a stream.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        with_state = unsharded(stream)
        self._state_dict, self._load_state_dict = with_state.state_dict, with_state.load_state_dict
        self._generators = GeneratorSearch()({"dataset": stream}).named
        # Whether the present pass was resumed at a position where this stream had already ended.
        self._was_resumed_past_end = False

    def state_dict(self) -> dict[str, Any]:
        random = RandomState.capture(generators=self._generators)
        return {
            _STREAM: self._state_dict(),
            _RANDOM: random.state_dict(),
            _IS_OVER: self._was_resumed_past_end,
        }

    def load_state_dict(self, state_dict: Any) -> None:
        # A state that was saved outside of ``with_random_state`` is that of the stream alone.
        if state_dict.keys() != {_STREAM, _RANDOM, _IS_OVER}:
            self._load_state_dict(state_dict)
            return
        random = RandomState.from_state_dict(state_dict[_RANDOM], generators=self._generators)
        random.restore()
        self._load_state_dict(state_dict[_STREAM])
        if state_dict[_IS_OVER]:
            self._end_pass()

    def _end_pass(self) -> None:
        """Makes the next iteration of the stream empty. Later iterations are complete again."""
        cls = type(self._stream)

        def iterate(stream: Any) -> Iterator[Any]:
            if not self._was_resumed_past_end:
                self._was_resumed_past_end = True
                return iter(())
            stream.__class__, self._was_resumed_past_end = cls, False
            return iter(stream)

        # `iter` looks `__iter__` up in the class, so this one stream is moved to a subclass.
        self._stream.__class__ = type(cls.__name__, (cls,), {"__iter__": iterate})


def _attribute_setter(loader: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(loader, name, value)


class _BatchWithState(NamedTuple):
    """A batch with the state of its worker.

    The class is a tuple, because torch pins the memory of the elements of a tuple.

    Args:
        batch: the result of the user's ``collate_fn``.
        state: the pickled state of the worker; None if the state has not changed.
        doubts: sentences about changes in the worker that are missing from ``state``.
    """

    batch: Any
    state: bytes | None
    doubts: tuple[str, ...]


class _TrackedWorker:
    """The ``collate_fn`` and the ``worker_init_fn`` of a loader whose workers are tracked.

    Args:
        collate: the user's ``collate_fn``.
        init: the user's ``worker_init_fn``, or None.
        iteration: the number of the iteration, in shared memory; 0 while no iteration is tracked.
        states: the initial state of each worker. With None, the worker starts from torch's seed.
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
        self._main_pid = os.getpid()

    def init(self, worker_id: int) -> None:
        """Calls the user's ``worker_init_fn``, then restores the state of this worker, if given."""
        dataset = _call_user_init(self._init, worker_id, self._main_pid)
        if dataset is None:
            return
        self._roots = {"dataset": dataset, "collate_fn": self._collate}
        self._search, self._object_states = GeneratorSearch(), ObjectStates()
        self._found = self._search(self._roots)
        self._object_states.begin(self._found.watched)
        self._watched, self._is_too_big = self._found.watched, False
        self._loaded = 0  # the number of batches that this worker has loaded
        # The number of the iteration in which this worker last sent a state; 0 before the first.
        self._sent_iteration = 0
        self._sent, self._sent_objects = RandomState.capture(), b""
        if worker_id < len(self._states) and (state := self._states[worker_id]) is not None:
            self._restore(state)

    def collate(self, samples: Any) -> Any:
        """Calls the user's ``collate_fn``, and returns its batch with the state of the worker."""
        batch = self._collate(samples)
        iteration = 0 if os.getpid() == self._main_pid else int(self._iteration)
        if not iteration:
            return batch
        self._loaded += 1
        state = self._pack_changed_state(iteration)
        return _BatchWithState(batch, state, self._doubts())

    def _pack_changed_state(self, iteration: int) -> bytes | None:
        """Returns the pickled state; None if it equals the last state sent in this iteration."""
        objects = self._pack_objects()
        is_same_random = iteration == self._sent_iteration and not self._sent.has_moved()
        if is_same_random and objects == self._sent_objects:
            return None
        self._sent = RandomState.capture(generators=self._found.named)
        self._sent_objects, self._sent_iteration = objects, iteration
        states = {name: state for name, (_, state) in self._sent.generators.items()}
        random = (self._sent.python, self._sent.numpy, self._sent.cpu.numpy(), states)
        return pickle.dumps((random, objects))

    def _pack_objects(self) -> bytes:
        """Returns the pickled states of the data set, the ``collate_fn`` and their parts.

        As soon as the states are too big, this and each further call return a pickled empty dict.
        """
        if not self._is_too_big:
            packed = pickle.dumps(self._object_states.state_dict(self._watched))
            self._is_too_big = len(packed) > _MAX_BYTES
        return pickle.dumps({}) if self._is_too_big else packed

    def _restore(self, packed: bytes) -> None:
        random, objects = _unpacked(packed)
        self._object_states.load_state_dict(self._watched, objects)
        random.restore_global()
        for name in self._found.named.keys() & random.generators.keys():
            set_generator_state(self._found.named[name], random.generators[name][1])

    def _doubts(self) -> tuple[str, ...]:
        """Returns sentences about changes that the state of this worker does not contain."""
        # The search for changes takes time for each object. If there are many objects, they are
        # searched only after six of every 64 batches: after the batches 1, 2, 4, 8, 16 and 32.
        if len(self._watched) > _MAX_WATCHED and self._loaded % 64 not in (1, 2, 4, 8, 16, 32):
            return ()
        now = self._search(self._roots)
        new_generators = now.named.keys() - self._found.named.keys()
        too_big = ["the state_dict of the data set is too big to be saved for each worker"]
        return (
            *(f"in workers: {each}" for each in self._object_states.doubts(now.watched)),
            *(too_big if self._is_too_big else ()),
            *(
                f"{name} is made in the workers, and its state is not saved"
                for name in new_generators
            ),
        )


def _unpacked(packed: bytes) -> tuple[RandomState, dict[str, Any]]:
    """Returns the random states and the object states that a worker has sent."""
    (python, numpy, cpu, states), objects = pickle.loads(packed)
    generators = {name: (None, state) for name, state in states.items()}
    random = RandomState(python, numpy, torch.from_numpy(cpu), None, generators)
    return random, pickle.loads(objects)


def worker_state_to_plain(packed: bytes | None) -> dict[str, Any] | None:
    """Returns the state of a worker as plain data, for a checkpoint. Returns None for None."""
    if packed is None:
        return None
    random, objects = _unpacked(packed)
    return {"random": random.state_dict(), "objects": objects}


def worker_state_from_plain(state: Any) -> bytes | None:
    """Returns the state of a worker from the result of ``worker_state_to_plain``."""
    if state is None:
        return None
    random = RandomState.from_state_dict(state["random"])
    packed = (random.python, random.numpy, random.cpu.numpy(), state["random"]["generators"])
    return pickle.dumps((packed, pickle.dumps(state["objects"])))
