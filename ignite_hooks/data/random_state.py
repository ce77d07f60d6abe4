"""Finds random generators in objects, and saves and restores their states."""

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
from ignite_hooks.core.object_graph import SET_ELEMENT_PREFIX
from ignite_hooks.core.object_graph import ExcludedFromSearch
from ignite_hooks.core.object_graph import ObjectSearch
from ignite_hooks.core.object_graph import is_library_code
from ignite_hooks.core.undo_stack import undo_on_exit

__all__ = [
    "GENERATOR_CLASSES",
    "FoundGenerators",
    "GeneratorSearch",
    "GeneratorState",
    "RandomGenerator",
    "RandomState",
    "generator_state",
    "generators_in",
    "new_generator",
    "set_generator_state",
]

RandomGenerator: TypeAlias = (
    torch.Generator
    | np.random.Generator
    | np.random.RandomState
    | np.random.BitGenerator
    | random.Random
)
GENERATOR_CLASSES = (
    *(torch.Generator, np.random.Generator, np.random.RandomState, np.random.BitGenerator),
    random.Random,
)
_SPAWNED = "spawned"  # key in the state of a numpy generator: the number of generators it spawned
_GENERATOR_NAME = re.compile("random|rng|generator", re.IGNORECASE)


@dataclass(frozen=True)
class FoundGenerators(ExcludedFromSearch):
    """The random generators that a search has found in some objects.

    Args:
        named: the generators by name. A name is the path to the generator and its algorithm, for
            example "dataset.rng (PCG64)".
        doubts: sentences that say why there may be further generators, whose states are unknown.
        watched: a function for each searched object, by the path of the object. The function
            returns the object, or None if the object has been freed.
    """

    named: Mapping[str, RandomGenerator] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    watched: Mapping[str, Callable[[], Any]] = field(default_factory=dict, repr=False)


def generators_in(
    roots: Mapping[str, Any], excluded: Iterable[Any] = (), max_objects: int = MAX_OBJECTS
) -> FoundGenerators:
    """Returns the generators of torch, numpy and Python that some objects hold.

    If several objects hold the same generator, it is named after the shortest path from a root.
    Two kinds of generators are left out: the global ones, which a ``RandomState`` always contains,
    and the generators of Accelerate's seedable samplers, which are seeded again for each pass.

    Args:
        roots: the objects to search, by name. The path of an object begins with the name of its
            root.
        excluded: objects that are not searched.
        max_objects: the largest number of objects to search.
    """
    return _generators_of(ObjectSearch(roots, max_objects, excluded))


def _generators_of(search: ObjectSearch) -> FoundGenerators:
    """Runs a search, and returns the generators among the objects that it yields."""
    found: dict[str, RandomGenerator] = {}
    doubts: list[str] = []
    excluded: set[str] = set()  # the paths of the objects in which no generator is looked for
    left_out = set(map(id, _global_generators()))
    for path, thing in search:
        cls = type(thing)
        if path.rpartition(".")[0] in excluded:
            excluded.add(path)
        elif issubclass(cls, SeedableRandomSampler):
            # The second path is that of the sampler's class, which the search may yield too.
            excluded |= {path, f"{path}.{cls.__name__}"}
            left_out.add(id(vars(thing).get("generator")))
        elif not issubclass(cls, GENERATOR_CLASSES):
            if _may_be_a_generator(cls):
                doubts.append(f"{path} is a {cls.__name__}, whose state cannot be read")
        elif issubclass(cls, random.SystemRandom) or id(thing) in left_out:
            # A SystemRandom has no state. Any other generator here is either global, and saved as a
            # global one, or belongs to a seedable sampler.
            excluded.add(path)
        else:
            # The state of a numpy generator includes the state of the bit generator that it holds.
            # So the bit generator, which the search yields later, gets no entry.
            excluded.add(path)
            name = f"{path} ({_algorithm(thing)})"
            if name in found and SET_ELEMENT_PREFIX in path:
                doubts.append(f"{path} is in a set, whose order may differ in another process")
            found[_free_name(name, found)] = thing
    if not search.is_complete:
        doubts.append(
            f"the search for random generators ended after {search.max_objects} objects, and there "
            "are more"
        )
    return FoundGenerators(found, tuple(doubts), search.watched)


class GeneratorSearch(ExcludedFromSearch):
    """Searches objects for random generators, and searches again only if the objects have changed.

    Some changes in long containers are not noticed (see ``ObjectSearch.has_changed``).

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

    def __call__(self, roots: Mapping[str, Any], excluded: Iterable[Any] = ()) -> FoundGenerators:
        """Returns the generators in ``roots``, as ``generators_in`` does."""
        former = map(self._roots.get, roots)
        is_same = roots.keys() == self._roots.keys() and all(map(is_, roots.values(), former))
        if self._search is None or not is_same or self._search.has_changed():
            self._roots = dict(roots)
            self._search = ObjectSearch(self._roots, excluded=excluded, parts_of=self._parts_of)
            self._found = _generators_of(self._search)
            # The engine may keep this search for a long time. Without this call, the search would
            # keep a loader in memory that the engine no longer uses.
            self._search.release_excluded()
        return self._found


def _global_generators() -> list[Any]:
    """Returns the global generators of Python, numpy and torch, including those of CUDA devices."""
    # `random.getstate` and `np.random.get_state` are bound methods of the global generators.
    of_python: Any = random.getstate
    of_numpy: Any = np.random.get_state
    of_devices: Any = torch.cuda.default_generators
    return [of_python.__self__, of_numpy.__self__, torch.default_generator, *of_devices]


def _may_be_a_generator(cls: type) -> bool:
    """Returns whether a class may be a random generator whose state cannot be read.

    Such a class belongs to a compiled extension and has "random", "rng" or "generator" in its name.
    Other classes of extensions, for example for files, tokens or images, rarely draw random
    numbers.
    """
    if is_library_code(cls) or not _GENERATOR_NAME.search(cls.__name__):
        return False
    # An object of a class that is written in Python has attributes, in which the search finds the
    # generators.
    namespaces = [vars(base) for base in cls.__mro__]
    is_in_python = any("__dict__" in each or "__slots__" in each for each in namespaces)
    # The classes of CuPy are written in Python, but the states of its generators are on the device.
    return not is_in_python or cls.__module__.startswith("cupy.")


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    """Returns the first of ``name``, ``name-2``, ``name-3``, … that is not taken."""
    numbered = (f"{name}-{number}" for number in count(2))
    return next(each for each in chain([name], numbered) if each not in taken)


def generator_state(generator: RandomGenerator) -> Any:
    """Returns the state of a generator as tensors, numbers, strings, and lists and dicts of these.

    The 624 words of a Mersenne Twister are one tensor. A list of Python integers would be slower,
    because each save of a checkpoint would visit every integer.
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


def set_generator_state(generator: RandomGenerator, state: Any) -> None:
    """Sets the state of a generator.

    Args:
        generator: the generator.
        state: a state that ``generator_state`` has returned for a generator of the same algorithm.
    """
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
        if missing > 0:
            # A numpy generator can spawn further generators, its children. The seed of the next
            # child depends on the number of children so far. numpy has no setter for this number,
            # so the missing children are spawned and dropped.
            seeds.spawn(missing)


def _seeds_of(bits: Any) -> Any:
    """Returns the seed sequence of a bit generator.

    The attribute that holds this seed sequence is private before numpy 1.25.
    """
    return getattr(bits, "seed_seq", None) or getattr(bits, "_seed_seq", None)


def _bits_of(generator: Any) -> Any:
    """Returns the bit generator of a numpy generator; a bit generator is returned unchanged."""
    return generator.bit_generator if isinstance(generator, np.random.Generator) else generator


class GeneratorState:
    """Gives a random generator the methods ``state_dict`` and ``load_state_dict``.

    Args:
        generator: the generator.
    """

    def __init__(self, generator: RandomGenerator) -> None:
        self._generator = generator

    def state_dict(self) -> dict[str, Any]:
        """Returns the algorithm and the state of the generator, as plain data without pickle."""
        return {"kind": _algorithm(self._generator), "state": generator_state(self._generator)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores the state of a generator of the same algorithm.

        Raises:
            ValueError: the state is of another algorithm, or damaged.
        """
        algorithm = _algorithm(self._generator)
        if state_dict.get("kind") != algorithm:
            raise ValueError(
                f"the state must be of a random generator with the algorithm {algorithm}, got a "
                f"state of {state_dict.get('kind')}: use a generator of the kind that was saved"
            )
        try:
            set_generator_state(self._generator, state_dict["state"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"the state must be of a random generator with the algorithm {algorithm}, got a "
                f"state that the generator refuses ({error}): use another checkpoint"
            ) from error


def _algorithm(generator: RandomGenerator) -> str:
    """Returns the name of a generator's algorithm.

    A generator can load the state of any other generator with the same name.
    """
    if isinstance(generator, torch.Generator):
        return f"torch.Generator, {generator.device.type}"
    if isinstance(generator, np.random.Generator):
        return type(generator.bit_generator).__name__
    return type(generator).__name__


def new_generator(name: str) -> RandomGenerator | None:
    """Returns a new generator with the algorithm that a name gives in parentheses.

    Args:
        name: a name from ``FoundGenerators``, for example "dataset.rng (PCG64)".

    Returns:
        The generator. None for a generator on a device or of a user's class, which cannot be made
        here.
    """
    algorithm = name.rpartition(" (")[2].removesuffix(")")
    if algorithm == "torch.Generator, cpu":
        return torch.Generator()
    if algorithm in ("Random", "RandomState"):
        return random.Random() if algorithm == "Random" else np.random.RandomState()
    bits = getattr(np.random, algorithm, None) if algorithm.isidentifier() else None
    is_known = isinstance(bits, type) and issubclass(bits, np.random.BitGenerator)
    return np.random.Generator(bits()) if is_known and bits is not None else None


def _from_python(state: Any) -> list[Any]:
    """Converts a state of Python's ``random``: its 624 words and its index become one tensor."""
    version, words, gauss = state
    return [version, torch.tensor(words, dtype=torch.int64), gauss]


def _to_python(state: Any) -> tuple[Any, ...]:
    """Converts a result of ``_from_python`` back to a state of Python's ``random``."""
    version, words, gauss = state
    return version, tuple(words.tolist()), gauss


def _plain(value: Any) -> Any:
    """Converts a numpy state to plain data.

    Arrays of 32-bit words have hundreds of elements and become tensors. Arrays of 64-bit words are
    short and become lists, because unsigned 64-bit words do not fit into a signed tensor.
    """
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        has_32_bits = value.dtype == np.uint32
        return torch.from_numpy(value.astype(np.int64)) if has_32_bits else value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def _to_numpy(state: Any) -> Any:
    """Converts a result of ``_plain`` back to a numpy state."""
    if isinstance(state, Mapping):
        return {key: _to_numpy(each) for key, each in state.items()}
    return state.numpy().astype(np.uint32) if isinstance(state, torch.Tensor) else state


def _is_same(one: Any, other: Any) -> bool:
    """Returns whether two states of one generator are equal."""
    if isinstance(one, Mapping):
        return all(_is_same(each, other[key]) for key, each in one.items())
    if isinstance(one, list):
        return all(map(_is_same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


_NO_GENERATORS: Mapping[str, RandomGenerator] = MappingProxyType({})


@dataclass(frozen=True)
class RandomState:
    """The states of the global generators of Python, numpy and torch, and of further generators.

    Neither capturing nor restoring the states synchronizes with the device, because torch keeps the
    seed and the offset of a device's generator on the host.

    Args:
        python: the state of Python's ``random``.
        numpy: the state of ``numpy.random``.
        cpu: the state of torch's default generator of the CPU.
        device: a device, and the state of its default generator; None for the CPU.
        generators: maps the name of a further generator to a pair of the generator and its state.
    """

    python: tuple[Any, ...]
    numpy: dict[str, Any]
    cpu: torch.Tensor
    device: tuple[torch.device, torch.Tensor] | None
    generators: Mapping[str, tuple[Any, Any]]

    @classmethod
    def capture(
        cls,
        device: torch.device | None = None,
        generators: Mapping[str, RandomGenerator] = _NO_GENERATORS,
    ) -> "RandomState":
        """Returns the present states of the generators.

        Args:
            device: the device whose default generator is included in addition to the CPU's.
            generators: further generators by name, for example those of a data loader.
        """
        device_state = None
        if device is not None and device.type not in ("cpu", "meta"):
            device_state = (device, torch.get_device_module(device).get_rng_state(device))
        return cls(
            python=random.getstate(),
            numpy=np.random.get_state(legacy=False),
            cpu=torch.get_rng_state(),
            device=device_state,
            generators={name: (each, generator_state(each)) for name, each in generators.items()},
        )

    def restore(self) -> None:
        """Sets every generator back to its state in this object."""
        self.restore_global()
        if self.device is not None:
            device, state = self.device
            torch.get_device_module(device).set_rng_state(state, device)
        for generator, state in self.generators.values():
            set_generator_state(generator, state)

    def restore_global(self) -> None:
        """Restores only the global generators of Python, of numpy, and of torch for the CPU."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)

    def has_moved(self) -> bool:
        """Returns whether the present state of any generator differs from its state in this object.

        The generator of the device is not compared.
        """
        words, index = (np.random.get_state(legacy=False)["state"][each] for each in ("key", "pos"))
        numpy = self.numpy["state"]
        return (
            self.python != random.getstate()
            or (numpy["pos"], numpy["key"].tobytes()) != (index, words.tobytes())
            or not torch.equal(self.cpu, torch.get_rng_state())
            or any(
                not _is_same(generator_state(each), then) for each, then in self.generators.values()
            )
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the states as numbers, lists, dicts and tensors, which load without pickle."""
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
        generators: Mapping[str, RandomGenerator] = _NO_GENERATORS,
    ) -> "RandomState":
        """Returns a ``RandomState`` with saved states, for the generators of this process.

        The generators get these states only when ``restore`` is called.

        Args:
            state_dict: the states, as the method ``state_dict`` has returned them.
            device: the device of this process.
            generators: further generators by name. A generator without a saved state is left out.
        """
        device_state, states = state_dict["device"], state_dict["generators"]
        if device is None or device.type in ("cpu", "meta"):
            device_state = None  # this process runs on the CPU, and restores no device generator
        return cls(
            python=_to_python(state_dict["python"]),
            numpy=_to_numpy(state_dict["numpy"]),
            cpu=state_dict["cpu"],
            device=None if device_state is None or device is None else (device, device_state),
            generators={
                name: (each, states[name]) for name, each in generators.items() if name in states
            },
        )

    @classmethod
    @contextmanager
    def preserved(
        cls,
        device: torch.device | None = None,
        generators: Mapping[str, RandomGenerator] = _NO_GENERATORS,
    ) -> Iterator[None]:
        """Restores the generators after the body, so that draws in the body have no lasting effect.

        Args:
            device: as in ``capture``.
            generators: as in ``capture``.
        """
        with undo_on_exit(cls.capture(device, generators).restore):
            yield
