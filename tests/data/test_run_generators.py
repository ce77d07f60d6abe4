"""Generators are found in what a user attached to an engine, under reproducible names."""

import functools
import random

import numpy as np
import torch
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks.core.handler import Scheduled
from ignite_hooks.data.random_state import FoundGenerators
from ignite_hooks.data.run_generators import generators_of_run
from tests.reference import batches_of
from tests.reference import make_trainer


class Drawing:
    def __init__(self):
        self.rng = random.Random(1)

    def call(self, engine):
        """Draws nothing."""


class OnSchedule(Scheduled):
    """A handler that draws in a closure which the package calls on its schedule."""

    every_steps, every_epochs = 2, None

    def attach_to(self, attachment):
        rng = random.Random(2)
        self.on_schedule(attachment, lambda engine: rng.random())


def names_in(engine, **others):
    found = generators_of_run(engine, others, [], FoundGenerators())
    assert found.doubts == ()
    return [*found.named]


def take_all(*args, **kwargs):
    """Does nothing."""


def draw(rng):
    return lambda *_: rng.random()


def test_handlers_of_any_kind_are_searched():
    engine = Engine(draw(np.random.default_rng()))
    engine.add_event_handler(Events.STARTED, Drawing().call)
    engine.add_event_handler(Events.STARTED, Drawing().call)
    engine.add_event_handler(Events.STARTED, functools.partial(Drawing().call))
    engine.add_event_handler(Events.EPOCH_STARTED(every=2), draw(random.Random()))
    engine.add_event_handler(Events.COMPLETED, take_all, random.Random(), rng=random.Random())
    assert sorted(names_in(engine)) == [
        "handler Drawing-2.__self__.rng (Random)",
        "handler Drawing-3.func.__self__.rng (Random)",
        "handler Drawing.__self__.rng (Random)",
        "handler draw.<locals>.<lambda>.__wrapped__.rng (Random)",
        "handler take_all(args).1 (Random)",
        "handler take_all(kwargs).rng (Random)",
        "process_function.rng (PCG64)",
    ]


def test_generators_given_as_also_are_left_out(tmp_path):
    trainer = make_trainer(batches_of(1))
    rng = torch.Generator()
    SaveCheckpoint(tmp_path, every_steps=1, also={"noise": rng}, on_signals=()).attach(trainer)
    assert dict(trainer.generators) == {}


def test_an_event_filter_is_searched():
    engine, rng = Engine(lambda engine, batch: None), random.Random()
    event = Events.EPOCH_STARTED(event_filter=lambda engine, epoch: rng.random() < 0.5)
    engine.add_event_handler(event, lambda: None)
    (name,) = names_in(engine)
    assert name.endswith("rng (Random)")


def test_schedules_and_contexts_are_searched():
    trainer, rng = make_trainer(batches_of(4)), random.Random()

    @trainer.hooks.on("on_step")
    def context(engine):
        rng.random()
        yield

    OnSchedule().attach(trainer)
    seen = []
    event = TrainEvents.STEP_COMPLETED
    trainer.add_event_handler(event, lambda: seen.append([*trainer.generators]))
    trainer.run()
    names = sorted(name.rpartition(".")[0] for name in seen[0])
    assert names[1].startswith("handler OnSchedule.attach_to.<locals>.<lambda>")
    assert names[0].startswith("handler Hooks._hooks.0.")
    assert len(names) == 2


def test_generators_of_the_data_are_left_out():
    rng = random.Random()
    of_data = FoundGenerators({"dataset.rng (Random)": rng})
    assert not generators_of_run(Engine(draw(rng)), {}, [], of_data).named


def test_closed_objects_are_not_searched():
    model = torch.nn.Linear(1, 1)
    model.rng = random.Random()
    engine = Engine(lambda engine, batch: model)
    assert names_in(engine) == ["process_function.model.rng (Random)"]
    assert not generators_of_run(engine, {"x": 1}, [model], FoundGenerators()).named
    assert names_in(engine, model=model) == ["model.rng (Random)"]
