"""Statistics of the device's allocator: the memory in use, and its high-water marks."""

from typing import Any

import torch

from ignite_hooks.memory.mark import Mark

__all__ = ["DeviceMark", "DevicePeaks", "allocator_module", "memory_in_use"]

DevicePeaks = tuple[int, int]
"""The highest numbers of bytes allocated for tensors, and reserved on the device."""

_STATISTICS = ("allocated_bytes", "reserved_bytes")
_NO_STATISTIC = {"all": {"peak": 0}}


def allocator_module() -> Any:
    """Returns the module with the memory functions of the current device, or None without one.

    This is the module of the device (``torch.cuda``, ``torch.xpu``), or ``torch.accelerator``,
    which has these functions from torch 2.9 on. Some devices, MPS for example, have neither.
    """
    if not torch.accelerator.is_available():
        return None
    for module in (torch.get_device_module(), torch.accelerator):
        try:
            module.memory_reserved()
        except (AttributeError, RuntimeError):  # the function may be there and refuse the device
            continue
        return module
    return None


def memory_in_use() -> tuple[int, int] | None:
    """Returns the bytes that the allocator has reserved, and how many of these are in use.

    None without a device, or on one without statistics.
    """
    module = allocator_module()
    if module is None:
        return None
    try:
        return module.memory_reserved(), module.memory_allocated()
    except RuntimeError:
        return None


class DeviceMark(Mark[DevicePeaks]):
    """The marks of the current device; (0, 0) without a device, or on one without statistics."""

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
        # Some devices cannot reset marks before the first tensor, when there are no statistics.
        if self._has_statistics:
            self._allocator.reset_peak_memory_stats()

    def read(self) -> DevicePeaks:
        """Returns the highest values of both since the last reset."""
        if self._allocator is None:
            return self.zero
        try:
            if hasattr(self._allocator, "memory_stats_as_nested_dict"):
                # memory_stats() also flattens and sorts the dictionary, which takes 100 µs.
                stats = self._allocator.memory_stats_as_nested_dict()
                peaks = [stats.get(name, _NO_STATISTIC)["all"]["peak"] for name in _STATISTICS]
            else:
                stats = self._allocator.memory_stats()
                peaks = [stats.get(f"{name}.all.peak", 0) for name in _STATISTICS]
        except RuntimeError:  # torch.accelerator has the function, but this device does not
            self._allocator = None
            return self.zero
        self._has_statistics = bool(stats)
        return peaks[0], peaks[1]

    @staticmethod
    def higher(one: DevicePeaks, other: DevicePeaks) -> DevicePeaks:
        """Returns the higher value of each of the two."""
        return max(one[0], other[0]), max(one[1], other[1])
