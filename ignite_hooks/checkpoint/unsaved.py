"""What changes in a run and has no state to save: counters of handlers, lists in closures.

No checkpoint can restore it, so the report of a resume names it. Values are compared with those at
the beginning of the first run, when the handlers of STARTED have set what they set: what is the
same then is the same in the process that resumes. Objects of libraries are not compared; their
values are clocks, files and connections.

A ``state_dict`` that a class inherits from Ignite has what Ignite knows of. What a metric keeps
besides, for instance, is lost with a resume in the middle of an epoch.
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
from ignite_hooks.checkpoint.members import Members
from ignite_hooks.checkpoint.members import can_be_saved
from ignite_hooks.checkpoint.members import state_names_of_handlers
from ignite_hooks.checkpoint.report import some
from ignite_hooks.core.engine import belongings
from ignite_hooks.core.engine import calls_of
from ignite_hooks.core.engine import is_called_at
from ignite_hooks.core.object_graph import is_of_library
from ignite_hooks.core.object_graph import stored_values
from ignite_hooks.core.training_engine import TrainingEngine

__all__ = ["UNKNOWN", "digest_of_value", "note_beginning", "stored_by_user", "unsaved_changes"]

_MAX_DEPTH = 8
_MAX_ELEMENTS = 10_000
_MAX_NUMBERS = 1_000_000
_MAX_TEXT = 200
_MAX_INT = 2**63
_COMPARED = (Namespace, SimpleNamespace, UserDict, UserList, FastaiLRFinder)
_SCALARS = (bool, int, float, complex, str, bytes, type(None), Enum, PurePath, np.generic)
# Of a metric of Ignite: what it finds out from the first batch, and what it has computed.
_NO_STATE = {"_is_reduced", "_num_classes", "_result", "_type"}
_OF_TRAINER = {
    *vars(State()),
    *("loss", "max_steps", "model_outputs", "optimizer_step", "start_epoch", "start_step"),
    *("step_committed", "validation"),
}


def note_beginning(trainer: TrainingEngine) -> None:
    """Notes the values that a run begins with, of what was not noted in this process yet."""
    noted = _noted(trainer)
    members = Members.of(trainer)
    for path, values in (_values(trainer, members) | _values_beside_state(members)).items():
        noted.setdefault(path, values)


def unsaved_changes(trainer: TrainingEngine, members: Members) -> str:
    """Returns what has changed and is not saved, and what to do; "" if there is nothing.

    Args:
        trainer: the trainer.
        members: what its handlers hold.
    """
    noted, changed = _noted(trainer), []
    for path, values in _values(trainer, members).items():
        before = noted.setdefault(path, values)
        changed += [
            f"{path}.{name}" if name else path
            for name, value in values.items()
            if before.get(name) != value or UNKNOWN in value
        ]
    of_state = [path for path in changed if path.startswith(_STATE)]
    of_handlers = [path for path in changed if not path.startswith(_STATE)]
    beside = _changed_beside_state(trainer, members)
    reasons = []
    if of_handlers:
        reasons.append(
            f"{some(of_handlers)} changed and cannot be saved: give the object state_dict() and "
            "load_state_dict(), or keep the value in one that has them"
        )
    if beside:
        reasons.append(
            f"{some(beside)} changed and is in no state_dict(): a value computed from it is wrong "
            "until it is reset; a class can name such attributes in _state_dict_all_req_keys"
        )
    if of_state:
        names = ", ".join(repr(path.removeprefix(_STATE)) for path in sorted(of_state))
        reasons.append(
            f"{some(of_state)} changed: append {names} to trainer.state_dict_user_keys to have it "
            "saved"
        )
    if members.unnamed:
        reasons.append(
            f"{some(members.unnamed)} have no order that another process repeats: keep them in a "
            "list or by name"
        )
    if not members.is_complete:
        reasons.append("handlers hold too many objects to look at all of them")
    return "; ".join(reasons)


_STATE = "trainer.state."
_BESIDE = " beside its state"
UNKNOWN = "?"
"""The digest of an iterator whose place cannot be told."""
Values = dict[str, dict[str, list[str]]]


def _noted(trainer: TrainingEngine) -> Values:
    noted: Values = belongings(trainer).setdefault("values_at_beginning", {})
    return noted


def _values(trainer: TrainingEngine, members: Members) -> Values:
    """Returns digests of the values that handlers hold: by the path to the holder, and by name."""
    values: Values = {}
    for path, holder in members.stateless:
        if (stored := stored_by_user(holder)) is not None:
            of_holder = values.setdefault(path, {})
            for name, value in stored:
                kind = type(value)  # most values are numbers, which need no call
                is_short = (
                    kind is float
                    or kind is bool
                    or value is None
                    or (kind is int and -_MAX_INT < value < _MAX_INT)
                )
                digest = repr(value) if is_short else digest_of_value(value)
                of_holder.setdefault(name, []).append(digest)
    known = {
        *_OF_TRAINER,
        *trainer.state_dict_user_keys,
        *state_names_of_handlers(trainer),
        *_names_of_stores(trainer),
    }
    values[_STATE.rstrip(".")] = {
        name: [digest_of_value(value)]
        for name, value in vars(trainer.state).items()
        if name not in known
    }
    return values


def _values_beside_state(members: Members) -> Values:
    """Returns digests of what objects store that their state, inherited from Ignite, has not."""
    return {
        f"{path}{_BESIDE}": {name: [digest_of_value(value)] for name, value in _beside_state(each)}
        for path, each in members.with_state.items()
        if _inherits_state(type(each))
    }


def _changed_beside_state(trainer: TrainingEngine, members: Members) -> list[str]:
    """Returns what of it has changed, but for metrics that are reset before they are used next."""
    noted, things, changed = _noted(trainer), members.with_state, []
    for path, values in _values_beside_state(members).items():
        before, name = noted.setdefault(path, values), path.removesuffix(_BESIDE)
        if not _is_reset_next(trainer, things[name]):
            changed += [f"{name}.{each}" for each, now in values.items() if before.get(each) != now]
    return changed


def _inherits_state(kind: type) -> bool:
    """Returns whether a class has the ``state_dict`` of one of Ignite, which may not know all."""
    source = next((each for each in kind.__mro__ if "state_dict" in vars(each)), object)
    if source.__module__.partition(".")[0] != "ignite":
        return False
    if not is_of_library(kind):
        return True
    is_clock = issubclass(kind, Frequency | GpuInfo)
    return source is Metric and not _names_in_state(kind) and not is_clock


def _names_in_state(kind: type) -> tuple[str, ...]:
    return getattr(kind, "_state_dict_all_req_keys", ())


def _beside_state(thing: Any) -> Iterator[tuple[str, Any]]:
    kind = type(thing)
    known = {*_NO_STATE, *_names_in_state(kind)}
    if issubclass(kind, BaseParamScheduler):
        known |= {*thing._state_attrs}
    for name, value in stored_values(thing):
        if name not in known:
            yield name, value
            if issubclass(type(value), Metric):  # one within, of a kappa for instance
                yield from ((f"{name}.{n}", each) for n, each in stored_values(value))


def _is_reset_next(trainer: TrainingEngine, thing: Any) -> bool:
    """Returns whether an object is a metric that begins afresh with the next batch."""
    if not issubclass(type(thing), Metric):
        return False
    is_between_epochs = trainer.place.progress.batches == 0
    events = (Events.ITERATION_STARTED, *([Events.EPOCH_STARTED] if is_between_epochs else []))
    return any(is_called_at(trainer, each, thing.started) for each in events)


def stored_by_user(holder: Any) -> list[tuple[str, Any]] | None:
    """Returns what an object of a user stores; None for one whose changes do not matter."""
    kind = type(holder)
    if kind in (list, dict, set, deque):
        return [("", holder)]
    is_code = kind is FunctionType or issubclass(kind, type)
    is_users = not is_of_library(holder if is_code else kind)
    return stored_values(holder) if is_users or issubclass(kind, _COMPARED) else None


def _names_of_stores(trainer: TrainingEngine) -> Iterator[str]:
    """Yields the attributes that Ignite's stores of outputs fill at the end of each epoch."""
    for function, _ in calls_of(trainer):
        owner = getattr(function, "__self__", None)
        if isinstance(owner, EpochOutputStore) and hasattr(owner, "name"):
            yield owner.name


def _class_of(thing: Any) -> type:
    return thing if issubclass(type(thing), type) else type(thing)


def digest_of_value(value: Any) -> str:
    """Returns a digest of plain data, iterators and containers; of other objects, of the class."""
    budget = [_MAX_ELEMENTS]
    plain = _plain(value, budget, 0)
    if plain is None:
        return UNKNOWN
    if type(plain) is bytes:
        return xxh3_128_hexdigest(plain)
    is_name = type(plain) is tuple and len(plain) == 2 and {*map(type, plain)} == {str}
    if is_name and len(plain[1]) <= _MAX_TEXT:
        return str(plain)
    return digest_of(plain)


def _plain(value: Any, budget: list[int], depth: int) -> Any:
    """Returns a value as data that can be digested; None for an iterator of unknown place."""
    kind = type(value)
    budget[0] -= 1
    if issubclass(kind, _SCALARS):
        # Python refuses to write very long integers in decimal digits.
        return kind.__name__, hex(value) if kind is int else repr(value)
    if issubclass(kind, torch.Tensor | np.ndarray):
        return _sample(value)
    if issubclass(kind, list | tuple | set | frozenset | deque | Mapping):
        return _plain_container(value, budget, depth)
    if hasattr(kind, "__next__") and not issubclass(kind, io.IOBase):
        return _place_of_iterator(value, budget, depth)
    return kind.__module__, kind.__qualname__


def _plain_container(value: Any, budget: list[int], depth: int) -> Any:
    kind = type(value)
    if not is_of_library(kind):
        return kind.__qualname__, None if can_be_saved(value) else len(value)
    elements = list(value.items() if issubclass(kind, Mapping) else value)
    if len(elements) <= _MAX_NUMBERS and {*map(type, elements)} <= {bool, int, float, str}:
        in_order = sorted(elements, key=repr) if issubclass(kind, set | frozenset) else elements
        return marshal.dumps(in_order, 2)  # later versions depend on counts of references
    if depth == _MAX_DEPTH or budget[0] < 0:
        return kind.__name__, len(elements)
    inner = []
    for each in elements:
        if budget[0] < 0:
            break
        inner.append(_plain(each, budget, depth + 1))
    if issubclass(kind, set | frozenset):
        inner = sorted(inner, key=repr)
    return None if None in inner else (kind.__name__, len(elements), inner)


def _place_of_iterator(iterator: Any, budget: list[int], depth: int) -> Any:
    if isinstance(iterator, GeneratorType):
        if getgeneratorstate(iterator) == GEN_CREATED:
            return "generator, not begun"
        frame = iterator.gi_frame
        variables = {} if frame is None else getgeneratorlocals(iterator)
        place = None if frame is None else frame.f_lasti
        return "generator", place, _plain(variables, budget, depth + 1)
    kind = type(iterator)
    if is_of_library(kind) and hasattr(kind, "__length_hint__"):
        return kind.__name__, length_hint(iterator)
    return repr(iterator) if kind is itertools.count else None


def _sample(value: Any) -> Any:
    """Returns an array, or elements of a large one at equal distances."""
    is_dense = not isinstance(value, torch.Tensor) or value.layout == torch.strided
    if not is_dense or (isinstance(value, np.ndarray) and value.dtype.hasobject):
        return type(value).__name__, str(value.dtype), tuple(value.shape)
    flat = value.detach().reshape(-1) if isinstance(value, torch.Tensor) else value.reshape(-1)
    return tuple(value.shape), flat[:: 1 + flat.shape[0] // _MAX_NUMBERS]
