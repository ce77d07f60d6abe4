"""Loader workers that outlive a signal to the whole process group.

A job scheduler signals every process of a job, and Ctrl-C every process of a terminal. The main
process handles that signal: it saves, say, and for that it needs the batches up to the next step
boundary. So a worker ignores each signal that the main process handles.

A worker that ignores SIGTERM is not ended by ``Process.terminate``, which torch and
``multiprocessing`` use for workers that do not end when they are told to. These are killed.

One private member of Python is used here: ``multiprocessing.forkserver._forkserver``, whose
``_preload_modules`` are the modules that a fork server imports as it starts; there is a public
function to set them, and none to read them. ``tests/data/test_workers.py`` fails when that changes
its meaning. Four of torch are: ``DataLoader._iterator``, the iterator whose workers stay, its
``_workers``, the processes, its ``_index_queues``, by which they are told to end, and its
``_index_sampler``, which it iterates to know what they are to load. The same tests fail with the
first three, and ``tests/data/test_worker_states.py`` with the last.
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

from ignite_hooks.core.restoring import restored

__all__ = [
    "forget_dead_workers",
    "ignored_by_workers",
    "keep_workers",
    "started",
    "starting_workers",
]

ignored_by_workers: WeakKeyDictionary[object, tuple[int, ...]] = WeakKeyDictionary()
"""The signals that workers ignore from their first moment on, by who asks for that."""

_own: "WeakSet[BaseProcess]" = WeakSet()  # the workers that this process has started
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_own.clear)


def started(loader: Any) -> Iterator[Any]:
    """Returns ``iter(loader)``; the workers of a ``DataLoader`` outlive signals."""
    with starting_workers(loader):
        return iter(loader)


@contextmanager
def starting_workers(loader: Any, *, blocks: bool = True) -> Iterator[None]:
    """Has the workers of a ``DataLoader`` that start in the body ignore signals.

    Args:
        loader: the torch loader, or one that has its attributes.
        blocks: whether the signals that others ask workers to ignore wait until the body is done,
            in this process too. The body must then be short.
    """
    if not getattr(loader, "num_workers", 0) or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    if loader.persistent_workers and getattr(loader, "_iterator", None) is not None:
        yield  # they are there already
        return
    asked = {number for numbers in ignored_by_workers.values() for number in numbers}
    before = set(multiprocessing.active_children())
    found = loader.worker_init_fn
    method = _prepare_start(loader.multiprocessing_context or multiprocessing)
    with ExitStack() as stack:
        stack.callback(_adopt_workers, before)
        stack.callback(_keep_queues, loader)
        if blocks:
            stack.enter_context(_blocked(asked))
        # Alone: a feed, whose generator this may be in, can be closed at any time.
        stack.enter_context(restored(lambda: _set_init(loader, found), alone=True))
        _set_init(loader, _Sparing(asked | _handled(), found, is_child=method != "forkserver"))
        yield


def forget_dead_workers(loader: Any) -> None:
    """Has a loader start workers afresh if one of those that should have stayed is dead.

    torch would ask it for batches in each further pass, and fail each time.
    """
    iterator = getattr(loader, "_iterator", None)
    if any(not worker.is_alive() for worker in getattr(iterator, "_workers", ())):
        loader._iterator = None


def keep_workers(iterator: Any, loader: Any, order: Any) -> None:
    """Has the workers of an iterator stay with another loader.

    Args:
        iterator: an iterator of a loader whose workers stay.
        loader: the loader that they stay with from now on.
        order: what the workers load in a whole pass of it.
    """
    iterator._index_sampler = order
    loader._iterator = iterator


class _Sparing:
    """The ``worker_init_fn`` of a loader: ignores signals, and calls the one that was found.

    Args:
        ignored: the numbers of the signals.
        found: the user's ``worker_init_fn``, or None.
        is_child: whether the worker's parent is this process, and not a fork server.
    """

    def __init__(
        self, ignored: set[int], found: Callable[[int], Any] | None, *, is_child: bool
    ) -> None:
        self._ignored = ignored
        self._found = found
        self._is_child = is_child
        self._main = os.getpid()

    def __call__(self, worker_id: int) -> None:
        if os.getpid() != self._main:  # else the worker is a thread
            # A loader with workers that stay and that nobody holds would be collected here too, as
            # a copy: it would tell its workers, which are not those of this process, to end.
            gc.freeze()
            for number in self._ignored:
                signal.signal(number, signal.SIG_IGN)
            # They were blocked when this process was started; what has come meanwhile is dropped.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._ignored)
        if self._found is not None:
            self._found(worker_id)
        if self._is_child and os.getpid() != self._main != os.getppid():
            # A worker of torch looks who its parent is only now: it would take the one of orphans
            # for it, and wait for ever.
            os._exit(1)


def _handled() -> set[int]:
    """Returns the usual signals but for those that end this process at once, and workers with it.

    Others, SIGUSR1 say, a data set may use for itself.
    """
    usual = (signal.SIGINT, signal.SIGTERM)
    return {number for number in usual if signal.getsignal(number) != signal.SIG_DFL}


def _set_init(loader: Any, function: Any) -> None:
    loader.worker_init_fn = function


@contextmanager
def _blocked(numbers: set[int]) -> Iterator[None]:
    """Blocks signals in this thread, and so in the processes that it starts.

    A worker can be hit before it gets to its ``worker_init_fn``, and with "spawn" that takes
    seconds. In this process a blocked signal is not lost: it is handled after the body.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with restored(lambda: _set_mask(before), alone=True):
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        yield


def _set_mask(mask: set[int]) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _prepare_start(context: Any) -> str:
    """Starts what processes of this context need, before signals are blocked.

    Returns:
        How they are started, "fork" say.
    """
    method: str = context.get_start_method()
    if method != "fork":
        context.Lock()  # starts the resource tracker, after which Python unblocks signals
    if method == "forkserver":
        _start_fork_server()
    return method


def _start_fork_server() -> None:
    """Starts the fork server, if none is running, as one that outlives signals.

    A server that merely inherits an ignored or blocked SIGTERM would hand it on to every process
    that it forks, and ``Pool.terminate`` would wait for ever.
    """
    from multiprocessing import forkserver

    found = forkserver._forkserver._preload_modules  # type: ignore[attr-defined]
    with restored(lambda: forkserver.set_forkserver_preload(found), alone=True):
        forkserver.set_forkserver_preload([*found, "ignite_hooks.data.fork_server"])
        forkserver.ensure_running()


def _adopt_workers(before: set[BaseProcess]) -> None:
    """Has the processes started since then killed where they would be terminated."""
    for worker in multiprocessing.active_children():
        if worker.daemon and worker not in before:
            of_worker = ref(worker)  # no circle, which would keep its file descriptors for longer
            worker.terminate = functools.partial(_kill, of_worker)  # type: ignore[method-assign]
            _own.add(worker)
            _kill_at_exit(os.getpid())


def _keep_queues(loader: Any) -> None:
    """Has a garbage collection of the loader end the workers that stay.

    It would close their queues before the iterator tells them to end, and wait 5 seconds for each.
    """
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        # What holds the queues until then is no garbage, and so neither are they.
        finalize(iterator, list.clear, [*getattr(iterator, "_index_queues", ())]).atexit = False


def _kill(of_worker: "ref[BaseProcess]") -> None:
    worker = of_worker()
    if worker is not None:
        worker.kill()


@functools.cache
def _kill_at_exit(pid: int) -> None:
    """Kills the workers that are left when the process ``pid`` ends, once for each process.

    That is before ``multiprocessing`` terminates them and waits. Its own finalizers, unlike
    ``atexit``, are called at the end of its child processes too.
    """
    util.Finalize(None, _kill_all, exitpriority=0)


def _kill_all() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise
    for worker in tuple(_own):
        worker.kill()
        worker.join()
