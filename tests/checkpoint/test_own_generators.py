"""Random generators anywhere in a run: resumed bit by bit, or named in the report.

Each case is a run that draws from its own generator in another place. It is made again, as in
another process, and resumed; the weights are those of the unbroken run.
"""

import functools
import random
import sys
import types
from collections import deque
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from ignite.engine import Events
from torch.utils.data import BatchSampler
from torch.utils.data import ChainDataset
from torch.utils.data import ConcatDataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset
from torch.utils.data import IterableDataset
from torch.utils.data import Sampler
from torch.utils.data import Subset

from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks.core.object_graph import ObjectSearch
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import samples
from tests.reference import seed
from tests.reference import weights


def new_rng(number=5):
    return np.random.default_rng(number)


class Samples(Dataset):
    """Samples with an augmentation."""

    def __init__(self, augment=None, size=8):
        self.samples, self.augment = samples(size), augment

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        x, y = self.samples[index]
        return x if self.augment is None else x + self.augment(), y


def loader(data, **options):
    return DataLoader(data, **{"batch_size": 2, **options})


def augmented_by(augment):
    return lambda: {"data": loader(Samples(augment()))}


def attribute():
    data = Samples()
    data.rng = new_rng()
    data.augment = data.rng.normal
    return {"data": loader(data)}


def many(number):
    sets = [Samples(new_rng(n).normal, size=1) for n in range(number)]
    return {"data": loader(ConcatDataset(sets))}


def closure():
    rng = new_rng()
    return lambda: float(rng.normal())


def closure_in_a_closure():
    inner = closure()
    return lambda: (lambda: inner())()


class Jitter:
    """Draws from its generator."""

    def __init__(self, rng=None):
        self.rng = new_rng() if rng is None else rng

    def __call__(self, *_):
        return float(self.rng.normal())

    def call(self, scale):
        return scale * self()


class Slots(Jitter):
    __slots__ = ("rng",)
    __dict__ = None


@dataclass(slots=True)
class Record:
    rng: Any

    def __call__(self):
        return float(self.rng.normal())


def default():
    def augment(rng=new_rng()):  # noqa: B008
        return float(rng.normal())

    return augment


def keyword_default():
    def augment(*, rng=new_rng()):  # noqa: B008
        return float(rng.normal())

    return augment


def class_attribute():
    class OfClass:
        rng = new_rng()

        def __call__(self):
            return float(type(self).rng.normal())

    return OfClass()


GLOBAL = new_rng()


def global_of_the_module():
    global GLOBAL
    GLOBAL = new_rng()
    return lambda: float(GLOBAL.normal())


def attribute_of_a_module():
    module = types.ModuleType("module_with_rng")
    module.rng = new_rng()
    sys.modules["module_with_rng"] = module

    def augment():
        import module_with_rng

        return float(module_with_rng.rng.normal())

    return augment


def held_in(make):
    """Returns a function that draws in turn from the elements of a container."""

    def augment():
        rngs, take = make()
        return lambda: float(take(rngs).normal())

    return augment


def rotate(rngs):
    rngs.rotate(1)
    return rngs[0]


def array():
    rngs = np.empty(3, dtype=object)
    rngs[:] = [new_rng(n) for n in range(3)]
    return rngs, lambda rngs: rngs[2]


class Composed:
    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self):
        return sum(each() for each in self.transforms)


class RaisingProperty(Jitter):
    @property
    def broken(self):
        raise RuntimeError("nobody asks for this")


class Stream(IterableDataset):
    def __init__(self, augment):
        self.samples, self.augment = samples(4), augment

    def __iter__(self):
        return ((x + self.augment(), y) for x, y in self.samples)


class Shuffled(Sampler):
    def __init__(self, rng):
        self.rng = rng

    def __iter__(self):
        return iter(self.rng.permutation(8).tolist())

    def __len__(self):
        return 8


class ShuffledBatches(Sampler):
    def __init__(self, rng):
        self.rng = rng

    def __iter__(self):
        return iter(self.rng.permutation(8).reshape(4, 2).tolist())

    def __len__(self):
        return 4


class Collate:
    def __init__(self):
        self.jitter = Jitter()

    def __call__(self, batch):
        x, y = torch.utils.data.default_collate(batch)
        return x + self.jitter(), y


class Noise(torch.nn.Module):
    def __init__(self, scale=0.1):
        super().__init__()
        self.rng, self.scale = torch.Generator().manual_seed(4), scale

    def forward(self, x):
        return x + self.scale * torch.randn(x.shape, generator=self.rng)


def noisy_model(*noise):
    return torch.nn.Sequential(*noise, *make_model(0.0))


class NoisyLoss(torch.nn.MSELoss):
    def __init__(self):
        super().__init__()
        self.jitter = Jitter()

    def forward(self, x, y):
        return super().forward(x, y + self.jitter())


def batch_processor():
    rng = random_state()

    def process(model, batch):
        x, y = batch
        outputs = model(x + float(rng.normal()))
        return outputs, (outputs - y).pow(2).mean()

    return process


def random_state():
    return np.random.RandomState(6)


def prepare_batch(batch, device, non_blocking, jitter):
    x, y = batch
    return x + jitter(), y


def scale_gradients(engine, rng):
    for parameter in engine.model.parameters():
        parameter.grad *= rng.random()


class Handler:
    """Draws at each step, and moves the weights by what it draws."""

    def __init__(self):
        self.rng = [np.random.Generator(np.random.Philox(3))]

    def attach(self, engine):
        engine.add_event_handler(TrainEvents.OPTIMIZER_STEP_STARTED, self)

    def __call__(self, engine):
        scale_gradients(engine, self.rng[0])


class Attaching:
    """Attaches a function with arguments."""

    def __init__(self, handler, *args, event=TrainEvents.OPTIMIZER_STEP_STARTED):
        self.handler, self.args, self.event = handler, args, event

    def attach(self, engine):
        engine.add_event_handler(self.event, self.handler, *self.args)


def on_steps(*args):
    return lambda: {"handlers": [Attaching(*args)], "data": loader(Samples())}


def lambda_handler():
    rng = new_rng()
    handler = Attaching(lambda engine: scale_gradients(engine, rng))
    return {"handlers": [handler], "data": loader(Samples())}


def filtered_handler():
    rng = new_rng()
    event = TrainEvents.OPTIMIZER_STEP_STARTED(
        event_filter=lambda engine, number: rng.random() < 0.5
    )
    handler = Attaching(lambda engine: scale_gradients(engine, Half()), event=event)
    return {"handlers": [handler], "data": loader(Samples())}


class Half:
    def random(self):
        return 0.5


class NoisySGD(torch.optim.SGD):
    def __init__(self, parameters, **options):
        super().__init__(parameters, **options)
        self.noise = torch.Generator().manual_seed(8)

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for each in group["params"]:
                each.data += 1e-3 * torch.randn(each.shape, generator=self.noise)


def noisy_optimizer():
    model = make_model(0.0)
    return {
        "model": model,
        "optimizer": NoisySGD(model.parameters(), lr=0.1),
        "data": loader(Samples()),
    }


def shared():
    """Returns data and a model that share one generator."""
    rng = new_rng()
    noise = Noise()
    noise.own = rng
    return {"model": noisy_model(noise), "data": loader(Samples(rng.normal))}


def with_model(make):
    return lambda: {"model": make(), "data": loader(Samples())}


PLACES = {
    "an attribute of the data set": attribute,
    "80 data sets together": lambda: many(80),
    "a closure": augmented_by(closure),
    "a closure in a closure": augmented_by(closure_in_a_closure),
    "a partial of a method": augmented_by(lambda: functools.partial(Jitter().call, 0.5)),
    "a bound method of a generator": augmented_by(lambda: new_rng().normal),
    "slots": augmented_by(lambda: Record(new_rng())),
    "a default": augmented_by(default),
    "a default of a keyword": augmented_by(keyword_default),
    "a class attribute": augmented_by(class_attribute),
    "a global": augmented_by(global_of_the_module),
    "an attribute of a module": augmented_by(attribute_of_a_module),
    "a deque": augmented_by(held_in(lambda: (deque([new_rng(1), new_rng(2)]), rotate))),
    "a dict by numbers": augmented_by(
        held_in(lambda: ({n: new_rng(n) for n in range(100)}, lambda rngs: rngs[77]))
    ),
    "an array of objects": augmented_by(held_in(array)),
    "a set": augmented_by(held_in(lambda: ({new_rng()}, lambda rngs: next(iter(rngs))))),
    "100 transforms": augmented_by(lambda: Composed([Jitter(new_rng(n)) for n in range(100)])),
    "a property that raises": augmented_by(RaisingProperty),
    "bits of numpy": augmented_by(
        held_in(lambda: (np.random.PCG64(3), lambda bits: np.random.Generator(bits)))
    ),
    "a chain of streams": lambda: {
        "data": loader(ChainDataset([Stream(Jitter()), Stream(closure())]))
    },
    "nested subsets": lambda: {
        "data": loader(functools.reduce(Subset, [range(8)] * 9, Samples(Jitter())))
    },
    "a sampler": lambda: {"data": loader(Samples(), sampler=Shuffled(new_rng()))},
    "a batch sampler": lambda: {
        "data": DataLoader(Samples(), batch_sampler=ShuffledBatches(new_rng()))
    },
    "a sampler in a batch sampler": lambda: {
        "data": DataLoader(Samples(), batch_sampler=BatchSampler(Shuffled(new_rng()), 2, True))
    },
    "the generator of a loader": lambda: {
        "data": loader(Samples(), shuffle=True, generator=torch.Generator().manual_seed(3))
    },
    "a collate function": lambda: {"data": loader(Samples(), collate_fn=Collate())},
    "batches of the user": lambda: {"data": [*DataLoader(Samples(), 2)], "handlers": [Handler()]},
    "the model": with_model(lambda: noisy_model(Noise())),
    "the last of 200 submodules": with_model(
        lambda: noisy_model(torch.nn.Sequential(*(Noise(1e-3) for _ in range(200))))
    ),
    "a hook of a module": with_model(lambda: hooked_model()),
    "the loss": lambda: {"loss_fn": NoisyLoss(), "data": loader(Samples())},
    "a batch processor": lambda: {"batch_processor": batch_processor(), "data": loader(Samples())},
    "prepare_batch": lambda: {
        "prepare_batch": functools.partial(prepare_batch, jitter=Jitter()),
        "data": loader(Samples()),
    },
    "a transform of the output": lambda: {
        "model_transform": lambda x, jitter=Jitter(): x + jitter(),  # noqa: B008
        "data": loader(Samples()),
    },
    "a handler": lambda: {"handlers": [Handler()], "data": loader(Samples())},
    "an argument of a handler": lambda: on_steps(scale_gradients, new_rng())(),
    "a handler in a closure": lambda_handler,
    "the filter of an event": filtered_handler,
    "the optimizer": noisy_optimizer,
    "data and model together": shared,
}


def hooked_model():
    model, rng = make_model(0.0), new_rng()
    model[0].register_forward_hook(lambda module, inputs, output: output + float(rng.normal()))
    return model


def made(make, directory, **options):
    seed()
    settings = {**make(), **options}
    return make_trainer(checkpoint=SaveCheckpoint(directory, every_steps=1), **settings)


@pytest.mark.parametrize("place", PLACES)
def test_a_generator_is_resumed_wherever_it_is(place, tmp_path):
    make = PLACES[place]
    whole = made(make, tmp_path / "whole")
    whole.run(max_epochs=2)
    is_stream = place == "a chain of streams"  # whose samples are gone through again
    made(make, tmp_path / "broken").run(max_steps=4 if is_stream else 3)
    resumed = made(make, tmp_path / "broken", resume_from=tmp_path / "broken")
    resumed.run(max_epochs=2)
    assert resumed.resume_report.is_exact, resumed.resume_report
    assert torch.equal(weights(whole.model), weights(resumed.model))


KINDS_IN_ALSO = {
    "torch": lambda: torch.Generator().manual_seed(3),
    "numpy": new_rng,
    "legacy numpy": lambda: np.random.RandomState(3),
    "Python": lambda: random.Random(3),
}


def draw(rng):
    if isinstance(rng, torch.Generator):
        return float(torch.rand(1, generator=rng))
    return float(rng.random() if hasattr(rng, "random") else rng.rand())


@pytest.mark.parametrize("kind", KINDS_IN_ALSO)
@pytest.mark.parametrize("steps", [3, 4])
def test_a_generator_can_be_given_in_also(kind, steps, tmp_path):
    def run(directory, *, resume=False, **limits):
        rng = KINDS_IN_ALSO[kind]()
        vars(sys)["_hidden_rng"] = rng

        def scale(engine):
            for parameter in engine.model.parameters():
                parameter.grad *= draw(vars(sys)["_hidden_rng"])

        seed()
        trainer = make_trainer(
            loader(Samples()),
            handlers=[Attaching(scale)],
            checkpoint=SaveCheckpoint(directory, also={"noise": rng}),
            resume_from=directory if resume else None,
        )
        trainer.add_event_handler(Events.STARTED, lambda: draw(rng) and None)
        trainer.run(**limits)
        return trainer

    whole = run(tmp_path / "whole", max_epochs=2)
    run(tmp_path / "broken", max_steps=steps)
    resumed = run(tmp_path / "broken", resume=True, max_epochs=2)
    del vars(sys)["_hidden_rng"]
    assert resumed.resume_report.is_exact, resumed.resume_report
    assert torch.equal(weights(whole.model), weights(resumed.model))


def test_another_kind_of_generator_in_also_is_an_error(tmp_path):
    save = SaveCheckpoint(tmp_path, also={"noise": new_rng()})
    make_trainer(loader(Samples()), checkpoint=save).run()
    other = SaveCheckpoint(tmp_path, also={"noise": random.Random()})
    with pytest.raises(ValueError, match="with the algorithm Random, got a state of PCG64"):
        make_trainer(loader(Samples()), checkpoint=other, resume_from=tmp_path)


def lazy_model():
    class Lazy(Noise):
        def __init__(self):
            super().__init__()
            self.rng, self.calls = None, 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 3 and self.rng is None:
                self.rng = torch.Generator().manual_seed(4)
            return x if self.rng is None else super().forward(x)

    return noisy_model(Lazy())


def test_a_generator_that_is_made_late_is_reported(tmp_path):
    made(with_model(lazy_model), tmp_path).run(max_steps=6)
    resumed = made(with_model(lazy_model), tmp_path, resume_from=tmp_path)
    with pytest.warns(UserWarning, match=r"the random generator model\.0\.rng .* was saved, but"):
        resumed.run(max_epochs=2)
    assert not resumed.resume_report.is_exact


def with_many(where):
    def make():
        many = [Jitter() for _ in range(10_001)]
        data, model = Samples(), make_model(0.0)
        (data if where == "data" else model).many = many
        return {"data": loader(data), "model": model}

    return make


@pytest.mark.parametrize(("where", "part"), [("data", "data"), ("model", "random generators")])
def test_too_many_objects_are_reported_as_unknown(where, part, tmp_path):
    made(with_many(where), tmp_path).run(max_steps=1)
    resumed = made(with_many(where), tmp_path, resume_from=tmp_path)
    with pytest.warns(UserWarning, match="resumed from"):
        resumed.run(max_steps=2)
    (found,) = (each for each in resumed.resume_report.parts.values() if each.level != "exact")
    assert found is resumed.resume_report.parts[part]
    assert found.level == "unknown"
    message = "the search for random generators ended after 10000 objects, and there are more"
    assert found.reason == message


def test_a_counter_of_a_data_set_is_reported_as_unknown(tmp_path):
    class Counting:
        calls = 0

        def __call__(self):
            self.calls += 1
            return 0.001 * self.calls

    make = augmented_by(Counting)
    made(make, tmp_path).run(max_steps=2)
    resumed = made(make, tmp_path, resume_from=tmp_path)
    with pytest.warns(UserWarning, match=r"data: unknown \(dataset\.augment\.calls has changed"):
        resumed.run(max_steps=3)


@pytest.mark.parametrize("place", ["the model", "the loss", "a handler", "data and model together"])
def test_a_validation_does_not_advance_generators(place):
    def run(*, validates):
        seed()
        trainer = make_trainer(**PLACES[place]())

        def evaluate():
            for each in rngs.values():
                draw(each)
            return {"mean": float(trainer.model(torch.zeros(2, 4)).mean())}

        rngs = {**trainer.generators, **trainer.feed.generators}
        assert rngs
        if validates:
            Validation(evaluate, every_steps=1).attach(trainer)
        trainer.run(max_epochs=2)
        return weights(trainer.model)

    assert torch.equal(run(validates=False), run(validates=True))


def test_a_search_is_made_again_only_after_a_change(tmp_path):
    trainer = make_trainer(
        **PLACES["a handler"](), checkpoint=SaveCheckpoint(tmp_path, every_steps=1)
    )
    for step in (2, 3):
        trainer.run(max_steps=step)
    with mock.patch.object(ObjectSearch, "__iter__", side_effect=AssertionError("searched")):
        trainer.run(max_steps=6)
    assert trainer.state.optimizer_step == 6
