"""Events and their handlers as in Ignite: filters, lists, custom events, arguments, removal."""

import functools
import gc
from unittest.mock import Mock
from unittest.mock import create_autospec

import pytest
from ignite.engine import EventEnum
from ignite.engine import Events

from tests.as_in_ignite.sides import listen
from tests.as_in_ignite.sides import short_id


class CustomEvents(EventEnum):
    """Custom events, which an engine does not know until they are registered."""

    HALF_DONE = "half_done"
    ALL_DONE = "all_done"


COUNTED = {"ITERATION": "iteration", "GET": "iteration", "EPOCH": "epoch"}


def called_at(engine, event):
    """Returns a list that grows by the iteration, or epoch, in which ``event`` calls a handler."""
    seen, attribute = [], COUNTED[event.name.split("_")[0]]
    engine.add_event_handler(event, lambda e: seen.append(getattr(e.state, attribute)))
    return seen


def plain_mock():
    """Returns a mock without the attributes that Ignite looks for on a handler."""
    return create_autospec(lambda engine: None)


# Filters

FILTERS = [
    # a filter, then the numbers of 1 to 12 that pass it
    ({"every": 3}, [3, 6, 9, 12]),
    ({"every": 1}, list(range(1, 13))),
    ({"once": 5}, [5]),
    ({"once": [1, 7, 40]}, [1, 7]),
    ({"before": 4}, [1, 2, 3]),
    ({"before": 0}, []),
    ({"after": 9}, [10, 11, 12]),
    ({"after": 12}, []),
    ({"after": 3, "before": 7}, [4, 5, 6]),
    ({"every": 3, "after": 2}, [3, 6, 9, 12]),
    ({"every": 2, "after": 3, "before": 9}, [4, 6, 8]),
    ({"event_filter": lambda engine, number: number in (2, 11)}, [2, 11]),
]


@pytest.mark.parametrize(("arguments", "expected"), FILTERS, ids=lambda value: str(value)[:24])
@pytest.mark.parametrize(
    ("event", "limits"),
    [
        (Events.ITERATION_COMPLETED, {"max_epochs": 3}),
        (Events.EPOCH_STARTED, {"max_epochs": 12, "epoch_length": 1}),
    ],
    ids=short_id,
)
def test_a_filter_lets_its_numbers_pass(side, event, limits, arguments, expected):
    engine = side.engine()
    seen = called_at(engine, event(**arguments))
    engine.run(range(4), **limits)
    assert seen == expected


def test_a_filter_function_gets_the_engine_and_the_number(side):
    engine, asked = side.engine(), []
    engine.add_event_handler(
        Events.EPOCH_COMPLETED(event_filter=lambda *given: asked.append(given)),
        lambda: pytest.fail("the filter returned None"),
    )
    engine.run(range(4), max_epochs=2)
    assert asked == [(engine, 1), (engine, 2)]


def test_a_filter_sees_counters_that_earlier_handlers_wrote(side):
    engine, seen = side.engine(), []
    engine.state.alpha = 0
    engine.register_events(CustomEvents.ALL_DONE, event_to_attr={CustomEvents.ALL_DONE: "alpha"})

    @engine.on(Events.ITERATION_COMPLETED)
    def count():
        engine.state.alpha += 10
        engine.fire_event(CustomEvents.ALL_DONE)

    engine.add_event_handler(
        CustomEvents.ALL_DONE(every=20), lambda engine: seen.append(engine.state.alpha)
    )
    engine.run(range(4))
    assert seen == [20, 40]


# Lists of events


def test_a_handler_of_several_events(side):
    engine, seen = side.engine(), []
    events = Events.STARTED | Events.ITERATION_COMPLETED(once=2) | Events.EPOCH_COMPLETED(every=2)
    handle = engine.add_event_handler(
        events, lambda engine: seen.append((engine.last_event_name.name, engine.state.iteration))
    )
    engine.run(range(3), max_epochs=2)
    assert seen == [("STARTED", 0), ("ITERATION_COMPLETED", 2), ("EPOCH_COMPLETED", 6)]
    handle.remove()
    engine.run(range(3), max_epochs=2)
    assert len(seen) == 3


def test_one_event_twice_in_a_list_calls_twice(side):
    engine, handler = side.engine(), Mock()
    events = Events.ITERATION_COMPLETED(once=1) | Events.ITERATION_COMPLETED(every=2)
    engine.add_event_handler(events, handler)
    engine.run(range(4))
    assert handler.call_count == 3


# How handlers are called


@pytest.mark.parametrize(
    "event", [Events.STARTED, Events.EPOCH_STARTED, Events.EPOCH_STARTED(once=1)]
)
def test_handlers_get_their_arguments(side, event):
    engine, seen = side.engine(), []

    def with_engine(engine, first, *, word):
        seen.append((engine, first, word))

    def without_engine(first, word):
        seen.append((first, word))

    def alone():
        seen.append(())

    engine.add_event_handler(event, with_engine, 1, word="a")
    engine.add_event_handler(event, without_engine, 2, word="b")
    engine.on(event, 3, word="c")(with_engine)
    engine.on(event)(alone)
    engine.run(range(1))
    assert seen == [(engine, 1, "a"), (2, "b"), (engine, 3, "c"), ()]


@pytest.mark.parametrize("event", [Events.EPOCH_STARTED, Events.EPOCH_STARTED(every=2)])
def test_handlers_of_every_kind_are_called(side, event):
    engine, seen = side.engine(), []

    class Handler:
        def __call__(self, engine):
            seen.append("object")

        def method(self, engine):
            seen.append("method")

        def bare(self):
            seen.append("bare method")

        @classmethod
        def of_class(cls, engine):
            seen.append("class method")

    def function(word, engine):
        seen.append(word)

    @functools.wraps(function)
    def decorated(*args, **kwargs):
        seen.append("decorated")

    handler = Handler()
    engine.add_event_handler(event, handler)
    engine.add_event_handler(event, handler.method)
    engine.add_event_handler(event, handler.bare)
    engine.add_event_handler(event, Handler.of_class)
    engine.add_event_handler(event, functools.partial(function, "partial"))
    engine.add_event_handler(event, decorated, "unused")
    engine.add_event_handler(event, lambda: seen.append("lambda"))
    engine.run(range(1), max_epochs=2)
    names = ["object", "method", "bare method", "class method", "partial", "decorated", "lambda"]
    assert seen == (names if event.filter else names * 2)


def test_on_gives_the_function_back(side):
    engine = side.engine()

    @engine.on(Events.STARTED)
    def handler():
        return "what it returns"

    assert handler() == "what it returns"
    assert engine.has_event_handler(handler, Events.STARTED)


UNFIT = [
    (lambda engine, needed: None, (), {}),
    (lambda engine: None, (), {"unknown": 1}),
    (lambda: None, (1, 2), {}),
    (lambda engine, one: None, (1, 2, 3), {}),
]


@pytest.mark.parametrize(("handler", "args", "kwargs"), UNFIT, ids=range(len(UNFIT)))
def test_a_handler_that_cannot_be_called_is_an_error(side, handler, args, kwargs):
    engine = side.engine()
    with pytest.raises(ValueError, match="will be called with"):
        engine.add_event_handler(Events.STARTED, handler, *args, **kwargs)
    assert not engine.has_event_handler(handler)


def test_an_unknown_event_is_an_error(side):
    engine = side.engine()
    for add in (engine.on("unknown"), engine.on(CustomEvents.ALL_DONE)):
        with pytest.raises(ValueError, match="is not a valid event"):
            add(print)
    with pytest.raises(ValueError, match="is not a valid event"):
        engine.fire_event("unknown")


def test_handlers_are_called_in_order_of_attachment(side):
    engine, seen = side.engine(), []
    for number in range(5):
        event = Events.EPOCH_COMPLETED(every=1) if number % 2 else Events.EPOCH_COMPLETED
        engine.add_event_handler(event, lambda e, number: seen.append(number), number)
    engine.run(range(1))
    assert seen == [0, 1, 2, 3, 4]


# Removal


def test_a_handle_removes_its_handler(side):
    engine, handler = side.engine(), plain_mock()
    handle = engine.add_event_handler(Events.EPOCH_COMPLETED(every=1), handler)
    assert engine.has_event_handler(handler, Events.EPOCH_COMPLETED)
    assert engine.has_event_handler(handler, Events.EPOCH_COMPLETED(every=1))
    assert not engine.has_event_handler(handler, Events.EPOCH_STARTED)
    handle.remove()
    assert not engine.has_event_handler(handler)
    handle.remove()  # a second call has no effect
    engine.run(range(1))
    handler.assert_not_called()


def test_a_handle_is_a_context(side):
    engine, handler = side.engine(), Mock()
    with engine.add_event_handler(Events.STARTED | Events.COMPLETED, handler):
        with engine.add_event_handler(Events.EPOCH_COMPLETED, handler):
            engine.run(range(1))
            assert handler.call_count == 3
        engine.run(range(1))
        assert handler.call_count == 5
    engine.run(range(1))
    assert handler.call_count == 5


def test_a_handle_keeps_neither_engine_nor_handler(side):
    def attach():
        engine = side.engine()
        return engine.add_event_handler(Events.STARTED, lambda engine: None)

    handle = attach()
    gc.collect()
    assert handle.engine() is None
    assert handle.handler() is None


@pytest.mark.parametrize("event", [Events.STARTED, Events.STARTED(once=1)])
def test_a_handler_is_removed_by_itself(side, event):
    engine = side.engine()
    first, second = plain_mock(), plain_mock()
    for handler in (first, second):
        engine.add_event_handler(event, handler)
    engine.remove_event_handler(first, event)
    assert not engine.has_event_handler(first)
    assert engine.has_event_handler(second)
    with pytest.raises(ValueError, match="not found"):
        engine.remove_event_handler(first, event)
    with pytest.raises(ValueError, match="does not exist"):
        engine.remove_event_handler(first, Events.COMPLETED)


# Handlers that change while their event is fired


def test_a_handler_that_removes_itself_skips_no_other(side):
    engine, seen = side.engine(), []

    def once(engine):
        seen.append("once")
        engine.remove_event_handler(once, Events.ITERATION_STARTED)

    engine.add_event_handler(Events.ITERATION_STARTED, once)
    engine.add_event_handler(Events.ITERATION_STARTED, lambda: seen.append("always"))
    engine.run(range(2))
    assert seen == ["once", "always", "always"]


def test_a_handler_removed_while_its_event_fires_is_called(side):
    engine, seen = side.engine(), []
    last = lambda engine: seen.append("last")  # noqa: E731

    def remove(engine):
        if engine.has_event_handler(last):
            engine.remove_event_handler(last, Events.ITERATION_STARTED)

    engine.add_event_handler(Events.ITERATION_STARTED, remove)
    engine.add_event_handler(Events.ITERATION_STARTED, last)
    engine.run(range(3))
    assert seen == ["last"]


@pytest.mark.parametrize("event", [Events.STARTED, Events.ITERATION_STARTED, Events.COMPLETED])
def test_a_handler_that_was_added_is_called_in_this_event(side, event):
    engine, seen = side.engine(), []

    def add(engine):
        seen.append("adds")
        handle = engine.add_event_handler(event, lambda: seen.append("added"))
        handles.append(handle)

    handles = []
    engine.add_event_handler(event, add)
    engine.add_event_handler(event, lambda: seen.append("there before"))
    engine.run(range(1))
    assert seen == ["adds", "there before", "added"]


def test_a_handler_that_was_added_after_a_removal(side):
    engine, seen = side.engine(), []

    def replace(engine):
        engine.remove_event_handler(replace, Events.ITERATION_STARTED)
        engine.add_event_handler(Events.ITERATION_STARTED, lambda: seen.append("added"))

    engine.add_event_handler(Events.ITERATION_STARTED, replace)
    engine.run(range(2))
    times = side.departs(
        "a handler added while its event fires, after another was removed in the same firing",
        ignite=1,
        ours=2,
    )
    assert seen == ["added"] * times


# Custom events


def test_custom_events_are_fired_by_users(side):
    fired = [CustomEvents.HALF_DONE, "mine"]
    engine = side.engine(lambda batch: [engine.fire_event(event) for event in fired])
    engine.register_events(*CustomEvents, "mine")
    assert all(
        engine.has_registered_events(event) for event in [*CustomEvents, "mine", Events.STARTED]
    )
    assert not engine.has_registered_events("other")
    handlers = {event: Mock() for event in [*fired, CustomEvents.ALL_DONE]}
    for event, handler in handlers.items():
        engine.add_event_handler(event, handler)
    engine.run(range(3))
    assert [handler.call_count for handler in handlers.values()] == [3, 3, 0]


def test_custom_events_count_by_their_attribute(side):
    engine = side.engine()
    engine.register_events(
        *CustomEvents,
        event_to_attr={CustomEvents.HALF_DONE: "halves", CustomEvents.ALL_DONE: "epoch"},
    )
    assert engine.state.halves == 0
    seen = []

    @engine.on(Events.ITERATION_COMPLETED)
    def fire():
        engine.state.halves += 1
        engine.fire_event(CustomEvents.HALF_DONE)

    engine.add_event_handler(CustomEvents.HALF_DONE(every=3), lambda e: seen.append(e.state.halves))
    engine.add_event_handler(
        CustomEvents.HALF_DONE(once=[1, 8]) | Events.COMPLETED, lambda: seen.append(0)
    )
    engine.run(range(4), max_epochs=2)
    assert seen == [0, 3, 6, 0, 0]


INVALID_EVENTS = [
    ((None,), {}, TypeError),
    (("a", 1), {}, TypeError),
    ((object(),), {}, TypeError),
    (("a",), {"event_to_attr": "a"}, ValueError),
]


@pytest.mark.parametrize(("events", "options", "error"), INVALID_EVENTS, ids=range(4))
def test_custom_events_must_be_names_or_members(side, events, options, error):
    engine = side.engine()
    with pytest.raises(error):
        engine.register_events(*events, **options)


def test_a_filter_on_an_event_without_a_counter_is_an_error(side):
    class Uncounted(EventEnum):
        UNCOUNTED_AS_IN_IGNITE = "uncounted_as_in_ignite"

    engine = side.engine(lambda batch: engine.fire_event(Uncounted.UNCOUNTED_AS_IN_IGNITE))
    engine.register_events(*Uncounted)
    engine.add_event_handler(Uncounted.UNCOUNTED_AS_IN_IGNITE(every=2), lambda: None)
    with pytest.raises(RuntimeError, match="Unknown event name"):
        engine.run(range(1))


def test_the_last_event_after_another_was_fired_within(side):
    engine, seen = side.engine(), []
    engine.register_events(*CustomEvents)
    engine.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: engine.fire_event(CustomEvents.ALL_DONE)
    )
    engine.add_event_handler(CustomEvents.ALL_DONE, lambda: seen.append(engine.last_event_name))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(engine.last_event_name))
    engine.run(range(1))
    outer = side.departs(
        "last_event_name returns to the outer event",
        ignite=CustomEvents.ALL_DONE,
        ours=Events.EPOCH_COMPLETED,
    )
    assert seen == [CustomEvents.ALL_DONE, outer]


def test_events_fired_from_outside_a_run(side):
    engine = side.engine()
    seen = listen(engine, Events.EPOCH_STARTED)
    engine.fire_event(Events.EPOCH_STARTED)
    assert seen == [("EPOCH_STARTED", 0, 0)]
    assert engine.last_event_name == Events.EPOCH_STARTED
    engine.fire_event(Events.COMPLETED)  # without a listener
    assert engine.last_event_name == Events.COMPLETED


def test_a_failing_handler_of_a_custom_event(side):
    engine, caught = side.engine(), []
    engine.register_events(*CustomEvents)
    engine.add_event_handler(CustomEvents.HALF_DONE, lambda: 1 / 0)
    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: engine.fire_event(CustomEvents.HALF_DONE)
    )
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda e, error: caught.append(type(error)))
    engine.run(range(2))
    assert caught == [ZeroDivisionError]
