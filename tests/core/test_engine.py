import enum
import gc
import inspect
import logging
import sys
import time
import weakref
from contextlib import suppress
from unittest.mock import MagicMock

import pytest
import torch
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import EventEnum
from ignite.engine import Events
from ignite.engine import State
from ignite.handlers import BasicTimeProfiler
from ignite.handlers import Checkpoint
from ignite.handlers import DiskSaver
from ignite.handlers import EarlyStopping
from ignite.handlers import HandlersTimeProfiler
from ignite.handlers import LRScheduler
from ignite.handlers import ProgressBar
from ignite.handlers import TerminateOnNan
from ignite.handlers import Timer
from ignite.handlers.base_logger import BaseOutputHandler
from ignite.metrics import Average
from ignite.metrics import RunningAverage
from ignite.metrics.metric import EpochWise
from ignite.metrics.metric import MetricUsage
from ignite.metrics.metric import RunningEpochWise
from torch.optim.lr_scheduler import StepLR

from ignite_hooks import OptimizerStep
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks.core.engine import QuickEngine
from ignite_hooks.core.engine import call_handlers_through
from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.engine import fire_within
from ignite_hooks.core.engine import forget_run
from ignite_hooks.core.engine import handlers_with_arguments
from ignite_hooks.core.engine import has_handlers
from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.engine import move_to_front
from ignite_hooks.core.engine import values_to_log
from tests.ids import stable_id
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import record
from tests.reference import weights


def engine_with_wrappers(process):
    """Returns a plain engine that calls its handlers through wrappers."""
    engine = Engine(process)
    call_handlers_through(engine, wrapper_of)
    return engine


def quick_engine_with_wrappers(process):
    engine = QuickEngine(process)
    call_handlers_through(engine, wrapper_of)
    return engine


def wrapper_of(function, call):
    return lambda *args, **kwargs: call(*args, **kwargs)


ENGINES = [Engine, QuickEngine, engine_with_wrappers, quick_engine_with_wrappers]


class CustomEvents(EventEnum):
    FIRST = "first"
    SECOND = "second"


class StringEvents(str, enum.Enum):
    MINE = "mine"


def ignore(*arguments, **keywords):  # Ignite asks for a signature; print has none on Python 3.10
    pass


def return_batch(engine, batch):
    return batch


# What Ignite's private members mean


def test_ignite_keeps_handlers_as_function_args_and_kwargs():
    engine = Engine(return_batch)
    assert isinstance(engine._event_handlers, dict)
    engine.add_event_handler(Events.STARTED, ignore, 1, end="")
    engine.add_event_handler(Events.STARTED, lambda engine: None)
    with_arguments, with_engine = engine._event_handlers[Events.STARTED]
    assert isinstance(engine._event_handlers[Events.STARTED], list)
    function, args, kwargs = with_engine
    assert callable(function)
    assert isinstance(args[0], weakref.ref)
    assert args[0]() is engine
    assert kwargs == {}
    assert with_arguments[0] is ignore
    assert with_arguments[1][-1] == 1
    assert with_arguments[2] == {"end": ""}


def test_ignite_adds_in_place_and_removes_with_a_new_list():
    engine = Engine(return_batch)
    handle = engine.add_event_handler(Events.STARTED, lambda: None)
    handlers = engine._event_handlers[Events.STARTED]
    engine.add_event_handler(Events.STARTED, lambda: None)
    assert len(handlers) == 2
    handle.remove()
    assert len(handlers) == 2
    assert len(engine._event_handlers[Events.STARTED]) == 1


def test_ignite_handles_call_the_public_methods_of_the_engine():
    calls = []

    class Watched(Engine):
        def add_event_handler(self, *args, **kwargs):
            calls.append("add")
            return super().add_event_handler(*args, **kwargs)

        def remove_event_handler(self, *args, **kwargs):
            calls.append("remove")
            return super().remove_event_handler(*args, **kwargs)

    engine = Watched(return_batch)
    engine.on(Events.STARTED)(lambda: None)
    handle = engine.add_event_handler(Events.STARTED | Events.COMPLETED, lambda: None)
    handle.remove()
    assert calls == ["add", "add", "add", "add", "remove", "remove"]


def test_ignite_keeps_the_registered_events_in_a_list():
    engine = Engine(return_batch)
    assert list(engine._allowed_events) == list(Events)
    engine.register_events("mine")
    assert engine._allowed_events[-1] == "mine"


def test_ignite_fires_through_the_method_that_is_overridden():
    fired = []

    class Watched(Engine):
        def _fire_event(self, event_name, *args, **kwargs):
            fired.append(event_name)
            super()._fire_event(event_name, *args, **kwargs)

    engine = Watched(return_batch)
    engine.register_events("mine")
    engine.fire_event("mine")
    engine.run([0])
    assert fired[:3] == ["mine", Events.STARTED, Events.EPOCH_STARTED]
    parameters = inspect.signature(Engine._fire_event).parameters
    assert [p.kind.name for p in parameters.values()] == [
        "POSITIONAL_OR_KEYWORD",
        "POSITIONAL_OR_KEYWORD",
        "VAR_POSITIONAL",
        "VAR_KEYWORD",
    ]


def test_ignite_keeps_the_generator_of_an_interrupted_run():
    engine = Engine(return_batch)
    assert engine._internal_run_generator is None
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), engine.interrupt)
    engine.run([0, 1])
    assert inspect.isgenerator(engine._internal_run_generator)
    engine.run()
    assert engine._internal_run_generator is None


def test_ignite_runs_nothing_after_a_failed_run():
    engine, batches = Engine(return_batch), []
    engine.add_event_handler(Events.ITERATION_STARTED, lambda e: batches.append(e.state.batch))
    handle = engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: 1 / 0)
    with suppress(ZeroDivisionError):
        engine.run([0, 1, 2])
    handle.remove()
    assert batches == [0, 1]
    engine.run([0, 1, 2])
    assert batches == [0, 1]


def test_forget_run_after_a_failure_starts_from_scratch():
    engine, batches = Engine(return_batch), []
    engine.add_event_handler(Events.ITERATION_STARTED, lambda e: batches.append(e.state.batch))
    handle = engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: 1 / 0)
    with suppress(ZeroDivisionError):
        engine.run([0, 1, 2], max_epochs=2)
    handle.remove()
    forget_run(engine)
    engine.run([0, 1, 2])
    assert batches == [0, 1, 0, 1, 2]
    assert engine.state.iteration == 3


def test_ignite_has_the_members_that_the_loop_uses():
    engine = Engine(return_batch)
    assert engine._process_function is return_batch
    engine.state.times.clear()
    engine._init_timers(engine.state)
    assert set(engine.state.times) == {"EPOCH_COMPLETED", "COMPLETED"}
    assert engine._state_dict_user_keys == []
    for flag in ("should_terminate", "should_terminate_single_epoch", "should_interrupt"):
        assert getattr(engine, flag) is False
    engine.terminate(skip_completed=True)
    engine.terminate_epoch(skip_epoch_completed=True)
    engine.interrupt()
    assert engine.should_terminate == "skip_completed"
    assert engine.should_terminate_single_epoch == "skip_epoch_completed"
    assert engine.should_interrupt is True


def test_ignite_names_its_events_as_enums_do():
    assert Events.STARTED._name_ == "STARTED"
    assert Events.STARTED(every=2)._name_ == "STARTED" or Events.STARTED(every=2).name == "STARTED"


# Data kept on an engine


@pytest.mark.parametrize("engine_class", ENGINES)
def test_data_kept_on_an_engine_is_its_own_and_persists(engine_class):
    one, other = engine_class(return_batch), engine_class(return_batch)
    engine_storage(one)["kept"] = 1
    assert engine_storage(one) == {"kept": 1}
    assert engine_storage(one) is engine_storage(one)
    assert engine_storage(other) == {}
    one.run([0])
    assert engine_storage(one) == {"kept": 1}


def test_data_kept_on_an_engine_is_freed_despite_a_cycle():
    engine = Engine(return_batch)
    engine_storage(engine)["kept"] = [engine]
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None


# Runs that are interrupted


def test_engine_is_interrupted_until_the_run_continues():
    engine, within = Engine(return_batch), []
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.interrupt)
    for event in (Events.STARTED, Events.ITERATION_COMPLETED, Events.INTERRUPT, Events.COMPLETED):
        engine.add_event_handler(event, lambda engine: within.append(is_interrupted(engine)))
    assert is_interrupted(engine) is False
    engine.run([0, 1, 2])
    assert is_interrupted(engine) is True
    engine.run()
    assert is_interrupted(engine) is False
    assert within == [False] * 6


@pytest.mark.parametrize("failure", [ZeroDivisionError, KeyboardInterrupt])
def test_an_engine_that_failed_is_not_interrupted(failure):
    engine = Engine(return_batch)

    @engine.on(Events.ITERATION_COMPLETED(once=2))
    def fail():
        raise failure

    with suppress(failure):
        engine.run([0, 1, 2])
    assert engine._internal_run_generator is not None
    assert not is_interrupted(engine)


def test_forget_run_ends_an_interruption():
    engine = Engine(return_batch)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.interrupt)
    engine.run([0, 1, 2])
    forget_run(engine)
    assert not is_interrupted(engine)


# The order of handlers


@pytest.mark.parametrize("engine_class", ENGINES)
def test_last_handler_moves_to_front_others_keep_their_order(engine_class):
    engine, calls = engine_class(return_batch), []
    for name in "abc":
        engine.add_event_handler(Events.STARTED, calls.append, name)
    move_to_front(engine, Events.STARTED)
    engine.add_event_handler(Events.STARTED, calls.append, "d")
    engine.run([0])
    assert calls == ["c", "a", "b", "d"]
    engine.add_event_handler(Events.STARTED, calls.append, "e")
    move_to_front(engine, Events.STARTED)
    forget_run(engine)
    calls.clear()
    engine.run([0])
    assert calls == ["e", "c", "a", "b", "d"]


@pytest.mark.parametrize("engine_class", ENGINES)
def test_single_handler_moved_to_front_stays_first(engine_class):
    engine, calls = engine_class(return_batch), []
    engine.add_event_handler(Events.STARTED, calls.append, "a")
    move_to_front(engine, Events.STARTED)
    engine.run([0])
    assert calls == ["a"]


@pytest.mark.parametrize("engine_class", ENGINES)
def test_moving_to_front_affects_one_event_and_allows_filters(engine_class):
    engine, calls = engine_class(return_batch), []
    second = Events.ITERATION_STARTED(once=2)
    for event in (Events.STARTED, Events.ITERATION_STARTED, second):
        for name in "ab":
            engine.add_event_handler(event, lambda event=event, name=name: calls.append(name))
    move_to_front(engine, second)
    engine.run([0, 1])
    assert "".join(calls) == "ab" + "ab" + "bab" + "a"


@pytest.mark.parametrize("engine_class", ENGINES)
def test_handler_moved_to_front_while_firing_starts_next_time(engine_class):
    engine, calls = engine_class(return_batch), []

    def attach():
        calls.append("attach")
        if len(calls) == 2:
            engine.add_event_handler(Events.ITERATION_STARTED, calls.append, "first")
            move_to_front(engine, Events.ITERATION_STARTED)

    for each in (lambda: calls.append("a"), attach, lambda: calls.append("b")):
        engine.add_event_handler(Events.ITERATION_STARTED, each)
    engine.run([0, 1])
    assert calls == ["a", "attach", "b", "first", "a", "attach", "b"]


@pytest.mark.parametrize("engine_class", ENGINES)
@pytest.mark.parametrize("event", [Events.STARTED, Events.ITERATION_COMPLETED, CustomEvents.FIRST])
def test_handler_added_within_an_event_is_called_in_it(event, engine_class):
    engine, calls = engine_class(return_batch), []
    engine.register_events(*CustomEvents)

    def leave():
        calls.append("leaving")
        leaving.remove()

    def add(engine):
        calls.append("adding")
        engine.add_event_handler(event, calls.append, "added")
        engine.add_event_handler(CustomEvents.SECOND, calls.append, "of another event")
        adding.remove()

    adding = engine.add_event_handler(event, add)
    leaving = engine.add_event_handler(event, leave)
    engine.add_event_handler(event, calls.append, "last")
    if event is CustomEvents.FIRST:
        engine.fire_event(event)
    else:
        engine.run([0])
    assert calls == ["adding", "leaving", "last", "added"]
    calls.clear()
    engine.fire_event(event)
    assert calls == ["last", "added"]


@pytest.mark.parametrize("engine_class", [Engine, engine_with_wrappers])
def test_firing_an_event_is_logged_as_in_ignite(engine_class, caplog):
    engine = engine_class(return_batch)
    engine.logger = logging.getLogger("an engine")
    with caplog.at_level(logging.DEBUG, "an engine"):
        engine.fire_event(Events.STARTED)
    expected = "0 | 0, Firing handlers for event Events.STARTED"
    assert [each.getMessage() for each in caplog.records] == [expected]


def test_start_and_end_of_a_run_are_logged_as_in_ignite(caplog):
    trainer = make_trainer(batches_of(2))
    trainer.logger = logging.getLogger("a trainer")
    with caplog.at_level(logging.DEBUG, "a trainer"):
        trainer.run()
    messages = [each.getMessage() for each in caplog.records]
    assert "0 | 0, Firing handlers for event Events.STARTED" in messages
    assert "1 | 2, Firing handlers for event Events.COMPLETED" in messages


def test_handler_added_after_a_removal_is_called_in_its_event():
    """Ignite's own engine calls such a handler at the next event only."""
    engine, calls = QuickEngine(return_batch), []

    def exchange(engine):
        calls.append("exchanging")
        exchanging.remove()
        engine.add_event_handler(Events.STARTED, calls.append, "added")

    exchanging = engine.add_event_handler(Events.STARTED, exchange)
    engine.fire_event(Events.STARTED)
    assert calls == ["exchanging", "added"]


def test_handler_added_and_removed_within_an_event_is_not_called():
    engine, calls = QuickEngine(return_batch), []

    def add(engine):
        engine.add_event_handler(Events.STARTED, calls.append, "never")
        engine.remove_event_handler(calls.append, Events.STARTED)
        engine.add_event_handler(Events.STARTED, lambda: calls.append("added"))
        engine.add_event_handler(Events.STARTED, lambda: handle.remove())
        handle = engine.add_event_handler(Events.STARTED, lambda: calls.append("never"))
        adding.remove()

    adding = engine.add_event_handler(Events.STARTED, add)
    for _ in range(2):
        calls.clear()
        engine.fire_event(Events.STARTED)
        assert calls == ["added"]


@pytest.mark.parametrize("engine_class", ENGINES)
def test_handler_added_within_a_filtered_event_heeds_its_filter(engine_class):
    engine, calls = engine_class(return_batch), []

    @engine.on(Events.ITERATION_STARTED(once=2))
    def add(engine):
        engine.add_event_handler(Events.ITERATION_STARTED(every=2), calls.append, "second")
        engine.add_event_handler(Events.ITERATION_STARTED(every=3), calls.append, "third")

    engine.run([0, 1, 2, 3])
    assert calls == ["second", "third", "second"]


@pytest.mark.parametrize("engine_class", ENGINES)
def test_an_event_fired_within_itself_calls_each_handler_again(engine_class):
    engine, calls = engine_class(return_batch), []
    engine.register_events(CustomEvents.FIRST)

    @engine.on(CustomEvents.FIRST)
    def fire_again(engine):
        calls.append("again")
        if len(calls) < 3:
            engine.fire_event(CustomEvents.FIRST)

    engine.add_event_handler(CustomEvents.FIRST, calls.append, "last")
    engine.fire_event(CustomEvents.FIRST)
    assert calls == ["again"] * 3 + ["last"] * 3


@pytest.mark.parametrize("engine_class", ENGINES)
def test_handler_added_at_an_inner_event_to_the_outer_is_called(engine_class):
    engine, calls = engine_class(return_batch), []
    engine.register_events(*CustomEvents)
    engine.add_event_handler(
        CustomEvents.FIRST, lambda engine: engine.fire_event(CustomEvents.SECOND)
    )

    @engine.on(CustomEvents.SECOND)
    def add(engine):
        engine.add_event_handler(CustomEvents.FIRST, calls.append, "outer")
        engine.add_event_handler(CustomEvents.SECOND, calls.append, "inner")

    engine.fire_event(CustomEvents.FIRST)
    assert calls == ["inner", "outer"]


@pytest.mark.parametrize("engine_class", ENGINES)
def test_handler_added_before_a_failure_waits_for_the_next_time(engine_class):
    engine, calls = engine_class(return_batch), []

    def add_and_fail(engine):
        failing.remove()
        engine.add_event_handler(Events.STARTED, calls.append, "added")
        raise ZeroDivisionError

    failing = engine.add_event_handler(Events.STARTED, add_and_fail)
    with pytest.raises(ZeroDivisionError):
        engine.fire_event(Events.STARTED)
    assert calls == []
    for _ in range(2):
        engine.fire_event(Events.STARTED)
    assert calls == ["added"] * 2


# The last event


def fail():
    raise ZeroDivisionError


FIRE = {Engine: fire_within, QuickEngine: QuickEngine.fire_event}
"""The function that fires an event within another one, on each class of engine."""


@pytest.mark.parametrize("engine_class", FIRE)
@pytest.mark.parametrize("inner", ["heard", "unheard", "nested", "failing"])
def test_last_event_is_restored_after_an_inner_event(inner, engine_class):
    engine, last = engine_class(return_batch), []
    engine.register_events(*CustomEvents)
    if inner == "heard":
        engine.add_event_handler(CustomEvents.FIRST, lambda: last.append(engine.last_event_name))
    elif inner == "nested":

        @engine.on(CustomEvents.FIRST)
        def fire_another(engine):
            FIRE[engine_class](engine, CustomEvents.SECOND)
            last.append(engine.last_event_name)

    elif inner == "failing":
        engine.add_event_handler(CustomEvents.FIRST, fail)

    @engine.on(Events.ITERATION_COMPLETED)
    def fire(engine):
        with suppress(ZeroDivisionError):
            FIRE[engine_class](engine, CustomEvents.FIRST)
        last.append(engine.last_event_name)

    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: last.append(engine.last_event_name)
    )
    engine.run([0])
    own = [CustomEvents.FIRST] if inner in ("heard", "nested") else []
    assert last == own + [Events.ITERATION_COMPLETED] * 2


@pytest.mark.parametrize("make", ["trainer", "plain engine"])
def test_events_of_this_package_keep_last_event_name(make):
    def validate():
        raise ZeroDivisionError

    if make == "trainer":
        engine = make_trainer(batches_of(1))
    else:
        model, accelerator = make_model(dropout=0.0), Accelerator(cpu=True)
        engine = Engine(lambda engine, batch: accelerator.backward(model(batch[0]).sum()))
        OptimizerStep(accelerator, torch.optim.SGD(model.parameters(), lr=0.1)).attach(engine)
    last = []
    validation = Validation(validate, every_steps=1)

    @engine.on(Events.ITERATION_COMPLETED)
    def look(engine):
        last.append(engine.last_event_name)
        with pytest.raises(ZeroDivisionError):
            validation(engine)
        last.append(engine.last_event_name)

    engine.run(batches_of(1))
    assert last == [Events.ITERATION_COMPLETED] * 2


@pytest.mark.parametrize("engine_class", ENGINES)
@pytest.mark.parametrize("is_heard", [True, False])
def test_an_event_fired_by_the_process_function_stays_the_last(is_heard, engine_class):
    last = []

    def process(engine, batch):
        engine.fire_event(CustomEvents.FIRST)
        last.append(engine.last_event_name)

    engine = engine_class(process)
    engine.register_events(*CustomEvents)
    if is_heard:
        engine.add_event_handler(CustomEvents.FIRST, lambda engine: engine.last_event_name)
    engine.run([0])
    assert last == [CustomEvents.FIRST]


# The end of an epoch


AT_EPOCH_END = {
    "epoch-wise": EpochWise(),
    "running": RunningEpochWise(),
    "filtered": MetricUsage(
        Events.EPOCH_STARTED, Events.EPOCH_COMPLETED(every=1), Events.ITERATION_COMPLETED
    ),
}


@pytest.mark.parametrize("usage", AT_EPOCH_END)
@pytest.mark.parametrize("profiler", [None, HandlersTimeProfiler, BasicTimeProfiler])
def test_metrics_compute_before_other_handlers_of_epoch_end(profiler, usage):
    trainer, seen = make_trainer(batches_of(2)), []

    @trainer.on(Events.EPOCH_COMPLETED | Events.EPOCH_COMPLETED(every=1))
    def look(engine):
        seen.append("average" in engine.state.metrics)
        engine.state.metrics["seen"] = True

    validation = Validation(lambda: seen.append("average" in trainer.state.metrics), every_epochs=1)
    validation.attach(trainer)
    if profiler is not None:
        profiler().attach(trainer)

    class Other(Average):
        def completed(self, engine, name):
            assert "seen" not in engine.state.metrics
            super().completed(engine, name)

    metric = Other(output_transform=lambda loss: loss.item())
    metric.attach(trainer, "average", usage=AT_EPOCH_END[usage])
    trainer.run()
    assert seen == [True] * 3


def test_metrics_of_an_epoch_keep_their_order():
    trainer, order = make_trainer(batches_of(2)), []

    class Recording(Average):
        def completed(self, engine, name):
            order.append(name)

    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: order.append("handler"))
    for name in "abc":
        Recording(output_transform=lambda loss: loss.item()).attach(trainer, name)
    trainer.run()
    assert order == ["a", "b", "c", "handler"]


def test_mock_is_a_handler_of_epoch_end_like_any_other():
    trainer, mock, order = make_trainer(batches_of(1)), MagicMock(), []
    mock.side_effect = lambda engine: order.append("mock")
    trainer.add_event_handler(Events.EPOCH_COMPLETED, mock)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: order.append("handler"))
    trainer.run()
    assert order == ["mock", "handler"]


def test_timers_of_the_basic_profiler_stay_around_all_of_epoch_end():
    trainer, order = make_trainer(batches_of(2)), []

    class Recording(Average):
        def completed(self, engine, name):
            order.append("metric")

    class Profiler(BasicTimeProfiler):
        def _as_first_epoch_completed(self, engine):
            order.append("first")

        def _as_last_epoch_completed(self, engine):
            order.append("last")

    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: order.append("handler"))
    Recording(output_transform=lambda loss: loss.item()).attach(trainer, "average")
    Validation(lambda: order.append("validation"), every_epochs=1).attach(trainer)
    Profiler().attach(trainer)
    trainer.run()
    assert order == ["first", "metric", "validation", "handler", "last"]


@pytest.mark.parametrize("engine_class", ENGINES)
def test_a_handler_of_several_events_is_put_first_at_each(engine_class):
    engine, calls = engine_class(return_batch), []
    both = Events.STARTED | Events.COMPLETED
    for name in "ab":
        engine.add_event_handler(both, calls.append, name)
    move_to_front(engine, both)
    engine.run([0])
    assert calls == ["b", "a", "b", "a"]


# QuickEngine


@pytest.mark.parametrize("engine_class", ENGINES)
def test_handlers_get_what_they_get_from_ignite(engine_class):
    engine, calls = engine_class(return_batch), []

    @engine.on(Events.STARTED)
    def no_argument():
        calls.append("none")

    @engine.on(Events.STARTED)
    def the_engine(engine):
        calls.append(type(engine))

    @engine.on(Events.STARTED, 1, key=2)
    def more(engine, number, key):
        calls.append((number, key))

    @engine.on(Events.STARTED, 3)
    def without_engine(number):
        calls.append(number)

    @engine.on(Events.EXCEPTION_RAISED)
    def error(error):
        calls.append(type(error))

    @engine.on(Events.EXCEPTION_RAISED, "extra")
    def error_of_engine(engine, error, extra):
        calls.append((type(engine), type(error), extra))

    engine.run([0])
    engine._fire_event(Events.EXCEPTION_RAISED, KeyError())
    assert calls[:4] == ["none", type(engine), (1, 2), 3]
    assert calls[4:] == [KeyError, (type(engine), KeyError, "extra")]


@pytest.mark.parametrize("engine_class", ENGINES)
def test_a_weak_reference_of_a_user_is_resolved(engine_class):
    engine, mine, seen = engine_class(return_batch), CustomEvents.FIRST, []

    def look(referred):
        seen.append(referred)

    engine.add_event_handler(Events.STARTED, look, weakref.ref(mine))
    engine._fire_event(Events.STARTED)
    assert seen == [mine]


@pytest.mark.parametrize("engine_class", ENGINES)
def test_keywords_of_an_event_override_those_of_a_handler(engine_class):
    engine, seen = engine_class(return_batch), []
    engine.add_event_handler(
        Events.TERMINATE_SINGLE_EPOCH, lambda *args, **kwargs: seen.append(kwargs), iter_counter=5
    )
    engine._fire_event(Events.TERMINATE_SINGLE_EPOCH, iter_counter=1, engine=2)
    assert seen == [{"iter_counter": 1, "engine": 2}]


@pytest.mark.parametrize("engine_class", ENGINES)
@pytest.mark.parametrize("known", ["mine", StringEvents.MINE])
@pytest.mark.parametrize("attached", ["mine", StringEvents.MINE])
@pytest.mark.parametrize("fired", ["mine", StringEvents.MINE])
def test_strings_and_members_of_string_enums_are_events(engine_class, known, attached, fired):
    engine, seen = engine_class(return_batch), []
    engine.register_events(known)

    def fail(engine):
        seen.append(sys.exc_info())
        raise KeyError

    engine.add_event_handler(attached, fail)
    with pytest.raises(KeyError) as raised:
        engine.fire_event(fired)
    assert seen == [(None, None, None)]
    assert raised.value.__context__ is None


@pytest.mark.parametrize("engine_class", ENGINES)
@pytest.mark.parametrize("event", ["text", CustomEvents.FIRST, 5])
def test_unregistered_event_is_an_error_without_context(engine_class, event):
    with pytest.raises(ValueError, match="not a valid event") as raised:
        engine_class(return_batch).fire_event(event)
    assert raised.value.__context__ is None


@pytest.mark.parametrize("engine_class", ENGINES)
def test_custom_event_without_handlers_becomes_the_last_event(engine_class):
    engine = engine_class(return_batch)
    engine.register_events(CustomEvents.FIRST)
    engine.fire_event(CustomEvents.FIRST)
    assert engine.last_event_name is CustomEvents.FIRST


@pytest.mark.parametrize("engine_class", ENGINES)
def test_a_handler_of_the_engine_gets_its_keywords_at_each_event(engine_class):
    engine, seen = engine_class(return_batch), []

    def look(engine, word="none"):
        seen.append((engine, word))

    engine.add_event_handler(Events.ITERATION_STARTED, look, word="given")
    engine.run([0, 1])
    assert seen == [(engine, "given")] * 2


@pytest.mark.parametrize("event", ["text", CustomEvents.FIRST, TrainEvents.STEP_COMPLETED])
def test_custom_events_fire_with_and_without_handlers(event):
    engine, calls = QuickEngine(return_batch), []
    with pytest.raises(ValueError, match="not a valid event"):
        engine.fire_event(event)
    engine.register_events(event)
    engine.fire_event(event)
    assert not has_handlers(engine, event)
    handle = engine.add_event_handler(event, lambda: calls.append(1))
    assert has_handlers(engine, event)
    engine.fire_event(event)
    handle.remove()
    assert not has_handlers(engine, event)
    engine.fire_event(event)
    assert calls == [1]


def test_custom_events_fire_on_a_trainer_with_filters():
    trainer, calls = make_trainer(batches_of(4)), []
    trainer.register_events(*CustomEvents, event_to_attr={CustomEvents.FIRST: "firsts"})
    trainer.state.firsts = 0

    @trainer.on(Events.ITERATION_COMPLETED)
    def fire(engine):
        engine.state.firsts += 1
        engine.fire_event(CustomEvents.FIRST)

    trainer.add_event_handler(
        CustomEvents.FIRST(every=2), lambda engine: calls.append(engine.state.iteration)
    )
    trainer.run()
    assert calls == [2, 4]


def test_ignite_wraps_the_handler_of_a_filtered_event_and_no_other():
    wrapped = []

    class Watched(Engine):
        def _handler_wrapper(self, handler, event_name, event_filter):
            wrapped.append((handler, event_name, event_filter(self, 4), event_filter(self, 5)))
            return super()._handler_wrapper(handler, event_name, event_filter)

    engine = Watched(return_batch)
    engine.add_event_handler(Events.STARTED, ignore)
    engine.add_event_handler(Events.STARTED(every=2), ignore)
    assert wrapped == [(ignore, Events.STARTED, True, False)]


def test_ignites_filter_is_given_the_counter_of_its_event():
    engine, given = Engine(return_batch), []
    event = Events.ITERATION_COMPLETED(lambda engine, number: given.append(number))
    engine.add_event_handler(event, ignore)
    engine.run([0, 1, 2])
    assert State.event_to_attr[event] == "iteration"
    assert given == [1, 2, 3]


def test_a_filter_reads_its_counter_without_a_lookup(monkeypatch):
    engine, calls = QuickEngine(return_batch), []
    events = Events.ITERATION_COMPLETED(every=2) | Events.EPOCH_COMPLETED(once=2)
    engine.add_event_handler(events, lambda engine: calls.append(engine.last_event_name.name))
    monkeypatch.setattr(State, "get_event_attrib_value", None)
    engine.run([0, 1, 2], max_epochs=2)
    assert calls == ["ITERATION_COMPLETED"] * 3 + ["EPOCH_COMPLETED"]


def test_a_filtered_handler_is_found_and_removed_by_its_function():
    engine, calls = QuickEngine(return_batch), []
    event = Events.ITERATION_COMPLETED(lambda engine, number: number == 2)

    def record_extra(extra):
        calls.append(extra)

    engine.add_event_handler(event, record_extra, "extra")
    assert engine.has_event_handler(record_extra, event)
    engine.run([0, 1, 2])
    engine.remove_event_handler(record_extra, event)
    assert not engine.has_event_handler(record_extra, event)
    forget_run(engine)
    engine.run([0, 1, 2])
    assert calls == ["extra"]


@pytest.mark.parametrize("engine_class", ENGINES)
def test_filter_without_a_counter_is_an_error_when_fired(engine_class):
    engine = engine_class(return_batch)
    engine.register_events(CustomEvents.SECOND)
    engine.add_event_handler(CustomEvents.SECOND(every=2), lambda: None)
    with pytest.raises(RuntimeError, match="Unknown event name"):
        engine.fire_event(CustomEvents.SECOND)


def test_event_without_handlers_becomes_the_last_event():
    engine = QuickEngine(return_batch)
    engine._fire_event(Events.STARTED)
    assert engine.last_event_name is Events.STARTED


def test_event_without_handlers_skips_the_handler_table():
    engine = QuickEngine(return_batch)
    engine._event_handlers = engine._allowed_events = None
    engine.fire_event(Events.STARTED)
    engine._fire_event(Events.COMPLETED)


def test_event_has_no_handlers_after_the_last_is_removed():
    engine = QuickEngine(return_batch)
    engine.add_event_handler(Events.STARTED, lambda: None).remove()
    engine._event_handlers = None
    engine.fire_event(Events.STARTED)


def test_handler_of_an_event_list_is_called_and_removed():
    engine, calls = QuickEngine(return_batch), []
    handle = engine.add_event_handler(
        Events.STARTED | Events.COMPLETED(once=1), lambda: calls.append(1)
    )
    engine.run([0])
    assert calls == [1, 1]
    handle.remove()
    forget_run(engine)
    engine.run([0])
    assert calls == [1, 1]


def test_removing_an_unattached_handler_is_ignites_error():
    engine = QuickEngine(return_batch)
    with pytest.raises(ValueError, match="does not exist"):
        engine.remove_event_handler(ignore, "unknown")


# Ignite's own handlers, on a trainer


def trainer_of(number=4, **options):
    return make_trainer(batches_of(number), **options)


def names_in(results):
    return {row[0]: row for row in results}


@pytest.mark.parametrize("listening", [False, True])
def test_the_handlers_time_profiler_sees_every_handler(listening):
    def look(engine):
        time.perf_counter()

    trainer = trainer_of(accumulation=2)
    if listening:
        for event in (Events.ITERATION_COMPLETED, TrainEvents.STEP_COMPLETED):
            trainer.add_event_handler(event, look)
    profiler = HandlersTimeProfiler()
    profiler.attach(trainer)
    trainer.run(max_epochs=2)
    assert len(profiler.processing_times) == 8
    assert len(profiler.dataflow_times) == 8
    assert all(each > 0 for each in profiler.processing_times)
    name = HandlersTimeProfiler._get_callable_name(look)
    if listening:
        assert len(profiler.event_handlers_times[Events.ITERATION_COMPLETED][name]) == 8
        assert len(profiler.event_handlers_times[TrainEvents.STEP_COMPLETED][name]) == 4
    assert profiler.get_results()


def test_the_handlers_time_profiler_measures_nothing_after_the_run():
    def look(engine):
        time.perf_counter()

    trainer, event = trainer_of(), TrainEvents.STEP_COMPLETED
    trainer.add_event_handler(event, look)
    profiler = HandlersTimeProfiler()
    profiler.attach(trainer)
    trainer.run()
    taken = profiler.event_handlers_times[event][profiler._get_callable_name(look)]
    assert len(taken) == 4
    trainer.fire_event(event)
    assert len(taken) == 4


def test_the_handlers_time_profiler_keeps_weights_identical():
    plain, profiled = trainer_of(accumulation=2), trainer_of(accumulation=2)
    HandlersTimeProfiler().attach(profiled)
    for trainer in (plain, profiled):
        trainer.run(max_epochs=2)
    assert torch.equal(weights(plain.model), weights(profiled.model))
    profiled.run(max_epochs=3)
    plain.run(max_epochs=3)
    assert torch.equal(weights(plain.model), weights(profiled.model))


def test_the_basic_time_profiler_measures_each_iteration():
    trainer = trainer_of()
    profiler = BasicTimeProfiler()
    profiler.attach(trainer)
    trainer.run(max_epochs=2)
    assert (profiler.processing_times > 0).all()
    assert (profiler.dataflow_times > 0).all()
    assert len(profiler.processing_times) == 8
    assert profiler.event_handlers_times[Events.ITERATION_COMPLETED].shape == (8,)
    results = profiler.get_results()
    assert results["processing_stats"]["total"] > 0


def test_the_basic_time_profiler_works_with_max_steps():
    trainer = trainer_of()
    profiler = BasicTimeProfiler()
    profiler.attach(trainer)
    trainer.run(max_steps=8)
    assert (profiler.processing_times > 0).all()


@pytest.mark.parametrize(
    "limits", [{"max_epochs": 2}, {"max_steps": 6}, {"max_iters": 8}], ids=stable_id
)
def test_the_progress_bar_shows_iterations_and_metrics(limits, capsys):
    trainer = trainer_of()
    RunningAverage(output_transform=lambda output: output).attach(trainer, "loss")
    ProgressBar(persist=True).attach(trainer, ["loss"])
    trainer.run(**limits)
    shown = capsys.readouterr().err
    assert "Epoch [1/2]" in shown or "max_iters" in limits
    assert "[4/4]" in shown
    assert "loss=" in shown


def test_the_progress_bar_works_where_no_length_is_known(capsys):
    class Stream:
        def __iter__(self):
            return iter(batches_of(3))

    trainer = make_trainer(Stream())
    ProgressBar(persist=True).attach(trainer, output_transform=lambda loss: {"loss": loss})
    trainer.run(max_steps=5)
    assert "loss=" in capsys.readouterr().err


def test_the_progress_bar_of_epochs_works(capsys):
    trainer = trainer_of()
    ProgressBar(persist=True).attach(
        trainer, event_name=Events.EPOCH_COMPLETED, closing_event_name=Events.COMPLETED
    )
    trainer.run(max_epochs=3)
    assert "[3/3]" in capsys.readouterr().err


def test_metrics_see_each_output_and_restart_each_epoch():
    trainer, losses, averages = trainer_of(), [], []
    Average(output_transform=lambda loss: loss.item()).attach(trainer, "average")
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output.item())
    )
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: averages.append(engine.state.metrics["average"])
    )
    trainer.run(max_epochs=2)
    expected = [sum(losses[:4]) / 4, sum(losses[4:]) / 4]
    assert averages == pytest.approx(expected)


def test_running_average_follows_the_loss():
    trainer, expected = trainer_of(), []
    RunningAverage(alpha=0.5, output_transform=lambda loss: loss.item()).attach(trainer, "smooth")

    @trainer.on(Events.ITERATION_COMPLETED)
    def check_average(engine):
        loss = engine.state.output.item()
        expected.append(loss if not expected else 0.5 * expected[-1] + 0.5 * loss)
        assert engine.state.metrics["smooth"] == pytest.approx(expected[-1])

    trainer.run()
    assert len(expected) == 4


def test_terminate_on_nan_stops_at_the_step_that_made_it():
    batches = batches_of(4)
    batches[2] = (batches[2][0] * float("nan"), batches[2][1])
    trainer = make_trainer(batches)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
    trainer.run(max_epochs=3)
    assert trainer.stop_reason == "TerminateOnNan"
    assert trainer.state.iteration == 3


def test_early_stopping_stops_the_trainer():
    trainer = trainer_of()
    stopping = EarlyStopping(patience=2, score_function=lambda engine: 0.0, trainer=trainer)
    evaluator = Engine(return_batch)
    evaluator.add_event_handler(Events.COMPLETED, stopping)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))
    trainer.run(max_epochs=9)
    assert trainer.stop_reason == "EarlyStopping"
    assert trainer.state.epoch == 3


def test_the_timer_counts_iterations():
    trainer = trainer_of()
    timer = Timer(average=True)
    timer.attach(
        trainer,
        start=Events.STARTED,
        resume=Events.ITERATION_STARTED,
        pause=Events.ITERATION_COMPLETED,
        step=Events.ITERATION_COMPLETED,
    )
    trainer.run(max_epochs=2)
    assert timer.step_count == 8
    assert timer.value() > 0


def test_a_scheduler_of_ignite_moves_with_the_steps():
    trainer, rates = trainer_of(accumulation=2), []
    scheduler = LRScheduler(StepLR(trainer.optimizer.optimizer, 1, gamma=0.5))
    trainer.add_event_handler(TrainEvents.OPTIMIZER_STEP_STARTED, scheduler)
    trainer.add_event_handler(
        TrainEvents.OPTIMIZER_STEP_COMPLETED,
        lambda engine: rates.append(engine.optimizer.param_groups[0]["lr"]),
    )
    trainer.run(max_epochs=2)
    assert rates == [0.1, 0.05, 0.025, 0.0125]


def test_a_checkpoint_of_ignite_restores_the_trainer(tmp_path):
    trainer = trainer_of()
    to_save = {"trainer": trainer, "model": trainer.model, "optimizer": trainer.optimizer}
    saver = DiskSaver(str(tmp_path), require_empty=False)
    checkpoint = Checkpoint(to_save, saver, n_saved=None)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=3), checkpoint)
    trainer.run(max_epochs=2)
    resumed = trainer_of()
    to_load = {"trainer": resumed, "model": resumed.model, "optimizer": resumed.optimizer}
    Checkpoint.load_objects(to_load, torch.load(tmp_path / "checkpoint_3.pt"))
    assert resumed.state.optimizer_step == 3
    resumed.run()
    assert resumed.state.iteration == 8
    assert torch.equal(weights(resumed.model), weights(trainer.model))


def test_loggers_find_the_counters_of_events():
    trainer, seen = trainer_of(accumulation=2), []
    events = [Events.ITERATION_COMPLETED, TrainEvents.STEP_COMPLETED, Events.EPOCH_COMPLETED]
    for event in events:
        trainer.add_event_handler(
            event,
            lambda engine, event=event: seen.append(engine.state.get_event_attrib_value(event)),
        )
    trainer.run()
    assert seen == [1, 2, 1, 3, 4, 2, 1]


def test_events_are_fired_once_with_several_handlers():
    trainer = trainer_of(number=2)
    one, two = record(trainer, Events), record(trainer, Events)
    trainer.run()
    assert one == two


def test_handlers_come_with_filters_and_arguments():
    engine, extra, named = Engine(lambda engine, batch: None), object(), object()

    def is_due(engine, event):
        return True

    def plain(engine, each, *, key):
        """Does return_batch."""

    def filtered():
        """Does return_batch."""

    engine.add_event_handler(Events.COMPLETED, plain, extra, key=named)
    engine.add_event_handler(Events.STARTED(event_filter=is_due), filtered)
    (first, given), (second, wrapper) = handlers_with_arguments(engine)
    assert (first, given) == (plain, [extra, named])
    assert second is filtered
    assert is_due in [cell.cell_contents for cell in wrapper[0].__closure__]


def test_the_values_of_a_logger_come_by_name():
    class Show(BaseOutputHandler):
        def __call__(self, engine, logger, event_name):
            """Is not called."""

    engine = Engine(lambda engine, batch: torch.tensor(batch))
    engine.state.metrics = {"mean": 0.5, "by_class": {"cat": [1, torch.tensor(2)]}, "name": "a"}
    engine.state.alpha = 3
    engine.run([4.0])
    show = Show("tag", "all", lambda output: {"loss": output}, state_attributes=["alpha"])
    expected = {"mean": 0.5, "by_class_cat_0": 1, "by_class_cat_1": 2, "name": "a", "loss": 4.0}
    assert values_to_log(show, engine) == {**expected, "alpha": 3}
