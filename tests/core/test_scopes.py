import sys
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import pytest

from ignite_hooks.core.scopes import NULL_CONTEXT
from ignite_hooks.core.scopes import ScopeStack
from ignite_hooks.core.scopes import add_note


class Scope:
    def __init__(self, name, log, failure=None, swallows=False):
        self.name, self.log, self.failure, self.swallows = name, log, failure, swallows

        self.is_open = False

    def __enter__(self):
        self.log.append(f"enter {self.name}")
        self.is_open = True

    def __exit__(self, kind, error, traceback):
        assert kind is (type(error) if error else None)
        if not self.is_open:
            return False
        self.is_open = False
        self.log.append((f"exit {self.name}", error))
        if self.failure is not None:
            raise self.failure
        return self.swallows


def run_in(*scopes, failure=None):
    run_on(ScopeStack(), *scopes, failure=failure)


def run_on(stack, *scopes, failure=None):
    with stack as entered:
        assert entered is stack
        for scope in scopes:
            stack.enter(scope)
        if failure is not None:
            raise failure


def notes_of(error):
    return getattr(error, "__notes__", [])


def test_scopes_close_in_reverse_order():
    log = []
    with ScopeStack() as scopes:
        for name in "ab":
            scopes.enter(Scope(name, log))
        log.append("body")
    assert log == ["enter a", "enter b", "body", ("exit b", None), ("exit a", None)]


def test_each_scope_sees_the_failure_and_cannot_swallow_it():
    log, error = [], KeyError("body")
    with pytest.raises(KeyError) as caught:
        run_in(Scope("a", log), Scope("b", log, swallows=True), failure=error)
    assert caught.value is error
    assert log[2:] == [("exit b", error), ("exit a", error)]


def test_failure_while_closing_is_noted_and_the_others_close():
    log, first = [], KeyError("body")
    later = [ValueError("b"), KeyboardInterrupt("c")]
    scopes = [Scope("a", log), Scope("b", log, later[0]), Scope("c", log, later[1])]
    with pytest.raises(KeyError) as caught:
        run_in(*scopes, failure=first)
    assert caught.value is first
    assert log[3:] == [("exit c", first), ("exit b", first), ("exit a", first)]
    assert all(each.__context__ is first for each in later)
    if sys.version_info >= (3, 11):
        assert [
            repr(failure) in text
            for failure, text in zip(later[::-1], notes_of(first), strict=True)
        ] == [
            True,
            True,
        ]


def test_first_failure_while_closing_is_raised():
    log, first, later = [], ValueError("c"), OSError("b")
    with pytest.raises(ValueError, match="c") as caught:
        run_in(Scope("a", log), Scope("b", log, later), Scope("c", log, first))
    assert caught.value is first
    assert later.__context__ is first
    assert log[3:] == [("exit c", None), ("exit b", first), ("exit a", first)]
    if sys.version_info >= (3, 11):
        assert len(notes_of(first)) == 1


def test_a_scope_that_raises_the_same_failure_again_is_not_noted():
    error = KeyError("body")

    @contextmanager
    def scope():
        yield

    with pytest.raises(KeyError) as caught:
        run_in(scope(), Scope("again", [], failure=error), failure=error)
    assert caught.value is error
    assert notes_of(error) == []


def test_scope_failing_to_open_is_not_closed_but_others_are():
    log = []

    @contextmanager
    def broken():
        raise FileNotFoundError
        yield

    with pytest.raises(FileNotFoundError):
        run_in(Scope("a", log), broken())
    assert [entry[0] for entry in log[1:]] == ["exit a"]


def test_scope_failing_to_close_is_closed_only_once():
    log, steps, error = [], [], ValueError("after")

    @contextmanager
    def fails_after():
        try:
            steps.append("in")
            yield
        finally:
            steps.append("out")
            raise error

    with pytest.raises(ValueError, match="after") as caught:
        run_in(Scope("a", log), fails_after())
    assert caught.value is error
    assert steps == ["in", "out"]
    assert log[1:] == [("exit a", error)]
    assert notes_of(error) == []


# leave


def test_leave_keeps_only_the_first_scopes_open():
    log = []
    with ScopeStack() as scopes:
        a, b, c = (Scope(name, log) for name in "abc")
        for scope in (a, b, c):
            scopes.enter(scope)
        assert scopes.open == [a, b, c]
        scopes.leave(3)
        assert scopes.open == [a, b, c]
        scopes.leave(1)
        assert scopes.open == [a]
        assert log[3:] == [("exit c", None), ("exit b", None)]
        scopes.leave(2)  # does nothing
        assert scopes.open == [a]
        scopes.enter(b)
        scopes.leave(0)
        assert scopes.open == []
    assert log[5:] == ["enter b", ("exit b", None), ("exit a", None)]


def test_scopes_stay_open_after_one_fails_in_leave():
    log, error = [], ValueError("b")
    scopes = ScopeStack()
    several = [Scope("a", log), Scope("b", log, error), Scope("c", log)]
    for scope in several:
        scopes.enter(scope)
    with pytest.raises(ValueError, match="b") as caught:
        scopes.leave(0)
    assert caught.value is error
    # The failed scope stays open too, as Ctrl-C may have arrived before it did anything.
    assert scopes.open == several[:2]
    assert list(scopes.unwind(error, 0)) == [False, False]
    assert scopes.open == []
    assert log[3:] == [("exit c", None), ("exit b", None), ("exit a", error)]
    assert scopes.later_failure is None


def test_a_scope_is_on_the_stack_while_it_opens_and_closes():
    scopes, seen = ScopeStack(), []

    @contextmanager
    def looks():
        seen.append(len(scopes.open))
        yield
        seen.append(len(scopes.open))

    with scopes:
        scopes.enter(looks())
    assert seen == [1, 1]
    assert scopes.open == []


# unwind


def stack_of(*several):
    scopes = ScopeStack()
    for scope in several:
        scopes.enter(scope)
    return scopes


def test_unwinding_reports_which_scopes_handled_the_failure():
    log, error = [], KeyError()
    several = [
        Scope("a", log, swallows=True),
        Scope("b", log, swallows=None),
        Scope("c", log, OSError()),
        Scope("d", log, swallows="a word that is true"),
        Scope("e", log),
    ]
    scopes = stack_of(*several)
    reported = list(scopes.unwind(error, 1))
    assert reported == [False, True, False, False]
    assert all(type(each) is bool for each in reported)
    assert scopes.open == several[:1]
    assert list(scopes.unwind(error, 1)) == []
    assert list(scopes.unwind(error, 0)) == [True]
    assert scopes.open == []


def test_unwinding_closes_one_scope_per_step_and_can_be_stopped():
    log, error = [], KeyError()
    a, b, c = several = [Scope(name, log) for name in "abc"]
    scopes = stack_of(*several)
    steps = scopes.unwind(error, 0)
    assert scopes.open == [a, b, c]
    next(steps)
    assert scopes.open == [a, b]
    assert log[3:] == [("exit c", error)]
    steps.close()
    scopes.leave(0)
    assert log[4:] == [("exit b", None), ("exit a", None)]


def test_scopes_are_given_the_failure_with_the_traceback_it_has():
    given = []

    class Recording(Scope):
        def __exit__(self, kind, error, traceback):
            given.append((kind, error, traceback))

    def fail():
        raise error

    error = KeyError()
    scopes = stack_of(Recording("a", []))
    with pytest.raises(KeyError) as caught:
        fail()
    list(scopes.unwind(error, 0))
    assert given == [(KeyError, error, error.__traceback__)]
    assert error.__traceback__ is caught.tb


def test_later_failure_is_kept_until_the_next_with():
    log, error = [], KeyError()
    scopes = ScopeStack()
    assert scopes.later_failure is None
    with pytest.raises(KeyError):
        run_on(scopes, Scope("a", log, error), failure=error)
    assert scopes.later_failure is None  # the same failure is no second one
    with pytest.raises(KeyError):
        run_on(scopes, Scope("a", log, OSError()), failure=error)
    assert isinstance(scopes.later_failure, OSError)
    with scopes:
        assert scopes.later_failure is None


def test_a_stack_can_be_used_again_after_a_failure():
    log, scopes = [], ScopeStack()
    with pytest.raises(KeyError):
        run_on(scopes, Scope("a", log), failure=KeyError())
    log.clear()
    run_on(scopes, Scope("b", log))
    assert log == ["enter b", ("exit b", None)]


# Notes


def fails_to_close():
    raise LookupError("the span is gone")


def test_a_note_is_on_the_error_or_in_the_log(caplog):
    error = KeyError("body")
    add_note(error, "the disk is full")
    assert [*notes_of(error), *caplog.messages] == ["the disk is full"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
def test_note_names_failure_function_file_and_line():
    class Failing(Scope):
        def __exit__(self, kind, error, traceback):
            fails_to_close()

    error = KeyError("body")
    with pytest.raises(KeyError):
        run_in(Failing("a", []), failure=error)
    line = fails_to_close.__code__.co_firstlineno + 1
    assert notes_of(error) == [
        "After this exception, closing a scope failed too: LookupError('the span is gone'), "
        f"in fails_to_close (test_scopes.py, line {line})"
    ]


# The contexts of failures while closing


def chain(error):
    """Returns the failure, its context, the context of that one, and so on."""
    failures = [error]
    while (error := error.__context__) is not None:
        assert not any(error is each for each in failures), "the chain has a cycle"
        failures.append(error)
    return failures


def with_contexts(*failures):
    """Returns the first failure, with each failure as the context of the one before it."""
    for later, earlier in pairwise(failures):
        later.__context__ = earlier
    return failures[0]


def unwind_outside_except(error, later):
    """Unwinds outside any ``except``, where Python sets no ``__context__`` itself."""
    assert sys.exc_info() == (None, None, None)
    list(stack_of(Scope("a", [], later)).unwind(error, 0))


@pytest.mark.parametrize(
    ("of_later", "of_first", "expected"),
    [
        ("L", "F", "LF"),
        ("LAB", "F", "LABF"),
        ("L", "FAB", "LFAB"),
        ("LAB", "FCD", "LABFCD"),
        ("LF", "F", "LF"),
        ("LAF", "F", "LAF"),
        ("LAF", "FC", "LAFC"),
        ("L", "FL", "L"),
        ("L", "FAL", "L"),
        ("LB", "FAL", "LB"),
        ("LA", "FA", "LFA"),
        ("LAB", "FAB", "LFAB"),
        ("LAB", "FB", "LAFB"),
    ],
)
def test_later_failures_chain_to_the_first_without_a_cycle(of_later, of_first, expected):
    failures = {name: Exception(name) for name in of_later + of_first}
    for names in (of_later, of_first):
        with_contexts(*(failures[name] for name in names))
    unwind_outside_except(failures["F"], failures["L"])
    assert "".join(map(str, chain(failures["L"]))) == expected
    chain(failures["F"])


def test_an_existing_cycle_of_contexts_is_broken():
    first, later, other = KeyError(), ValueError(), OSError()
    later.__context__, other.__context__ = other, later
    unwind_outside_except(first, later)
    assert other.__context__ is first
    assert chain(later) == [later, other, first]


def test_the_first_failure_gets_no_context():
    first = KeyError()
    with pytest.raises(KeyError):
        run_in(Scope("a", [], OSError()), Scope("b", [], ValueError()), failure=first)
    assert chain(first) == [first]


def test_same_second_failure_from_two_scopes_makes_no_cycle():
    first, later = KeyError(), ValueError()
    with pytest.raises(KeyError):
        run_in(Scope("a", [], later), Scope("b", [], later), failure=first)
    assert chain(later) == [later, first]


# The null context


def test_null_context_has_no_effect():
    for _ in range(2):
        with NULL_CONTEXT:
            pass


@pytest.mark.parametrize("failure", [KeyError, StopIteration, KeyboardInterrupt])
def test_null_context_swallows_no_failure(failure):
    error = failure()
    with pytest.raises(failure) as caught, NULL_CONTEXT:
        raise error
    assert caught.value is error
    assert error.__context__ is None


def test_null_context_has_no_effect_on_a_stack():
    scopes, error = ScopeStack(), KeyError()
    with scopes:
        scopes.enter(NULL_CONTEXT)
    scopes.enter(NULL_CONTEXT)
    assert list(scopes.unwind(error, 0)) == [False]
    assert notes_of(error) == []


class Unprintable(Exception):
    def __repr__(self):
        raise ZeroDivisionError


@dataclass(frozen=True)
class Frozen(Exception):
    number: int = 1


@pytest.mark.parametrize(
    "first", [KeyError(), Frozen(), Unprintable()], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize(
    "later", [OSError(), Frozen(), Unprintable()], ids=lambda e: type(e).__name__
)
def test_scopes_close_after_failures_that_cannot_be_noted(first, later):
    log = []
    with pytest.raises(type(first)) as caught:
        run_in(Scope("a", log), Scope("b", log, later), Scope("c", log), failure=first)
    assert caught.value is first
    assert [entry[0] for entry in log[3:]] == ["exit c", "exit b", "exit a"]


def test_ctrl_c_at_the_start_of_closing_still_closes_the_scope():
    log = []

    class Interrupted(Scope):
        interruptions = 1

        def __exit__(self, *failure):
            if self.interruptions:
                self.interruptions = 0
                raise KeyboardInterrupt
            return super().__exit__(*failure)

    error = KeyError()
    with pytest.raises(KeyError):
        run_in(Interrupted("a", log), failure=error)
    assert log == ["enter a", ("exit a", error)]


def test_failure_while_closing_a_generator_is_raised():
    first, later = ValueError("b"), ValueError("a")

    def generator():
        with ScopeStack() as stack:
            stack.enter(Scope("a", [], later))
            stack.enter(Scope("b", [], first))
            yield

    running = generator()
    next(running)
    with pytest.raises(ValueError, match="b"):
        running.close()
