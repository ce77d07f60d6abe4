"""The values of rank 0 on every rank."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed

__all__ = ["broadcast_values"]


def broadcast_values(tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Copies the values of rank 0 into the tensors of the same names, shapes and dtypes.

    A tensor that rank 0 has not, or has in another shape, stays as it is: a cache that grows with
    the inputs, say. So does one that was made in inference mode, which may not be changed here.

    Args:
        tensors: dense tensors by name.
        device: a device that the processes exchange tensors on.
    """
    sent: list[Any] = [[(name, each.shape, each.dtype) for name, each in tensors.items()]]
    distributed.broadcast_object_list(sent, src=0)
    kinds = [(name, shape, dtype) for name, shape, dtype in sent[0] if shape.numel()]
    sizes = [shape.numel() * dtype.itemsize for _, shape, dtype in kinds]
    if not sizes:
        return
    if distributed.get_rank() == 0:
        flat = torch.cat([_bytes_of(tensors[name]).to(device) for name, _, _ in kinds])
    else:
        flat = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
    distributed.broadcast(flat, src=0)
    for (name, shape, dtype), part in zip(kinds, torch.split(flat, sizes), strict=True):
        own = tensors.get(name)
        is_same = own is not None and (own.shape, own.dtype) == (shape, dtype)
        if own is not None and is_same and not own.is_inference():
            # A copy: a part begins where its own dtype may not.
            own.detach().copy_(part.clone().view(dtype).view(shape))


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)
