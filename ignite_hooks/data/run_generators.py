"""The random generators of a run beside those of its data: in models, functions and handlers."""

import functools
import types
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from ignite_hooks.core.engine import attached_calls
from ignite_hooks.core.engine import belongings
from ignite_hooks.core.engine import process_function_of
from ignite_hooks.core.training_engine import AnyEngine
from ignite_hooks.data.random_state import FoundGenerators
from ignite_hooks.data.random_state import GeneratorSearch

__all__ = ["generators_of_run"]


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
    return FoundGenerators(named, found.doubts)


def _handlers(engine: AnyEngine) -> dict[str, Any]:
    """Returns the handlers and their arguments, by names that another process gives them too."""
    named: dict[str, Any] = {}
    numbers: dict[str, int] = {}
    for function, positional, keywords in _calls_of_training(engine):
        name = f"handler {_name_of(function)}"
        number = numbers[name] = numbers.get(name, 0) + 1
        name = name if number == 1 else f"{name}-{number}"
        named[name] = function
        if positional:
            named[f"{name}(args)"] = positional
        if keywords:
            named[f"{name}(kwargs)"] = keywords
    return named


def _calls_of_training(engine: AnyEngine) -> Iterator[tuple[Any, ...]]:
    """Yields what is attached but for checkpoints, whose ``also`` has a state of its own."""
    for call in attached_calls(engine):
        owner = getattr(call[0], "__self__", call[0])
        of = owner if isinstance(owner, types.FunctionType) else type(owner)
        if not of.__module__.startswith("ignite_hooks.checkpoint"):
            yield call


def _name_of(function: Any) -> str:
    if isinstance(function, functools.partial):
        return _name_of(function.func)
    if isinstance(function, types.FunctionType):
        return function.__qualname__
    return type(getattr(function, "__self__", function)).__name__
