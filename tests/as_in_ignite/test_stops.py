"""Stops as in Ignite: terminate(), terminate_epoch(), interrupt(), and the run after them."""

import pytest
from ignite.engine import Engine
from ignite.engine import Events

from tests.as_in_ignite.sides import EVENTS_OF_RUNS
from tests.as_in_ignite.sides import counters
from tests.as_in_ignite.sides import listen
from tests.as_in_ignite.sides import outputs
from tests.as_in_ignite.sides import short_id

DROPS = "a batch whose step was not made is not counted"
CONTINUES = "a stopped run continues"


# terminate()

STOPS = [
    # the event of the call, then the counters at TERMINATE
    (Events.STARTED, (0, 0)),
    (Events.EPOCH_STARTED(once=2), (2, 4)),
    (Events.GET_BATCH_STARTED(once=5), (2, 5)),
    (Events.GET_BATCH_COMPLETED(once=5), (2, 5)),
    (Events.ITERATION_STARTED(once=6), (2, 6)),
    (Events.ITERATION_COMPLETED(once=6), (2, 6)),
    (Events.EPOCH_COMPLETED(once=2), (2, 8)),
]


@pytest.mark.parametrize("skip_completed", [False, True])
@pytest.mark.parametrize(("event", "expected"), STOPS, ids=short_id)
def test_terminate_stops_at_its_event(side, event, expected, skip_completed):
    engine = side.engine()
    engine.add_event_handler(event, lambda: engine.terminate(skip_completed))
    seen = listen(engine, *EVENTS_OF_RUNS)
    engine.run(range(4), max_epochs=5)
    *_, before, last = [each for each in seen if each[0] != "COMPLETED"]
    assert before == (event.name, *expected)
    assert last == ("TERMINATE", *expected)
    assert (seen[-1][0] == "COMPLETED") is not skip_completed
    assert engine.should_terminate == ("skip_completed" if skip_completed else True)
    if event.name == "ITERATION_STARTED":
        expected = side.departs(DROPS, ignite=(2, 6), ours=(2, 5))
    assert counters(engine) == expected


def test_terminate_without_data(side):
    engine = side.engine()
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=6), engine.terminate)
    engine.run(epoch_length=4, max_epochs=5)
    assert counters(engine) == (2, 6)


def test_terminate_at_the_last_batch_of_an_epoch(side):
    engine = side.engine()
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=4), engine.terminate)
    seen = listen(engine, Events.EPOCH_COMPLETED, Events.TERMINATE)
    engine.run(range(4), max_epochs=5)
    assert [name for name, *_ in seen] == side.departs(
        "a stop at the last batch completes the epoch",
        ignite=["TERMINATE"],
        ours=["EPOCH_COMPLETED", "TERMINATE"],
    )


def test_max_iters_within_an_epoch_is_a_stop(side):
    engine = side.engine()
    seen = listen(engine, Events.EPOCH_COMPLETED, Events.TERMINATE, Events.COMPLETED)
    engine.run(range(4), max_iters=6)
    assert seen == [("EPOCH_COMPLETED", 1, 4), ("TERMINATE", 2, 6), ("COMPLETED", 2, 6)]


@pytest.mark.parametrize(
    ("event", "left"),
    [
        (Events.ITERATION_COMPLETED(once=6), [2, 3, 0, 1, 2, 3]),
        (Events.EPOCH_COMPLETED(once=2), [0, 1, 2, 3]),
    ],
    ids=short_id,
)
def test_the_run_after_terminate(side, event, left):
    engine = side.engine()
    engine.add_event_handler(event, engine.terminate)
    data = range(4)
    engine.run(data, max_epochs=3)
    stopped_at = counters(engine)
    given, seen = outputs(engine), listen(engine, Events.STARTED)
    engine.run(data)
    assert seen == [("STARTED", *stopped_at)]
    assert not engine.should_terminate
    assert engine.state.epoch == 3
    assert given == side.departs(CONTINUES, ignite=[0, 1, 2, 3], ours=left)


def test_the_run_after_a_stop_in_the_last_epoch(side):
    engine = side.engine()
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.terminate)
    data = range(4)
    engine.run(data)
    engine.run(data)
    expected = side.departs(CONTINUES, ignite=(1, 2), ours=(1, 4))
    assert counters(engine) == expected


def test_an_epoch_stopped_at_its_start_is_not_skipped(side):
    engine, calls = side.engine(), iter([True])
    engine.add_event_handler(
        Events.EPOCH_STARTED(once=2), lambda: engine.terminate() if next(calls, False) else None
    )
    data, seen = range(4), listen(engine, Events.EPOCH_COMPLETED)
    engine.run(data, max_epochs=3)
    engine.run(data)
    left_out = [("EPOCH_COMPLETED", 1, 4), ("EPOCH_COMPLETED", 3, 8)]
    all_three = [("EPOCH_COMPLETED", epoch, 4 * epoch) for epoch in (1, 2, 3)]
    assert seen == side.departs(CONTINUES, ignite=left_out, ours=all_three)


# terminate_epoch()

ENDS = [
    # the event of the call, then the counters at TERMINATE_SINGLE_EPOCH and the batches so far
    (Events.GET_BATCH_STARTED(once=5), (2, 5), 1),
    (Events.GET_BATCH_COMPLETED(once=5), (2, 5), 1),
    (Events.ITERATION_STARTED(once=6), (2, 6), 2),
    (Events.ITERATION_COMPLETED(once=6), (2, 6), 2),
]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("event", "at", "batches"), ENDS, ids=short_id)
def test_terminate_epoch_ends_the_epoch_at_its_event(side, event, at, batches, skip):
    engine, counted, calls = side.engine(), [], iter([True])

    def end_once():  # the event fires again with the same number
        if next(calls, False):
            engine.terminate_epoch(skip_epoch_completed=skip)
            assert engine.should_terminate_single_epoch == (
                "skip_epoch_completed" if skip else True
            )

    engine.add_event_handler(event, end_once)
    engine.add_event_handler(
        Events.TERMINATE_SINGLE_EPOCH, lambda iter_counter: counted.append(iter_counter)
    )
    seen = listen(engine, *EVENTS_OF_RUNS)
    engine.run(range(4), max_epochs=3)
    where = seen.index(("TERMINATE_SINGLE_EPOCH", *at))
    assert seen[where - 1] == (event.name, *at)
    completed = [] if skip else [("EPOCH_COMPLETED", *at)]
    assert seen[where + 1 :][: len(completed) + 1] == [*completed, ("EPOCH_STARTED", 3, at[1])]
    assert not engine.should_terminate_single_epoch
    assert counters(engine) == (3, at[1] + 4)
    assert counted == [batches]


def test_the_epoch_after_terminate_epoch_begins_with_the_data(side):
    engine = side.engine()
    given = outputs(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.terminate_epoch)
    engine.run(range(4), max_epochs=2)
    assert given == [0, 1, 0, 1, 2, 3]


def test_a_batch_counts_if_its_epoch_ends_before_its_step(side):
    engine = side.engine()
    given = outputs(engine)
    engine.add_event_handler(Events.ITERATION_STARTED(once=2), engine.terminate_epoch)
    engine.run(range(4), max_epochs=2)
    assert given == [0, 0, 1, 2, 3]
    assert counters(engine) == (2, 6)


@pytest.mark.parametrize("event", [Events.STARTED, Events.EPOCH_STARTED])
def test_an_epoch_without_a_batch_cannot_be_ended(side, event):
    engine = side.engine()
    engine.add_event_handler(event, engine.terminate_epoch)
    with pytest.raises(RuntimeError, match=r"terminate_epoch\(\)"):
        engine.run(range(4))


def test_terminate_epoch_when_the_epoch_is_complete_does_nothing(side):
    engine = side.engine()
    engine.add_event_handler(Events.EPOCH_COMPLETED(once=1), engine.terminate_epoch)
    seen = listen(engine, Events.TERMINATE_SINGLE_EPOCH)
    engine.run(range(4), max_epochs=2)
    assert counters(engine) == (2, 8)
    assert seen == []


# interrupt()

INTERRUPTIONS = [
    (Events.STARTED, (0, 0)),
    (Events.EPOCH_STARTED(once=2), (2, 4)),
    (Events.GET_BATCH_STARTED(once=5), (2, 5)),
    (Events.GET_BATCH_COMPLETED(once=5), (2, 5)),
    (Events.DATALOADER_STOP_ITERATION, (2, 4)),
    (Events.ITERATION_STARTED(once=6), (2, 6)),
    (Events.ITERATION_COMPLETED(once=6), (2, 6)),
    (Events.EPOCH_COMPLETED(once=1), (1, 4)),
]


@pytest.mark.parametrize(("event", "expected"), INTERRUPTIONS, ids=short_id)
def test_an_interrupted_run_continues_where_it_was(side, event, expected):
    unbroken = side.engine()
    whole = listen(unbroken, *EVENTS_OF_RUNS)
    unbroken.run(range(4), max_epochs=2)

    engine, calls = side.engine(), iter([True])
    engine.add_event_handler(event, lambda: engine.interrupt() if next(calls, False) else None)
    seen, given = listen(engine, *EVENTS_OF_RUNS), outputs(engine)
    state = engine.run(range(4), max_epochs=2)
    assert state is engine.state
    assert counters(engine) == expected
    assert not engine.should_interrupt
    assert seen[-2:] == [(event.name, *expected), ("INTERRUPT", *expected)]
    del seen[-1]
    engine.run(range(4), max_epochs=2)
    again = [("GET_BATCH_STARTED", 2, 4)] if event.name == "DATALOADER_STOP_ITERATION" else []
    again = side.departs("no second GET_BATCH_STARTED after interrupt()", ignite=again, ours=[])
    position = whole.index((event.name, *expected)) + 1
    assert seen == whole[:position] + again + whole[position:]
    assert given == [0, 1, 2, 3, 0, 1, 2, 3]


def test_a_run_may_be_interrupted_many_times(side):
    engine, stops = side.engine(), []
    given = outputs(engine)
    handle = engine.add_event_handler(Events.ITERATION_COMPLETED(every=3), engine.interrupt)
    for _ in range(3):
        engine.run(range(4), max_epochs=3)
        stops.append(counters(engine))
    assert stops == [(1, 3), (2, 6), (3, 9)]
    handle.remove()
    engine.run(range(4), max_epochs=3)
    assert counters(engine) == (3, 12)
    assert given == [0, 1, 2, 3] * 3
    seen = listen(engine, Events.STARTED)
    engine.run(range(4), max_epochs=3)
    assert seen == [("STARTED", 0, 0)]


def test_without_a_limit_the_run_after_interrupt_starts_over(side):
    engine = side.engine()
    handle = engine.add_event_handler(Events.ITERATION_COMPLETED(every=6), engine.interrupt)
    data = range(4)
    engine.run(data, max_epochs=3)
    seen = listen(engine, Events.STARTED)
    engine.state.max_epochs = None
    engine.run(data, max_epochs=3)
    assert seen == [("STARTED", 0, 0)]
    assert counters(engine) == (2, 6)
    handle.remove()
    engine.state.max_epochs = None
    engine.run(data, max_epochs=2)
    assert seen == [("STARTED", 0, 0)] * 2
    assert counters(engine) == (2, 8)


def test_interrupt_can_be_disabled_for_all_engines(side, monkeypatch):
    monkeypatch.setattr(Engine, "interrupt_resume_enabled", False)
    engine = side.engine()
    engine.add_event_handler(Events.ITERATION_COMPLETED, engine.interrupt)
    with pytest.raises(RuntimeError, match="interrupt"):
        engine.run(range(4))


def test_a_stop_while_interrupted(side):
    engine = side.engine()
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.interrupt)
    engine.run(range(4), max_epochs=2)
    engine.terminate()
    seen = listen(engine, *EVENTS_OF_RUNS)
    engine.run(range(4), max_epochs=2)
    names = [name for name, *_ in seen]
    assert names == ["GET_BATCH_STARTED", "TERMINATE", "COMPLETED"]


# The run after a finished run


def test_the_same_limit_again_begins_a_new_run(side):
    engine = side.engine()
    seen = listen(engine, Events.STARTED)
    for _ in range(3):
        engine.run(range(4), max_epochs=2)
        assert counters(engine) == (2, 8)
    assert seen == [("STARTED", 0, 0)] * 3


@pytest.mark.parametrize(
    ("first", "second", "done"),
    [
        ({"max_epochs": 2}, {"max_epochs": 3}, (2, 8)),
        ({"max_iters": 4}, {"max_iters": 12}, (1, 4)),
    ],
    ids=short_id,
)
def test_a_further_limit_continues(side, first, second, done):
    engine, data = side.engine(), range(4)
    engine.run(data, **first)
    given, seen = outputs(engine), listen(engine, Events.STARTED)
    engine.run(data, **second)
    assert seen == [("STARTED", *done)]
    assert counters(engine) == (3, 12)
    assert given == [0, 1, 2, 3] * (3 - done[0])


@pytest.mark.parametrize("limits", [{"max_epochs": 1}, {"max_iters": 3}], ids=short_id)
def test_a_limit_below_what_is_done_is_an_error(side, limits):
    engine = side.engine()
    engine.run(range(4), **{name: 2 * limit for name, limit in limits.items()})
    with pytest.raises(ValueError, match=r"state\.max_(epochs|iters) = None"):
        engine.run(range(4), **limits)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"max_epochs": 3}, {"max_epochs": 2}, (2, 8)),
        ({"max_epochs": 3}, {"max_iters": 2}, (1, 2)),
        ({"max_iters": 7}, {"max_epochs": 2}, (2, 8)),
    ],
    ids=short_id,
)
def test_a_limit_set_to_none_begins_a_new_run(side, first, second, expected):
    engine = side.engine()
    engine.run(range(4), **first)
    seen = listen(engine, Events.STARTED)
    (name,) = first
    setattr(engine.state, name, None)
    engine.run(range(4), **second)
    assert seen == [("STARTED", 0, 0)]
    assert counters(engine) == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"max_epochs": 1}, {"max_iters": 6}, (2, 6)),
        ({"max_iters": 4}, {"max_epochs": 2}, (2, 8)),
    ],
    ids=short_id,
)
def test_a_further_limit_of_another_kind(side, first, second, expected):
    engine, data = side.engine(), range(4)
    engine.run(data, **first)
    with side.accepts("a finished run continues to another kind of limit"):
        engine.run(data, **second)
    done = side.departs(
        "a finished run continues to another kind of limit", ignite=(1, 4), ours=expected
    )
    assert counters(engine) == done


def test_another_epoch_length_on_the_same_data_is_an_error(side):
    engine, data = side.engine(), [0, 1, 2]
    engine.run(data, max_epochs=1)
    with pytest.raises(ValueError, match="epoch_length"):
        engine.run(data, max_epochs=2, epoch_length=2)


def test_other_data_may_have_another_length(side):
    engine = side.engine()
    engine.run([0, 1, 2], max_epochs=1)
    with side.accepts("other data may have another length"):
        engine.run([0, 1, 2, 3], max_epochs=2, epoch_length=4)
    done = side.departs("other data may have another length", ignite=(1, 3), ours=(2, 7))
    assert counters(engine) == done
