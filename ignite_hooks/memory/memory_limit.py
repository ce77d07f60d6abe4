"""The memory that this process can still take before the system ends it."""

from collections.abc import Iterator
from pathlib import Path

import psutil

__all__ = ["available_bytes"]

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
# For each version of cgroups: the limit, the use, and the entry of memory.stat that counts the
# cached pages of files, which the kernel drops when memory is short.
_FILES = {
    2: ("memory.max", "memory.current", b"inactive_file "),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", b"total_inactive_file "),
}


def available_bytes(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Returns the bytes that are left for this process.

    This is the memory that the machine has available. If the process, as in a container or under a
    job scheduler, is in a control group (cgroup) with a limit, it is what the limit leaves, if that
    is less.

    Args:
        cgroups: the folder at which the control groups are mounted.
        membership: the file that lists the control groups of this process.
    """
    machine: int = psutil.virtual_memory().available
    return max(0, min([machine, *_left_in_groups(cgroups, membership)]))


def _left_in_groups(cgroups: Path, membership: Path) -> Iterator[int]:
    """Yields what the limit of each control group of this process leaves, in bytes."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            version, root = 2, cgroups
        elif "memory" in controllers.split(","):
            version, root = 1, cgroups / "memory"
        else:
            continue
        # A limit of a group is also one of the groups in it. In a container, the path may be one
        # that only the host has, and the root is the group of the container.
        group = root / path.lstrip("/")
        for folder in [group, *group.parents]:
            if folder == root or root in folder.parents:
                yield from _left_in_group(folder, *_FILES[version])


def _left_in_group(folder: Path, limit: str, use: str, cached: bytes) -> Iterator[int]:
    try:
        most, used = int((folder / limit).read_bytes()), int((folder / use).read_bytes())
        statistics = (folder / "memory.stat").read_bytes()
        dropped = int((b"\n" + statistics).partition(b"\n" + cached)[2].partition(b"\n")[0])
    except (OSError, ValueError):  # no such group; "max" stands for no limit
        return
    yield most - used + dropped
