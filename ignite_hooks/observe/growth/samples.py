"""Samples of the objects by which quantities have grown, to search for what holds them."""

from collections.abc import Container
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from itertools import chain
from itertools import compress
from typing import Any

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

__all__ = ["samples_of"]

_SAMPLES = 16


@contextmanager
def samples_of(
    names: Iterable[str], starts: Mapping[str, float], *, with_untracked_dicts: bool
) -> Iterator[dict[str, list[Any]]]:
    """Provides, for each quantity, some of the objects by which it has grown.

    At the end all lists are emptied, because a traceback may keep them.

    Args:
        names: the names of the quantities.
        starts: for each quantity that grows, the value from which it has grown.
        with_untracked_dicts: whether a quantity may be the entries of a dict that is not tracked.
    """
    found: dict[str, list[Any]] = {name: [] for name in names}
    try:
        _find(found, starts, with_untracked_dicts=with_untracked_dicts)
        for name, things in found.items():
            if name.startswith(ENTRIES):  # one dict, which several objects may hold
                del things[1:]
            elif name == "worker_ram_bytes":  # each worker has a copy of the data set
                things[:] = [each._dataset for each in things]
            else:
                # The objects are in the order of their age, so the older ones were there before.
                # The number of open files, say, is not that of their objects.
                counted = {f"{OBJECTS}{type_name(type(each))}" for each in things}
                before = sum(starts[each] for each in counted) if name in COUNTS else starts[name]
                del things[: min(int(before), len(things) - 1)]
            places = {int(len(things) * (k + 0.5) / _SAMPLES) for k in range(_SAMPLES)}
            things[:] = [things[place] for place in sorted(places) if place < len(things)]
        yield found
    finally:
        for things in found.values():
            things.clear()


def _find(
    found: dict[str, list[Any]], growing: Container[str], *, with_untracked_dicts: bool
) -> None:
    """Adds all objects of the quantities in ``found`` to their lists, the oldest first.

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
