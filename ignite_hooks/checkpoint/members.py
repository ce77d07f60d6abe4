"""Which handlers of a trainer, and objects that they hold, have a state that a checkpoint carries.

The objects are found where handlers, and the functions that a step calls, store them: in
attributes, closures, partials, arguments of handlers, globals that their code names, and in
containers of such. What a checkpoint has in another place, the model and the optimizer for
instance, is left out, and so is what is in it.
"""

import inspect
from collections import Counter
from collections import deque
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Set
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from types import MethodType
from typing import Any

import torch
from ignite.engine import Engine
from ignite.handlers import EMAHandler
from ignite.handlers import EpochOutputStore
from ignite.handlers import ParamGroupScheduler
from ignite.handlers.base_logger import BaseLogger
from ignite.handlers.param_scheduler import BaseParamScheduler
from ignite.handlers.state_param_scheduler import StateParamScheduler
from ignite.metrics import Metric
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from ignite_hooks.checkpoint.member_state import plain_state
from ignite_hooks.core.accelerators import registered_objects
from ignite_hooks.core.engine import belongings
from ignite_hooks.core.engine import calls_of
from ignite_hooks.core.engine import process_function_of
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached
from ignite_hooks.core.object_graph import MAX_OBJECTS
from ignite_hooks.core.object_graph import UNORDERED
from ignite_hooks.core.object_graph import ObjectSearch
from ignite_hooks.core.object_graph import is_of_library
from ignite_hooks.core.object_graph import reference_to
from ignite_hooks.core.torch_modules import tensors_in
from ignite_hooks.core.training_engine import AnyEngine
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.evaluation.validation import Validation
from ignite_hooks.hooks.context import Hook
from ignite_hooks.hooks.context import HookContext
from ignite_hooks.hooks.hooks import Hooks

__all__ = ["Members", "can_be_saved", "handlers_with_state", "has_state", "state_names_of_handlers"]

_PARAM_SCHEDULERS = (BaseParamScheduler, ParamGroupScheduler)
# Containers, calls and handlers of these are looked into; what others hold is their own.
_OPEN_LIBRARIES = {
    "builtins",
    "collections",
    "functools",
    "ignite",
    "itertools",
    "types",
    "weakref",
}
_OPEN_CLASSES = (Hook, HookContext, Hooks, LRScheduler)
_CLOSED_CLASSES = (torch.nn.Module, Optimizer, DataLoader, Metric, BaseLogger)
_DATA_LIBRARIES = {"datasets", "torchdata"}
_PARTS_OF_DATA = (
    *("base_dataloader", "dataset", "datasets", "sampler", "batch_sampler", "collate_fn"),
    "generator",
)
_CONTAINERS = (list, dict, set, deque)
Root = tuple[str, Any, bool]
Found = list[tuple[str, Any]]


@dataclass(frozen=True)
class Members:
    """What the handlers of a trainer hold.

    Args:
        attached: the handlers that have a state, by name.
        held: other objects that have one, by name.
        stateless: what else was found and may change in a run, after the path that leads to it.
        unnamed: the paths to objects with a state whose order another process may see differently.
        is_complete: whether everything was looked at.
    """

    attached: dict[str, Any]
    held: dict[str, Any]
    stateless: list[tuple[str, Any]]
    unnamed: list[str]
    is_complete: bool

    @classmethod
    def of(cls, trainer: TrainingEngine, also: Iterable[Any] = ()) -> "Members":
        """Returns what the handlers of ``trainer`` hold, but for the objects in ``also``.

        The search is kept with the trainer, and made again when what it has found may be another.
        """
        kept = belongings(trainer)
        roots, elsewhere = _roots(trainer), [*_saved_elsewhere(trainer), *also]
        search: _Search | None = kept.get("members")
        if search is None or not search.is_of(trainer, roots, elsewhere):
            search = kept["members"] = _Search(trainer, roots, elsewhere)
        return search.members()

    @property
    def with_state(self) -> dict[str, Any]:
        """All that have a state and a name."""
        return {**self.attached, **self.held}


class _Search:
    """A search through what the handlers of a trainer hold.

    Args:
        trainer: the trainer.
        roots: where it begins.
        elsewhere: what is left out.
    """

    def __init__(self, trainer: TrainingEngine, roots: list[Root], elsewhere: list[Any]) -> None:
        self._begins_at = _identities(roots, elsewhere)  # the search keeps these objects
        self._modules: list[tuple[Callable[[], Any], tuple[bool, bool]]] = []
        self._attached: dict[str, Any] = {}
        self._roots: dict[str, Any] = {}
        theirs = tensors_in(*trainer.modules.values()).keys()
        seen = {id(each) for each in elsewhere}
        for name, root, is_attached in roots:
            if id(root) not in seen:
                seen.add(id(root))
                _add(self._roots, name, root)
                if (
                    is_attached
                    and has_state(root)
                    and not (_is_closed(root) or self._is_of_trainer(root, theirs))
                ):
                    _add(self._attached, type(root).__name__, root)
        self._attached_ones = {id(each) for each in self._attached.values()}
        # A handler may be a method of a container, `losses.append` for instance.
        stateless = [(n, root) for n, root in self._roots.items() if type(root) in _CONTAINERS]
        found: Found = []
        self._search = ObjectSearch(self._roots, MAX_OBJECTS, elsewhere, _parts_of)
        for path, each in self._search:
            is_of_trainer = self._is_of_trainer(each, theirs)
            if id(each) in self._attached_ones:
                found.append((path, each))
            elif not can_be_saved(each):
                stateless.append((path, each))
            elif not is_of_trainer:
                found.append((path, each))
        self._found = [(path, reference_to(each)) for path, each in found]
        self._stateless = [(path, reference_to(each)) for path, each in stateless]

    def _is_of_trainer(self, thing: Any, theirs: Set[int]) -> bool:
        """Returns whether an object is a module that has tensors of the trainer's modules alone."""
        if not issubclass(type(thing), torch.nn.Module):
            return False
        standing = _standing(thing, theirs)
        self._modules.append((reference_to(thing), standing))
        return standing[1]

    def is_of(self, trainer: TrainingEngine, roots: list[Root], elsewhere: list[Any]) -> bool:
        """Returns whether another search would find the same."""
        if _identities(roots, elsewhere) != self._begins_at or self._search.has_changed():
            return False
        if not self._modules:
            return True
        # The search for changes passes over tensors.
        theirs = tensors_in(*trainer.modules.values()).keys()
        return not [was for get, was in self._modules if _standing(get(), theirs) != was]

    def members(self) -> Members:
        """Returns what was found. Which states contain which, is decided by those of now."""
        found = [(path, get()) for path, get in self._found]
        kept = [
            (path, each)
            for path, each in found
            if id(each) not in self._attached_ones and not _is_saved_by_owner(path, each, found)
        ]
        unnamed = _without_order(kept) if kept else set()
        held: dict[str, Any] = {}
        if kept:
            named = [(path, each) for path, each in kept if path not in unnamed]
            held = _named(named, self._roots, self._attached)
        stateless = [(path, get()) for path, get in self._stateless]
        is_complete = self._search.is_complete
        return Members({**self._attached}, held, stateless, sorted(unnamed), is_complete)


def _identities(roots: list[Root], elsewhere: list[Any]) -> list[Any]:
    return [(name, id(root), is_attached) for name, root, is_attached in roots] + [
        *map(id, elsewhere)
    ]


def _standing(module: torch.nn.Module, theirs: Set[int]) -> tuple[bool, bool]:
    """Returns whether a module has tensors, and whether they are all among those of a trainer."""
    tensors = tensors_in(module).keys()
    return bool(tensors), tensors <= theirs


def handlers_with_state(trainer: TrainingEngine, also: Iterable[Any] = ()) -> dict[str, Any]:
    """Returns the handlers that have a state, and the objects with a state that handlers hold.

    A handler's name is that of its class; the second of a class, by the names of their events and
    then in the order of attachment, is called "EarlyStopping-2", and so on. Those of the evaluators
    that the trainer validates with follow, but for metrics, which each validation resets.

    The object with a state that a handler without one holds has the name of the handler, followed
    by the path to the object if there are several. An object that a function holds has the name of
    its class, followed by that of the variable if there are several of its class.

    Args:
        trainer: the trainer.
        also: objects that are left out.
    """
    return Members.of(trainer, also).with_state


def has_state(candidate: Any) -> bool:
    """Returns whether an object can return its state and load one."""
    return (
        not isinstance(candidate, type)
        and callable(getattr(candidate, "state_dict", None))
        and callable(getattr(candidate, "load_state_dict", None))
    )


def state_names_of_handlers(trainer: TrainingEngine) -> list[str]:
    """Returns the attributes of ``trainer.state`` that handlers of Ignite keep a value in."""
    names: dict[str, None] = {}
    for function, given in calls_of(trainer):
        owner = getattr(function, "__self__", function)
        if isinstance(owner, StateParamScheduler):
            names[owner.param_name] = None
        elif isinstance(owner, EMAHandler):
            names |= {each: None for each in given if isinstance(each, str)}
        if isinstance(owner, _PARAM_SCHEDULERS) and owner.save_history:
            names["param_history"] = None
    return [name for name in names if hasattr(trainer.state, name)]


def _roots(trainer: TrainingEngine) -> list[Root]:
    """Returns where a search begins: name, object, and whether it is an attached handler."""
    calls = calls_of(trainer)
    handlers = [*attached(trainer, Handler), *(function for function, _ in calls)]
    validations = [each for each in handlers if isinstance(each, Validation)]
    owners = [getattr(each, "__self__", each) for each in handlers]
    owners = [each for each in owners if not _is_ours(each) or has_state(each) or _parts_of(each)]
    for validation in validations:
        for engine in validation.evaluations.engines:
            owners += _owners(engine)
    roots = [(_name_of(each), each, True) for each in owners]
    for validation in validations:
        roots += [(_name_of(each), each, False) for each in validation.evaluations.callables]
    for function, given in calls:
        if given:
            name = _name_of(function)
            roots += [(name, each, False) for each in given]
    functions = _called_by(process_function_of(trainer))
    return roots + [(_name_of(each), each, False) for each in functions]


def _called_by(function: Any) -> list[Any]:
    """Returns the functions and objects of a user behind a process function.

    That of a supervised trainer calls ``loss_fn``, ``batch_processor`` and so on by functions of
    this package. A second optimizer, of a GAN for instance, is there.
    """
    if not (isinstance(function, FunctionType) and _is_ours(function)):
        return [function]
    found = []
    for cell in function.__closure__ or ():
        if callable(cell.cell_contents) and cell.cell_contents is not function:
            found += _called_by(cell.cell_contents)
    return found


def _owners(evaluator: AnyEngine) -> list[Any]:
    """Returns what an evaluator's events call but for what each of its runs resets."""
    owners = [getattr(each, "__self__", each) for each, _ in calls_of(evaluator)]
    return [each for each in owners if not isinstance(each, Metric | EpochOutputStore)]


def _saved_elsewhere(trainer: TrainingEngine) -> Iterator[Any]:
    """Yields what a checkpoint has besides the states of handlers, or what has none."""
    yield trainer
    yield trainer.state
    yield trainer.accelerator
    yield from registered_objects(trainer.accelerator)
    yield from trainer.modules.values()
    if trainer.accelerator.scaler is not None:
        yield trainer.accelerator.scaler
    for outer, name in ((trainer.optimizer, "optimizer"), (trainer.lr_scheduler, "scheduler")):
        inner: Any = outer
        while inner is not None:
            yield inner
            inner = vars(inner).get(name)
    waiting = [getattr(trainer.feed, "loader", None)]
    seen: dict[int, Any] = {}
    while waiting:
        part = waiting.pop()
        if part is not None and id(part) not in seen:
            seen[id(part)] = part
            held = getattr(part, "__dict__", {})
            for each in map(held.get, _PARTS_OF_DATA):
                waiting += each if isinstance(each, list) else [each]
    yield from seen.values()


def _parts_of(thing: Any) -> Iterable[tuple[str | None, Any]] | None:
    """Returns what is looked at of an object that is not looked into as a whole; else None."""
    kind = type(thing)
    if kind is MethodType:
        return ((None, thing.__self__), (None, thing.__func__))
    if kind is FunctionType and _is_ours(thing):
        return _callbacks(thing)
    if issubclass(kind, Engine):
        return [(_name_of(each), each) for each in _owners(thing)]
    if issubclass(kind, _CLOSED_CLASSES):
        return ()
    if not is_of_library(kind) or issubclass(kind, _OPEN_CLASSES):
        return None
    return None if kind.__module__.partition(".")[0] in _OPEN_LIBRARIES else ()


def _callbacks(function: FunctionType) -> list[tuple[str | None, Any]]:
    """Returns the functions that a function of this package calls for a handler of a user."""
    cells = [each.cell_contents for each in function.__closure__ or ()]
    called = [each for each in cells if isinstance(each, FunctionType | MethodType | partial)]
    return [(None, each) for each in called if not _is_ours(each)] if called else []


def _is_ours(thing: Any) -> bool:
    """Returns whether a handler is of this package, and its parts are none of a user's."""
    owner = getattr(thing, "__self__", thing)
    module = owner.__module__ if isinstance(owner, FunctionType) else type(owner).__module__
    is_open = isinstance(owner, _OPEN_CLASSES) and bool(owner)  # a set of hooks may be empty
    return not is_open and str(module).partition(".")[0] == "ignite_hooks"


def _is_closed(thing: Any) -> bool:
    """Returns whether the state of an object, if it has one, is not that of a handler."""
    kind = type(thing)
    if issubclass(kind, torch.nn.Module):
        return not tensors_in(thing)
    if is_of_library(kind) and kind.__module__.partition(".")[0] in _DATA_LIBRARIES:
        return True
    return issubclass(kind, type | Engine | DataLoader)


def can_be_saved(thing: Any) -> bool:
    """Returns whether an object that was found has a state; none of its code is called."""
    if _is_closed(thing):
        return False
    if issubclass(type(thing), EpochOutputStore):
        return True
    methods = (
        inspect.getattr_static(thing, name, None) for name in ("state_dict", "load_state_dict")
    )
    return all(callable(each) or isinstance(each, classmethod) for each in methods)


def _is_saved_by_owner(path: str, thing: Any, found: Found) -> bool:
    """Returns whether the state of an object is in that of one which leads to it."""
    owners = [
        owner
        for above, owner in found
        if path.startswith(f"{above}.") and not issubclass(type(owner), EpochOutputStore)
    ]
    return bool(owners) and any(_has(plain_state(each), plain_state(thing)) for each in owners)


def _has(state: Any, part: Any) -> bool:
    if _is_same(state, part):
        return True
    inner = state.values() if isinstance(state, Mapping) else state
    return isinstance(state, Mapping | list | tuple) and any(_has(each, part) for each in inner)


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        is_tensor = isinstance(other, torch.Tensor) and one.layout == torch.strided == other.layout
        return is_tensor and one.data_ptr() == other.data_ptr() and one.shape == other.shape
    if isinstance(one, Mapping):
        is_alike = isinstance(other, Mapping) and one.keys() == other.keys()
        return is_alike and all(_is_same(each, other[key]) for key, each in one.items())
    if isinstance(one, list | tuple):
        is_alike = isinstance(other, list | tuple) and len(one) == len(other)
        return is_alike and all(map(_is_same, one, other))
    return type(one) is type(other) and (one is other or repr(one) == repr(other))


def _without_order(found: Found) -> set[str]:
    """Returns the paths to objects in a set of several of their class."""
    kinds = Counter(type(each) for path, each in found if UNORDERED in path)
    return {path for path, each in found if UNORDERED in path and kinds[type(each)] > 1}


def _named(
    found: Found, roots: Mapping[str, Any], attached_ones: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns objects by names that do not depend on handlers without a state."""
    taken = dict(attached_ones)
    of_root = Counter(_root(path) for path, _ in found)
    of_class = Counter(type(e).__name__ for e in (*(e for _, e in found), *taken.values()))
    in_root = Counter((_root(path), type(each)) for path, each in found)
    for path, each in found:
        root, kind = _root(path), type(each).__name__
        inner = path.removeprefix(root).removeprefix(".")
        if inner and _is_handler_object(roots[root]):
            is_far = "." in inner and in_root[root, type(each)] == 1
            is_alone = of_root[root] == 1 and not has_state(roots[root])
            name = root if is_alone else f"{root}.{kind}" if is_far else path
        elif of_class[kind] == 1:
            name = kind
        else:
            name = f"{kind}-{inner or root}"
        _add(taken, name, each)
    return {name: each for name, each in taken.items() if name not in attached_ones}


def _root(path: str) -> str:
    return path.partition(".")[0]


def _is_handler_object(root: Any) -> bool:
    """Returns whether a root is an object that acts as a handler, and not a function or data."""
    is_data = type(root).__module__ in ("builtins", "functools", "types", "collections")
    return not is_data and not isinstance(root, Hooks)


def _name_of(root: Any) -> str:
    return root.__name__ if type(root) is FunctionType else type(root).__name__


def _add(named: dict[str, Any], name: str, thing: Any) -> None:
    """Adds a thing under its name, or under that name with a number."""
    number, free = 1, name
    while free in named:
        number += 1
        free = f"{name}-{number}"
    named[free] = thing
