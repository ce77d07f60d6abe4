import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from ignite.engine import Engine
from torch.utils.data import DataLoader
from torch.utils.data import Dataset
from torch.utils.data import IterableDataset
from torch.utils.data import _utils

from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.data.workers import ignored_by_workers
from tests.memory.spikes import forked
from tests.reference import make_model
from tests.versions import needs

TERM, INT, USR1 = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1

marked = []  # in a worker: the numbers with which ``worker_init_fn`` was called


def mark(worker_id):
    marked.append(worker_id)


def seen_here():
    """Returns which of three signals are ignored, how many are blocked, and the calls of `mark`."""
    ignored = [signal.getsignal(number) == signal.SIG_IGN for number in (TERM, INT, USR1)]
    return torch.tensor([*ignored, len(signal.pthread_sigmask(signal.SIG_BLOCK, [])), len(marked)])


def outlive_parent(worker_id):
    """Delays the start of the second worker until the main process has ended."""
    while worker_id == 1 and os.getppid() == multiprocessing.parent_process().pid:
        os.sched_yield()


class Seen(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return seen_here()


class Stream(IterableDataset):
    def __iter__(self):
        yield from (seen_here() for _ in range(2))


def test_freed_persistent_workers_end_without_being_killed():
    loader = DataLoader(Seen(), num_workers=2, persistent_workers=True)
    loader.itself = loader  # a reference cycle, which a garbage collection frees
    feed = DataFeed(loader)
    assert len([*feed]) == 4
    workers = loader._iterator._workers
    del feed, loader
    gc.collect()
    assert [worker.exitcode for worker in workers] == [0, 0]  # not killed, after 5 seconds each


class Requester:
    """A key of ``ignored_by_workers``."""


@contextmanager
def ignoring(*numbers):
    requester = Requester()
    ignored_by_workers[requester] = numbers
    yield
    del ignored_by_workers[requester]


@contextmanager
def handler(number, handler):
    found = signal.signal(number, handler)
    yield
    signal.signal(number, found)


def rows(feed):
    return [row.tolist() for batch in feed for row in batch]


def accelerator(dispatches=False):
    config = DataLoaderConfiguration(dispatch_batches=dispatches)
    return Accelerator(cpu=True, dataloader_config=config)


@pytest.mark.parametrize("data", [Seen, Stream])
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("prepares", ["no", "as it is", "to dispatch"])
def test_workers_ignore_requested_signals_and_are_initialised(data, persistent, prepares):
    loader = DataLoader(data(), 2, num_workers=1, persistent_workers=persistent)
    loader.worker_init_fn = mark
    feed = DataFeed(loader, None if prepares == "no" else accelerator(prepares == "to dispatch"))
    with handler(TERM, signal.SIG_DFL), handler(INT, signal.default_int_handler):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        with ignoring(TERM, USR1):
            first = rows(feed)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
        assert first == [[1, 1, 1, 0, 1]] * len(first) != []
        if not persistent:  # else they are those of the first pass
            assert all(row == [0, 1, 0, 0, 1] for row in rows(feed))
    assert loader.worker_init_fn is mark
    assert getattr(feed.loader, "base_dataloader", loader).worker_init_fn is mark


@pytest.mark.parametrize("max_batches", [None, 1])
@pytest.mark.parametrize("prepares", [False, True])
def test_workers_of_a_plain_ignite_evaluator_ignore_signals(max_batches, prepares):
    loader = DataLoader(Seen(), 2, num_workers=1, worker_init_fn=mark)
    data = accelerator().prepare(loader) if prepares else loader
    given = []
    evaluator = Engine(lambda engine, batch: given.extend(batch.tolist()))
    trainer = Engine(lambda engine, batch: None)
    Validation(evaluator, data, every_epochs=1, max_batches=max_batches).attach(trainer)
    with ignoring(TERM, INT, USR1):
        trainer.run([0])
    assert given == [[1, 1, 1, 0, 1]] * len(given) != []
    assert getattr(data, "base_dataloader", data).worker_init_fn is mark


def test_workers_of_a_resumed_pass_ignore_signals():
    feed = DataFeed(DataLoader(Seen(), 2, num_workers=1, worker_init_fn=mark))
    with ignoring(TERM, INT, USR1):
        next(iter(feed))
        feed.close()
        assert rows(feed) == [[1, 1, 1, 0, 1]] * 2


@pytest.mark.parametrize("persistent", [False, True])
def test_loader_in_two_iterations_is_restored(persistent):
    loader = DataLoader(Seen(), 2, num_workers=1, persistent_workers=persistent)
    loader.worker_init_fn = mark
    preparing = accelerator()
    prepared = preparing.prepare(loader)
    seen = []
    evaluator = create_supervised_evaluator(
        make_model(),
        accelerator=preparing,
        prepare_batch=lambda batch, **_: (torch.zeros(2, 4), batch),
        output_transform=lambda x, y, y_pred: seen.extend(y.tolist()),
    )
    with handler(TERM, lambda number, frame: None):
        for batch in DataFeed(prepared, preparing):
            seen += batch.tolist()
            evaluator.run(prepared)
            assert prepared.base_dataloader.worker_init_fn is mark
    assert len(seen) == 12
    assert all(row == [1, 1, 0, 0, 1] for row in seen)


@pytest.mark.parametrize(
    ("found", "ignores"), [(signal.SIG_DFL, 0), (signal.SIG_IGN, 1), (lambda *_: None, 1)]
)
def test_workers_ignore_sigterm_unless_it_ends_the_main_process(found, ignores):
    with handler(TERM, found):
        assert [row[0] for row in rows(DataFeed(DataLoader(Seen(), 4, num_workers=1)))] == [
            ignores
        ] * 4


def test_failed_start_restores_loader_and_signal_mask():
    loader = DataLoader(Seen(), 2, num_workers=1, worker_init_fn=mark)
    loader.batch_sampler.sampler.__class__ = FailingSampler
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with ignoring(TERM), pytest.raises(ZeroDivisionError):
        next(iter(DataFeed(loader)))
    assert loader.worker_init_fn is mark
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


class FailingSampler(torch.utils.data.SequentialSampler):
    def __iter__(self):
        raise ZeroDivisionError


hits = []  # signals that the next forked process sends to itself, before it does anything else
os.register_at_fork(after_in_child=lambda: [os.kill(os.getpid(), number) for number in hits])


@pytest.mark.parametrize("number", [TERM, USR1])
def test_signal_before_a_forked_worker_is_ready_is_dropped(number):
    with handler(number, signal.SIG_DFL), ignoring(number):
        hits.append(number)
        try:
            batches = iter(DataFeed(DataLoader(Seen(), 4, num_workers=2)))
            assert len(next(batches)) == 4
        finally:
            hits.clear()
        batches.close()


class Hit(Seen):
    """Sends a signal to the process in which it is unpickled."""

    def __setstate__(self, state):
        os.kill(os.getpid(), TERM)


def test_signal_before_a_spawned_worker_is_ready_is_dropped():
    def in_child():  # which multiprocessing's resource tracker ends with
        loader = DataLoader(Hit(), 4, num_workers=1, multiprocessing_context="spawn")
        with ignoring(TERM):
            return rows(DataFeed(loader))

    assert forked(in_child) == [[1, 1, 0, 0, 0]] * 4


class Stuck(Seen):
    """Gives its first two samples, and then blocks."""

    def __getitem__(self, index):
        if index > 1:
            threading.Event().wait()
        return torch.tensor(os.getpid())


@needs("torch>=2.7")
@pytest.mark.parametrize("dispatches", [False, True])
def test_stuck_worker_is_killed_when_the_iteration_ends(monkeypatch, dispatches):
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.1)  # seconds that torch waits
    feed = DataFeed(DataLoader(Stuck(), 1, num_workers=2), accelerator(dispatches))
    with ignoring(TERM):
        batches = iter(feed)
        pid = int(next(batches))
        (worker,) = (each for each in multiprocessing.active_children() if each.pid == pid)
        feed.close()
    assert worker.exitcode == -signal.SIGKILL


class Pids(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.tensor([index, os.getpid()])


class OwnLoader(DataLoader):
    def __iter__(self):
        yield from super().__iter__()


class LoaderOfLoader:
    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return iter(self.loader)


@pytest.mark.parametrize(
    ("make", "persistent"),
    [
        (DataLoader, False),
        (DataLoader, True),
        (lambda data, **options: accelerator().prepare(DataLoader(data, **options)), True),
        (lambda data, **options: accelerator(True).prepare(DataLoader(data, **options)), False),
        (OwnLoader, False),
        (OwnLoader, True),
        (lambda data, **options: LoaderOfLoader(DataLoader(data, **options)), False),
    ],
)
def test_dead_worker_fails_once_and_the_pass_continues(make, persistent):
    def new_feed():
        torch.manual_seed(1)
        loader = make(Pids(), shuffle=True, num_workers=1, persistent_workers=persistent)
        return DataFeed(loader, accelerator())

    def take(feed, count, pids):
        taken, batches = [], iter(feed)
        for _ in range(count):
            ((index, pid),) = next(batches).tolist()
            pids.append(pid)
            taken.append((index, float(torch.rand(()))))  # as dropout draws
        feed.finish()
        return taken, batches

    pids, whole = [], new_feed()
    expected = [take(whole, 6, pids)[0] for _ in range(3)]
    feed = new_feed()
    assert take(feed, 6, pids)[0] == expected[0]
    taken, batches = take(feed, 2, pids)
    assert taken == expected[1][:2]
    (worker,) = (each for each in multiprocessing.active_children() if each.pid == pids[-1])
    random = torch.get_rng_state()
    with pytest.raises(RuntimeError, match=r"exited unexpectedly|killed by signal"):
        kill_and_continue(worker, batches)
    feed.seek((1, 2))
    torch.set_rng_state(random)
    assert take(feed, 4, pids)[0] == expected[1][2:]
    assert take(feed, 6, pids)[0] == expected[2]


def kill_and_continue(worker, batches):
    worker.kill()
    worker.join()  # torch's handler of SIGCHLD raises here, or in the next batch
    deque(batches, maxlen=0)


EXIT = """
import multiprocessing, os, signal, sys
from torch.utils.data import DataLoader
from ignite_hooks.data.workers import ignored_by_workers, iterate_with_workers
from tests.data.test_workers import Stuck

def main():
    global batches, loader
    ignored_by_workers[Stuck] = (signal.SIGTERM,)
    loader = DataLoader(Stuck(), 1, num_workers=2, persistent_workers=True)
    batches = iterate_with_workers(loader)
    print(int(next(batches)), flush=True)

if sys.argv[1] == "in a child":
    process = multiprocessing.Process(target=main)
    process.start()
    process.join()
else:
    main()
"""


def run(program, *arguments, **options):
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        text=True,
        timeout=120,
        capture_output=True,
        **options,
    )


@pytest.mark.parametrize("where", ["in the main process", "in a child"])
def test_workers_do_not_keep_a_process_from_ending(where):
    ended = run(EXIT, where)
    assert (ended.returncode, ended.stderr) == (0, "")
    with pytest.raises(ProcessLookupError):
        os.kill(int(ended.stdout), 0)


ORPHANS = """
import os, signal, sys
from torch.utils.data import DataLoader
from ignite_hooks.data.workers import ignored_by_workers, iterate_with_workers
from tests.data.test_workers import Seen, outlive_parent
from tests.versions import needs

ignored_by_workers[Seen] = (signal.SIGTERM,)
init = outlive_parent if sys.argv[1] == "late" else None
loader = DataLoader(Seen(), 1, num_workers=2, persistent_workers=True, worker_init_fn=init)
next(iterate_with_workers(loader))
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("start", ["early", "late"])
def test_workers_end_when_a_signal_kills_the_main_process(start):
    # The output of a program ends when all that could write there have ended, its workers too.
    assert run(ORPHANS, start).returncode == -TERM
