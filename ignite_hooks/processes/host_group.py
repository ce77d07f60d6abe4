"""Exchanges of small numbers between processes, on the host: no device is waited for."""

from collections.abc import Sequence
from typing import Any
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import distributed

from ignite_hooks.core.accelerators import timeout_of

__all__ = ["has_host_group", "host_group", "of_rank_0", "smallest_of_all"]

Value = TypeVar("Value")

_made: list[tuple[Any, Any]] = []  # the group of all processes, and ours


def has_host_group(accelerator: Accelerator) -> bool:
    """Returns whether there are several processes, which torch connects. On a TPU it does not."""
    is_connected = distributed.is_available() and distributed.is_initialized()
    return accelerator.num_processes > 1 and is_connected


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
    if has_host_group(accelerator):
        smallest = torch.tensor(numbers)
        distributed.all_reduce(smallest, distributed.ReduceOp.MIN, group=host_group(accelerator))
    else:
        own = torch.tensor([numbers], device=accelerator.device)
        smallest = accelerator.gather(own).amin(dim=0)
    return [int(each) for each in smallest]


def of_rank_0(value: Value, accelerator: Accelerator) -> Value:
    """Returns what rank 0 gives, on all ranks that torch connects. Collective."""
    if not has_host_group(accelerator):
        return value
    values: list[Any] = [value]
    distributed.broadcast_object_list(values, src=0, group=host_group(accelerator))
    shared: Value = values[0]
    return shared
