"""A search through all objects that a run can reach, for random generators and objects with state.

A checkpoint saves the states of the generators and objects that the search finds. The search reads
values where they are stored: in ``__dict__``, slots, containers, closures, defaults, and the
globals that the code of a function names. To read the values, the search calls functions of the
built-in types, such as ``dict.items``. It calls no code of the objects and evaluates no property,
so it changes nothing.

Some objects, such as numbers, texts and tensors, hold no generator and no object with a state. Such
objects are called *plain data*. The search skips them.
"""

import datetime
import decimal
import enum
import fractions
import gc
import logging
import re
import sys
import threading
import types
import uuid
import weakref
from collections import OrderedDict
from collections import deque
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from itertools import compress
from itertools import repeat
from operator import is_
from operator import not_
from pathlib import PurePath
from typing import Any
from typing import NamedTuple

import numpy as np
import torch

__all__ = [
    "MAX_OBJECTS",
    "SET_ELEMENT_PREFIX",
    "ExcludedFromSearch",
    "ObjectSearch",
    "is_library_code",
    "reference_to",
    "stored_values",
]

MAX_OBJECTS = 10_000
"""The default limit of the number of objects that a search visits. The search ends at the limit."""

# `has_changed` compares at most this many references. If the searched objects hold more, they count
# as changed.
_MAX_REFERENTS = 20 * MAX_OBJECTS

SET_ELEMENT_PREFIX = "{"
"""The first character of the name that the search gives to an element of a set.

The name is the class of the element in braces, for example "{Dropout}". It has no index, because
the order of a set may differ in another process.
"""


class ExcludedFromSearch:
    """A base class of objects that every search skips.

    An example is an object that keeps the results of a search. These results would lead the next
    search to all modules of the process.
    """

    __slots__ = ()


# The number of levels of nested containers that `has_changed` and `_are_plain` check.
_MAX_NESTING = 16
_MAX_SHORT_LENGTH = 1000  # `has_changed` compares longer containers by a digest
# `_are_plain` checks many containers at once. If the total number of their elements exceeds this
# limit, `_are_plain` first removes duplicate containers.
_MAX_UNDEDUPLICATED = 5_000_000
_MAX_LAYOUTS = 10_000  # the number of classes whose layout is remembered
# If an object has more parts than this, `_without_plain` first checks whether all of them are plain
# data, because one check of all parts takes less time than a check of each part.
_MAX_CHECKED_SINGLY = 64
# Objects of exactly these types are plain data.
_PLAIN_TYPES = (
    *(bool, int, float, complex, str, bytes, bytearray, memoryview, type(None), type(Ellipsis)),
    *(range, slice, datetime.date, datetime.time, datetime.datetime, datetime.timedelta),
    *(decimal.Decimal, fractions.Fraction, uuid.UUID, re.Pattern, types.CodeType),
    *(type(NotImplemented), type(threading.Lock()), type(threading.RLock()), threading.Event),
    *(torch.Tensor, torch.nn.Parameter, torch.dtype, torch.device, torch.Size, torch.layout),
    *(torch.memory_format, np.random.SeedSequence),
    # Tracebacks and frames hold other objects, but they are skipped too. If an object keeps an
    # exception, the traceback would lead the search to all variables of the program.
    *(types.TracebackType, types.FrameType),
)
# Instances of these classes and of their subclasses are skipped too, whatever they hold.
_PLAIN_BASES = (
    enum.Enum,
    PurePath,
    np.generic,
    np.dtype,
    logging.Logger,
    logging.Handler,
    ExcludedFromSearch,
)
_SEQUENCES = (list, tuple, set, frozenset, deque)
_MAPPINGS = (dict, OrderedDict)
# Types are compared by identity, because a user's metaclass may define its own ``__eq__`` and
# ``__hash__``.
_PLAIN_IDS = frozenset(map(id, _PLAIN_TYPES))
_CONTAINER_IDS = frozenset(map(id, _SEQUENCES + _MAPPINGS))
_MAPPING_IDS = frozenset(map(id, _MAPPINGS))
# The functions, classes and modules of these libraries are not searched, because they hold no
# generators: the libraries draw random numbers from the global generators, or from generators in
# instances of their classes. Instances are searched.
_LIBRARIES = frozenset(sys.stdlib_module_names) - {"__main__"} | {
    *("accelerate", "apex", "bitsandbytes", "datasets", "deepspeed", "diffusers", "einops"),
    *("evaluate", "huggingface_hub", "ignite", "ignite_hooks", "lightning", "lightning_utilities"),
    *("matplotlib", "mlflow", "monai", "numba", "numpy", "omegaconf", "pandas", "peft", "psutil"),
    *(
        "pyarrow",
        "pydantic",
        "pydantic_core",
        "pytest",
        "_pytest",
        "pluggy",
        "pygments",
        "pytorch_lightning",
        "safetensors",
        "scipy",
    ),
    *("sentencepiece", "skimage", "sklearn", "sympy", "tensorboard", "tensorboardX", "timm"),
    *("tokenizers", "torch", "torchaudio", "torchdata", "torchmetrics", "torchtext", "torchvision"),
    *("PIL", "cv2", "tqdm", "transformers", "triton", "typing_extensions", "wandb", "yaml"),
}
# Attributes that Python itself adds to each class.
_CLASS_INTERNALS = frozenset({"_abc_impl", "__dict__", "__weakref__", "__doc__", "__module__"})
# The types of dictionary keys for which `_key_name` calls `repr`. The `__repr__` of any other key
# could be code of users.
_NAMED_BY_VALUE = frozenset(map(id, (bool, int, float, complex, bytes, type(None))))
_MAX_KEY_LENGTH = 100
_CODE_TYPES = (types.FunctionType, staticmethod, classmethod, property)
# The getters of the built-in types. Plain attribute access, `cls.__mro__` for example, could call
# the `__getattribute__` of a user's metaclass.
_mro: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_namespace: Callable[[type], Mapping[str, Any]] = type.__dict__["__dict__"].__get__
_class_name: Callable[[type], str] = type.__dict__["__name__"].__get__
_module_of_class: Callable[[type], Any] = _namespace(type)["__module__"].__get__
_self_of_builtin: Callable[[Any], Any] = _namespace(types.BuiltinMethodType)["__self__"].__get__
_module_dict: Callable[[Any], dict[str, Any]] = _namespace(types.ModuleType)["__dict__"].__get__


class ObjectSearch(ExcludedFromSearch):
    """An iterable of (name, object) over all objects that can be reached from some roots.

    The objects nearest to the roots come first, and each object comes once. A name is the path to
    the object, such as "dataset.transforms.0.rng". A submodule has the name that torch gives it.
    Plain data is skipped: numbers, texts, tensors, arrays, and containers that have only plain
    data. Plain data does not count towards ``max_objects``. The functions, classes and modules of
    well-known libraries are skipped too.

    Args:
        roots: the objects that the search starts from, by name. The name of any other object begins
            with the name of a root.
        max_objects: the largest number of objects to visit.
        excluded: objects that are neither yielded nor searched.
        parts_of: a function that selects the parts of an object to search. It is called with the
            object. It returns (name, part) for each part to search, or None to search all that the
            object holds. An empty tuple means that no part is searched, and that ``has_changed``
            checks only that the object still exists.

    Attributes:
        is_complete: whether all objects were yielded; False if ``max_objects`` ended the search.
        watched: maps the name of each yielded object to a function. The function returns the
            object; it returns None if the object is gone.
    """

    def __init__(
        self,
        roots: Mapping[str, Any],
        max_objects: int = MAX_OBJECTS,
        excluded: Iterable[Any] = (),
        parts_of: Callable[[Any], Iterable[tuple[str | None, Any]] | None] = lambda thing: None,
    ) -> None:
        self._parts_of = parts_of
        self._roots = roots
        self.max_objects = max_objects
        self._excluded = list(excluded)
        self._layouts: dict[int, _Layout] = {}
        # Three lists of the objects that `has_changed` checks. An entry is a function that returns
        # the object; it returns None if the object is gone. For an object in the first list,
        # `has_changed` compares all references. For an object in the second list, it compares the
        # parts that `parts_of` selects. For an object in the third list, it only checks that the
        # object still exists.
        self._watched_in_full: list[Callable[[], Any]] = []
        self._watched_in_part: list[Callable[[], Any]] = []
        self._watched_existence: list[Callable[[], Any]] = []
        self._watched_globals: list[tuple[dict[str, Any], str]] = []  # (globals, name)
        self._has_arrays = False
        self._snapshot: list[int] | None = None
        self.is_complete = True
        self.watched: dict[str, Callable[[], Any]] = {}

    def has_changed(self) -> bool:
        """Returns whether a searched object now holds other objects than at the end of the search.

        The check takes only a few calls, however many objects were searched, because one call of
        the garbage collector returns the references of many objects. Numbers and texts are not
        compared. In a container of more than 1000 elements, the elements that are not plain data
        are compared, but not what these elements hold. In a container of more than 10,000 elements,
        only the number and the classes of the elements are compared. An object that is gone counts
        as a change. To notice this, the search keeps weak references to the objects. An object that
        allows no weak reference is kept alive.
        """
        # numpy does not report the elements of an array to the garbage collector, so a change in an
        # array of objects would go unnoticed. Such an array always counts as changed.
        if self._has_arrays:
            return True
        watched = [get() for get in self._watched_in_full]
        selected = [get() for get in self._watched_in_part]
        things = chain(watched, selected, [get() for get in self._watched_existence])
        if any(map(is_, things, repeat(None))):
            return True
        held = self._take_snapshot(watched, selected)
        return held is None or held != self._snapshot

    def release_excluded(self) -> None:
        """Drops the references to the excluded objects (the argument ``excluded``).

        Call this method when the search has ended. A later iteration over the same ``ObjectSearch``
        would no longer skip the excluded objects.
        """
        self._excluded = []

    def _take_snapshot(self, watched: list[Any], selected: list[Any]) -> list[int] | None:
        """Returns the identities of the objects that the given objects hold.

        A container is represented by the identities of its elements, or by a digest if it is long.
        Most loops run in C (``map``, ``compress``), because each save of a checkpoint takes a
        snapshot of all objects that a run holds.

        Args:
            watched: objects of which all references are taken.
            selected: objects of which ``parts_of`` selects the parts.

        Returns:
            The identities and digests; None if there are more than ``_MAX_REFERENTS``.
        """
        layouts = self._layouts.values()
        plain = _PLAIN_IDS | {id(each.type_ref()) for each in layouts if each.is_plain}
        containers = _CONTAINER_IDS | {id(each.type_ref()) for each in layouts if each.is_record}
        cell = id(types.CellType)
        found = [id(part) for each in selected for _, part in self._parts_of(each) or ()]
        held = gc.get_referents(*watched)
        held += [scope.get(name) for scope, name in self._watched_globals]
        for _ in range(_MAX_NESTING):
            type_ids = list(map(id, map(type, held)))
            other_objects = compress(
                held, map(not_, map((plain | containers | {cell}).__contains__, type_ids))
            )
            found += map(id, other_objects)
            cells = list(compress(held, map(cell.__eq__, type_ids)))
            held = list(compress(held, map(containers.__contains__, type_ids)))
            sizes = list(map(len, held))
            for long in compress(held, map(_MAX_SHORT_LENGTH.__lt__, sizes)):
                found += _digest_of_long_container(long, plain)
            held = list(compress(held, map(_MAX_SHORT_LENGTH.__ge__, sizes)))
            if len(found) + sum(filter(_MAX_SHORT_LENGTH.__ge__, sizes)) > _MAX_REFERENTS:
                return None
            if not held and not cells:
                break
            held = gc.get_referents(*held, *cells)
        return found

    def _watch(self, name: str, thing: Any, selected: Any) -> None:
        """Adds a yielded object to one of the three lists of objects that ``has_changed`` checks.

        ``selected`` is the result of ``parts_of`` for the object.
        """
        object_type = type(thing)
        get = reference_to(thing)
        self.watched[name] = get
        if type(selected) is tuple and not selected:
            self._watched_existence.append(get)
        elif selected is not None and object_type not in (types.MethodType, types.FunctionType):
            self._watched_in_part.append(get)
        elif object_type is types.FunctionType:
            # Only the parts of a function are watched in full, not the function, because a function
            # refers to all globals of its module.
            self._watched_existence.append(get)
            held = [thing.__closure__, thing.__defaults__, thing.__kwdefaults__, thing.__dict__]
            self._watched_in_full += [_constant(each) for each in held if each is not None]
            if not is_library_code(thing):
                places = _global_places(thing.__code__, thing.__globals__)
                self._watched_globals += [(scope, key) for scope, key, _ in places]
        else:
            self._watched_in_full.append(get)
            self._has_arrays = self._has_arrays or issubclass(object_type, np.ndarray)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        self.is_complete = True
        # `seen` keeps the objects alive. Otherwise Python might give the identity of a freed object
        # to a new object, and the search would skip the new object.
        seen: dict[int, Any] = {id(each): each for each in self._excluded}
        max_seen = self.max_objects + len(seen)
        queue = deque[tuple[str, Any]]()
        parts: Iterable[tuple[str, Any]] = [
            (name, each) for name, each in self._roots.items() if not self._is_plain(each)
        ]
        self.watched = {}
        self._watched_in_full = [_constant(self._roots)]
        self._watched_globals, self._has_arrays = [], False
        self._watched_in_part, self._watched_existence = [], []
        while True:
            for name, thing in parts:
                if id(thing) in seen:
                    continue
                if len(seen) >= max_seen:
                    self.is_complete = False
                    break
                seen[id(thing)] = thing
                queue.append((name, thing))
            if not queue:
                self._snapshot = self._take_snapshot(
                    [get() for get in self._watched_in_full],
                    [get() for get in self._watched_in_part],
                )
                return
            name, thing = queue.popleft()
            yield name, thing
            selected = self._parts_of(thing)
            self._watch(name, thing, selected)
            prefix = name
            parts = (
                (prefix if part is None else f"{prefix}.{part}", each)
                for part, each in self._parts(thing, selected)
            )

    def _parts(self, thing: Any, selected: Any) -> Iterator[tuple[str | None, Any]]:
        """Yields (name, object) for all that ``thing`` holds, except plain data.

        A name is the name of an attribute, a key or an index. If ``thing`` is a cell or a weak
        reference, the name is None. ``selected`` is the result of ``parts_of`` for ``thing``.
        """
        object_type = type(thing)
        if selected is not None:
            yield from self._without_plain(selected)
        elif issubclass(object_type, type):
            yield from self._parts_of_class(thing)
        elif object_type is types.FunctionType:
            yield from self._without_plain(_parts_of_function(thing))
        elif object_type is types.ModuleType or issubclass(object_type, types.ModuleType):
            yield from self._without_plain(_module_dict(thing).items())
        elif object_type is types.CellType:
            yield from self._without_plain(_cell_content(thing))
        elif object_type is types.BuiltinMethodType:
            yield from self._without_plain([("self", _self_of_builtin(thing))])
        elif object_type is types.GeneratorType:
            yield from self._without_plain(_parts_of_generator(thing))
        elif object_type is weakref.ReferenceType:
            yield from self._without_plain([(None, weakref.ReferenceType.__call__(thing))])
        else:
            yield from self._parts_of_instance(thing)

    def _parts_of_instance(self, thing: Any) -> Iterator[tuple[str | None, Any]]:
        """Yields the elements and attributes of an object, and its class."""
        layout = self._layout(type(thing))
        yield from self._elements(thing)
        attributes = layout.attributes(thing)
        is_module = issubclass(type(thing), torch.nn.Module)
        for name, each in self._without_plain(attributes):
            if is_module and name == "_modules" and type(each) is dict:
                # The name omits "_modules", so that a submodule has the name that torch gives it.
                yield from self._without_plain(each.items())
            elif type(each) is OrderedDict and name is not None and name.endswith("_hooks"):
                # A hook is named by its index, because its key may differ in another process: torch
                # counts all hooks of the process.
                hooks = self._without_plain(enumerate(each.values()))
                yield from ((f"{name}.{index}", hook) for index, hook in hooks)
            else:
                yield name, each
        # Instances of classes written in C, such as iterators and caches, store objects in places
        # that only the garbage collector knows.
        if id(type(thing)) not in _CONTAINER_IDS:
            own = layout.dict_of(thing)
            referents = (
                e for e in gc.get_referents(thing) if e is not own and e is not type(thing)
            )
            yield from self._without_plain(enumerate(referents))
        if not self._is_plain(type(thing)):
            yield _class_name(type(thing)), type(thing)

    def _elements(self, thing: Any) -> Iterator[tuple[str | None, Any]]:
        """Yields the elements of a container, without calling methods that its class overrides."""
        object_type = type(thing)
        if issubclass(object_type, dict):
            items = list(dict.items(thing))
            yield from self._without_plain((_key_name(key), value) for key, value in items)
            yield from self._without_plain((f"key {_key_name(key)}", key) for key, _ in items)
        elif issubclass(object_type, set | frozenset):
            base: Any = set if issubclass(object_type, set) else frozenset
            named = (
                (f"{SET_ELEMENT_PREFIX}{_class_name(type(each))}}}", each)
                for each in base.__iter__(thing)
            )
            yield from self._without_plain(named)
        elif issubclass(object_type, list | tuple | deque):
            base = next(each for each in (list, tuple, deque) if issubclass(object_type, each))
            yield from self._without_plain(enumerate(list(base.__iter__(thing))))
        elif issubclass(object_type, np.ndarray) and np.ndarray.dtype.__get__(thing).hasobject:
            yield from self._without_plain(enumerate([np.ndarray.tolist(thing)]))

    def _parts_of_class(self, object_type: type) -> Iterator[tuple[str | None, Any]]:
        """Yields the class attributes and methods of a class, its bases and its metaclass."""
        items = [
            (name, value)
            for name, value in _namespace(object_type).items()
            if name not in _CLASS_INTERNALS
            and (type(value) in _CODE_TYPES or not name.startswith("__"))
        ]
        yield from self._without_plain(items)
        bases = (*_mro(object_type)[1:], type(object_type))
        yield from ((_class_name(base), base) for base in bases if not self._is_plain(base))

    def _without_plain(self, parts: Iterable[tuple[Any, Any]]) -> Iterator[tuple[str | None, Any]]:
        """Yields the ``parts`` that are not plain data, with their names as strings."""
        parts = list(parts)
        if len(parts) > _MAX_CHECKED_SINGLY and self._are_plain([each for _, each in parts]):
            return
        for part, each in parts:
            if not self._is_plain(each):
                yield None if part is None else str(part), each

    def _is_plain(self, thing: Any) -> bool:
        """Returns whether an object is plain data."""
        type_id = id(type(thing))
        if type_id in _PLAIN_IDS:
            return True
        if type_id in _CONTAINER_IDS:
            return not thing or self._are_plain([thing])
        layout = self._layout(type(thing))
        if layout.is_plain or (layout.is_record and self._are_plain([thing])):
            return True
        return _has_no_parts(thing)

    def _are_plain(self, things: list[Any]) -> bool:
        """Returns whether all objects of a list are plain data.

        Containers are checked level by level, in loops that run in C (``map``), because a data set
        may have a list of a million samples.
        """
        for _ in range(_MAX_NESTING):
            all_type_ids = set(map(id, map(type, things)))
            type_ids = all_type_ids - _PLAIN_IDS
            if not type_ids:
                return True
            if other_type_ids := type_ids - _CONTAINER_IDS:
                classes = dict(zip(map(id, map(type, things)), map(type, things), strict=True))
                layouts = {each: self._layout(classes[each]) for each in other_type_ids}
                # For some classes, each object is checked by itself. For example, an array of
                # numbers is plain data, but an array of objects is not.
                undecided_type_ids = {
                    each
                    for each in other_type_ids
                    if not (layouts[each].is_plain or layouts[each].is_record)
                }
                if undecided_type_ids and not all(
                    map(
                        _has_no_parts,
                        (each for each in things if id(type(each)) in undecided_type_ids),
                    )
                ):
                    return False
                type_ids -= {each for each in other_type_ids if not layouts[each].is_record}
            # From here on `type_ids` has only types of containers, whose elements are checked next.
            are_all_containers = type_ids == all_type_ids
            containers = (
                things
                if are_all_containers
                else [each for each in things if id(type(each)) in type_ids]
            )
            # Without duplicates, a large container that is held a thousand times is checked once.
            if sum(map(len, containers)) > _MAX_UNDEDUPLICATED:
                containers = list(dict(zip(map(id, containers), containers, strict=True)).values())
            things = list(chain.from_iterable(containers))
            if not type_ids.isdisjoint(_MAPPING_IDS):
                mappings = [each for each in containers if id(type(each)) in _MAPPING_IDS]
                things += chain.from_iterable(map(dict.values, mappings))
        return not things

    def _layout(self, object_type: type) -> "_Layout":
        # Each search has its own table of layouts in addition to the global `_layouts`, because
        # `_take_snapshot` needs the layouts of all classes that this search has met.
        layout = self._layouts.get(id(object_type))
        if layout is None or layout.type_ref() is not object_type:
            layout = self._layouts[id(object_type)] = _Layout.of(object_type)
        return layout


# The keys are the identities of the classes. The class of an entry may have been freed.
_layouts: dict[int, "_Layout"] = {}


class _Layout(NamedTuple):
    """The attributes in which the instances of a class store objects: ``__dict__`` and slots.

    An attribute is given as the index of a base in the class's ``__mro__``, and the name of a
    descriptor in the namespace of that base. The descriptor itself is not kept, because it would
    keep the class alive.

    Attributes:
        type_ref: a weak reference to the class.
        dict_base: the index of the base that has the descriptor of ``__dict__``; None if the
            instances have no ``__dict__``.
        slots: maps the name of each slot to the index of the base that has the slot's descriptor.
        is_plain: whether the instances count as plain data, whatever they hold.
        is_record: whether the instances are tuples that hold nothing but their elements, such as
            named tuples.
    """

    type_ref: "weakref.ref[type]"
    dict_base: int | None
    slots: Mapping[str, int]
    is_plain: bool
    is_record: bool

    @classmethod
    def of(cls, object_type: type) -> "_Layout":
        """Returns the layout of a class, from the global table if it is there."""
        known = _layouts.get(id(object_type))
        # The entry may be that of a freed class, whose identity Python has given to this class.
        if known is None or known.type_ref() is not object_type:
            # A program may create classes again and again, so the table is limited.
            if len(_layouts) > _MAX_LAYOUTS:
                _layouts.clear()
            known = _layouts[id(object_type)] = cls._of_new_class(object_type)
        return known

    @classmethod
    def _of_new_class(cls, object_type: type) -> "_Layout":
        """Reads the layout of a class from the namespaces of its bases."""
        dict_base, overrides_iteration = None, False
        slots: dict[str, int] = {}
        # In reverse order, so that the entries of nearer bases replace those of farther ones.
        for index, base in reversed([*enumerate(_mro(object_type))]):
            namespace = _namespace(base)
            stored: Any = namespace.get("__dict__")
            if type(stored) in (types.GetSetDescriptorType, types.MemberDescriptorType):
                dict_base = index
            overrides_iteration = overrides_iteration or (
                base is not tuple and not namespace.keys().isdisjoint(("__iter__", "__len__"))
            )
            slots |= {
                name: index
                for name, value in namespace.items()
                if type(value) is types.MemberDescriptorType and name not in _CLASS_INTERNALS
            }
        is_tensor = issubclass(object_type, torch.Tensor) and is_library_code(object_type)
        is_tuple = issubclass(object_type, tuple) and dict_base is None and not slots
        return cls(
            weakref.ref(object_type),
            dict_base,
            slots,
            is_plain=is_tensor or issubclass(object_type, _PLAIN_BASES),
            is_record=is_tuple and not overrides_iteration,
        )

    def dict_of(self, thing: Any) -> dict[str, Any] | None:
        """Returns the ``__dict__`` of an instance; None if it has none."""
        if self.dict_base is None:
            return None
        return _read_attribute(thing, self.dict_base, "__dict__")  # type: ignore[no-any-return]

    def attributes(self, thing: Any) -> list[tuple[str, Any]]:
        """Returns (name, value) for each attribute of an instance that has a value."""
        found = [*dict.items(self.dict_of(thing) or {})]
        # A `threading.local` has a separate dict for each thread, which `dict_of` does not find. So
        # the attributes of the present thread are added here.
        if issubclass(type(thing), threading.local):
            found += threading.local.__getattribute__(thing, "__dict__").items()
        for name, index in self.slots.items():
            try:
                found.append((name, _read_attribute(thing, index, name)))
            except AttributeError:
                continue  # a slot without a value
        return found


def _read_attribute(thing: Any, base_index: int, name: str) -> Any:
    """Reads an attribute of an object by the descriptor in one of the bases of its class.

    Args:
        thing: the object.
        base_index: the index of the base in the ``__mro__`` of the class.
        name: the name of the descriptor in the namespace of the base.
    """
    return _namespace(_mro(type(thing))[base_index])[name].__get__(thing)


def _digest_of_long_container(container: Any, plain: frozenset[int]) -> list[int]:
    """Returns numbers that change if the elements of a long container change.

    If plain data is replaced by other plain data, the numbers stay the same. ``plain`` holds the
    identities of the types of plain data.
    """
    base: Any = next(each for each in _mro(type(container)) if id(each) in _CONTAINER_IDS)
    elements = base.__iter__(container)
    if base in _MAPPINGS:
        elements = chain(elements, list(dict.values(container)))
    elements, length = list(elements), len(container)
    other_type_ids = set(map(id, map(type, elements))) - plain
    if not other_type_ids or length > MAX_OBJECTS:
        return [length, hash(frozenset(other_type_ids))]
    held = compress(elements, map(other_type_ids.__contains__, map(id, map(type, elements))))
    return [length, hash(tuple(map(id, held)))]


def stored_values(thing: Any) -> list[tuple[str, Any]]:
    """Returns (name, value) for each value that a function, a class or an instance stores.

    For a class, its methods and the values of its bases are left out. For an instance, the values
    of its class are left out. Plain data is included.
    """
    if type(thing) is types.FunctionType:
        return _parts_of_function(thing)
    if issubclass(type(thing), type):
        items = _namespace(thing).items()
        return [(n, v) for n, v in items if not (n.startswith("__") or type(v) in _CODE_TYPES)]
    return _Layout.of(type(thing)).attributes(thing)


def is_library_code(thing: Any) -> bool:
    """Returns whether a class, a function or a module belongs to a well-known library."""
    if issubclass(type(thing), type):
        name = _module_of_class(thing)
    elif type(thing) is types.FunctionType:
        name = thing.__globals__.get("__name__")
    else:
        name = _module_dict(thing).get("__name__")
    return type(name) is str and name.partition(".")[0] in _LIBRARIES


def _has_no_parts(thing: Any) -> bool:
    """Returns whether an array, a class, a module or a built-in method holds nothing to search.

    The result is False for all other objects.
    """
    object_type = type(thing)
    if issubclass(object_type, np.ndarray):
        return not np.ndarray.dtype.__get__(thing).hasobject
    if issubclass(object_type, type | types.ModuleType):
        return is_library_code(thing)
    if object_type is types.BuiltinMethodType:
        return type(_self_of_builtin(thing)) in (types.ModuleType, type(None))
    return False


def _parts_of_function(function: types.FunctionType) -> list[tuple[str, Any]]:
    """Returns what a function holds, and the globals that its code names."""
    code = function.__code__
    parts = list(dict.items(function.__dict__))
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # an empty cell: the variable has no value yet
            parts.append((name, cell.cell_contents))
    names = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    parts += zip(names[len(names) - len(defaults) :], defaults, strict=False)
    parts += (function.__kwdefaults__ or {}).items()
    if not is_library_code(function):
        parts += _named_globals(code, function.__globals__)
    return parts


def _named_globals(code: types.CodeType, scope: dict[str, Any]) -> list[tuple[str, Any]]:
    """Returns (name, object) for the globals that a function, or a function in it, uses.

    If a function uses ``module.attribute``, its code object lists both names. It does not show that
    the second is an attribute of the first. So each listed name is looked up in each listed module.
    """
    named = [(path, inside.get(name)) for inside, name, path in _global_places(code, scope)]
    return [each for each in named if not issubclass(type(each[1]), types.ModuleType)]


def _global_places(
    code: types.CodeType, scope: dict[str, Any]
) -> list[tuple[dict[str, Any], str, str]]:
    """Returns where the globals of a function are: the dictionary, the key, and a readable name."""
    names = _names_in_code(code)
    places = [(scope, name, name) for name in names]
    # A name that is no global may be a module that the function itself imports.
    places += [(sys.modules, name, name) for name in names if name not in scope]
    seen = {id(scope)}
    # The body of the loop extends the list, because a module may hold other modules.
    for inside, name, path in places:
        thing = inside.get(name)
        if issubclass(type(thing), types.ModuleType) and not is_library_code(thing):
            of_module = _module_dict(thing)
            if id(of_module) not in seen:
                seen.add(id(of_module))
                places += [(of_module, part, f"{path}.{part}") for part in names]
    return places


@lru_cache(2 * MAX_OBJECTS)
def _names_in_code(code: types.CodeType) -> tuple[str, ...]:
    """Returns the names of globals and attributes in a function and the functions defined in it."""
    names: dict[str, None] = {}
    codes = [code]
    while codes:
        each = codes.pop()
        names |= dict.fromkeys(each.co_names)
        codes += [const for const in each.co_consts if type(const) is types.CodeType]
    return tuple(names)


def reference_to(thing: Any) -> Callable[[], Any]:
    """Makes a function that returns ``thing``. Once ``thing`` is gone, the function returns None.

    If Python cannot make a weak reference to ``thing``, the function keeps ``thing`` alive.
    """
    try:
        return weakref.ref(thing)
    except TypeError:
        return _constant(thing)


def _constant(thing: Any) -> Callable[[], Any]:
    """Returns a function that returns ``thing``. It is written in C, and faster than a lambda."""
    return repeat(thing).__next__


def _cell_content(cell: types.CellType) -> list[tuple[None, Any]]:
    """Returns the object in a cell, without a name; an empty list if the cell is empty."""
    try:
        return [(None, cell.cell_contents)]
    except ValueError:
        return []


def _parts_of_generator(generator: Any) -> list[tuple[str, Any]]:
    """Returns the variables of a suspended generator, and the globals that its code names."""
    frame = generator.gi_frame
    if frame is None:
        return []
    return [*frame.f_locals.items(), *_named_globals(frame.f_code, frame.f_globals)]


def _key_name(key: Any) -> str:
    """Returns a name for a key of a dictionary: its value if it is plain, else its class."""
    object_type = type(key)
    if object_type is str:
        return str(key[:_MAX_KEY_LENGTH])
    if object_type is tuple:
        return f"({', '.join(map(_key_name, key))})"
    if id(object_type) in _NAMED_BY_VALUE:
        with suppress(ValueError):  # an integer of too many digits
            return repr(key)[:_MAX_KEY_LENGTH]
    return _class_name(object_type)
