"""Tests of what torch's private members mean, and of the functions that use them."""

import functools

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from ignite_hooks.core.torch_modules import attributes_of_optimizer
from ignite_hooks.core.torch_modules import attributes_outside_state
from ignite_hooks.core.torch_modules import empty_buffers
from ignite_hooks.core.torch_modules import has_custom_loading
from ignite_hooks.core.torch_modules import has_wrappers
from ignite_hooks.core.torch_modules import persistent_tensors
from ignite_hooks.core.torch_modules import tensors_in
from ignite_hooks.core.torch_modules import unwrap_module
from ignite_hooks.core.torch_modules import wrapped_child


class WithModule(torch.nn.Module):
    """A user's module with a child of the name that ``DataParallel`` uses."""

    def __init__(self):
        super().__init__()
        self.module = torch.nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (lambda module: torch.compile(module, backend="eager"), "_orig_mod"),
        (torch.nn.DataParallel, "module"),
        (checkpoint_wrapper, "_checkpoint_wrapped_module"),
    ],
)
def test_wrappers_are_recognized_and_removed(wrap, name):
    inner = WithModule()
    wrapper = wrap(inner)
    assert wrapped_child(wrapper) == name
    assert has_wrappers(torch.nn.Sequential(wrapper).modules())
    assert unwrap_module(wrapper) is inner
    assert unwrap_module(torch.nn.DataParallel(wrapper)) is inner


def test_a_user_module_with_a_child_module_is_no_wrapper():
    assert wrapped_child(WithModule()) is None
    assert not has_wrappers(WithModule().modules())
    assert unwrap_module(WithModule().compile() or WithModule()) is not None


class Overriding(torch.nn.Linear):
    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)


class Saving(torch.nn.Linear):
    def _save_to_state_dict(self, *args):
        super()._save_to_state_dict(*args)


class Extra(torch.nn.Linear):
    def get_extra_state(self):
        return 1

    def set_extra_state(self, state):
        pass


class Partial(torch.nn.Linear):
    def load_state_dict(self, state, strict=True):
        return super().load_state_dict(state, strict=False)


def with_hook(register):
    module = torch.nn.Linear(2, 2)
    getattr(module, register)(lambda *args: None)
    return module


def patched():
    module = torch.nn.Linear(2, 2)
    module.state_dict = functools.partial(torch.nn.Module.state_dict, module)
    return module


@pytest.mark.parametrize(
    "module",
    [
        Overriding(2, 2),
        Saving(2, 2),
        Extra(2, 2),
        torch.nn.LazyLinear(2),
        with_hook("register_load_state_dict_pre_hook"),
        with_hook("register_load_state_dict_post_hook"),
        with_hook("register_state_dict_post_hook"),
        with_hook("register_state_dict_pre_hook"),
        patched(),
    ],
)
def test_modules_with_custom_loading_are_recognized(module):
    assert has_custom_loading(module)


def test_load_state_dict_counts_for_the_root_only():
    assert has_custom_loading(Partial(2, 2), is_root=True)
    assert not has_custom_loading(Partial(2, 2))


@pytest.mark.parametrize(
    "module",
    [
        torch.nn.BatchNorm1d(2),
        torch.nn.LSTM(2, 2),
        torch.nn.MultiheadAttention(2, 1),
        torch.nn.TransformerEncoderLayer(2, 1),
        torch.nn.Embedding(2, 2),
        torch.compile(torch.nn.Linear(2, 2), backend="eager"),
    ],
)
def test_torchs_own_modules_have_no_custom_loading(module):
    assert not any(has_custom_loading(each, is_root=True) for each in module.modules())


def test_tensors_in_equals_torchs_own_methods():
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2, bias=False))
    module.append(module[0])
    module.register_buffer("empty", None)
    module.register_module("none", None)
    expected = {*map(id, module.parameters()), *map(id, module.buffers())}
    assert len(expected) == 6
    assert tensors_in(module).keys() == tensors_in(module, module[1]).keys() == expected


def test_persistent_and_other_buffers_are_told_apart():
    module = torch.nn.Module()
    module.register_buffer("kept", torch.ones(1))
    module.register_buffer("left_out", torch.ones(1), persistent=False)
    module.register_buffer("empty", None)
    module.register_buffer("empty_and_left_out", None, persistent=False)
    root = torch.nn.Sequential(module)
    assert list(persistent_tensors(root)) == ["0.kept"] == list(root.state_dict())
    assert empty_buffers(root) == {"0.empty": module}


def test_attributes_outside_the_state_are_the_users():
    module = torch.nn.utils.spectral_norm(torch.nn.Linear(2, 2))
    module.register_buffer("left_out", torch.ones(1), persistent=False)
    module.number = 1
    module.compile(backend="eager")
    own = {"in_features", "out_features", "number", "left_out"}
    assert attributes_outside_state(module).keys() == own
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.step()
    optimizer.number = 1
    assert attributes_of_optimizer(optimizer) == {"number": 1}
