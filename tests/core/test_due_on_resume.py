from ignite.engine import Engine

from ignite_hooks.core.due_on_resume import add_due_entry
from ignite_hooks.core.due_on_resume import due_numbers
from ignite_hooks.core.due_on_resume import make_due


def engine_with(made, *entries):
    """Returns an engine with entries (kind, is due), and the functions that remove them."""
    engine = Engine(lambda engine, batch: None)
    removers = [
        add_due_entry(
            engine, kind, lambda is_due=is_due: is_due, lambda number=number: made.append(number)
        )
        for number, (kind, is_due) in enumerate(entries)
    ]
    return engine, removers


def test_due_entries_are_numbered_within_their_kind():
    engine, _ = engine_with([], ("a", False), ("b", True), ("a", True), ("c", False))
    assert due_numbers(engine) == {"b": [0], "a": [1]}


def test_make_due_ignores_missing_entries():
    made = []
    engine, removers = engine_with(made, ("a", False), ("b", False), ("a", False))
    make_due(engine, {"a": [1, 2], "b": [0], "unknown": [0]})
    assert made == [2, 1]
    removers[0]()
    make_due(engine, {"a": [0, 1]})
    assert made == [2, 1, 2]
