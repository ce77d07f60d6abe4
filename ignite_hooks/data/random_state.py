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
    """Returns its state: tensors, numbers, strings, and lists and dicts of them.

    The hundreds of words of a Mersenne Twister are one tensor: as Python integers each of them
    would be looked at whenever the state is saved.
    """
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return _from_python(generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return _plain(generator.get_state(legacy=False))
    return _plain(generator.bit_generator.state)


def set_state(generator: RandomGenerator, state: Any) -> None:
    """Gives it a state that ``state_of`` has told of a generator of its kind."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(_to_python(state))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(_to_numpy(state))
    else:
        generator.bit_generator.state = _to_numpy(state)


def _kind(generator: RandomGenerator) -> str:
    """Those of one kind take each other's states."""
    if isinstance(generator, torch.Generator):
        return f"torch.Generator, {generator.device.type}"
    if isinstance(generator, np.random.Generator):
        return type(generator.bit_generator).__name__
    return type(generator).__name__


def _from_python(state: Any) -> list[Any]:
    """Converts what ``random.getstate`` has returned."""
    version, words, gauss = state
    return [version, torch.tensor(words, dtype=torch.int64), gauss]


def _to_python(state: Any) -> tuple[Any, ...]:
    version, words, gauss = state
    return version, tuple(words.tolist()), gauss


def _plain(value: Any) -> Any:
    """Converts a state of numpy's: words of 32 bits to a tensor, the few of 64 bits to a list."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        is_long = value.dtype == np.uint32
        return torch.from_numpy(value.astype(np.int64)) if is_long else value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def _to_numpy(state: Any) -> Any:
    if isinstance(state, Mapping):
        return {key: _to_numpy(each) for key, each in state.items()}
    return state.numpy().astype(np.uint32) if isinstance(state, torch.Tensor) else state


_NONE: Mapping[str, RandomGenerator] = MappingProxyType({})


@dataclass(frozen=True)
class RandomState:
    """The states of Python's, numpy's and torch's global generators, of a device's, and of others.

    Reading and setting them waits for no device: torch keeps a device generator's seed and offset
    on the host.
    """

    python: tuple[Any, ...]
    numpy: dict[str, Any]
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
            numpy=np.random.get_state(legacy=False),
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
        """Returns the same as numbers, lists, dicts and tensors, loaded without pickle."""
        return {
            "python": _from_python(self.python),
            "numpy": _plain(self.numpy),
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
        of_device, states = state_dict["device"], state_dict["generators"]
        return cls(
            python=_to_python(state_dict["python"]),
            numpy=_to_numpy(state_dict["numpy"]),
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
