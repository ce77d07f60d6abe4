import io
import random

import numpy as np
import pytest
import torch

from ignite_hooks.data.random_state import RandomState


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_restoring_repeats_what_every_global_generator_drew():
    state = RandomState.capture()
    drawn = draw()
    later = draw()
    assert later != drawn
    state.restore()
    assert (draw(), draw()) == (drawn, later)
    state.restore()
    assert draw() == drawn


def test_further_generators_are_restored_too():
    ours = {"a": torch.Generator().manual_seed(1), "b": np.random.default_rng(2)}
    state = RandomState.capture(generators=ours)
    drawn = torch.rand(3, generator=ours["a"]), ours["b"].random()
    state.restore()
    assert torch.equal(torch.rand(3, generator=ours["a"]), drawn[0])
    assert ours["b"].random() == drawn[1]


def test_generators_that_were_not_taken_stay_where_they_are():
    other = torch.Generator().manual_seed(1)
    before = RandomState.capture()
    torch.rand(3, generator=other)
    state = other.get_state()
    before.restore()
    assert torch.equal(other.get_state(), state)


@pytest.mark.parametrize("fails", [False, True])
def test_whatever_the_body_draws_the_generators_are_where_they_were(fails):
    ours = torch.Generator().manual_seed(1)
    before = RandomState.capture(generators={"ours": ours})
    expected = *draw(), float(torch.rand((), generator=ours))
    before.restore()
    try:
        with RandomState.preserved(generators={"ours": ours}):
            draw(), torch.rand(9, generator=ours)
            random.seed(1), np.random.seed(1), torch.manual_seed(1)
            if fails:
                raise ArithmeticError
    except ArithmeticError:
        assert fails
    assert (*draw(), float(torch.rand((), generator=ours))) == expected


@pytest.mark.parametrize("device", [None, "cpu", "meta"])
def test_a_device_without_a_generator_of_its_own_has_no_state(device):
    state = RandomState.capture(torch.device(device) if device else None)
    assert state.device is None
    state.restore()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_generator_of_a_device_is_restored():
    device = torch.device("cuda")
    with RandomState.preserved(device):
        drawn = torch.rand(3, device=device)
    assert torch.equal(torch.rand(3, device=device), drawn)


def test_a_state_taken_is_no_view_of_the_generators():
    generator = torch.Generator().manual_seed(1)
    state = RandomState.capture(generators={"ours": generator})
    cpu, own = state.cpu.clone(), state.generators["ours"][1].clone()
    draw(), torch.rand(9, generator=generator)
    assert torch.equal(state.cpu, cpu)
    assert torch.equal(state.generators["ours"][1], own)


def test_a_state_goes_through_a_file_without_pickle():
    ours = {"a": torch.Generator().manual_seed(1), "b": torch.Generator().manual_seed(2)}
    random.gauss(0, 1)  # leaves a second number behind for the next call
    np.random.randn()
    file = io.BytesIO()
    torch.save(RandomState.capture(generators=ours).state_dict(), file)
    drawn = draw(), random.gauss(0, 1), float(np.random.randn())
    theirs = [float(torch.rand((), generator=each)) for each in ours.values()]
    file.seek(0)
    others = {"b": torch.Generator(), "a": torch.Generator()}
    state_dict = torch.load(file, weights_only=True)
    RandomState.from_state_dict(state_dict, generators=others).restore()
    assert (draw(), random.gauss(0, 1), float(np.random.randn())) == drawn
    assert [float(torch.rand((), generator=others[name])) for name in "ab"] == theirs


def test_of_the_further_generators_those_are_restored_that_are_in_both():
    ours = {"a": torch.Generator().manual_seed(1), "b": torch.Generator().manual_seed(2)}
    state_dict = RandomState.capture(generators=ours).state_dict()
    others = {"c": torch.Generator().manual_seed(3), "b": torch.Generator().manual_seed(4)}
    untouched = others["c"].get_state()
    RandomState.from_state_dict(state_dict, generators=others).restore()
    assert torch.equal(others["b"].get_state(), ours["b"].get_state())
    assert torch.equal(others["c"].get_state(), untouched)
