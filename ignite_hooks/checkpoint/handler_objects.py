"""Searches the handlers of a trainer, and what they hold, for objects with a state.

An object has a state if it has the methods ``state_dict`` and ``load_state_dict``. The search
begins at the roots: the handlers, the arguments that they are called with, and the user's functions
that a training step calls. From the roots the search follows attributes, closures, partials, the
globals that the code of a function names, and containers of all these.

The search leaves out the objects that a checkpoint saves elsewhere, such as the model and the
optimizer, and does not follow their attributes.
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

from ignite_hooks.checkpoint.object_state import plain_state
from ignite_hooks.core.accelerators import registered_objects
from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.engine import handlers_with_arguments
from ignite_hooks.core.engine import process_function_of
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.object_graph import MAX_OBJECTS
from ignite_hooks.core.object_graph import SET_ELEMENT_PREFIX
from ignite_hooks.core.object_graph import ObjectSearch
from ignite_hooks.core.object_graph import is_library_code
from ignite_hooks.core.object_graph import reference_to
from ignite_hooks.core.torch_modules import tensors_in
from ignite_hooks.core.training_engine import AnyEngine
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.evaluation.validation import Validation
from ignite_hooks.hooks.context import Hook
from ignite_hooks.hooks.context import HookContext
from ignite_hooks.hooks.hooks import Hooks

__all__ = [
    "HandlerObjects",
    "can_be_saved",
    "handlers_with_state",
    "has_state",
    "state_names_of_handlers",
]

_PARAM_SCHEDULERS = (BaseParamScheduler, ParamGroupScheduler)
# The search enters all objects of the user's classes and of these libraries: it also searches the
# objects that they hold. From other libraries, it enters only objects of `_SEARCHED_CLASSES`.
_SEARCHED_LIBRARIES = {
    "builtins",
    "collections",
    "functools",
    "ignite",
    "itertools",
    "types",
    "weakref",
}
# Classes of torch and of this package whose objects the search enters, too.
_SEARCHED_CLASSES = (Hook, HookContext, Hooks, LRScheduler)
# The search never enters objects of these classes or of their subclasses.
_UNSEARCHED_CLASSES = (torch.nn.Module, Optimizer, DataLoader, Metric, BaseLogger)
# The state of an object of these libraries is a position in the data. It is not saved with the
# handlers, because the trainer's `DataFeed` saves the position.
_DATA_LIBRARIES = {"datasets", "torchdata"}
# Attributes in which a data loader and its parts hold further parts.
_DATA_ATTRIBUTES = (
    *("base_dataloader", "dataset", "datasets", "sampler", "batch_sampler", "collate_fn"),
    "generator",
)
_CONTAINERS = (list, dict, set, deque)
Root = tuple[str, Any, bool]
"""An object at which a search begins: name, object, and whether it is an attached handler."""
Found = list[tuple[str, Any]]
"""Pairs of a path and the object to which the path leads, such as ("MyHandler.inner", inner)."""


@dataclass(frozen=True)
class HandlerObjects:
    """The handlers of a trainer and the objects that the handlers hold.

    Attributes:
        attached: maps names to the attached handlers that have a state.
        held: maps names to the other objects that have a state.
        stateless: pairs of a path and an object without a state. A run may change the object, and
            no checkpoint saves the change.
        unnamed: the paths to objects that have a state, but are not saved. Each of them is in a
            set, and so is another object of its class. The order of a set may differ in another
            process, so a resume could not tell the two apart.
        is_complete: whether the search has reached all objects; False if there are too many.
    """

    attached: dict[str, Any]
    held: dict[str, Any]
    stateless: list[tuple[str, Any]]
    unnamed: list[str]
    is_complete: bool

    @classmethod
    def of(cls, trainer: TrainingEngine, also: Iterable[Any] = ()) -> "HandlerObjects":
        """Returns the handlers of a trainer, and the objects that handlers hold.

        The objects in ``also`` are left out. The search is repeated only if the roots or the
        objects that they hold have changed since the last call.
        """
        cache = engine_storage(trainer)
        roots, excluded = _find_roots(trainer), [*_objects_saved_elsewhere(trainer), *also]
        search: _Search | None = cache.get("members")
        if search is None or not search.is_up_to_date(trainer, roots, excluded):
            search = cache["members"] = _Search(trainer, roots, excluded)
        return search.collect()

    @property
    def with_state(self) -> dict[str, Any]:
        """Maps names to all objects that have a state and a name: ``attached`` and ``held``."""
        return {**self.attached, **self.held}


class _Search:
    """A search through the objects that the handlers of a trainer hold.

    Args:
        trainer: the trainer.
        roots: the objects where the search begins.
        excluded: the objects that are left out.
    """

    def __init__(self, trainer: TrainingEngine, roots: list[Root], excluded: list[Any]) -> None:
        # The ids are enough to recognize the roots and the excluded objects: the search keeps these
        # objects alive, so no other object can get one of their ids.
        self._start = _identity_key(roots, excluded)
        # For each module that was checked: a function that returns the module, and the result of
        # `_tensor_ownership`.
        self._module_ownership: list[tuple[Callable[[], Any], tuple[bool, bool]]] = []
        self._attached: dict[str, Any] = {}
        self._roots: dict[str, Any] = {}
        trainer_tensors = tensors_in(*trainer.modules.values()).keys()
        seen = {id(each) for each in excluded}
        for name, root, is_attached in roots:
            if id(root) not in seen:
                seen.add(id(root))
                _add_unique(self._roots, name, root)
                if (
                    is_attached
                    and has_state(root)
                    and not (
                        _has_no_handler_state(root)
                        or self._is_trainer_module(root, trainer_tensors)
                    )
                ):
                    _add_unique(self._attached, type(root).__name__, root)
        self._attached_ids = {id(each) for each in self._attached.values()}
        # If a handler is a method of a container, such as `losses.append`, the root is the
        # container. It is put on the list here, because the search skips a container of numbers.
        stateless = [(n, root) for n, root in self._roots.items() if type(root) in _CONTAINERS]
        found: Found = []
        self._search = ObjectSearch(self._roots, MAX_OBJECTS, excluded, _search_parts)
        for path, each in self._search:
            is_of_trainer = self._is_trainer_module(each, trainer_tensors)
            if id(each) in self._attached_ids:
                # An attached handler is in `self._attached` already. It is put into `found` because
                # it may be an owner: `collect` leaves out objects that an owner's state contains.
                found.append((path, each))
            elif not can_be_saved(each):
                stateless.append((path, each))
            elif not is_of_trainer:  # a module of the trainer is saved in another file
                found.append((path, each))
        self._found = [(path, reference_to(each)) for path, each in found]
        self._stateless = [(path, reference_to(each)) for path, each in stateless]

    def _is_trainer_module(self, obj: Any, trainer_tensors: Set[int]) -> bool:
        """Returns whether an object is a module whose tensors all belong to the trainer's modules.

        The method also notes the module, so that ``is_up_to_date`` can repeat this check.
        """
        if not issubclass(type(obj), torch.nn.Module):
            return False
        ownership = _tensor_ownership(obj, trainer_tensors)
        self._module_ownership.append((reference_to(obj), ownership))
        return ownership[1]

    def is_up_to_date(
        self, trainer: TrainingEngine, roots: list[Root], excluded: list[Any]
    ) -> bool:
        """Returns whether a new search would find the same objects."""
        if _identity_key(roots, excluded) != self._start or self._search.has_changed():
            return False
        if not self._module_ownership:
            return True
        # `has_changed` does not notice that a module has got or lost tensors.
        trainer_tensors = tensors_in(*trainer.modules.values()).keys()
        return not [
            was
            for get, was in self._module_ownership
            if _tensor_ownership(get(), trainer_tensors) != was
        ]

    def collect(self) -> HandlerObjects:
        """Returns the objects that were found.

        An object is left out if its state is part of the state of another object that holds it. For
        example, the ``state_dict`` of a handler may contain that of an inner scheduler. The states
        are compared in each call, because states that are equal by chance may differ later.
        """
        found = [(path, get()) for path, get in self._found]
        saved_separately = [
            (path, each)
            for path, each in found
            if id(each) not in self._attached_ids and not _is_saved_by_owner(path, each, found)
        ]
        unnamed = _unordered_paths(saved_separately) if saved_separately else set()
        held: dict[str, Any] = {}
        if saved_separately:
            named = [(path, each) for path, each in saved_separately if path not in unnamed]
            held = _name_objects(named, self._roots, self._attached)
        stateless = [(path, get()) for path, get in self._stateless]
        is_complete = self._search.is_complete
        return HandlerObjects({**self._attached}, held, stateless, sorted(unnamed), is_complete)


def _identity_key(roots: list[Root], excluded: list[Any]) -> list[Any]:
    return [(name, id(root), is_attached) for name, root, is_attached in roots] + [
        *map(id, excluded)
    ]


def _tensor_ownership(module: torch.nn.Module, trainer_tensors: Set[int]) -> tuple[bool, bool]:
    """Returns two values: whether a module has tensors, and whether the trainer has all of them.

    Args:
        module: the module.
        trainer_tensors: the ids of all tensors of the trainer's modules.
    """
    tensors = tensors_in(module).keys()
    return bool(tensors), tensors <= trainer_tensors


def handlers_with_state(trainer: TrainingEngine, also: Iterable[Any] = ()) -> dict[str, Any]:
    """Maps names to objects that have a state: handlers, and objects that handlers hold.

    A handler is named after its class. Several handlers of a class are sorted by the names of their
    events and then by the order of attachment: the second one is called "EarlyStopping-2", and so
    on. Handlers of the trainer's evaluators come last. Metrics of these evaluators are left out,
    because each validation resets them.

    An object that a handler holds is named as follows. If the handler has no state and holds only
    one object with a state, this object gets the name of the handler. Otherwise the name of the
    object is the name of the handler and the path to the object, for example "MyHandler.ema". If
    this path has several parts, as in "MyHandler.averages.ema", and the handler holds no other
    object of the class ``EMA``, the name is "MyHandler.EMA".

    An object that a function holds is named after its class. If there are several objects of the
    class, the name of the variable is added.

    Args:
        trainer: the trainer.
        also: objects to leave out.
    """
    return HandlerObjects.of(trainer, also).with_state


def has_state(candidate: Any) -> bool:
    """Returns whether an object has the methods ``state_dict`` and ``load_state_dict``."""
    return (
        not isinstance(candidate, type)
        and callable(getattr(candidate, "state_dict", None))
        and callable(getattr(candidate, "load_state_dict", None))
    )


def state_names_of_handlers(trainer: TrainingEngine) -> list[str]:
    """Returns the names of the attributes of ``trainer.state`` that handlers of Ignite set."""
    names: dict[str, None] = {}
    for function, given in handlers_with_arguments(trainer):
        owner = getattr(function, "__self__", function)
        if isinstance(owner, StateParamScheduler):
            names[owner.param_name] = None
        elif isinstance(owner, EMAHandler):
            names |= {each: None for each in given if isinstance(each, str)}
        if isinstance(owner, _PARAM_SCHEDULERS) and owner.save_history:
            names["param_history"] = None
    return [name for name in names if hasattr(trainer.state, name)]


def _find_roots(trainer: TrainingEngine) -> list[Root]:
    """Returns the roots: the handlers, functions and other objects at which a search begins."""
    calls = handlers_with_arguments(trainer)
    handlers = [*attached_handlers(trainer, Handler), *(function for function, _ in calls)]
    validations = [each for each in handlers if isinstance(each, Validation)]
    owners = [getattr(each, "__self__", each) for each in handlers]
    # A handler of this package is left out if it has no state and holds no objects of a user.
    owners = [
        each
        for each in owners
        if not _is_of_package(each) or has_state(each) or _search_parts(each)
    ]
    for validation in validations:
        for engine in validation.evaluations.engines:
            owners += _evaluator_handlers(engine)
    roots = [(_name_of_root(each), each, True) for each in owners]
    for validation in validations:
        roots += [(_name_of_root(each), each, False) for each in validation.evaluations.callables]
    for function, given in calls:
        if given:  # `given` has the arguments that `add_event_handler` passes to the handler
            name = _name_of_root(function)
            roots += [(name, each, False) for each in given]
    functions = _user_functions(process_function_of(trainer))
    return roots + [(_name_of_root(each), each, False) for each in functions]


def _user_functions(function: Any) -> list[Any]:
    """Returns the user's functions and objects that a process function calls.

    The process function of a supervised trainer is a function of this package. Its closure holds
    the user's functions, such as ``loss_fn`` and ``batch_processor``. These functions are returned,
    because they may hold objects with a state, for example the second optimizer of a GAN.
    """
    if not (isinstance(function, FunctionType) and _is_of_package(function)):
        return [function]
    found = []
    for cell in function.__closure__ or ():
        if callable(cell.cell_contents) and cell.cell_contents is not function:
            found += _user_functions(cell.cell_contents)
    return found


def _evaluator_handlers(evaluator: AnyEngine) -> list[Any]:
    """Returns the handlers of an evaluator, except the handlers that each evaluation resets."""
    owners = [getattr(each, "__self__", each) for each, _ in handlers_with_arguments(evaluator)]
    return [each for each in owners if not isinstance(each, Metric | EpochOutputStore)]


def _objects_saved_elsewhere(trainer: TrainingEngine) -> Iterator[Any]:
    """Yields objects that are saved elsewhere in a checkpoint, or that have no state to save."""
    yield trainer
    yield trainer.state
    yield trainer.accelerator
    yield from registered_objects(trainer.accelerator)
    yield from trainer.modules.values()
    if trainer.accelerator.scaler is not None:
        yield trainer.accelerator.scaler
    for outer, name in ((trainer.optimizer, "optimizer"), (trainer.lr_scheduler, "scheduler")):
        inner: Any = outer  # the loop yields Accelerate's wrapper and then the wrapped object
        while inner is not None:
            yield inner
            inner = vars(inner).get(name)
    # The data loader and its parts are yielded, too, because the position in the data is saved in
    # the file of each process.
    pending = [getattr(trainer.feed, "loader", None)]
    seen: dict[int, Any] = {}
    while pending:
        part = pending.pop()
        if part is not None and id(part) not in seen:
            seen[id(part)] = part
            held = getattr(part, "__dict__", {})
            for each in map(held.get, _DATA_ATTRIBUTES):
                pending += each if isinstance(each, list) else [each]
    yield from seen.values()


def _search_parts(obj: Any) -> Iterable[tuple[str | None, Any]] | None:
    """Returns the parts of an object that are searched; None if the whole object is searched.

    A part is a pair of a name and a value. If the name is None, the part is named like the object.
    If the result is empty, nothing in the object is searched.
    """
    cls = type(obj)
    if cls is MethodType:
        return ((None, obj.__self__), (None, obj.__func__))
    if cls is FunctionType and _is_of_package(obj):
        # The globals of the function are not searched: they lead to all modules of this package.
        return _wrapped_handlers(obj)
    if issubclass(cls, Engine):
        return [(_name_of_root(each), each) for each in _evaluator_handlers(obj)]
    if issubclass(cls, _UNSEARCHED_CLASSES):
        return ()
    if not is_library_code(cls) or issubclass(cls, _SEARCHED_CLASSES):
        return None
    return None if cls.__module__.partition(".")[0] in _SEARCHED_LIBRARIES else ()


def _wrapped_handlers(function: FunctionType) -> list[tuple[str | None, Any]]:
    """Returns the user's functions in the closure of a function of this package.

    Each function is a part without a name, as in ``_search_parts``.
    """
    cells = [each.cell_contents for each in function.__closure__ or ()]
    called = [each for each in cells if isinstance(each, FunctionType | MethodType | partial)]
    return [(None, each) for each in called if not _is_of_package(each)] if called else []


def _is_of_package(obj: Any) -> bool:
    """Returns whether a handler or function is of this package and holds no objects of a user."""
    owner = getattr(obj, "__self__", obj)
    module = owner.__module__ if isinstance(owner, FunctionType) else type(owner).__module__
    holds_user_objects = isinstance(owner, _SEARCHED_CLASSES) and bool(
        owner
    )  # empty `Hooks` hold nothing
    return not holds_user_objects and str(module).partition(".")[0] == "ignite_hooks"


def _has_no_handler_state(obj: Any) -> bool:
    """Returns whether an object is of a kind that is never saved with the handlers.

    These kinds are modules without tensors, objects of data libraries, data loaders, engines and
    classes.
    """
    cls = type(obj)
    if issubclass(cls, torch.nn.Module):
        return not tensors_in(obj)
    if is_library_code(cls) and cls.__module__.partition(".")[0] in _DATA_LIBRARIES:
        return True
    return issubclass(cls, type | Engine | DataLoader)


def can_be_saved(obj: Any) -> bool:
    """Returns whether an object has a state that can be saved with the handlers.

    Unlike ``has_state``, the function calls no code of the object.
    """
    if _has_no_handler_state(obj):
        return False
    # An EpochOutputStore has no `state_dict`, but its outputs can be saved (`StatefulObject`).
    if issubclass(type(obj), EpochOutputStore):
        return True
    # `getattr_static` evaluates no property and calls no `__getattr__`.
    methods = (
        inspect.getattr_static(obj, name, None) for name in ("state_dict", "load_state_dict")
    )
    return all(callable(each) or isinstance(each, classmethod) for each in methods)


def _is_saved_by_owner(path: str, obj: Any, found: Found) -> bool:
    """Returns whether the state of an object is part of the state of one of its owners.

    The owners of an object are the other objects on its path. For example, the object at
    "MyHandler" is an owner of the object at "MyHandler.ema".
    """
    # An EpochOutputStore has no `state_dict`, so no owner saves it, and it is no owner.
    if isinstance(obj, EpochOutputStore):
        return False
    owners = [
        owner
        for above, owner in found
        if path.startswith(f"{above}.") and not issubclass(type(owner), EpochOutputStore)
    ]
    return bool(owners) and any(
        _contains_state(plain_state(each), plain_state(obj)) for each in owners
    )


def _contains_state(state: Any, part: Any) -> bool:
    """Returns whether a state equals ``part`` or contains it at any depth."""
    if _is_same_state(state, part):
        return True
    inner = state.values() if isinstance(state, Mapping) else state
    return isinstance(state, Mapping | list | tuple) and any(
        _contains_state(each, part) for each in inner
    )


def _is_same_state(first: Any, second: Any) -> bool:
    """Returns whether two states are equal, and their tensors share the same memory."""
    if isinstance(first, torch.Tensor):
        is_tensor = (
            isinstance(second, torch.Tensor) and first.layout == torch.strided == second.layout
        )
        return is_tensor and first.data_ptr() == second.data_ptr() and first.shape == second.shape
    if isinstance(first, Mapping):
        is_alike = isinstance(second, Mapping) and first.keys() == second.keys()
        return is_alike and all(_is_same_state(each, second[key]) for key, each in first.items())
    if isinstance(first, list | tuple):
        is_alike = isinstance(second, list | tuple) and len(first) == len(second)
        return is_alike and all(map(_is_same_state, first, second))
    # `repr` is compared, because NaN != NaN and `==` of arrays does not return a single bool.
    return type(first) is type(second) and (first is second or repr(first) == repr(second))


def _unordered_paths(found: Found) -> set[str]:
    """Returns the paths to objects that a resume could not tell apart, because they are in sets.

    The order of a set may differ in another process, so only the class can identify an object in a
    set.
    """
    counts = Counter(type(each) for path, each in found if SET_ELEMENT_PREFIX in path)
    return {path for path, each in found if SET_ELEMENT_PREFIX in path and counts[type(each)] > 1}


def _name_objects(
    found: Found, roots: Mapping[str, Any], attached_objects: Mapping[str, Any]
) -> dict[str, Any]:
    """Maps names to objects (see ``handlers_with_state``).

    A resume finds a saved state by its name. So names should stay the same when a script adds
    handlers without a state.

    Args:
        found: the objects to name.
        roots: the objects at which the search began, by name.
        attached_objects: the attached handlers with a state, by name. No other object gets one of
            these names.
    """
    names = dict(attached_objects)
    count_by_root = Counter(_root_name(path) for path, _ in found)
    count_by_class = Counter(type(e).__name__ for e in (*(e for _, e in found), *names.values()))
    count_in_root = Counter((_root_name(path), type(each)) for path, each in found)
    for path, each in found:
        root, class_name = _root_name(path), type(each).__name__
        inner = path.removeprefix(root).removeprefix(".")
        # An object in a handler is named after the handler. Any other object is named after its own
        # class. For an object in a function, the name of the function is not used: if a script adds
        # a lambda, "<lambda>" may become "<lambda>-2". If several objects have the same class, the
        # path below the root is added, or the name of the root if the object is the root.
        if inner and _is_handler_object(roots[root]):
            is_nested = "." in inner and count_in_root[root, type(each)] == 1
            is_only_object = count_by_root[root] == 1 and not has_state(roots[root])
            name = root if is_only_object else f"{root}.{class_name}" if is_nested else path
        elif count_by_class[class_name] == 1:
            name = class_name
        else:
            name = f"{class_name}-{inner or root}"
        _add_unique(names, name, each)
    return {name: each for name, each in names.items() if name not in attached_objects}


def _root_name(path: str) -> str:
    return path.partition(".")[0]


def _is_handler_object(root: Any) -> bool:
    """Returns whether a root is a handler object, and not a function, a container or ``Hooks``."""
    is_data = type(root).__module__ in ("builtins", "functools", "types", "collections")
    return not is_data and not isinstance(root, Hooks)


def _name_of_root(root: Any) -> str:
    return root.__name__ if type(root) is FunctionType else type(root).__name__


def _add_unique(named: dict[str, Any], name: str, obj: Any) -> None:
    """Adds an object to ``named``. If ``name`` is taken, a number such as "-2" is added to it."""
    number, free = 1, name
    while free in named:
        number += 1
        free = f"{name}-{number}"
    named[free] = obj
