import gc
import weakref
from contextlib import contextmanager
from functools import partial

import pytest
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.run_scope import enter_at_each_run
from tests.reference import batches_of
from tests.reference import make_trainer


def plain_engine():
    return Engine(lambda engine, batch: None)


@pytest.fixture(params=["engine", "trainer"])
def engine(request):
    return make_trainer() if request.param == "trainer" else plain_engine()


def logging_scope(log, name=""):
    @contextmanager
    def scope(engine):
        log.append(f"enter {name}")
        yield
        log.append(f"leave {name}")

    return scope


def run(engine):
    return engine.run(batches_of(3), max_epochs=1)


def test_run_is_wrapped_and_unwrapped_on_the_instance_alone():
    engine, other = plain_engine(), plain_engine()
    remove = enter_at_each_run(engine, logging_scope([]))
    assert "run" in vars(engine)
    assert "run" not in vars(other)
    assert engine.run.__name__ == "run"
    assert engine.run.__doc__ == Engine.run.__doc__
    remove()
    assert "run" not in vars(engine)


def test_run_is_wrapped_once_for_all_scopes():
    engine, log = plain_engine(), []
    first = enter_at_each_run(engine, logging_scope(log, "a"))
    wrapper = vars(engine)["run"]
    second = enter_at_each_run(engine, logging_scope(log, "b"))
    assert vars(engine)["run"] is wrapper
    first()
    assert vars(engine)["run"] is wrapper
    run(engine)
    assert log == ["enter b", "leave b"]
    second()
    assert "run" not in vars(engine)


def test_run_returns_the_state_and_takes_all_arguments(engine):
    enter_at_each_run(engine, logging_scope([]))
    assert engine.run(batches_of(3), 2, epoch_length=2) is engine.state
    assert engine.state.iteration == 4


def test_run_overridden_on_the_instance_is_called_and_restored(engine):
    calls, log = [], []
    own = partial(type(engine).run, engine)

    def watched(*args, **kwargs):
        calls.append(args)
        return own(*args, **kwargs)

    if "run" in vars(engine):
        own = engine.run
    engine.run = watched
    remove = enter_at_each_run(engine, logging_scope(log))
    run(engine)
    remove()
    run(engine)
    assert len(calls) == 2
    assert log == ["enter ", "leave "]
    assert engine.run is watched or "run" in vars(engine)


def test_outer_wrapper_of_run_survives_removal_of_the_scope():
    engine, calls, log = plain_engine(), [], []
    remove = enter_at_each_run(engine, logging_scope(log))
    inner = engine.run

    def outer(*args, **kwargs):
        calls.append("outer")
        return inner(*args, **kwargs)

    engine.run = outer
    run(engine)
    assert log == ["enter ", "leave "]
    remove()
    run(engine)
    assert engine.run is outer
    assert calls == ["outer"] * 2
    assert log == ["enter ", "leave "]


def test_scope_beneath_an_outer_wrapper_is_entered_once():
    engine, log = plain_engine(), []
    remove = enter_at_each_run(engine, logging_scope(log, "a"))
    inner = engine.run
    engine.run = lambda *args, **kwargs: inner(*args, **kwargs)
    remove()
    enter_at_each_run(engine, logging_scope(log, "b"))
    run(engine)
    assert log == ["enter b", "leave b"]


def test_scope_added_during_a_run_is_entered_and_left_with_it(engine):
    log = []
    enter_at_each_run(engine, logging_scope(log, "a"))

    @engine.on(Events.ITERATION_COMPLETED(once=2))
    def add():
        enter_at_each_run(engine, logging_scope(log, "b"))
        log.append("added")

    engine.add_event_handler(Events.COMPLETED, lambda: log.append("completed"))
    run(engine)
    assert log == ["enter a", "enter b", "added", "completed", "leave b", "leave a"]


def test_first_scope_added_during_a_plain_run_waits_for_the_next():
    engine, log = plain_engine(), []
    adding = engine.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda: enter_at_each_run(engine, logging_scope(log))
    )
    engine.add_event_handler(Events.COMPLETED, lambda: log.append("completed"))
    run(engine)
    assert log == ["completed"]
    adding.remove()
    run(engine)
    assert log[1:] == ["enter ", "completed", "leave "]


def test_a_scope_removed_in_a_run_is_left_at_once_and_only_once(engine):
    log = []
    remove = enter_at_each_run(engine, logging_scope(log, "a"))
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: remove())
    engine.add_event_handler(Events.COMPLETED, lambda: log.append("completed"))
    run(engine)
    run(engine)
    assert log == ["enter a", "leave a", "completed", "completed"]


def test_a_scope_written_as_a_class_is_left_only_once(engine):
    log = []

    class Scope:
        def __enter__(self):
            log.append("enter")

        def __exit__(self, *failure):
            log.append("leave")

    remove = enter_at_each_run(engine, lambda engine: Scope())
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: remove())
    run(engine)
    remove()
    assert log == ["enter", "leave"]


def test_a_scope_added_after_a_run_waits_for_the_next(engine):
    log = []
    enter_at_each_run(engine, logging_scope(log, "a"))
    run(engine)
    enter_at_each_run(engine, logging_scope(log, "b"))
    assert log == ["enter a", "leave a"]
    run(engine)
    assert log[2:] == ["enter a", "enter b", "leave b", "leave a"]


def test_a_scope_sees_the_failure_that_ends_the_run(engine):
    seen, error = [], KeyError()

    @contextmanager
    def scope(engine):
        try:
            yield
        except BaseException as failure:
            seen.append(failure)
            raise

    def fail():
        raise error

    enter_at_each_run(engine, scope)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), fail)
    with pytest.raises(KeyError) as caught:
        run(engine)
    assert caught.value is error
    assert seen == [error]


def test_scope_is_left_at_interrupt_and_reentered_on_continue(engine):
    log = []
    enter_at_each_run(engine, logging_scope(log))
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.interrupt)
    run(engine)
    assert log == ["enter ", "leave "]
    run(engine)
    assert log == ["enter ", "leave "] * 2


@pytest.mark.parametrize("has_own_run", [False, True])
def test_no_reference_keeps_the_engine(has_own_run):
    engine = plain_engine()
    if has_own_run:
        engine.run = partial(Engine.run, engine)
    remove = enter_at_each_run(engine, logging_scope([]))
    run(engine)
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
    remove()


def test_engine_created_and_run_in_one_expression_stays_alive():
    def made():
        engine = plain_engine()
        enter_at_each_run(engine, logging_scope([]))
        return engine

    state = made().run([0, 1])  # an assert would keep the engine
    assert state.iteration == 2
