"""States of users' data sets, samplers and transforms: saved if possible, otherwise reported.

The state of an object is saved and restored if the object makes samples and has ``state_dict`` and
``load_state_dict``. The objects that make samples are a map-style data set, a ``collate_fn``, and
the parts of these two, for example transforms.

In any other object of a user's class, the plain values (numbers, strings, small lists and dicts of
them) are compared with the values at the start of the run. A resume does not restore changed
values. Its report names them, except those that ``set_epoch`` sets again.
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

from ignite_hooks.core.object_graph import is_library_code
from ignite_hooks.core.object_graph import stored_values

__all__ = ["ObjectStates", "Objects", "has_state_dict", "is_plain_data"]

# The largest number of elements that are compared by value. If a container has more elements, only
# its length is compared. An array or tensor with more elements is not compared.
_MAX_ELEMENTS = 64
_MAX_DEPTH = 3  # containers that are nested deeper than this are compared by their lengths only
_MAX_NAMED = 3  # the number of objects that a message names; other objects are only counted
_SCALARS = (bool, int, float, complex, str, bytes, type(None))
_CONTAINERS = (list, tuple, set, frozenset, deque)
_ITERABLES: tuple[Iterable[Any], ...] = ([], (), range(0), {}, {}.values(), {}.items())
_ITERATORS = tuple(type(iter(each)) for each in _ITERABLES)
_NOT_COMPARABLE = object()
# `_values` maps the path of each attribute to its value, and the path of the object that has the
# attributes to this mark.
_PRESENT = object()
# A loader makes its samples with these two attributes, so the path of each object that makes
# samples begins with one of these names. Samplers and streams (iterable data sets) are not restored
# here, because the feed, which reads the loader, moves them to the position of the run.
_SAMPLE_MAKERS = ("dataset", "collate_fn")

Objects = Mapping[str, Callable[[], Any]]
"""Maps the name of an object to a function.

The function returns the object, or None if the object has been freed. The name is a path, for
example "dataset.transform".
"""


class ObjectStates:
    """The states of the objects that a loader's batches come from, except random generators.

    The methods take these objects as an argument. The caller searches for the objects immediately
    before each call, because objects may have been replaced.
    """

    def __init__(self) -> None:
        self._initial: dict[str, Any] | None = None  # the values at the start of the run, by name
        self._set_by_epoch: set[str] = set()  # names of values that `set_epoch` has changed

    def begin(self, objects: Objects) -> None:
        """Notes the values of the objects at the start of the run. Only the first call does so."""
        if self._initial is None:
            self._initial = _values(_present(objects))

    @contextmanager
    def around_set_epoch(self, objects: Objects) -> Iterator[None]:
        """Notes which values ``set_epoch`` changes, so that the report does not name them.

        The body calls ``set_epoch``. A resumed run calls ``set_epoch`` again, which restores these
        values.
        """
        self.begin(objects)
        present = _present(objects)
        if not any(hasattr(type(each), "set_epoch") for _, each in present):
            yield
            return
        before = _values(present)
        yield
        self._set_by_epoch |= _changed(before, _values(present))

    def doubts(self, objects: Objects) -> list[str]:
        """Returns sentences that name the objects whose state a resume does not restore."""
        if self._initial is None:
            return []
        present = _present(objects)
        changed = sorted(_changed(self._initial, _values(present)) - self._set_by_epoch)
        refused = [
            name for name, each in _stateful(present) if not is_plain_data(each.state_dict())
        ]
        found = []
        if changed:
            have = "have" if len(changed) > 1 else "has"
            found.append(
                f"{_shortened(changed)} {have} changed since the run began and {have} no "
                "state_dict that is saved"
            )
        if refused:
            found.append(
                f"the state_dict of {_shortened(refused)} is not saved, because it contains other "
                "types than tensors, numbers, texts, lists and dicts"
            )
        return found

    @staticmethod
    def stateful(objects: Objects) -> dict[str, Any]:
        """Returns the objects with a ``state_dict`` to save, by name."""
        return dict(_stateful(_present(objects)))

    def state_dict(self, objects: Objects) -> dict[str, Any]:
        """Returns the states of the objects of ``stateful``, by name.

        States that are not plain data are left out.
        """
        states = {name: each.state_dict() for name, each in self.stateful(objects).items()}
        return {name: state for name, state in states.items() if is_plain_data(state)}

    def load_state_dict(self, objects: Objects, state_dict: Mapping[str, Any]) -> None:
        """Restores the states of the objects whose names are in ``state_dict``."""
        for name, each in _stateful(_present(objects)):
            if name in state_dict:
                each.load_state_dict(state_dict[name])


def _shortened(names: list[str]) -> str:
    """Returns the first names of a list as text, and the number of the other names."""
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"{', '.join(names[:_MAX_NAMED])}{more}"


def _present(objects: Objects) -> list[tuple[str, Any]]:
    """Returns the objects that have not been freed, with their names."""
    found = ((name, get()) for name, get in objects.items())
    return [(name, each) for name, each in found if each is not None]


def _stateful(present: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Returns the objects that make samples and have ``state_dict``, with their names.

    Iterable data sets and their parts are left out (see ``_SAMPLE_MAKERS``).
    """
    found: list[tuple[str, Any]] = []
    streams: tuple[str, ...] = ()
    for name, each in present:
        if issubclass(type(each), IterableDataset):
            streams += (name, f"{name}.")
        elif (
            name.startswith(_SAMPLE_MAKERS)
            and not name.startswith(streams)
            and has_state_dict(each)
            and not _is_of_library(each)
        ):
            found.append((name, each))
    return found


def _values(present: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the values of the objects whose state is not saved, in a form that can be compared.

    The result maps the path of an attribute to its value, and the path of an object itself to
    ``_PRESENT``.
    """
    stateful = {id(each) for _, each in _stateful(present)}
    # `_changed` ignores a path whose parent is missing. The parent of "dataset.size" is "dataset",
    # and the parent of "dataset" is "".
    found: dict[str, Any] = {"": _PRESENT}
    for name, each in present:
        if type(each) in (itertools.count, types.GeneratorType, *_ITERATORS):
            found[name] = _comparable(each)
        elif id(each) not in stateful and not _is_of_library(each):
            found[name] = _PRESENT
            for part, value in stored_values(each):
                comparable = _comparable(value)
                if comparable is not _NOT_COMPARABLE:
                    found[f"{name}.{part}"] = comparable
    return found


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    """Returns the paths of the values that have changed, and of the new attributes.

    The attributes of a new object, whose own path is missing in ``before``, are left out.
    """
    return {
        name
        for name, value in now.items()
        if value is not _PRESENT
        and name.rpartition(".")[0] in before
        and before.get(name, _NOT_COMPARABLE) != value
    }


def has_state_dict(thing: Any) -> bool:
    """Returns whether an object has ``state_dict`` and ``load_state_dict`` and is not a module.

    The methods are looked up in the class of the object, because a lookup in the object could call
    a ``__getattr__`` of the user.
    """
    cls = type(thing)
    has_methods = hasattr(cls, "state_dict") and hasattr(cls, "load_state_dict")
    return (
        has_methods
        and callable(cls.state_dict)
        and callable(cls.load_state_dict)
        and not issubclass(cls, torch.nn.Module | type)
    )


def _is_of_library(thing: Any) -> bool:
    """Returns whether an object is from a library and not from the user's code.

    A class or function is checked itself. For any other object, its class is checked.
    """
    cls = type(thing)
    is_code = issubclass(cls, type) or cls is types.FunctionType
    return is_library_code(thing if is_code else cls)


def _comparable(value: Any, depth: int = 0) -> Any:
    """Returns a copy of a plain value, with which the value can be compared later.

    Args:
        value: the value.
        depth: the number of containers that contain the value.

    Returns:
        The copy; ``_NOT_COMPARABLE`` if the value is not plain.
    """
    cls = type(value)
    if cls in _SCALARS:
        # The class name distinguishes 1 from True. A float becomes text, because NaN as a number
        # is not equal to itself.
        return (cls.__name__, repr(value) if cls is float else value)
    if isinstance(value, np.generic):
        return value.tobytes()
    if cls in (np.ndarray, torch.Tensor):
        return _comparable_array(value)
    if cls is itertools.count:
        # The text is, for example, "count(3)". Any other way to read the number would advance the
        # counter.
        return repr(value)
    if cls is types.GeneratorType:
        # `f_lasti` is the instruction at which the generator is suspended.
        frame = value.gi_frame
        if frame is None:
            return ("generator", ())
        return ("generator", (frame.f_lasti, _comparable(dict(frame.f_locals), depth + 1)))
    if cls in _ITERATORS:
        return ("iterator", operator.length_hint(value))
    if cls is dict or cls in _CONTAINERS:
        if len(value) > _MAX_ELEMENTS or depth >= _MAX_DEPTH:
            return ("length", len(value))
        elements = (value.keys(), value.values()) if cls is dict else (value,)
        return tuple(_comparable(each, depth + 1) for part in elements for each in part)
    return _NOT_COMPARABLE


def _comparable_array(value: Any) -> Any:
    """Returns the values of a small array, or of a small tensor on the CPU.

    Returns ``_NOT_COMPARABLE`` for any other array or tensor. Tensors on other devices are not
    read, because reading a tensor synchronizes with its device.
    """
    if isinstance(value, torch.Tensor):
        is_small = value.device.type == "cpu" and value.numel() <= _MAX_ELEMENTS
        is_readable = is_small and value.layout is torch.strided
        return str(value.tolist()) if is_readable else _NOT_COMPARABLE
    is_readable = value.size <= _MAX_ELEMENTS and not value.dtype.hasobject
    return value.tobytes() if is_readable else _NOT_COMPARABLE


def is_plain_data(state: Any) -> bool:
    """Returns whether a state consists of types that ``torch.load`` reads without running code.

    These types are dict, ``OrderedDict``, list, tuple, ``torch.Tensor``, numbers, strings, bytes
    and None. The result is False if the state contains an instance of another type, even of a
    subclass of these types.
    """
    remaining = [state]
    while remaining:
        each = remaining.pop()
        if type(each) in (dict, OrderedDict):
            remaining += [*each.keys(), *each.values()]
        elif type(each) in (list, tuple):
            remaining += each
        elif type(each) not in (*_SCALARS, torch.Tensor):
            return False
    return True
