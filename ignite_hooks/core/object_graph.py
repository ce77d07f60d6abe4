"""Search through what objects hold, for random generators and for objects with a state.

The search reads values where they are stored: in ``__dict__``, slots, containers, closures,
defaults, and the globals that a function's code names. It evaluates no property and calls no code
of the objects, so it changes nothing: all is read with the functions of the built-in types.
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
    "UNORDERED",
    "ObjectSearch",
    "Unsearched",
    "is_of_library",
    "reference_to",
    "stored_values",
]

MAX_OBJECTS = 10_000
"""The number of objects that are looked into; a search that stops there is not complete."""

_MAX_REFERENTS = 20 * MAX_OBJECTS

UNORDERED = "{"
"""Begins the names of the elements of a set, which another process may have in another order."""


class Unsearched:
    """Base of classes whose instances are passed over: they hold what another search found.

    The objects of a search lead to the globals of all functions that it has met, and from there to
    all modules of the process.
    """

    __slots__ = ()


_MAX_NESTING = 16  # containers in containers that are looked through at once for plain data
_LONG = 1000
_MUCH = 5_000_000
_MAX_LAYOUTS = 10_000
_MANY = 64  # from here on elements are looked at together before each is looked at alone
_PLAIN_KINDS = (
    *(bool, int, float, complex, str, bytes, bytearray, memoryview, type(None), type(Ellipsis)),
    *(range, slice, datetime.date, datetime.time, datetime.datetime, datetime.timedelta),
    *(decimal.Decimal, fractions.Fraction, uuid.UUID, re.Pattern, types.CodeType),
    *(type(NotImplemented), type(threading.Lock()), type(threading.RLock()), threading.Event),
    *(torch.Tensor, torch.nn.Parameter, torch.dtype, torch.device, torch.Size, torch.layout),
    *(torch.memory_format, np.random.SeedSequence),
    # Those of an exception that is kept lead to all variables of the program.
    *(types.TracebackType, types.FrameType),
)
_PLAIN_BASES = (
    enum.Enum,
    PurePath,
    np.generic,
    np.dtype,
    logging.Logger,
    logging.Handler,
    Unsearched,
)
_SEQUENCES = (list, tuple, set, frozenset, deque)
_MAPPINGS = (dict, OrderedDict)
# Compared by identity: a metaclass of a user may define what equality and hashes of classes are.
_PLAIN = frozenset(map(id, _PLAIN_KINDS))
_CONTAINERS = frozenset(map(id, _SEQUENCES + _MAPPINGS))
_KEYED = frozenset(map(id, _MAPPINGS))
# Their code draws from the global generators, or from generators that their objects hold.
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
# What a class has besides the code and the data of its users.
_OF_EACH_CLASS = frozenset({"_abc_impl", "__dict__", "__weakref__", "__doc__", "__module__"})
_NAMED_BY_VALUE = frozenset(map(id, (bool, int, float, complex, bytes, type(None))))
_MAX_KEY_LENGTH = 100
_CODE = (types.FunctionType, staticmethod, classmethod, property)
_mro: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_namespace: Callable[[type], Mapping[str, Any]] = type.__dict__["__dict__"].__get__
_class_name: Callable[[type], str] = type.__dict__["__name__"].__get__
_module_of_class: Callable[[type], Any] = _namespace(type)["__module__"].__get__
_self_of_builtin: Callable[[Any], Any] = _namespace(types.BuiltinMethodType)["__self__"].__get__
_module_dict: Callable[[Any], dict[str, Any]] = _namespace(types.ModuleType)["__dict__"].__get__


class ObjectSearch(Unsearched):
    """Yields the objects that can be reached from some roots, nearest first, each once.

    A name is the path to the object, "dataset.transforms.0.rng" for instance; a submodule has the
    name that torch gives it. Numbers, texts, tensors, arrays, and containers of nothing else are
    passed over and do not count; so does the code of well-known libraries.

    Args:
        roots: the objects, by the names that begin the names of what is in them.
        max_objects: how many objects are looked into at most.
        closed: objects that are neither yielded nor looked into.
        parts_of: returns what is looked at of an object instead of all that it holds, by name; None
            for all. An empty tuple says that nothing ever is.

    Attributes:
        is_complete: whether nothing was left out because of that bound, once all were yielded.
        watched: the objects that were yielded, by name, each as a function that returns it, or None
            if it is gone.
    """

    def __init__(
        self,
        roots: Mapping[str, Any],
        max_objects: int = MAX_OBJECTS,
        closed: Iterable[Any] = (),
        parts_of: Callable[[Any], Iterable[tuple[str | None, Any]] | None] = lambda thing: None,
    ) -> None:
        self._parts_of = parts_of
        self._roots = roots
        self.max_objects = max_objects
        self._closed = list(closed)
        self._layouts: dict[int, _Layout] = {}
        self._watched: list[Callable[[], Any]] = []  # give the objects, or None if one is gone
        self._chosen: list[Callable[[], Any]] = []  # those with parts of their own, too
        self._closed_ones: list[Callable[[], Any]] = []
        self._globals: list[tuple[dict[str, Any], str]] = []
        self._has_arrays = False
        self._held: list[int] | None = None
        self.is_complete = True
        self.watched: dict[str, Callable[[], Any]] = {}

    def has_changed(self) -> bool:
        """Returns whether an object holds other objects than when all were yielded.

        This takes a few calls, whatever was searched: the garbage collector says what objects refer
        to. Of a container of more than 1000 elements those are compared that may hold something,
        but not what they hold, and of one of more than 10,000 their number and classes. Numbers and
        texts are not compared. An object that is gone counts as a change; none is kept for this,
        unless Python cannot refer to it weakly.
        """
        if self._has_arrays:
            return True
        watched = [get() for get in self._watched]
        chosen = [get() for get in self._chosen]
        things = chain(watched, chosen, [get() for get in self._closed_ones])
        if any(map(is_, things, repeat(None))):
            return True
        held = self._holds(watched, chosen)
        return held is None or held != self._held

    def forget_closed(self) -> None:
        """Keeps the closed objects no longer; all others must have been yielded."""
        self._closed = []

    def _holds(self, watched: list[Any], chosen: list[Any]) -> list[int] | None:
        """Returns the identities of the objects that some objects hold, and sizes.

        None if there are too many: the frames of an exception lead to all variables of a program.
        """
        layouts = self._layouts.values()
        plain = _PLAIN | {id(each.kind()) for each in layouts if each.is_plain}
        containers = _CONTAINERS | {id(each.kind()) for each in layouts if each.is_record}
        cell = id(types.CellType)
        found = [id(part) for each in chosen for _, part in self._parts_of(each) or ()]
        held = gc.get_referents(*watched)
        held += [scope.get(name) for scope, name in self._globals]
        for _ in range(_MAX_NESTING):
            kinds = list(map(id, map(type, held)))
            others = compress(
                held, map(not_, map((plain | containers | {cell}).__contains__, kinds))
            )
            found += map(id, others)
            cells = list(compress(held, map(cell.__eq__, kinds)))
            held = list(compress(held, map(containers.__contains__, kinds)))
            sizes = list(map(len, held))
            for long in compress(held, map(_LONG.__lt__, sizes)):
                found += _digests_of_long(long, plain)
            held = list(compress(held, map(_LONG.__ge__, sizes)))
            if len(found) + sum(filter(_LONG.__ge__, sizes)) > _MAX_REFERENTS:
                return None
            if not held and not cells:
                break
            held = gc.get_referents(*held, *cells)
        return found

    def _watch(self, name: str, thing: Any, chosen: Any) -> None:
        kind = type(thing)
        get = reference_to(thing)
        self.watched[name] = get
        if type(chosen) is tuple and not chosen:
            self._closed_ones.append(get)
        elif chosen is not None and kind not in (types.MethodType, types.FunctionType):
            self._chosen.append(get)
        elif kind is types.FunctionType:  # whose references are all globals of its module, too
            self._closed_ones.append(get)
            held = [thing.__closure__, thing.__defaults__, thing.__kwdefaults__, thing.__dict__]
            self._watched += [_given(each) for each in held if each is not None]
            if not is_of_library(thing):
                places = _places_in_globals(thing.__code__, thing.__globals__)
                self._globals += [(scope, key) for scope, key, _ in places]
        else:
            self._watched.append(get)
            self._has_arrays = self._has_arrays or issubclass(kind, np.ndarray)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        self.is_complete = True
        # What is found is kept: the identity of an object that is gone may become another's.
        seen: dict[int, Any] = {id(each): each for each in self._closed}
        most = self.max_objects + len(seen)
        waiting = deque[tuple[str, Any]]()
        parts: Iterable[tuple[str, Any]] = [
            (name, each) for name, each in self._roots.items() if not self._is_plain(each)
        ]
        self.watched = {}
        self._watched, self._globals, self._has_arrays = [_given(self._roots)], [], False
        self._chosen, self._closed_ones = [], []
        while True:
            for name, thing in parts:
                if id(thing) in seen:
                    continue
                if len(seen) >= most:
                    self.is_complete = False
                    break
                seen[id(thing)] = thing
                waiting.append((name, thing))
            if not waiting:
                self._held = self._holds(
                    [get() for get in self._watched], [get() for get in self._chosen]
                )
                return
            name, thing = waiting.popleft()
            yield name, thing
            chosen = self._parts_of(thing)
            self._watch(name, thing, chosen)
            prefix = name
            parts = (
                (prefix if part is None else f"{prefix}.{part}", each)
                for part, each in self._parts(thing, chosen)
            )

    def _parts(self, thing: Any, chosen: Any) -> Iterator[tuple[str | None, Any]]:
        """Yields what an object holds but for plain data, by attribute, key or index."""
        kind = type(thing)
        if chosen is not None:
            yield from self._but_plain(chosen)
        elif issubclass(kind, type):
            yield from self._parts_of_class(thing)
        elif kind is types.FunctionType:
            yield from self._but_plain(_parts_of_function(thing))
        elif kind is types.ModuleType or issubclass(kind, types.ModuleType):
            yield from self._but_plain(_module_dict(thing).items())
        elif kind is types.CellType:
            yield from self._but_plain(_content_of_cell(thing))
        elif kind is types.BuiltinMethodType:
            yield from self._but_plain([("self", _self_of_builtin(thing))])
        elif kind is types.GeneratorType:
            yield from self._but_plain(_parts_of_generator(thing))
        elif kind is weakref.ReferenceType:
            yield from self._but_plain([(None, weakref.ReferenceType.__call__(thing))])
        else:
            yield from self._parts_of_instance(thing)

    def _parts_of_instance(self, thing: Any) -> Iterator[tuple[str | None, Any]]:
        layout = self._layout(type(thing))
        yield from self._items(thing)
        attributes = layout.attributes(thing)
        is_module = issubclass(type(thing), torch.nn.Module)
        for name, each in self._but_plain(attributes):
            if is_module and name == "_modules" and type(each) is dict:
                yield from self._but_plain(each.items())
            elif type(each) is OrderedDict and name is not None and name.endswith("_hooks"):
                # Their keys count the hooks of the process.
                yield from (
                    (f"{name}.{part}", e) for part, e in self._but_plain(enumerate(each.values()))
                )
            else:
                yield name, each
        if id(type(thing)) not in _CONTAINERS:  # extensions store more, which only this tells
            own = layout.dict_of(thing)
            referents = (
                e for e in gc.get_referents(thing) if e is not own and e is not type(thing)
            )
            yield from self._but_plain(enumerate(referents))
        if not self._is_plain(type(thing)):
            yield _class_name(type(thing)), type(thing)

    def _items(self, thing: Any) -> Iterator[tuple[str | None, Any]]:
        """Yields the elements of a container, read past what its class makes of them."""
        kind = type(thing)
        if issubclass(kind, dict):
            items = list(dict.items(thing))
            yield from self._but_plain((_key(key), value) for key, value in items)
            yield from self._but_plain((f"key {_key(key)}", key) for key, _ in items)
        elif issubclass(kind, set | frozenset):
            base: Any = set if issubclass(kind, set) else frozenset
            named = (
                (f"{UNORDERED}{_class_name(type(each))}}}", each) for each in base.__iter__(thing)
            )
            yield from self._but_plain(named)
        elif issubclass(kind, list | tuple | deque):
            base = next(each for each in (list, tuple, deque) if issubclass(kind, each))
            yield from self._but_plain(enumerate(list(base.__iter__(thing))))
        elif issubclass(kind, np.ndarray) and np.ndarray.dtype.__get__(thing).hasobject:
            yield from self._but_plain(enumerate([np.ndarray.tolist(thing)]))

    def _parts_of_class(self, kind: type) -> Iterator[tuple[str | None, Any]]:
        """Yields the class attributes and the methods of a class, and its bases."""
        items = [
            (name, value)
            for name, value in _namespace(kind).items()
            if name not in _OF_EACH_CLASS and (type(value) in _CODE or not name.startswith("__"))
        ]
        yield from self._but_plain(items)
        bases = (each for each in (*_mro(kind)[1:], type(kind)) if not self._is_plain(each))
        yield from ((_class_name(each), each) for each in bases)

    def _but_plain(self, parts: Iterable[tuple[Any, Any]]) -> Iterator[tuple[str | None, Any]]:
        parts = list(parts)
        if len(parts) > _MANY and self._are_plain([each for _, each in parts]):
            return
        for part, each in parts:
            if not self._is_plain(each):
                yield None if part is None else str(part), each

    def _is_plain(self, thing: Any) -> bool:
        kind = id(type(thing))
        if kind in _PLAIN:
            return True
        if kind in _CONTAINERS:
            return not thing or self._are_plain([thing])
        layout = self._layout(type(thing))
        return layout.is_plain or (layout.is_record and self._are_plain([thing])) or _is_dull(thing)

    def _are_plain(self, things: list[Any]) -> bool:
        """Returns whether objects hold neither a generator nor an object with a state.

        Containers are gone through level by level, in the interpreter's own loops: a data set may
        have a list of a million samples.
        """
        for _ in range(_MAX_NESTING):
            all_kinds = set(map(id, map(type, things)))
            kinds = all_kinds - _PLAIN
            if not kinds:
                return True
            if others := kinds - _CONTAINERS:
                classes = dict(zip(map(id, map(type, things)), map(type, things), strict=True))
                layouts = {each: self._layout(classes[each]) for each in others}
                unclear = {k for k in others if not (layouts[k].is_plain or layouts[k].is_record)}
                if unclear and not all(
                    map(_is_dull, (each for each in things if id(type(each)) in unclear))
                ):
                    return False
                kinds -= {each for each in others if not layouts[each].is_record}
            is_all = kinds == all_kinds
            containers = things if is_all else [e for e in things if id(type(e)) in kinds]
            if sum(map(len, containers)) > _MUCH:  # one may be held a thousand times
                containers = list(dict(zip(map(id, containers), containers, strict=True)).values())
            things = list(chain.from_iterable(containers))
            if not kinds.isdisjoint(_KEYED):
                mappings = [each for each in containers if id(type(each)) in _KEYED]
                things += chain.from_iterable(map(dict.values, mappings))
        return not things

    def _layout(self, kind: type) -> "_Layout":
        layout = self._layouts.get(id(kind))
        if layout is None or layout.kind() is not kind:
            layout = self._layouts[id(kind)] = _Layout.of(kind)
        return layout


_layouts: dict[int, "_Layout"] = {}  # by the identities of the classes, some of which are gone


class _Layout(NamedTuple):
    """The places where instances of a class store what they hold. It does not keep the class.

    A place is the number of a base, in the order of the class's bases, and a name in it.

    Args:
        kind: a weak reference to the class.
        of_dict: where ``__dict__`` is read; None if the instances have none.
        members: where the slots are read, by name.
        is_plain: whether the instances are plain data whatever they hold.
        is_record: whether they are tuples of a class of their own, with no other attributes.
    """

    kind: "weakref.ref[type]"
    of_dict: int | None
    members: Mapping[str, int]
    is_plain: bool
    is_record: bool

    @classmethod
    def of(cls, kind: type) -> "_Layout":
        """Returns the layout of a class, which never changes."""
        known = _layouts.get(id(kind))
        if known is None or known.kind() is not kind:
            if len(_layouts) > _MAX_LAYOUTS:  # of classes that a program makes again and again
                _layouts.clear()
            known = _layouts[id(kind)] = cls._read(kind)
        return known

    @classmethod
    def _read(cls, kind: type) -> "_Layout":
        of_dict, iterates_itself = None, False
        members: dict[str, int] = {}
        for number, base in reversed([*enumerate(_mro(kind))]):
            namespace = _namespace(base)
            stored: Any = namespace.get("__dict__")
            if type(stored) in (types.GetSetDescriptorType, types.MemberDescriptorType):
                of_dict = number
            iterates_itself = iterates_itself or (
                base is not tuple and not namespace.keys().isdisjoint(("__iter__", "__len__"))
            )
            members |= {
                name: number
                for name, value in namespace.items()
                if type(value) is types.MemberDescriptorType and name not in _OF_EACH_CLASS
            }
        is_tensor = issubclass(kind, torch.Tensor) and is_of_library(kind)
        is_tuple = issubclass(kind, tuple) and of_dict is None and not members
        return cls(
            weakref.ref(kind),
            of_dict,
            members,
            is_plain=is_tensor or issubclass(kind, _PLAIN_BASES),
            is_record=is_tuple and not iterates_itself,
        )

    def dict_of(self, thing: Any) -> dict[str, Any] | None:
        """Returns the ``__dict__`` of an instance; None if it has none."""
        if self.of_dict is None:
            return None
        return _read(thing, self.of_dict, "__dict__")  # type: ignore[no-any-return]

    def attributes(self, thing: Any) -> list[tuple[str, Any]]:
        """Returns the attributes of an instance that have a value."""
        found = [*dict.items(self.dict_of(thing) or {})]
        if issubclass(type(thing), threading.local):  # of this thread
            found += threading.local.__getattribute__(thing, "__dict__").items()
        for name, number in self.members.items():
            try:
                found.append((name, _read(thing, number, name)))
            except AttributeError:
                continue  # a slot without a value
        return found


def _read(thing: Any, number: int, name: str) -> Any:
    """Reads what the descriptor ``name`` of a base reads, found anew: it would keep its class."""
    return _namespace(_mro(type(thing))[number])[name].__get__(thing)


def _digests_of_long(container: Any, plain: frozenset[int]) -> list[int]:
    """Returns numbers that change with what a long container holds, but for plain data."""
    base: Any = next(each for each in _mro(type(container)) if id(each) in _CONTAINERS)
    elements = base.__iter__(container)
    if base in _MAPPINGS:
        elements = chain(elements, list(dict.values(container)))
    elements, number = list(elements), len(container)
    others = set(map(id, map(type, elements))) - plain
    if not others or number > MAX_OBJECTS:
        return [number, hash(frozenset(others))]
    held = compress(elements, map(others.__contains__, map(id, map(type, elements))))
    return [number, hash(tuple(map(id, held)))]


def stored_values(thing: Any) -> list[tuple[str, Any]]:
    """Returns what a function, a class or an instance stores itself, plain data too, by name."""
    if type(thing) is types.FunctionType:
        return _parts_of_function(thing)
    if issubclass(type(thing), type):
        items = _namespace(thing).items()
        return [(n, v) for n, v in items if not (n.startswith("__") or type(v) in _CODE)]
    return _Layout.of(type(thing)).attributes(thing)


def is_of_library(thing: Any) -> bool:
    """Returns whether a class, a function or a module is of the standard or a known library."""
    if issubclass(type(thing), type):
        name = _module_of_class(thing)
    elif type(thing) is types.FunctionType:
        name = thing.__globals__.get("__name__")
    else:
        name = _module_dict(thing).get("__name__")
    return type(name) is str and name.partition(".")[0] in _LIBRARIES


def _is_dull(thing: Any) -> bool:
    """Returns whether an object of a kind that may hold something holds nothing to look at."""
    kind = type(thing)
    if issubclass(kind, np.ndarray):
        return not np.ndarray.dtype.__get__(thing).hasobject
    if issubclass(kind, type | types.ModuleType):
        return is_of_library(thing)
    if kind is types.BuiltinMethodType:
        return type(_self_of_builtin(thing)) in (types.ModuleType, type(None))
    return False


def _parts_of_function(function: types.FunctionType) -> list[tuple[str, Any]]:
    """Returns what a function holds, and the globals that its code names."""
    code = function.__code__
    parts = list(dict.items(function.__dict__))
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # an empty cell
            parts.append((name, cell.cell_contents))
    names = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    parts += zip(names[len(names) - len(defaults) :], defaults, strict=False)
    parts += (function.__kwdefaults__ or {}).items()
    if not is_of_library(function):
        parts += _globals_named(code, function.__globals__)
    return parts


def _globals_named(code: types.CodeType, scope: dict[str, Any]) -> list[tuple[str, Any]]:
    """Returns the values of the globals that a function's code names, nested functions' too.

    Of a module that is named, the attributes are looked up that the code names as well: which of
    them belong together is not told apart.
    """
    named = [(path, inside.get(name)) for inside, name, path in _places_in_globals(code, scope)]
    return [each for each in named if not issubclass(type(each[1]), types.ModuleType)]


def _places_in_globals(
    code: types.CodeType, scope: dict[str, Any]
) -> list[tuple[dict[str, Any], str, str]]:
    """Returns where the globals of a function are: dictionary, key, and name for a person."""
    names = _names_in(code)
    places = [(scope, name, name) for name in names]
    # A module that is imported within the function is not among the globals.
    places += [(sys.modules, name, name) for name in names if name not in scope]
    seen = {id(scope)}
    for inside, name, path in places:  # grows
        thing = inside.get(name)
        if issubclass(type(thing), types.ModuleType) and not is_of_library(thing):
            of_module = _module_dict(thing)
            if id(of_module) not in seen:
                seen.add(id(of_module))
                places += [(of_module, part, f"{path}.{part}") for part in names]
    return places


@lru_cache(2 * MAX_OBJECTS)
def _names_in(code: types.CodeType) -> tuple[str, ...]:
    """Returns the names of globals and attributes in a function's code, nested functions' too."""
    names: dict[str, None] = {}
    codes = [code]
    while codes:
        each = codes.pop()
        names |= dict.fromkeys(each.co_names)
        codes += [const for const in each.co_consts if type(const) is types.CodeType]
    return tuple(names)


def reference_to(thing: Any) -> Callable[[], Any]:
    """Returns a function that returns ``thing``, or None if it is gone.

    An object that Python cannot refer to weakly is kept.
    """
    try:
        return weakref.ref(thing)
    except TypeError:
        return _given(thing)


def _given(thing: Any) -> Callable[[], Any]:
    """Returns a function that returns ``thing``, and is no call of Python's."""
    return repeat(thing).__next__


def _content_of_cell(cell: types.CellType) -> list[tuple[None, Any]]:
    try:
        return [(None, cell.cell_contents)]
    except ValueError:  # an empty cell
        return []


def _parts_of_generator(generator: Any) -> list[tuple[str, Any]]:
    """Returns the variables of a generator that has not ended, and the globals that it names."""
    frame = generator.gi_frame
    if frame is None:
        return []
    return [*frame.f_locals.items(), *_globals_named(frame.f_code, frame.f_globals)]


def _key(key: Any) -> str:
    """Returns a name for a key of a dictionary; that of an object must not be asked for one."""
    kind = type(key)
    if kind is str:
        return str(key[:_MAX_KEY_LENGTH])
    if kind is tuple:
        return f"({', '.join(map(_key, key))})"
    if id(kind) in _NAMED_BY_VALUE:
        with suppress(ValueError):  # an integer of too many digits
            return repr(key)[:_MAX_KEY_LENGTH]
    return _class_name(kind)
