import re

import pytest
from ignite.engine import Engine
from ignite.engine import Events
from ignite.engine.events import State

from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import events
from ignite_hooks.hooks.channels import CHANNELS
from tests.draw_loop import drawing
from tests.reference import batches_of
from tests.reference import make_trainer

ALL_EVENTS = [*Events, *TrainEvents]
ONE_BATCH = [
    "GET_BATCH_STARTED",
    "GET_BATCH_COMPLETED",
    "ITERATION_STARTED",
    "MODEL_FORWARD_STARTED",
    "MODEL_FORWARD_COMPLETED",
    "MODEL_BACKWARD_STARTED",
    "MODEL_BACKWARD_COMPLETED",
    "ITERATION_COMPLETED",
]
STEP = ["OPTIMIZER_STEP_STARTED", "OPTIMIZER_STEP_COMPLETED"]
VALIDATION = ["VALIDATION_STARTED", "VALIDATION_COMPLETED"]


def names_of_events(trainer):
    names = []
    for event in ALL_EVENTS:
        trainer.add_event_handler(event, lambda *args, name=event.name, **more: names.append(name))
    return names


def with_step(batch):
    return [*batch[:-1], *STEP, batch[-1], "STEP_COMPLETED"]


def test_all_events_of_a_small_run_come_in_this_order():
    validation = Validation(lambda: None, every_steps=1, every_epochs=2, at_start=True)
    trainer = make_trainer(batches_of(2), validation=validation)
    names = names_of_events(trainer)
    trainer.run(max_epochs=2)
    one_epoch = [
        "EPOCH_STARTED",
        *with_step(ONE_BATCH),
        *VALIDATION,
        *with_step(ONE_BATCH),
        *VALIDATION,
        "EPOCH_COMPLETED",
    ]
    restarted = [each for each in names if each != "DATALOADER_STOP_ITERATION"]
    assert restarted == ["STARTED", *VALIDATION, *one_epoch, *one_epoch, "COMPLETED"]


def test_step_events_come_at_the_end_of_each_window():
    trainer = make_trainer(batches_of(3), accumulation=2)
    names = names_of_events(trainer)
    trainer.run()
    assert names == [
        "STARTED",
        "EPOCH_STARTED",
        *ONE_BATCH,
        *with_step(ONE_BATCH),
        *with_step(ONE_BATCH),
        "EPOCH_COMPLETED",
        "COMPLETED",
    ]


def test_a_run_of_two_batches_matches_the_drawing(tmp_path):
    known = "|".join(sorted((event.name for event in ALL_EVENTS), key=len, reverse=True))
    drawn = re.findall(rf"\b(?:{known})\b", drawing())
    trainer = make_trainer(
        batches_of(2),
        validation=Validation(lambda: None, every_steps=1),
        checkpoint=SaveCheckpoint(tmp_path, every_steps=1),
    )
    names = names_of_events(trainer)
    trainer.run()
    first_of_each = list(dict.fromkeys(names))
    assert first_of_each == drawn


def test_the_channels_open_and_close_where_they_are_drawn(tmp_path):
    known = "|".join(sorted((event.name for event in ALL_EVENTS), key=len, reverse=True))
    drawn = []
    for line in drawing().splitlines():
        drawn += [f"+{channel}" for channel in re.findall(r"(\w+) ┐", line)]
        drawn += re.findall(rf"\b(?:{known})\b", line)
        drawn += [f"-{channel}" for channel in re.findall(r"(\w+) ┘", line)]
    trainer = make_trainer(
        batches_of(2),
        validation=Validation(lambda: None, every_steps=1),
        checkpoint=SaveCheckpoint(tmp_path, every_steps=1),
    )
    log = names_of_events(trainer)
    for channel in CHANNELS:

        def context(engine, channel=channel):
            log.append(f"+{channel}")
            yield
            log.append(f"-{channel}")

        trainer.hooks.register(channel, context)
    trainer.run()
    assert list(dict.fromkeys(log)) == drawn
    assert {each[1:] for each in drawn if each[0] in "+-"} == set(CHANNELS)


def test_every_event_is_in_the_drawing_or_a_listed_exception():
    exceptions = {
        "TERMINATE",
        "TERMINATE_SINGLE_EPOCH",
        "INTERRUPT",
        "EXCEPTION_RAISED",
        "DATALOADER_STOP_ITERATION",
    }
    undrawn = {event.name for event in ALL_EVENTS if event.name not in events.__doc__}
    assert undrawn <= exceptions


def test_event_names_differ_from_those_of_ignite():
    assert not {event.name for event in TrainEvents} & {event.name for event in Events}
    assert not {event.value for event in TrainEvents} & {event.value for event in Events}


@pytest.mark.parametrize("event", TrainEvents, ids=lambda event: event.name)
def test_each_event_has_a_state_attribute(event):
    engine = Engine(lambda engine, batch: None)
    TrainEvents.register(engine)
    assert getattr(engine.state, State.event_to_attr[event]) == 0


def test_registering_twice_does_no_harm():
    engine = Engine(lambda engine, batch: None)
    TrainEvents.register(engine)
    allowed = list(engine._allowed_events)
    TrainEvents.register(engine)
    assert engine._allowed_events == allowed


def test_filters_count_batches_for_model_and_steps_for_step():
    trainer = make_trainer(
        batches_of(8), accumulation=2, validation=Validation(lambda: None, every_steps=1)
    )
    seen = {event: [] for event in TrainEvents if event is not TrainEvents.CHECKPOINT_SAVED}
    for event in seen:
        trainer.add_event_handler(
            event(every=2), lambda engine, event=event: seen[event].append(engine.state.iteration)
        )
    trainer.run()
    every_second_batch = [2, 4, 6, 8]
    every_second_step = [4, 8]
    for name, iterations in {event.name: iterations for event, iterations in seen.items()}.items():
        if name.startswith("MODEL"):
            assert iterations == every_second_batch
        elif name == "OPTIMIZER_STEP_STARTED":  # the steps before it: 0 and 2
            assert iterations == [2, 6]
        else:
            assert iterations == every_second_step


def test_trainer_events_support_once_and_event_filters():
    trainer = make_trainer(batches_of(4))
    seen = []
    trainer.add_event_handler(
        TrainEvents.STEP_COMPLETED(once=3), lambda: seen.append(trainer.state.iteration)
    )
    trainer.add_event_handler(
        TrainEvents.MODEL_FORWARD_STARTED(event_filter=lambda engine, number: number > 2),
        lambda: seen.append(("forward", trainer.state.iteration)),
    )
    trainer.run()
    assert seen == [("forward", 3), 3, ("forward", 4)]


def test_the_counters_start_from_scratch_in_a_new_run():
    trainer = make_trainer(batches_of(3), validation=Validation(lambda: None, every_steps=1))
    trainer.run(max_epochs=2)
    trainer.run(max_epochs=2)
    assert (trainer.state.optimizer_step, trainer.state.validation) == (6, 6)
