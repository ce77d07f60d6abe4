"""The random generators of a run beside those of its data: in models, functions and handlers."""

import functools
import gc
import types
from collections import deque
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from ignite_hooks.core.engine import attached_calls
from ignite_hooks.core.engine import belongings
from ignite_hooks.core.engine import process_function_of
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached
from ignite_hooks.core.training_engine import AnyEngine
from ignite_hooks.data.random_state import FoundGenerators
from ignite_hooks.data.random_state import GeneratorSearch

__all__ = ["generators_of_run"]

_NONE: Mapping[str, Any] = types.MappingProxyType({})
_WRAPPERS = ("ignite_hooks.", "ignite.engine.")
_WITH_OWN_STATE = "ignite_hooks.checkpoint."  # what is given as `also` is saved as such


def generators_of_run(
    engine: AnyEngine, others: Mapping[str, Any], closed: Iterable[Any], of_data: FoundGenerators
) -> FoundGenerators:
    """Returns the generators that a run draws from, whatever calls them during training.

    Searched are the process function with what it calls, all handlers with their arguments, and
    some objects more.

    Args:
        engine: the engine of the run.
        others: further objects to search, by the names that begin the names of the generators.
        closed: objects that are not looked into.
        of_data: the generators of the data; one that is shared with them is theirs.
    """
    search: GeneratorSearch = belongings(engine).setdefault("run_generators", GeneratorSearch())
    roots = {**others, "process_function": process_function_of(engine), **_handlers(engine)}
    found = search(roots, [engine, engine.state, *closed])
    theirs = set(map(id, of_data.named.values()))
    named = {name: each for name, each in found.named.items() if id(each) not in theirs}
    return FoundGenerators(named, found.doubts, found.watched)


def _handlers(engine: AnyEngine) -> dict[str, Any]:
    """Returns the handlers and their arguments, by names that another process gives them too."""
    named: dict[str, Any] = {}

    def add(handler: Any, positional: Any = (), keywords: Any = _NONE) -> None:
        number, name = 1, (plain := _name_of(handler))
        while name in named:
            number += 1
            name = f"{plain}-{number}"
        named[name] = handler
        if positional:
            named[f"{name}(args)"] = positional
        if keywords:
            named[f"{name}(kwargs)"] = keywords

    for handler in attached(engine, Handler):
        if not type(handler).__module__.startswith(_WITH_OWN_STATE):
            add(handler)
        if handler.timetable is not None:
            for callback in handler.timetable.callbacks:
                deque(map(add, _of_users(callback)), maxlen=0)
    for function, positional, keywords in attached_calls(engine):
        for each in _of_users(function):
            add(each, positional, keywords)
    return named


def _of_users(function: Any) -> Iterator[Any]:
    """Yields what a user attached: functions of ours and of Ignite's may be around it.

    Methods of our handlers are left out, which are searched themselves.
    """
    owner = getattr(function, "__self__", function)
    of = function if isinstance(function, types.FunctionType) else type(owner)
    if not of.__module__.startswith(_WRAPPERS):
        yield function
    elif isinstance(function, types.FunctionType):
        for each in gc.get_referents(*(function.__closure__ or ())):  # an empty cell has none
            if isinstance(each, types.FunctionType | types.MethodType):
                yield from _of_users(each)


def _name_of(function: Any) -> str:
    if isinstance(function, functools.partial):
        return _name_of(function.func)
    if isinstance(function, types.FunctionType):
        return f"handler {function.__qualname__}"
    return f"handler {type(getattr(function, '__self__', function)).__name__}"
