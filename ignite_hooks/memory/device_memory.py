"""What the allocator of the device says of itself, on any kind of device."""

from typing import Any

import torch

__all__ = ["allocator", "memory_in_use"]


def allocator() -> Any:
    """The module with the figures of the current device's allocator, or None without one.

    It is the module of the device (``torch.cuda``, ``torch.xpu``), or ``torch.accelerator``, which
    has them from torch 2.9 on; some devices, MPS for one, have none.
    """
    if not torch.accelerator.is_available():
        return None
    for module in (torch.get_device_module(), torch.accelerator):
        try:
            module.memory_reserved()
        except (AttributeError, RuntimeError):  # it has the function and the device has not
            continue
        return module
    return None


def memory_in_use() -> tuple[int, int] | None:
    """Bytes that the allocator has reserved, and bytes of these that are in use.

    None where there is no device, or one that can not tell.
    """
    module = allocator()
    if module is None:
        return None
    try:
        return module.memory_reserved(), module.memory_allocated()
    except RuntimeError:
        return None
