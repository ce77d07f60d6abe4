"""Broadcasts of tensors from rank 0 to every rank."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed

__all__ = ["broadcast_values"]


def broadcast_values(tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Copies the values of tensors of rank 0 to every other rank. Collective.

    The values are copied into the tensor of the same name. A tensor stays unchanged in these cases:

    - Rank 0 has no tensor of this name.
    - The tensor on rank 0 has a different shape or dtype, for example because the tensor is a cache
      whose shape grows with the inputs.
    - The tensor was made in inference mode: torch forbids writing into such a tensor outside of
      this mode.

    Args:
        tensors: dense tensors by name.
        device: the device on which the processes exchange tensors.
    """
    sent: list[Any] = [[(name, each.shape, each.dtype) for name, each in tensors.items()]]
    distributed.broadcast_object_list(sent, src=0)
    layout = [(name, shape, dtype) for name, shape, dtype in sent[0] if shape.numel()]
    sizes = [shape.numel() * dtype.itemsize for _, shape, dtype in layout]
    if not sizes:
        return
    # All tensors are sent as bytes in one broadcast, instead of one broadcast for each tensor.
    if distributed.get_rank() == 0:
        flat = torch.cat([_bytes_of(tensors[name]).to(device) for name, _, _ in layout])
    else:
        flat = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
    distributed.broadcast(flat, src=0)
    for (name, shape, dtype), part in zip(layout, torch.split(flat, sizes), strict=True):
        own = tensors.get(name)
        is_same = own is not None and (own.shape, own.dtype) == (shape, dtype)
        if own is not None and is_same and not own.is_inference():
            # A part may begin at any byte of `flat`, but `view` to a wider dtype needs a tensor
            # that begins at a multiple of the size of the dtype. A clone begins at byte 0 of its
            # own memory.
            own.detach().copy_(part.clone().view(dtype).view(shape))


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the elements of a tensor as a one-dimensional tensor of bytes."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8)
