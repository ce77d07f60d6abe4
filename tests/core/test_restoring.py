import pytest

from ignite_hooks.core.restoring import Changes
from ignite_hooks.core.restoring import restored


class Failure(Exception):
    """A failure of any kind."""


def test_a_change_is_undone_by_its_own_scope():
    changes, undone = Changes(), []
    with changes:
        with pytest.raises(Failure), restored(lambda: undone.append("change")):
            raise Failure
        assert undone == ["change"]
        assert changes.present == ()
    changes.undo()
    assert undone == ["change"]


def test_remaining_changes_are_undone_once_in_reverse_order():
    changes, undone = Changes(), []
    with changes:
        scopes = [restored(lambda name=name: undone.append(name)) for name in ("outer", "inner")]
        for scope in scopes:
            scope.__enter__()
    changes.undo()
    assert undone == ["inner", "outer"]
    for scope in reversed(scopes):  # a traceback kept them until now
        scope.__exit__(None, None, None)
    assert undone == ["inner", "outer"]


@pytest.mark.parametrize(("alone", "expected"), [(False, ["inner", "outer"]), (True, ["outer"])])
def test_an_ending_scope_undoes_later_changes_unless_alone(alone, expected):
    undone = []
    with Changes():
        outer = restored(lambda: undone.append("outer"), alone=alone)
        outer.__enter__()
        inner = restored(lambda: undone.append("inner"))
        inner.__enter__()
        outer.__exit__(None, None, None)
        assert undone == expected
        inner.__exit__(None, None, None)
    assert sorted(undone) == ["inner", "outer"]


def test_an_interrupted_undo_is_repeated():
    changes, tries = Changes(), []

    def undo():
        tries.append(len(tries))
        if len(tries) == 1:
            raise Failure

    with changes, pytest.raises(Failure), restored(undo):
        pass
    changes.undo()
    assert tries == [0, 1]
    changes.undo()
    assert tries == [0, 1]


def test_undo_leaves_the_changes_made_around_a_run():
    changes, undone = Changes(), []
    with changes, restored(lambda: undone.append("around")):
        around = changes.present
        scope = restored(lambda: undone.append("of the run"))
        scope.__enter__()
        assert undone == []
        changes.undo(around)
        assert undone == ["of the run"]
    assert undone == ["of the run", "around"]


def test_changes_of_nested_runs_are_separate():
    outer, inner, undone = Changes(), Changes(), []
    with outer:
        scopes = [restored(lambda name=name: undone.append(name)) for name in ("inner", "outer")]
        with inner:
            scopes[0].__enter__()
        scopes[1].__enter__()
    assert undone == []
    outer.undo()
    assert undone == ["outer"]
    inner.undo()
    assert undone == ["outer", "inner"]
