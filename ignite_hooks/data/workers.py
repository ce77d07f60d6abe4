"""Loader workers that survive a signal to the whole process group.

A job scheduler signals every process of a job, and Ctrl-C every process of a terminal. The main
process handles the signal, for example by saving, and still needs the batches up to the next step
boundary. So a worker ignores each signal that the main process handles.

``Process.terminate`` sends SIGTERM, and does not end a worker that ignores this signal. torch and
``multiprocessing`` use it for workers that do not end when requested. These workers are killed.

One private attribute of Python is used: ``multiprocessing.forkserver._forkserver``, whose
``_preload_modules`` are the modules that a fork server imports when it starts. A public function
sets them, but none reads them. ``tests/data/test_workers.py`` fails when this changes its meaning.

Four private attributes of torch are used: ``DataLoader._iterator``, the iterator of persistent
workers; its ``_workers``, the processes; its ``_index_queues``, through which they are told to end;
and its ``_index_sampler``, from which it takes the indices that they load. The same tests cover the
first three, and ``tests/data/test_worker_states.py`` covers the last.
"""

import functools
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from multiprocessing import util
from multiprocessing.process import BaseProcess
from typing import Any
from weakref import WeakKeyDictionary
from weakref import WeakSet
from weakref import finalize
from weakref import ref

from ignite_hooks.core.undo_stack import undo_on_exit

__all__ = [
    "forget_dead_workers",
    "hand_over_workers",
    "ignored_by_workers",
    "iterate_with_workers",
    "starting_workers",
]

ignored_by_workers: WeakKeyDictionary[object, tuple[int, ...]] = WeakKeyDictionary()
"""The signals that workers ignore from their start on, by the object that requests this.

An entry ends with the life of its object.
"""

_own_workers: "WeakSet[BaseProcess]" = WeakSet()  # those that this process has started
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_own_workers.clear)


def iterate_with_workers(loader: Any) -> Iterator[Any]:
    """Returns ``iter(loader)``; workers that start for it survive signals to the process group."""
    with starting_workers(loader):
        return iter(loader)


@contextmanager
def starting_workers(loader: Any, *, blocks: bool = True) -> Iterator[None]:
    """Makes the workers that a ``DataLoader`` starts in the body ignore signals.

    Args:
        loader: the torch loader, or one that has its attributes.
        blocks: whether the signals in ``ignored_by_workers`` are blocked during the body, also in
            this process, which handles them afterwards. The body must then be short.
    """
    if not getattr(loader, "num_workers", 0) or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    if loader.persistent_workers and getattr(loader, "_iterator", None) is not None:
        yield  # no worker starts: the persistent ones are there already
        return
    requested = {number for numbers in ignored_by_workers.values() for number in numbers}
    before = set(multiprocessing.active_children())
    user_init = loader.worker_init_fn
    method = _prepare_start(loader.multiprocessing_context or multiprocessing)
    with ExitStack() as stack:
        stack.callback(_adopt_workers, before)
        stack.callback(_keep_queues, loader)
        if blocks:
            stack.enter_context(_blocked(requested))
        # `out_of_order`: this scope may be in the generator of a feed, and a feed can be closed at
        # any time, while scopes that were entered later are still open.
        stack.enter_context(undo_on_exit(lambda: _set_init(loader, user_init), out_of_order=True))
        ignored = requested | _handled_signals()
        _set_init(loader, _IgnoreSignals(ignored, user_init, is_child=method != "forkserver"))
        yield


def forget_dead_workers(loader: Any) -> None:
    """Makes a loader start new workers if one of its persistent workers is dead.

    torch would ask the dead worker for batches in each further pass, and fail each time.
    """
    iterator = getattr(loader, "_iterator", None)
    if any(not worker.is_alive() for worker in getattr(iterator, "_workers", ())):
        loader._iterator = None


def hand_over_workers(iterator: Any, loader: Any, order: Any) -> None:
    """Hands the persistent workers of an iterator over to another loader.

    Args:
        iterator: the iterator of a loader with persistent workers.
        loader: the loader that uses the workers from now on.
        order: the index batches of a whole pass of that loader.
    """
    iterator._index_sampler = order
    loader._iterator = iterator


class _IgnoreSignals:
    """A ``worker_init_fn`` that ignores signals and calls the user's function.

    Args:
        ignored: the numbers of the signals.
        user_init: the user's ``worker_init_fn``, or None.
        is_child: whether the worker's parent is this process, and not a fork server.
    """

    def __init__(
        self, ignored: set[int], user_init: Callable[[int], Any] | None, *, is_child: bool
    ) -> None:
        self._ignored = ignored
        self._user_init = user_init
        self._is_child = is_child
        self._main_pid = os.getpid()

    def __call__(self, worker_id: int) -> None:
        if os.getpid() != self._main_pid:  # else the worker is a thread
            # A forked worker has copies of all objects of the main process. Garbage among them may
            # be a loader with persistent workers, whose finalizer would tell those workers, which
            # belong to the main process, to end. Frozen objects are never collected here.
            gc.freeze()
            for number in self._ignored:
                signal.signal(number, signal.SIG_IGN)
            # Blocked when this process was started. Signals that are pending are dropped now.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._ignored)
        if self._user_init is not None:
            self._user_init(worker_id)
        if self._is_child and os.getpid() != self._main_pid != os.getppid():
            # The main process has died meanwhile, and this process was adopted by another one.
            # torch reads the parent's number only after this function. A worker ends when the
            # parent changes, so this one would never end.
            os._exit(1)


def _handled_signals() -> set[int]:
    """Returns those of SIGINT and SIGTERM that do not end this process at once.

    A signal that ends this process may end its workers too. Other signals, such as SIGUSR1, are
    left alone, because a data set may use them itself.
    """
    usual = (signal.SIGINT, signal.SIGTERM)
    return {number for number in usual if signal.getsignal(number) != signal.SIG_DFL}


def _set_init(loader: Any, function: Any) -> None:
    loader.worker_init_fn = function


@contextmanager
def _blocked(numbers: set[int]) -> Iterator[None]:
    """Blocks signals in this thread, and in the processes that it starts in the body.

    A signal could end a worker before its ``worker_init_fn`` runs, which takes seconds with the
    start method "spawn". In this process a blocked signal is handled after the body.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with undo_on_exit(lambda: _set_mask(before), out_of_order=True):
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        yield


def _set_mask(mask: set[int]) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _prepare_start(context: Any) -> str:
    """Starts the helper processes of a ``multiprocessing`` context, before signals are blocked.

    Returns:
        The start method of the context, for example "fork".
    """
    method: str = context.get_start_method()
    if method != "fork":
        # A lock starts the resource tracker. Python unblocks signals when it starts the tracker,
        # so this must not happen while they are to be blocked.
        context.Lock()
    if method == "forkserver":
        _start_fork_server()
    return method


def _start_fork_server() -> None:
    """Starts the fork server, unless one is running, as one that survives signals.

    The server imports a module that ignores signals and restores them in the processes that it
    forks. A server that inherits an ignored or blocked SIGTERM would pass this on to all of them,
    and ``Pool.terminate`` would wait for ever.
    """
    from multiprocessing import forkserver

    modules = forkserver._forkserver._preload_modules  # type: ignore[attr-defined]
    with undo_on_exit(lambda: forkserver.set_forkserver_preload(modules), out_of_order=True):
        forkserver.set_forkserver_preload([*modules, "ignite_hooks.data.fork_server"])
        forkserver.ensure_running()


def _adopt_workers(before: set[BaseProcess]) -> None:
    """Makes ``terminate`` of the workers that were started since then kill them.

    Args:
        before: the child processes before the workers were started.
    """
    for worker in multiprocessing.active_children():
        if worker.daemon and worker not in before:
            # Weak: a reference cycle would keep the process's file descriptors open for longer.
            reference = ref(worker)
            worker.terminate = functools.partial(_kill, reference)  # type: ignore[method-assign]
            _own_workers.add(worker)
            _kill_at_exit(os.getpid())


def _keep_queues(loader: Any) -> None:
    """Keeps the queues of persistent workers open until their iterator is freed.

    A loader in a reference cycle, such as a trainer's, is freed by a garbage collection. That would
    close the queues first: the iterator could not tell its workers to end, would wait 5 seconds for
    each, and kill them.
    """
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        # The finalizer is reachable until the iterator is freed, and the queues with it.
        finalize(iterator, list.clear, [*getattr(iterator, "_index_queues", ())]).atexit = False


def _kill(reference: "ref[BaseProcess]") -> None:
    """Kills a worker that has not been freed."""
    worker = reference()
    if worker is not None:
        worker.kill()


@functools.cache
def _kill_at_exit(pid: int) -> None:
    """Registers that the remaining workers are killed at the end of this process.

    They are killed before ``multiprocessing`` terminates them and waits. A finalizer of
    ``multiprocessing``, unlike one of ``atexit``, also runs at the end of its child processes.

    Args:
        pid: the number of this process. The cache makes one registration in each process, and a
            forked child, which inherits the cache, has another number.
    """
    util.Finalize(None, _kill_all, exitpriority=0)


def _kill_all() -> None:
    if threading.current_thread() is threading.main_thread():
        # torch's handler raises when a worker dies.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in tuple(_own_workers):
        worker.kill()
        worker.join()
