import enum
import gc
import inspect
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
from ignite_hooks.core.engine import belongings
from ignite_hooks.core.engine import calls_of
from ignite_hooks.core.engine import fire_within
from ignite_hooks.core.engine import forget_run
from ignite_hooks.core.engine import has_handlers
from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.engine import move_to_front
from tests.ids import stable_id
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import record
from tests.reference import weights


class Mine(EventEnum):
    FIRST = "first of mine"
    SECOND = "second of mine"


class Text(str, enum.Enum):
    MINE = "mine"


def ignore(*arguments, **keywords):  # Ignite asks for a signature; print has none on Python 3.10
    pass


def nothing(engine, batch):
    return batch


# What is known of Ignite's private members


def test_ignite_keeps_handlers_as_function_args_and_kwargs():
    engine = Engine(nothing)
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
    engine = Engine(nothing)
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

    engine = Watched(nothing)
    engine.on(Events.STARTED)(lambda: None)
    handle = engine.add_event_handler(Events.STARTED | Events.COMPLETED, lambda: None)
    handle.remove()
    assert calls == ["add", "add", "add", "add", "remove", "remove"]


def test_ignite_keeps_the_registered_events_in_a_list():
    engine = Engine(nothing)
    assert list(engine._allowed_events) == list(Events)
    engine.register_events("mine")
    assert engine._allowed_events[-1] == "mine"


def test_ignite_fires_through_the_method_that_is_overridden():
    fired = []

    class Watched(Engine):
        def _fire_event(self, event_name, *args, **kwargs):
            fired.append(event_name)
            super()._fire_event(event_name, *args, **kwargs)

    engine = Watched(nothing)
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


def test_ignite_keeps_the_run_that_it_is_in_the_middle_of():
    engine = Engine(nothing)
    assert engine._internal_run_generator is None
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), engine.interrupt)
    engine.run([0, 1])
    assert inspect.isgenerator(engine._internal_run_generator)
    engine.run()
    assert engine._internal_run_generator is None


def test_ignite_does_nothing_after_a_failure():
    engine, batches = Engine(nothing), []
    engine.add_event_handler(Events.ITERATION_STARTED, lambda e: batches.append(e.state.batch))
    handle = engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: 1 / 0)
    with suppress(ZeroDivisionError):
        engine.run([0, 1, 2])
    handle.remove()
    assert batches == [0, 1]
    engine.run([0, 1, 2])
    assert batches == [0, 1]


def test_a_run_that_is_forgotten_after_a_failure_starts_over():
    engine, batches = Engine(nothing), []
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
    engine = Engine(nothing)
    assert engine._process_function is nothing
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


# What is kept on an engine


@pytest.mark.parametrize("kind", [Engine, QuickEngine])
def test_belongings_are_per_engine_and_persist(kind):
    one, other = kind(nothing), kind(nothing)
    belongings(one)["kept"] = 1
    assert belongings(one) == {"kept": 1}
    assert belongings(one) is belongings(one)
    assert belongings(other) == {}
    one.run([0])
    assert belongings(one) == {"kept": 1}


def test_belongings_of_an_engine_are_freed_despite_a_cycle():
    engine = Engine(nothing)
    belongings(engine)["kept"] = [engine]
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None


# Runs that are interrupted


def test_engine_is_interrupted_until_the_run_continues():
    engine, within = Engine(nothing), []
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
    engine = Engine(nothing)

    @engine.on(Events.ITERATION_COMPLETED(once=2))
    def fail():
        raise failure

    with suppress(failure):
        engine.run([0, 1, 2])
    assert engine._internal_run_generator is not None
    assert not is_interrupted(engine)


def test_an_interruption_that_is_forgotten_is_none():
    engine = Engine(nothing)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.interrupt)
    engine.run([0, 1, 2])
    forget_run(engine)
    assert not is_interrupted(engine)


# The order of handlers


@pytest.mark.parametrize("kind", [Engine, QuickEngine])
def test_last_handler_moves_to_front_others_keep_their_order(kind):
    engine, calls = kind(nothing), []
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


@pytest.mark.parametrize("kind", [Engine, QuickEngine])
def test_single_handler_moved_to_front_stays_first(kind):
    engine, calls = kind(nothing), []
    engine.add_event_handler(Events.STARTED, calls.append, "a")
    move_to_front(engine, Events.STARTED)
    engine.run([0])
    assert calls == ["a"]


@pytest.mark.parametrize("kind", [Engine, QuickEngine])
def test_moving_to_front_affects_one_event_and_allows_filters(kind):
    engine, calls = kind(nothing), []
    second = Events.ITERATION_STARTED(once=2)
    for event in (Events.STARTED, Events.ITERATION_STARTED, second):
        for name in "ab":
            engine.add_event_handler(event, lambda event=event, name=name: calls.append(name))
    move_to_front(engine, second)
    engine.run([0, 1])
    assert "".join(calls) == "ab" + "ab" + "bab" + "a"


@pytest.mark.parametrize("kind", [Engine, QuickEngine])
def test_handler_moved_to_front_while_firing_starts_next_time(kind):
    engine, calls = kind(nothing), []

    def attach():
        calls.append("attach")
        if len(calls) == 2:
            engine.add_event_handler(Events.ITERATION_STARTED, calls.append, "first")
            move_to_front(engine, Events.ITERATION_STARTED)

    for each in (lambda: calls.append("a"), attach, lambda: calls.append("b")):
        engine.add_event_handler(Events.ITERATION_STARTED, each)
    engine.run([0, 1])
    assert calls == ["a", "attach", "b", "first", "a", "attach", "b"]


@pytest.mark.parametrize("kind", [Engine, QuickEngine])
@pytest.mark.parametrize("event", [Events.STARTED, Events.ITERATION_COMPLETED, Mine.FIRST])
def test_handler_added_within_an_event_is_called_in_it(event, kind):
    engine, calls = kind(nothing), []
    engine.register_events(*Mine)

    def leave():
        calls.append("leaving")
        leaving.remove()

    def add(engine):
        calls.append("adding")
        engine.add_event_handler(event, calls.append, "added")
        engine.add_event_handler(Mine.SECOND, calls.append, "of another event")
        adding.remove()

    adding = engine.add_event_handler(event, add)
    leaving = engine.add_event_handler(event, leave)
    engine.add_event_handler(event, calls.append, "last")
    if event is Mine.FIRST:
        engine.fire_event(event)
    else:
        engine.run([0])
    assert calls == ["adding", "leaving", "last", "added"]
    calls.clear()
    engine.fire_event(event)
    assert calls == ["last", "added"]


def test_handler_added_after_a_removal_is_called_in_its_event():
    """On Ignite's engine it would wait for the next time, if it was added after the removal."""
    engine, calls = QuickEngine(nothing), []

    def exchange(engine):
        calls.append("exchanging")
        exchanging.remove()
        engine.add_event_handler(Events.STARTED, calls.append, "added")

    exchanging = engine.add_event_handler(Events.STARTED, exchange)
    engine.fire_event(Events.STARTED)
    assert calls == ["exchanging", "added"]


def test_handler_added_and_removed_within_an_event_is_not_called():
    engine, calls = QuickEngine(nothing), []

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


@pytest.mark.parametrize("kind", [Engine, QuickEngine])
def test_handler_added_within_a_filtered_event_heeds_its_filter(kind):
    engine, calls = kind(nothing), []

    @engine.on(Events.ITERATION_STARTED(once=2))
    def add(engine):
        engine.add_event_handler(Events.ITERATION_STARTED(every=2), calls.append, "second")
        engine.add_event_handler(Events.ITERATION_STARTED(every=3), calls.append, "third")

    engine.run([0, 1, 2, 3])
    assert calls == ["second", "third", "second"]


@pytest.mark.parametrize("kind", [Engine, QuickEngine])
def test_an_event_fired_within_itself_calls_each_handler_again(kind):
    engine, calls = kind(nothing), []
    engine.register_events(Mine.FIRST)

    @engine.on(Mine.FIRST)
    def again(engine):
        calls.append("again")
        if len(calls) < 3:
            engine.fire_event(Mine.FIRST)

    engine.add_event_handler(Mine.FIRST, calls.append, "last")
    engine.fire_event(Mine.FIRST)
    assert calls == ["again"] * 3 + ["last"] * 3


@pytest.mark.parametrize("kind", [Engine, QuickEngine])
def test_handler_added_at_an_inner_event_to_the_outer_is_called(kind):
    engine, calls = kind(nothing), []
    engine.register_events(*Mine)
    engine.add_event_handler(Mine.FIRST, lambda engine: engine.fire_event(Mine.SECOND))

    @engine.on(Mine.SECOND)
    def add(engine):
        engine.add_event_handler(Mine.FIRST, calls.append, "outer")
        engine.add_event_handler(Mine.SECOND, calls.append, "inner")

    engine.fire_event(Mine.FIRST)
    assert calls == ["inner", "outer"]


@pytest.mark.parametrize("kind", [Engine, QuickEngine])
def test_handler_added_before_a_failure_waits_for_the_next_time(kind):
    engine, calls = kind(nothing), []

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
"""How an event is fired within another: on Ignite's engine that goes for ours alone."""


@pytest.mark.parametrize("kind", FIRE)
@pytest.mark.parametrize("inner", ["heard", "unheard", "nested", "failing"])
def test_the_last_event_is_that_of_the_handler_after_an_inner_one(inner, kind):
    engine, last = kind(nothing), []
    engine.register_events(*Mine)
    if inner == "heard":
        engine.add_event_handler(Mine.FIRST, lambda: last.append(engine.last_event_name))
    elif inner == "nested":

        @engine.on(Mine.FIRST)
        def fire_another(engine):
            FIRE[kind](engine, Mine.SECOND)
            last.append(engine.last_event_name)

    elif inner == "failing":
        engine.add_event_handler(Mine.FIRST, fail)

    @engine.on(Events.ITERATION_COMPLETED)
    def fire(engine):
        with suppress(ZeroDivisionError):
            FIRE[kind](engine, Mine.FIRST)
        last.append(engine.last_event_name)

    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: last.append(engine.last_event_name)
    )
    engine.run([0])
    own = [Mine.FIRST] if inner in ("heard", "nested") else []
    assert last == own + [Events.ITERATION_COMPLETED] * 2


@pytest.mark.parametrize("make", ["trainer", "plain engine"])
def test_our_events_leave_the_last_event_to_the_users_handlers(make):
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


@pytest.mark.parametrize("kind", [Engine, QuickEngine])
@pytest.mark.parametrize("is_heard", [True, False])
def test_an_event_fired_by_the_process_function_stays_the_last(is_heard, kind):
    last = []

    def process(engine, batch):
        engine.fire_event(Mine.FIRST)
        last.append(engine.last_event_name)

    engine = kind(process)
    engine.register_events(*Mine)
    if is_heard:
        engine.add_event_handler(Mine.FIRST, lambda engine: engine.last_event_name)
    engine.run([0])
    assert last == [Mine.FIRST]


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

    class Noting(Average):
        def completed(self, engine, name):
            order.append(name)

    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: order.append("handler"))
    for name in "abc":
        Noting(output_transform=lambda loss: loss.item()).attach(trainer, name)
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

    class Noting(Average):
        def completed(self, engine, name):
            order.append("metric")

    class Profiler(BasicTimeProfiler):
        def _as_first_epoch_completed(self, engine):
            order.append("first")

        def _as_last_epoch_completed(self, engine):
            order.append("last")

    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: order.append("handler"))
    Noting(output_transform=lambda loss: loss.item()).attach(trainer, "average")
    Validation(lambda: order.append("validation"), every_epochs=1).attach(trainer)
    Profiler().attach(trainer)
    trainer.run()
    assert order == ["first", "metric", "validation", "handler", "last"]


@pytest.mark.parametrize("kind", [Engine, QuickEngine])
def test_a_handler_of_several_events_is_put_first_at_each(kind):
    engine, calls = kind(nothing), []
    both = Events.STARTED | Events.COMPLETED
    for name in "ab":
        engine.add_event_handler(both, calls.append, name)
    move_to_front(engine, both)
    engine.run([0])
    assert calls == ["b", "a", "b", "a"]


# The quick engine


@pytest.mark.parametrize("kind", [Engine, QuickEngine])
def test_handlers_get_what_they_get_from_ignite(kind):
    engine, calls = kind(nothing), []

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
    assert calls[:4] == ["none", kind, (1, 2), 3]
    assert calls[4:] == [KeyError, (kind, KeyError, "extra")]


@pytest.mark.parametrize("kind", [Engine, QuickEngine])
def test_a_weak_reference_of_the_users_own_is_resolved(kind):
    engine, mine, seen = kind(nothing), Mine.FIRST, []

    def look(referred):
        seen.append(referred)

    engine.add_event_handler(Events.STARTED, look, weakref.ref(mine))
    engine._fire_event(Events.STARTED)
    assert seen == [mine]


@pytest.mark.parametrize("kind", [Engine, QuickEngine])
def test_the_keywords_of_an_event_go_before_those_of_a_handler(kind):
    engine, seen = kind(nothing), []
    engine.add_event_handler(
        Events.TERMINATE_SINGLE_EPOCH, lambda *args, **kwargs: seen.append(kwargs), iter_counter=5
    )
    engine._fire_event(Events.TERMINATE_SINGLE_EPOCH, iter_counter=1, engine=2)
    assert seen == [{"iter_counter": 1, "engine": 2}]


@pytest.mark.parametrize("kind", [Engine, QuickEngine])
@pytest.mark.parametrize("known", ["mine", Text.MINE])
@pytest.mark.parametrize("attached", ["mine", Text.MINE])
@pytest.mark.parametrize("fired", ["mine", Text.MINE])
def test_a_text_is_an_event_also_as_a_member_of_an_enum(kind, known, attached, fired):
    engine, seen = kind(nothing), []
    engine.register_events(known)

    def fail(engine):
        seen.append(sys.exc_info())
        raise KeyError

    engine.add_event_handler(attached, fail)
    with pytest.raises(KeyError) as raised:
        engine.fire_event(fired)
    assert seen == [(None, None, None)]
    assert raised.value.__context__ is None


@pytest.mark.parametrize("kind", [Engine, QuickEngine])
@pytest.mark.parametrize("event", ["text", Mine.FIRST, 5])
def test_an_event_of_no_engine_is_refused_plainly(kind, event):
    with pytest.raises(ValueError, match="not a valid event") as raised:
        kind(nothing).fire_event(event)
    assert raised.value.__context__ is None


@pytest.mark.parametrize("kind", [Engine, QuickEngine])
def test_unheard_custom_event_is_recorded_as_the_last_event(kind):
    engine = kind(nothing)
    engine.register_events(Mine.FIRST)
    engine.fire_event(Mine.FIRST)
    assert engine.last_event_name is Mine.FIRST


@pytest.mark.parametrize("kind", [Engine, QuickEngine])
def test_a_handler_of_the_engine_gets_its_keywords_at_each_event(kind):
    engine, seen = kind(nothing), []

    def look(engine, word="none"):
        seen.append((type(engine), word))

    engine.add_event_handler(Events.ITERATION_STARTED, look, word="given")
    engine.run([0, 1])
    assert seen == [(kind, "given")] * 2


@pytest.mark.parametrize("event", ["text", Mine.FIRST, TrainEvents.STEP_COMPLETED])
def test_custom_events_fire_with_and_without_handlers(event):
    engine, calls = QuickEngine(nothing), []
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
    trainer.register_events(*Mine, event_to_attr={Mine.FIRST: "firsts"})
    trainer.state.firsts = 0

    @trainer.on(Events.ITERATION_COMPLETED)
    def fire(engine):
        engine.state.firsts += 1
        engine.fire_event(Mine.FIRST)

    trainer.add_event_handler(
        Mine.FIRST(every=2), lambda engine: calls.append(engine.state.iteration)
    )
    trainer.run()
    assert calls == [2, 4]


def test_ignite_wraps_the_handler_of_a_filtered_event_and_no_other():
    wrapped = []

    class Watched(Engine):
        def _handler_wrapper(self, handler, event_name, event_filter):
            wrapped.append((handler, event_name, event_filter(self, 4), event_filter(self, 5)))
            return super()._handler_wrapper(handler, event_name, event_filter)

    engine = Watched(nothing)
    engine.add_event_handler(Events.STARTED, ignore)
    engine.add_event_handler(Events.STARTED(every=2), ignore)
    assert wrapped == [(ignore, Events.STARTED, True, False)]


def test_ignites_filter_is_given_the_counter_of_its_event():
    engine, given = Engine(nothing), []
    event = Events.ITERATION_COMPLETED(lambda engine, number: given.append(number))
    engine.add_event_handler(event, ignore)
    engine.run([0, 1, 2])
    assert State.event_to_attr[event] == "iteration"
    assert given == [1, 2, 3]


def test_a_filter_asks_its_counter_directly(monkeypatch):
    engine, calls = QuickEngine(nothing), []
    events = Events.ITERATION_COMPLETED(every=2) | Events.EPOCH_COMPLETED(once=2)
    engine.add_event_handler(events, lambda engine: calls.append(engine.last_event_name.name))
    monkeypatch.setattr(State, "get_event_attrib_value", None)
    engine.run([0, 1, 2], max_epochs=2)
    assert calls == ["ITERATION_COMPLETED"] * 3 + ["EPOCH_COMPLETED"]


def test_a_filtered_handler_is_found_and_removed_by_its_function():
    engine, calls = QuickEngine(nothing), []
    event = Events.ITERATION_COMPLETED(lambda engine, number: number == 2)

    def act(extra):
        calls.append(extra)

    engine.add_event_handler(event, act, "extra")
    assert engine.has_event_handler(act, event)
    engine.run([0, 1, 2])
    engine.remove_event_handler(act, event)
    assert not engine.has_event_handler(act, event)
    forget_run(engine)
    engine.run([0, 1, 2])
    assert calls == ["extra"]


@pytest.mark.parametrize("kind", [Engine, QuickEngine])
def test_filter_without_a_counter_is_an_error_when_fired(kind):
    engine = kind(nothing)
    engine.register_events(Mine.SECOND)
    engine.add_event_handler(Mine.SECOND(every=2), lambda: None)
    with pytest.raises(RuntimeError, match="Unknown event name"):
        engine.fire_event(Mine.SECOND)


def test_unheard_event_is_recorded_as_the_last_event():
    engine = QuickEngine(nothing)
    engine._fire_event(Events.STARTED)
    assert engine.last_event_name is Events.STARTED


def test_an_unheard_event_never_reaches_the_table_of_handlers():
    engine = QuickEngine(nothing)
    engine._event_handlers = engine._allowed_events = None
    engine.fire_event(Events.STARTED)
    engine._fire_event(Events.COMPLETED)


def test_an_event_whose_last_handler_went_is_unheard_again():
    engine = QuickEngine(nothing)
    engine.add_event_handler(Events.STARTED, lambda: None).remove()
    engine._event_handlers = None
    engine.fire_event(Events.STARTED)


def test_a_handler_list_of_events_is_heard_and_removed():
    engine, calls = QuickEngine(nothing), []
    handle = engine.add_event_handler(
        Events.STARTED | Events.COMPLETED(once=1), lambda: calls.append(1)
    )
    engine.run([0])
    assert calls == [1, 1]
    handle.remove()
    forget_run(engine)
    engine.run([0])
    assert calls == [1, 1]


def test_removing_what_is_not_attached_is_ignites_error():
    engine = QuickEngine(nothing)
    with pytest.raises(ValueError, match="does not exist"):
        engine.remove_event_handler(ignore, "unknown")


# What Ignite ships, on a trainer


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


def test_the_handlers_time_profiler_changes_no_bit_and_lets_go():
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


def test_metrics_see_each_output_and_start_anew_each_epoch():
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
    def by_hand(engine):
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
    evaluator = Engine(nothing)
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


def test_a_checkpoint_of_ignite_brings_the_trainer_back(tmp_path):
    trainer = trainer_of()
    to_save = {"trainer": trainer, "model": trainer.model, "optimizer": trainer.optimizer}
    saver = DiskSaver(str(tmp_path), require_empty=False)
    checkpoint = Checkpoint(to_save, saver, n_saved=None)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=3), checkpoint)
    trainer.run(max_epochs=2)
    again = trainer_of()
    to_load = {"trainer": again, "model": again.model, "optimizer": again.optimizer}
    Checkpoint.load_objects(to_load, torch.load(tmp_path / "checkpoint_3.pt"))
    assert again.state.optimizer_step == 3
    again.run()
    assert again.state.iteration == 8
    assert torch.equal(weights(again.model), weights(trainer.model))


def test_loggers_that_ask_for_the_trainers_counters_find_them():
    trainer, seen = trainer_of(accumulation=2), []
    events = [Events.ITERATION_COMPLETED, TrainEvents.STEP_COMPLETED, Events.EPOCH_COMPLETED]
    for event in events:
        trainer.add_event_handler(
            event,
            lambda engine, event=event: seen.append(engine.state.get_event_attrib_value(event)),
        )
    trainer.run()
    assert seen == [1, 2, 1, 3, 4, 2, 1]


def test_events_are_fired_once_however_many_listen():
    trainer = trainer_of(number=2)
    one, two = record(trainer, Events), record(trainer, Events)
    trainer.run()
    assert one == two


def test_calls_of_has_filters_and_arguments_but_not_the_engine():
    engine, extra, named = Engine(lambda engine, batch: None), object(), object()

    def is_due(engine, event):
        return True

    def plain(engine, each, *, key):
        """Does nothing."""

    def filtered():
        """Does nothing."""

    engine.add_event_handler(Events.COMPLETED, plain, extra, key=named)
    engine.add_event_handler(Events.STARTED(event_filter=is_due), filtered)
    (first, given), (second, wrapper) = calls_of(engine)
    assert (first, given) == (plain, [extra, named])
    assert second is filtered
    assert is_due in [cell.cell_contents for cell in wrapper[0].__closure__]
