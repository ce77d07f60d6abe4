"""Samples of the objects by which quantities have grown, to search for what holds them."""

from collections.abc import Container
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ignite_hooks.observe.growth.census import CONTAINER_TYPES
from ignite_hooks.observe.growth.census import TENSOR_TYPES
from ignite_hooks.observe.growth.census import chunks_of
from ignite_hooks.observe.growth.census import is_subclass
from ignite_hooks.observe.growth.census import tensor_label
from ignite_hooks.observe.growth.census import tracked_objects
from ignite_hooks.observe.growth.census import type_name
from ignite_hooks.observe.growth.census import untracked_dicts
from ignite_hooks.observe.growth.quantities import COUNTS
from ignite_hooks.observe.growth.quantities import ENTRIES
from ignite_hooks.observe.growth.quantities import OBJECTS
from ignite_hooks.observe.growth.quantities import TENSORS
from ignite_hooks.observe.growth.quantities import types_behind

__all__ = ["KnownObjects", "samples_of"]

_SAMPLES = 16


class KnownObjects:
    """The ids of the objects of earlier looks, to tell new objects from older ones.

    An id takes four bytes: the lower bits of an address that do not depend on its alignment. If an
    older object has the same bits, a new object is not sampled, which does no harm.

    The garbage collector does not list objects by their age: a full collection changes the order.
    """

    def __init__(self) -> None:
        self._ids: list[NDArray[np.uint32]] = []  # of the last two looks that were recorded

    def record(self, *, from_scratch: bool) -> None:
        """Records the present objects. From scratch, all earlier records are forgotten."""
        with tracked_objects() as lists:
            ids = np.sort(np.concatenate([_ids_of(each) for each in lists]))
        self._ids = [ids] if from_scratch else [*self._ids[-1:], ids]

    def remove_from(self, things: list[Any]) -> None:
        """Removes the objects of the older one of the two records from ``things``.

        ``numpy.isin`` would import numpy.ma on first use, which makes hundreds of new functions.
        """
        if self._ids:
            ids, known = _ids_of(things), self._ids[0]
            places = np.searchsorted(known, ids), np.searchsorted(known, ids, side="right")
            things[:] = compress(things, np.equal(*places))


def _ids_of(things: list[Any]) -> NDArray[np.uint32]:
    return (np.fromiter(map(id, things), np.int64, len(things)) >> 4).astype(np.uint32)


@contextmanager
def samples_of(
    names: Iterable[str],
    growing: Container[str],
    known: KnownObjects,
    *,
    with_untracked_dicts: bool,
) -> Iterator[dict[str, list[Any]]]:
    """Provides, for each quantity, some of the objects by which it has grown.

    At the end all lists are emptied,
    because a traceback may keep them.

    Args:
        names: the names of the quantities.
        growing: the names of all quantities that grow.
        known: the objects from before the growth.
        with_untracked_dicts: whether a quantity may be the entries of a dict that is not tracked.
    """
    found: dict[str, list[Any]] = {name: [] for name in names}
    try:
        _find(found, growing, with_untracked_dicts=with_untracked_dicts)
        for name, things in found.items():
            if name.startswith(ENTRIES):  # one dict, which several objects may hold
                del things[1:]
            elif name == "worker_ram_bytes":  # each worker has a copy of the data set
                things[:] = [each._dataset for each in things]
            else:
                known.remove_from(things)
            places = {int(len(things) * (k + 0.5) / _SAMPLES) for k in range(_SAMPLES)}
            things[:] = [things[place] for place in sorted(places) if place < len(things)]
        yield found
    finally:
        for things in found.values():
            things.clear()


def _find(
    found: dict[str, list[Any]], growing: Container[str], *, with_untracked_dicts: bool
) -> None:
    """Adds all objects of the quantities in ``found`` to their lists.

    An object stands for open files, say, only if the objects of its type grow, too. Otherwise code
    outside of Python has opened the files.
    """
    kinds = {name: types_behind(name) for name in found}
    entries = {int(name.removeprefix(ENTRIES)): name for name in found if name.startswith(ENTRIES)}
    has_tensors = any(name.startswith(TENSORS) for name in found)
    names_by_type: dict[int, list[str]] = {}  # by the ``id`` of the type

    def names_of(cls: type) -> list[str]:
        by_type = f"{OBJECTS}{type_name(cls)}"
        names = [
            name
            for name, kind in kinds.items()
            if any(is_subclass(cls, each) for each in kind)
            and (name not in COUNTS or by_type in growing)
        ]
        is_tensor = has_tensors and any(cls is each for each in TENSOR_TYPES)
        return names + [by_type] * (by_type in found) + [TENSORS] * is_tensor

    with tracked_objects() as lists:
        for chunk in chain.from_iterable(map(chunks_of, lists)):
            type_ids = [*map(id, map(type, chunk))]
            present = {*type_ids}
            for type_id in present - names_by_type.keys():
                names_by_type[type_id] = names_of(type(chunk[type_ids.index(type_id)]))
            wanted = {each for each in present if names_by_type[each]}
            for each in compress(chunk, map(wanted.__contains__, type_ids)) if wanted else ():
                for name in names_by_type[id(type(each))]:
                    label = f"{TENSORS}{tensor_label(each)}" if name == TENSORS else name
                    if label in found:
                        found[label].append(each)
            if entries:
                others = untracked_dicts(chunk) if with_untracked_dicts else []
                for each in chain(chunk, others):
                    if id(each) in entries and type(each) in CONTAINER_TYPES:
                        found[entries[id(each)]].append(each)
