"""Exchanges small values between processes on the CPU, without synchronizing a device."""

from collections.abc import Sequence
from typing import Any
from typing import TypeVar

import ignite.distributed as idist
import torch
from accelerate import Accelerator
from torch import distributed

from ignite_hooks.core.accelerators import collective_timeout

__all__ = [
    "broadcast_from_rank_0",
    "has_host_group",
    "host_group",
    "is_main_process",
    "min_over_ranks",
    "sum_over_ranks",
]

Value = TypeVar("Value")

# Empty until the first use, and then one pair: the default process group, and the gloo group that
# was made for it. If a process initializes torch.distributed again, `host_group` makes a new pair.
_groups: list[tuple[Any, Any]] = []


def has_host_group(accelerator: Accelerator) -> bool:
    """Returns whether ``torch.distributed`` connects several processes, as ``host_group`` needs.

    On a TPU there may be several processes that ``torch.distributed`` does not connect.
    """
    is_connected = distributed.is_available() and distributed.is_initialized()
    return accelerator.num_processes > 1 and is_connected


def host_group(accelerator: Accelerator) -> Any:
    """Returns the gloo group of all processes. The first call is collective.

    A process has one such group. Only the main thread uses the group, so that all ranks call its
    collectives in the same order. The collectives have the timeout that the user gave to the
    accelerator.

    Args:
        accelerator: an accelerator of several processes.
    """
    world = distributed.group.WORLD
    if not _groups or _groups[0][0] is not world:
        group = distributed.new_group(backend="gloo", timeout=collective_timeout(accelerator))
        _groups[:] = [(world, group)]
    return _groups[0][1]


def min_over_ranks(numbers: Sequence[int], accelerator: Accelerator) -> list[int]:
    """Returns, for each of ``numbers``, the minimum over all processes. Collective."""
    if accelerator.num_processes == 1:
        return list(numbers)
    if has_host_group(accelerator):
        smallest = torch.tensor(numbers)
        distributed.all_reduce(smallest, distributed.ReduceOp.MIN, group=host_group(accelerator))
    else:  # on a TPU
        own = torch.tensor([numbers], device=accelerator.device)
        smallest = accelerator.gather(own).amin(dim=0)
    return [int(each) for each in smallest]


def sum_over_ranks(numbers: Sequence[float], accelerator: Accelerator | None) -> list[float]:
    """Returns, for each of ``numbers``, the sum over all processes. Collective.

    Args:
        numbers: the numbers of this process.
        accelerator: the accelerator of the processes; None if there is none. The processes are then
            those of ``ignite.distributed``.
    """
    sums: Any
    if accelerator is not None and has_host_group(accelerator):
        sums = torch.tensor(numbers, dtype=torch.float64)
        distributed.all_reduce(sums, group=host_group(accelerator))
    elif idist.get_world_size() > 1:
        sums = torch.tensor(numbers, dtype=torch.float64, device=idist.device())
        sums = idist.all_reduce(sums)
    else:
        return list(numbers)
    return [float(each) for each in sums.tolist()]


def broadcast_from_rank_0(value: Value, accelerator: Accelerator) -> Value:
    """Returns the ``value`` of rank 0 on every rank. Collective.

    If ``torch.distributed`` is not in use, each process returns its own value.
    """
    if not has_host_group(accelerator):
        return value
    values: list[Any] = [value]
    distributed.broadcast_object_list(values, src=0, group=host_group(accelerator))
    shared: Value = values[0]
    return shared


def is_main_process(accelerator: Any) -> bool:
    """Returns whether this process has rank 0, by torch if ``accelerator`` is None."""
    if accelerator is not None:
        return bool(accelerator.is_main_process)
    is_initialized = distributed.is_available() and distributed.is_initialized()
    return not is_initialized or distributed.get_rank() == 0
