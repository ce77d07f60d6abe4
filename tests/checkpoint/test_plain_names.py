import pytest
import torch

from ignite_hooks.checkpoint.plain_names import PlainNames


def layers():
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))


def compiled(module):
    return torch.compile(module, backend="eager")


def with_compiled_layer():
    module = layers()
    module[1] = compiled(torch.nn.DataParallel(module[1]))
    return module


def shared():
    """Returns a module with one layer under two names, one of them compiled."""
    module = torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 2)})
    module["fast"] = compiled(module["layer"])
    return module


@pytest.mark.parametrize(
    "make",
    [
        layers,
        with_compiled_layer,
        lambda: compiled(layers()),
        lambda: compiled(with_compiled_layer()),
        lambda: torch.nn.DataParallel(compiled(layers())),
    ],
)
def test_plain_names_have_no_wrapper_names(make):
    module, plain = make(), layers()
    names = PlainNames(module)
    state = module.state_dict()
    assert list(names.plain_state(state)) == list(plain.state_dict())
    assert [names.plain(name) for name, _ in module.named_parameters()] == [
        name for name, _ in plain.named_parameters()
    ]
    assert list(names.actual_state(plain.state_dict(), state)) == list(state)
    versions = names.plain_state(state._metadata)
    assert versions == dict(plain.state_dict()._metadata)
    result = module.load_state_dict(names.actual_state(plain.state_dict(), state))
    assert not result.missing_keys


def test_unknown_names_are_translated_by_their_path():
    names = PlainNames(with_compiled_layer())
    assert names.actual("1.former") == "1._orig_mod.module.former"
    assert names.actual("2.weight") == "2.weight"
    assert PlainNames(compiled(layers())).actual("former.weight") == "_orig_mod.former.weight"


def test_a_users_child_called_module_keeps_its_name():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = torch.nn.Linear(2, 2)
            self._orig_mod = torch.nn.Linear(2, 2)

    names = list(Model().state_dict())
    assert list(PlainNames(Model()).plain_state(Model().state_dict())) == names
    assert list(PlainNames(compiled(Model())).plain_state(compiled(Model()).state_dict())) == names


def test_a_layer_under_two_names_keeps_both():
    module = shared()
    assert list(PlainNames(module).plain_state(module.state_dict())) == [
        "layer.weight",
        "layer.bias",
        "fast.weight",
        "fast.bias",
    ]
