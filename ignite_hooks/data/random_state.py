"""Random generators: found in objects, their states taken at one moment and put back at another."""

import random
from collections import deque
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from types import MappingProxyType
from types import MethodType
from types import ModuleType
from typing import Any
from typing import TypeAlias

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler

from ignite_hooks.core.restoring import restored

__all__ = ["RandomGenerator", "RandomState", "generators_in", "set_state", "state_of"]

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


_NONE: Mapping[str, RandomGenerator] = MappingProxyType({})


@dataclass(frozen=True)
class RandomState:
    """The states of Python's, numpy's and torch's global generators, of a device's, and of others.

    Reading and setting them waits for no device: torch keeps a device generator's seed and offset
    on the host.
    """

    python: Any
    numpy: Any
    cpu: torch.Tensor
    device: tuple[torch.device, torch.Tensor] | None
    generators: Mapping[str, tuple[RandomGenerator, Any]]

    @classmethod
    def capture(
        cls, device: torch.device | None = None, generators: Mapping[str, RandomGenerator] = _NONE
    ) -> "RandomState":
        """Takes the states of now.

        Args:
            device: whose generator to take in addition to the CPU's.
            generators: further generators by name, those of a data loader for instance.
        """
        of_device = None
        if device is not None and device.type not in ("cpu", "meta"):
            of_device = (device, torch.get_device_module(device).get_rng_state(device))
        return cls(
            python=random.getstate(),
            numpy=np.random.get_state(),
            cpu=torch.get_rng_state(),
            device=of_device,
            generators={name: (each, state_of(each)) for name, each in generators.items()},
        )

    def restore(self) -> None:
        """Puts every generator back to what was taken."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.device is not None:
            device, state = self.device
            torch.get_device_module(device).set_rng_state(state, device)
        for generator, state in self.generators.values():
            set_state(generator, state)

    def state_dict(self) -> dict[str, Any]:
        """The same as numbers, lists and tensors, which ``torch.load`` takes without pickle."""
        version, words, gauss = self.python
        name, keys, position, has_gauss, cached_gauss = self.numpy
        return {
            "python": [version, list(words), gauss],
            "numpy": [name, keys.tolist(), int(position), int(has_gauss), float(cached_gauss)],
            "cpu": self.cpu,
            "device": None if self.device is None else self.device[1],
            "generators": {name: state for name, (_, state) in self.generators.items()},
        }

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Any],
        device: torch.device | None = None,
        generators: Mapping[str, RandomGenerator] = _NONE,
    ) -> "RandomState":
        """What ``state_dict`` says, for the device and those generators that have a state in it."""
        version, words, gauss = state_dict["python"]
        name, keys, *rest = state_dict["numpy"]
        of_device, states = state_dict["device"], state_dict["generators"]
        return cls(
            python=(version, tuple(words), gauss),
            numpy=(name, np.array(keys, dtype=np.uint32), *rest),
            cpu=state_dict["cpu"],
            device=None if of_device is None or device is None else (device, of_device),
            generators={
                name: (each, states[name]) for name, each in generators.items() if name in states
            },
        )

    @classmethod
    @contextmanager
    def preserved(
        cls, device: torch.device | None = None, generators: Mapping[str, RandomGenerator] = _NONE
    ) -> Iterator[None]:
        """Whatever the body draws, the generators are afterwards where they were before."""
        with restored(cls.capture(device, generators).restore):
            yield
