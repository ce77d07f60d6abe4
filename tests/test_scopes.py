import sys
from contextlib import contextmanager

import pytest

from ignite_hooks.scopes import ScopeStack


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
    with ScopeStack() as stack:
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


def test_each_scope_sees_the_failure_of_the_body_and_none_can_swallow_it():
    log, error = [], KeyError("body")
    with pytest.raises(KeyError) as caught:
        run_in(Scope("a", log), Scope("b", log, swallows=True), failure=error)
    assert caught.value is error
    assert log[2:] == [("exit b", error), ("exit a", error)]


def test_a_failure_while_closing_is_noted_on_the_first_and_the_others_close():
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
            repr(failure) in note
            for failure, note in zip(later[::-1], notes_of(first), strict=True)
        ] == [
            True,
            True,
        ]


def test_without_a_failure_of_the_body_the_first_one_of_the_closing_leaves():
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


def test_a_scope_that_fails_to_open_is_not_closed_and_the_others_are():
    log = []

    @contextmanager
    def broken():
        raise FileNotFoundError
        yield

    with pytest.raises(FileNotFoundError):
        run_in(Scope("a", log), broken())
    assert [entry[0] for entry in log[1:]] == ["exit a"]
