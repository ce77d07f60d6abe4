import pytest

from ignite_hooks.core.undo_stack import UndoStack
from ignite_hooks.core.undo_stack import undo_on_exit


class Failure(Exception):
    """A failure of any kind."""


def test_a_change_is_undone_by_its_own_scope():
    changes, undone = UndoStack(), []
    with changes:
        with pytest.raises(Failure), undo_on_exit(lambda: undone.append("change")):
            raise Failure
        assert undone == ["change"]
        assert changes.pending == ()
    changes.undo_all()
    assert undone == ["change"]


def test_remaining_changes_are_undone_once_in_reverse_order():
    changes, undone = UndoStack(), []
    with changes:
        scopes = [
            undo_on_exit(lambda name=name: undone.append(name)) for name in ("outer", "inner")
        ]
        for scope in scopes:
            scope.__enter__()
    changes.undo_all()
    assert undone == ["inner", "outer"]
    for scope in reversed(scopes):  # a traceback kept them until now
        scope.__exit__(None, None, None)
    assert undone == ["inner", "outer"]


@pytest.mark.parametrize(
    ("out_of_order", "expected"), [(False, ["inner", "outer"]), (True, ["outer"])]
)
def test_an_ending_scope_undoes_later_changes_unless_out_of_order(out_of_order, expected):
    undone = []
    with UndoStack():
        outer = undo_on_exit(lambda: undone.append("outer"), out_of_order=out_of_order)
        outer.__enter__()
        inner = undo_on_exit(lambda: undone.append("inner"))
        inner.__enter__()
        outer.__exit__(None, None, None)
        assert undone == expected
        inner.__exit__(None, None, None)
    assert sorted(undone) == ["inner", "outer"]


def test_an_interrupted_undo_is_repeated():
    changes, tries = UndoStack(), []

    def undo():
        tries.append(len(tries))
        if len(tries) == 1:
            raise Failure

    with changes, pytest.raises(Failure), undo_on_exit(undo):
        pass
    changes.undo_all()
    assert tries == [0, 1]
    changes.undo_all()
    assert tries == [0, 1]


def test_undo_leaves_the_changes_made_around_a_run():
    changes, undone = UndoStack(), []
    with changes, undo_on_exit(lambda: undone.append("around")):
        around = changes.pending
        scope = undo_on_exit(lambda: undone.append("of the run"))
        scope.__enter__()
        assert undone == []
        changes.undo_all(around)
        assert undone == ["of the run"]
    assert undone == ["of the run", "around"]


def test_changes_of_nested_runs_are_separate():
    outer, inner, undone = UndoStack(), UndoStack(), []
    with outer:
        scopes = [
            undo_on_exit(lambda name=name: undone.append(name)) for name in ("inner", "outer")
        ]
        with inner:
            scopes[0].__enter__()
        scopes[1].__enter__()
    assert undone == []
    outer.undo_all()
    assert undone == ["outer"]
    inner.undo_all()
    assert undone == ["outer", "inner"]
