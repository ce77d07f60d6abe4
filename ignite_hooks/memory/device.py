"""Statistics of the device's allocator: the memory in use now, and its high-water marks.

A high-water mark, or *mark* for short, is the highest value since the last reset.
"""

from typing import Any

import torch

from ignite_hooks.memory.mark import Mark

__all__ = [
    "DeviceMark",
    "DevicePeaks",
    "allocator_module",
    "available_device_bytes",
    "memory_in_use",
]

DevicePeaks = tuple[int, int]
"""The highest memory that tensors used, and the highest memory that was reserved, in bytes."""

_STATISTICS = ("allocated_bytes", "reserved_bytes")
_NO_STATISTIC = {"all": {"peak": 0}}


def allocator_module() -> Any:
    """Returns the module with the memory functions of the current device.

    This is the module of the device (``torch.cuda``, ``torch.xpu``), or ``torch.accelerator``,
    which has these functions from torch 2.9 on. The result is None if there is no device, or if
    neither module has these functions for the device, as for MPS.
    """
    if not torch.accelerator.is_available():
        return None
    for module in (torch.get_device_module(), torch.accelerator):
        try:
            module.memory_reserved()
        except (AttributeError, RuntimeError):  # no such function, or not for this device
            continue
        return module
    return None


def memory_in_use() -> tuple[int, int] | None:
    """Returns the memory that the allocator has reserved, and the part that tensors use, in bytes.

    The result is None if there is no device, or if the device has no statistics.
    """
    module = allocator_module()
    if module is None:
        return None
    try:
        return module.memory_reserved(), module.memory_allocated()
    except RuntimeError:
        return None


def available_device_bytes() -> int | None:
    """Returns the memory of the device that this process does not use, in bytes.

    Memory that other processes use counts as available. The result is None if there is no device,
    or if the device does not tell its size.
    """
    in_use, module = memory_in_use(), allocator_module()
    if in_use is None or not hasattr(module, "get_device_properties"):
        return None
    properties = module.get_device_properties(module.current_device())
    total: int | None = getattr(properties, "total_memory", None)
    return None if total is None else total - in_use[1]


class DeviceMark(Mark[DevicePeaks]):
    """The high-water marks of allocated and of reserved memory on the current device.

    Both marks are read and reset together. A reading is (0, 0) if there is no device, or if the
    device has no statistics.
    """

    zero = (0, 0)

    def __init__(self) -> None:
        self._allocator: Any = None
        self._has_statistics = False

    def open(self) -> None:
        """Finds the module of the device."""
        self._allocator = allocator_module()
        self._has_statistics = False

    def reset(self) -> None:
        """Lowers both marks to the memory in use now."""
        if not self._has_statistics:
            self.read()
        # Before the first tensor, some devices have no statistics, and resetting the marks would
        # raise an error. There is nothing to lower yet.
        if self._has_statistics:
            self._allocator.reset_peak_memory_stats()

    def read(self) -> DevicePeaks:
        """Returns the highest allocated and the highest reserved memory since the last reset."""
        if self._allocator is None:
            return self.zero
        try:
            if hasattr(self._allocator, "memory_stats_as_nested_dict"):
                # memory_stats() would also flatten and sort the dictionary, which takes 100 µs.
                stats = self._allocator.memory_stats_as_nested_dict()
                peaks = [stats.get(name, _NO_STATISTIC)["all"]["peak"] for name in _STATISTICS]
            else:
                stats = self._allocator.memory_stats()
                peaks = [stats.get(f"{name}.all.peak", 0) for name in _STATISTICS]
        except RuntimeError:  # torch.accelerator has the function, but not for this device
            self._allocator = None
            return self.zero
        self._has_statistics = bool(stats)
        return peaks[0], peaks[1]

    @staticmethod
    def higher(one: DevicePeaks, other: DevicePeaks) -> DevicePeaks:
        """Returns the higher allocated memory and the higher reserved memory of two readings."""
        return max(one[0], other[0]), max(one[1], other[1])
