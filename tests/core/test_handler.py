import gc
import weakref
from contextlib import contextmanager
from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks import OptimizerStep
from ignite_hooks import TrainEvents
from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.fields import Every
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import Scheduled
from ignite_hooks.core.handler import attached_handlers
from tests.ids import stable_id
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer


@checked_dataclass
class Recorder(Scheduled):
    """Records the epoch and iteration of each call."""

    every_steps: Every | None = None
    every_epochs: Every | None = None
    name: str = ""

    def __post_init__(self):
        object.__setattr__(self, "seen", [])

    def __call__(self, engine):
        self.seen.append((self.name, engine.state.epoch, engine.state.iteration))

    @property
    def iterations(self):
        return [iteration for *_, iteration in self.seen]


class NoSchedule(Handler):
    def __call__(self, engine):
        engine.state.acted = True


class NoCall(Handler):
    def attach_to(self, attachment):
        attachment.on(Events.COMPLETED, lambda engine: None)


def plain_engine():
    return Engine(lambda engine, batch: None)


@pytest.fixture(params=["trainer", "engine"])
def engine(request):
    return make_trainer() if request.param == "trainer" else plain_engine()


def run(engine, epochs=2, batches=4):
    return engine.run(batches_of(batches), max_epochs=epochs)


# Three ways of use


def test_handler_added_to_an_event_is_called_there(engine):
    handler = Recorder()
    engine.add_event_handler(Events.EPOCH_COMPLETED(every=2), handler)
    run(engine, epochs=4)
    assert handler.seen == [("", 2, 8), ("", 4, 16)]


def test_attached_handler_acts_on_its_own_schedule(engine):
    handler = Recorder(every_steps=3)
    handler.attach(engine)
    run(engine)
    assert handler.iterations == [3, 6]


def test_handler_attached_at_an_event_acts_only_there(engine):
    handler = Recorder(every_steps=1)
    handler.attach(engine, Events.ITERATION_STARTED(every=5))
    run(engine)
    assert handler.iterations == [5]


def test_attach_to_several_events_some_passing_arguments(engine):
    handler = Recorder()
    events = Events.STARTED | Events.TERMINATE_SINGLE_EPOCH | Events.EXCEPTION_RAISED
    attachment = handler.attach(engine, events)
    ending = engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), Engine.terminate_epoch)
    run(engine, epochs=1)
    assert handler.iterations == [0, 2]
    attachment.remove()
    ending.remove()
    run(engine, epochs=1)
    assert handler.iterations == [0, 2]


def test_handler_attached_at_a_trainer_event_acts_there():
    trainer, handler = make_trainer(accumulation=2), Recorder()
    handler.attach(trainer, TrainEvents.OPTIMIZER_STEP_STARTED)
    run(trainer, epochs=1)
    assert handler.iterations == [2, 4]


def test_epochs_and_steps_are_independent(engine):
    handler = Recorder(every_steps=3, every_epochs=2)
    handler.attach(engine)
    run(engine)
    assert handler.iterations == [3, 6, 8]


def test_a_class_may_have_one_of_the_schedules(engine):
    seen = []

    @checked_dataclass
    class ByStep(Scheduled):
        every_steps: Every

        def __call__(self, engine):
            seen.append(engine.state.iteration)

    ByStep(every_steps=3).attach(engine)
    run(engine)
    assert seen == [3, 6]


def test_a_handler_whose_schedules_are_not_given_needs_an_event(engine):
    with pytest.raises(ValueError, match="a Recorder must have a schedule, got neither"):
        Recorder().attach(engine)


def test_a_handler_without_a_schedule_needs_an_event(engine):
    with pytest.raises(ValueError, match="NoSchedule has no schedule of its own: give attach"):
        NoSchedule().attach(engine)
    NoSchedule().attach(engine, Events.COMPLETED)
    assert run(engine).acted


def test_a_handler_that_only_has_a_schedule_says_so_when_called(engine):
    with pytest.raises(TypeError, match=r"NoCall acts on its own schedule: use attach\(engine\)"):
        NoCall()(engine)


def test_attaching_to_an_unknown_event_is_ignites_error(engine):
    with pytest.raises(ValueError, match="not a valid event"):
        Recorder().attach(engine, "unknown")
    assert attached_handlers(engine, Recorder) == []


def test_handler_that_fails_while_it_is_attached_leaves_nothing_behind(engine):
    class Failing(Handler):
        def attach_to(self, attachment):
            attachment.on(Events.ITERATION_COMPLETED, seen.append)
            attachment.during_run(lambda engine: nullcontext(seen.append(engine)))
            raise OSError("no")

    seen = []
    with pytest.raises(OSError, match="no"):
        Failing().attach(engine)
    run(engine)
    assert seen == []
    assert attached_handlers(engine, Failing) == []


def test_removal_that_fails_removes_all_else(engine):
    class TwoParts(Handler):
        def attach_to(self, attachment):
            attachment.add(Events.ITERATION_COMPLETED, lambda engine: seen.append(engine))
            attachment.on_removal(fail)

    def fail():
        raise OSError("no")

    seen = []
    attachment = TwoParts().attach(engine)
    with pytest.raises(OSError, match="no"):
        attachment.remove()
    run(engine)
    assert seen == []


# Schedules


@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_every_steps_counts_committed_steps_on_a_trainer(accumulation):
    trainer, steps = make_trainer(accumulation=accumulation), []
    handler = Recorder(every_steps=2)
    handler.attach(trainer)
    trainer.add_event_handler(
        TrainEvents.STEP_COMPLETED, lambda engine: steps.append(engine.state.iteration)
    )
    run(trainer, batches=5)
    assert handler.iterations == steps[1::2]


def test_every_steps_counts_committed_steps_with_optimizer_step():
    model = make_model(0.0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def process(engine, batch):
        accelerator.backward(model(batch[0]).mean())

    engine, handler = Engine(process), Recorder(every_steps=2)
    OptimizerStep(accelerator, optimizer).attach(engine)
    handler.attach(engine)
    run(engine, batches=5)
    assert handler.iterations == [4, 7, 10]


def test_unit_of_every_steps_is_determined_at_run_start():
    model = make_model(0.0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def process(engine, batch):
        accelerator.backward(model(batch[0]).mean())

    engine, handler = Engine(process), Recorder(every_steps=1)
    handler.attach(engine)
    attachment = OptimizerStep(accelerator, optimizer).attach(engine)
    run(engine, epochs=1)
    assert handler.iterations == [2, 4]
    attachment.remove()
    handler.seen.clear()
    run(engine, epochs=1)
    assert handler.iterations == [1, 2, 3, 4]


def test_handlers_that_are_due_together_act_in_order_of_attachment(engine):
    seen = []
    for name, every in (("a", 2), ("b", 1), ("c", 4), ("d", 2)):
        handler = Recorder(every_steps=every, name=name)
        object.__setattr__(handler, "seen", seen)
        handler.attach(engine)
    run(engine, epochs=1)
    assert "".join(name for name, *_ in seen) == "b" + "abd" + "b" + "abcd"
    seen.clear()
    run(engine, epochs=1)
    assert "".join(name for name, *_ in seen) == "b" + "abd" + "b" + "abcd"


def test_schedule_survives_a_stop_and_restarts_with_a_new_run(engine):
    handler = Recorder(every_steps=3)
    handler.attach(engine)
    stop = engine.add_event_handler(Events.ITERATION_COMPLETED(once=4), Engine.terminate)
    run(engine)
    stop.remove()
    engine.run(batches_of(4))
    assert handler.iterations == [3, 6]
    run(engine)
    assert handler.iterations == [3, 6, 3, 6]


def test_a_schedule_continues_after_an_interruption(engine):
    handler = Recorder(every_steps=2)
    handler.attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, engine.interrupt)
    for _ in range(5):
        run(engine, epochs=1)
    assert handler.iterations == [2, 4]


def test_a_step_that_fails_is_not_counted_twice():
    trainer = make_trainer(accumulation=2)
    handler = Recorder(every_steps=1)
    handler.attach(trainer)
    failing = trainer.add_event_handler(TrainEvents.OPTIMIZER_STEP_STARTED(once=1), lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(trainer)
    assert handler.iterations == [2]
    failing.remove()
    trainer.run()
    assert handler.iterations == [2, 4, 6, 8]


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "2"], ids=stable_id)
@pytest.mark.parametrize("name", ["every_steps", "every_epochs"])
def test_a_schedule_is_an_integer_of_at_least_one(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be an integer >= 1, got {value!r}"):
        Recorder(**{name: value})


# Removal


def test_remove_takes_off_this_attachment_and_no_other(engine):
    handler = Recorder(every_steps=2, every_epochs=1)
    first, second = handler.attach(engine), handler.attach(engine)
    by_event = handler.attach(engine, Events.COMPLETED)
    first.remove()
    assert attached_handlers(engine, Recorder) == [handler, handler]
    run(engine, epochs=1)
    assert handler.iterations == [2, 4, 4, 4]
    second.remove()
    by_event.remove()
    assert attached_handlers(engine, Recorder) == []
    run(engine, epochs=1)
    assert len(handler.seen) == 4


def test_equal_handlers_are_attached_and_removed_separately(engine):
    first, second = Recorder(every_steps=2), Recorder(every_steps=2)
    assert first != second
    first.attach(engine).remove()
    second.attach(engine)
    run(engine, epochs=1)
    assert (first.iterations, second.iterations) == ([], [2, 4])


def test_removing_an_attachment_twice_does_nothing(engine):
    handler = Recorder(every_steps=2)
    attachment, other = handler.attach(engine), handler.attach(engine)
    assert attachment.is_attached
    attachment.remove()
    attachment.remove()
    assert not attachment.is_attached
    assert other.is_attached
    run(engine, epochs=1)
    assert handler.iterations == [2, 4]


@pytest.mark.parametrize("event", [Events.STARTED, Events.ITERATION_STARTED(once=3)], ids=stable_id)
def test_remove_works_within_a_run(engine, event):
    handler = Recorder(every_steps=1, every_epochs=1)
    attachment = handler.attach(engine)
    engine.add_event_handler(event, attachment.remove)
    run(engine, epochs=1)
    assert handler.iterations == ([] if event == Events.STARTED else [1, 2])
    run(engine, epochs=1)
    assert len(handler.seen) <= 2


def test_handler_removing_its_attachment_skips_no_other(engine):
    seen, attachments = [], {}

    class Once(Recorder):
        def __call__(self, engine):
            seen.append(self.name)
            if self.name == "b":
                attachments["b"].remove()

    for name in "abc":
        attachments[name] = Once(every_steps=1, name=name).attach(engine)
    run(engine, epochs=1, batches=3)
    assert "".join(seen) == "abc" + "ac" + "ac"


def test_attach_works_within_a_run(engine):
    handler = Recorder(every_steps=1, every_epochs=1)
    Recorder(every_steps=100).attach(engine)
    engine.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: handler.attach(engine))
    run(engine, epochs=1)
    assert handler.iterations == [3, 4, 4]


def test_with_statement_removes_the_attachment_at_its_end(engine):
    handler = Recorder(every_steps=2)
    with handler.attach(engine) as attachment:
        assert isinstance(attachment, Attachment)
        assert "attached" in repr(attachment)
        run(engine, epochs=1)
    assert "removed" in repr(attachment)
    run(engine, epochs=1)
    assert handler.iterations == [2, 4]


def test_with_statement_removes_the_attachment_after_a_failure(engine):
    handler = Recorder(every_steps=2)
    failing = engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), handler.attach(engine):
        run(engine, epochs=1)
    failing.remove()
    assert attached_handlers(engine, Recorder) == []


def test_one_handler_serves_several_engines():
    handler, engines = Recorder(every_steps=2), [plain_engine(), make_trainer(), plain_engine()]
    attachments = [handler.attach(engine) for engine in engines]
    for engine in engines:
        run(engine, epochs=1, batches=2)
    assert handler.iterations == [2, 2, 2]
    attachments[0].remove()
    for engine in engines:
        run(engine, epochs=1, batches=2)
    assert len(handler.seen) == 5


# The parts of an attachment


class FirstOrLast(Handler):
    """Logs its name at ITERATION_STARTED, before or after the handlers attached earlier."""

    def __init__(self, log, name, first):
        self.log, self.name, self.first = log, name, first

    def attach_to(self, attachment):
        attachment.on(
            Events.ITERATION_STARTED,
            lambda engine: self.log.append((self.name, engine)),
            first=self.first,
        )


def test_first_handlers_are_called_before_all_earlier_ones(engine):
    log = []
    engine.add_event_handler(Events.ITERATION_STARTED, lambda engine: log.append(("own", engine)))
    attachments = {
        name: FirstOrLast(log, name, first).attach(engine)
        for name, first in (("a", False), ("b", True), ("c", False), ("d", True))
    }
    run(engine, epochs=1, batches=1)
    assert log == [(name, engine) for name in ("d", "b", "own", "a", "c")]
    log.clear()
    attachments["b"].remove()
    attachments["c"].remove()
    run(engine, epochs=1, batches=1)
    assert log == [(name, engine) for name in ("d", "own", "a")]


def test_first_handlers_are_attached_and_removed_in_a_run(engine):
    log, attachments = [], []
    FirstOrLast(log, "a", first=False).attach(engine)

    @engine.on(Events.ITERATION_COMPLETED)
    def attach_or_remove(engine):
        if engine.state.iteration == 1:
            attachments.append(FirstOrLast(log, "b", first=True).attach(engine))
        else:
            attachments[0].remove()

    run(engine, epochs=1, batches=3)
    assert [name for name, _ in log] == ["a", "b", "a", "a"]


def test_profilers_show_the_name_of_the_handler(engine):
    attachment = FirstOrLast([], "", first=True).attach(engine)
    function, *_ = engine._event_handlers[Events.ITERATION_STARTED][0]
    assert function.__qualname__ == "FirstOrLast"
    attachment.remove()


class WithRemovalCallbacks(Handler):
    def __init__(self, log):
        self.log = log

    def attach_to(self, attachment):
        for name in "ab":
            attachment.on_removal(lambda name=name: self.log.append(name))
        attachment.on(Events.STARTED, lambda engine: self.log.append("started"))


def test_removal_callbacks_run_once_in_reverse_order(engine):
    log = []
    attachment = WithRemovalCallbacks(log).attach(engine)
    assert attachment.is_attached
    run(engine, epochs=1)
    assert log == ["started"]
    attachment.remove()
    assert log == ["started", "b", "a"]
    assert not attachment.is_attached
    attachment.remove()
    run(engine, epochs=1)
    assert log == ["started", "b", "a"]


def test_removal_callbacks_find_the_attachment_removed(engine):
    seen = []

    class Looking(Handler):
        def attach_to(self, attachment):
            attachment.on_removal(
                lambda: seen.append((attachment.is_attached, attached_handlers(engine, Looking)))
            )

    with Looking().attach(engine):
        assert len(attached_handlers(engine, Looking)) == 1
    assert seen == [(False, [])]


def test_removal_callbacks_run_even_if_the_engine_is_gone():
    log, engine = [], plain_engine()
    attachment = WithRemovalCallbacks(log).attach(engine)
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
    attachment.remove()
    assert log == ["b", "a"]


# References


class ReferringToEngine(Handler):
    """A handler whose closures refer to the engine, as those of users often do."""

    def attach_to(self, attachment):
        engine = attachment.engine
        attachment.on(Events.STARTED, lambda _: engine.state, first=True)
        attachment.during_run(lambda _: self.scope(engine))
        attachment.on_removal(lambda: engine.state)

    @contextmanager
    def scope(self, engine):
        yield


@pytest.mark.parametrize("has_run", [False, True])
@pytest.mark.parametrize("make", [make_trainer, plain_engine])
def test_engine_is_freed_despite_handlers_that_refer_to_it(make, has_run):
    engine, handler = make(), ReferringToEngine()
    handler.attach(engine)
    if has_run:
        run(engine)
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("has_run", [False, True])
def test_handlers_and_attachments_do_not_keep_the_engine(engine, has_run, request):
    engine = make_trainer() if "trainer" in request.node.name else plain_engine()
    handler = Recorder(every_steps=2, every_epochs=1)
    attachments = [handler.attach(engine), handler.attach(engine, Events.STARTED)]
    if has_run:
        run(engine)
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
    for attachment in attachments:
        with pytest.raises(ReferenceError, match="the engine of this attachment"):
            _ = attachment.engine
        attachment.remove()
        attachment.remove()


def test_unreferenced_attachment_stays_attached(engine):
    handler = Recorder(every_steps=2)
    handler.attach(engine)
    gc.collect()
    run(engine, epochs=1)
    assert handler.iterations == [2, 4]


def test_unreferenced_handler_stays_attached(engine):
    seen = []
    handler = Recorder(every_epochs=1)
    object.__setattr__(handler, "seen", seen)
    handler.attach(engine)
    del handler
    gc.collect()
    run(engine, epochs=1)
    assert seen == [("", 1, 4)]


# Scopes


class WithRunScope(Handler):
    def __init__(self, log, name="", on_enter=None, on_exit=None):
        self.log, self.name, self.on_enter, self.on_exit = log, name, on_enter, on_exit

    def attach_to(self, attachment):
        attachment.during_run(self.scope)

    @contextmanager
    def scope(self, engine):
        if self.on_enter:
            raise self.on_enter
        self.log.append(f"enter {self.name}")
        try:
            yield
        except BaseException as error:
            self.log.append(f"{type(error).__name__} {self.name}")
            raise
        finally:
            self.log.append(f"leave {self.name}")
            if self.on_exit:
                raise self.on_exit


def test_scopes_are_entered_with_each_run_and_left_with_it(engine):
    log = []
    WithRunScope(log, "a").attach(engine)
    WithRunScope(log, "b").attach(engine)
    engine.add_event_handler(Events.STARTED, lambda: log.append("started"))
    engine.add_event_handler(Events.COMPLETED, lambda: log.append("completed"))
    for _ in range(2):
        log.clear()
        run(engine, epochs=1)
        assert log == ["enter a", "enter b", "started", "completed", "leave b", "leave a"]


def test_later_scope_failures_are_noted_and_all_scopes_close(engine):
    log, first = [], KeyError("first")
    later = {"a": OSError("a"), "c": ValueError("c")}
    for name in "abc":
        WithRunScope(log, name, on_exit=later.get(name)).attach(engine)

    def fail():
        raise first

    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), fail)
    with pytest.raises(KeyError) as caught:
        run(engine)
    assert caught.value is first
    closing = ["KeyError c", "leave c", "KeyError b", "leave b", "KeyError a", "leave a"]
    assert log[3:] == closing
    notes = getattr(first, "__notes__", ["ValueError('c')", "OSError('a')"])
    assert [repr(later[name]) in note for name, note in zip("ca", notes, strict=True)] == [True] * 2


def test_first_failure_while_closing_scopes_is_raised(engine):
    log, failure = [], ValueError("b")
    WithRunScope(log, "a", on_exit=OSError("a")).attach(engine)
    WithRunScope(log, "b", on_exit=failure).attach(engine)
    with pytest.raises(ValueError, match="b") as caught:
        run(engine)
    assert caught.value is failure
    assert log[2:] == ["leave b", "ValueError a", "leave a"]


def test_a_scope_that_fails_to_open_ends_the_run_before_it_begins(engine):
    log = []
    WithRunScope(log, "a").attach(engine)
    broken = WithRunScope(log, "b", on_enter=OSError("no")).attach(engine)
    engine.add_event_handler(Events.STARTED, lambda: log.append("started"))
    with pytest.raises(OSError, match="no"):
        run(engine, epochs=1)
    assert log == ["enter a", "OSError a", "leave a"]
    broken.remove()
    run(engine, epochs=1)
    assert log[3:] == ["enter a", "started", "leave a"]
