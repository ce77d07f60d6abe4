import gc
import inspect
import sys
import traceback
import weakref
from contextlib import AbstractContextManager
from contextlib import contextmanager
from contextlib import nullcontext
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from functools import wraps

import pytest
import torch
from ignite.engine import Engine

from ignite_hooks import HookContext
from ignite_hooks.hooks.context import Hook
from ignite_hooks.hooks.context import HookScope
from ignite_hooks.hooks.context import check_context
from ignite_hooks.hooks.context import describe
from ignite_hooks.hooks.context import name_of
from tests.ids import stable_id

FAILURES = [KeyError, StopIteration, GeneratorExit, KeyboardInterrupt, SystemExit]


@pytest.fixture
def engine():
    return Engine(lambda engine, batch: None)


def scope_of(context, engine, channel="on_step"):
    return HookScope(Hook(channel, context), engine)


def closed_after(scope, error):
    """Returns whether the scope handles a failure of its body, as in a ``with``."""
    try:
        raise error
    except BaseException:
        return scope.__exit__(*sys.exc_info())


# The forms of a context. Each function makes a context that records its arguments.


def generator(log):
    def context(engine):
        log.append(engine)
        try:
            yield
        except BaseException as error:
            log.append(error)
            raise
        log.append("left")

    return context


def decorated(log):
    return contextmanager(generator(log))


def manager_class(log):
    class Context:
        def __init__(self, engine):
            log.append(engine)

        def __enter__(self):
            return self

        def __exit__(self, kind, error, trace):
            assert kind is (None if error is None else type(error))
            assert trace is (None if error is None else error.__traceback__)
            log.append("left" if error is None else error)

    return Context


def factory(log):
    return lambda engine: manager_class(log)(engine)


def returning_a_generator(log):
    return lambda engine: generator(log)(engine)


def a_partial(log):
    def context(several, engine, *, twice):
        return twice(several)(engine)

    return partial(partial(context, log), twice=generator)


class Methods:
    def __init__(self, log):
        self.log = log

    def on_step(self, engine):
        self.log.append(engine)
        try:
            yield
        except BaseException as error:
            self.log.append(error)
            raise
        self.log.append("left")

    @classmethod
    def of_class(cls, log, engine):
        return cls(log).on_step(engine)

    def __call__(self, engine):
        return self.on_step(engine)

    def note(self, engine):
        self.log.append(engine)


def bound_method(log):
    return Methods(log).on_step


def bound_method_that_makes_a_manager(log):
    return manager_class(log).__call__


def of_a_class(log):
    return partial(Methods.of_class, log)


def callable_object(log):
    return Methods(log)


def two_functions(log):
    def after(engine):
        error = sys.exc_info()[1]
        log.append("left" if error is None else error)

    return HookContext(before=log.append, after=after)


FORMS = [
    generator,
    decorated,
    manager_class,
    factory,
    returning_a_generator,
    a_partial,
    bound_method,
    bound_method_that_makes_a_manager,
    of_a_class,
    callable_object,
    two_functions,
]


@pytest.mark.parametrize("form", FORMS)
def test_a_context_is_given_the_engine_and_left_at_the_end(form, engine):
    log = []
    context = form(log)
    check_context(context)
    scope = scope_of(context, engine)
    assert log == []
    scope.__enter__()
    assert log == [engine]
    assert scope.__exit__(None, None, None) is False
    assert log == [engine, "left"]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("form", FORMS)
def test_body_failure_reaches_the_context_and_is_not_handled(form, failure, engine):
    log, error = [], failure("of the body")
    scope = scope_of(form(log), engine)
    scope.__enter__()
    assert closed_after(scope, error) is False
    assert log[0] is engine
    assert log[1] is error
    assert len(log) == 2


@pytest.mark.parametrize("form", FORMS)
def test_a_context_can_be_used_many_times(form, engine):
    log = []
    context = form(log)
    for _ in range(2):
        with scope_of(context, engine):
            pass
    assert log == [engine, "left"] * 2


def test_uses_of_one_context_keep_separate_state(engine):
    log = []

    def context(engine):
        mine = len(log)
        log.append(f"+{mine}")
        yield
        log.append(f"-{mine}")

    with scope_of(context, engine), scope_of(context, engine):
        pass
    assert log == ["+0", "+1", "-1", "-0"]


# HookContext


def test_a_hook_context_may_have_one_side_only(engine):
    log = []
    with scope_of(HookContext(before=lambda engine: log.append("before")), engine):
        log.append("body")
    with scope_of(HookContext(after=lambda engine: log.append("after")), engine):
        log.append("body")
    assert log == ["before", "body", "body", "after"]


@pytest.mark.parametrize("failure", FAILURES)
def test_after_is_called_after_a_failure_too(failure, engine):
    called, error = [], failure()
    scope = scope_of(HookContext(after=called.append), engine)
    scope.__enter__()
    assert closed_after(scope, error) is False
    assert called == [engine]


def test_after_is_not_called_when_before_failed(engine):
    called, error = [], ValueError("before")

    def before(engine):
        raise error

    scope = scope_of(HookContext(before=before, after=called.append), engine)
    with pytest.raises(ValueError, match="before") as caught:
        scope.__enter__()
    assert caught.value is error
    assert closed_after(scope, error) is False
    assert scope.__exit__(None, None, None) is False
    assert called == []


def test_failure_of_after_is_raised_with_the_first_as_context(engine):
    first, later = KeyError("body"), ValueError("after")

    def after(engine):
        raise later

    scope = scope_of(HookContext(after=after), engine)
    scope.__enter__()
    with pytest.raises(ValueError, match="after") as caught:
        closed_after(scope, first)
    assert caught.value is later
    assert later.__context__ is first


def test_a_hook_context_is_hashable_by_identity_and_frozen():
    # Two contexts of the same functions are different, as their registrations are.
    assert HookContext(before=print) != HookContext(before=print)
    assert len({HookContext(before=print), HookContext(before=print)}) == 2
    with pytest.raises(AttributeError):
        HookContext(before=print).after = print


def test_a_hook_context_shows_its_functions():
    assert repr(HookContext(before=print)) == "HookContext(before=print)"
    assert repr(HookContext(after=Methods([]).note)) == "HookContext(after=Methods.note)"
    both = HookContext(before=partial(print, "a"), after=Methods([]))
    assert repr(both) == "HookContext(before=print, after=Methods)"


# A generator and the failure of the body


def test_generator_returning_after_a_catch_handles_the_failure(engine):
    def context(engine):
        try:
            yield
        except KeyError:
            return

    scope = scope_of(context, engine)
    scope.__enter__()
    assert closed_after(scope, KeyError()) is True


@pytest.mark.parametrize("failure", FAILURES)
def test_a_context_can_handle_any_failure(failure, engine):
    def context(engine):
        with suppress(failure):
            yield

    scope = scope_of(context, engine)
    scope.__enter__()
    assert closed_after(scope, failure()) is True


def test_a_manager_handles_a_failure_by_returning_true(engine):
    class Context(AbstractContextManager):
        def __exit__(self, *failure):
            return True

    scope = scope_of(lambda engine: Context(), engine)
    scope.__enter__()
    assert closed_after(scope, KeyError()) is True


def test_later_generator_failure_has_the_first_as_context(engine):
    first, later = KeyError("body"), OSError("on the way out")

    def context(engine):
        try:
            yield
        finally:
            raise later

    scope = scope_of(context, engine)
    scope.__enter__()
    with pytest.raises(OSError, match="on the way out") as caught:
        closed_after(scope, first)
    assert caught.value is later
    assert later.__context__ is first
    assert first.__context__ is None


def test_a_failure_on_a_clean_way_out_leaves(engine):
    error = OSError()

    def context(engine):
        yield
        raise error

    scope = scope_of(context, engine)
    scope.__enter__()
    with pytest.raises(OSError) as caught:  # noqa: PT011
        scope.__exit__(None, None, None)
    assert caught.value is error


def test_runtime_error_is_not_mistaken_for_stop_iteration(engine):
    # A StopIteration that a generator lets pass leaves it as the cause of a RuntimeError, and that
    # is the same failure. A RuntimeError of anything else is another.
    def context(engine):
        try:
            yield
        finally:
            raise RuntimeError("of the generator")

    for failure in (StopIteration, KeyError):
        scope = scope_of(context, engine)
        scope.__enter__()
        with pytest.raises(RuntimeError, match="of the generator"):
            closed_after(scope, failure())


def test_runtime_error_caused_by_the_failure_is_a_new_failure(engine):
    def context(engine):
        try:
            yield
        except KeyError as error:
            raise RuntimeError("of the generator") from error

    scope = scope_of(context, engine)
    scope.__enter__()
    with pytest.raises(RuntimeError, match="of the generator"):
        closed_after(scope, KeyError())


@pytest.mark.parametrize("form", FORMS)
def test_the_traceback_of_a_failure_is_left_as_it_was(form, engine):
    scope = scope_of(form([]), engine)
    scope.__enter__()
    with pytest.raises(KeyError) as caught:
        raise KeyError("body")
    error, before = caught.value, caught.tb
    frames = traceback.extract_tb(before)
    scope.__exit__(KeyError, error, before)
    assert error.__traceback__ is before
    assert traceback.extract_tb(before) == frames


def test_the_traceback_is_left_as_it_was_by_a_context_that_fails(engine):
    def context(engine):
        try:
            yield
        finally:
            raise OSError

    scope = scope_of(context, engine)
    scope.__enter__()
    with pytest.raises(KeyError) as caught:
        raise KeyError("body")
    with pytest.raises(OSError):  # noqa: PT011
        scope.__exit__(KeyError, caught.value, caught.tb)
    assert caught.value.__traceback__ is caught.tb


def test_a_scope_that_was_left_keeps_no_failure_alive(engine):
    class Failure(Exception):
        pass

    scope = scope_of(HookContext(before=lambda engine: None), engine)
    scope.__enter__()
    gc.collect()
    gc.disable()
    try:
        try:
            raise Failure
        except Failure as error:
            scope.__exit__(Failure, error, error.__traceback__)
            failure = weakref.ref(error)
        assert failure() is None
    finally:
        gc.enable()


# Closing what is not open


def closes_without_doing_anything(scope):
    return scope.__exit__(None, None, None) is False and all(
        closed_after(scope, failure("later")) is False for failure in FAILURES
    )


@pytest.mark.parametrize("form", FORMS)
def test_closing_a_scope_that_is_closed_does_nothing(form, engine):
    log = []
    scope = scope_of(form(log), engine)
    scope.__enter__()
    scope.__exit__(None, None, None)
    assert closes_without_doing_anything(scope)
    assert log == [engine, "left"]


@pytest.mark.parametrize("form", FORMS)
def test_closing_a_scope_that_a_failure_has_closed_does_nothing(form, engine):
    log, error = [], KeyError()
    scope = scope_of(form(log), engine)
    scope.__enter__()
    closed_after(scope, error)
    assert closes_without_doing_anything(scope)
    assert closed_after(scope, error) is False
    assert log[0] is engine
    assert log[1] is error
    assert len(log) == 2


@pytest.mark.parametrize("form", FORMS)
def test_closing_a_scope_that_was_never_opened_does_nothing(form, engine):
    log = []
    assert closes_without_doing_anything(scope_of(form(log), engine))
    assert log == []


def test_closing_a_scope_that_failed_to_open_does_nothing(engine):
    log, error = [], ValueError("on the way in")

    def fails(engine):
        log.append("in")
        raise error

    def fails_before_its_yield(engine):
        log.append("in")
        raise error
        yield

    @contextmanager
    def manager_that_fails(engine):
        log.append("in")
        raise error
        yield

    for context in (fails, fails_before_its_yield, manager_that_fails):
        scope = scope_of(context, engine)
        with pytest.raises(ValueError, match="on the way in") as caught:
            scope.__enter__()
        assert caught.value is error
        assert closes_without_doing_anything(scope)
    assert log == ["in"] * 3


# Errors that are found only on use: the message has the name, the file and the channel


def assert_names(error, function, channel, *parts):
    code = getattr(function, "__code__", None)
    message = str(error)
    assert message.startswith(f"the context `{function.__qualname__}`")
    assert f"({__file__}, line {code.co_firstlineno})" in message
    assert f" {channel} " in message
    for part in parts:
        assert part in message


def test_generator_without_yield_is_named_with_file_and_channel(engine):
    def silent(engine):
        if engine is None:
            yield

    scope = scope_of(silent, engine, "on_epoch")
    with pytest.raises(RuntimeError) as caught:
        scope.__enter__()
    assert_names(caught.value, silent, "on_epoch", "must yield once", "did not", "`yield`")
    assert closes_without_doing_anything(scope)


def test_generator_yielding_twice_is_named_with_file_and_channel(engine):
    log = []

    def twice(engine):
        try:
            yield
            yield
        finally:
            log.append("closed")

    scope = scope_of(twice, engine, "on_model_forward")
    scope.__enter__()
    with pytest.raises(RuntimeError) as caught:
        scope.__exit__(None, None, None)
    assert_names(caught.value, twice, "on_model_forward", "must yield once", "twice", "end after")
    assert log == ["closed"]
    assert closes_without_doing_anything(scope)


def test_generator_yielding_after_a_failure_is_named_and_closed(engine):
    log, error = [], KeyError("body")

    def twice(engine):
        try:
            yield
        except KeyError:
            try:
                yield
            finally:
                log.append("closed")

    scope = scope_of(twice, engine, "on_batch")
    scope.__enter__()
    with pytest.raises(RuntimeError) as caught:
        closed_after(scope, error)
    assert_names(caught.value, twice, "on_batch", "must yield once", "twice")
    assert caught.value.__context__ is error
    assert log == ["closed"]
    assert closes_without_doing_anything(scope)


@pytest.mark.parametrize("made", [None, 3, "context", [1], Engine, iter([1])], ids=stable_id)
def test_function_making_no_context_manager_is_named_with_file(made, engine):
    def nothing(engine):
        return made

    scope = scope_of(nothing, engine, "on_loop")
    with pytest.raises(TypeError) as caught:
        scope.__enter__()
    assert_names(
        caught.value, nothing, "on_loop", f"it returned {made!r}", "context manager", "`yield`"
    )
    assert closed_after(scope, caught.value) is False
    assert closes_without_doing_anything(scope)


# Errors that are found at registration


async def coroutine(engine):
    pass


async def async_generator(engine):
    yield


class AsyncCallable:
    async def __call__(self, engine):
        pass

    async def method(self, engine):
        yield


@pytest.mark.parametrize(
    "context",
    [
        coroutine,
        async_generator,
        partial(coroutine),
        partial(partial(async_generator)),
        AsyncCallable(),
        AsyncCallable().method,
    ],
    ids=name_of,
)
def test_an_async_function_is_refused_as_a_context(context):
    with pytest.raises(TypeError, match=r"^`context` must not be async, got `.*with def$") as e:
        check_context(context)
    assert name_of(context) in str(e.value)
    assert f"({__file__}, line " in str(e.value)


def one_yield(engine):
    yield


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("function", [coroutine, async_generator, one_yield, partial(one_yield)])
def test_async_or_generator_function_is_refused_as_hook_side(function, side):
    is_async = function in (coroutine, async_generator)
    rule = "not be async" if is_async else "be a function without `yield`"
    with pytest.raises(TypeError, match=rf"^`{side}` must {rule}, got `{name_of(function)}` "):
        HookContext(**{"before": print, "after": print, side: function})


@pytest.mark.parametrize(
    "manager",
    [torch.no_grad(), nullcontext(), torch.profiler.record_function("step"), decorated([])(None)],
    ids=lambda manager: type(manager).__name__,
)
def test_context_manager_instance_is_refused_with_a_remedy(manager):
    with pytest.raises(TypeError) as caught:
        check_context(manager)
    message = str(caught.value)
    assert message.startswith("`context` must be a function that makes a context manager, got ")
    assert repr(manager) in message
    assert message.endswith("pass lambda engine: ... that makes a new one each time")


NOT_CALLABLE = [None, 3, "step", [print], object()]


@pytest.mark.parametrize("value", NOT_CALLABLE, ids=lambda value: type(value).__name__)
def test_context_must_be_callable(value):
    with pytest.raises(TypeError) as caught:
        check_context(value)
    assert str(caught.value) == (
        f"`context` must be a function of the engine, got {value!r}: def f(engine): ..."
    )


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("value", NOT_CALLABLE[1:], ids=lambda value: type(value).__name__)
def test_hook_context_side_must_be_callable(value, side):
    with pytest.raises(TypeError) as caught:
        HookContext(**{"before": print, "after": print, side: value})
    assert str(caught.value) == (
        f"`{side}` must be a function of the engine, got {value!r}: def f(engine): ..."
    )


def no_argument():
    yield


def two_arguments(engine, batch):
    yield


def keyword_needed(engine, *, size):
    yield


class TakesNothing:
    def __enter__(self):
        return self

    def __exit__(self, *failure):
        pass

    def method(self):
        yield


OTHER_SIGNATURES = {
    "none": (no_argument, "()"),
    "two": (two_arguments, "(engine, batch)"),
    "a keyword": (keyword_needed, "(engine, *, size)"),
    "a class": (TakesNothing, "()"),
    "a method": (TakesNothing().method, "()"),
    "one too many": (partial(two_arguments, None, None), "()"),
    "decorated": (contextmanager(no_argument), "()"),
    "a lambda": (lambda: None, "()"),
}


@pytest.mark.parametrize("which", OTHER_SIGNATURES)
def test_the_error_for_wrong_arguments_shows_the_signature(which):
    function, signature = OTHER_SIGNATURES[which]
    told = f"must take the engine as its one argument, got {describe(function)}"
    for argument, make in (
        ("context", check_context),
        ("before", lambda value: HookContext(before=value)),
        ("after", lambda value: HookContext(before=print, after=value)),
    ):
        with pytest.raises(TypeError) as caught:
            make(function)
        message = str(caught.value)
        assert message.startswith(f"`{argument}` {told}, which takes {signature}")
        assert message.endswith(": lambda engine: ...")
        # Python's own words on the call that was tried say nothing more.
        assert caught.value.__suppress_context__


def test_a_hook_context_without_functions_is_an_error():
    with pytest.raises(ValueError, match=r"must have `before` or `after` or both, got neither: "):
        HookContext()


def test_a_hook_context_takes_keywords_only():
    with pytest.raises(TypeError):
        HookContext(print)


def test_optional_arguments_do_no_harm():
    check_context(lambda engine, size=1, *more, **options: None)
    check_context(lambda *arguments: None)
    HookContext(before=lambda engine, size=1: None)


def test_c_function_of_unknown_signature_is_checked_on_first_use(engine):
    with pytest.raises(ValueError, match="signature"):  # the precondition of this test
        inspect.signature(dict)
    check_context(dict)
    with pytest.raises(TypeError):
        scope_of(dict, engine).__enter__()


# Names


def sample(engine):
    pass


def test_a_context_is_described_by_name_file_and_line():
    line = no_argument.__code__.co_firstlineno
    told = f"`no_argument` ({__file__}, line {line})"
    assert describe(no_argument) == told
    inner = partial(no_argument)
    inner.tag = "keeps Python from making one partial of the two"
    assert describe(partial(inner)) == told
    # The decorated function is where the author wrote it, not in contextlib.
    assert describe(contextmanager(no_argument)) == told
    code = sample.__code__
    assert describe(HookContext(after=sample)) == (
        f"`HookContext(after=sample)` ({__file__}, line {code.co_firstlineno})"
    )


def test_methods_and_objects_are_described_by_their_function():
    method, call = Methods.on_step.__code__, Methods.__call__.__code__
    on_step = f"`Methods.on_step` ({__file__}, line {method.co_firstlineno})"
    assert describe(Methods([]).on_step) == on_step
    assert describe(Methods([])) == f"`Methods` ({__file__}, line {call.co_firstlineno})"
    init = Methods.__init__.__code__
    assert describe(Methods) == f"`Methods` ({__file__}, line {init.co_firstlineno})"


def test_function_without_a_file_is_described_by_its_name():
    assert describe(print) == "`print`"
    assert describe(dict) == "`dict`"
    assert name_of(partial(partial(print, 1), 2)) == "print"


def test_a_scope_shows_its_context_and_channel(engine):
    scope = scope_of(no_argument, engine, "on_optimizer_step")
    assert str(scope).startswith(f"the context {describe(no_argument)} on ")
    assert str(scope).endswith(" on_optimizer_step")


def test_failure_raised_from_stop_iteration_is_a_new_failure(engine):
    def renaming(engine):
        try:
            yield
        except StopIteration as error:
            raise ValueError("mine") from error

    scope = scope_of(renaming, engine)
    scope.__enter__()
    with pytest.raises(ValueError, match="mine"):
        closed_after(scope, StopIteration())


def test_a_failure_with_frozen_attributes_passes(engine):
    @dataclass(frozen=True)
    class Frozen(Exception):
        number: int = 1

    def waiting(engine):
        yield

    scope = scope_of(waiting, engine)
    scope.__enter__()
    assert closed_after(scope, Frozen()) is False


def with_number(function):
    @wraps(function)
    def called_with_the_engine(engine):
        return function(engine, 7)

    return called_with_the_engine


def test_the_decorated_function_is_called_not_the_original(engine):
    log = []

    @with_number
    def context(engine, number):
        log.append(number)
        yield

    @with_number
    @contextmanager
    def manager(engine, number):
        log.append(number)
        yield

    @contextmanager
    @with_number
    def managed(engine, number):
        log.append(number)
        yield

    def drained(function):
        @wraps(function)
        def drain(engine):
            log.extend(function(engine))

        return drain

    @drained
    def items(engine):
        yield "item"

    for each in (context, manager, managed, HookContext(before=items)):
        check_context(each)
        scope = scope_of(each, engine)
        scope.__enter__()
        closed_after(scope, KeyError())
    assert log == [7, 7, 7, "item"]


def test_a_context_that_fails_when_called_is_named(engine):
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 has no add_note")

    def wants_a_name(engine):
        return len(engine)

    with pytest.raises(TypeError) as caught:
        scope_of(wants_a_name, engine, "on_epoch").__enter__()
    (note,) = caught.value.__notes__
    assert "wants_a_name" in note
    assert f"({__file__}, line {wants_a_name.__code__.co_firstlineno})" in note
    assert "on_epoch" in note
