from types import SimpleNamespace

import pytest
import torch

from ignite_hooks.memory.device_memory import allocator
from ignite_hooks.memory.device_memory import memory_in_use

WITHOUT_FIGURES = {}
RESERVED_3_USED_2 = {"memory_reserved": lambda: 3, "memory_allocated": lambda: 2}
RESERVED_7_USED_5 = {"memory_reserved": lambda: 7, "memory_allocated": lambda: 5}


@pytest.fixture
def device(monkeypatch):
    """Puts a device in place, by what the general and the special module of torch know of it."""

    def put(general, special):
        accelerator = SimpleNamespace(is_available=lambda: True, **general)
        module = SimpleNamespace(**special)
        monkeypatch.setattr(torch, "accelerator", accelerator)
        monkeypatch.setattr(torch, "get_device_module", lambda: module)
        return accelerator, module

    return put


def test_without_a_device_there_are_no_figures(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert allocator() is None
    assert memory_in_use() is None


def refuse():
    raise RuntimeError("Allocator for mps is not a DeviceAllocator.")


REFUSING = {"memory_reserved": refuse, "memory_allocated": refuse}


def test_the_module_of_the_device_is_asked_first(device):
    _, special = device(RESERVED_3_USED_2, RESERVED_7_USED_5)
    assert allocator() is special
    assert memory_in_use() == (7, 5)


@pytest.mark.parametrize("of_device", [WITHOUT_FIGURES, REFUSING], ids=["none", "refused"])
def test_where_the_module_of_the_device_has_none_the_general_one_is_asked(device, of_device):
    general, _ = device(RESERVED_3_USED_2, of_device)
    assert allocator() is general
    assert memory_in_use() == (3, 2)


def test_a_device_of_which_no_module_has_figures_can_not_tell(device):
    device(WITHOUT_FIGURES, WITHOUT_FIGURES)
    assert allocator() is None
    assert memory_in_use() is None


def test_a_kind_of_device_that_has_the_functions_and_no_figures_can_not_tell(device):
    device(REFUSING, WITHOUT_FIGURES)
    assert allocator() is None
    assert memory_in_use() is None


def test_a_device_that_stops_telling_can_not_tell(device):
    device({"memory_reserved": lambda: 3, "memory_allocated": refuse}, WITHOUT_FIGURES)
    assert memory_in_use() is None
