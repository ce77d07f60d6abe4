"""Contexts on a trainer: where they are entered, and that they are always left."""

import gc
import subprocess
import sys
import weakref
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks import HookContext
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks.core.scopes import ScopeStack
from ignite_hooks.hooks.channels import CHANNELS
from tests.reference import Log
from tests.reference import batches_of
from tests.reference import make_trainer
from tests.reference import noting
from tests.reference import weights


class Broken(Exception):
    pass


def as_context_manager(log, name):
    return contextmanager(noting(log, name))


def as_class(log, name):
    class Context:
        def __init__(self, engine):
            assert isinstance(engine, Engine)

        def __enter__(self):
            log.enter(name)

        def __exit__(self, kind, error, traceback):
            log.leave(name, error)

    return Context


def as_two_functions(log, name):
    return HookContext(
        before=lambda engine: log.enter(name),
        after=lambda engine: log.leave(name, sys.exc_info()[1]),
    )


KINDS = [noting, as_context_manager, as_class, as_two_functions]
ALL_AND_EACH = [
    pytest.param(CHANNELS, id="all"),
    *(pytest.param([channel], id=channel) for channel in CHANNELS),
]


def trainer_with(channels=CHANNELS, kind=noting):
    """A trainer of five batches in windows of two, with two contexts on each channel."""
    log = Log()
    validation = Validation(lambda: None, every_steps=1)
    trainer = make_trainer(batches_of(5), accumulation=2, validation=validation)
    for name in ("a", "b"):
        for channel in channels:
            trainer.hooks.register(channel, kind(log, f"{channel}.{name}"))
    return trainer, log


def run_to_the_end(trainer, **limits):
    """Runs two epochs unless other limits are given, and continues after each ``interrupt()``."""
    trainer.run(**(limits or {"max_epochs": 2}))
    while trainer.stop_reason is None:
        trainer.run()


@pytest.fixture(scope="module")
def unbroken():
    trainer, _ = trainer_with([])
    trainer.run(max_epochs=2)
    return weights(trainer.model)


def names(log):
    return [entry if isinstance(entry, str) else entry[0] for entry in log]


# Every way out


def call(method, event, times=1):
    """Returns a handler that calls the engine's ``method`` at the n-th ``event``."""

    def arrange(trainer):
        calls = []

        @trainer.on(event)
        def count():
            calls.append(event)
            if len(calls) == times:
                getattr(trainer, method)()

    return arrange


def fail_at(event, times=1, failure=Broken):
    """Returns a handler that fails at the n-th ``event``."""

    def arrange(trainer):
        calls = []

        @trainer.on(event)
        def count(*args):
            calls.append(event)
            if len(calls) == times:
                raise failure

    return arrange


def fail_in_loader(trainer):
    def batches():
        yield from batches_of(3)
        raise Broken

    trainer.set_data(batches())


def interrupt(trainer):
    for event in (Events.GET_BATCH_STARTED, Events.ITERATION_STARTED, Events.ITERATION_COMPLETED):
        call("interrupt", event, 3)(trainer)


IN_THE_LOOP = [
    Events.STARTED,
    Events.EPOCH_STARTED,
    Events.GET_BATCH_STARTED,
    Events.GET_BATCH_COMPLETED,
    Events.ITERATION_STARTED,
    *(event for event in TrainEvents if event is not TrainEvents.CHECKPOINT_SAVED),
    Events.ITERATION_COMPLETED,
    Events.EPOCH_COMPLETED,
    Events.COMPLETED,
]
CLEAN_WAYS = {
    "the end": (lambda trainer: None, {}),
    "interrupt": (interrupt, {}),
    "max_steps in mid-epoch": (lambda trainer: None, {"max_steps": 2}),
    "max_iters in mid-epoch": (lambda trainer: None, {"max_iters": 8}),
    "terminate at the last batch": (call("terminate", Events.ITERATION_COMPLETED, 5), {}),
    **{f"terminate at {each.name}": (call("terminate", each), {}) for each in IN_THE_LOOP},
    **{
        f"terminate_epoch at {each.name}": (call("terminate_epoch", each), {})
        for each in IN_THE_LOOP[2:-1]
    },
}
FAILURES = {
    "the loader": fail_in_loader,
    "Ctrl-C": fail_at(TrainEvents.MODEL_FORWARD_STARTED, 3, KeyboardInterrupt),
    "SystemExit": fail_at(TrainEvents.OPTIMIZER_STEP_STARTED, 2, SystemExit),
    "GeneratorExit": fail_at(TrainEvents.MODEL_BACKWARD_STARTED, 2, GeneratorExit),
    **{each.name: fail_at(each) for each in IN_THE_LOOP},
    "the second ITERATION_STARTED": fail_at(Events.ITERATION_STARTED, 2),
    "the second EPOCH_STARTED": fail_at(Events.EPOCH_STARTED, 2),
}


@pytest.mark.grid(13)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", ALL_AND_EACH)
@pytest.mark.parametrize("way", CLEAN_WAYS)
def test_contexts_are_left_innermost_first_without_a_failure(way, channels, kind):
    trainer, log = trainer_with(channels, kind)
    arrange, limits = CLEAN_WAYS[way]
    arrange(trainer)
    run_to_the_end(trainer, **limits)
    assert log.open == []
    assert all(isinstance(entry, str) for entry in log)
    assert trainer.hook_channels.scopes.open == []


@pytest.mark.grid(11)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", ALL_AND_EACH)
@pytest.mark.parametrize("way", FAILURES)
def test_contexts_open_at_a_failure_are_left_innermost_first(way, channels, kind):
    trainer, log = trainer_with(channels, kind)
    FAILURES[way](trainer)
    with pytest.raises((Broken, KeyboardInterrupt, SystemExit, GeneratorExit)) as caught:
        trainer.run(max_epochs=2)
    assert log.open == []
    failed = [entry for entry in log if not isinstance(entry, str)]
    assert all(error is caught.value for _, error in failed)
    assert log[len(log) - len(failed) :] == failed
    assert trainer.hook_channels.scopes.open == []


@pytest.mark.parametrize("way", CLEAN_WAYS)
def test_contexts_see_no_exception_at_a_clean_stop(way):
    trainer, _ = trainer_with([])
    handled = []
    for channel in CHANNELS:
        after = HookContext(after=lambda engine: handled.append(sys.exc_info()))
        trainer.hooks.register(channel, after)
    arrange, limits = CLEAN_WAYS[way]
    arrange(trainer)
    run_to_the_end(trainer, **limits)
    assert set(handled) == {(None, None, None)}


@pytest.mark.parametrize("way", [way for way in FAILURES if way != "GeneratorExit"])
def test_exception_raised_handlers_run_within_open_contexts(way):
    trainer, log = trainer_with()
    FAILURES[way](trainer)
    seen = []

    @trainer.on(Events.EXCEPTION_RAISED)
    def look(error):
        seen.extend((error, list(log.open), len(log)))
        raise error

    with pytest.raises((Broken, KeyboardInterrupt, SystemExit)) as caught:
        trainer.run(max_epochs=2)
    error, open_then, length = seen
    assert error is caught.value
    assert log[length:] == [(f"-{name}", error) for name in reversed(open_then)]


@pytest.mark.parametrize("way", [way for way in FAILURES if way != "GeneratorExit"])
def test_contexts_see_a_failure_handled_at_exception_raised(way):
    trainer, log = trainer_with()
    FAILURES[way](trainer)
    errors = []
    trainer.add_event_handler(Events.EXCEPTION_RAISED, errors.append)
    trainer.run(max_epochs=2)
    assert log.open == []
    (handled,) = errors
    seen = [error for _, error in filter(is_failure, log)]
    assert seen == [handled] * len(seen) != []
    assert trainer.stop_reason == "exception"


def is_failure(entry):
    return not isinstance(entry, str)


@pytest.mark.parametrize("event", IN_THE_LOOP, ids=lambda event: event.name)
def test_terminate_leaves_epoch_before_handlers_and_loop_last(event):
    trainer, log = trainer_with()
    call("terminate", event)(trainer)
    open_at = {}
    for each in (Events.TERMINATE, Events.COMPLETED):
        trainer.add_event_handler(
            each, lambda e=None, each=each: open_at.update({each: list(log.open)})
        )
    trainer.run(max_epochs=2)
    in_loop = ["on_loop.a", "on_loop.b"]
    is_too_late = event is Events.COMPLETED
    assert open_at == {
        **({} if is_too_late else {Events.TERMINATE: in_loop}),
        Events.COMPLETED: in_loop,
    }
    assert names(log)[-2:] == ["-on_loop.b", "-on_loop.a"]


@pytest.mark.parametrize(
    "event",
    [Events.GET_BATCH_STARTED, Events.ITERATION_STARTED, Events.ITERATION_COMPLETED],
    ids=lambda event: event.name,
)
def test_terminate_epoch_leaves_the_step_but_not_the_epoch(event):
    trainer, log = trainer_with()
    call("terminate_epoch", event, 2)(trainer)
    open_at = {}
    for each in (Events.TERMINATE_SINGLE_EPOCH, Events.EPOCH_COMPLETED):

        def look(engine, each=each, **more):
            open_at[each] = list(log.open)

        trainer.add_event_handler(each, look)
    trainer.run()
    in_epoch = ["on_loop.a", "on_loop.b", "on_epoch.a", "on_epoch.b"]
    assert open_at == {
        Events.TERMINATE_SINGLE_EPOCH: in_epoch,
        Events.EPOCH_COMPLETED: in_epoch,
    }


def test_contexts_on_every_channel_change_no_bit(unbroken):
    trainer, _ = trainer_with()
    trainer.run(max_epochs=2)
    assert torch.equal(weights(trainer.model), unbroken)


# Contexts that fail


def context_that_fails(side, times, log, error):
    passages = []

    def broken(engine):
        passages.append(1)
        is_now = len(passages) == times
        if side == "in" and is_now:
            raise error
        log.enter("broken")
        yield
        log.leave("broken")
        if side == "out" and is_now:
            raise error

    return broken


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize(
    ("channel", "times"),
    [("on_loop", 1), *((channel, times) for channel in CHANNELS[1:] for times in (1, 2))],
)
def test_failed_context_leaves_others_and_training_continues(channel, side, times, unbroken):
    trainer, log = trainer_with()
    error = Broken()
    trainer.hooks.register(channel, context_that_fails(side, times, log, error))
    trainer.hooks.register(channel, noting(log, "last"))
    with pytest.raises(Broken) as caught:
        trainer.run(max_epochs=2)
    assert caught.value is error
    assert log.open == []
    last = names(log).index("-broken") if side == "out" and times == 1 else None
    if last is not None:  # the others of the channel see the failure, those within it saw none
        assert log[last + 1] == (f"-{channel}.b", error)
        assert not any(map(is_failure, log[:last]))
    if side == "in" and times == 1:
        assert "+last" not in log
    if trainer.state.optimizer_step < 6:
        trainer.run(max_epochs=2)
    assert torch.equal(weights(trainer.model), unbroken)


def fails_on_the_way_out(error):
    def context(engine):
        try:
            yield
        finally:
            raise error

    return context


def notes_of(error):
    return getattr(error, "__notes__", [])


def test_failures_during_unwinding_are_noted():
    trainer, log = trainer_with()
    later = [ValueError("of the step"), KeyboardInterrupt("of the loop")]
    trainer.hooks.register("on_step", fails_on_the_way_out(later[0]))
    trainer.hooks.register("on_loop", fails_on_the_way_out(later[1]))
    FAILURES["MODEL_BACKWARD_STARTED"](trainer)
    with pytest.raises(Broken) as caught:
        trainer.run()
    assert log.open == []
    assert all(error is caught.value for _, error in filter(is_failure, log))
    assert [error.__context__ for error in later] == [caught.value] * 2
    if sys.version_info >= (3, 11):
        assert ["of the step" in note for note in notes_of(caught.value)] == [True, False]
        assert ["of the loop" in note for note in notes_of(caught.value)] == [False, True]


def test_first_failure_during_a_clean_exit_is_raised():
    trainer, log = trainer_with()
    first, later = ValueError("of the epoch"), ValueError("of the loop")
    trainer.hooks.register("on_epoch", fails_on_the_way_out(first))
    trainer.hooks.register("on_loop", fails_on_the_way_out(later))
    with pytest.raises(ValueError, match="of the epoch") as caught:
        trainer.run()
    assert caught.value is first
    assert later.__context__ is first
    assert log.open == []


def test_handled_failure_returns_if_a_context_fails_on_exit():
    trainer, log = trainer_with()
    trainer.hooks.register("on_step", fails_on_the_way_out(ValueError("of the step")))
    FAILURES["MODEL_BACKWARD_STARTED"](trainer)
    handled = []
    trainer.add_event_handler(Events.EXCEPTION_RAISED, handled.append)
    with pytest.raises(Broken) as caught:
        trainer.run()
    assert handled == [caught.value]
    assert log.open == []
    handled.clear()
    trainer.hooks.unregister_all()
    fail_at(Events.ITERATION_STARTED)(trainer)
    trainer.run()  # the failure was handled, and no other one came
    assert len(handled) == 1


@pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="contextlib of Python 3.10 keeps a failure that passes a generator in a cycle",
)
def test_an_exception_is_freed_when_nobody_holds_it():
    trainer, _ = trainer_with([])
    for channel in CHANNELS:
        trainer.hooks.register(channel, HookContext(before=lambda engine: None))
    FAILURES["MODEL_BACKWARD_STARTED"](trainer)
    gc.collect()
    gc.disable()
    try:
        try:
            trainer.run()
        except Broken as error:
            failure = weakref.ref(error)
        assert failure() is None
    finally:
        gc.enable()


def reraise(error):
    raise error


# A failure that a context makes a clean stop of


def stopping(engine):
    try:
        yield
    except Broken:
        engine.terminate()


class Stopping:
    def __init__(self, engine):
        self.engine = engine

    def __enter__(self):
        pass

    def __exit__(self, kind, error, traceback):
        if error is not None:
            self.engine.terminate()
        return True


EVENT_WITHIN = {
    "on_model_backward": TrainEvents.MODEL_BACKWARD_STARTED,
    "on_optimizer_step": TrainEvents.OPTIMIZER_STEP_STARTED,
    "on_validation": TrainEvents.VALIDATION_STARTED,
}


@pytest.mark.parametrize("context", [stopping, Stopping], ids=["generator", "class"])
@pytest.mark.parametrize("channel", [c for c in CHANNELS if c != "on_model_backward"])
def test_a_context_can_turn_a_failure_into_a_clean_stop(channel, context, unbroken):
    trainer, log = trainer_with()
    stop = trainer.hooks.register(channel, context)
    trainer.hooks.register(channel, noting(log, "inner"))
    fail_at(EVENT_WITHIN.get(channel, TrainEvents.MODEL_FORWARD_STARTED), 2)(trainer)
    ends = []
    for each in (Events.EXCEPTION_RAISED, Events.TERMINATE, Events.COMPLETED):
        trainer.add_event_handler(each, lambda *a, each=each: ends.append(each))
    if channel != "on_batch":  # a handler that raises it again changes nothing
        trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda error: reraise(error))
    trainer.run(max_epochs=2)
    assert trainer.stop_reason == ("Stopping" if context is Stopping else "terminate")
    is_over_before = channel == "on_validation"  # it is left at once
    raised = [] if is_over_before else [Events.EXCEPTION_RAISED]
    assert ends == [*raised, Events.TERMINATE, Events.COMPLETED]
    assert log.open == []
    *_, last = (number for number, entry in enumerate(log) if is_failure(entry))
    assert names(log)[last] == "-inner"
    assert log[last + 1] == f"-{channel}.b"
    stop.remove()
    trainer.run(max_epochs=2)
    assert torch.equal(weights(trainer.model), unbroken)


def test_stop_by_a_context_leaves_outer_contexts_as_at_a_stop():
    trainer, log = trainer_with()
    trainer.hooks.register("on_step", stopping)
    fail_at(TrainEvents.MODEL_FORWARD_STARTED, 2)(trainer)
    open_at_terminate = []
    trainer.add_event_handler(Events.TERMINATE, lambda: open_at_terminate.extend(log.open))
    trainer.run()
    assert open_at_terminate == ["on_loop.a", "on_loop.b"]


def swallowing(engine):
    with suppress(Broken):
        yield


def stopping_too_late(engine):
    try:
        yield
    finally:
        engine.terminate()


@contextmanager
def swallowing_manager(engine):
    with suppress(Broken):
        yield


@pytest.mark.parametrize("context", [swallowing, stopping_too_late, swallowing_manager])
@pytest.mark.parametrize("channel", CHANNELS)
def test_a_failure_is_handled_only_by_swallow_and_terminate(channel, context):
    trainer, log = trainer_with()
    trainer.hooks.register(channel, context)
    trainer.hooks.register(channel, stopping_too_late)
    fail_at(EVENT_WITHIN.get(channel, TrainEvents.MODEL_FORWARD_STARTED))(trainer)
    with pytest.raises(Broken):
        trainer.run()
    assert trainer.stop_reason == "exception"
    assert log.open == []


def test_a_stop_requested_before_a_failure_handles_nothing():
    trainer, _ = trainer_with([])
    trainer.hooks.register("on_epoch", swallowing)

    @trainer.on(TrainEvents.MODEL_FORWARD_STARTED)
    def stop_and_fail(engine):
        engine.terminate()
        raise Broken

    with pytest.raises(Broken):
        trainer.run()


def test_a_failure_after_a_handled_failure_is_raised():
    trainer, log = trainer_with()
    trainer.hooks.register("on_step", stopping)
    fail_at(TrainEvents.MODEL_FORWARD_STARTED)(trainer)
    fail_at(Events.TERMINATE, failure=ValueError)(trainer)
    with pytest.raises(ValueError):  # noqa: PT011
        trainer.run()
    assert trainer.stop_reason == "exception"
    assert log.open == []


def test_failure_remains_if_an_inner_context_failed_on_exit():
    trainer, log = trainer_with()
    trainer.hooks.register("on_epoch", stopping)
    trainer.hooks.register("on_step", fails_on_the_way_out(ValueError("of the step")))
    fail_at(TrainEvents.MODEL_FORWARD_STARTED)(trainer)
    with pytest.raises(Broken) as caught:
        trainer.run()
    if sys.version_info >= (3, 11):
        assert "of the step" in notes_of(caught.value)[0]
    assert trainer.stop_reason == "exception"
    assert log.open == []


@pytest.mark.parametrize("has_run", [False, True])
def test_a_stop_before_the_loop_began_fires_no_event(has_run):
    trainer, log = trainer_with()
    if has_run:  # a depth of that run counts no more
        trainer.run()
        log.clear()
    trainer.hooks.register("on_loop", stopping)

    @trainer.hooks.on("on_loop")
    def broken(engine):
        raise Broken
        yield

    fired = []
    for event in (Events.STARTED, Events.TERMINATE, Events.COMPLETED):
        trainer.add_event_handler(event, lambda engine, event=event: fired.append(event))
    trainer.run()
    assert trainer.stop_reason == "terminate"
    assert fired == []
    assert log == ["+on_loop.a", "+on_loop.b", "-on_loop.b", "-on_loop.a"]


def test_ctrl_c_can_be_a_clean_stop_around_the_whole_run():
    trainer, log = trainer_with()

    @trainer.hooks.on("on_loop")
    def stop_on_control_c(engine):
        try:
            yield
        except KeyboardInterrupt:
            engine.terminate()

    FAILURES["Ctrl-C"](trainer)
    assert trainer.run() is trainer.state
    assert trainer.stop_reason == "terminate"
    assert log.open == []


# A stop that a context asks for without a failure


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("channel", CHANNELS)
def test_a_context_can_stop_the_run(channel, side):
    trainer, log = trainer_with()
    trainer.hooks.register(channel, HookContext(**{side: lambda engine: engine.terminate()}))
    trainer.run(max_epochs=2)
    # What is not stepped is taken back: a window has two batches.
    after_step = {"on_optimizer_step": (2, 2), "on_validation": (2, 2)}
    stepped = {"on_loop": (0, 10), "on_epoch": (0, 5), **after_step}
    assert trainer.state.iteration == stepped.get(channel, (0, 0))[side == "after"]
    assert trainer.stop_reason == (
        "max_epochs" if (channel, side) == ("on_loop", "after") else "terminate"
    )
    assert log.open == []


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_context_can_end_the_epoch(side):
    trainer, log = trainer_with()
    ended = []
    trainer.hooks.register(
        "on_step", HookContext(**{side: lambda engine: engine.terminate_epoch()})
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda e: ended.append(e.state.iteration))
    trainer.run(max_epochs=2)
    assert ended == [1, 2]
    assert log.open == []
    assert trainer.stop_reason == "max_epochs"


# An interruption


@pytest.mark.parametrize("event", IN_THE_LOOP[:-1], ids=lambda event: event.name)
def test_an_interrupted_run_keeps_its_contexts_open(event, unbroken):
    trainer, log = trainer_with()
    call("interrupt", event)(trainer)
    open_then = []
    trainer.add_event_handler(Events.INTERRUPT, lambda: open_then.extend(log.open))
    trainer.run(max_epochs=2)
    assert log.open == open_then
    assert log.open[:2] == ["on_loop.a", "on_loop.b"]
    assert trainer.stop_reason is None
    entered = len(log)
    trainer.run()
    assert log[entered] != "+on_loop.a"
    assert log.count("+on_loop.a") == 1
    assert log.open == []
    assert torch.equal(weights(trainer.model), unbroken)


AFTER_ONE_EPOCH = {"epoch_length": 5, "max_epochs": 2, "iteration": 5}


def test_an_abandoned_interrupted_run_leaves_its_contexts():
    trainer, log = trainer_with()
    call("interrupt", Events.ITERATION_STARTED, 2)(trainer)
    trainer.run(max_epochs=2)
    open_then = list(log.open)
    trainer.load_state_dict(AFTER_ONE_EPOCH)
    assert log.open == []
    given_up = [(name, type(error)) for name, error in filter(is_failure, log)]
    assert given_up == [(f"-{name}", GeneratorExit) for name in reversed(open_then)]
    trainer.run()
    assert log.open == []
    assert trainer.state.iteration == 10


def test_run_works_after_a_context_failed_in_an_abandoned_run():
    trainer, log = trainer_with()

    @trainer.hooks.on("on_epoch")
    def fail_at_first(engine):
        try:
            yield
        except GeneratorExit:
            raise Broken from None

    call("interrupt", Events.ITERATION_STARTED, 2)(trainer)
    trainer.run(max_epochs=2)
    with pytest.raises(Broken):
        trainer.load_state_dict(AFTER_ONE_EPOCH)
    assert log.open == []
    trainer.load_state_dict(AFTER_ONE_EPOCH)
    trainer.run()
    assert trainer.state.iteration == 10


def test_a_state_is_not_loaded_within_a_run():
    trainer, log = trainer_with()

    @trainer.on(Events.ITERATION_STARTED)
    def load(engine):
        engine.load_state_dict(AFTER_ONE_EPOCH)

    with pytest.raises(RuntimeError, match=r"load_state_dict\(\) must not be called while"):
        trainer.run()
    assert log.open == []


@pytest.mark.parametrize("function", ["__exit__", "_unwind_all", "unwind"])
def test_control_c_while_a_failure_is_unwound_loses_no_batch(function, unbroken):
    trainer, _ = trainer_with([])
    fail_at(TrainEvents.MODEL_BACKWARD_STARTED, 4)(trainer)
    code = getattr(ScopeStack, function).__code__

    def interrupt(frame, event, argument):
        if frame.f_code is code and frame.f_locals.get("self") is trainer.hook_channels.scopes:
            sys.settrace(before)
            raise KeyboardInterrupt

    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        with pytest.raises((KeyboardInterrupt, Broken)):
            trainer.run(max_epochs=2)
    finally:
        sys.settrace(before)
    trainer.run(max_epochs=2)
    assert torch.equal(weights(trainer.model), unbroken)


def test_a_program_that_ends_with_an_interrupted_run_ends_quietly():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from ignite.engine import Events\n"
            "from tests.reference import batches_of, make_trainer\n"
            "trainer = make_trainer(batches_of(4), accumulation=2)\n"
            "trainer.add_event_handler(Events.ITERATION_STARTED(once=2), trainer.interrupt)\n"
            "trainer.run()\n",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stderr == ""


def test_dropped_interrupted_trainer_leaves_its_contexts():
    trainer, _ = trainer_with([])
    left = []
    for channel in CHANNELS:
        trainer.hooks.register(channel, HookContext(after=lambda e, c=channel: left.append(c)))
    call("interrupt", Events.ITERATION_STARTED, 2)(trainer)
    trainer.run(max_epochs=2)
    left.clear()
    del trainer
    gc.collect()
    # In no order: all of it goes at once.
    assert sorted(left) == ["on_epoch", "on_loop", "on_step"]


def test_gradients_are_enabled_again_after_a_failure():
    """Tests Ctrl-C at the end of a ``with torch.no_grad()``, which leaves gradients disabled."""
    trainer = make_trainer(batches_of(4))

    @trainer.on(Events.ITERATION_COMPLETED(once=2))
    def fail(engine):
        torch.set_grad_enabled(False)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.run(max_epochs=1)
    assert torch.is_grad_enabled()
    trainer.run(max_epochs=1)
    assert trainer.state.iteration == 4
