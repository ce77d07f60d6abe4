"""States of users' data sets, samplers and transforms: saved where they can be, or named.

An object with ``state_dict`` and ``load_state_dict`` that samples are made by is saved and
restored. Of all other objects of users' classes the plain values (numbers, texts, small lists and
dicts of them) are compared with those at the beginning of the run: what has changed, and is set by
no ``set_epoch``, is state that nothing restores.
"""

import itertools
import operator
import types
from collections import OrderedDict
from collections import deque
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from ignite_hooks.core.object_graph import is_of_library
from ignite_hooks.core.object_graph import stored_values

__all__ = ["Objects", "OwnStates", "has_state", "is_plain"]

_MAX_ELEMENTS = 64  # of a container or a tensor whose values are compared; else their number is
_MAX_DEPTH = 3
_MAX_NAMED = 3
_SCALARS = (bool, int, float, complex, str, bytes, type(None))
_CONTAINERS = (list, tuple, set, frozenset, deque)
_EMPTY: tuple[Iterable[Any], ...] = ([], (), range(0), {}, {}.values(), {}.items())
_ITERATORS = tuple(type(iter(each)) for each in _EMPTY)
_NO_VALUE, _OBJECT = object(), object()
# Samplers, and streams of samples, are entered again by the position in the pass: a place of their
# own beside it would be applied twice.
_MADE_BY = ("dataset", "collate_fn")

Objects = Mapping[str, Callable[[], Any]]


class OwnStates:
    """The states that the objects of a loader have beside its random generators.

    The methods are given the objects that batches come from, as a search has found them now.
    """

    def __init__(self) -> None:
        self._first: dict[str, Any] | None = None
        self._set_by_epoch: set[str] = set()

    def begin(self, objects: Objects) -> None:
        """Notes the values from which the run begins, if that was not done."""
        if self._first is None:
            self._first = _values(_present(objects))

    @contextmanager
    def told(self, objects: Objects) -> Iterator[None]:
        """Around ``set_epoch``: what it changes is restored when it is called again."""
        self.begin(objects)
        present = _present(objects)
        if not any(hasattr(type(each), "set_epoch") for _, each in present):
            yield
            return
        before = _values(present)
        yield
        self._set_by_epoch |= _changed(before, _values(present))

    def doubts(self, objects: Objects) -> list[str]:
        """Returns what has changed since the run began and is not restored on a resume."""
        if self._first is None:
            return []
        present = _present(objects)
        changed = sorted(_changed(self._first, _values(present)) - self._set_by_epoch)
        refused = [name for name, each in _stateful(present) if not is_plain(each.state_dict())]
        found = []
        if changed:
            have = "have" if len(changed) > 1 else "has"
            found.append(
                f"{_some(changed)} {have} changed since the run began and {have} no state_dict "
                "that is saved"
            )
        if refused:
            found.append(
                f"the state_dict of {_some(refused)} has more in it than tensors, numbers, texts, "
                "lists and dicts, and is not saved"
            )
        return found

    @staticmethod
    def stateful(objects: Objects) -> dict[str, Any]:
        """Returns the objects that have a state which is saved."""
        return dict(_stateful(_present(objects)))

    def state_dict(self, objects: Objects) -> dict[str, Any]:
        """Returns the states of the objects that have one."""
        states = {name: each.state_dict() for name, each in self.stateful(objects).items()}
        return {name: state for name, state in states.items() if is_plain(state)}

    def load_state_dict(self, objects: Objects, state_dict: Mapping[str, Any]) -> None:
        """Restores those that are here too."""
        for name, each in _stateful(_present(objects)):
            if name in state_dict:
                each.load_state_dict(state_dict[name])


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"{', '.join(names[:_MAX_NAMED])}{more}"


def _present(objects: Objects) -> list[tuple[str, Any]]:
    """Returns the objects that are still there."""
    found = ((name, get()) for name, get in objects.items())
    return [(name, each) for name, each in found if each is not None]


def _stateful(present: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Returns the objects that samples are made by and that have a state of their own."""
    found: list[tuple[str, Any]] = []
    streams: tuple[str, ...] = ()
    for name, each in present:
        if issubclass(type(each), IterableDataset):
            streams += (name, f"{name}.")
        elif name.startswith(_MADE_BY) and not name.startswith(streams) and _is_asked(each):
            found.append((name, each))
    return found


def _values(present: list[tuple[str, Any]]) -> dict[str, Any]:
    stateful = {id(each) for _, each in _stateful(present)}
    found: dict[str, Any] = {"": _OBJECT}
    for name, each in present:
        if type(each) in (itertools.count, types.GeneratorType, *_ITERATORS):
            found[name] = _frozen(each)
        elif id(each) not in stateful and not _is_foreign(each):
            found[name] = _OBJECT
            for part, value in stored_values(each):
                frozen = _frozen(value)
                if frozen is not _NO_VALUE:
                    found[f"{name}.{part}"] = frozen
    return found


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    """Returns the names of the values that are others, and of new ones of the same objects."""
    return {
        name
        for name, value in now.items()
        if value is not _OBJECT
        and name.rpartition(".")[0] in before
        and before.get(name, _NO_VALUE) != value
    }


def has_state(thing: Any) -> bool:
    """Returns whether an object has ``state_dict`` and ``load_state_dict``, and is no module."""
    kind = type(thing)
    has_methods = hasattr(kind, "state_dict") and hasattr(kind, "load_state_dict")
    return (
        has_methods
        and callable(kind.state_dict)
        and callable(kind.load_state_dict)
        and not issubclass(kind, torch.nn.Module | type)
    )


def _is_asked(thing: Any) -> bool:
    return has_state(thing) and not _is_foreign(thing)


def _is_foreign(thing: Any) -> bool:
    """Returns whether an object is of a library, not of a user's class or function."""
    kind = type(thing)
    is_code = issubclass(kind, type) or kind is types.FunctionType
    return is_of_library(thing if is_code else kind)


def _frozen(value: Any, depth: int = 0) -> Any:
    """Returns something to compare a plain value with later; ``_NO_VALUE`` for anything else."""
    kind = type(value)
    if kind in _SCALARS:
        return (kind.__name__, repr(value) if kind is float else value)
    if isinstance(value, np.generic):
        return value.tobytes()
    if kind in (np.ndarray, torch.Tensor):
        return _frozen_array(value)
    if kind is itertools.count:
        return repr(value)
    if kind is types.GeneratorType:
        frame = value.gi_frame
        state = () if frame is None else (frame.f_lasti, _frozen(dict(frame.f_locals), depth + 1))
        return ("generator", state)
    if kind in _ITERATORS:
        return ("iterator", operator.length_hint(value))
    if kind is dict or kind in _CONTAINERS:
        if len(value) > _MAX_ELEMENTS or depth >= _MAX_DEPTH:
            return ("length", len(value))
        elements = (value.keys(), value.values()) if kind is dict else (value,)
        return tuple(_frozen(each, depth + 1) for part in elements for each in part)
    return _NO_VALUE


def _frozen_array(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        is_small = value.device.type == "cpu" and value.numel() <= _MAX_ELEMENTS
        return str(value.tolist()) if is_small and value.layout is torch.strided else _NO_VALUE
    return (
        value.tobytes() if value.size <= _MAX_ELEMENTS and not value.dtype.hasobject else _NO_VALUE
    )


def is_plain(state: Any) -> bool:
    """Returns whether a state is made of what is loaded without running code."""
    waiting = [state]
    while waiting:
        each = waiting.pop()
        if type(each) in (dict, OrderedDict):
            waiting += [*each.keys(), *each.values()]
        elif type(each) in (list, tuple):
            waiting += each
        elif type(each) not in (*_SCALARS, torch.Tensor):
            return False
    return True
