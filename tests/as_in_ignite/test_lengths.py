"""Limits that handlers write, other data within a run, and iterators that are set again."""

import itertools

import pytest
import torch
from ignite.engine import Events

from tests.as_in_ignite.sides import UnknownLength
from tests.as_in_ignite.sides import counters
from tests.as_in_ignite.sides import listen
from tests.as_in_ignite.sides import outputs
from tests.as_in_ignite.sides import short_id


def completed(*iterations):
    """Returns the records of EPOCH_COMPLETED for epochs that end at these iterations."""
    return [("EPOCH_COMPLETED", epoch, at) for epoch, at in enumerate(iterations, start=1)]


# Limits are live


def writing(engine, event, **values):
    """Attaches a handler that writes ``values`` to the state."""

    @engine.on(event)
    def write():
        for name, value in values.items():
            setattr(engine.state, name, value)


WRITTEN = [
    # the limits of the run, the event, what is written there, then epoch and iteration at the end
    ({"max_epochs": 2}, Events.STARTED, {"max_epochs": 4}, (4, 16)),
    ({"max_epochs": 2}, Events.ITERATION_COMPLETED(once=2), {"max_epochs": 4}, (4, 16)),
    ({"max_epochs": 2}, Events.ITERATION_COMPLETED(once=8), {"max_epochs": 4}, (4, 16)),
    ({"max_epochs": 2}, Events.EPOCH_COMPLETED(once=2), {"max_epochs": 3}, (3, 12)),
    ({"max_epochs": 9}, Events.ITERATION_STARTED(once=6), {"max_epochs": 2}, (2, 8)),
    ({"max_epochs": 9}, Events.EPOCH_COMPLETED(once=2), {"max_epochs": 2}, (2, 8)),
    ({"max_iters": 6}, Events.STARTED, {"max_iters": 10}, (3, 10)),
    ({"max_iters": 6}, Events.ITERATION_COMPLETED(once=5), {"max_iters": 10}, (3, 10)),
    ({"max_iters": 40}, Events.ITERATION_COMPLETED(once=5), {"max_iters": 7}, (2, 7)),
    ({"max_iters": 40}, Events.ITERATION_STARTED(once=7), {"max_iters": 7}, (2, 7)),
    ({"max_epochs": 1}, Events.STARTED, {"max_epochs": 2, "max_iters": 6}, (2, 6)),
    ({"max_epochs": 2}, Events.STARTED, {"max_iters": 30}, (2, 8)),
    ({"max_epochs": 1}, Events.STARTED, {"max_epochs": None, "max_iters": 7}, (2, 7)),
    ({"max_iters": 2}, Events.STARTED, {"max_epochs": 2, "max_iters": None}, (2, 8)),
]


@pytest.mark.parametrize(("limits", "event", "written", "expected"), WRITTEN, ids=short_id)
def test_a_limit_that_a_handler_writes_counts(side, limits, event, written, expected):
    engine = side.engine()
    writing(engine, event, **written)
    given = outputs(engine)
    engine.run(range(4), **limits)
    assert counters(engine) == expected
    assert given == [number % 4 for number in range(expected[1])]


PASSED = [
    ({"max_iters": 40}, Events.ITERATION_COMPLETED(once=6), {"max_iters": 3}, (2, 8), (2, 6)),
    ({"max_epochs": 9}, Events.ITERATION_COMPLETED(once=10), {"max_epochs": 1}, (3, 12), (3, 10)),
]


@pytest.mark.parametrize(("limits", "event", "written", "ignite", "ours"), PASSED, ids=short_id)
def test_a_limit_below_what_is_done_ends_the_run(side, limits, event, written, ignite, ours):
    engine = side.engine()
    writing(engine, event, **written)
    engine.run(range(4), **limits)
    expected = side.departs("a limit that is passed ends the run", ignite=ignite, ours=ours)
    assert counters(engine) == expected


LENGTHS = [
    # the event, the length that is written, then iterations of the two epochs and the batches
    (Events.STARTED, 3, (3, 6), [0, 1, 2, 3, 0, 1]),
    (Events.ITERATION_COMPLETED(once=2), 3, (3, 6), [0, 1, 2, 3, 0, 1]),
    (Events.ITERATION_COMPLETED(once=2), 6, (6, 12), [0, 1, 2, 3] * 3),
    (Events.EPOCH_COMPLETED(once=1), 3, (4, 7), [0, 1, 2, 3, 0, 1, 2]),
    (Events.EPOCH_STARTED(once=2), 5, (4, 9), [0, 1, 2, 3, 0, 1, 2, 3, 0]),
]


@pytest.mark.parametrize(("event", "length", "ends", "batches"), LENGTHS, ids=short_id)
def test_an_epoch_length_that_a_handler_writes_counts(side, event, length, ends, batches):
    engine = side.engine()
    writing(engine, event, epoch_length=length)
    given, seen = outputs(engine), listen(engine, Events.EPOCH_COMPLETED)
    engine.run(range(4), max_epochs=2)
    assert seen == completed(*ends)
    assert given == batches
    assert engine.state.epoch_length == length


# Data that change between and within epochs


def test_data_that_grow_between_epochs(side):
    class Growing:
        length = 2

        def __len__(self):
            return self.length

        def __iter__(self):
            return iter(range(self.length))

    engine, data = side.engine(), Growing()
    given, seen = outputs(engine), listen(engine, Events.EPOCH_COMPLETED)

    @engine.on(Events.EPOCH_COMPLETED)
    def grow():
        data.length += 1

    engine.run(data, max_epochs=3)
    assert (seen, given) == side.departs(
        "an epoch is one pass",
        ignite=(completed(2, 4, 6), [0, 1, 0, 1, 2, 0]),
        ours=(completed(2, 5, 9), [0, 1, 0, 1, 2, 0, 1, 2, 3]),
    )


def test_data_without_a_length_that_vary(side):
    class Varying:
        lengths = itertools.cycle([3, 1, 2])

        def __iter__(self):
            return iter(range(next(self.lengths)))

    engine = side.engine()
    seen = listen(engine, Events.EPOCH_COMPLETED)
    engine.run(Varying(), max_epochs=2)
    expected = side.departs("an epoch is one pass", ignite=completed(3, 6), ours=completed(3, 4))
    assert seen == expected


@pytest.mark.parametrize("event", [Events.STARTED, Events.EPOCH_COMPLETED(once=1)], ids=short_id)
def test_other_data_between_epochs(side, event):
    engine = side.engine()
    given = outputs(engine)
    engine.add_event_handler(event, lambda: engine.set_data([10, 11, 12, 13]))
    engine.run(range(4), max_epochs=2)
    assert counters(engine) == (2, 8)
    before = 0 if event is Events.STARTED else 4
    assert given[:before] == [0, 1, 2, 3][:before]
    assert given[before:] == ([10, 11, 12, 13] * 2)[before:]


@pytest.mark.parametrize("event", [Events.GET_BATCH_STARTED, Events.EPOCH_STARTED])
def test_the_next_batch_is_of_the_data_that_were_set(side, event):
    engine = side.engine()
    given, calls = outputs(engine), iter([True])
    engine.add_event_handler(
        event, lambda: engine.set_data([10, 11, 12]) if next(calls, False) else None
    )
    engine.run(range(3))
    assert given == [10, 11, 12]


@pytest.mark.parametrize(
    ("batches", "ends", "ignite"),
    [
        ([10, 11], (3, 5), [0, 10, 11, 10, 11, 10, 11, 10]),
        ([10, 11, 12, 13], (5, 9), [0, 10, 11, 12, 13, 10, 11, 12]),
        ([10, 11, 12, 13, 14], (6, 11), [0, 10, 11, 12, 13, 14, 10, 11]),
    ],
    ids=["shorter", "as long", "longer"],
)
def test_other_data_within_an_epoch(side, batches, ends, ignite):
    engine = side.engine()
    given, seen = outputs(engine), listen(engine, Events.EPOCH_COMPLETED)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: engine.set_data(batches))
    engine.run(range(4), max_epochs=2)
    assert (seen, given) == side.departs(
        "after set_data the epoch ends with the new data",
        ignite=(completed(4, 8), ignite),
        ours=(completed(*ends), [0, *batches, *batches]),
    )


def test_other_data_in_epochs_of_a_given_length(side):
    engine = side.engine()
    given, seen = outputs(engine), listen(engine, Events.EPOCH_COMPLETED)
    engine.add_event_handler(
        Events.ITERATION_COMPLETED(once=3), lambda: engine.set_data([10, 11, 12])
    )
    engine.run(range(6), max_epochs=2, epoch_length=4)
    assert seen == completed(4, 8)
    assert given == [0, 1, 2, 10, 11, 12, 10, 11]


def test_a_tensor_as_data(side):
    engine = side.engine(lambda batch: batch.tolist())
    given = outputs(engine)
    engine.run(torch.tensor([[1, 2], [3, 4]]), max_epochs=2)
    assert given == [[1, 2], [3, 4]] * 2


# A finite iterator is set again by a handler, as Ignite's documentation shows it


def test_an_iterator_is_set_again_where_the_data_end(side):
    engine = side.engine()
    given = outputs(engine)

    @engine.on(Events.DATALOADER_STOP_ITERATION)
    def restart():
        engine.state.dataloader = iter(range(5))

    engine.run(iter(range(5)), max_epochs=4)
    assert counters(engine) == (4, 20)
    assert given == [0, 1, 2, 3, 4] * 4


def test_an_iterator_is_set_again_after_its_last_batch(side):
    engine = side.engine()
    given = outputs(engine)

    @engine.on(Events.ITERATION_COMPLETED(every=5))
    def restart():
        engine.state.dataloader = iter(range(5))

    engine.run(iter(range(5)), max_epochs=4)
    assert counters(engine) == (4, 20)
    assert given == [0, 1, 2, 3, 4] * 4


def test_an_iterator_is_set_again_as_each_epoch_starts(side):
    engine = side.engine()
    given = outputs(engine)

    @engine.on(Events.EPOCH_STARTED)
    def restart():
        engine.state.dataloader = iter(range(5))

    engine.run(iter([]), max_epochs=3)
    assert counters(engine) == (3, 15)
    assert given == [0, 1, 2, 3, 4] * 3


def test_an_iterator_is_set_again_until_max_iters(side):
    engine = side.engine()
    given = outputs(engine)

    @engine.on(Events.DATALOADER_STOP_ITERATION)
    def restart():
        engine.state.dataloader = iter(range(5))

    engine.run(iter(range(5)), max_iters=12)
    assert counters(engine) == (3, 12)
    assert given == [number % 5 for number in range(12)]


def test_an_iterator_within_epochs_of_a_given_length(side):
    engine = side.engine()
    given = outputs(engine)

    @engine.on(Events.DATALOADER_STOP_ITERATION)
    def restart():
        engine.state.dataloader = iter(range(5))

    engine.run(iter(range(5)), max_epochs=3, epoch_length=4)
    assert counters(engine) == (3, 12)
    assert given == [number % 5 for number in range(12)]


def test_max_iters_is_reached_after_terminate_epoch(side):
    engine = side.engine()
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=5), engine.terminate_epoch)
    engine.run(UnknownLength(4), max_iters=6)
    end = side.departs("max_iters does not set max_epochs", ignite=(2, 5), ours=(3, 6))
    assert counters(engine) == end


def test_data_that_can_be_iterated_again_need_no_handler(side):
    engine = side.engine()
    given = outputs(engine)
    engine.run(UnknownLength(5), max_epochs=3, epoch_length=4)
    assert given == [number % 5 for number in range(12)]
