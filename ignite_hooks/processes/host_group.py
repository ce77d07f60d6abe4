"""Exchanges of small numbers between processes, on the host: no device is waited for."""

from collections.abc import Sequence
from typing import Any
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import distributed

from ignite_hooks.core.accelerators import timeout_of

__all__ = ["host_group", "of_rank_0", "smallest_of_all"]

Value = TypeVar("Value")

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


def smallest_of_all(numbers: Sequence[int], accelerator: Accelerator) -> list[int]:
    """Returns of each of ``numbers`` the smallest that any process gives. Collective."""
    if accelerator.num_processes == 1:
        return list(numbers)
    smallest = torch.tensor(numbers)
    distributed.all_reduce(smallest, distributed.ReduceOp.MIN, group=host_group(accelerator))
    return [int(each) for each in smallest]


def of_rank_0(value: Value, accelerator: Accelerator) -> Value:
    """Returns what rank 0 gives, on all ranks. Collective."""
    if accelerator.num_processes == 1:
        return value
    values: list[Any] = [value]
    distributed.broadcast_object_list(values, src=0, group=host_group(accelerator))
    shared: Value = values[0]
    return shared
