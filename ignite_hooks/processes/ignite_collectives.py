"""Ignite's collectives for ranks that have unequal numbers of samples.

Ignite's metrics call functions of ``ignite.distributed``. Those that keep all predictions, as
``EpochMetric`` and ``ROC_AUC`` do, gather them as if each rank had as many, which ends a process
with gloo. A rank without a sample raises before the others reduce, and these wait for it.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import ignite.distributed as idist
import torch
from torch import distributed

from ignite_hooks.core.restoring import restored

__all__ = ["among_ranks", "among_unequal_ranks"]


@contextmanager
def among_unequal_ranks() -> Iterator[None]:
    """Ignite's collectives take what differs in size between ranks, and send numbers exactly.

    ``idist.all_gather`` joins tensors of unequal sizes one after another, and ``idist.broadcast``
    does not round a number to single precision.
    """
    functions = {
        "all_gather": _all_gather(idist.all_gather),
        "broadcast": _broadcast(idist.broadcast),
    }
    with _replaced(functions):
        yield


@contextmanager
def among_ranks(ranks: Sequence[int], group: Any) -> Iterator[None]:
    """Ignite's collectives are those of some ranks, as if there were no others.

    Args:
        ranks: these ranks; this process is one of them.
        group: a group of torch for them.
    """
    place, all_reduce = list(ranks).index(distributed.get_rank()), idist.all_reduce

    def reduce(tensor: Any, op: str = "SUM", group: Any = group) -> Any:
        return all_reduce(tensor, op, group)

    def broadcast(tensor: Any, src: int = 0, safe_mode: bool = False) -> Any:
        sent = [tensor.cpu() if isinstance(tensor, torch.Tensor) else tensor]
        distributed.broadcast_object_list(sent, src=ranks[src], group=group)
        is_moved = isinstance(sent[0], torch.Tensor)
        return sent[0].to(idist.device()) if is_moved else sent[0]

    functions: dict[str, Callable[..., Any]] = {
        "all_gather": _all_gather(idist.all_gather, group, len(ranks)),
        "all_reduce": reduce,
        "barrier": lambda: distributed.barrier(group),
        "broadcast": broadcast,
        "get_rank": lambda: place,
        "get_world_size": lambda: len(ranks),
    }
    with _replaced(functions):
        yield


@contextmanager
def _replaced(functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    found = {name: getattr(idist, name) for name in functions}

    def restore() -> None:
        for name, function in found.items():
            setattr(idist, name, function)

    with restored(restore):
        for name, function in functions.items():
            setattr(idist, name, function)
        yield


def _all_gather(
    whole: Callable[..., Any], default: Any = None, size: int | None = None
) -> Callable[..., Any]:
    """Returns a function like ``idist.all_gather`` for tensors of unequal sizes.

    Args:
        whole: that function.
        default: the group where none is given.
        size: its number of ranks; default: that of all.
    """

    def all_gather(tensor: Any, group: Any = default) -> Any:
        is_single = not isinstance(tensor, torch.Tensor) or tensor.dim() == 0
        ranks = idist.get_world_size() if size is None else size
        if is_single or group is not default or ranks == 1:
            return whole(tensor, group=group)
        own = torch.tensor([tensor.shape], device=tensor.device)
        shapes = whole(own, group=group).tolist()
        if all(shape == shapes[0] for shape in shapes):
            return whole(tensor, group=group)
        largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
        padded = tensor.new_zeros(largest)
        padded[_corner(tensor.shape)] = tensor
        parts = whole(padded, group=group).split(largest[0])
        return torch.cat([part[_corner(shape)] for part, shape in zip(parts, shapes, strict=True)])

    return all_gather


def _corner(shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(size) for size in shape)


def _broadcast(whole: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function like ``idist.broadcast`` that keeps the precision of a number."""

    def broadcast(tensor: Any, src: int = 0, safe_mode: bool = False) -> Any:
        if safe_mode or not isinstance(tensor, float):
            return whole(tensor, src, safe_mode)
        number = [tensor]
        distributed.broadcast_object_list(number, src=src)
        return number[0]

    return broadcast
