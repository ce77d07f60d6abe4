import pytest
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks import TrainEvents
from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.fields import Every
from ignite_hooks.memory.upkeep import Upkeep
from tests.ids import stable_id
from tests.reference import batches_of
from tests.reference import make_trainer


@checked_dataclass
class Recording(Upkeep):
    """A handler that records the epochs and iterations at which it is called."""

    every_steps: Every | None = None
    every_epochs: Every | None = None

    def __call__(self, engine):
        engine.state.metrics.setdefault("acted", []).append(
            (engine.state.epoch, engine.state.iteration)
        )


def moments_of(engine, handler, **run):
    engine.state.metrics["acted"] = iterations = []
    with handler.attach(engine):
        engine.run(**run)
    return iterations


@pytest.mark.parametrize(
    ("schedules", "expected"),
    [
        ({}, [(1, 6), (2, 12)]),
        ({"every_epochs": 2}, [(2, 12)]),
        ({"every_steps": 2}, [(1, 4), (2, 8), (2, 12)]),
        ({"every_steps": 3, "every_epochs": 1}, [(1, 6), (2, 12)]),  # both due: once
        ({"every_steps": 2, "every_epochs": 1}, [(1, 4), (1, 6), (2, 8), (2, 12)]),
    ],
    ids=stable_id,
)
def test_is_called_on_schedules_and_once_if_both_are_due(schedules, expected):
    trainer = make_trainer(batches_of(6), accumulation=2)
    handler = Recording(**schedules)
    assert moments_of(trainer, handler, max_epochs=2) == expected
    assert moments_of(trainer, handler, max_epochs=2) == expected


def test_is_called_in_a_second_run_at_the_same_iterations_too():
    trainer = make_trainer(batches_of(2))
    Recording(every_epochs=1).attach(trainer)
    for _ in range(2):
        trainer.run(max_epochs=1)
    assert trainer.state.metrics["acted"] == [(1, 2), (1, 2)]


def test_without_an_optimizer_step_a_step_is_an_iteration():
    engine = Engine(lambda engine, batch: None)
    handler = Recording(every_steps=4)
    assert moments_of(engine, handler, data=[0] * 5, max_epochs=2) == [(1, 4), (2, 8)]


def test_due_by_both_schedules_it_is_called_at_the_step():
    trainer = make_trainer(batches_of(2))
    acted = trainer.state.metrics["acted"] = []
    seen = []
    Recording(every_steps=2, every_epochs=1).attach(trainer)
    for event in (Events.ITERATION_COMPLETED, TrainEvents.STEP_COMPLETED, Events.EPOCH_COMPLETED):
        trainer.add_event_handler(event, lambda: seen.append(list(acted)))
    trainer.run()
    assert seen == [[], [], [], [], [(1, 2)]]
    assert acted == [(1, 2)]
