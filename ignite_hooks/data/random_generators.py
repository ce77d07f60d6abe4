"""Random generators that objects have for themselves: found, and their states as plain data."""

import random
from collections import deque
from collections.abc import Iterable
from collections.abc import Mapping
from functools import partial
from types import FunctionType
from types import MethodType
from types import ModuleType
from typing import Any
from typing import TypeAlias

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler

__all__ = ["RandomGenerator", "generators_in", "set_state", "state_of"]

RandomGenerator: TypeAlias = (
    torch.Generator | np.random.Generator | np.random.RandomState | random.Random
)

_DEEPEST = 5
_LONGEST = 64
_MOST = 1000


def generators_in(roots: Mapping[str, Any]) -> dict[str, RandomGenerator]:
    """The generators of torch, numpy and Python that some objects hold, by place and kind.

    A data set with ``self.rng`` gives "dataset.rng (PCG64)". It goes through attributes, and
    containers that are short, some steps deep: far enough for the transforms of nested data sets,
    and not through the data. One that is held twice has the name where it is found first. Those of
    Accelerate's seedable samplers are left out: each pass seeds them anew.

    Args:
        roots: the objects, by the names that begin the names of what is in them.
    """
    found: dict[str, RandomGenerator] = {}
    seen: set[int] = set()
    waiting = deque(roots.items())
    while waiting and len(seen) < _MOST:
        name, thing = waiting.popleft()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, RandomGenerator):
            if not isinstance(thing, random.SystemRandom):  # which has no state
                found[f"{name} ({_kind(thing)})"] = thing
        elif name.count(".") < _DEEPEST:
            waiting.extend((f"{name}.{part}", each) for part, each in _parts(thing))
    return found


def _parts(thing: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(thing, type | FunctionType | ModuleType | SeedableRandomSampler):
        return ()
    if isinstance(thing, MethodType):
        return [("self", thing.__self__)]
    if isinstance(thing, partial):
        return [("func", thing.func), ("args", thing.args), ("keywords", thing.keywords)]
    if type(thing) is dict:  # what is derived from it may load what it is asked for
        return thing.items() if len(thing) <= _LONGEST else ()
    if type(thing) in (list, tuple):
        return enumerate(thing) if len(thing) <= _LONGEST else ()
    return getattr(thing, "__dict__", {}).items()


def state_of(generator: RandomGenerator) -> Any:
    """Its state: a tensor for torch's, else numbers, strings, lists and dicts."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        version, words, gauss = generator.getstate()
        return [version, list(words), gauss]
    if isinstance(generator, np.random.RandomState):
        return _plain(generator.get_state(legacy=False))
    return _plain(generator.bit_generator.state)


def set_state(generator: RandomGenerator, state: Any) -> None:
    """Gives it a state that ``state_of`` has told of a generator of its kind."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        version, words, gauss = state
        generator.setstate((version, tuple(words), gauss))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state


def _kind(generator: RandomGenerator) -> str:
    """Those of one kind take each other's states."""
    if isinstance(generator, torch.Generator):
        return f"torch.Generator, {generator.device.type}"
    if isinstance(generator, np.random.Generator):
        return type(generator.bit_generator).__name__
    return type(generator).__name__


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value
