"""Runs as in Ignite: their arguments, what the state shows, and the events in their order."""

import pytest
import torch
from ignite.engine import Events
from ignite.engine import State
from torch.utils.data import BatchSampler
from torch.utils.data import DataLoader
from torch.utils.data import SequentialSampler

from ignite_hooks import TrainEvents
from tests.as_in_ignite.sides import EVENTS_OF_RUNS
from tests.as_in_ignite.sides import UnknownLength
from tests.as_in_ignite.sides import counters
from tests.as_in_ignite.sides import endless
from tests.as_in_ignite.sides import listen
from tests.as_in_ignite.sides import outputs
from tests.as_in_ignite.sides import short_id

BATCH = [
    "GET_BATCH_STARTED",
    "GET_BATCH_COMPLETED",
    "ITERATION_STARTED",
    "ITERATION_COMPLETED",
]


OF_A_WHOLE_RUN = [event for event in EVENTS_OF_RUNS if not event.name.startswith(("TERM", "INT"))]

# The arguments of run()

LIMITS = [
    # limits, then epoch, iteration, epoch_length, max_epochs, max_iters of the state
    ({}, (1, 4, 4, 1, None)),
    ({"max_epochs": 3}, (3, 12, 4, 3, None)),
    ({"max_iters": 3}, (1, 3, 4, None, 3)),
    ({"max_iters": 6}, (2, 6, 4, None, 6)),
    ({"max_iters": 8}, (2, 8, 4, None, 8)),
    ({"max_epochs": 2, "epoch_length": 3}, (2, 6, 3, 2, None)),
    ({"max_epochs": 2, "epoch_length": 4}, (2, 8, 4, 2, None)),
    ({"max_epochs": 2, "epoch_length": 9}, (2, 18, 9, 2, None)),
    ({"max_iters": 7, "epoch_length": 3}, (3, 7, 3, None, 7)),
]


@pytest.mark.parametrize(
    "make_data",
    [lambda: [0, 1, 2, 3], lambda: DataLoader([0, 1, 2, 3], batch_size=None)],
    ids=["list", "loader"],
)
@pytest.mark.parametrize(("limits", "expected"), LIMITS, ids=short_id)
def test_limits_and_lengths_of_a_run(side, make_data, limits, expected):
    engine = side.engine()
    given = outputs(engine)
    data = make_data()
    state = engine.run(data, **limits)
    assert state is engine.state
    assert isinstance(state, State)
    assert (*counters(engine), state.epoch_length, state.max_epochs, state.max_iters) == expected
    assert given == [number % 4 for number in range(expected[1])]


@pytest.mark.parametrize(
    ("limits", "expected"), [({}, (1, 4)), ({"max_epochs": 3}, (3, 12)), ({"max_iters": 6}, (2, 6))]
)
def test_data_without_a_length_show_it_after_one_pass(side, limits, expected):
    engine, lengths = side.engine(), []
    given = outputs(engine)
    engine.add_event_handler(
        Events.EPOCH_STARTED | Events.EPOCH_COMPLETED,
        lambda engine: lengths.append(engine.state.epoch_length),
    )
    engine.run(UnknownLength(4), **limits)
    assert counters(engine) == expected
    assert given == [number % 4 for number in range(expected[1])]
    assert lengths[:2] == [None, 4]
    length = (
        4
        if "max_iters" not in limits
        else side.departs("an epoch is one pass", ignite=4, ours=None)
    )
    assert engine.state.epoch_length == length
    derived = side.departs("max_iters does not set max_epochs", ignite=2, ours=None)
    assert engine.state.max_epochs == (derived if "max_iters" in limits else expected[0])


def test_max_iters_within_the_first_pass_shows_no_length(side):
    engine = side.engine()
    engine.run(UnknownLength(9), max_iters=5)
    assert counters(engine) == (1, 5)
    assert engine.state.epoch_length is None


def test_a_length_that_raises_a_type_error_is_unknown(side):
    class Stream(UnknownLength):
        def __len__(self):
            raise TypeError("a stream has no length")

    engine = side.engine()
    engine.run(Stream(3), max_epochs=2)
    assert (*counters(engine), engine.state.epoch_length) == (2, 6, 3)


@pytest.mark.parametrize("epoch_length", [2, 4, 7])
def test_an_endless_iterator_runs_on_across_epochs(side, epoch_length):
    engine = side.engine()
    given = outputs(engine)
    engine.run(endless(), max_epochs=3, epoch_length=epoch_length)
    assert counters(engine) == (3, 3 * epoch_length)
    assert given == list(range(3 * epoch_length))


def test_an_endless_iterator_without_a_length_is_one_epoch(side):
    engine = side.engine()
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=15), engine.terminate)
    engine.run(endless())
    assert counters(engine) == (1, 15)


def test_an_iterator_is_one_epoch(side):
    engine = side.engine()
    seen = listen(engine, Events.EPOCH_COMPLETED, Events.COMPLETED)
    engine.run(iter(range(5)))
    assert seen == [("EPOCH_COMPLETED", 1, 5), ("COMPLETED", 1, 5)]


@pytest.mark.filterwarnings("ignore:Data iterator can not provide data anymore")
@pytest.mark.parametrize("limits", [{}, {"epoch_length": 5}, {"epoch_length": 7}], ids=short_id)
def test_an_iterator_that_ends_before_the_run(side, limits):
    engine = side.engine()
    with side.refuses("data that end too early are an error"):
        engine.run(iter(range(5)), max_epochs=2, **limits)
    assert engine.state.iteration == 5


def test_a_loader_of_whole_batches(side):
    order = BatchSampler(SequentialSampler(range(6)), batch_size=2, drop_last=False)
    engine = side.engine()
    given = outputs(engine)
    engine.run(DataLoader(torch.arange(6), batch_size=None, sampler=order), epoch_length=4)
    assert [batch.tolist() for batch in given] == [[0, 1], [2, 3], [4, 5], [0, 1]]


INVALID = [
    ({"data": print}, TypeError),
    ({"data": 3}, TypeError),
    ({"data": []}, ValueError),
    ({"data": None}, ValueError),
    ({"data": None, "max_epochs": 2}, ValueError),
    ({"data": [1, 2], "epoch_length": 0}, ValueError),
    ({"data": [1, 2], "max_epochs": 2, "max_iters": 3}, ValueError),
]


@pytest.mark.parametrize(("arguments", "error"), INVALID, ids=short_id)
def test_invalid_arguments_are_an_error_before_any_event(side, arguments, error):
    engine = side.engine()
    seen = listen(engine, *EVENTS_OF_RUNS)
    with pytest.raises(error):
        engine.run(**arguments)
    assert seen == []


@pytest.mark.parametrize("limit", ["max_epochs", "max_iters"])
def test_a_limit_of_nothing(side, limit):
    engine = side.engine()
    with side.refuses("limits are checked before the run"):
        engine.run([1, 2], **{limit: 0})
    assert counters(engine) == (0, 0)


# The events in their order


def test_the_events_of_two_epochs(side):
    engine = side.engine()
    seen = listen(engine, *EVENTS_OF_RUNS)
    engine.run([7, 8], max_epochs=2)
    assert [name for name, *_ in seen] == [
        "STARTED",
        *["EPOCH_STARTED", *BATCH, *BATCH, "EPOCH_COMPLETED"],
        *["EPOCH_STARTED", "GET_BATCH_STARTED", "DATALOADER_STOP_ITERATION", *BATCH[1:], *BATCH],
        *["EPOCH_COMPLETED", "COMPLETED"],
    ]


def test_the_counters_at_each_event(side):
    engine = side.engine()
    seen = listen(engine, *EVENTS_OF_RUNS)
    engine.run([7, 8], max_epochs=1)
    assert seen == [
        ("STARTED", 0, 0),
        ("EPOCH_STARTED", 1, 0),
        ("GET_BATCH_STARTED", 1, 0),
        ("GET_BATCH_COMPLETED", 1, 0),
        ("ITERATION_STARTED", 1, 1),
        ("ITERATION_COMPLETED", 1, 1),
        ("GET_BATCH_STARTED", 1, 1),
        ("GET_BATCH_COMPLETED", 1, 1),
        ("ITERATION_STARTED", 1, 2),
        ("ITERATION_COMPLETED", 1, 2),
        ("EPOCH_COMPLETED", 1, 2),
        ("COMPLETED", 1, 2),
    ]


def test_an_epoch_that_is_longer_than_the_data(side):
    engine = side.engine()
    seen = listen(engine, *EVENTS_OF_RUNS)
    engine.run([7, 8], epoch_length=3)
    assert [name for name, *_ in seen] == [
        *["STARTED", "EPOCH_STARTED", *BATCH, *BATCH],
        *["GET_BATCH_STARTED", "DATALOADER_STOP_ITERATION", *BATCH[1:]],
        *["EPOCH_COMPLETED", "COMPLETED"],
    ]


ENDS_OF_DATA = [
    # batches, epoch_length, epochs, how often the data end within the run
    (10, None, 4, 3),
    (10, 10, 4, 3),
    (10, 5, 5, 2),
    (10, 15, 5, 7),
]


@pytest.mark.parametrize(("batches", "epoch_length", "epochs", "ends"), ENDS_OF_DATA)
def test_how_often_each_event_fires(side, batches, epoch_length, epochs, ends):
    engine = side.engine()
    events = listen(engine, *EVENTS_OF_RUNS)
    engine.run(list(range(batches)), max_epochs=epochs, epoch_length=epoch_length)
    seen = [name for name, *_ in events]
    iterations = epochs * (epoch_length or batches)
    for name in BATCH:
        assert seen.count(name) == iterations
    assert seen.count("EPOCH_STARTED") == seen.count("EPOCH_COMPLETED") == epochs
    assert seen.count("STARTED") == seen.count("COMPLETED") == 1
    assert seen.count("DATALOADER_STOP_ITERATION") == ends


def test_the_end_of_data_without_a_length(side):
    engine = side.engine()
    seen = listen(engine, *EVENTS_OF_RUNS)
    engine.run(UnknownLength(1))
    asked_in_vain = side.departs(
        "the end of the data is known in advance", ignite=["GET_BATCH_STARTED"], ours=[]
    )
    expected = ["STARTED", "EPOCH_STARTED", *BATCH, *asked_in_vain, "EPOCH_COMPLETED", "COMPLETED"]
    assert [name for name, *_ in seen] == expected


def test_the_last_event_in_handlers_and_after_the_run(side):
    engine = side.engine()
    assert engine.last_event_name is None
    seen = []
    for event in EVENTS_OF_RUNS:
        engine.add_event_handler(
            event, lambda engine, event=event: seen.append(engine.last_event_name == event)
        )
    engine.run([1, 2], max_epochs=2)
    assert len(seen) > 20
    assert all(seen)
    assert engine.last_event_name == Events.COMPLETED


def test_the_last_event_needs_no_listener(side):
    def batches():
        seen.append(engine.last_event_name)
        yield 0

    seen = []
    engine = side.engine(lambda batch: seen.append(engine.last_event_name))
    engine.run(batches())
    within = side.departs(
        "the step has events of its own",
        ignite=Events.ITERATION_STARTED,
        ours=TrainEvents.MODEL_FORWARD_STARTED,
    )
    assert seen == [Events.GET_BATCH_STARTED, within]
    assert engine.last_event_name == Events.COMPLETED


# The state


def test_the_batch_and_the_output_at_each_event(side):
    engine, seen = side.engine(lambda batch: 10 * batch), []
    for event in EVENTS_OF_RUNS:

        def note(engine, *args, event=event):
            seen.append((event.name, engine.state.batch, engine.state.output))

        engine.add_event_handler(event, note)
    engine.run([1, 2])
    assert seen == [
        ("STARTED", None, None),
        ("EPOCH_STARTED", None, None),
        ("GET_BATCH_STARTED", None, None),
        ("GET_BATCH_COMPLETED", 1, None),
        ("ITERATION_STARTED", 1, None),
        ("ITERATION_COMPLETED", 1, 10),
        ("GET_BATCH_STARTED", None, 10),
        ("GET_BATCH_COMPLETED", 2, None),
        ("ITERATION_STARTED", 2, None),
        ("ITERATION_COMPLETED", 2, 20),
        ("EPOCH_COMPLETED", 2, 20),
        ("COMPLETED", 2, 20),
    ]


def test_the_state_after_a_run(side):
    engine = side.engine()
    data = [1, 2, 3]
    state = engine.run(data, max_epochs=3)
    assert (state.batch, state.output) == (3, 3)
    assert state.dataloader is data
    assert state.metrics == {}
    assert state.times.keys() == {"EPOCH_COMPLETED", "COMPLETED"}
    assert all(seconds > 0 for seconds in state.times.values())
    shown = repr(state)
    assert all(name in shown for name in ("iteration: 9", "epoch: 3", "max_epochs: 3", "output: 3"))


def test_the_times_of_a_run_begin_at_zero(side):
    engine, seen = side.engine(), []
    engine.add_event_handler(Events.STARTED, lambda e: seen.append(dict(e.state.times)))
    for _ in range(2):
        engine.run([1, 2])
    assert seen == [{"EPOCH_COMPLETED": 0.0, "COMPLETED": 0.0}] * 2


def test_the_loader_that_the_state_shows(side):
    engine, loader = side.engine(), DataLoader([0, 1, 2], batch_size=2)
    engine.run(loader)
    shown = engine.state.dataloader
    assert shown.dataset is loader.dataset
    assert (shown is loader) is side.departs("a loader is prepared", ignite=True, ours=False)


@pytest.mark.parametrize("event", [Events.GET_BATCH_COMPLETED, Events.ITERATION_STARTED])
def test_a_handler_may_put_another_batch(side, event):
    engine = side.engine()
    given = outputs(engine)

    @engine.on(event)
    def replace(engine):
        engine.state.batch += 100

    engine.run([1, 2])
    assert given == [101, 102]


def test_a_handler_may_put_another_output(side):
    engine, seen = side.engine(), []

    @engine.on(Events.ITERATION_COMPLETED)
    def replace(engine):
        engine.state.output = "mine"

    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: seen.append(e.state.output))
    engine.run([1, 2])
    assert seen == ["mine"]


def test_users_attributes_stay_on_the_state(side):
    engine = side.engine()
    engine.state.alpha = 0.5
    seen = []
    engine.add_event_handler(
        Events.STARTED | Events.EPOCH_STARTED | Events.COMPLETED,
        lambda engine: seen.append(engine.state.alpha),
    )
    engine.run([1, 2], max_epochs=2)
    assert seen == [0.5] * 4


def test_the_number_that_counts_each_event(side):
    engine = side.engine()
    engine.state.epoch, engine.state.iteration = 9, 10
    number = engine.state.get_event_attrib_value
    assert number(Events.ITERATION_STARTED) == number(Events.ITERATION_COMPLETED(every=3)) == 10
    assert number(Events.EPOCH_STARTED(once=5)) == number(Events.EPOCH_COMPLETED) == 9
    assert number(Events.STARTED) == number(Events.COMPLETED) == 9
    with pytest.raises(RuntimeError, match="Unknown event name"):
        number("abc")


# Without data


@pytest.mark.parametrize(
    ("limits", "expected"), [({}, (1, 3)), ({"max_epochs": 3}, (3, 9)), ({"max_iters": 5}, (2, 5))]
)
def test_without_data_batches_are_none(side, limits, expected):
    engine = side.engine()
    given = outputs(engine)
    seen = listen(engine, *EVENTS_OF_RUNS)
    engine.run(epoch_length=3, **limits)
    assert counters(engine) == expected
    assert given == [None] * expected[1]
    assert engine.state.dataloader is None
    of_data = {"GET_BATCH_STARTED", "GET_BATCH_COMPLETED", "DATALOADER_STOP_ITERATION"}
    assert not of_data & {name for name, *_ in seen}


def test_without_data_a_longer_run_continues(side):
    engine = side.engine()
    engine.run(max_epochs=2, epoch_length=5)
    engine.run(max_epochs=4)
    assert counters(engine) == (4, 20)


# Failures


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_run_raises_the_original_exception(side, error):
    def fail(batch):
        raise error

    engine = side.engine(fail)
    with pytest.raises(type(error)) as caught:
        engine.run([1])
    assert caught.value is error


@pytest.mark.parametrize("event", OF_A_WHOLE_RUN)
def test_run_raises_the_failure_of_a_handler(side, event):
    engine, later = side.engine(), []
    engine.add_event_handler(event, lambda: 1 / 0)
    engine.add_event_handler(event, lambda: later.append(event))
    with pytest.raises(ZeroDivisionError):
        engine.run([1, 2], epoch_length=3)
    assert later == []  # the handlers after it are not called


def test_a_handler_of_exception_raised_gets_the_failure(side):
    failure = ValueError("no")
    caught = []

    def fail(batch):
        if batch == 1:
            raise failure

    engine = side.engine(fail)
    seen = listen(engine, Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED, Events.COMPLETED)
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: caught.append(error))
    state = engine.run([0, 1, 2], max_epochs=2, epoch_length=2)
    assert state is engine.state
    assert caught == [failure]
    after = [
        ("EPOCH_COMPLETED", 1, 2),
        ("ITERATION_COMPLETED", 2, 3),
        ("ITERATION_COMPLETED", 2, 4),
    ]
    goes_on = [*after, ("EPOCH_COMPLETED", 2, 4), ("COMPLETED", 2, 4)]
    assert seen == [
        ("ITERATION_COMPLETED", 1, 1),
        *side.departs("a handled failure ends the run", ignite=goes_on, ours=[]),
    ]


def test_a_handler_of_exception_raised_may_raise_it_again(side):
    caught = []

    def fail(batch):
        raise ValueError("no")

    engine = side.engine(fail)

    @engine.on(Events.EXCEPTION_RAISED)
    def raise_again(error):
        caught.append(error)
        raise error

    with pytest.raises(ValueError, match="no"):
        engine.run([1])
    times = side.departs("a failure within the step is handled once", ignite=2, ours=1)
    assert len(caught) == times


def test_the_run_after_a_failure(side):
    fails = [True]

    def fail_once(batch):
        if batch == 2 and fails.pop():
            raise ValueError("no")
        return batch

    engine = side.engine(fail_once)
    given = outputs(engine)
    with pytest.raises(ValueError, match="no"):
        engine.run([0, 1, 2, 3])
    fails.append(False)
    state = engine.run()
    assert state is side.departs("a failed run continues", ignite=None, ours=engine.state)
    assert given == side.departs("a failed run continues", ignite=[0, 1], ours=[0, 1, 2, 3])
