"""Helpers that take memory and free it at once, in this process and in forked children."""

import gc
import os
import pickle
import signal
import subprocess
import sys
import traceback
from contextlib import contextmanager
from mmap import MAP_ANONYMOUS
from mmap import MAP_PRIVATE
from mmap import PAGESIZE
from mmap import PROT_READ
from mmap import mmap
from multiprocessing import Pipe
from pathlib import Path

MIB = 2**20
DEADLINE = 30  # seconds, for a child that hangs

ROOT = Path(__file__).parents[2]
LEAN = f"""
import sys
import types
sys.path.insert(0, {str(ROOT)!r})
for name in ("ignite_hooks", "ignite_hooks.handlers"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [{str(ROOT)!r} + "/" + name.replace(".", "/")]
"""
"""The first lines of a separate program that imports one module of the package."""


@contextmanager
def taken(mib):
    """Takes resident memory with mmap, as glibc's allocator keeps freed blocks below 32 MiB."""
    with mmap(-1, mib * MIB, MAP_PRIVATE | MAP_ANONYMOUS) as block:
        for page in range(0, mib * MIB, PAGESIZE):
            block[page] = 1
        yield block


def spike(mib):
    with taken(mib):
        pass


def descriptors():
    """Returns the file behind each open descriptor of this process."""
    links = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            links[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return links


def of_marks():
    """Returns the files of high-water marks that are open."""
    links = descriptors().values()
    return sorted(link for link in links if Path(link).name in ("clear_refs", "status", "statm"))


def forked(act):
    """Returns the result of ``act`` in a forked child."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(DEADLINE)
            answer = pickle.dumps(act())
            with open(there, "wb") as answers:
                answers.write(answer)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(there)
    with open(here, "rb") as answers:
        answer = answers.read()
    assert os.waitpid(child, 0)[1] == 0
    return pickle.loads(answer)


class Child:
    """A forked child that executes functions, until the end of the ``with``."""

    def __init__(self):
        self._pipe, there = Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                signal.alarm(DEADLINE)
                gc.disable()  # a collection writes to every object, whose page is then its own
                while (task := there.recv()) is not None:
                    act, arguments = task
                    there.send(act(*arguments))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        there.close()

    def do(self, act, *arguments):
        """Returns the result of ``act`` in the child."""
        self._pipe.send((act, arguments))
        return self._pipe.recv()

    def end(self):
        """Ends the child, which stays as a zombie."""
        self._pipe.send(None)
        self._pipe.close()
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def bury(self):
        """Ends the child and reaps it."""
        self.end()
        assert os.waitpid(self.pid, 0)[1] == 0

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        if not self._pipe.closed:
            self.bury()


_kept = []


def keep(mib):
    """Takes memory and keeps it."""
    kept = taken(mib)
    kept.__enter__()
    _kept.append(kept)


def give_back():
    """Frees the memory that was kept last."""
    _kept.pop().__exit__(None, None, None)


def keep_mapped(path):
    """Maps a file, reads it, and keeps the mapping."""
    with open(path, "rb") as file:
        block = mmap(file.fileno(), 0, MAP_PRIVATE, PROT_READ)
    for page in range(0, len(block), PAGESIZE):
        block[page]
    _kept.append(block)


_descendants = []


def bear():
    """Forks a grandchild."""
    _descendants.append(Child())


def bury():
    """Ends the grandchild."""
    _descendants.pop().bury()


def let_child_do(act, *arguments):
    """Executes a function in the grandchild."""
    return _descendants[-1].do(act, *arguments)


def program(*arguments):
    """Returns the output of a Python process with these arguments, which must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=DEADLINE
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
