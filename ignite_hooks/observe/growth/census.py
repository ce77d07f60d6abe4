"""Counts what may grow in this process: objects by type, tensors, and long containers.

A census keeps numbers and names, and no reference to a counted object. It runs no code of the
objects: a length is read from the built-in containers alone, and a class by ``type``.

Python's garbage collector lists the objects that it *tracks*: those that can refer to other
objects. It does not track numbers, texts, and dicts that hold only such values.
"""

import gc
from collections import Counter
from collections import OrderedDict
from collections import defaultdict
from collections import deque
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Set
from contextlib import contextmanager
from itertools import chain
from itertools import compress
from itertools import filterfalse
from itertools import repeat
from operator import is_
from operator import itemgetter
from typing import Any
from typing import NamedTuple
from typing import TypeVar

import numpy as np
import torch

__all__ = [
    "CONTAINER_TYPES",
    "TENSOR_TYPES",
    "Census",
    "chunks_of",
    "count_objects",
    "is_subclass",
    "module_name",
    "tensor_label",
    "tracked_objects",
    "type_name",
    "untracked_dicts",
]

CONTAINER_TYPES = frozenset({list, dict, set, deque, OrderedDict, defaultdict})

Key = TypeVar("Key")

_MIN_LENGTH = 32  # the lengths of shorter containers are not recorded
_MAX_CONTAINERS = 10_000  # the lengths of so many containers are recorded: those of the longest
# Objects are counted in chunks, which fit into the cache of the processor: with 10^6 objects, a
# census takes 0.16 s instead of 0.25 s, and little more memory than the list of all objects.
_CHUNK = 5000

_mro: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_qualified_name: Callable[[type], str] = type.__dict__["__qualname__"].__get__
module_name: Callable[[type], Any] = type.__dict__["__module__"].__get__


class Census(NamedTuple):
    """The numbers of objects in this process.

    Attributes:
        by_type: the number of tracked objects by the name of their type.
        by_tensor: the number of tensors by their shape, dtype and device.
        lengths: the lengths of the long containers, by their ``id``.
    """

    by_type: Counter[str]
    by_tensor: Counter[str]
    lengths: dict[int, int]


@contextmanager
def tracked_objects() -> Iterator[list[list[Any]]]:
    """Provides lists of all objects that the garbage collector tracks, the oldest first.

    At the end the lists are emptied. An exception that is kept with its traceback would otherwise
    keep all these objects alive.
    """
    lists: list[list[Any]] = []
    try:
        # One statement, so that no collection in between moves objects to another generation.
        lists += (gc.get_objects(2), gc.get_objects(1), gc.get_objects(0))
        lists[2] = [each for each in lists[2] if not any(each is own for own in (lists, *lists))]
        yield lists
    finally:
        for each in lists:
            each.clear()


def chunks_of(things: list[Any], size: int = _CHUNK) -> Iterator[list[Any]]:
    """Yields the elements of a list in lists of at most ``size`` elements."""
    for start in range(0, len(things), size):
        yield things[start : start + size]


def count_objects(*, with_untracked_dicts: bool = False) -> Census:
    """Returns a census of the process.

    Args:
        with_untracked_dicts: record also the lengths of dicts that the garbage collector does not
            track. To find them takes longer than the rest of the census.
    """
    by_type: Counter[type] = Counter()
    by_kind: Counter[tuple[Any, ...]] = Counter()  # of tensors
    lengths: dict[int, int] = {}
    with tracked_objects() as lists:
        for chunk in chain.from_iterable(map(chunks_of, lists)):
            types = [*map(type, chunk)]
            try:
                counts = Counter(types)
            except Exception:  # a metaclass may have no hash, or one that fails
                types = [each if _is_hashable(each) else object for each in types]
                counts = Counter(types)
            by_type.update(counts)
            tensors = _of_types(TENSOR_TYPES & counts.keys(), chunk, types)
            by_kind.update(map(_kind_of_tensor, tensors))
            _add_lengths(lengths, _of_types(CONTAINER_TYPES & counts.keys(), chunk, types))
            if with_untracked_dicts:
                _add_lengths(lengths, untracked_dicts(chunk))
    return Census(
        _by_name(by_type, type_name),
        _by_name(by_kind, lambda kind: _label_of_kind(*kind)),
        _longest(lengths),
    )


def _is_hashable(cls: type) -> bool:
    return type(cls).__hash__ is type.__hash__


def _of_types(wanted: Set[type], chunk: list[Any], types: list[type]) -> list[Any]:
    """Returns the objects of a chunk whose type is wanted. ``types`` are the types of all."""
    return [*compress(chunk, map(wanted.__contains__, types))] if wanted else []


def _by_name(counts: Counter[Key], name_of: Callable[[Key], str]) -> Counter[str]:
    by_name: Counter[str] = Counter()
    for key, count in counts.items():
        by_name[name_of(key)] += count
    return by_name


def untracked_dicts(chunk: list[Any]) -> list[dict[Any, Any]]:
    """Returns the dicts that the objects of a chunk refer to, and that are not tracked."""
    held = gc.get_referents(*chunk)
    return [*filterfalse(gc.is_tracked, compress(held, map(is_, map(type, held), repeat(dict))))]


def _add_lengths(lengths: dict[int, int], containers: list[Any]) -> None:
    """Adds the lengths of the long ones among some containers to ``lengths``."""
    counts = np.fromiter(map(len, containers), np.int64, len(containers))
    for index in np.flatnonzero(counts >= _MIN_LENGTH).tolist():
        lengths[id(containers[index])] = int(counts[index])


def _longest(lengths: dict[int, int]) -> dict[int, int]:
    if len(lengths) <= _MAX_CONTAINERS:
        return lengths
    return dict(sorted(lengths.items(), key=itemgetter(1))[-_MAX_CONTAINERS:])


# Code of a subclass may answer for the attributes of a tensor, so subclasses are counted by their
# type alone.
TENSOR_TYPES = frozenset({torch.Tensor, torch.nn.Parameter})


def _kind_of_tensor(tensor: torch.Tensor) -> tuple[Any, ...]:
    try:
        return tensor.shape, tensor.dtype, tensor.device, tensor.is_leaf
    except RuntimeError:  # a nested tensor has no shape
        return None, tensor.dtype, tensor.device, tensor.is_leaf


def _label_of_kind(shape: Any, dtype: torch.dtype, device: torch.device, is_leaf: bool) -> str:
    """Returns the name of a kind of tensors, for example "(2, 3) float32 cpu, with its graph"."""
    size = "(nested)" if shape is None else str(tuple(shape))
    return f"{size} {str(dtype)[6:]} {device}{'' if is_leaf else ', with its graph'}"


def tensor_label(tensor: Any) -> str | None:
    """Returns the name of the kind of a tensor; None for other objects."""
    is_tensor = type(tensor) is torch.Tensor or type(tensor) is torch.nn.Parameter
    return _label_of_kind(*_kind_of_tensor(tensor)) if is_tensor else None


def type_name(cls: type) -> str:
    """Returns the module and the name of a class, without the module for built-in classes."""
    module = module_name(cls)
    name = _qualified_name(cls)
    is_known = type(module) is str and module != "builtins"
    return f"{module}.{name}" if is_known else name


def is_subclass(cls: type, base: type) -> bool:
    """Returns whether ``cls`` inherits from ``base``, without calling code of a metaclass."""
    return base in _mro(cls)
