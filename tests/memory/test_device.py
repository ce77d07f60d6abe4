from types import SimpleNamespace

import pytest
import torch

from ignite_hooks.memory import device as device_mark
from ignite_hooks.memory.device import DeviceMark
from ignite_hooks.memory.device import allocator_module
from ignite_hooks.memory.device import memory_in_use

# Memory in use, on any kind of device.


WITHOUT_FIGURES = {}
RESERVED_3_USED_2 = {"memory_reserved": lambda: 3, "memory_allocated": lambda: 2}
RESERVED_7_USED_5 = {"memory_reserved": lambda: 7, "memory_allocated": lambda: 5}


@pytest.fixture
def device(monkeypatch):
    """Installs a device, given torch's general and special module for it."""

    def put(general, special):
        accelerator = SimpleNamespace(is_available=lambda: True, **general)
        module = SimpleNamespace(**special)
        monkeypatch.setattr(torch, "accelerator", accelerator)
        monkeypatch.setattr(torch, "get_device_module", lambda: module)
        return accelerator, module

    return put


def test_without_a_device_there_are_no_statistics(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert allocator_module() is None
    assert memory_in_use() is None


def refuse():
    raise RuntimeError("Allocator for mps is not a DeviceAllocator.")


REFUSING = {"memory_reserved": refuse, "memory_allocated": refuse}


def test_the_module_of_the_device_is_asked_first(device):
    _, special = device(RESERVED_3_USED_2, RESERVED_7_USED_5)
    assert allocator_module() is special
    assert memory_in_use() == (7, 5)


@pytest.mark.parametrize("of_device", [WITHOUT_FIGURES, REFUSING], ids=["none", "refused"])
def test_falls_back_to_the_general_memory_module(device, of_device):
    general, _ = device(RESERVED_3_USED_2, of_device)
    assert allocator_module() is general
    assert memory_in_use() == (3, 2)


def test_a_device_without_memory_functions_has_no_statistics(device):
    device(WITHOUT_FIGURES, WITHOUT_FIGURES)
    assert allocator_module() is None
    assert memory_in_use() is None


def test_a_device_that_refuses_has_no_allocator_module(device):
    device(REFUSING, WITHOUT_FIGURES)
    assert allocator_module() is None
    assert memory_in_use() is None


def test_a_device_that_begins_to_refuse_has_no_statistics(device):
    device({"memory_reserved": lambda: 3, "memory_allocated": refuse}, WITHOUT_FIGURES)
    assert memory_in_use() is None


# Marks.


MIB = 2**20


class Allocator:
    """A device's allocator, with counts of memory in use and its peaks.

    Freed memory stays reserved. Before the first tensor there are no statistics.
    """

    def __init__(self):
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = 0
        self.resets = 0
        self.is_initialised = False

    def allocate(self, mib):
        self.is_initialised = True
        self.allocated += mib * MIB
        self.reserved = max(self.reserved, self.allocated)
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        self.peak_reserved = max(self.peak_reserved, self.reserved)

    def free(self, mib):
        self.allocated -= mib * MIB

    def spike(self, mib):
        self.allocate(mib)
        self.free(mib)

    def empty_cache(self):
        self.reserved = self.allocated

    def memory_stats(self):
        if not self.is_initialised:
            return {}
        return {
            "allocated_bytes.all.current": self.allocated,
            "allocated_bytes.all.peak": self.peak_allocated,
            "reserved_bytes.all.current": self.reserved,
            "reserved_bytes.all.peak": self.peak_reserved,
        }

    def reset_peak_memory_stats(self):
        assert self.is_initialised, "some devices cannot reset before their first tensor"
        self.resets += 1
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved


class Refusing:
    """A device whose allocator has no statistics, such as MPS."""

    asked = 0

    def memory_stats(self):
        self.asked += 1
        raise RuntimeError("Allocator for mps is not a DeviceAllocator.")

    def reset_peak_memory_stats(self):
        raise AssertionError("there is nothing to reset")


@pytest.fixture
def found(monkeypatch):
    """Installs an allocator for the mark; counts how often it is looked up."""
    looks = []

    def find(allocator):
        def look():
            looks.append(allocator)
            return allocator

        monkeypatch.setattr(device_mark, "allocator_module", look)
        return looks

    return find


def opened():
    mark = DeviceMark()
    mark.open()
    return mark


def test_device_mark_reads_peaks_and_reset_lowers_them(found):
    allocator = Allocator()
    found(allocator)
    allocator.allocate(10)
    mark = opened()
    allocator.spike(20)
    assert mark.read() == (30 * MIB, 30 * MIB)
    mark.reset()
    assert mark.read() == (10 * MIB, 30 * MIB)
    allocator.empty_cache()
    mark.reset()
    assert mark.read() == (10 * MIB, 10 * MIB)


def test_higher_compares_each_value():
    assert DeviceMark.higher((1, 5), (3, 4)) == (3, 5)
    assert DeviceMark.higher((3, 4), (1, 5)) == (3, 5)


def test_the_zero_reading_is_the_lowest():
    assert DeviceMark().zero == (0, 0)


@pytest.mark.parametrize("stats", [{}, {"other": 1}])
def test_without_statistics_the_peaks_are_zero(found, stats):
    allocator = Allocator()
    allocator.is_initialised = True
    allocator.memory_stats = lambda: stats
    found(allocator)
    assert opened().read() == (0, 0)


def test_without_a_device_nothing_is_read_or_reset(found):
    looks = found(None)
    mark = opened()
    mark.reset()
    assert mark.read() == (0, 0)
    assert looks == [None]


def test_unopened_mark_can_be_reset_read_and_closed():
    mark = DeviceMark()
    mark.reset()
    assert mark.read() == (0, 0)
    mark.close()


def test_reset_is_skipped_before_the_first_tensor(found):
    allocator = Allocator()
    found(allocator)
    mark = opened()
    mark.reset()
    assert mark.read() == (0, 0)
    mark.reset()
    assert allocator.resets == 0
    allocator.spike(20)
    mark.reset()
    assert mark.read() == (0, 20 * MIB)
    assert allocator.resets == 1


def test_reset_reads_no_statistics_once_they_exist(found):
    allocator = Allocator()
    found(allocator)
    allocator.allocate(1)
    mark = opened()
    mark.reset()
    allocator.memory_stats = None
    mark.reset()
    assert allocator.resets == 2


def test_a_device_without_statistics_is_asked_once(found):
    allocator = Refusing()
    found(allocator)
    mark = opened()
    for _ in range(3):
        mark.reset()
        assert mark.read() == (0, 0)
    assert allocator.asked == 1


def test_reopened_mark_finds_the_current_device(found):
    first, second = Allocator(), Allocator()
    first.allocate(1)
    found(first)
    mark = opened()
    mark.reset()
    found(second)
    mark.open()
    mark.reset()  # which has no tensor yet
    second.allocate(2)
    assert mark.read() == (2 * MIB, 2 * MIB)
    assert (first.resets, second.resets) == (1, 0)


@pytest.mark.gpu
@pytest.mark.skipif(memory_in_use() is None, reason="needs a device that tells its figures")
def test_the_peaks_of_a_device():
    device = torch.accelerator.current_accelerator()
    kept = torch.empty(8 * MIB, dtype=torch.uint8, device=device)
    mark = opened()
    mark.reset()
    before = mark.read()
    torch.empty(64 * MIB, dtype=torch.uint8, device=device)
    after = mark.read()
    assert after[0] - before[0] == 8 * kept.numel()
    assert after[1] >= after[0]
    mark.reset()
    assert mark.read()[0] == before[0]
