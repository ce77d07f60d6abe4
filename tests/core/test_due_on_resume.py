from ignite.engine import Engine

from ignite_hooks.core.due_on_resume import add_due
from ignite_hooks.core.due_on_resume import due_of
from ignite_hooks.core.due_on_resume import make_due


def engine_with(made, *entries):
    """An engine on which (kind, is due) can be due."""
    engine = Engine(lambda engine, batch: None)
    undo = [
        add_due(
            engine, kind, lambda is_due=is_due: is_due, lambda number=number: made.append(number)
        )
        for number, (kind, is_due) in enumerate(entries)
    ]
    return engine, undo


def test_what_is_due_is_numbered_within_its_kind():
    engine, _ = engine_with([], ("a", False), ("b", True), ("a", True), ("c", False))
    assert due_of(engine) == {"b": [0], "a": [1]}


def test_it_is_made_due_as_far_as_it_is_there():
    made = []
    engine, undo = engine_with(made, ("a", False), ("b", False), ("a", False))
    make_due(engine, {"a": [1, 2], "b": [0], "unknown": [0]})
    assert made == [2, 1]
    undo[0]()
    make_due(engine, {"a": [0, 1]})
    assert made == [2, 1, 2]
