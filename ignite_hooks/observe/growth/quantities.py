"""The quantities that a look records, and their names in messages.

The name of a quantity is a key of ``read_process``, or a prefix with what is counted: ``OBJECTS``
with a type, ``TENSORS`` with a shape, dtype and device, or ``ENTRIES`` with the ``id`` of a
container.
"""

import io
import multiprocessing.process
import socket
import subprocess
import sys
import threading

import psutil
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ignite_hooks.memory.device import available_device_bytes
from ignite_hooks.memory.device import memory_in_use
from ignite_hooks.memory.mark import MIB
from ignite_hooks.memory.memory_limit import available_bytes
from ignite_hooks.memory.sampled import unshared_bytes_of_children
from ignite_hooks.observe.growth.chains import Chain
from ignite_hooks.observe.report.page_process import page_processes

__all__ = [
    "COUNTS",
    "ENTRIES",
    "LIMITS",
    "MEMORY",
    "OBJECTS",
    "TENSORS",
    "is_noise",
    "left_until_limit",
    "precedence",
    "read_process",
    "shown_name",
    "types_behind",
]

OBJECTS, TENSORS, ENTRIES = "objects of type ", "tensors ", "entries of "

MEMORY = {
    "ram_bytes": "resident memory",
    "worker_ram_bytes": "memory of worker processes",
    "device_bytes": "device memory",
}
# From the most telling to the least: a process has threads and open files.
COUNTS = {
    "worker_processes": "worker processes",
    "threads": "threads",
    "open_files": "open files",
}
LIMITS = {
    "ram_bytes": "memory",
    "worker_ram_bytes": "memory",
    "device_bytes": "device memory",
    "open_files": "open files",
}
"""The quantities that have a limit, and what there is a limit of."""

# Python objects that stand for the counted things, in which a search for references can begin.
_TYPES: dict[str, tuple[type, ...]] = {
    "open_files": (io.IOBase.__mro__[1], socket.socket),  # the base of all files, in C
    "threads": (threading.Thread,),
    "worker_processes": (multiprocessing.process.BaseProcess, subprocess.Popen),
    "worker_ram_bytes": (_MultiProcessingDataLoaderIter,),
}

# A growth of memory below one of these values is noise of the allocator.
_MIN_MEMORY_GROWTH = 8 * MIB
_MIN_MEMORY_SHARE = 0.01
_MIN_BLOCKS = 200  # of Python's small objects

# Types that tell little about a leak, from the most telling to the least.
_GENERAL_TYPES = ("function", "dict", "list", "set", "tuple", "cell")


def read_process() -> dict[str, float]:
    """Returns sizes and counts of this process, which need no search through its objects.

    The memory of this process is without mapped files and shared memory, because the kernel drops
    the pages of a file when memory is short. The memory of a worker is what the worker does not
    share with this process. A process that makes a page for ``TrainingReport`` is no worker.
    "blocks" is the number of memory blocks that Python has allocated. This number rises also with
    numbers and texts, which the garbage collector does not track.
    """
    process = psutil.Process()
    memory = process.memory_info()
    pages = {*page_processes}
    children = [each.pid for each in process.children(recursive=True) if each.pid not in pages]
    values = {
        "ram_bytes": float(memory.rss - getattr(memory, "shared", 0)),
        "worker_processes": float(len(children)),
        "worker_ram_bytes": float(unshared_bytes_of_children(but=pages)),
        "open_files": float(_count_open_files(process)),
        "threads": float(process.num_threads()),
        "blocks": float(sys.getallocatedblocks()),
    }
    device = memory_in_use()
    if device is not None:
        values["device_bytes"] = float(device[1])
    return values


def _count_open_files(process: psutil.Process) -> int:
    count: int = process.num_handles() if sys.platform == "win32" else process.num_fds()
    return count


def left_until_limit(name: str) -> float | None:
    """Returns how far a quantity can still grow; None if no limit is known."""
    if name == "device_bytes":
        return available_device_bytes()
    if name == "open_files":
        return _open_files_left()
    return available_bytes() if name in LIMITS else None


def _open_files_left() -> float | None:
    try:
        import resource  # only on Unix
    except ImportError:
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    is_unlimited = limit == resource.RLIM_INFINITY
    return None if is_unlimited else limit - _count_open_files(psutil.Process())


def is_noise(name: str, grown: float, last: float) -> bool:
    """Returns whether a growth is too small to count.

    Args:
        name: the name of the quantity.
        grown: the growth over all looks that are evidence.
        last: the value at the last look.
    """
    if name in MEMORY:
        return grown < max(_MIN_MEMORY_GROWTH, _MIN_MEMORY_SHARE * last)
    return name == "blocks" and grown < _MIN_BLOCKS


def types_behind(name: str) -> tuple[type, ...]:
    """Returns the types of the objects that stand for a size or count of the process."""
    return _TYPES.get(name, ())


def precedence(name: str) -> tuple[int, str]:
    """Returns a key by which the most telling of several quantities comes first."""
    type_name = name.removeprefix(OBJECTS)
    ranks = (
        *(name == each for each in COUNTS),
        name in MEMORY,
        name.startswith(TENSORS),
        name.startswith(ENTRIES),
        "." in type_name,  # a class of a module
        type_name not in _GENERAL_TYPES,
        *(type_name == each for each in _GENERAL_TYPES),
    )
    return ranks.index(True), name


def shown_name(name: str, chain: Chain | None) -> str:
    """Returns the name of a quantity in messages; ``chain`` leads to one of its objects."""
    if name.startswith(ENTRIES) and chain is not None:
        return f"{ENTRIES}{chain.holder or chain.path}"
    return MEMORY.get(name) or COUNTS.get(name, name)
