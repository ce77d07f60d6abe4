"""Finds values that change in a run and are in no ``state_dict``, such as a counter of a handler.

No checkpoint can restore such values, so the report of a resume names them. The initial values are
recorded when a process starts its first run, after the user's handlers of STARTED were called. Each
save compares the present values with the initial values. A value that has not changed is not
reported: the script that resumes creates the same value again. Objects of libraries, with few
exceptions, are not compared: they hold clocks, files and connections, for example.

A class may inherit its ``state_dict`` from a class of Ignite, for example a user's metric from
Ignite's ``Accuracy``. An inherited ``state_dict`` has only the attributes that Ignite's class
defines. In this file, all other attributes of the object are called *attributes beside the state*.
A resume does not restore their values. For a metric that is reset before the next batch this does
no harm, so the attributes of such a metric are not reported.
"""

import io
import itertools
import marshal
from argparse import Namespace
from collections import UserDict
from collections import UserList
from collections import deque
from collections.abc import Iterator
from collections.abc import Mapping
from enum import Enum
from inspect import GEN_CREATED
from inspect import getgeneratorlocals
from inspect import getgeneratorstate
from operator import length_hint
from pathlib import PurePath
from types import FunctionType
from types import GeneratorType
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from ignite.engine import State
from ignite.handlers import EpochOutputStore
from ignite.handlers import FastaiLRFinder
from ignite.handlers.param_scheduler import BaseParamScheduler
from ignite.metrics import Frequency
from ignite.metrics import GpuInfo
from ignite.metrics import Metric
from xxhash import xxh3_128_hexdigest

from ignite_hooks.checkpoint.digest import digest_of
from ignite_hooks.checkpoint.handler_objects import HandlerObjects
from ignite_hooks.checkpoint.handler_objects import can_be_saved
from ignite_hooks.checkpoint.handler_objects import state_names_of_handlers
from ignite_hooks.checkpoint.report import summarize_names
from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.engine import handlers_with_arguments
from ignite_hooks.core.engine import is_handler_of_event
from ignite_hooks.core.object_graph import is_library_code
from ignite_hooks.core.object_graph import stored_values
from ignite_hooks.core.training_engine import TrainingEngine

__all__ = [
    "UNKNOWN",
    "digest_of_value",
    "record_initial_values",
    "stored_by_user",
    "unsaved_changes",
]

# Each save computes a digest (a hash) of each value, so these bounds limit the work for one value.
# If a value exceeds a bound, only a part of the value is digested, and changes of the rest are not
# noticed.
_MAX_DEPTH = 8  # levels of containers within each other
_MAX_ELEMENTS = 10_000  # elements of all these containers together
_MAX_NUMBERS = 1_000_000  # numbers in a list or an array
# Texts of at most this length, and integers below this size, serve as their own digests.
_MAX_TEXT = 200
_MAX_INT = 2**63
# Classes of libraries whose objects are compared, because users fill them with their own values.
_COMPARED_LIBRARY_CLASSES = (Namespace, SimpleNamespace, UserDict, UserList, FastaiLRFinder)
_SCALAR_TYPES = (bool, int, float, complex, str, bytes, type(None), Enum, PurePath, np.generic)
# Attributes that Ignite's metrics set again at the first batch or in `compute`. So they need not be
# saved, and are not compared.
_DERIVED_ATTRIBUTES = {"_is_reduced", "_num_classes", "_result", "_type"}
# Attributes of `trainer.state` that the trainer itself sets. They are not compared.
_STATE_ATTRIBUTES = {
    *vars(State()),
    *("loss", "max_steps", "model_outputs", "optimizer_step", "start_epoch", "start_step"),
    *("step_committed", "validation"),
}


def record_initial_values(trainer: TrainingEngine) -> None:
    """Records the present values of all objects as their initial values.

    If this process has already recorded the values of an object, the earlier record is kept.
    """
    initial = _initial_values(trainer)
    handler_objects = HandlerObjects.of(trainer)
    for path, values in (
        _current_values(trainer, handler_objects) | _digests_beside_state(handler_objects)
    ).items():
        initial.setdefault(path, values)


def unsaved_changes(trainer: TrainingEngine, handler_objects: HandlerObjects) -> str:
    """Returns a message about changed values that are not saved, with remedies.

    The message is empty if there are no such values.

    Args:
        trainer: the trainer.
        handler_objects: the objects that the handlers of the trainer hold.
    """
    initial, changed = _initial_values(trainer), []
    for path, values in _current_values(trainer, handler_objects).items():
        before = initial.setdefault(path, values)
        changed += [
            f"{path}.{name}" if name else path
            for name, value in values.items()
            if before.get(name) != value or UNKNOWN in value
        ]
    state_paths = [path for path in changed if path.startswith(_STATE)]
    handler_paths = [path for path in changed if not path.startswith(_STATE)]
    paths_beside_state = _changed_beside_state(trainer, handler_objects)
    reasons = []
    if handler_paths:
        reasons.append(
            f"{summarize_names(handler_paths)} changed and cannot be saved: define state_dict() "
            "and load_state_dict() in the class of the object that holds the value, or keep the "
            "value in an object that has these methods"
        )
    if paths_beside_state:
        reasons.append(
            f"{summarize_names(paths_beside_state)} changed and is in no state_dict(): after the "
            "resume, values computed from this attribute are wrong until the attribute is reset; "
            "name such attributes in the _state_dict_all_req_keys of the class"
        )
    if state_paths:
        names = ", ".join(repr(path.removeprefix(_STATE)) for path in sorted(state_paths))
        reasons.append(
            f"{summarize_names(state_paths)} changed: append {names} to "
            "trainer.state_dict_user_keys to have it saved"
        )
    if handler_objects.unnamed:
        reasons.append(
            f"{summarize_names(handler_objects.unnamed)} are not saved, because they are in a set, "
            "whose order differs between processes: keep them in a list or a dict"
        )
    if not handler_objects.is_complete:
        reasons.append("handlers hold too many objects to examine all of them")
    return "; ".join(reasons)


# In a message, the path of an attribute of `trainer.state` begins with this prefix.
_STATE = "trainer.state."
# The attributes beside the state of an object have a record of their own. The key of the record is
# the path of the object, followed by this suffix.
_BESIDE = " beside its state"
UNKNOWN = "?"
"""The digest of an iterator whose position cannot be read.

Such an iterator is always reported, because a change of its position cannot be noticed.
"""
# Maps the path of an object to the digests of the values that the object stores, by name. For
# example, {"MyHandler": {"count": ["3"]}}. If elements of a set share a path, the list has a digest
# for each of them.
Values = dict[str, dict[str, list[str]]]


def _initial_values(trainer: TrainingEngine) -> Values:
    """Returns the record of the initial values. Callers add the objects that are not in it yet."""
    initial: Values = engine_storage(trainer).setdefault("values_at_beginning", {})
    return initial


def _current_values(trainer: TrainingEngine, handler_objects: HandlerObjects) -> Values:
    """Returns the digests of the present values that are in no ``state_dict``.

    Such values are stored in attributes of ``trainer.state``, and in objects that handlers hold and
    that have no ``state_dict``.
    """
    values: Values = {}
    for path, holder in handler_objects.stateless:
        if (stored := stored_by_user(holder)) is not None:
            digests = values.setdefault(path, {})
            for name, value in stored:
                # Most values are numbers. The `repr` of a number serves as its digest, which is
                # faster than a call of digest_of_value().
                cls = type(value)
                is_short = (
                    cls is float
                    or cls is bool
                    or value is None
                    or (cls is int and -_MAX_INT < value < _MAX_INT)
                )
                digest = repr(value) if is_short else digest_of_value(value)
                digests.setdefault(name, []).append(digest)
    saved_names = {
        *_STATE_ATTRIBUTES,
        *trainer.state_dict_user_keys,
        *state_names_of_handlers(trainer),
        *_output_store_names(trainer),
    }
    values[_STATE.rstrip(".")] = {
        name: [digest_of_value(value)]
        for name, value in vars(trainer.state).items()
        if name not in saved_names
    }
    return values


def _digests_beside_state(handler_objects: HandlerObjects) -> Values:
    """Returns the digests of the attributes beside the state, for all objects that have any."""
    return {
        f"{path}{_BESIDE}": {
            name: [digest_of_value(value)] for name, value in _attributes_beside_state(each)
        }
        for path, each in handler_objects.with_state.items()
        if _inherits_state(type(each))
    }


def _changed_beside_state(trainer: TrainingEngine, handler_objects: HandlerObjects) -> list[str]:
    """Returns the paths of the attributes beside the state that have changed."""
    initial, objects, changed = _initial_values(trainer), handler_objects.with_state, []
    for path, values in _digests_beside_state(handler_objects).items():
        before, name = initial.setdefault(path, values), path.removesuffix(_BESIDE)
        if not _is_reset_before_use(trainer, objects[name]):
            changed += [f"{name}.{each}" for each, now in values.items() if before.get(each) != now]
    return changed


def _inherits_state(cls: type) -> bool:
    """Returns whether objects of a class may have attributes beside the state."""
    source = next((each for each in cls.__mro__ if "state_dict" in vars(each)), object)
    if source.__module__.partition(".")[0] != "ignite":
        return False
    if not is_library_code(cls):
        return True
    # If one of Ignite's metrics names no attributes to save, its state is empty. Frequency and
    # GpuInfo need no state, because their values describe the machine and not the training.
    measures_the_machine = issubclass(cls, Frequency | GpuInfo)
    return source is Metric and not _names_in_state(cls) and not measures_the_machine


def _names_in_state(cls: type) -> tuple[str, ...]:
    return getattr(cls, "_state_dict_all_req_keys", ())


def _attributes_beside_state(obj: Any) -> Iterator[tuple[str, Any]]:
    """Yields the name and the value of each attribute beside the state of an object."""
    cls = type(obj)
    saved_names = {*_DERIVED_ATTRIBUTES, *_names_in_state(cls)}
    if issubclass(cls, BaseParamScheduler):
        saved_names |= {*obj._state_attrs}
    for name, value in stored_values(obj):
        if name not in saved_names:
            yield name, value
            if issubclass(type(value), Metric):  # a metric within a metric, as in CohenKappa
                yield from ((f"{name}.{n}", each) for n, each in stored_values(value))


def _is_reset_before_use(trainer: TrainingEngine, obj: Any) -> bool:
    """Returns whether an object is a metric that is reset before the next batch."""
    if not issubclass(type(obj), Metric):
        return False
    is_between_epochs = trainer.place.progress.batches == 0
    events = (Events.ITERATION_STARTED, *([Events.EPOCH_STARTED] if is_between_epochs else []))
    # Ignite resets a metric by calling its method `started`.
    return any(is_handler_of_event(trainer, each, obj.started) for each in events)


def stored_by_user(holder: Any) -> list[tuple[str, Any]] | None:
    """Returns the names and values that an object stores; None if the object is not compared.

    Functions, classes and objects are compared if they belong to the user's code. Objects of a few
    library classes are compared, too. A list, dict, set or deque is returned as a single value with
    an empty name.
    """
    cls = type(holder)
    if cls in (list, dict, set, deque):
        return [("", holder)]
    is_code = cls is FunctionType or issubclass(cls, type)
    is_user_class = not is_library_code(holder if is_code else cls)
    return (
        stored_values(holder)
        if is_user_class or issubclass(cls, _COMPARED_LIBRARY_CLASSES)
        else None
    )


def _output_store_names(trainer: TrainingEngine) -> Iterator[str]:
    """Yields the names of the attributes of ``trainer.state`` that an ``EpochOutputStore`` sets."""
    for function, _ in handlers_with_arguments(trainer):
        owner = getattr(function, "__self__", None)
        if isinstance(owner, EpochOutputStore) and hasattr(owner, "name"):
            yield owner.name


def digest_of_value(value: Any) -> str:
    """Returns a digest of a value.

    Plain data, arrays and containers are digested by their contents, and iterators by their
    position. For any other object, only its class is digested.
    """
    budget = [_MAX_ELEMENTS]  # a list, because all the nested calls count down the same number
    digestible = _digestible(value, budget, 0)
    if digestible is None:
        return UNKNOWN
    if type(digestible) is bytes:
        return xxh3_128_hexdigest(digestible)
    # `_digestible` returns a pair of texts for a scalar, such as ("int", "0x3"), and for an object
    # of which only the class is digested. A short pair serves as its own digest.
    is_pair_of_texts = (
        type(digestible) is tuple and len(digestible) == 2 and {*map(type, digestible)} == {str}
    )
    if is_pair_of_texts and len(digestible[1]) <= _MAX_TEXT:
        return str(digestible)
    return digest_of(digestible)


def _digestible(value: Any, budget: list[int], depth: int) -> Any:
    """Returns a value as data that can be digested; None for an iterator of unknown position."""
    cls = type(value)
    budget[0] -= 1
    if issubclass(cls, _SCALAR_TYPES):
        # Integers are written in hexadecimal digits, because Python refuses to write very long
        # integers in decimal digits.
        return cls.__name__, hex(value) if cls is int else repr(value)
    if issubclass(cls, torch.Tensor | np.ndarray):
        return _sample(value)
    if issubclass(cls, list | tuple | set | frozenset | deque | Mapping):
        return _digestible_container(value, budget, depth)
    if hasattr(cls, "__next__") and not issubclass(cls, io.IOBase):
        return _iterator_position(value, budget, depth)
    return cls.__module__, cls.__qualname__


def _digestible_container(value: Any, budget: list[int], depth: int) -> Any:
    """Returns a container as data that can be digested, within the bounds."""
    cls = type(value)
    if not is_library_code(cls):
        # A container of a user's class is not iterated, because an iteration could run any code.
        # Its length is compared, unless the checkpoint saves the container.
        return cls.__qualname__, None if can_be_saved(value) else len(value)
    elements = list(value.items() if issubclass(cls, Mapping) else value)
    if len(elements) <= _MAX_NUMBERS and {*map(type, elements)} <= {bool, int, float, str}:
        in_order = sorted(elements, key=repr) if issubclass(cls, set | frozenset) else elements
        # In format 2, equal values always give equal bytes. In later formats of marshal, the bytes
        # also depend on reference counts.
        return marshal.dumps(in_order, 2)
    if depth == _MAX_DEPTH or budget[0] < 0:
        return cls.__name__, len(elements)
    inner = []
    for each in elements:
        if budget[0] < 0:
            break
        inner.append(_digestible(each, budget, depth + 1))
    if issubclass(cls, set | frozenset):
        inner = sorted(inner, key=repr)
    return None if None in inner else (cls.__name__, len(elements), inner)


def _iterator_position(iterator: Any, budget: list[int], depth: int) -> Any:
    """Returns how far an iterator has advanced; None if the position is unknown.

    The iterator itself is not advanced.
    """
    if isinstance(iterator, GeneratorType):
        if getgeneratorstate(iterator) == GEN_CREATED:
            return "generator, not begun"
        frame = iterator.gi_frame
        variables = {} if frame is None else getgeneratorlocals(iterator)
        # The last instruction and the local variables show how far the generator has run.
        position = None if frame is None else frame.f_lasti
        return "generator", position, _digestible(variables, budget, depth + 1)
    cls = type(iterator)
    if is_library_code(cls) and hasattr(cls, "__length_hint__"):
        return cls.__name__, length_hint(iterator)
    return repr(iterator) if cls is itertools.count else None


def _sample(value: Any) -> Any:
    """Returns the shape and the elements of an array.

    Of a large array, only evenly spaced elements are returned.
    """
    is_dense = not isinstance(value, torch.Tensor) or value.layout == torch.strided
    if not is_dense or (isinstance(value, np.ndarray) and value.dtype.hasobject):
        # The elements of sparse tensors and of arrays of objects are not compared.
        return type(value).__name__, str(value.dtype), tuple(value.shape)
    flat = value.detach().reshape(-1) if isinstance(value, torch.Tensor) else value.reshape(-1)
    return tuple(value.shape), flat[:: 1 + flat.shape[0] // _MAX_NUMBERS]
