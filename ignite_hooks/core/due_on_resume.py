"""Converts due work, such as a validation that has not run yet, to numbers for a checkpoint.

Due work is a callback, and a callback cannot be saved. So a handler whose work can be due adds an
entry to the engine when it is attached. There are several kinds of work, and the entries of a kind
are numbered in the order in which they were added. A checkpoint saves the numbers of the entries
whose work is due, for example ``{"validations": [1]}`` if the second validation is due. The engine
of a resumed run must be built in the same way, so that the same numbers belong to the same
handlers.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.training_engine import AnyEngine

__all__ = ["add_due_entry", "due_numbers", "make_due"]


class _Entry(NamedTuple):
    """An entry for work that can be due: the arguments of ``add_due_entry``."""

    kind: str
    is_due: Callable[[], bool]
    make_due: Callable[[], None]


def add_due_entry(
    engine: AnyEngine, kind: str, is_due: Callable[[], bool], make_due: Callable[[], None]
) -> Callable[[], None]:
    """Adds an entry for work that can be due on ``engine``.

    Args:
        engine: the engine.
        kind: the key of the work in a checkpoint, for example "validations". The entries of each
            kind are numbered separately.
        is_due: returns whether the work is due now.
        make_due: makes the work due now. It is called between two optimizer steps.

    Returns:
        A function that removes the entry.
    """
    entry, entries = _Entry(kind, is_due, make_due), _entries(engine)
    entries.append(entry)
    return lambda: entries.remove(entry)


def due_numbers(engine: AnyEngine) -> dict[str, list[int]]:
    """Returns the numbers of the entries whose work is due now, by kind.

    Kinds without due work are left out.
    """
    numbers: dict[str, list[int]] = {}
    for kind, entries in _by_kind(engine).items():
        due = [number for number, entry in enumerate(entries) if entry.is_due()]
        if due:
            numbers[kind] = due
    return numbers


def make_due(engine: AnyEngine, due: Mapping[str, Sequence[int]]) -> None:
    """Makes due again the work that was due when a checkpoint was saved.

    Args:
        engine: the engine, which is built in the same way as the engine that was saved.
        due: the result of ``due_numbers`` from the checkpoint. A number is ignored if ``engine``
            has no entry with this number.
    """
    for kind, entries in _by_kind(engine).items():
        for number in due.get(kind, ()):
            if number < len(entries):
                entries[number].make_due()


def _by_kind(engine: AnyEngine) -> dict[str, list[_Entry]]:
    by_kind: dict[str, list[_Entry]] = {}
    for entry in _entries(engine):
        by_kind.setdefault(entry.kind, []).append(entry)
    return by_kind


def _entries(engine: AnyEngine) -> list[_Entry]:
    entries: list[_Entry] = engine_storage(engine).setdefault("due_on_resume", [])
    return entries
