"""Figures of the device's allocator: the memory in use, and the high-water marks it keeps."""

from typing import Any

import torch

from ignite_hooks.memory.mark import Mark

__all__ = ["DeviceMark", "DevicePeaks", "allocator", "memory_in_use"]

DevicePeaks = tuple[int, int]
"""Bytes handed out for tensors, and bytes reserved on the device."""

_KINDS = ("allocated_bytes", "reserved_bytes")
_NONE = {"all": {"peak": 0}}


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

    None where there is no device, or one that cannot tell.
    """
    module = allocator()
    if module is None:
        return None
    try:
        return module.memory_reserved(), module.memory_allocated()
    except RuntimeError:
        return None


class DeviceMark(Mark[DevicePeaks]):
    """The marks of the current device; nothing without a device, or with one that cannot tell."""

    nothing = (0, 0)

    def __init__(self) -> None:
        self._allocator: Any = None
        self._is_in_use = False

    def open(self) -> None:
        """Finds the allocator."""
        self._allocator = allocator()
        self._is_in_use = False

    def reset(self) -> None:
        """Lowers both marks to what is in use now."""
        if not self._is_in_use:
            self.read()
        if self._is_in_use:  # else some devices cannot reset
            self._allocator.reset_peak_memory_stats()

    def read(self) -> DevicePeaks:
        """The highest of both since the last reset."""
        if self._allocator is None:
            return self.nothing
        try:
            if hasattr(self._allocator, "memory_stats_as_nested_dict"):
                # What memory_stats() does beside, to flatten and to sort, takes 100 µs.
                stats = self._allocator.memory_stats_as_nested_dict()
                peaks = [stats.get(kind, _NONE)["all"]["peak"] for kind in _KINDS]
            else:
                stats = self._allocator.memory_stats()
                peaks = [stats.get(f"{kind}.all.peak", 0) for kind in _KINDS]
        except RuntimeError:  # torch.accelerator has the function, this kind of device has not
            self._allocator = None
            return self.nothing
        self._is_in_use = bool(stats)
        return peaks[0], peaks[1]

    @staticmethod
    def higher(one: DevicePeaks, other: DevicePeaks) -> DevicePeaks:
        """The higher of each."""
        return max(one[0], other[0]), max(one[1], other[1])
