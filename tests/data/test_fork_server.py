from tests.data.test_workers import run

FORK_SERVER = """
import multiprocessing, os, signal
from multiprocessing import forkserver
from torch.utils.data import DataLoader
from ignite_hooks.data.workers import ignored_by_workers, iterate_with_workers
from tests.data.test_workers import Seen

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "json"])
    ignored_by_workers[Seen] = (signal.SIGTERM,)
    signal.signal(signal.SIGTERM, lambda *_: None)
    loader = DataLoader(Seen(), 1, num_workers=1, multiprocessing_context="forkserver")
    batches = iterate_with_workers(loader)
    next(batches)
    os.killpg(0, signal.SIGTERM)  # to the server, the worker and this process
    print(len(list(batches)), forkserver._forkserver._preload_modules)
    with context.Pool(1) as pool:  # terminates its processes, and waits for them
        print(pool.map(abs, [-1]))
"""


def test_fork_server_survives_signals_that_end_its_processes():
    ended = run(FORK_SERVER, start_new_session=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.split("\n") == ["3 ['__main__', 'json']", "[1]", ""]
