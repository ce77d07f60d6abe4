"""Finds the random generators of a run outside of its data: in models, functions and handlers."""

import functools
import gc
import types
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.engine import handler_entries
from ignite_hooks.core.engine import process_function_of
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.training_engine import AnyEngine
from ignite_hooks.data.random_state import FoundGenerators
from ignite_hooks.data.random_state import GeneratorSearch

__all__ = ["generators_of_run"]

_NO_KEYWORDS: Mapping[str, Any] = types.MappingProxyType({})
_WRAPPER_MODULES = ("ignite_hooks.", "ignite.engine.")
# The handlers of the subpackage `checkpoint` are not searched. They hold the objects that the user
# wants to save in addition (the argument `also`), and a checkpoint saves the states of these
# objects anyway.
_CHECKPOINT_MODULES = "ignite_hooks.checkpoint."


def generators_of_run(
    engine: AnyEngine, others: Mapping[str, Any], closed: Iterable[Any], of_data: FoundGenerators
) -> FoundGenerators:
    """Returns the generators from which a run may draw, except those of its data.

    The search covers the process function of the engine, the functions that it calls, all handlers
    and their arguments, and the objects in ``others``.

    Args:
        engine: the engine of the run.
        others: maps a name to a further object to search. The name of a generator in this object
            begins with the name of the object.
        closed: objects that are not searched.
        of_data: the generators of the data. They are left out of the result, even if other objects
            of the run hold them too.
    """
    search: GeneratorSearch = engine_storage(engine).setdefault("run_generators", GeneratorSearch())
    roots = {**others, "process_function": process_function_of(engine), **_handlers(engine)}
    found = search(roots, [engine, engine.state, *closed])
    excluded = set(map(id, of_data.named.values()))
    named = {name: each for name, each in found.named.items() if id(each) not in excluded}
    return FoundGenerators(named, found.doubts, found.watched)


def _handlers(engine: AnyEngine) -> dict[str, Any]:
    """Returns the handlers and their arguments, by name.

    The name of a handler is the result of ``_name_of``. If several handlers have the same name,
    they are numbered in the order in which they were attached. So a process that resumes from a
    checkpoint gives each handler the same name as the process that saved the checkpoint.
    """
    named: dict[str, Any] = {}

    def add(handler: Any, positional: Any = (), keywords: Any = _NO_KEYWORDS) -> None:
        number, name = 1, (unnumbered := _name_of(handler))
        while name in named:
            number += 1
            name = f"{unnumbered}-{number}"
        named[name] = handler
        if positional:
            named[f"{name}(args)"] = positional
        if keywords:
            named[f"{name}(kwargs)"] = keywords

    for handler in attached_handlers(engine, Handler):
        if not type(handler).__module__.startswith(_CHECKPOINT_MODULES):
            add(handler)
        if handler.timetable is not None:  # callbacks that are called every so many steps
            for callback in handler.timetable.callbacks:
                for each in _unwrapped(callback):
                    add(each)
    for function, positional, keywords in handler_entries(engine):
        for each in _unwrapped(function):
            add(each, positional, keywords)
    return named


def _unwrapped(function: Any) -> Iterator[Any]:
    """Yields a user's function itself, or the users' functions that a wrapper contains.

    This package and Ignite wrap the functions that a user attaches. The closures of the wrappers
    hold these functions. Methods of this package's handlers are left out, because the handlers
    themselves are searched.
    """
    owner = getattr(function, "__self__", function)
    defined = function if isinstance(function, types.FunctionType) else type(owner)
    if not defined.__module__.startswith(_WRAPPER_MODULES):
        yield function
    elif isinstance(function, types.FunctionType):
        # `cell_contents` is not used, because it raises a ValueError for an empty cell.
        for each in gc.get_referents(*(function.__closure__ or ())):
            if isinstance(each, types.FunctionType | types.MethodType):
                yield from _unwrapped(each)


def _name_of(function: Any) -> str:
    """Returns a name such as "handler my_function" or "handler MyHandler".

    A function has its qualified name. A bound method has the name of its object's class. Any other
    callable has the name of its own class.
    """
    if isinstance(function, functools.partial):
        return _name_of(function.func)
    if isinstance(function, types.FunctionType):
        return f"handler {function.__qualname__}"
    return f"handler {type(getattr(function, '__self__', function)).__name__}"
