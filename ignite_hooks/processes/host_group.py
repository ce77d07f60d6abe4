"""Exchanges of small numbers between processes, on the host: no device is waited for."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed

from ignite_hooks.core.accelerators import timeout_of

__all__ = ["host_group", "smallest_of_all"]

_made: list[tuple[Any, Any]] = []  # the group of all processes, and ours


def host_group(accelerator: Accelerator) -> Any:
    """Returns the gloo group of all processes for the exchanges of a run; collective at first.

    There is one in a process, for the main thread. A collective of it fails after the timeout that
    the user gave the accelerator.

    Args:
        accelerator: one of several processes.
    """
    world = distributed.group.WORLD
    if not _made or _made[0][0] is not world:
        group = distributed.new_group(backend="gloo", timeout=timeout_of(accelerator))
        _made[:] = [(world, group)]
    return _made[0][1]


def smallest_of_all(number: int, accelerator: Accelerator) -> int:
    """Returns the smallest ``number`` of all processes. Collective."""
    if accelerator.num_processes == 1:
        return number
    smallest = torch.tensor([number])
    distributed.all_reduce(smallest, distributed.ReduceOp.MIN, group=host_group(accelerator))
    return int(smallest)
