"""The channel around a validation, on a trainer and on a plain Ignite engine."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks import HookContext
from ignite_hooks import Hooks
from ignite_hooks import OptimizerStep
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from tests.reference import Log
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import noting
from tests.reference import weights

WITHIN = ("VALIDATION_STARTED", "evaluation", "VALIDATION_COMPLETED")


class Broken(Exception):
    pass


def on_trainer():
    trainer = make_trainer(batches_of(2))
    return trainer, trainer.hooks


def on_plain_engine():
    accelerator, model = Accelerator(cpu=True), make_model(dropout=0.0)
    engine = Engine(
        lambda engine, batch: accelerator.backward(F.mse_loss(model(batch[0]), batch[1]))
    )
    engine.model = model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    OptimizerStep(accelerator, optimizer).attach(engine)
    hooks = Hooks()
    hooks.attach(engine)
    return engine, hooks


@pytest.fixture(params=[on_trainer, on_plain_engine], ids=["trainer", "plain engine"])
def made(request):
    """Returns an engine, its hooks and a log; the validation fails at the given place."""
    engine, hooks = request.param()
    log = Log()
    made = SimpleNamespace(engine=engine, hooks=hooks, log=log, fails_at=None)

    def note(name):
        log.append(name)
        if name == made.fails_at:
            raise Broken

    def add_events():
        for event in (TrainEvents.VALIDATION_STARTED, TrainEvents.VALIDATION_COMPLETED):
            engine.add_event_handler(event, lambda engine: note(engine.last_event_name.name))

    made.validation = Validation(lambda: note("evaluation"), every_steps=2)
    made.validation.attach(engine)
    made.add_events = add_events
    return made


@pytest.mark.parametrize("is_early", [True, False])
def test_channel_is_around_all_handlers_of_a_validation(is_early, made):
    if is_early:
        made.add_events()
    made.hooks.register("on_validation", noting(made.log, "a"))
    made.hooks.register("on_validation", noting(made.log, "b"))
    if not is_early:
        made.add_events()
    made.engine.run(batches_of(4))
    assert made.log == ["+a", "+b", *WITHIN, "-b", "-a"] * 2


def with_temporary_weights(engine):
    kept = [parameter.detach().clone() for parameter in engine.model.parameters()]
    with torch.no_grad():
        for parameter in engine.model.parameters():
            parameter.zero_()
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(engine.model.parameters(), kept, strict=True):
                parameter.copy_(value)


@pytest.mark.parametrize("where", WITHIN)
def test_channel_is_left_before_the_handlers_of_the_failure(where, made):
    made.add_events()
    made.fails_at = where
    made.hooks.register("on_validation", noting(made.log, "a"))
    opened = []

    @made.engine.on(Events.EXCEPTION_RAISED)
    def look(error):
        opened.append((list(made.log.open), error))
        raise error

    with pytest.raises(Broken) as caught:
        made.engine.run(batches_of(2))
    assert opened[0] == ([], caught.value)
    assert made.log.failed == [("-a", caught.value)]


@pytest.mark.parametrize("where", [*WITHIN, "entering", "leaving"])
def test_training_continues_after_a_caught_failure(where, made):
    """Training continues with its own weights, as if there had been no validation."""
    made.add_events()
    made.fails_at = where
    made.hooks.register("on_validation", with_temporary_weights)

    def fail(engine):
        made.log.append(where)
        raise Broken

    if where in ("entering", "leaving"):
        side = {"entering": "before", "leaving": "after"}[where]
        made.hooks.register("on_validation", HookContext(**{side: fail}))
    caught = []

    @made.engine.on(Events.ITERATION_COMPLETED(once=1))
    def validate(engine):
        before = weights(engine.model)
        try:
            made.validation(engine)
        except Broken as error:
            caught.append(error)
        assert torch.equal(weights(engine.model), before)
        assert not before.eq(0).all()
        made.fails_at = None
        made.hooks.unregister_all()

    made.engine.run(batches_of(3))
    assert made.engine.state.iteration == 3
    assert made.engine.state.validation == 1
    assert len(caught) == 1
    assert made.log[-3:] == [*WITHIN]
    unbroken = make_trainer(batches_of(3))
    unbroken.run()
    assert torch.equal(weights(made.engine.model), weights(unbroken.model))


def test_context_failing_to_leave_lets_the_others_leave_at_once(made):
    made.hooks.register("on_validation", noting(made.log, "outer"))

    @made.hooks.on("on_validation")
    def fail(engine):
        try:
            yield
        finally:
            raise Broken

    made.hooks.register("on_validation", noting(made.log, "inner"))
    opened = []

    @made.engine.on(Events.EXCEPTION_RAISED)
    def look(error):
        opened.append(list(made.log.open))
        raise error

    with pytest.raises(Broken) as caught:
        made.engine.run(batches_of(2))
    assert opened[0] == []
    assert made.log == [
        "+outer",
        "+inner",
        "evaluation",
        "-inner",
        ("-outer", caught.value),
    ]


def test_context_failing_to_enter_lets_the_others_leave_at_once(made):
    made.hooks.register("on_validation", noting(made.log, "outer"))
    made.hooks.register("on_validation", HookContext(before=lambda engine: 1 / 0))
    opened = []

    @made.engine.on(Events.EXCEPTION_RAISED)
    def look(error):
        opened.append(list(made.log.open))
        raise error

    with pytest.raises(ZeroDivisionError) as caught:
        made.engine.run(batches_of(2))
    assert opened[0] == []
    assert made.log == ["+outer", ("-outer", caught.value)]


def stopping(engine):
    try:
        yield
    except Broken:
        engine.terminate()


@pytest.mark.parametrize("where", [*WITHIN, "leaving"])
def test_a_context_can_end_a_failed_validation_cleanly(where, made):
    made.add_events()
    made.fails_at = where
    made.hooks.register("on_validation", noting(made.log, "outer"))
    made.hooks.register("on_validation", stopping)
    if where == "leaving":

        @made.hooks.on("on_validation")
        def fail(engine):
            try:
                yield
            finally:
                raise Broken

    raised = []
    made.engine.add_event_handler(Events.EXCEPTION_RAISED, raised.append)
    made.engine.run(batches_of(4))
    assert raised == []
    assert made.engine.state.iteration == 2
    assert made.engine.state.optimizer_step == 2
    assert made.log[-1] == "-outer"
    assert made.log.failed == []


@pytest.mark.parametrize("method", ["terminate", "interrupt"])
def test_a_request_within_a_validation_is_obeyed_after_it(method, made):
    made.add_events()
    before = HookContext(before=lambda engine: getattr(engine, method)())
    made.hooks.register("on_validation", before)
    made.hooks.register("on_validation", noting(made.log, "a"))
    made.engine.run(batches_of(4))
    assert made.engine.state.iteration == 2
    assert made.log == ["+a", *WITHIN, "-a"]
    if method == "interrupt":
        made.engine.run()
        assert made.log == ["+a", *WITHIN, "-a"] * 2


def test_stop_requested_before_a_failed_validation_changes_nothing(made):
    @made.hooks.on("on_validation")
    def swallow(engine):
        try:
            yield
        except Broken:
            made.log.append("swallowed")

    @made.engine.on(TrainEvents.VALIDATION_STARTED)
    def stop_and_fail(engine):
        engine.terminate()
        raise Broken

    with pytest.raises(Broken):
        made.engine.run(batches_of(2))
    assert made.log == ["swallowed"]


def test_stop_requested_before_a_failure_that_is_caught_is_obeyed(made):
    made.fails_at = "evaluation"
    made.hooks.register("on_validation", noting(made.log, "a"))

    @made.engine.on(Events.ITERATION_COMPLETED(once=1))
    def stop_and_validate(engine):
        engine.terminate()
        with pytest.raises(Broken):
            made.validation(engine)

    made.engine.run(batches_of(4))
    assert made.engine.state.iteration == 1


def test_terminate_without_a_catch_does_not_end_a_failure(made):
    made.fails_at = "evaluation"

    @made.hooks.on("on_validation")
    def stop_too_late(engine):
        try:
            yield
        finally:
            engine.terminate()

    @made.engine.on(Events.ITERATION_COMPLETED(once=1))
    def validate(engine):
        with pytest.raises(Broken):
            made.validation(engine)
        made.fails_at = None
        made.hooks.unregister_all()

    made.engine.run(batches_of(4))
    assert made.engine.state.iteration == 4


def fail_on_the_way_out(engine):
    try:
        yield
    finally:
        raise ValueError


def test_a_failure_remains_if_an_inner_context_failed_on_exit(made):
    made.fails_at = "evaluation"
    made.hooks.register("on_validation", noting(made.log, "outer"))
    made.hooks.register("on_validation", stopping)
    made.hooks.register("on_validation", fail_on_the_way_out)
    with pytest.raises(Broken) as caught:
        made.engine.run(batches_of(2))
    assert made.log == ["+outer", "evaluation", ("-outer", caught.value)]


def test_a_caught_failure_on_the_way_out_is_handled(made):
    """A later failure that handlers of EXCEPTION_RAISED handle does not raise it again."""
    made.fails_at = "evaluation"
    made.hooks.register("on_validation", fail_on_the_way_out)

    @made.engine.on(Events.ITERATION_COMPLETED(once=1))
    def validate(engine):
        with pytest.raises(Broken):
            made.validation(engine)
        raise Broken

    raised = []
    made.engine.add_event_handler(Events.EXCEPTION_RAISED, raised.append)
    made.engine.run(batches_of(1))
    assert len(raised) == 1


def test_nested_validations_leave_all_contexts(made):
    made.hooks.register("on_validation", noting(made.log, "a"))
    inner = Validation(lambda: made.log.append("inner"))

    @made.engine.on(TrainEvents.VALIDATION_COMPLETED(once=1))
    def validate_within(engine):
        inner(engine)

    made.engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: made.log.append("epoch"))
    made.engine.run(batches_of(3))
    assert made.log == ["+a", "evaluation", "+a", "inner", "-a", "-a", "epoch"]
