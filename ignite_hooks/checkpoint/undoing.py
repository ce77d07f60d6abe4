"""Objects that keep their states if one of them refuses what it is given."""

import copy
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from typing import Any

__all__ = ["undone_on_failure"]


@contextmanager
def undone_on_failure(objects: Iterable[Any], state: Any) -> Iterator[None]:
    """If the body fails, gives back what they had to all objects with a state, and to ``state``.

    Args:
        objects: with ``state_dict`` and ``load_state_dict``.
        state: the state of an engine; its attributes, and the metrics in it.
    """
    before = [(each, copy.deepcopy(each.state_dict())) for each in objects]
    attributes, metrics = dict(vars(state)), dict(state.metrics)
    try:
        yield
    except BaseException:
        for each, its_state in before:
            with suppress(Exception):  # what refuses its own state, too, has done what it can
                each.load_state_dict(its_state)
        vars(state).clear()
        vars(state).update(attributes)
        state.metrics.clear()
        state.metrics.update(metrics)
        raise
