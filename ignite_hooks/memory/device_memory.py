"""What the allocator of the device says of itself, on any kind of device."""

from typing import Any

import torch

__all__ = ["allocator", "memory_in_use"]


def allocator() -> Any:
    """The module with the figures of the current device's allocator, or None without one.

    ``torch.accelerator`` has them from torch 2.9 on, the module of the device (``torch.cuda``,
    ``torch.xpu``) before that too; some devices, MPS for one, have none.
    """
    if not torch.accelerator.is_available():
        return None
    modules = (torch.accelerator, torch.get_device_module())
    return next((each for each in modules if hasattr(each, "memory_reserved")), None)


def memory_in_use() -> tuple[int, int] | None:
    """Bytes that the allocator has reserved, and bytes of these that are in use.

    None where there is no device, or one that can not tell.
    """
    module = allocator()
    if module is None:
        return None
    try:
        return module.memory_reserved(), module.memory_allocated()
    except RuntimeError:  # torch.accelerator has the functions, this kind of device has not
        return None
