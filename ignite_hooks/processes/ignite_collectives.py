"""Ignite's collectives for ranks that have unequal numbers of samples.

Ignite's metrics call collectives of ``ignite.distributed``. These calls fail in two cases:

- Metrics that keep all predictions, such as ``EpochMetric`` and ``ROC_AUC``, gather the predictions
  as if all ranks had the same number of them. If the numbers differ, gloo ends the process.
- On a rank without any sample a metric raises an error before its collective. The other ranks then
  wait for this rank.

So two context managers replace the collectives while metrics are computed: ``among_unequal_ranks``
for the first case, and ``among_ranks`` for the second case.
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

from ignite_hooks.core.undo_stack import undo_on_exit

__all__ = ["among_ranks", "among_unequal_ranks"]


@contextmanager
def among_unequal_ranks() -> Iterator[None]:
    """Makes Ignite's collectives accept, in the body, tensors whose sizes differ between ranks.

    In the body, ``idist.all_gather`` concatenates tensors of unequal sizes, and ``idist.broadcast``
    does not round a Python number to single precision.
    """
    functions = {
        "all_gather": _all_gather(idist.all_gather),
        "broadcast": _broadcast(idist.broadcast),
    }
    with _replaced(functions):
        yield


@contextmanager
def among_ranks(ranks: Sequence[int], group: Any) -> Iterator[None]:
    """Restricts Ignite's collectives in the body to a group of ranks, as if no others existed.

    In the body the ranks of the group are numbered from 0, in the order of ``ranks``.

    Args:
        ranks: the ranks of the group. The rank of this process must be one of them.
        group: the process group of torch for these ranks.
    """
    index, all_reduce = list(ranks).index(distributed.get_rank()), idist.all_reduce

    def reduce(tensor: Any, op: str = "SUM", group: Any = group) -> Any:
        return all_reduce(tensor, op, group)

    def broadcast(tensor: Any, src: int = 0, safe_mode: bool = False) -> Any:
        # A pickled CUDA tensor would arrive on the sender's device, so the tensor is sent from the
        # CPU.
        sent = [tensor.cpu() if isinstance(tensor, torch.Tensor) else tensor]
        distributed.broadcast_object_list(sent, src=ranks[src], group=group)
        is_moved = isinstance(sent[0], torch.Tensor)
        return sent[0].to(idist.device()) if is_moved else sent[0]

    functions: dict[str, Callable[..., Any]] = {
        "all_gather": _all_gather(idist.all_gather, group, len(ranks)),
        "all_reduce": reduce,
        "barrier": lambda: distributed.barrier(group),
        "broadcast": broadcast,
        "get_rank": lambda: index,
        "get_world_size": lambda: len(ranks),
    }
    with _replaced(functions):
        yield


@contextmanager
def _replaced(functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Replaces functions of ``ignite.distributed`` by name, and restores them after the body."""
    originals = {name: getattr(idist, name) for name in functions}

    def restore() -> None:
        for name, function in originals.items():
            setattr(idist, name, function)

    with undo_on_exit(restore):
        for name, function in functions.items():
            setattr(idist, name, function)
        yield


def _all_gather(
    original: Callable[..., Any], default: Any = None, size: int | None = None
) -> Callable[..., Any]:
    """Returns a function like ``idist.all_gather`` that accepts tensors of unequal sizes.

    A call with another group than ``default`` is passed to ``original`` unchanged.

    Args:
        original: ``idist.all_gather``.
        default: the process group for calls without the argument ``group``; None for all ranks.
        size: the number of ranks in the group ``default``; None for all ranks.
    """

    def all_gather(tensor: Any, group: Any = default) -> Any:
        is_single = not isinstance(tensor, torch.Tensor) or tensor.dim() == 0
        ranks = idist.get_world_size() if size is None else size
        if is_single or group is not default or ranks == 1:
            return original(tensor, group=group)
        own = torch.tensor([tensor.shape], device=tensor.device)
        shapes = original(own, group=group).tolist()
        if all(shape == shapes[0] for shape in shapes):
            return original(tensor, group=group)
        # In each dimension, tensors are padded to the largest size on any rank. After the exchange
        # the padding is cut off.
        largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
        padded = tensor.new_zeros(largest)
        padded[_corner(tensor.shape)] = tensor
        parts = original(padded, group=group).split(largest[0])
        return torch.cat([part[_corner(shape)] for part, shape in zip(parts, shapes, strict=True)])

    return all_gather


def _corner(shape: Sequence[int]) -> tuple[slice, ...]:
    """Returns the index of the unpadded part of a padded tensor.

    In each dimension ``i``, this part consists of the first ``shape[i]`` elements.
    """
    return tuple(slice(size) for size in shape)


def _broadcast(original: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function like ``idist.broadcast`` that keeps the precision of a Python number.

    Ignite's function sends the number as a tensor of single precision.
    """

    def broadcast(tensor: Any, src: int = 0, safe_mode: bool = False) -> Any:
        if safe_mode or not isinstance(tensor, float):
            return original(tensor, src, safe_mode)
        number = [tensor]
        distributed.broadcast_object_list(number, src=src)
        return number[0]

    return broadcast
