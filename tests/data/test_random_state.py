import io
import random
from functools import partial
from functools import reduce
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Subset

from ignite_hooks.data.random_state import GeneratorSearch
from ignite_hooks.data.random_state import GeneratorState
from ignite_hooks.data.random_state import RandomState
from ignite_hooks.data.random_state import generator_state
from ignite_hooks.data.random_state import generators_in
from ignite_hooks.data.random_state import set_generator_state

# Generators that objects hold.


KINDS = {
    "torch.Generator, cpu": lambda seed: torch.Generator().manual_seed(seed),
    "Random": random.Random,
    "RandomState": np.random.RandomState,
    **{
        kind.__name__: partial(lambda kind, seed: np.random.Generator(kind(seed)), kind)
        for kind in (
            np.random.PCG64,
            np.random.PCG64DXSM,
            np.random.MT19937,
            np.random.Philox,
            np.random.SFC64,
        )
    },
}


def drawn_from(generator):
    """Draws numbers, some of which leave a remainder in the state for the next draw."""
    if isinstance(generator, torch.Generator):
        return torch.randn(3, generator=generator).tolist()
    if isinstance(generator, random.Random):
        return [generator.random(), generator.gauss(0, 1)]
    integers = getattr(generator, "integers", None) or generator.randint
    return [integers(5, dtype=np.uint16), generator.standard_normal(), generator.random()]


@pytest.mark.parametrize("kind", KINDS)
def test_state_of_each_algorithm_is_saved_without_pickle(kind):
    ours, theirs = KINDS[kind](1), KINDS[kind](2)
    assert list(generators_in({"it": ours}).named) == [f"it ({kind})"]
    drawn_from(ours)
    file = io.BytesIO()
    torch.save(generator_state(ours), file)
    expected = [drawn_from(ours) for _ in range(5)]
    file.seek(0)
    set_generator_state(theirs, torch.load(file, weights_only=True))
    assert [drawn_from(theirs) for _ in range(5)] == expected


def test_restored_generator_spawns_different_children():
    ours, theirs = np.random.default_rng(1), np.random.default_rng(1)
    ours.spawn(3)
    set_generator_state(theirs, generator_state(ours))
    assert theirs.spawn(1)[0].random() == ours.spawn(1)[0].random()
    set_generator_state(
        theirs, generator_state(np.random.default_rng(1))
    )  # does not spawn the same once more


class Loaded:
    """A data set with a generator, and a method that collates."""

    def __init__(self):
        self._rng = random.Random(1)

    def collate(self, samples):
        return samples


def paths_in(thing):
    return [name.split(" ")[0] for name in generators_in({"data": thing}).named]


WHERE = {
    "itself": (lambda: random.Random(), "data"),
    "an attribute": (Loaded, "data._rng"),
    "a subset": (lambda: Subset(Loaded(), [0]), "data.dataset._rng"),
    "data sets": (lambda: SimpleNamespace(datasets=[[1], Loaded()]), "data.datasets.1._rng"),
    "a dict": (lambda: {"train": Loaded()}, "data.train._rng"),
    "a bound method": (lambda: Loaded().collate, "data.__self__._rng"),
    "a partial": (lambda: partial(print, Loaded()), "data.args.0._rng"),
    "a long list": (lambda: [0] * 1000 + [Loaded()], "data.1000._rng"),
    "bits": (lambda: SimpleNamespace(bits=np.random.PCG64()), "data.bits"),
    "one of a set": (lambda: {random.Random()}, "data.{Random}"),
    "far down": (
        lambda: reduce(Subset, [[0]] * 20, Loaded()),
        f"data{'.dataset' * 20}._rng",
    ),
    "a keyword": (lambda: partial(print, rng=random.Random()), "data.keywords.rng"),
}


@pytest.mark.parametrize("where", WHERE)
def test_generator_is_found_in(where):
    make, name = WHERE[where]
    assert paths_in(make()) == [name]


def test_generator_held_twice_has_the_shortest_path():
    rng = random.Random()
    deep = SimpleNamespace(inner=SimpleNamespace(rng=rng), rng=rng)
    assert paths_in(deep) == ["data.rng"]


NOT_FOUND = {
    "nothing": lambda: None,
    "a class without one": lambda: Loaded,
    "a module": lambda: np.random,
    "one without a state": random.SystemRandom,
    "a seedable sampler": lambda: SeedableRandomSampler([1], generator=torch.Generator()),
    "the global one of Python": lambda: random.random,
    "the global one of numpy": lambda: [np.random.rand, np.random.mtrand._rand],
    "the global one of torch": lambda: torch.default_generator,
}


@pytest.mark.parametrize("what", NOT_FOUND)
def test_no_generator_is_found_in(what):
    assert paths_in(NOT_FOUND[what]()) == []


@pytest.mark.parametrize("base", [list, dict])
def test_search_does_not_trigger_lazy_loading(base):
    class Loading(base):
        def _load(self, *asked):
            pytest.fail("it was loaded")

        __iter__ = __len__ = __getitem__ = items = _load

    assert paths_in(Loading()) == []


def test_search_ends_on_circular_references():
    one = SimpleNamespace(rng=random.Random())
    one.other = SimpleNamespace(one=one)
    assert paths_in(one) == ["data.rng"]


def test_incomplete_search_is_a_doubt():
    found = generators_in({"data": [Loaded() for _ in range(10)]}, max_objects=5)
    message = "the search for random generators ended after 5 objects, and there are more"
    assert found.doubts == (message,)
    assert generators_in({"data": Loaded()}).doubts == ()


def test_several_generators_of_a_set_are_a_doubt():
    found = generators_in({"data": {random.Random(), random.Random()}})
    assert len(found.named) == 2
    assert found.doubts == ("data.{Random} is in a set, whose order may differ in another process",)


def test_generators_of_equal_paths_get_numbers():
    rngs = {1: random.Random(), "1": random.Random()}
    assert list(generators_in({"data": rngs}).named) == [
        "data.1 (Random)",
        "data.1 (Random)-2",
    ]


def test_closed_objects_are_not_searched():
    loaded = Loaded()
    assert not generators_in({"data": [loaded]}, excluded=[loaded]).named


def test_objects_are_searched_again_when_they_have_changed():
    search, thing = GeneratorSearch(), SimpleNamespace(rng=None)
    first = search({"data": thing})
    assert search({"data": thing}) is first
    thing.rng = random.Random()
    assert list(search({"data": thing}).named) == ["data.rng (Random)"]
    assert list(search({"other": thing}).named) == ["other.rng (Random)"]
    thing.rng, old = random.Random(), thing.rng
    assert search({"other": thing}).named["other.rng (Random)"] is not old


def test_unreadable_generator_of_an_extension_is_a_doubt():
    kind = type("RandomState", (), {"__module__": "cupy.random._generator"})
    assert generators_in({"data": [kind()]}).doubts == (
        "data.0 is a RandomState, whose state cannot be read",
    )
    assert generators_in({"data": [type("RandomState", (), {})()]}).doubts == ()


def test_generator_state_has_state_dict_methods():
    ours, theirs = random.Random(1), random.Random(2)
    GeneratorState(theirs).load_state_dict(GeneratorState(ours).state_dict())
    assert ours.random() == theirs.random()
    message = "of a random generator with the algorithm RandomState, got a state of Random"
    with pytest.raises(ValueError, match=message):
        GeneratorState(np.random.RandomState()).load_state_dict(GeneratorState(ours).state_dict())
    for damaged in ({}, {"kind": "Random"}, {"kind": "Random", "state": [1]}):
        with pytest.raises(ValueError, match="must be of a random generator with the algorithm Ra"):
            GeneratorState(theirs).load_state_dict(damaged)


# States of the global generators, and of others.


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


def test_generators_given_by_name_are_restored():
    ours = {"a": torch.Generator().manual_seed(1), "b": np.random.default_rng(2)}
    state = RandomState.capture(generators=ours)
    drawn = torch.rand(3, generator=ours["a"]), ours["b"].random()
    state.restore()
    assert torch.equal(torch.rand(3, generator=ours["a"]), drawn[0])
    assert ours["b"].random() == drawn[1]


def test_other_generators_are_not_restored():
    other = torch.Generator().manual_seed(1)
    before = RandomState.capture()
    torch.rand(3, generator=other)
    state = other.get_state()
    before.restore()
    assert torch.equal(other.get_state(), state)


@pytest.mark.parametrize("fails", [False, True])
def test_generators_are_restored_whatever_the_body_draws(fails):
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
def test_cpu_and_meta_devices_have_no_device_state(device):
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


def test_captured_state_is_a_copy():
    generator = torch.Generator().manual_seed(1)
    state = RandomState.capture(generators={"ours": generator})
    cpu, own = state.cpu.clone(), state.generators["ours"][1].clone()
    draw(), torch.rand(9, generator=generator)
    assert torch.equal(state.cpu, cpu)
    assert torch.equal(state.generators["ours"][1], own)


def test_random_state_is_saved_without_pickle():
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


def test_only_generators_in_the_saved_state_are_restored():
    ours = {"a": torch.Generator().manual_seed(1), "b": torch.Generator().manual_seed(2)}
    state_dict = RandomState.capture(generators=ours).state_dict()
    others = {"c": torch.Generator().manual_seed(3), "b": torch.Generator().manual_seed(4)}
    untouched = others["c"].get_state()
    RandomState.from_state_dict(state_dict, generators=others).restore()
    assert torch.equal(others["b"].get_state(), ours["b"].get_state())
    assert torch.equal(others["c"].get_state(), untouched)
