import copy
import gc
import pickle
import re
import threading
import time
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from ignite.engine import Events
from torch.autograd import set_detect_anomaly
from torch.autograd.graph import save_on_cpu
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import StepLR
from torch.profiler import ProfilerActivity
from torch.profiler import profile
from torch.profiler import record_function
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from ignite_hooks import HookContext
from ignite_hooks import Hooks
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_trainer
from ignite_hooks.hooks import hooks as hooks_module
from ignite_hooks.hooks.channels import CHANNELS
from tests.reference import Log
from tests.reference import batches_of
from tests.reference import make_trainer
from tests.reference import noting
from tests.reference import weights


def recorder(log, name):
    def context(engine):
        log.append(f"+{name}")
        yield
        log.append(f"-{name}")

    return context


def hooks_of(log, channel, *names):
    hooks = Hooks()
    for name in names:
        hooks.register(channel, recorder(log, name))
    return hooks


# Registering and removing


def test_contexts_enter_in_registration_order_and_leave_reversed():
    trainer, log = make_trainer(batches_of(1)), []
    for name in "abc":
        trainer.hooks.register("on_step", recorder(log, name))
    trainer.run()
    assert log == ["+a", "+b", "+c", "-c", "-b", "-a"]


def test_the_decorator_registers_and_returns_the_context():
    trainer, log = make_trainer(batches_of(2)), []

    @trainer.hooks.on("on_step")
    @trainer.hooks.on("on_optimizer_step")
    def context(engine):
        log.append(engine)
        yield

    trainer.run()
    assert log == [trainer] * 4
    assert len(trainer.hooks) == 2
    assert next(context(None)) is None


def test_register_all_keeps_order_and_one_handle_removes_all():
    log = []
    hooks = hooks_of(log, "on_step", "a")
    more = hooks_of(log, "on_step", "b", "c")
    registration = hooks.register_all(more)
    hooks.register("on_step", recorder(log, "d"))
    more.unregister_all()  # what was registered stays
    assert (len(hooks), len(more)) == (4, 0)
    with hooks.begin("on_step", None):
        assert log == ["+a", "+b", "+c", "+d"]
    registration.remove()
    registration.remove()
    del log[:]
    with hooks.begin("on_step", None):
        assert log == ["+a", "+d"]


def test_set_registered_twice_and_removed_once_remains_once():
    log = []
    hooks, more = Hooks(), hooks_of(log, "on_step", "a")
    first, _ = hooks.register_all(more), hooks.register_all(more)
    first.remove()
    with hooks.begin("on_step", None):
        assert log == ["+a"]


def test_a_set_is_added_to_a_set_and_to_a_trainer():
    trainer, log = make_trainer(batches_of(1)), []
    hooks = Hooks()
    hooks += hooks_of(log, "on_step", "a")
    trainer.hooks += hooks
    trainer.hooks += trainer.hooks
    trainer.run()
    assert log == ["+a", "+a", "-a", "-a"]


def test_unregister_all_empties_this_set_and_no_other():
    trainer, log = make_trainer(batches_of(1)), []
    hooks_of(log, "on_step", "attached").attach(trainer)
    trainer.hooks.register("on_step", recorder(log, "own"))
    trainer.hooks.unregister_all()
    assert len(trainer.hooks) == 0
    trainer.run()
    assert log == ["+attached", "-attached"]


@pytest.mark.parametrize(
    ("choose", "expected"),
    [
        (lambda a, b: None, []),
        (lambda a, b: a, ["+a"]),
        (lambda a, b: [], []),
        (lambda a, b: (b,), ["+b"]),
        (lambda a, b: iter([a, b, a]), ["+a", "+b", "+a"]),
    ],
    ids=["None", "one", "no", "a tuple", "an iterator"],
)
def test_a_set_is_made_of_none_or_one_or_several(choose, expected):
    log = []
    given = [hooks_of(log, "on_step", name) for name in "ab"]
    hooks = Hooks.from_hooks(choose(*given))
    hooks.register("on_loop", recorder(log, "new"))
    assert [len(each) for each in given] == [1, 1]
    with hooks.begin("on_step", None):
        assert log == expected


def test_a_set_is_shown_with_its_channels_in_order_of_the_loop():
    hooks = Hooks()
    assert repr(hooks) == "<Hooks without contexts>"
    hooks.register("on_step", HookContext(after=print))
    hooks.register("on_loop", memory_span)
    hooks.register("on_step", nullcontext)
    assert (
        repr(hooks)
        == "<Hooks on_loop: memory_span; on_step: HookContext(after=print), nullcontext>"
    )


def memory_span(engine):
    yield


class Counting(Hooks):
    """A subclass of Hooks with methods for contexts."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.register("on_step", HookContext(before=self.before))
        self.register("on_epoch", self.around)

    def before(self, engine):
        self.calls.append(engine.state.iteration)

    def around(self, engine):
        self.calls.append("in")
        yield
        self.calls.append("out")


def test_a_set_can_be_a_subclass_with_methods():
    counting = Counting()
    make_trainer(batches_of(2), handlers=[counting]).run()
    assert counting.calls == ["in", 1, 2, "out"]
    assert repr(counting) == (
        "<Counting on_epoch: Counting.around; on_step: HookContext(before=Counting.before)>"
    )


# On a trainer


def test_changes_after_attaching_take_effect_until_removal():
    trainer, log = make_trainer(batches_of(1)), []
    hooks = Hooks()
    attachment = hooks.attach(trainer)
    registration = hooks.register("on_step", recorder(log, "a"))
    hooks.register("on_step", recorder(log, "b"))
    trainer.run()
    registration.remove()
    trainer.run()
    attachment.remove()
    hooks.register("on_step", recorder(log, "c"))
    trainer.run()
    assert log == ["+a", "+b", "-b", "-a", "+b", "-b"]


def test_the_order_of_several_sets_is_that_of_registration():
    trainer, log = make_trainer(batches_of(1)), []
    trainer.hooks.register("on_step", recorder(log, "a"))
    hooks = hooks_of(log, "on_step", "b")
    with hooks.attach(trainer):
        trainer.hooks.register("on_step", recorder(log, "c"))
        hooks.register("on_step", recorder(log, "d"))
        trainer.run()
    assert log[:4] == ["+a", "+b", "+c", "+d"]
    trainer.run()
    assert log[8:] == ["+a", "+c", "-c", "-a"]


def test_the_factory_takes_sets_among_its_handlers():
    log = []
    handlers = [hooks_of(log, "on_step", "a"), Hooks(), hooks_of(log, "on_step", "b")]
    make_trainer(batches_of(1), handlers=handlers).run()
    assert log == ["+a", "+b", "-b", "-a"]


def test_one_set_serves_several_trainers():
    log = []
    hooks = hooks_of(log, "on_step", "a")
    trainers = [make_trainer(batches_of(1), handlers=[hooks]) for _ in range(2)]
    hooks.register("on_loop", recorder(log, "loop"))
    for trainer in trainers:
        trainer.run()
    assert log == ["+loop", "+a", "-a", "-loop"] * 2


def test_a_set_keeps_no_trainer_alive():
    hooks = hooks_of([], "on_step", "a")

    def use_one():
        trainer = make_trainer(batches_of(1), handlers=[hooks])
        trainer.hooks.register("on_step", lambda engine: nullcontext(trainer))
        trainer.run()
        return weakref.ref(trainer)

    trainer = use_one()
    gc.collect()
    assert trainer() is None
    hooks.register("on_step", memory_span)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_of_a_set_is_attached_to_nothing(copied):
    log = []
    hooks = hooks_of(log, "on_step", "a")
    trainer = make_trainer(batches_of(1), handlers=[hooks])
    another = copied(hooks)
    another.register("on_step", recorder(log, "b"))
    trainer.run()
    assert log == ["+a", "-a"]
    another.attach(trainer)
    trainer.run()
    assert log[2:] == ["+a", "+a", "+b", "-b", "-a", "-a"]
    del log[:]
    hooks.unregister_all()
    trainer.run()
    assert log == ["+a", "+b", "-b", "-a"]


def test_a_set_of_functions_of_a_module_can_be_pickled():
    hooks = Hooks()
    hooks.register("on_step", memory_span)
    assert repr(pickle.loads(pickle.dumps(hooks))) == repr(hooks)


# Contexts added and removed while a channel is open


def test_registering_in_a_context_skips_and_doubles_no_other():
    trainer, log = make_trainer(batches_of(3)), []
    hooks = trainer.hooks
    registered = {}

    def changing(engine):
        log.append("+changing")
        if "c" in registered and engine.state.iteration == 1:
            registered["a"].remove()
            registered["c"].remove()
            registered["d"] = hooks.register("on_step", recorder(log, "d"))
        yield
        log.append("-changing")
        if engine.state.iteration == 2:
            registered["d"].remove()
            registered["e"] = hooks.register("on_step", recorder(log, "e"))

    registered["a"] = hooks.register("on_step", recorder(log, "a"))
    hooks.register("on_step", changing)
    registered["c"] = hooks.register("on_step", recorder(log, "c"))
    trainer.run()
    first = ["+a", "+changing", "+c", "-c", "-changing", "-a"]
    second = ["+changing", "+d", "-d", "-changing"]
    third = ["+changing", "+e", "-e", "-changing"]
    assert log == first + second + third


def test_registering_in_a_handler_counts_from_the_next_entry():
    trainer, log = make_trainer(batches_of(2)), []
    open_one = trainer.hooks.register("on_step", recorder(log, "a"))

    @trainer.on(TrainEvents.MODEL_FORWARD_STARTED(once=1))
    def change():
        open_one.remove()
        trainer.hooks.register("on_step", recorder(log, "b"))
        trainer.hooks.register("on_model_backward", recorder(log, "backward"))

    trainer.run()
    assert log == ["+a", "+backward", "-backward", "-a", "+b", "+backward", "-backward", "-b"]


def test_a_set_attached_and_detached_while_the_loop_is_open():
    trainer, log = make_trainer(batches_of(3)), []
    hooks = hooks_of(log, "on_step", "a")
    hooks.register("on_loop", recorder(log, "loop"))
    attached = []

    @trainer.on(Events.ITERATION_STARTED)
    def change(engine):
        if engine.state.iteration == 1:
            attached.append(hooks.attach(engine))
        elif engine.state.iteration == 3:
            attached.pop().remove()

    trainer.run()
    assert log == ["+a", "-a", "+a", "-a"]


# Custom loops


def test_begin_enters_and_leaves_a_channel_in_a_custom_loop():
    log, engine = [], object()
    hooks = Hooks()

    @hooks.on("on_step")
    def context(given):
        log.append(given)
        yield

    hooks.register("on_step", recorder(log, "b"))
    hooks.register("on_epoch", recorder(log, "epoch"))
    for _ in range(2):
        with hooks.begin("on_step", engine) as nothing:
            assert nothing is None
            log.append("body")
    assert log == [engine, "+b", "body", "-b"] * 2


def test_failure_passes_through_begin_despite_swallowing():
    seen = []

    def swallowing(engine):
        try:
            yield
        except KeyError as error:
            seen.append(error)

    hooks = Hooks()
    for _ in range(2):
        hooks.register("on_step", swallowing)
    failure = KeyError()
    with pytest.raises(KeyError) as caught, hooks.begin("on_step", None):
        raise failure
    assert caught.value is failure
    assert seen == [failure, failure]


def test_context_failing_to_begin_prevents_later_ones_and_body():
    log = []

    def broken(engine):
        raise KeyError
        yield

    hooks = hooks_of(log, "on_step", "a")
    hooks.register("on_step", broken)
    hooks.register("on_step", recorder(log, "c"))
    with pytest.raises(KeyError), hooks.begin("on_step", None):
        log.append("body")
    assert log == ["+a"]


# Bad input


def several_lines(engine):
    if engine is None:
        yield


BAD = {
    "an unknown channel": (
        lambda hooks: hooks.register("on_stop", memory_span),
        ValueError,
        "`channel` must be one of on_loop, on_epoch, on_step, on_batch, on_model_forward, "
        "on_model_backward, on_optimizer_step, on_validation, got 'on_stop'",
    ),
    "an unknown channel for a decorator": (
        lambda hooks: hooks.on("step"),
        ValueError,
        "`channel` must be one of on_loop, .*, got 'step'",
    ),
    "an unknown channel for a loop": (
        lambda hooks: hooks.begin(None, None),
        ValueError,
        "`channel` must be one of on_loop, .*, got None",
    ),
    "an unhashable channel": (
        lambda hooks: hooks.register(["on_step"], memory_span),
        ValueError,
        r"`channel` must be one of on_loop, .*, got \['on_step'\]",
    ),
    "an event for a channel": (
        lambda hooks: hooks.register(Events.STARTED, memory_span),
        ValueError,
        "`channel` must be one of on_loop",
    ),
    "an array as a channel": (
        lambda hooks: hooks.register(np.array([1, 2]), memory_span),
        ValueError,
        "`channel` must be one of on_loop",
    ),
    "the context for the channel": (
        lambda hooks: hooks.register(memory_span, "on_step"),
        ValueError,
        "`channel` must be one of on_loop",
    ),
    "no context": (
        lambda hooks: hooks.register("on_step", 3),
        TypeError,
        "`context` must be a function of the engine, got 3: ",
    ),
    "a context manager used up at once": (
        lambda hooks: hooks.register("on_step", record_function("step")),
        TypeError,
        "`context` must be a function that makes a context manager, got the context "
        "manager <.*record_function.*>, which .*: pass lambda engine: ",
    ),
    "a context that takes no engine": (
        lambda hooks: hooks.register("on_step", lambda: nullcontext()),
        TypeError,
        r"`context` must take the engine as its one argument, got `.*<lambda>` \(.*test_hooks.py, "
        r"line \d+\), which takes \(\): lambda engine: ",
    ),
    "a set as a context": (
        lambda hooks: hooks.register("on_step", Hooks),
        TypeError,
        "`context` must take the engine as its one argument, got `Hooks`",
    ),
    "a context as a set": (
        lambda hooks: hooks.register_all(memory_span),
        TypeError,
        "`hooks` must be a Hooks, got <function memory_span.*>: register",
    ),
    "a set of something else": (
        lambda hooks: Hooks.from_hooks([hooks, 3]),
        TypeError,
        "`hooks` must be a Hooks, got 3",
    ),
    "neither one nor several": (
        lambda hooks: Hooks.from_hooks(3),
        TypeError,
        "`hooks` must be None, a Hooks or an iterable of them, got 3: ",
    ),
    "an event": (
        lambda hooks: hooks.attach(make_trainer(), Events.STARTED),
        ValueError,
        "`event` must be left out, got .*STARTED.*: a context is entered and left with its channel",
    ),
    "a context among the handlers": (
        lambda hooks: make_trainer(handlers=[HookContext(after=print)]),
        TypeError,
        r"handlers\[0\] is a context: register it on a channel, trainer.hooks.register",
    ),
    "a generator among the handlers": (
        lambda hooks: make_trainer(handlers=[hooks, memory_span]),
        TypeError,
        r"handlers\[1\] is a context: register it on a channel, trainer.hooks.register",
    ),
    "a set as a handler of an event": (
        lambda hooks: make_trainer().add_event_handler(Events.STARTED, hooks),
        ValueError,
        "`event` must be left out",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_says_what_is_wrong_and_changes_nothing(case):
    act, kind, message = BAD[case]
    hooks = Hooks()
    with pytest.raises(kind, match=message):
        act(hooks)
    assert len(hooks) == 0


def test_the_same_set_is_attached_to_an_engine_once():
    hooks = hooks_of([], "on_step", "a")
    trainer = make_trainer(handlers=[hooks])
    with pytest.raises(
        ValueError, match="must not have the same Hooks twice, and <Hooks on_step: "
    ):
        hooks.attach(trainer)
    with pytest.raises(ValueError, match="must not have the same Hooks twice"):
        trainer.hooks.attach(trainer)
    with pytest.raises(ValueError, match="must not have the same Hooks twice"):
        make_trainer(handlers=[hooks, hooks])


def test_a_set_can_be_attached_again_after_it_was_removed():
    trainer, log = make_trainer(batches_of(1)), []
    hooks = hooks_of(log, "on_step", "a")
    for _ in range(2):
        with hooks.attach(trainer):
            trainer.run()
    assert log == ["+a", "-a"] * 2


def test_the_set_of_a_trainer_is_not_replaced():
    trainer = make_trainer()
    with pytest.raises(AttributeError, match=r"`trainer.hooks` must stay .*, got <Hooks without"):
        trainer.hooks = Hooks()


UNUSABLE = {
    "no yield": (several_lines, RuntimeError, "must yield once, it did not"),
    "two yields": (
        lambda engine: (yield (yield)),
        RuntimeError,
        "must yield once, it yielded twice",
    ),
    "no context manager": (
        lambda engine: 3,
        TypeError,
        "must be .* that returns a context manager, .* 3",
    ),
}


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_context_is_named_with_its_file_when_used(case, channel):
    context, kind, message = UNUSABLE[case]
    validation = Validation(lambda: None, every_epochs=1)
    trainer, log = make_trainer(batches_of(1), validation=validation), []
    trainer.hooks.register("on_loop", recorder(log, "loop"))
    trainer.hooks.register(channel, context)
    where = rf"the context `.*` \({re.escape(__file__)}, line \d+\) on channel {channel} "
    with pytest.raises(kind, match=where + message):
        trainer.run()
    assert log == ["+loop"]  # `recorder` has no `finally`: it was left with the failure


# The fields that a context finds


LIVE = {
    # epoch, iteration, optimizer_step, step_committed, batch, model_outputs, loss
    "+on_loop": (1, 3, 2, True, 2, True, "detached"),
    "+on_epoch": (2, 3, 2, True, 2, True, "detached"),
    "+on_step": (2, 5, 2, False, 1, False, None),
    "+on_batch": (2, 5, 2, False, 1, False, None),
    "+on_model_forward": (2, 5, 2, False, 1, False, None),
    "-on_model_forward": (2, 5, 2, False, 1, True, "whole"),
    "+on_model_backward": (2, 5, 2, False, 1, True, "whole"),
    "-on_model_backward": (2, 5, 2, False, 1, True, "detached"),
    "-on_batch": (2, 5, 2, False, 1, True, "detached"),
    "+on_optimizer_step": (2, 5, 2, False, 1, True, "detached"),
    "-on_optimizer_step": (2, 5, 3, True, 1, True, "detached"),
    "+on_validation": (2, 5, 3, True, 1, True, "detached"),
    "-on_validation": (2, 5, 3, True, 1, True, "detached"),
    "-on_step": (2, 5, 3, True, 1, True, "detached"),
    "-on_epoch": (2, 6, 4, True, 2, True, "detached"),
    "-on_loop": (2, 6, 4, True, 2, True, "detached"),
}


@pytest.mark.parametrize("point", LIVE)
def test_a_context_finds_the_documented_fields_on_the_engine(point):
    """Looks at the second batch of the second epoch: three batches, windows of two."""
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = StepLR(optimizer, 1)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    batches = DataLoader(TensorDataset(*samples(3)), batch_size=1)
    trainer = create_supervised_trainer(
        model,
        optimizer,
        mse_loss,
        batches,
        accelerator=accelerator,
        lr_scheduler=scheduler,
        validation=Validation(lambda: None, every_steps=1),
    )
    trainer.run()
    seen = []

    def look(engine):
        state = engine.state
        if state.iteration == 5 or point[1:] in ("on_loop", "on_epoch"):
            loss, outputs = state.loss, state.model_outputs
            kind = None if loss is None else "whole" if loss.requires_grad else "detached"
            number = int(state.batch[0][0, 0])
            if outputs is not None:
                assert outputs.shape == (1, 2)
            counts = (state.epoch, state.iteration, state.optimizer_step, state.step_committed)
            seen.append((*counts, number, outputs is not None, kind))
        assert (state.max_epochs, state.max_steps) == (2, 9)
        assert (state.start_epoch, state.start_step) == (1, 2)
        assert engine.accelerator is accelerator
        assert engine.model is model  # on one process Accelerate wraps nothing
        assert engine.optimizer.optimizer is optimizer
        assert engine.lr_scheduler is scheduler
        assert list(map(len, state.dataloader)) == [2, 2, 2]

    side = "before" if point[0] == "+" else "after"
    trainer.hooks.register(point[1:], HookContext(**{side: look}))
    trainer.run(max_epochs=2, max_steps=9)
    assert seen == [LIVE[point]]


def samples(number):
    x = torch.randn(number, 4)
    x[:, 0] = torch.arange(number)
    return x, torch.randn(number, 2)


def test_before_the_first_batch_the_fields_are_there_and_empty():
    trainer, seen = make_trainer(batches_of(2)), {}

    @trainer.hooks.on("on_loop")
    def look(engine):
        seen.update(vars(engine.state))
        yield

    trainer.run(max_steps=2)
    assert seen["dataloader"] is trainer.feed.loader
    nothing = ("batch", "model_outputs", "loss")
    assert [seen[name] for name in nothing] == [None, None, None]
    zero = ("epoch", "iteration", "optimizer_step", "start_epoch", "start_step")
    assert [seen[name] for name in zero] == [0, 0, 0, 0, 0]
    assert (seen["max_epochs"], seen["max_steps"], seen["step_committed"]) == (1, 2, False)


def test_the_table_of_fields_names_all_of_them_and_their_types():
    table = hooks_module.__doc__
    for name in (
        *("accelerator", "model", "optimizer", "lr_scheduler", "state.epoch", "state.iteration"),
        *("state.optimizer_step", "state.step_committed", "state.max_epochs", "state.max_steps"),
        *("state.start_epoch", "state.start_step", "state.dataloader", "state.batch"),
        *("state.model_outputs", "state.loss"),
    ):
        assert re.search(rf"^``{name}`` +\S", table, re.MULTILINE), name
    assert all(f"``{channel}``" in table for channel in CHANNELS)


def test_step_committed_is_false_at_entry_and_true_at_exit():
    trainer, committed = make_trainer(batches_of(3)), []

    @trainer.hooks.on("on_step")
    def look(engine):
        committed.append(engine.state.step_committed)
        yield
        committed.append(engine.state.step_committed)

    trainer.run()
    assert committed == [False, True] * 3


def test_step_committed_stays_false_for_a_skipped_step():
    model = torch.nn.Linear(4, 2)
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    batches = batches_of(4)
    batches[1] = (batches[1][0], batches[1][1] * torch.inf)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = create_supervised_trainer(
        model, optimizer, mse_loss, batches, accelerator=accelerator
    )
    committed = []

    @trainer.hooks.on("on_optimizer_step")
    def look(engine):
        assert not engine.state.step_committed
        yield
        committed.append(engine.state.step_committed)

    trainer.run()
    assert committed == [True, False, True, True]


# Common uses


def test_profiler_ranges_appear_once_per_use():
    validation = Validation(lambda: None, every_epochs=1)
    trainer = make_trainer(batches_of(4), accumulation=2, validation=validation)
    for channel in CHANNELS:
        trainer.hooks.register(channel, lambda engine, channel=channel: record_function(channel))
    profiles = []

    @trainer.hooks.on("on_loop")
    def profiled(engine):
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            yield
        profiles.append(profiler)

    trainer.run(max_epochs=2)
    (profiler,) = profiles
    counts = {each.key: each.count for each in profiler.key_averages()}
    # The range of the loop was entered before the profiler.
    assert {channel: counts.get(channel) for channel in CHANNELS[1:]} == {
        "on_epoch": 2,
        "on_step": 8,
        "on_batch": 8,
        "on_model_forward": 8,
        "on_model_backward": 8,
        "on_optimizer_step": 4,
        "on_validation": 2,
    }


def test_anomaly_detection_is_limited_to_its_channel():
    trainer, seen = make_trainer(batches_of(2), batch_processor=nan_at_second), []
    trainer.hooks.register("on_batch", lambda engine: set_detect_anomaly(True))
    for event in (TrainEvents.MODEL_BACKWARD_STARTED, Events.ITERATION_COMPLETED):
        trainer.add_event_handler(event, lambda: seen.append(torch.is_anomaly_enabled()))
    with (
        pytest.raises(RuntimeError, match="nan"),
        pytest.warns(UserWarning, match="Error detected"),
    ):
        trainer.run()
    assert seen == [True, False, True]
    assert not torch.is_anomaly_enabled()


def nan_at_second(model, batch):
    outputs = model(batch[0])
    losses = outputs.sum() - outputs.sum().detach()  # 0, whose root has no finite gradient
    is_second = torch.equal(batch[0], batches_of(2)[1][0])
    return outputs, (losses * 0).sqrt() * 0 if is_second else losses


def test_saved_tensors_on_the_cpu_change_no_bit():
    plain, hooked = (make_trainer(batches_of(4), accumulation=2) for _ in range(2))
    uses = []

    @hooked.hooks.on("on_model_forward")
    def offloaded(engine):
        uses.append(engine.state.iteration)
        return save_on_cpu()

    for trainer in (plain, hooked):
        trainer.run(max_epochs=2)
    assert uses == list(range(1, 9))
    assert torch.equal(weights(plain.model), weights(hooked.model))


def test_a_timer_writes_its_seconds_to_the_metrics():
    trainer = make_trainer(batches_of(2))

    @trainer.hooks.on("on_optimizer_step")
    def timed(engine):
        start = time.perf_counter()
        try:
            yield
        finally:
            engine.state.metrics["optimizer_step_seconds"] = time.perf_counter() - start

    trainer.run()
    assert 0 < trainer.state.metrics["optimizer_step_seconds"] < 60


def test_a_lock_is_free_again_after_a_failure():
    trainer, lock = make_trainer(batches_of(2)), threading.Lock()
    trainer.hooks.register("on_step", lambda engine: lock)
    held = []
    trainer.add_event_handler(TrainEvents.MODEL_FORWARD_STARTED, lambda: held.append(lock.locked()))
    fail = trainer.add_event_handler(TrainEvents.MODEL_BACKWARD_STARTED(once=2), lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    assert held == [True, True]
    assert not lock.locked()
    fail.remove()
    trainer.run()
    assert not lock.locked()


# Registrations.


def test_a_registration_is_removed_alone_and_once():
    trainer, log = make_trainer(batches_of(1)), Log()
    context = noting(log, "twice")
    first, second = (trainer.hooks.register("on_step", context) for _ in range(2))
    first.remove()
    first.remove()
    assert len(trainer.hooks) == 1
    trainer.run()
    assert log == ["+twice", "-twice"]
    second.remove()
    trainer.run()
    assert len(log) == 2


def test_a_registration_lasts_until_the_end_of_its_with():
    trainer, log = make_trainer(batches_of(1)), Log()
    with trainer.hooks.register("on_step", noting(log, "a")):
        trainer.run()
    trainer.run()
    assert log == ["+a", "-a"]


def test_a_failure_passes_through_its_with_and_ends_it():
    trainer, log = make_trainer(batches_of(1)), Log()
    with pytest.raises(ZeroDivisionError), trainer.hooks.register("on_step", noting(log, "a")):
        raise ZeroDivisionError
    assert len(trainer.hooks) == 0


def test_with_statement_yields_the_registration():
    trainer, log = make_trainer(batches_of(1)), Log()
    with trainer.hooks.register("on_step", noting(log, "a")) as registration:
        registration.remove()
        assert len(trainer.hooks) == 0
