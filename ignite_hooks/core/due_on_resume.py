"""Names, for a checkpoint, of what is still due at the step boundary that it was taken at.

Callbacks cannot be saved. What asks for them can be: the n-th of its kind on an engine that is
built in the same way.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

from ignite_hooks.core.engine import belongings
from ignite_hooks.core.training_engine import AnyEngine

__all__ = ["add_due", "due_of", "make_due"]


class _Due(NamedTuple):
    kind: str
    is_due: Callable[[], bool]
    make_due: Callable[[], None]


def add_due(
    engine: AnyEngine, kind: str, is_due: Callable[[], bool], make_due: Callable[[], None]
) -> Callable[[], None]:
    """Adds something that can be due on ``engine``; returns what undoes it.

    Args:
        engine: the engine.
        kind: what it is called in checkpoints; those of one kind are numbered.
        is_due: returns whether it is due now.
        make_due: makes it due at the present step boundary.
    """
    entry, entries = _Due(kind, is_due, make_due), _entries(engine)
    entries.append(entry)
    return lambda: entries.remove(entry)


def due_of(engine: AnyEngine) -> dict[str, list[int]]:
    """Returns the numbers of what is due now, by kind."""
    numbers: dict[str, list[int]] = {}
    for kind, entries in _by_kind(engine).items():
        due = [number for number, entry in enumerate(entries) if entry.is_due()]
        if due:
            numbers[kind] = due
    return numbers


def make_due(engine: AnyEngine, due: Mapping[str, Sequence[int]]) -> None:
    """Makes due what was due on an engine that was built in the same way, as far as it is here."""
    for kind, entries in _by_kind(engine).items():
        for number in due.get(kind, ()):
            if number < len(entries):
                entries[number].make_due()


def _by_kind(engine: AnyEngine) -> dict[str, list[_Due]]:
    by_kind: dict[str, list[_Due]] = {}
    for entry in _entries(engine):
        by_kind.setdefault(entry.kind, []).append(entry)
    return by_kind


def _entries(engine: AnyEngine) -> list[_Due]:
    entries: list[_Due] = belongings(engine).setdefault("due_on_resume", [])
    return entries
