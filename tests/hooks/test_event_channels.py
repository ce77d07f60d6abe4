"""Contexts on engines that are not trainers: order of entry, and exit on every way out."""

import gc
import sys
import warnings
import weakref
from contextlib import contextmanager
from contextlib import suppress
from inspect import signature

import ignite.engine
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks import Hooks
from ignite_hooks import OptimizerStep
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.engine import forget_run
from ignite_hooks.hooks.channels import CHANNELS
from tests.ids import stable_id
from tests.reference import Log
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import noting
from tests.reference import weights

UNSURE = "on_loop and on_epoch may be left late after a failure"
# Nearly all of these tests cause this warning. The tests of the warning itself catch it.
pytestmark = pytest.mark.filterwarnings(f"ignore:{UNSURE}:UserWarning")

AT_EVENTS = ("on_loop", "on_epoch", "on_step", "on_batch")


class Broken(Exception):
    pass


def hooks_of(log, channels=CHANNELS, names=("",)):
    hooks = Hooks()
    for name in names:
        for channel in channels:
            hooks.register(channel, noting(log, channel + name))
    return hooks


# The engines


def nothing(engine, batch):
    return batch


def plain_engine():
    return Engine(nothing)


def engine_without_interrupts():
    """Returns an engine with Ignite's second loop, which has no ``interrupt()``."""
    engine = Engine(nothing)
    engine.interrupt_resume_enabled = False
    return engine


def ignites_trainer():
    model = make_model(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return ignite.engine.create_supervised_trainer(model, optimizer, F.mse_loss)


def evaluator():
    return create_supervised_evaluator(make_model(), accelerator=Accelerator(cpu=True))


def hand_made(accumulation=1, *, scaler=None, step_at_once=True):
    """Returns a user's engine that fires the model's events, steps and validates."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    accelerator.scaler = scaler
    model = make_model(dropout=0.0)

    def process(engine, batch):
        x, y = batch
        engine.fire_event(TrainEvents.MODEL_FORWARD_STARTED)
        loss = F.mse_loss(model(x), y)
        engine.fire_event(TrainEvents.MODEL_FORWARD_COMPLETED)
        engine.fire_event(TrainEvents.MODEL_BACKWARD_STARTED)
        accelerator.backward(loss)
        engine.fire_event(TrainEvents.MODEL_BACKWARD_COMPLETED)

    engine = Engine(process)
    TrainEvents.register(engine)
    engine.model = model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    engine.step = OptimizerStep(accelerator, optimizer)
    if step_at_once:
        engine.step.attach(engine)
    Validation(lambda: None, every_steps=1).attach(engine)
    return engine


ENGINES = [plain_engine, engine_without_interrupts, ignites_trainer, evaluator, hand_made]
engines = pytest.mark.parametrize("make", ENGINES)


def run_anew(engine, batches=2, epochs=1):
    forget_run(engine)  # after a failure Ignite's run would do nothing
    return engine.run(batches_of(batches), max_epochs=epochs)


# Order


DRAWING = """
+on_loop
  STARTED: early late
  +on_epoch
    EPOCH_STARTED: early late
    GET_BATCH_STARTED: early late
    GET_BATCH_COMPLETED: early late
    +on_step
      +on_batch
        ITERATION_STARTED: early late
        +on_model_forward
          MODEL_FORWARD_STARTED: early late
          MODEL_FORWARD_COMPLETED: early
        -on_model_forward
        MODEL_FORWARD_COMPLETED: late
        +on_model_backward
          MODEL_BACKWARD_STARTED: early late
          MODEL_BACKWARD_COMPLETED: early
        -on_model_backward
        MODEL_BACKWARD_COMPLETED: late
      -on_batch
      +on_optimizer_step
        OPTIMIZER_STEP_STARTED: early late
        OPTIMIZER_STEP_COMPLETED: early late
      -on_optimizer_step
      STEP_COMPLETED: early late
      +on_validation
        VALIDATION_STARTED: early late
        VALIDATION_COMPLETED: early late
      -on_validation
      ITERATION_COMPLETED: early
    -on_step
    ITERATION_COMPLETED: late
    EPOCH_COMPLETED: early
  -on_epoch
  EPOCH_COMPLETED: late
  COMPLETED: early
-on_loop
COMPLETED: late
"""


class Drawing(Log):
    """A log of contexts and handlers, indented by the open contexts."""

    def enter(self, name):
        super().enter(name)
        self[-1] = "  " * (len(self.open) - 1) + self[-1]

    def leave(self, name, error=None):
        super().leave(name, error)
        self[-1] = "  " * len(self.open) + self[-1]

    def add_handlers(self, engine, name):
        for event in [*Events, *TrainEvents]:
            if event is not Events.EXCEPTION_RAISED:
                engine.add_event_handler(event, self._noting(event, name))

    def _noting(self, event, name):
        line = f"{event.name}:"

        def note(engine):
            if self[-1].strip().startswith(line):
                self[-1] += f" {name}"
            else:
                self.append("  " * len(self.open) + f"{line} {name}")

        return note


def test_contexts_enter_first_and_leave_in_attachment_order():
    engine, drawing = hand_made(), Drawing()
    drawing.add_handlers(engine, "early")
    hooks_of(drawing).attach(engine)
    drawing.add_handlers(engine, "late")
    engine.run(batches_of(1))
    assert "\n".join(drawing) == DRAWING.strip()


def passage(name, *within):
    return [f"+{name}", *(entry for each in within for entry in each), f"-{name}"]


@engines
@pytest.mark.parametrize(("epochs", "batches"), [(1, 1), (3, 2)])
def test_loop_epochs_steps_and_batches_nest_on_every_engine(make, epochs, batches):
    engine, log = make(), Log()
    hooks_of(log, AT_EVENTS).attach(engine)
    engine.run(batches_of(batches), max_epochs=epochs)
    step = passage("on_step", passage("on_batch"))
    epoch = passage("on_epoch", *[step] * batches)
    assert log == passage("on_loop", *[epoch] * epochs)


@pytest.mark.parametrize("channel", CHANNELS)
def test_each_channel_alone_is_entered_the_right_number_of_times(channel):
    engine, log = hand_made(2), Log()
    hooks_of(log, [channel]).attach(engine)
    engine.run(batches_of(3), max_epochs=2)
    by_step = {"on_optimizer_step": 4, "on_validation": 4}
    often = {"on_loop": 1, "on_epoch": 2, **by_step}.get(channel, 6)
    assert log == passage(channel) * often


def test_contexts_are_entered_in_order_and_left_in_reverse():
    engine, log = plain_engine(), Log()
    hooks_of(log, ["on_batch", "on_step"], ["1", "2"]).attach(engine)
    engine.run([0])
    outer_and_inner = ["on_step1", "on_step2", "on_batch1", "on_batch2"]
    assert log == [f"+{name}" for name in outer_and_inner] + [
        f"-{name}" for name in reversed(outer_and_inner)
    ]


def test_model_channels_stay_closed_without_model_events():
    engine, log = ignites_trainer(), Log()
    hooks_of(log, CHANNELS[4:]).attach(engine)
    engine.run(batches_of(2))
    assert log == []


def test_contexts_are_given_the_engine():
    engine, given = hand_made(), []
    hooks = Hooks()
    for channel in CHANNELS:
        hooks.register(channel, contextmanager(lambda engine: (yield given.append(engine))))
    hooks.attach(engine)
    engine.run(batches_of(1))
    assert given == [engine] * len(CHANNELS)


def test_an_epoch_of_unknown_length_is_left_when_the_data_ends():
    engine, log = plain_engine(), Log()
    hooks_of(log, AT_EVENTS).attach(engine)
    engine.run(iter([0, 1]))
    step = passage("on_step", passage("on_batch"))
    assert log == passage("on_loop", passage("on_epoch", step, step))


# The optimizer step


@pytest.mark.parametrize("is_before", [True, False])
def test_optimizer_step_channel_works_attached_before_or_after(is_before):
    engine, log = hand_made(2, step_at_once=is_before), Log()
    hooks_of(log, ["on_step", "on_batch", "on_optimizer_step"]).attach(engine)
    if not is_before:
        with pytest.warns(UserWarning, match="attached after other handlers"):
            engine.step.attach(engine)
    engine.run(batches_of(3))
    batch, step = passage("on_batch"), passage("on_optimizer_step")
    without = passage("on_step", batch)
    # After the set the step comes too late to be within on_step: that is left in order too.
    with_step = passage("on_step", batch, step) if is_before else without + step
    assert log == without + with_step + with_step


def test_gradients_are_full_on_entry_and_exit_and_then_zeroed():
    engine, hooks, seen = hand_made(2), Hooks(), []
    before = weights(engine.model)

    @hooks.on("on_optimizer_step")
    def look(engine):
        parameters = list(engine.model.parameters())
        seen.append(all(p.grad is not None and p.grad.any() for p in parameters))
        seen.append(torch.equal(weights(engine.model), before))
        yield
        seen.append(all(p.grad is not None and p.grad.any() for p in parameters))
        seen.append(not torch.equal(weights(engine.model), before))

    @engine.on(Events.EPOCH_COMPLETED)
    def look_again(engine):
        seen.append(all(p.grad is None for p in engine.model.parameters()))

    hooks.attach(engine)
    engine.run(batches_of(2))
    assert seen == [True] * 5


def test_step_committed_is_set_on_the_way_out():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    engine, hooks, seen = hand_made(scaler=scaler), Hooks(), []

    @hooks.on("on_optimizer_step")
    def look(engine):
        seen.append(engine.state.step_committed)
        yield
        seen.append(engine.state.step_committed)

    hooks.attach(engine)
    batches = batches_of(3)
    batches[1] = (batches[1][0], batches[1][1] * torch.inf)  # the scaler skips this step
    engine.run(batches)
    assert seen == [False, True, False, False, False, True]
    assert engine.state.optimizer_step == 2


def test_late_step_at_the_end_of_data_opens_within_the_epoch():
    engine, log = hand_made(2), Log()
    hooks_of(log, ["on_epoch", "on_step", "on_optimizer_step"]).attach(engine)
    engine.run(
        iter(batches_of(3))
    )  # the length is unknown: the third batch is not known to be the last
    alone, step = passage("on_step"), passage("on_optimizer_step")
    assert log == passage("on_epoch", alone, passage("on_step", step), alone, step)


@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_contexts_change_no_bit_of_the_weights(accumulation):
    without, with_hooks, hooks = hand_made(accumulation), hand_made(accumulation), Hooks()
    for channel in CHANNELS:
        hooks.register(channel, lambda engine: torch.profiler.record_function("range"))
    hooks.attach(with_hooks)
    for engine in (without, with_hooks):
        engine.run(batches_of(5), max_epochs=2)
    assert torch.equal(weights(without.model), weights(with_hooks.model))
    assert not torch.equal(weights(without.model), weights(make_model()))


# Every way out: two epochs of three batches, in windows of two


def at(event, times, act):
    """Calls ``act(engine)`` at the n-th ``event``; not all events support ``once``."""

    def arrange(engine):
        calls = []

        @engine.on(event)
        def count(engine, *args, **kwargs):
            calls.append(event)
            if len(calls) == times:
                act(engine)

    return arrange


def call(method, event, times=1, **options):
    return at(event, times, lambda engine: getattr(engine, method)(**options))


def fail_at(event, times=1, failure=Broken):
    return at(event, times, fail_with(failure))


def fail_with(failure):
    def fail(*args):
        raise failure

    return fail


def both(*arrangements):
    def arrange(engine):
        for each in arrangements:
            each(engine)

    return arrange


class BreakingOnce:
    """Data of three batches per pass, whose first pass fails."""

    def __init__(self):
        self.was_interrupted = False

    def __len__(self):
        return 3

    def __iter__(self):
        yield from batches_of(2)
        if not self.was_interrupted:
            self.was_interrupted = True
            raise Broken
        yield from batches_of(1)


IN_THE_EPOCH = [
    Events.GET_BATCH_STARTED,
    Events.GET_BATCH_COMPLETED,
    Events.ITERATION_STARTED,
    TrainEvents.MODEL_FORWARD_STARTED,
    TrainEvents.MODEL_BACKWARD_COMPLETED,
    TrainEvents.OPTIMIZER_STEP_STARTED,
    TrainEvents.STEP_COMPLETED,
    TrainEvents.VALIDATION_STARTED,
    TrainEvents.VALIDATION_COMPLETED,
    Events.ITERATION_COMPLETED,
    Events.EPOCH_COMPLETED,
]
IN_THE_LOOP = [Events.STARTED, Events.EPOCH_STARTED, *IN_THE_EPOCH, Events.COMPLETED]
CLEAN_WAYS = {
    "the end": both(),
    "the last batch": call("terminate", Events.ITERATION_COMPLETED, 3),
    **{f"terminate at {each.name}": call("terminate", each) for each in IN_THE_LOOP},
    **{
        f"terminate without COMPLETED at {each.name}": call("terminate", each, skip_completed=True)
        for each in IN_THE_LOOP
    },
    **{f"terminate_epoch at {each.name}": call("terminate_epoch", each) for each in IN_THE_EPOCH},
    **{
        f"terminate_epoch without EPOCH_COMPLETED at {each.name}": call(
            "terminate_epoch", each, skip_epoch_completed=True
        )
        for each in IN_THE_EPOCH
    },
    **{f"interrupt at {each.name}": call("interrupt", each, 2) for each in IN_THE_EPOCH},
}
FAILURES = {
    "Ctrl-C": fail_at(TrainEvents.MODEL_FORWARD_STARTED, 3, KeyboardInterrupt),
    "SystemExit": fail_at(TrainEvents.OPTIMIZER_STEP_STARTED, 2, SystemExit),
    **{each.name: fail_at(each) for each in IN_THE_LOOP},
    "the second EPOCH_STARTED": fail_at(Events.EPOCH_STARTED, 2),
    "the second ITERATION_STARTED": fail_at(Events.ITERATION_STARTED, 2),
    "the second OPTIMIZER_STEP_STARTED": fail_at(TrainEvents.OPTIMIZER_STEP_STARTED, 2),
    "terminate_epoch where there is none": call("terminate_epoch", Events.EPOCH_STARTED),
    "TERMINATE": both(call("terminate", Events.EPOCH_STARTED), fail_at(Events.TERMINATE)),
    "TERMINATE_SINGLE_EPOCH": both(
        call("terminate_epoch", Events.ITERATION_STARTED), fail_at(Events.TERMINATE_SINGLE_EPOCH)
    ),
    "INTERRUPT": both(call("interrupt", Events.ITERATION_STARTED), fail_at(Events.INTERRUPT)),
    "after an interruption": both(
        call("interrupt", Events.ITERATION_STARTED, 2), fail_at(Events.ITERATION_COMPLETED, 2)
    ),
}
SOME = [CHANNELS, ("on_epoch", "on_step", "on_optimizer_step")]
some_channels = pytest.mark.parametrize("channels", SOME, ids=lambda channels: channels[0])


def engine_with(channels=CHANNELS):
    """Returns the user's engine with two contexts on each channel."""
    engine, log = hand_made(2), Log()
    hooks_of(log, channels, [".a", ".b"]).attach(engine)
    return engine, log


def run_to_the_end(engine, data=None, **limits):
    """Runs two epochs, and continues after an ``interrupt()``."""
    data = batches_of(3) if data is None else data
    state = engine.run(data, **(limits or {"max_epochs": 2}))
    while engine._internal_run_generator is not None:
        engine.run()
    return state


def count_opened(log, channel):
    return sum(entry == f"+{channel}.a" for entry in log)


@pytest.mark.grid(7)
@some_channels
@pytest.mark.parametrize("way", CLEAN_WAYS)
def test_contexts_are_left_innermost_first_without_a_failure(way, channels):
    engine, log = engine_with(channels)
    CLEAN_WAYS[way](engine)
    run_to_the_end(engine)
    assert log.open == []
    assert log.failed == []
    assert engine.hook_channels.scopes.open == []
    if "on_loop" in channels:
        assert count_opened(log, "on_loop") == 1
    if "on_epoch" in channels:
        assert count_opened(log, "on_epoch") == engine.state.epoch
    if "on_step" in channels:
        assert count_opened(log, "on_step") == engine.state.iteration


@pytest.mark.skipif(
    "max_iters" not in signature(Engine.run).parameters, reason="Ignite 0.5.4 has no max_iters"
)
@pytest.mark.parametrize("max_iters", [1, 2, 3, 4, 6])
def test_all_contexts_are_left_at_max_iters(max_iters):
    engine, log = engine_with()
    run_to_the_end(engine, max_iters=max_iters)
    assert log.open == log.failed == []
    assert count_opened(log, "on_step") == max_iters


@some_channels
@pytest.mark.parametrize("way", FAILURES)
def test_contexts_open_at_a_failure_are_left_innermost_first(way, channels):
    engine, log = engine_with(channels)
    FAILURES[way](engine)
    with pytest.raises((Broken, KeyboardInterrupt, SystemExit, RuntimeError)) as caught:
        run_to_the_end(engine)
    assert log.open == []
    assert all(error is caught.value for _, error in log.failed)
    assert log[len(log) - len(log.failed) :] == log.failed
    assert engine.hook_channels.scopes.open == []


def test_process_function_failure_is_seen_by_all_open_contexts():
    engine, log, failure = plain_engine(), Log(), Broken()

    def process(engine, batch):
        raise failure

    engine._process_function = process
    hooks_of(log, AT_EVENTS).attach(engine)
    with pytest.raises(Broken) as caught:
        engine.run([0])
    assert caught.value is failure
    assert log.failed == [(f"-{channel}", failure) for channel in reversed(AT_EVENTS)]


def test_a_failure_of_the_data_is_seen_by_the_epoch_and_the_loop():
    engine, log = engine_with()
    with pytest.raises(Broken) as caught:
        engine.run(BreakingOnce())
    names = ["on_epoch.b", "on_epoch.a", "on_loop.b", "on_loop.a"]
    assert log.failed == [(f"-{name}", caught.value) for name in names]


@engines
@pytest.mark.parametrize("failure", [Broken, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_contexts_are_balanced_in_the_run_after_a_failure(make, failure):
    engine, log = make(), Log()
    hooks_of(log, AT_EVENTS).attach(engine)
    failing = engine.add_event_handler(Events.ITERATION_STARTED(once=2), fail_with(failure))
    with pytest.raises(failure):
        engine.run(batches_of(2), max_epochs=2)
    failing.remove()
    assert len(log.failed) == len(AT_EVENTS)
    log.clear()
    run_anew(engine)
    step = passage("on_step", passage("on_batch"))
    assert log == passage("on_loop", passage("on_epoch", step, step))


def assert_failed_in_validation_alone(log, *, has_failed):
    """Checks that only ``on_validation`` is closed before EXCEPTION_RAISED is handled."""
    within = any("on_validation" in entry for entry in log if isinstance(entry, str))
    names = [name.split(".")[0] for name, _ in log.failed]
    assert set(names) == ({"-on_validation"} if has_failed and within else set())


@some_channels
@pytest.mark.parametrize("way", [*FAILURES, "the data"])
def test_a_handler_that_swallows_the_failure_leaves_nothing_open(way, channels):
    engine, log = engine_with(channels)
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda error: None)
    FAILURES.get(way, both())(engine)
    run_to_the_end(engine, BreakingOnce() if way == "the data" else None)
    assert log.open == []
    assert_failed_in_validation_alone(log, has_failed="VALIDATION" in way)
    assert engine.hook_channels.scopes.open == []
    if "on_epoch" in channels:
        assert count_opened(log, "on_epoch") == engine.state.epoch


def test_swallowed_failure_leaves_the_epoch_before_the_next():
    engine, log = plain_engine(), Log()
    hooks_of(log, AT_EVENTS).attach(engine)
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda error: log.append("swallowed"))
    fail_at(Events.ITERATION_STARTED, 2)(engine)
    engine.run([0, 1], max_epochs=2)
    step = passage("on_step", passage("on_batch"))
    broken = passage("on_step", passage("on_batch", ["swallowed"]))
    first, second = passage("on_epoch", step, broken), passage("on_epoch", step, step)
    assert log[: 1 + len(first)] == ["+on_loop", *first]
    assert log == passage("on_loop", first, second)


def test_context_left_open_by_a_failure_is_left_on_reopening():
    log = Log()

    def process(engine, batch):
        for _ in range(2):
            with suppress(Broken):  # so that MODEL_FORWARD_COMPLETED comes for the second only
                engine.fire_event(TrainEvents.MODEL_FORWARD_STARTED)
                failing(engine)
                engine.fire_event(TrainEvents.MODEL_FORWARD_COMPLETED)

    def failing(engine):
        log.append("forward")
        if log.count("forward") == 1:
            raise Broken

    engine = Engine(process)
    hooks_of(log, ["on_batch", "on_model_forward"]).attach(engine)
    engine.run([0])
    assert log == passage("on_batch", *[passage("on_model_forward", ["forward"])] * 2)


def test_step_left_open_by_a_failure_is_dropped_with_its_epoch():
    engine, log = plain_engine(), Log()
    hooks = hooks_of(log, ["on_step"])
    hooks.attach(engine)
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda error: None)
    fail_at(Events.ITERATION_STARTED)(engine)

    # With this one the steps of the second epoch are one deeper than those of the first.
    @engine.on(Events.EPOCH_COMPLETED(once=1))
    def register():
        hooks.register("on_epoch", noting(log, "on_epoch"))

    engine.run([0], max_epochs=2)
    step = passage("on_step")
    assert log == step + passage("on_epoch", step)


@pytest.mark.parametrize("reraises", [False, True])
def test_handlers_of_a_failure_are_called_with_all_contexts_open(reraises):
    engine, log, opened = plain_engine(), Log(), []
    hooks_of(log, AT_EVENTS).attach(engine)

    @engine.on(Events.EXCEPTION_RAISED)
    def handle(error):
        opened.append(list(log.open))
        if reraises:
            raise error

    fail_at(Events.ITERATION_STARTED)(engine)
    with suppress(Broken):
        engine.run([0])
    # Ignite calls them again for what they raise.
    assert opened == [list(AT_EVENTS)] * (2 if reraises else 1)
    assert len(log.failed) == (4 if reraises else 0)
    assert log.open == []


def test_the_epoch_is_left_before_the_handlers_of_terminate():
    engine, log, opened = plain_engine(), Log(), []
    engine.add_event_handler(Events.TERMINATE, lambda: opened.append(list(log.open)))
    hooks_of(log, AT_EVENTS).attach(engine)
    call("terminate", Events.ITERATION_STARTED)(engine)
    engine.run([0])
    assert opened == [["on_loop"]]


@pytest.mark.parametrize("event", IN_THE_EPOCH, ids=stable_id)
def test_contexts_stay_open_over_an_interruption(event):
    unbroken, expected = engine_with()
    run_to_the_end(unbroken)
    engine, log = engine_with()
    opened = []
    engine.add_event_handler(Events.INTERRUPT, lambda: opened.extend(log.open))
    call("interrupt", event, 2)(engine)
    engine.run(batches_of(3), max_epochs=2)
    assert log.open == opened != []
    assert log == expected[: len(log)]
    engine.run()
    assert log == expected


# Contexts that fail


@pytest.mark.parametrize("channel", CHANNELS)
def test_context_failing_to_enter_is_not_left_but_outer_ones_are(channel):
    engine, log, failure = hand_made(), Log(), Broken()
    hooks = hooks_of(log)

    @hooks.on(channel)
    def broken(engine):
        raise failure
        yield

    hooks.attach(engine)
    with pytest.raises(Broken) as caught:
        engine.run(batches_of(1))
    assert caught.value is failure
    assert log.open == []
    assert log.failed[0] == (f"-{channel}", failure)
    assert {error for _, error in log.failed} == {failure}


def failing_on_the_way_out(hooks, channel, failure):
    @hooks.on(channel)
    def broken(engine):
        try:
            yield
        finally:
            raise failure


@pytest.mark.parametrize("channel", CHANNELS)
def test_context_failing_to_leave_does_not_block_the_others(channel):
    engine, log, failure = hand_made(), Log(), Broken()
    hooks = hooks_of(log)
    failing_on_the_way_out(hooks, channel, failure)
    hooks.attach(engine)
    with pytest.raises(Broken) as caught:
        engine.run(batches_of(1))
    assert caught.value is failure
    assert log.open == []
    assert log.failed[0] == (f"-{channel}", failure)
    assert {error for _, error in log.failed} == {failure}


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_swallowed_failure_on_the_way_out_leaves_nothing_open(channel):
    engine, log = hand_made(), Log()
    hooks = hooks_of(log)
    failing_on_the_way_out(hooks, channel, Broken())
    hooks.attach(engine)
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda error: None)
    engine.run(batches_of(2), max_epochs=2)
    assert log.open == []
    assert_failed_in_validation_alone(log, has_failed=channel == "on_validation")
    assert engine.hook_channels.scopes.open == []


def test_first_failure_is_raised_and_later_ones_are_noted():
    engine, hooks, first = plain_engine(), Hooks(), Broken("first")
    later = {channel: Broken(channel) for channel in AT_EVENTS}
    for channel, failure in later.items():
        failing_on_the_way_out(hooks, channel, failure)
    hooks.attach(engine)
    engine.add_event_handler(Events.ITERATION_STARTED, fail_with(first))
    with pytest.raises(Broken) as caught:
        engine.run([0])
    assert caught.value is first
    if sys.version_info >= (3, 11):
        in_order = zip(first.__notes__, reversed(AT_EVENTS), strict=True)
        assert all(repr(later[channel]) in note for note, channel in in_order)
    assert later["on_batch"].__context__ is first


def test_a_context_cannot_swallow_the_failure_of_the_body():
    engine, hooks, failure, seen = plain_engine(), Hooks(), Broken(), []

    @hooks.on("on_step")
    def swallow(engine):
        try:
            yield
        except Broken as error:
            seen.append(error)

    hooks.attach(engine)
    engine.add_event_handler(Events.ITERATION_STARTED, fail_with(failure))
    with pytest.raises(Broken) as caught:
        engine.run([0])
    assert [caught.value] == seen == [failure]


def test_a_failure_passes_through_an_engine_within_an_engine():
    outer, inner, log, failure = plain_engine(), plain_engine(), Log(), Broken()
    hooks_of(log, ["on_step"], ["outer"]).attach(outer)
    hooks_of(log, ["on_step"], ["inner"]).attach(inner)
    outer.add_event_handler(Events.ITERATION_STARTED, lambda: inner.run([0]))
    inner.add_event_handler(Events.ITERATION_STARTED, fail_with(failure))
    with pytest.raises(Broken):
        outer.run([0])
    assert log.failed == [("-on_stepinner", failure), ("-on_stepouter", failure)]


# Attaching and removing


def handlers_of(engine):
    return {event: list(each) for event, each in engine._event_handlers.items() if each}


def traces_of_hooks(engine):
    """Returns all traces of hooks on an engine: handlers, attributes, attachments, run scopes."""
    ours = {"hook_channels", "_ignite_hooks"}  # empty, for the next set that comes
    attachments = list(engine_storage(engine).get("attachments", []))
    return handlers_of(engine), set(vars(engine)) - ours, attachments


@engines
@pytest.mark.parametrize("has_run", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)], ids=stable_id)
def test_nothing_remains_when_the_last_set_is_removed(make, order, has_run):
    engine, log = make(), Log()
    engine.add_event_handler(Events.STARTED, lambda: None)
    TrainEvents.register(engine)
    if has_run:  # Ignite's run leaves attributes of Ignite
        engine.run(batches_of(1))
    before = traces_of_hooks(engine)
    attachments = [hooks_of(log, CHANNELS, [str(each)]).attach(engine) for each in range(3)]
    assert traces_of_hooks(engine) != before
    if has_run:
        run_anew(engine)
    for each in order:
        assert handlers_of(engine) != before[0]
        attachments[each].remove()
    assert traces_of_hooks(engine) == before
    log.clear()
    run_anew(engine)
    assert log == []


def test_removing_twice_does_not_remove_another_set():
    engine, log = plain_engine(), Log()
    first = hooks_of(log, ["on_step"], ["1"]).attach(engine)
    hooks_of(log, ["on_step"], ["2"]).attach(engine)
    first.remove()
    first.remove()
    engine.run([0])
    assert log == passage("on_step2")


def test_set_works_again_after_the_last_one_was_removed():
    engine, log = plain_engine(), Log()
    hooks = hooks_of(log, AT_EVENTS)
    for _ in range(3):
        log.clear()
        with hooks.attach(engine):
            run_anew(engine, batches=1)
        step = passage("on_step", passage("on_batch"))
        assert log == passage("on_loop", passage("on_epoch", step))


def test_sets_are_entered_in_attachment_order_and_left_reversed():
    engine, log = plain_engine(), Log()
    for name in ("1", "2"):
        hooks_of(log, ["on_step"], [name]).attach(engine)
    engine.run([0])
    assert log == passage("on_step1", passage("on_step2"))


@pytest.mark.parametrize("is_wrapped", [False, True])
@pytest.mark.parametrize("event", IN_THE_LOOP, ids=stable_id)
def test_set_attached_within_a_run_is_balanced(event, is_wrapped):
    engine, log = hand_made(2), Log()
    if is_wrapped:
        Hooks().attach(engine)
    hooks = hooks_of(log)
    at(event, 1, lambda engine: hooks.attach(engine))(engine)
    engine.run(batches_of(3), max_epochs=2)
    assert log.open == log.failed == []
    assert bool(log) == (event is not Events.COMPLETED)


def test_further_set_attached_in_a_run_counts_from_next_entry():
    engine, log = plain_engine(), Log()
    Hooks().attach(engine)
    hooks = hooks_of(log, AT_EVENTS)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: hooks.attach(engine))
    engine.run([0, 1], max_epochs=2)
    step = passage("on_step", passage("on_batch"))
    assert log == step + passage("on_epoch", step, step)


def test_first_set_attached_during_a_run_waits_for_the_next_run():
    """Contexts entered at once could stay open after a failure: nothing wraps this run."""
    engine, log = plain_engine(), Log()
    hooks = hooks_of(log, AT_EVENTS)
    attaching = engine.add_event_handler(
        Events.ITERATION_COMPLETED(once=1), lambda: hooks.attach(engine)
    )
    failing = engine.add_event_handler(Events.ITERATION_STARTED(once=3), fail_with(Broken))
    with pytest.raises(Broken):
        engine.run([0, 1], max_epochs=2)
    assert log == []
    attaching.remove()
    failing.remove()
    run_anew(engine, batches=1)
    step = passage("on_step", passage("on_batch"))
    assert log == passage("on_loop", passage("on_epoch", step))


def test_first_set_attached_in_a_run_waits_despite_earlier_sets():
    engine, log = plain_engine(), Log()
    with hooks_of(Log(), AT_EVENTS).attach(engine):
        engine.run([0])
    hooks = hooks_of(log, AT_EVENTS)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: hooks.attach(engine))
    forget_run(engine)
    engine.run([0, 1])
    assert log == []


def test_set_removed_in_a_failing_run_leaves_nothing_behind():
    engine, log = plain_engine(), Log()
    before = traces_of_hooks(engine)
    attachment = hooks_of(log, AT_EVENTS).attach(engine)
    handles = [
        engine.add_event_handler(Events.ITERATION_STARTED(once=1), attachment.remove),
        engine.add_event_handler(Events.ITERATION_STARTED(once=1), fail_with(Broken)),
    ]
    with pytest.raises(Broken):
        engine.run([0])
    for handle in handles:
        handle.remove()
    assert log.open == []
    assert len(log.failed) == 4
    assert traces_of_hooks(engine) == before


@pytest.mark.parametrize("act", ["attach", "register"])
def test_a_warning_that_is_an_error_changes_nothing(act):
    engine, log, hooks = plain_engine(), Log(), Hooks()
    if act == "attach":
        hooks = hooks_of(log, AT_EVENTS)
    else:
        hooks.attach(engine)
    change = {
        "attach": lambda: hooks.attach(engine),
        "register": lambda: hooks.register("on_loop", noting(log, "")),
    }[act]
    before, number = traces_of_hooks(engine), len(hooks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=UNSURE):
            change()
    assert len(hooks) == number
    assert traces_of_hooks(engine) == before
    engine.run([0])
    assert log == []


@pytest.mark.grid(7)
@pytest.mark.parametrize("others", [0, 1])
@some_channels
@pytest.mark.parametrize("event", IN_THE_LOOP, ids=stable_id)
def test_handler_removing_a_set_leaves_only_its_contexts(event, channels, others):
    engine, log, others_log = hand_made(2), Log(), Log()
    attachment = hooks_of(log, channels).attach(engine)
    for _ in range(others):
        hooks_of(others_log).attach(engine)
    entered = []

    def remove(engine):
        attachment.remove()
        entered.append(len([entry for entry in log if entry[0] == "+"]))

    at(event, 1, remove)(engine)
    engine.run(batches_of(3), max_epochs=2)
    assert log.open == log.failed == []
    assert len([entry for entry in log if entry[0] == "+"]) == entered[0]
    expected, expected_log = hand_made(2), Log()
    hooks_of(expected_log).attach(expected)
    expected.run(batches_of(3), max_epochs=2)
    assert others_log == expected_log * others


def test_the_last_set_removed_within_a_run_leaves_no_handler():
    engine, log = plain_engine(), Log()
    attachment = hooks_of(log, AT_EVENTS).attach(engine)
    engine.add_event_handler(Events.ITERATION_STARTED(once=2), attachment.remove)
    engine.run([0, 1, 2])
    assert list(handlers_of(engine)) == [Events.ITERATION_STARTED]
    assert "run" not in vars(engine)
    assert log.count("+on_step") == 2


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("is_on_the_way_in", [True, False])
@pytest.mark.parametrize("channel", CHANNELS)
def test_a_context_may_remove_its_set(channel, is_on_the_way_in, others):
    engine, log, attachments = hand_made(), Log(), []
    before = traces_of_hooks(engine)
    other = [Hooks().attach(engine) for _ in range(others)]
    hooks = hooks_of(log)

    @hooks.on(channel)
    def remove(engine):
        if is_on_the_way_in:
            attachments[0].remove()
        yield
        if not is_on_the_way_in:
            attachments[0].remove()

    attachments.append(hooks.attach(engine))
    engine.run(batches_of(2))
    assert log.open == log.failed == []
    assert log.count(f"+{channel}") == 1
    for each in other:
        each.remove()
    assert traces_of_hooks(engine) == before


def test_refused_run_arguments_keep_interrupted_contexts_open():
    engine, log = plain_engine(), Log()
    hooks_of(log, AT_EVENTS).attach(engine)
    call("interrupt", Events.ITERATION_STARTED)(engine)
    engine.run([0])
    open_then = list(log.open)
    with pytest.raises(TypeError):
        engine.run(3)
    assert log.open == open_then != []
    engine.run()
    assert log.open == log.failed == []


def test_terminated_epoch_leaves_its_step_before_end_handlers():
    engine, log, open_then = plain_engine(), Log(), []
    hooks_of(log, AT_EVENTS).attach(engine)
    call("terminate_epoch", Events.ITERATION_STARTED)(engine)
    engine.add_event_handler(
        Events.TERMINATE_SINGLE_EPOCH, lambda *args, **more: open_then.extend(log.open)
    )
    engine.run([0, 1])
    assert open_then == ["on_loop", "on_epoch"]
    assert log.open == log.failed == []


def test_a_set_removed_while_its_engine_is_interrupted_is_left():
    engine, log = plain_engine(), Log()
    attachment = hooks_of(log, AT_EVENTS).attach(engine)
    call("interrupt", Events.ITERATION_STARTED)(engine)
    engine.run([0])
    attachment.remove()
    engine.run()
    assert log.open == []


def test_a_first_set_attached_and_removed_within_one_run_is_left():
    engine, log, attachments = plain_engine(), Log(), []
    hooks = hooks_of(log, AT_EVENTS)

    @engine.on(Events.ITERATION_COMPLETED(once=1))
    def attach():
        attachments.append(hooks.attach(engine))

    engine.add_event_handler(Events.ITERATION_STARTED(once=2), lambda: attachments[0].remove())
    engine.run([0, 1, 2])
    assert log.open == []


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_set_attached_in_a_failed_run_works_in_the_next(is_wrapped):
    engine, log = plain_engine(), Log()
    if is_wrapped:
        Hooks().attach(engine)
    hooks = hooks_of(log, AT_EVENTS)
    attaching = engine.add_event_handler(
        Events.ITERATION_COMPLETED(once=1), lambda: hooks.attach(engine)
    )
    failing = engine.add_event_handler(Events.ITERATION_STARTED(once=2), fail_with(Broken))
    with pytest.raises(Broken):
        engine.run([0, 1])
    attaching.remove()
    failing.remove()
    run_anew(engine, batches=1)
    step = passage("on_step", passage("on_batch"))
    # Contexts open at the failure are left before the next loop begins, at the latest.
    assert log[log.index("+on_loop") :] == passage("on_loop", passage("on_epoch", step))
    assert log.open == []


def test_context_failing_to_leave_at_run_end_blocks_no_other():
    engine, log = plain_engine(), Log()
    hooks = hooks_of(log, ["on_loop"])
    failing_on_the_way_out(hooks, "on_loop", Broken())
    hooks.attach(engine)
    call("terminate", Events.STARTED, skip_completed=True)(engine)
    with pytest.raises(Broken):
        engine.run([0])
    assert log.open == []


# Contexts that are added and removed


def test_contexts_registered_after_attaching_are_entered():
    engine, log, hooks = plain_engine(), Log(), Hooks()
    hooks.attach(engine)
    registration = hooks.register("on_step", noting(log, "a"))
    hooks.on("on_step")(noting(log, "b"))
    engine.run([0])
    assert log == passage("a", passage("b"))
    log.clear()
    registration.remove()
    run_anew(engine, batches=1)
    assert log == passage("b")
    log.clear()
    hooks.unregister_all()
    run_anew(engine, batches=1)
    assert log == []


def test_context_changes_during_a_run_count_from_the_next_entry():
    engine, log, hooks = plain_engine(), Log(), Hooks()
    hooks.attach(engine)
    registrations = {1: hooks.register("on_step", noting(log, "1"))}

    @engine.on(Events.ITERATION_STARTED)
    def exchange(engine):
        number = engine.state.iteration
        registrations.pop(number).remove()  # the open context is still left in order
        registrations[number + 1] = hooks.register("on_step", noting(log, f"{number + 1}"))
        log.append("exchanged")

    engine.run([0, 1, 2])
    assert log == [entry for n in "123" for entry in passage(n, ["exchanged"])]


@pytest.mark.parametrize("channel", AT_EVENTS)
def test_context_changing_others_skips_and_doubles_none(channel):
    engine, log, hooks, registrations = plain_engine(), Log(), Hooks(), []

    @hooks.on(channel)
    def exchange(engine):
        for each in registrations:
            each.remove()
        registrations[:] = [hooks.register(channel, noting(log, "new"))]
        yield

    registrations.append(hooks.register(channel, noting(log, "a")))
    hooks.register(channel, noting(log, "b"))
    hooks.attach(engine)
    engine.run([0, 1], max_epochs=2)
    first, *others = {"on_loop": 1, "on_epoch": 2}.get(channel, 4) * [passage("b", passage("new"))]
    assert log == passage("a", passage("b")) + [entry for each in others for entry in each]
    assert first


def test_one_set_serves_two_engines_at_once():
    outer, inner, hooks, log = plain_engine(), plain_engine(), Hooks(), Log()

    @hooks.on("on_step")
    def note(engine):
        name = "outer" if engine is outer else "inner"
        log.enter(name)
        yield
        log.leave(name)

    attachments = [hooks.attach(engine) for engine in (outer, inner)]
    outer.add_event_handler(Events.ITERATION_STARTED, lambda: run_anew(inner, batches=1))
    outer.run([0, 1])
    assert log == passage("outer", passage("inner")) * 2
    log.clear()
    attachments[0].remove()
    run_anew(outer)
    assert log == passage("inner") * 2
    log.clear()
    hooks.register("on_step", noting(log, "late"))
    run_anew(outer)
    assert log == passage("inner", passage("late")) * 2


# The warning


def warned_by(act):
    """Returns the file and line of each warning that ``act()`` causes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    assert all(UNSURE in str(each.message) for each in caught)
    return [(each.filename, each.lineno) for each in caught]


@pytest.mark.parametrize("channel", ["on_loop", "on_epoch"])
@pytest.mark.parametrize("is_attached", [False, True])
def test_channel_without_a_guarantee_warns_at_the_call_site(channel, is_attached):
    engine, hooks = plain_engine(), Hooks()
    acts = [
        lambda: hooks.register(channel, noting(Log(), "")),
        lambda: hooks.attach(engine),
    ]
    if is_attached:
        acts.reverse()
    asked_at = (__file__, acts[1].__code__.co_firstlineno)
    assert [warned_by(act) for act in acts] == [[], [asked_at]]


@pytest.mark.parametrize(
    "add",
    [
        lambda hooks: hooks.on("on_loop")(noting(Log(), "")),
        lambda hooks: hooks.register_all(hooks_of(Log(), ["on_loop"])),
        lambda hooks: hooks.__iadd__(hooks_of(Log(), ["on_loop"])),
    ],
    ids=["on", "register_all", "+="],
)
def test_warning_comes_however_the_context_is_added(add):
    engine, hooks = plain_engine(), Hooks()
    hooks.attach(engine)
    assert warned_by(lambda: add(hooks)) == [(__file__, add.__code__.co_firstlineno)]


def test_warning_comes_once_per_engine():
    hooks, first, second = hooks_of(Log(), AT_EVENTS), plain_engine(), plain_engine()
    attachment = None

    def attach():
        nonlocal attachment
        attachment = hooks.attach(first)

    assert len(warned_by(attach)) == 1
    attachment.remove()
    assert warned_by(attach) == []
    assert warned_by(lambda: hooks_of(Log(), AT_EVENTS).attach(first)) == []
    assert warned_by(lambda: hooks.register("on_loop", noting(Log(), ""))) == []
    assert len(warned_by(lambda: hooks.attach(second))) == 1


@pytest.mark.parametrize("channel", CHANNELS[2:])
def test_other_channels_give_no_warning(channel):
    assert warned_by(lambda: hooks_of(Log(), [channel]).attach(plain_engine())) == []


def test_channels_of_a_trainer_give_no_warning():
    trainer = make_trainer()
    assert warned_by(lambda: hooks_of(Log()).attach(trainer)) == []
    assert warned_by(lambda: trainer.hooks.register("on_loop", noting(Log(), ""))) == []


# References


@pytest.mark.parametrize("make", [plain_engine, hand_made])
@pytest.mark.parametrize("end", ["not run", "end", "interrupt", "failure", "removed"])
def test_neither_hooks_nor_contexts_keep_the_engine(make, end):
    engine, hooks, left = make(), Hooks(), []

    def referring(kept):
        def context(engine):
            try:
                yield kept
            finally:
                left.append(1)

        return context

    for channel in AT_EVENTS:
        hooks.register(channel, referring(engine))
    attachment = hooks.attach(engine)
    if end == "interrupt":
        call("interrupt", Events.ITERATION_STARTED)(engine)
    if end == "failure":
        fail_at(Events.ITERATION_STARTED)(engine)
    if end != "not run":
        with suppress(Broken):
            engine.run(batches_of(1))
    if end == "removed":
        attachment.remove()
    assert len(engine.hook_channels.scopes.open) == (4 if end == "interrupt" else 0)
    gone = weakref.ref(engine)
    del engine, hooks, attachment
    gc.collect()
    assert gone() is None
    assert len(left) == (0 if end == "not run" else 4)


def test_a_set_that_is_kept_keeps_no_engine():
    engine, log = plain_engine(), Log()
    hooks = hooks_of(log, AT_EVENTS)
    attachment = hooks.attach(engine)
    engine.run([0])
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
    hooks.register("on_step", noting(log, "")).remove()
    attachment.remove()
    assert not attachment.is_attached
