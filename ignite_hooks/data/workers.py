"""Loader workers that survive a signal to the whole process group.

A job scheduler sends a signal to every process of a job, and Ctrl-C sends one to every process of a
terminal. The main process handles the signal, for example by saving a checkpoint. Before the save,
it still needs batches from the workers, to complete the present optimizer step. So a worker ignores
each signal that the main process handles.

If a worker does not end on request, torch and ``multiprocessing`` call its method
``Process.terminate``. This method sends SIGTERM, which the worker ignores. So the method of each
loader worker is replaced by a function that kills the worker.

One private attribute of Python is used: ``multiprocessing.forkserver._forkserver``, whose
``_preload_modules`` are the modules that a fork server imports when it starts. Python has a public
function to set these modules, but none to read them. ``tests/data/test_workers.py`` fails if the
meaning of this attribute changes.

Four private attributes of torch are used:

- ``DataLoader._iterator`` is the iterator of a loader with persistent workers.
- ``_workers`` of this iterator are the worker processes.
- ``_index_queues`` of the iterator are the queues through which it sends indices to the workers,
  and tells them to end.
- ``_index_sampler`` of the iterator gives the indices that the workers load.

``tests/data/test_worker_states.py`` covers ``_index_sampler``. ``tests/data/test_workers.py``
covers the other three attributes.
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
"""The signals that workers must ignore from their start on.

The keys are the objects that have requested this, for example a handler that saves on a signal. The
values are the numbers of the signals. The entry of an object disappears when the object is freed.
"""

_own_workers: "WeakSet[BaseProcess]" = WeakSet()  # the workers that this process has started
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_own_workers.clear)


def iterate_with_workers(loader: Any) -> Iterator[Any]:
    """Returns ``iter(loader)``, and makes the workers survive signals to the process group."""
    with starting_workers(loader):
        return iter(loader)


@contextmanager
def starting_workers(loader: Any, *, blocks: bool = True) -> Iterator[None]:
    """Makes loader workers ignore signals, if the loader starts the workers in the body.

    The signals are those in ``ignored_by_workers``, and SIGINT and SIGTERM if this process handles
    them.

    Args:
        loader: a loader of torch, or another loader with the same attributes.
        blocks: whether the signals in ``ignored_by_workers`` are blocked during the body. This
            process handles blocked signals only after the body, so the body must be short.
    """
    if not getattr(loader, "num_workers", 0) or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    if loader.persistent_workers and getattr(loader, "_iterator", None) is not None:
        yield  # no worker starts, because the persistent workers are running
        return
    requested = {number for numbers in ignored_by_workers.values() for number in numbers}
    before = set(multiprocessing.active_children())
    user_init = loader.worker_init_fn
    method = _start_helper_processes(loader.multiprocessing_context or multiprocessing)
    with ExitStack() as stack:
        stack.callback(_adopt_workers, before)
        stack.callback(_keep_queues, loader)
        if blocks:
            stack.enter_context(_blocked(requested))
        # `out_of_order=True`, because this scope may be open in a generator that is closed while
        # scopes that were entered later are still open.
        stack.enter_context(undo_on_exit(lambda: _set_init(loader, user_init), out_of_order=True))
        ignored = requested | _handled_signals()
        _set_init(loader, _IgnoreSignals(ignored, user_init, is_child=method != "forkserver"))
        yield


def forget_dead_workers(loader: Any) -> None:
    """Makes a loader start new workers if one of its persistent workers is dead.

    Without this call, torch would request batches from the dead worker in each further pass, and
    fail.
    """
    iterator = getattr(loader, "_iterator", None)
    if any(not worker.is_alive() for worker in getattr(iterator, "_workers", ())):
        loader._iterator = None


def hand_over_workers(iterator: Any, loader: Any, order: Any) -> None:
    """Hands the persistent workers of an iterator over to another loader.

    Args:
        iterator: the iterator, made by a loader with persistent workers.
        loader: the other loader, which uses the workers from now on.
        order: the sampler of the other loader, which gives the indices of each batch of a pass.
    """
    iterator._index_sampler = order
    loader._iterator = iterator


class _IgnoreSignals:
    """A ``worker_init_fn`` that makes the worker ignore signals, and calls the user's function.

    Args:
        ignored: the numbers of the signals.
        user_init: the user's ``worker_init_fn``, or None.
        is_child: True if the worker is a child of the main process, False if it is a child of a
            fork server.
    """

    def __init__(
        self, ignored: set[int], user_init: Callable[[int], Any] | None, *, is_child: bool
    ) -> None:
        self._ignored = ignored
        self._user_init = user_init
        self._is_child = is_child
        self._main_pid = os.getpid()

    def __call__(self, worker_id: int) -> None:
        # A loader may run its workers as threads of the main process. A thread must not ignore the
        # signals, because the whole process would then ignore them.
        if os.getpid() != self._main_pid:
            # A forked worker has copies of all objects of the main process. If its garbage
            # collector freed the copy of a loader with persistent workers, the finalizer of the
            # loader would end the workers of the main process. So the collector ignores the copies.
            gc.freeze()
            for number in self._ignored:
                signal.signal(number, signal.SIG_IGN)
            # The signals were blocked when this worker was started. A signal that has arrived since
            # then is dropped when it is unblocked here, because the worker ignores it now.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._ignored)
        if self._user_init is not None:
            self._user_init(worker_id)
        if self._is_child and os.getpid() != self._main_pid != os.getppid():
            # The main process has died since the worker was started. torch would not notice this,
            # because it looks up the parent for the first time after this function.
            os._exit(1)


def _handled_signals() -> set[int]:
    """Returns those of the signals SIGINT and SIGTERM that this process handles or ignores.

    A signal with the default action ends this process, so it may end the workers too. Other
    signals, such as SIGUSR1, are never returned, because a data set may use them itself.
    """
    usual = (signal.SIGINT, signal.SIGTERM)
    return {number for number in usual if signal.getsignal(number) != signal.SIG_DFL}


def _set_init(loader: Any, function: Any) -> None:
    loader.worker_init_fn = function


@contextmanager
def _blocked(numbers: set[int]) -> Iterator[None]:
    """Blocks signals in this thread, and in the processes that it starts in the body.

    A new worker ignores the signals only from its call of ``worker_init_fn`` on. Before this call,
    a signal that is not blocked would end the worker. With the start method "spawn", a worker takes
    seconds until this call. This process handles a blocked signal after the body.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with undo_on_exit(lambda: _set_mask(before), out_of_order=True):
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        yield


def _set_mask(mask: set[int]) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _start_helper_processes(context: Any) -> str:
    """Starts the helper processes of a ``multiprocessing`` context, before signals are blocked.

    Returns:
        The start method of the context, for example "fork".
    """
    method: str = context.get_start_method()
    if method != "fork":
        # Making a lock starts the resource tracker, a process of Python. Python unblocks signals
        # when it starts the tracker. So the tracker must run before the signals are blocked.
        context.Lock()
    if method == "forkserver":
        _start_fork_server()
    return method


def _start_fork_server() -> None:
    """Starts a fork server that survives signals, unless a fork server is running.

    The server imports ``fork_server.py``. This module makes the server ignore signals, and restores
    the signal handlers in the processes that the server forks. This process must not ignore or
    block SIGTERM while it starts the server: all processes that the server forks would inherit the
    setting, and ``Pool.terminate`` would wait for ever.
    """
    from multiprocessing import forkserver

    modules = forkserver._forkserver._preload_modules  # type: ignore[attr-defined]
    with undo_on_exit(lambda: forkserver.set_forkserver_preload(modules), out_of_order=True):
        forkserver.set_forkserver_preload([*modules, "ignite_hooks.data.fork_server"])
        forkserver.ensure_running()


def _adopt_workers(before: set[BaseProcess]) -> None:
    """Makes the method ``terminate`` of each new worker kill the worker.

    Args:
        before: the child processes before the workers were started. All other children are new.
    """
    for worker in multiprocessing.active_children():
        if worker.daemon and worker not in before:
            # The reference is weak, because a strong one would make the worker part of a reference
            # cycle. Its file descriptors would then stay open until a garbage collection.
            reference = ref(worker)
            worker.terminate = functools.partial(_kill, reference)  # type: ignore[method-assign]
            _own_workers.add(worker)
            _kill_at_exit(os.getpid())


def _keep_queues(loader: Any) -> None:
    """Keeps the queues of persistent workers open until the iterator of the workers is freed.

    The iterator uses the queues to tell its workers to end. If the loader is part of a reference
    cycle, the garbage collector would close the queues before it frees the iterator. The iterator
    would then wait 5 seconds for each worker, and kill the worker.
    """
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        # The finalizer holds the queues, and exists until the iterator is freed.
        finalize(iterator, list.clear, [*getattr(iterator, "_index_queues", ())]).atexit = False


def _kill(reference: "ref[BaseProcess]") -> None:
    """Kills a worker, unless its process object has been freed."""
    worker = reference()
    if worker is not None:
        worker.kill()


@functools.cache
def _kill_at_exit(pid: int) -> None:
    """Registers a finalizer that kills the remaining workers at the end of this process.

    The finalizer runs before ``multiprocessing`` terminates the workers and waits for them. It is
    registered with ``multiprocessing`` instead of ``atexit``: the functions of ``atexit`` do not
    run in the children that ``multiprocessing`` starts.

    Args:
        pid: the id of this process, which is the key of the cache. A forked child inherits the
            cache, but has another id, so it registers its own finalizer.
    """
    util.Finalize(None, _kill_all, exitpriority=0)


def _kill_all() -> None:
    if threading.current_thread() is threading.main_thread():
        # torch's handler of SIGCHLD raises an error when a worker dies.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in tuple(_own_workers):
        worker.kill()
        worker.join()
