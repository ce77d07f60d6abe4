import pytest
import torch
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks import TrainEvents
from tests.ids import stable_id
from tests.reference import Repeatable
from tests.reference import batches_of
from tests.reference import make_trainer
from tests.reference import seed
from tests.reference import shuffled
from tests.reference import trained
from tests.reference import weights


@pytest.mark.parametrize(
    ("data", "limits", "expected"),
    [
        (list, {"max_epochs": 2}, [3, 2, 1, 3, 2, 1]),
        (list, {"epoch_length": 2}, [2, 1]),
        (list, {"epoch_length": 5}, [3, 2, 1, 2, 1]),
        (list, {"max_iters": 4}, [3, 2, 1, 1]),
        (Repeatable, {"max_epochs": 2}, [None, None, 1, None, None, 1]),
        (Repeatable, {"epoch_length": 2, "max_epochs": 2}, [2, 1, 1, 1]),
        (Repeatable, {"max_iters": 2}, [2, 1]),
    ],
)
def test_the_batches_left_are_those_of_data_epoch_or_run_whichever_ends_first(
    data, limits, expected
):
    trainer, left = make_trainer(), []
    trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: left.append(engine.batches_left)
    )
    trainer.run(data(batches_of(3)), **limits)
    assert left == expected


@pytest.mark.parametrize(
    ("limits", "windows"),
    [
        ({"max_epochs": 1}, [3, 5]),
        ({"max_iters": 4}, [3, 4]),
        ({"max_iters": 7}, [3, 5, 7]),
        ({"epoch_length": 4, "max_epochs": 2}, [3, 4, 5, 8]),
        ({"epoch_length": 7}, [3, 5, 7]),
    ],
    ids=stable_id,
)
@pytest.mark.parametrize("data", [list, Repeatable], ids=["list", "stream"])
def test_a_window_closes_at_the_end_of_a_pass_of_an_epoch_and_of_the_run(limits, windows, data):
    trainer, steps = make_trainer(accumulation=3), []
    trainer.add_event_handler(
        TrainEvents.GRADIENTS_CLEARED, lambda engine: steps.append(engine.state.iteration)
    )
    trainer.run(data(batches_of(5)), **limits)
    assert steps == windows


@pytest.mark.parametrize(
    ("accumulation", "number", "boundary"), [(2, 2, 2), (2, 3, 2), (3, 2, 0), (3, 5, 3)]
)
def test_batches_that_were_not_stepped_on_are_counted_no_more(accumulation, number, boundary):
    trainer = make_trainer(batches_of(6), accumulation=accumulation)
    stop = trainer.add_event_handler(Events.ITERATION_COMPLETED(once=number), Engine.terminate)
    trainer.run()
    stop.remove()
    assert trainer.state.iteration == trainer.feed.position.batches == boundary
    trainer.run()
    assert (trainer.state.iteration, trainer.state.optimizer_step) == (6, 6 / accumulation)


@pytest.mark.parametrize(
    "event",
    [Events.STARTED, Events.EPOCH_STARTED, Events.ITERATION_STARTED, Events.ITERATION_COMPLETED],
    ids=lambda event: event.name,
)
@pytest.mark.parametrize("value", [0, 1, 99, None])
def test_what_a_handler_writes_to_the_state_does_not_steer(event, value):
    expected, unbroken = trained(shuffled, accumulation=2)
    names = ("iteration", "epoch", "epoch_length", "max_epochs", "max_iters", "max_steps")
    names += ("optimizer_step", "step_committed", "start_epoch", "start_step")

    def scribble(engine):
        for name in names:
            setattr(engine.state, name, value)

    seed()
    trainer = make_trainer(shuffled(), accumulation=2)
    trainer.add_event_handler(event, scribble)
    trainer.run(max_epochs=2)
    assert torch.equal(weights(trainer.model), expected)
    assert trainer._place.progress == unbroken._place.progress


@pytest.mark.parametrize("event", [Events.STARTED, Events.EPOCH_STARTED, Events.COMPLETED])
def test_with_max_steps_alone_max_epochs_is_what_it_takes(event):
    trainer, shown = make_trainer(batches_of(5), accumulation=2), []
    trainer.add_event_handler(event, lambda engine: shown.append(engine.state.max_epochs))
    trainer.run(max_steps=7)
    assert set(shown) == {3}


def test_max_epochs_that_was_asked_for_is_shown_as_it_is():
    trainer = make_trainer(batches_of(5), accumulation=2)
    trainer.run(max_steps=7, max_epochs=2)
    assert trainer.state.max_epochs == 2


def test_max_epochs_that_is_only_shown_is_no_limit_of_the_next_run():
    trainer = make_trainer(batches_of(5), accumulation=2)
    trainer.run(max_steps=7)
    trainer.run(max_steps=12)
    assert (trainer.state.optimizer_step, trainer.state.max_epochs) == (12, 4)


def test_with_a_stream_max_epochs_is_known_after_its_first_pass():
    trainer, shown = make_trainer(Repeatable(batches_of(5)), accumulation=2), []
    trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda engine: shown.append(engine.state.max_epochs)
    )
    trainer.run(max_steps=7)
    assert shown == [None, 3, 3]


def test_max_epochs_grows_when_steps_are_skipped():
    trainer, shown = make_trainer(batches_of(4)), []
    step = trainer.optimizer.optimizer.step
    calls = []

    def skip_some():
        calls.append(1)
        if len(calls) > 3:
            step()

    trainer._optimizer_step.prepared.is_plain = False
    trainer.optimizer.step = skip_some
    type_of = type(trainer.optimizer)
    skipped = property(lambda self: len(calls) <= 3)
    trainer.optimizer.__class__ = type("Skipping", (type_of,), {"step_was_skipped": skipped})
    trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda engine: shown.append(engine.state.max_epochs)
    )
    trainer.run(max_steps=8)
    assert shown == [2, 3, 3]
    state = trainer.state
    assert (state.epoch, state.iteration, state.optimizer_step) == (3, 11, 8)
