"""Random generators: found in objects, their states taken at one moment and put back at another."""

import random
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from itertools import chain
from itertools import count
from operator import is_
from types import MappingProxyType
from typing import Any
from typing import TypeAlias

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler

from ignite_hooks.core.object_graph import MAX_OBJECTS
from ignite_hooks.core.object_graph import UNORDERED
from ignite_hooks.core.object_graph import ObjectSearch
from ignite_hooks.core.object_graph import Unsearched
from ignite_hooks.core.object_graph import is_of_library
from ignite_hooks.core.restoring import restored

__all__ = [
    "GENERATOR_KINDS",
    "FoundGenerators",
    "GeneratorSearch",
    "GeneratorState",
    "RandomGenerator",
    "RandomState",
    "generators_in",
    "new_generator",
    "set_state",
    "state_of",
]

RandomGenerator: TypeAlias = (
    torch.Generator
    | np.random.Generator
    | np.random.RandomState
    | np.random.BitGenerator
    | random.Random
)
GENERATOR_KINDS = (
    *(torch.Generator, np.random.Generator, np.random.RandomState, np.random.BitGenerator),
    random.Random,
)
_SPAWNED = "spawned"  # in the state of a generator of numpy: how many others it has spawned
_NAMES_OF_GENERATORS = re.compile("random|rng|generator", re.IGNORECASE)


@dataclass(frozen=True)
class FoundGenerators(Unsearched):
    """The random generators that some objects hold.

    Args:
        named: the generators, by place and kind: "dataset.rng (PCG64)" for instance.
        doubts: why there may be others whose states are not known.
        watched: all objects, by name, each as a function that returns it, or None if it is gone.
    """

    named: Mapping[str, RandomGenerator] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    watched: Mapping[str, Callable[[], Any]] = field(default_factory=dict, repr=False)


def generators_in(
    roots: Mapping[str, Any], closed: Iterable[Any] = (), max_objects: int = MAX_OBJECTS
) -> FoundGenerators:
    """Returns the generators of torch, numpy and Python that some objects hold.

    A generator that is held twice has the name where it is found first. Left out are the global
    generators, which a ``RandomState`` has by itself, and those of Accelerate's seedable samplers,
    which each pass seeds anew.

    Args:
        roots: the objects, by the names that begin the names of what is in them.
        closed: objects that are not looked into.
        max_objects: how many objects are looked into at most.
    """
    return _generators_of(ObjectSearch(roots, max_objects, closed))


def _generators_of(search: ObjectSearch) -> FoundGenerators:
    found: dict[str, RandomGenerator] = {}
    doubts: list[str] = []
    closed: set[str] = set()  # the names of objects whose own parts are left out
    known = set(map(id, _global_generators()))
    for path, thing in search:
        kind = type(thing)
        if path.rpartition(".")[0] in closed:
            closed.add(path)
        elif issubclass(kind, SeedableRandomSampler):
            closed |= {path, f"{path}.{kind.__name__}"}
            known.add(id(vars(thing).get("generator")))
        elif not issubclass(kind, GENERATOR_KINDS):
            if _may_be_a_generator(kind):
                doubts.append(f"{path} is a {kind.__name__}, whose state cannot be read")
        elif issubclass(kind, random.SystemRandom) or id(thing) in known:
            closed.add(path)  # it has no state, or is saved with the global ones
        else:
            closed.add(path)
            name = f"{path} ({_kind(thing)})"
            if name in found and UNORDERED in path:
                doubts.append(f"{path} is in a set, which has another order in another process")
            found[_free_name(name, found)] = thing
    if not search.is_complete:
        doubts.append(
            f"there are more than {search.max_objects} objects to look for random generators in"
        )
    return FoundGenerators(found, tuple(doubts), search.watched)


class GeneratorSearch(Unsearched):
    """Searches objects for random generators, and searches again only when they have changed.

    A generator that was made since is found the next time, but for one within an element of a list
    of more than 1000, or of a mapping.

    Args:
        parts_of: as in ``ObjectSearch``.
    """

    def __init__(
        self,
        parts_of: Callable[[Any], Iterable[tuple[str | None, Any]] | None] = lambda thing: None,
    ) -> None:
        self._parts_of = parts_of
        self._roots: dict[str, Any] = {}
        self._search: ObjectSearch | None = None
        self._found = FoundGenerators()

    def __call__(self, roots: Mapping[str, Any], closed: Iterable[Any] = ()) -> FoundGenerators:
        """Returns what ``generators_in`` finds."""
        former = map(self._roots.get, roots)
        is_same = roots.keys() == self._roots.keys() and all(map(is_, roots.values(), former))
        if self._search is None or not is_same or self._search.has_changed():
            self._roots = dict(roots)
            self._search = ObjectSearch(self._roots, closed=closed, parts_of=self._parts_of)
            self._found = _generators_of(self._search)
            self._search.forget_closed()  # of an engine, the loader of that time is one of them
        return self._found


def _global_generators() -> list[Any]:
    """Returns the generators that belong to the libraries, whoever else holds them."""
    of_python: Any = random.getstate
    of_numpy: Any = np.random.get_state
    of_devices: Any = torch.cuda.default_generators
    return [of_python.__self__, of_numpy.__self__, torch.default_generator, *of_devices]


def _may_be_a_generator(kind: type) -> bool:
    """Returns whether objects of a class draw random numbers by a state that cannot be read.

    Only an object whose class is of an extension and is named as random generators are is taken
    for one: most extensions' objects (files, tokens, images) draw none.
    """
    if is_of_library(kind) or not _NAMES_OF_GENERATORS.search(kind.__name__):
        return False
    namespaces = [vars(base) for base in kind.__mro__]
    is_in_python = any("__dict__" in each or "__slots__" in each for each in namespaces)
    return not is_in_python or kind.__module__.startswith("cupy.")


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    numbered = (f"{name}-{number}" for number in count(2))
    return next(each for each in chain([name], numbered) if each not in taken)


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
    bits = _bits_of(generator)
    spawned = getattr(_seeds_of(bits), "n_children_spawned", 0)
    return {**_plain(bits.state), **({_SPAWNED: spawned} if spawned else {})}


def set_state(generator: RandomGenerator, state: Any) -> None:
    """Gives it a state that ``state_of`` has told of a generator of its kind."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(_to_python(state))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(_to_numpy(state))
    else:
        bits = _bits_of(generator)
        bits.state = _to_numpy({name: each for name, each in state.items() if name != _SPAWNED})
        seeds = _seeds_of(bits)
        missing = state.get(_SPAWNED, 0) - getattr(seeds, "n_children_spawned", 0)
        if missing > 0:  # generators that it has spawned are not spawned once more
            seeds.spawn(missing)


def _seeds_of(bits: Any) -> Any:
    """Returns the seed sequence of a bit generator, private before numpy 1.25."""
    return getattr(bits, "seed_seq", None) or getattr(bits, "_seed_seq", None)


def _bits_of(generator: Any) -> Any:
    return generator.bit_generator if isinstance(generator, np.random.Generator) else generator


class GeneratorState:
    """Gives a random generator ``state_dict`` and ``load_state_dict``, as other objects have them.

    Args:
        generator: the generator.
    """

    def __init__(self, generator: RandomGenerator) -> None:
        self._generator = generator

    def state_dict(self) -> dict[str, Any]:
        """Returns the kind and the state, without pickle."""
        return {"kind": _kind(self._generator), "state": state_of(self._generator)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores the state of a generator of the same kind.

        Raises:
            ValueError: the state is of another kind, or damaged.
        """
        kind = _kind(self._generator)
        if state_dict.get("kind") != kind:
            raise ValueError(
                f"the state must be that of a random generator {kind}, got one of "
                f"{state_dict.get('kind')}: give a generator of the kind that was saved"
            )
        try:
            set_state(self._generator, state_dict["state"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"the state must be that of a random generator {kind}, got one that it refuses "
                f"({error}): take another checkpoint"
            ) from error


def _kind(generator: RandomGenerator) -> str:
    """Those of one kind take each other's states."""
    if isinstance(generator, torch.Generator):
        return f"torch.Generator, {generator.device.type}"
    if isinstance(generator, np.random.Generator):
        return type(generator.bit_generator).__name__
    return type(generator).__name__


def new_generator(name: str) -> RandomGenerator | None:
    """Returns a generator of the kind that a name of ``generators_in`` tells.

    None for a kind that cannot be made here: of a device, or of a class of the user.
    """
    kind = name.rpartition(" (")[2].removesuffix(")")
    if kind == "torch.Generator, cpu":
        return torch.Generator()
    if kind in ("Random", "RandomState"):
        return random.Random() if kind == "Random" else np.random.RandomState()
    made = getattr(np.random, kind, None) if kind.isidentifier() else None
    is_made = isinstance(made, type) and issubclass(made, np.random.BitGenerator)
    return np.random.Generator(made()) if is_made and made is not None else None


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


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return all(_is_same(each, other[key]) for key, each in one.items())
    if isinstance(one, list):
        return all(map(_is_same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


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
    generators: Mapping[str, tuple[Any, Any]]

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
        self.restore_global()
        if self.device is not None:
            device, state = self.device
            torch.get_device_module(device).set_rng_state(state, device)
        for generator, state in self.generators.values():
            set_state(generator, state)

    def restore_global(self) -> None:
        """Puts the global generators of the CPU back."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)

    def has_moved(self) -> bool:
        """Returns whether a generator, but for that of the device, is elsewhere now."""
        words, place = (np.random.get_state(legacy=False)["state"][each] for each in ("key", "pos"))
        then = self.numpy["state"]
        return (
            self.python != random.getstate()
            or (then["pos"], then["key"].tobytes()) != (place, words.tobytes())
            or not torch.equal(self.cpu, torch.get_rng_state())
            or any(not _is_same(state_of(each), was) for each, was in self.generators.values())
        )

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
        if device is None or device.type in ("cpu", "meta"):
            of_device = None  # it was taken on another kind of device
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
