"""Memory that is taken and given back at once, in this process and in forked children."""

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
"""What a program of its own begins with, to import a module of the package without all of it."""


@contextmanager
def taken(mib):
    """Resident memory that the allocator has no part in: glibc keeps freed blocks below 32 MiB."""
    with mmap(-1, mib * MIB, MAP_PRIVATE | MAP_ANONYMOUS) as block:
        for page in range(0, mib * MIB, PAGESIZE):
            block[page] = 1
        yield block


def spike(mib):
    with taken(mib):
        pass


def descriptors():
    """What each open descriptor of this process leads to."""
    links = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            links[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one of the listing
            continue
    return links


def of_marks():
    """The descriptors of high-water marks among them."""
    links = descriptors().values()
    return sorted(link for link in links if Path(link).name in ("clear_refs", "status", "statm"))


def forked(act):
    """What ``act`` returns in a forked child."""
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
    """A forked child that does what it is told, until the end of the ``with``."""

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
        """What ``act`` returns there."""
        self._pipe.send((act, arguments))
        return self._pipe.recv()

    def end(self):
        """Ends it, and leaves a zombie."""
        self._pipe.send(None)
        self._pipe.close()
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def bury(self):
        """Ends it for good."""
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
    """Gives back what was kept last."""
    _kept.pop().__exit__(None, None, None)


def keep_mapped(path):
    """Reads a file in place, and keeps it."""
    with open(path, "rb") as file:
        block = mmap(file.fileno(), 0, MAP_PRIVATE, PROT_READ)
    for page in range(0, len(block), PAGESIZE):
        block[page]
    _kept.append(block)


_descendants = []


def bear():
    """Has a child of its own."""
    _descendants.append(Child())


def bury():
    """Ends that child."""
    _descendants.pop().bury()


def let_child_do(act, *arguments):
    """Has that child do something."""
    return _descendants[-1].do(act, *arguments)


def program(*arguments):
    """What a Python that is called with these arguments writes; it must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=DEADLINE
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
