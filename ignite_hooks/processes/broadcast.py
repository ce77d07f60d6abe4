"""The values of rank 0 on every rank."""

from collections.abc import Iterable

import torch
from torch import distributed

__all__ = ["broadcast_values"]


def broadcast_values(tensors: Iterable[torch.Tensor]) -> None:
    """Copies the values of rank 0 into these tensors, in one collective for each device.

    Args:
        tensors: dense tensors of any dtypes, of the same shapes in the same order on every rank.
    """
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for tensor in tensors:
        if tensor.numel():
            by_device.setdefault(tensor.device, []).append(tensor.detach())
    with torch.no_grad():
        for together in by_device.values():
            flat = torch.cat([_bytes_of(each) for each in together])
            distributed.broadcast(flat, src=0)
            sizes = [each.numel() * each.element_size() for each in together]
            for tensor, part in zip(together, torch.split(flat, sizes), strict=True):
                # A copy: a part begins where its own dtype may not.
                tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
