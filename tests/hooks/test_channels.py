import gc
import sys
import weakref
from contextlib import suppress

import pytest
import torch
from ignite.engine import Engine

from ignite_hooks import TrainEvents
from ignite_hooks.core import scopes
from ignite_hooks.core.scopes import NULL_CONTEXT
from ignite_hooks.hooks import channels
from ignite_hooks.hooks import context as hook_context
from ignite_hooks.hooks.channels import CHANNELS
from ignite_hooks.hooks.channels import Channels
from ignite_hooks.hooks.context import Hook
from tests.reference import batches_of
from tests.reference import make_trainer
from tests.reference import weights


class Broken(Exception):
    pass


@pytest.fixture
def engine():
    return Engine(lambda engine, batch: None)


@pytest.fixture
def on(engine):
    return Channels(engine)


def hook(log, name, channel="on_step", act=lambda: None):
    """Returns a hook whose context records, and calls ``act`` on the way in."""

    def context(engine):
        log.append(f"+{name}")
        act()
        try:
            yield
        except BaseException as error:
            log.append((f"-{name}", error))
            raise
        log.append(f"-{name}")

    return Hook(channel, context)


# Order


@pytest.mark.parametrize("channel", CHANNELS)
def test_contexts_are_entered_in_order_and_left_in_reverse(on, channel):
    log = []
    for name in "abc":
        on.add([hook(log, name, channel)])
    with getattr(on, channel):
        log.append("body")
    assert log == ["+a", "+b", "+c", "body", "-c", "-b", "-a"]
    assert on.scopes.open == []


def test_contexts_are_on_their_own_channel_only(on):
    log = []
    for channel in CHANNELS:
        on.add([hook(log, channel, channel)])
    for channel in CHANNELS:
        with getattr(on, channel):
            pass
    assert log == [f"{sign}{channel}" for channel in CHANNELS for sign in "+-"]


def test_channels_within_channels_are_left_innermost_first(on):
    log = []
    for channel in CHANNELS[:3]:
        on.add([hook(log, channel, channel)])
    with on.on_loop:
        for _ in range(2):
            with on.on_epoch:
                with on.on_step:
                    assert len(on.scopes.open) == 3
                assert len(on.scopes.open) == 2
    step = ["+on_epoch", "+on_step", "-on_step", "-on_epoch"]
    assert log == ["+on_loop", *step, *step, "-on_loop"]


def test_contexts_are_given_the_engine(on, engine):
    given = []

    def context(engine):
        given.append(engine)
        yield

    on.add([Hook("on_batch", context)])
    with on.on_batch:
        pass
    assert given == [engine]


def test_engines_do_not_share_channels(on):
    log = []
    other = Channels(Engine(lambda engine, batch: None))
    on.add([hook(log, "a")])
    with other.on_step:
        assert log == []
    assert other.scopes is not on.scopes


def test_channels_do_not_keep_their_engine_alive():
    engine = Engine(lambda engine, batch: None)
    on = Channels(engine)
    on.add([hook([], "a")])
    alive = weakref.ref(engine)
    del engine
    gc.collect()
    assert alive() is None
    assert on.on_step is not NULL_CONTEXT


# Adding and dropping


def test_a_channel_without_contexts_is_replaced_by_nothing(on):
    assert all(getattr(on, channel) is NULL_CONTEXT for channel in CHANNELS)
    first, second = hook([], "a"), hook([], "b")
    on.add([first])
    on.add([second])
    assert on.on_step is not NULL_CONTEXT
    assert all(getattr(on, channel) is NULL_CONTEXT for channel in CHANNELS if channel != "on_step")
    on.drop([first])
    assert on.on_step is not NULL_CONTEXT
    on.drop([second])
    assert on.on_step is NULL_CONTEXT


def test_dropping_one_keeps_the_order_of_the_others(on):
    log = []
    hooks = [hook(log, name) for name in "abcd"]
    for each in hooks:
        on.add([each])
    on.drop([hooks[1]])
    on.add([hooks[1]])
    with on.on_step:
        pass
    assert log == ["+a", "+c", "+d", "+b", "-b", "-d", "-c", "-a"]


def test_dropping_an_unknown_hook_does_nothing(on):
    log = []
    first = hook(log, "a")
    on.add([first])
    on.drop([hook(log, "a")])
    on.drop([hook(log, "b", "on_loop")])
    with on.on_step:
        pass
    assert log == ["+a", "-a"]
    on.drop([first])
    on.drop([first])
    assert on.on_step is NULL_CONTEXT


def test_context_added_twice_is_entered_twice_dropped_singly(on):
    log = []
    once = hook(log, "a")
    again = Hook(once.channel, once.context)
    on.add([once])
    on.add([again])
    with on.on_step:
        assert log == ["+a", "+a"]
    assert log == ["+a", "+a", "-a", "-a"]
    on.drop([once])
    log.clear()
    with on.on_step:
        pass
    assert log == ["+a", "-a"]


def test_context_added_to_an_open_channel_is_entered_next_time(on):
    log = []
    added = hook(log, "b")
    on.add([hook(log, "a")])
    with on.on_step:
        on.add([added])
    assert log == ["+a", "-a"]
    log.clear()
    with on.on_step:
        pass
    assert log == ["+a", "+b", "-b", "-a"]


def test_context_added_to_an_open_empty_channel_waits_too(on):
    log = []
    with on.on_step:
        on.add([hook(log, "a")])
    assert log == []
    assert on.scopes.open == []


@pytest.mark.parametrize("which", [0, 1, 2])
def test_context_dropped_while_open_is_left_in_order(on, which):
    log = []
    hooks = [hook(log, name) for name in "abc"]
    for each in hooks:
        on.add([each])
    with on.on_step:
        on.drop([hooks[which]])
    assert log == ["+a", "+b", "+c", "-c", "-b", "-a"]
    log.clear()
    with on.on_step:
        pass
    kept = [name for name in "abc" if name != "abc"[which]]
    assert log == [*(f"+{name}" for name in kept), *(f"-{name}" for name in reversed(kept))]


def test_all_contexts_dropped_while_open_are_left(on):
    log = []
    hooks = [hook(log, name) for name in "ab"]
    for each in hooks:
        on.add([each])
    with on.on_step:
        for each in hooks:
            on.drop([each])
        assert on.on_step is NULL_CONTEXT
    assert log == ["+a", "+b", "-b", "-a"]


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_contexts_that_add_and_drop_others_skip_and_double_none(on, which, side):
    log = []
    later = hook(log, "later")

    def change():
        on.drop([hooks["abc".index(target)]])
        on.add([later])

    def changing(engine):
        log.append("+b")
        if side == "in":
            change()
        yield
        log.append("-b")
        if side == "out":
            change()

    target = "abc"[which]
    hooks = [hook(log, "a"), Hook("on_step", changing), hook(log, "c")]
    for each in hooks:
        on.add([each])
    with on.on_step:
        pass
    assert log == ["+a", "+b", "+c", "-c", "-b", "-a"]
    log.clear()
    hooks_now = [name for name in "abc" if name != target]
    with on.on_step:
        pass
    # `changing` adds `later` once more when it is entered again, for the time after that.
    names = [*hooks_now, "later"]
    assert log == [*(f"+{name}" for name in names), *(f"-{name}" for name in reversed(names))]


# Failures


def test_a_failure_leaves_the_contexts_open_until_they_are_unwound(on):
    log, error = [], Broken()
    on.add([hook(log, "a", "on_loop")])
    on.add([hook(log, "b")])
    on.add([hook(log, "c")])
    with pytest.raises(Broken), on.on_loop, on.on_step:
        raise error
    assert log == ["+a", "+b", "+c"]
    assert len(on.scopes.open) == 3
    assert list(on.scopes.unwind(error, 0)) == [False] * 3
    assert log[3:] == [("-c", error), ("-b", error), ("-a", error)]


def test_the_stack_closes_what_a_failure_left_open(on):
    log, error = [], Broken()
    on.add([hook(log, "a")])
    with pytest.raises(Broken) as caught, on.scopes, on.on_step:
        raise error
    assert caught.value is error
    assert log == ["+a", ("-a", error)]
    with on.scopes, on.on_step:
        pass
    assert log[2:] == ["+a", "-a"]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_context_failing_to_enter_keeps_earlier_ones_open(on, number):
    log, error = [], Broken()

    def fail():
        raise error

    names = "abc"[:number]
    for name in names:
        on.add([hook(log, name)])
    on.add([hook(log, "broken", act=fail)])
    on.add([hook(log, "after")])
    with pytest.raises(Broken) as caught:
        on.on_step.__enter__()
    assert caught.value is error
    entered = [f"+{name}" for name in names]
    assert log == [*entered, "+broken"]
    # The one that failed is there too; closing it does nothing.
    assert list(on.scopes.unwind(error, 0)) == [False] * (number + 1)
    assert log[number + 1 :] == [(f"-{name}", error) for name in reversed(names)]


def test_context_failing_to_leave_keeps_earlier_ones_open(on):
    log, error = [], Broken()

    def fails(engine):
        yield
        raise error

    on.add([hook(log, "a")])
    on.add([Hook("on_step", fails)])
    on.add([hook(log, "c")])
    with pytest.raises(Broken) as caught, on.on_step:
        pass
    assert caught.value is error
    assert log == ["+a", "+c", "-c"]
    list(on.scopes.unwind(error, 0))
    assert log[3:] == [("-a", error)]


def test_leaving_a_channel_closes_what_was_left_open_within(on):
    log = []
    on.add([hook(log, "a", "on_epoch")])
    on.add([hook(log, "b", "on_step")])
    with on.on_loop, on.on_epoch, suppress(Broken), on.on_step:
        raise Broken
    assert log == ["+a", "+b", "-b", "-a"]


# Ctrl-C

FILES = {module.__file__ for module in (scopes, hook_context, channels)}


class InterruptAt:
    """Raises KeyboardInterrupt before the n-th executed line of the three files.

    ``code`` is the code object in which it was raised.
    """

    def __init__(self, number, *, not_in=()):
        self.left, self.not_in = number, not_in
        self.code = None

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.trace)

    def __exit__(self, *failure):
        sys.settrace(self.before)

    def trace(self, frame, event, argument):
        code = frame.f_code
        if code.co_filename not in FILES or code.co_name in self.not_in:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                self.code = code
                raise KeyboardInterrupt
        return self.trace


class Log(list):
    """A log of contexts. ``is_balanced``: all that were entered were left, innermost first."""

    def is_balanced(self):
        still_open = []
        for sign, channel in self:
            if sign == "in":
                still_open.append(channel)
            elif not still_open or still_open.pop() != channel:
                return False
        return not still_open


def as_generator(log, channel):
    def context(engine):
        log.append(("in", channel))
        try:
            yield
        finally:
            log.append(("out", channel))

    return context


def as_class(log, channel):
    class Context:
        def __init__(self, engine):
            pass

        def __enter__(self):
            log.append(("in", channel))

        def __exit__(self, *failure):
            log.append(("out", channel))

    return Context


def recording_trainer(kind, batches=2):
    trainer, log = make_trainer(batches_of(batches)), Log()
    for channel in CHANNELS:
        trainer.hooks.register(channel, kind(log, channel))
    return trainer, log


def interrupted_at_each_line(make, **options):
    """Runs a new trainer once for each line that can be interrupted."""
    number = 0
    while True:
        number += 1
        trainer, log = make()
        interrupt = InterruptAt(number, **options)
        with suppress(KeyboardInterrupt, Broken), interrupt:
            trainer.run(max_epochs=1)
        yield trainer, log, interrupt
        if interrupt.left > 0:  # the run has no more lines
            assert number > 100
            return


def test_ctrl_c_at_any_line_leaves_contexts_and_loses_nothing():
    unbroken = make_trainer(batches_of(2))
    unbroken.run(max_epochs=2)
    expected = weights(unbroken.model)
    for trainer, log, interrupt in interrupted_at_each_line(
        lambda: recording_trainer(as_generator)
    ):
        assert log.is_balanced(), interrupt.code
        assert trainer.hook_channels.scopes.open == [], interrupt.code
        trainer.run(max_epochs=2)
        assert torch.equal(weights(trainer.model), expected), interrupt.code
        assert log.is_balanced()
        assert trainer.hook_channels.scopes.open == []


def test_ctrl_c_at_any_line_leaves_every_context_manager():
    # Not in `_entered`: Python's own `with` does not guarantee `__exit__` if Ctrl-C comes between
    # the end of its body and the call.
    for _, log, interrupt in interrupted_at_each_line(
        lambda: recording_trainer(as_class, batches=1), not_in=["_entered"]
    ):
        assert log.is_balanced(), interrupt.code


def test_ctrl_c_while_unwinding_a_failure_leaves_every_context():
    def make():
        trainer, log = recording_trainer(as_generator, batches=1)

        @trainer.on(TrainEvents.MODEL_BACKWARD_STARTED)
        def fail():
            raise Broken

        return trainer, log

    for trainer, log, interrupt in interrupted_at_each_line(make):
        assert log.is_balanced(), interrupt.code
        assert trainer.hook_channels.scopes.open == [], interrupt.code
        with pytest.raises(Broken):
            trainer.run(max_epochs=2)
        assert log.is_balanced(), interrupt.code
