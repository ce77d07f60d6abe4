import gc
import warnings

import pytest
import torch
from accelerate.state import GradientState
from ignite.engine import Engine
from ignite.engine import Events
from torch.utils.data import DataLoader

from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from tests.ids import stable_id
from tests.reference import NO_DATA
from tests.reference import WITHIN_THE_DATA
from tests.reference import Repeatable
from tests.reference import assert_clean
from tests.reference import augmented
from tests.reference import batches_of
from tests.reference import make_trainer
from tests.reference import position
from tests.reference import record
from tests.reference import samples
from tests.reference import seed
from tests.reference import shuffled
from tests.reference import trained
from tests.reference import weights

# Batches, and data that ends


@pytest.mark.parametrize(
    "limits",
    [
        {"max_epochs": 3},
        {"max_iters": 8},
        {"max_epochs": 2, "epoch_length": 3},
        {"max_epochs": 2, "epoch_length": 6},
        {"max_epochs": 2, "epoch_length": 9},
    ],
    ids=stable_id,
)
def test_the_end_of_the_data_is_fired_where_ignite_fires_it(limits):
    engine = Engine(lambda engine, batch: None)
    trainer = make_trainer()
    seen = {each: record(each, Events) for each in (engine, trainer)}
    for each in seen:
        each.run(batches_of(4), **limits)
    assert seen[trainer] == seen[engine]


@pytest.mark.parametrize("epoch_length", [2, 3, 5])
def test_other_data_can_be_set_when_the_old_is_used_up_as_in_ignite(epoch_length):
    batches = [batches_of(3) for _ in range(9)]
    known = [batch for each in batches for batch in each]
    engine = Engine(lambda engine, batch: None)
    trainer = make_trainer()
    seen = {}
    for each in (engine, trainer):
        data, order = iter(batches), []

        @each.on(Events.DATALOADER_STOP_ITERATION)
        def set_next(engine, data=data):
            engine.set_data(iter(next(data)))

        @each.on(Events.ITERATION_STARTED)
        def note(engine, order=order):
            order.append(position(known, engine.state.batch))

        each.run(iter(next(data)), max_epochs=3, epoch_length=epoch_length)
        seen[each] = order
    assert seen[trainer] == seen[engine]


@pytest.mark.parametrize("limits", [{}, {"max_epochs": 3}, {"max_iters": 5}])
def test_without_data_the_events_are_those_of_ignite(limits):
    engine = Engine(lambda engine, batch: None)
    trainer = make_trainer(**NO_DATA)
    seen = {each: record(each, Events) for each in (engine, trainer)}
    for each in seen:
        each.run(epoch_length=3, **limits)
        assert each.state.batch is None
    assert seen[trainer] == seen[engine]
    assert trainer.state.dataloader is None


def test_a_stop_without_data_goes_on_in_mid_epoch():
    trainer = make_trainer(**NO_DATA)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), Engine.terminate)
    trainer.run(epoch_length=4, max_epochs=2)
    trainer.run()
    assert (trainer.state.iteration, trainer.state.epoch) == (8, 2)


def test_a_stop_iteration_of_a_handler_is_a_failure_and_not_the_end_of_the_data():
    trainer = make_trainer(batches_of(3))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: next(iter(())))
    with pytest.raises((StopIteration, RuntimeError)):
        trainer.run()
    assert trainer.state.iteration == 2


# An epoch that is ended


def test_handlers_of_terminate_single_epoch_are_told_how_many_batches_there_were():
    trainer = make_trainer(batches_of(4))
    told = []
    trainer.add_event_handler(
        Events.TERMINATE_SINGLE_EPOCH,
        lambda engine, iter_counter: told.append(iter_counter),
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=3), Engine.terminate_epoch)
    trainer.run(max_epochs=2)
    assert told == [3, 3]


def test_after_an_ended_epoch_the_next_pass_begins():
    batches = batches_of(4)
    trainer, order = make_trainer(batches), []
    trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: order.append(position(batches, engine.state.batch))
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), Engine.terminate_epoch)
    trainer.run(max_epochs=2)
    assert order == [0, 1, 0, 1, 2, 3]
    assert trainer.feed.position.data_pass == 2


def test_an_ended_epoch_drops_the_open_window():
    trainer = make_trainer(batches_of(5), accumulation=3)
    steps = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), Engine.terminate_epoch)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), Engine.terminate_epoch)

    @trainer.on(Events.EPOCH_COMPLETED)
    def look(engine):
        grads = [parameter.grad for parameter in engine.model.parameters()]
        steps.append((engine.state.optimizer_step, all(grad is None for grad in grads)))

    trainer.run(max_epochs=2)
    assert steps == [(1, True), (1, True)]


# Stops and limits


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("data", [batches_of(3), Repeatable(batches_of(3))], ids=["list", "stream"])
def test_a_stop_on_the_last_batch_lets_the_epoch_complete_first(skip, data):
    trainer = make_trainer(data)
    names = record(trainer, Events)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda e: e.terminate(skip))
    trainer.run(max_epochs=2)
    assert [name for name, *_ in names[-3:]] == (
        ["ITERATION_COMPLETED", "EPOCH_COMPLETED", "TERMINATE"]
        if skip
        else ["EPOCH_COMPLETED", "TERMINATE", "COMPLETED"]
    )
    assert (trainer.state.epoch, trainer.state.iteration) == (1, 3)
    del names[:]
    trainer.run()
    assert names[:2] == [("STARTED", 1, 3), ("EPOCH_STARTED", 2, 3)]
    assert names[-1] == ("COMPLETED", 2, 6)


def test_max_steps_on_the_last_batch_lets_the_epoch_complete_first():
    trainer = make_trainer(batches_of(3))
    names = record(trainer, Events)
    trainer.run(max_steps=3)
    assert [name for name, *_ in names[-3:]] == ["EPOCH_COMPLETED", "TERMINATE", "COMPLETED"]


def test_max_steps_in_mid_epoch_is_a_stop():
    trainer = make_trainer(batches_of(3))
    names = record(trainer, Events)
    trainer.run(max_steps=2)
    assert [name for name, *_ in names[-3:]] == ["ITERATION_COMPLETED", "TERMINATE", "COMPLETED"]


@pytest.mark.parametrize("event", [Events.GET_BATCH_STARTED, Events.ITERATION_STARTED])
def test_a_stop_before_the_last_batch_does_not_complete_the_epoch(event):
    trainer = make_trainer(batches_of(3))
    names = record(trainer, [Events.EPOCH_COMPLETED, Events.TERMINATE])
    handler = trainer.add_event_handler(
        event, lambda e: e.terminate() if e.state.optimizer_step == 2 else None
    )
    trainer.run()
    assert [name for name, *_ in names] == ["TERMINATE"]
    handler.remove()
    trainer.run()
    assert [name for name, *_ in names] == ["TERMINATE", "EPOCH_COMPLETED"]
    assert trainer.state.iteration == 3


def test_a_validation_that_is_due_comes_before_a_stop_is_obeyed():
    validation = Validation(lambda: None, every_steps=1)
    trainer = make_trainer(batches_of(3), validation=validation)
    events = [Events.TERMINATE, TrainEvents.VALIDATION_COMPLETED, Events.EPOCH_COMPLETED]
    names = record(trainer, events)
    trainer.run(max_steps=2)
    assert [name for name, *_ in names] == [*["VALIDATION_COMPLETED"] * 2, "TERMINATE"]
    del names[:]
    trainer.run(max_steps=3)
    assert [name for name, *_ in names] == ["EPOCH_COMPLETED", "VALIDATION_COMPLETED", "TERMINATE"]


# Interruption


@pytest.mark.parametrize(
    "event",
    [
        Events.STARTED,
        Events.EPOCH_STARTED(once=2),
        Events.GET_BATCH_STARTED(once=3),
        Events.GET_BATCH_COMPLETED(once=3),
        Events.ITERATION_STARTED(once=3),
        Events.ITERATION_COMPLETED(once=3),
        Events.ITERATION_COMPLETED(once=4),
        Events.EPOCH_COMPLETED(once=1),
        Events.EPOCH_COMPLETED(once=2),
        Events.COMPLETED,
    ],
    ids=lambda event: f"{event.name}",
)
def test_interrupt_and_going_on_are_those_of_ignite(event):
    engine = Engine(lambda engine, batch: None)
    trainer = make_trainer()
    seen = {}
    for each in (engine, trainer):
        seen[each] = record(each, WITHIN_THE_DATA)
        each.add_event_handler(event, Engine.interrupt)
        each.run(batches_of(4), max_epochs=2)
        seen[each].append("interrupted or completed")
        if event != Events.COMPLETED:
            each.run(batches_of(4), max_epochs=2)
    assert seen[trainer] == seen[engine]


@pytest.mark.parametrize("stop", [Engine.terminate, Engine.terminate_epoch])
def test_a_stop_while_interrupted_is_obeyed_as_in_ignite(stop):
    engine = Engine(lambda engine, batch: None)
    trainer = make_trainer()
    seen = {}
    for each in (engine, trainer):
        seen[each] = record(each, WITHIN_THE_DATA)
        each.add_event_handler(Events.ITERATION_COMPLETED(once=2), Engine.interrupt)
        each.run(batches_of(4), max_epochs=2)
        stop(each)
        each.run()
    assert seen[trainer] == seen[engine]


@pytest.mark.parametrize("make_data", [augmented, lambda: batches_of(5)], ids=["loader", "list"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_an_interrupted_run_that_goes_on_is_the_uninterrupted_one(accumulation, make_data):
    options = {"accumulation": accumulation, "dropout": 0.5}
    expected, unbroken = trained(make_data, **options)
    for number in range(1, 11):
        seed()
        trainer = make_trainer(make_data(), **options)
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=number), trainer.interrupt)
        trainer.run(max_epochs=2)
        assert trainer.state.iteration == number
        assert GradientState().dataloader_references == [None]
        is_open = any(parameter.grad is not None for parameter in trainer.model.parameters())
        assert is_open == (number % 5 not in ((0, 3) if accumulation == 3 else range(5)))
        trainer.run()
        assert torch.equal(weights(trainer.model), expected)
        assert trainer._place.progress == unbroken._place.progress
        assert_clean(trainer)


def test_while_interrupted_another_loader_may_be_iterated():
    def in_order():
        return DataLoader(samples(10), batch_size=2)

    expected, _ = trained(in_order, accumulation=3)
    trainer = make_trainer(in_order(), accumulation=3)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), trainer.interrupt)
    trainer.run(max_epochs=2)
    other = trainer.accelerator.prepare(DataLoader(samples(6), batch_size=2))
    for _ in other:
        break
    assert len(GradientState().dataloader_references) == 2
    trainer.run()
    assert torch.equal(weights(trainer.model), expected)
    other.end()


def test_other_data_while_interrupted_leaves_no_reference():
    trainer = make_trainer(shuffled())
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), trainer.interrupt)
    trainer.run(max_epochs=2)
    trainer.set_data(shuffled())
    trainer.run()
    assert trainer.state.iteration == 10
    assert GradientState().dataloader_references == [None]


def test_interrupt_may_come_again_and_again():
    expected, _ = trained(shuffled, accumulation=2)
    seed()
    trainer = make_trainer(shuffled(), accumulation=2)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, trainer.interrupt)
    runs = 0
    trainer.run(max_epochs=2)
    while trainer.stop_reason is None:
        runs += 1
        assert trainer.state.iteration == runs
        trainer.run()
    assert runs == 10
    assert torch.equal(weights(trainer.model), expected)


def test_a_trainer_that_is_interrupted_and_dropped_leaves_nothing():
    trainer = make_trainer(shuffled(), accumulation=3)
    model = trainer.model
    errors = []
    trainer.add_event_handler(Events.EXCEPTION_RAISED, errors.append)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), trainer.interrupt)
    trainer.run()
    assert any(parameter.grad is not None for parameter in model.parameters())
    with warnings.catch_warnings(record=True) as caught:
        del trainer
        gc.collect()
    assert caught == errors == []
    assert GradientState().dataloader_references == [None]
    assert all(parameter.grad is None for parameter in model.parameters())


# What is done at the end of a run


def noting_ends(trainer):
    """A list of the names of three events and of "end", in their order, and what undoes it."""
    names = []
    for event in (Events.EPOCH_COMPLETED, Events.TERMINATE, Events.COMPLETED):
        trainer.add_event_handler(event, lambda engine, event=event: names.append(event.name))
    return names, trainer.call_at_end(lambda: names.append("end"))


@pytest.mark.parametrize(
    ("limits", "stop_at", "expected"),
    [
        ({"max_epochs": 1}, None, ["EPOCH_COMPLETED", "end", "COMPLETED"]),
        ({"max_steps": 2}, None, ["end", "TERMINATE", "COMPLETED"]),
        ({"max_steps": 3}, None, ["EPOCH_COMPLETED", "end", "TERMINATE", "COMPLETED"]),
        ({"max_iters": 4}, None, ["end", "TERMINATE", "COMPLETED"]),
        ({}, 4, ["end", "TERMINATE", "COMPLETED"]),
        ({}, 6, ["EPOCH_COMPLETED", "end", "TERMINATE", "COMPLETED"]),
        ({}, 3, ["TERMINATE", "COMPLETED"]),
    ],
    ids=stable_id,
)
def test_what_is_to_be_done_at_the_end_is_done_once_at_a_boundary(limits, stop_at, expected):
    trainer = make_trainer(batches_of(6), accumulation=2)
    names, _ = noting_ends(trainer)
    if stop_at is not None:
        event = Events.ITERATION_COMPLETED(once=stop_at)
        trainer.add_event_handler(event, lambda: trainer.terminate())
    trainer.run(**limits)
    assert names == expected


def test_at_the_end_comes_after_what_is_postponed_and_is_undone():
    trainer, names = make_trainer(batches_of(2)), []
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: trainer.defer(lambda: names.append("postponed"), 9)
    )
    undo = trainer.call_at_end(lambda: names.append("end"))
    trainer.run(max_epochs=2)
    assert names == ["postponed", "postponed", "end"]
    undo()
    trainer.run(max_epochs=3)
    assert names[3:] == ["postponed"]


def test_a_stop_that_comes_from_what_is_postponed_is_an_end():
    trainer = make_trainer(batches_of(4))
    names, _ = noting_ends(trainer)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda: trainer.defer(trainer.terminate)
    )
    trainer.run()
    assert names == ["end", "TERMINATE", "COMPLETED"]


def test_a_failure_and_an_interruption_are_no_ends():
    trainer = make_trainer(batches_of(4))
    names, _ = noting_ends(trainer)
    event = Events.ITERATION_COMPLETED(once=2)
    handle = trainer.add_event_handler(event, trainer.interrupt)
    trainer.run()
    handle.remove()
    assert names == []
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: next(iter(())))
    with pytest.raises((StopIteration, RuntimeError)):
        trainer.run()
    assert names == []


def test_an_epoch_is_being_left_from_its_first_batch_on_until_it_completes():
    trainer, seen = make_trainer(batches_of(4)), []

    def look(event):
        seen.append((event, trainer.is_leaving_epoch))

    for event in (Events.EPOCH_STARTED, Events.ITERATION_STARTED, Events.ITERATION_COMPLETED):
        trainer.add_event_handler(event, lambda engine, event=event: look(event.name))
    stop = Events.ITERATION_COMPLETED(once=2)
    trainer.add_event_handler(stop, lambda: (trainer.terminate_epoch(), look("ended")))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: look("EPOCH_COMPLETED"))
    trainer.run(max_epochs=2, epoch_length=2)
    assert [each for each in seen if each[1]] == [("ended", True)]
    assert seen.count(("EPOCH_COMPLETED", False)) == 2
