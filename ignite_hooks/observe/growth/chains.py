"""Finds a chain of references from a variable of the program to an object.

The search goes forward, from the variables of modules and of running functions, level by level, so
it finds a shortest chain. An object that it does not reach is garbage, which the next collection
frees, or an extension module holds the object. The search reads references by the garbage collector
(``gc.get_referents``), and calls no code of the objects. It finds also objects that
``gc.freeze()`` hides from ``gc.get_objects()``.
"""

import functools
import gc
import inspect
import io
import re
import sys
import threading
import types
from collections import Counter
from collections import deque
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any
from typing import NamedTuple

from ignite.engine import Engine
from torch.multiprocessing.reductions import SharedCache

from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.object_graph import is_library_code
from ignite_hooks.core.object_graph import stored_values
from ignite_hooks.observe.growth.census import CONTAINER_TYPES
from ignite_hooks.observe.growth.census import chunks_of
from ignite_hooks.observe.growth.census import is_subclass
from ignite_hooks.observe.growth.census import module_name
from ignite_hooks.observe.growth.census import tensor_label
from ignite_hooks.observe.growth.census import type_name

__all__ = ["Chain", "Root", "describe_object", "find_chains", "program_roots"]

_FINE_CHUNK = 500  # objects whose references are read at once, to find one that refers to another
# The holder of a group is the last object that is on nearly as many chains as any other object. Not
# all samples have the same holder, because some may be older objects of the same class.
_MIN_SHARED = 0.6
_MAX_TEXT = 40  # characters of a key
# Steps between these are left out of the text of a chain, such as those along a linked list.
_FIRST_STEPS = 20
_LAST_STEPS = 6


class Root(NamedTuple):
    """A start of the search: a name, and the variables, or the object, that it stands for.

    Attributes:
        name: the name of the module or of the function.
        start: a dict of variables by name, or an object.
        is_namespace: whether ``start`` is a dict of variables.
        is_library: whether the root belongs to a library. Roots of libraries are searched last.
        is_own: whether the root is what this package keeps about an engine.
    """

    name: str
    start: Any
    is_namespace: bool
    is_library: bool
    is_own: bool = False


class Chain(NamedTuple):
    """A chain of references from a root to an object, as text.

    Attributes:
        path: the chain as an expression, for example "train.history[97]", and what the object is.
        holder: the expression of the object in which the chains to the samples part, for example
            "train.history"; None if they have no object in common.
        holder_id: the ``id`` of the holder, or None.
        holder_text: what the holder is, for example "a list of 120".
        is_bounded: whether the holder has a limit: it is a ``functools.lru_cache``, a deque, or
            torch's cache of shared memory.
        is_own: whether the holder is part of an object of this package.
        is_library: whether the root is a variable of a library.
    """

    path: str
    holder: str | None
    holder_id: int | None
    holder_text: str
    is_bounded: bool
    is_own: bool
    is_library: bool


def program_roots(engine: Any) -> list[Root]:
    """Returns the roots of the present program: modules, running functions, and the engine."""
    name = type(engine).__name__.lower()
    roots = [
        Root(name, engine, False, False),
        # A root, although the engine refers to this dict, so that the dict is searched last: its
        # chains to objects of users tell a user nothing.
        Root(f"{name}._ignite_hooks", engine_storage(engine), True, True, True),
    ]
    # A module may have several names, such as "__main__" and "__mp_main__".
    modules = {id(module): name for name, module in reversed(list(sys.modules.items()))}
    for name, module in list(sys.modules.items()):
        if type(module) is types.ModuleType and modules[id(module)] == name:
            roots.append(Root(name, vars(module), True, is_library_code(module)))
    for frame, is_present in _running_frames():
        code, namespace = frame.f_code, frame.f_globals
        if code.co_flags & inspect.CO_OPTIMIZED:  # a function, whose variables are its own
            place = f"{code.co_name}() in {Path(code.co_filename).name}, line {frame.f_lineno}: "
            owner = sys.modules.get(namespace.get("__name__", ""))
            is_library = owner is not None and is_library_code(owner)
            if is_library and not is_present:
                continue  # threads of libraries, and the insides of ``Thread.run``
            roots.append(Root(place, _local_variables(frame), True, is_library))
    return roots


def _running_frames() -> list[tuple[types.FrameType, bool]]:
    """Returns the frames of all threads, without those of the present look at the process.

    The second value is True for frames of the present thread.
    """
    found = []
    for thread, top in sys._current_frames().items():
        frames = [*_stack(top)]
        names = [str(each.f_globals.get("__name__")) for each in frames]
        own = [i for i, name in enumerate(names) if name.startswith(_OWN_PACKAGE)]
        is_present = thread == threading.get_ident()
        found += [(each, is_present) for each in frames[own[-1] + 1 if own else 0 :]]
    # The frame of this function must not refer to itself, or its variables would become garbage
    # that only a collection frees.
    del top, frames
    return found


def _stack(frame: types.FrameType | None) -> Iterator[types.FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


_OWN_PACKAGE = __name__.rpartition(".")[0]


def _local_variables(frame: types.FrameType) -> dict[str, Any]:
    """Returns a copy of the local variables of a running function.

    Before Python 3.13, a frame keeps the dict of its ``f_locals``, and so the values of variables
    that the function deletes later. The dict is emptied, unless other code holds it too.
    """
    found = frame.f_locals
    variables = dict(found)
    # The frame, `found` and the argument of `getrefcount` are the three references.
    if sys.version_info < (3, 13) and sys.getrefcount(found) <= 3:
        found.clear()
    return variables


def find_chains(groups: Mapping[str, Sequence[Any]], roots: Sequence[Root]) -> dict[str, Chain]:
    """Returns a chain for each group of objects of which the search finds more than half.

    The objects of a group are samples of many objects. The chains to them have the beginning in
    common, up to the *holder*, for example a list that has all of them.

    Args:
        groups: samples by the name of their group.
        roots: the starts of the search. Those of libraries are searched if the others do not
            lead to all groups.
    """
    search = _Search({id(each): each for samples in groups.values() for each in samples}, roots)

    def is_found(samples: Sequence[Any]) -> bool:
        return 2 * sum(id(each) in search.places for each in samples) > len(samples)

    try:
        for are_libraries in (False, True):
            search.begin([root for root in roots if root.is_library is are_libraries])
            while not all(map(is_found, groups.values())) and search.advance():
                pass
        paths = search.paths()
        try:
            return {
                name: _chain_of([paths[id(each)] for each in samples if id(each) in paths])
                for name, samples in groups.items()
                if is_found(samples)
            }
        finally:
            paths.clear()
    finally:
        search.clear()


class _Search:
    """A search from roots to targets. It keeps the objects of each level, to find the way back.

    Attributes:
        places: each target that is found, by its ``id``, with the number of the search and the
            level in it.
    """

    def __init__(self, targets: dict[int, Any], roots: Sequence[Root]) -> None:
        self._targets = targets
        self._untracked = {each for each, thing in targets.items() if not gc.is_tracked(thing)}
        # Modules are roots, so their namespaces, to which each function refers, are not searched as
        # parts of other objects.
        self._seen = {id(each.start) for each in roots if each.is_namespace}
        self._seen |= {id(each) for each in (self, targets, roots, self.__dict__)}
        self._roots: dict[int, Root] = {}
        self._searches: list[list[list[Any]]] = []  # for each call of `begin`, the levels
        self.places: dict[int, tuple[int, int]] = {}

    def clear(self) -> None:
        """Drops all references to objects."""
        self._roots, self._searches, self._targets = {}, [], {}

    def begin(self, roots: Sequence[Root]) -> None:
        """Starts at other roots; what has been searched is not searched again."""
        self._roots |= {id(root.start): root for root in roots}
        self._searches.append([[root.start for root in roots]])
        self._seen |= {id(root.start) for root in roots}

    def advance(self) -> bool:
        """Searches the next level; returns whether it has objects."""
        levels, fresh = self._searches[-1], dict[int, Any]()
        for chunk in chunks_of(levels[-1]):
            held = gc.get_referents(*chunk)
            if self._untracked:
                fresh |= {id(each): each for each in held if id(each) in self._untracked}
            tracked = list(filter(gc.is_tracked, held))
            fresh |= zip(map(id, tracked), tracked, strict=True)
        for each in fresh.keys() & self._seen:
            del fresh[each]
        self._seen.update(fresh)  # `|=` with a view of keys would copy the set at each level
        place = len(self._searches) - 1, len(levels)
        self.places |= dict.fromkeys(fresh.keys() & self._targets.keys(), place)
        levels.append([each for each in fresh.values() if id(type(each)) not in _NOT_SEARCHED])
        return bool(levels[-1])

    def paths(self) -> dict[int, list[Any]]:
        """Returns, for each target that is found, its root and the objects from there to it."""
        paths = {each: [self._targets[each]] for each in self.places}
        for number, levels in enumerate(self._searches):
            deepest = max((at for n, at in self.places.values() if n == number), default=0)
            for depth in range(deepest, 0, -1):
                open_paths = [
                    path
                    for each, path in paths.items()
                    if self.places[each][0] == number and self.places[each][1] >= depth
                ]
                parents = _parents({id(path[0]) for path in open_paths}, levels[depth - 1])
                for path in open_paths:
                    if id(path[0]) in parents:
                        path.insert(0, parents[id(path[0])])
        for path in paths.values():
            path.insert(0, self._roots.get(id(path[0])))
        # Another thread may have changed a reference since the search.
        return {each: path for each, path in paths.items() if path[0] is not None}


# By their ``id``, because a metaclass may define ``__eq__``.
_NOT_SEARCHED = frozenset({id(types.ModuleType), id(types.FrameType)})


def _parents(wanted: set[int], candidates: list[Any]) -> dict[int, Any]:
    """Returns, for each of the ``wanted``, the first of the candidates that refers to it."""
    parents: dict[int, Any] = {}
    for chunk in chunks_of(candidates, _FINE_CHUNK):
        if len(parents) == len(wanted):
            break
        if wanted.isdisjoint(map(id, gc.get_referents(*chunk))):
            continue
        for each in chunk:
            for held in gc.get_referents(each):
                if id(held) in wanted:
                    parents.setdefault(id(held), each)
    return parents


def _chain_of(paths: list[list[Any]]) -> Chain:
    """Returns the chain of a group as text.

    Args:
        paths: for each sample, a root, and the objects from the start of the root to the sample.
    """
    counts = Counter(id(each) for path in paths for each in path[2:-1])
    most = max(counts.values(), default=0)
    common = {each for each, count in counts.items() if count >= max(2, _MIN_SHARED * most)}
    # The path that is shown is one that goes through all objects that the paths share.
    path = max(paths, key=lambda path: sum(id(each) in common for each in path))
    root, *objects = path
    last_common = max((i for i, each in enumerate(objects) if id(each) in common), default=0)
    holder_index = len(objects) - 1 if len(paths) == 1 else last_common
    text, texts = root.name, [root.name]
    for index, child in enumerate(objects[1:], start=1):
        owner, parent = objects[index - 2] if index > 1 else None, objects[index - 1]
        if index <= _FIRST_STEPS or index > len(objects) - _LAST_STEPS:
            text += _step(parent, child, root if index == 1 else None, owner)
        elif not text.endswith("…"):
            text += "…"
        texts.append(text)
    if _is_dict_of(objects[holder_index], objects[holder_index - 1]):
        holder_index -= 1
    has_holder = holder_index > 0
    holder = objects[holder_index]
    return Chain(
        f"{text} ({describe_object(objects[-1])})",
        texts[holder_index] if has_holder else None,
        id(holder) if has_holder else None,
        describe_object(holder),
        _is_bounded(objects[: holder_index + 1] if has_holder else objects),
        has_holder and _is_own(objects[: holder_index + 1], root),
        root.is_library,
    )


def _is_own(objects: list[Any], root: Root) -> bool:
    """Returns whether the last of the first objects of a chain is part of this package.

    An object is part of the nearest object on the chain whose class is not a built-in one. The
    attributes of engines are those of Ignite and of users.
    """
    for each in reversed(objects):
        module = module_name(type(each))
        if module not in _BUILTIN_MODULES:
            return str(module).startswith("ignite_hooks.") and not is_subclass(type(each), Engine)
    return root.is_own


_BUILTIN_MODULES = ("builtins", "collections", "functools")


def _is_dict_of(namespace: Any, owner: Any) -> bool:
    """Returns whether an object is the ``__dict__`` of another one, which may be a class."""
    if type(namespace) is not dict:
        return False
    if is_subclass(type(owner), type):
        return "__module__" in namespace
    return _dict_of(owner) is namespace


def _length_of(thing: Any) -> int | None:
    """Returns the number of entries of a built-in container; None for other objects."""
    kind = next((each for each in CONTAINER_TYPES if is_subclass(type(thing), each)), None)
    length: int | None = None if kind is None else kind.__len__(thing)  # type: ignore[attr-defined]
    return length


def _step(parent: Any, child: Any, root: Root | None, owner: Any) -> str:
    """Returns the part of an expression that leads from ``parent`` to ``child``.

    Args:
        parent: an object of a chain.
        child: the next object.
        root: the root, if ``parent`` is its start.
        owner: the object before ``parent``, or None.
    """
    if root is not None and root.is_namespace:
        name = next((key for key, value in parent.items() if value is child), "?")
        return name if root.name.endswith(": ") else f".{name}"
    if is_subclass(type(parent), dict):
        key = next((key for key, value in dict.items(parent) if value is child), child)
        if owner is not None and type(key) is str and _is_dict_of(parent, owner):
            return f".{key}"
        return f"[{_key_text(key)}]" if key is not child else " (a key)"
    if type(parent) is types.CellType or _is_dict_of(child, parent):
        return ""  # the name of the variable has been given, or the attribute follows
    if any(type(parent) is each for each in (list, tuple, deque)):
        if type(owner) is types.FunctionType and owner.__closure__ is parent:
            return f".{_free_variable(owner, child)}"
        return f"[{next((i for i, each in enumerate(parent) if each is child), '?')}]"
    if type(parent) is types.FunctionType:
        if parent.__closure__ is child:
            return f" (function {parent.__qualname__})"
        return _attribute(parent, child, ("__defaults__", "__kwdefaults__", "__dict__"))
    for kind, names in _ATTRIBUTES:
        if type(parent) is kind:
            return _attribute(parent, child, names)
    if module_name(type(parent)) != "builtins":
        with suppress(Exception):
            name = next(name for name, value in stored_values(parent) if value is child)
            return f".{name}"
    return f" -> {type_name(type(child))}"


_ATTRIBUTES: tuple[tuple[type, tuple[str, ...]], ...] = (
    (types.MethodType, ("__self__", "__func__")),
    (types.BuiltinMethodType, ("__self__",)),
    (functools.partial, ("func", "args", "keywords")),
    (property, ("fget", "fset")),
)


def _attribute(parent: Any, child: Any, names: tuple[str, ...]) -> str:
    name = next((each for each in names if getattr(parent, each, None) is child), None)
    return f".{name}" if name else f" -> {type_name(type(child))}"


def _dict_of(thing: Any) -> Any:
    """Returns the ``__dict__`` of an object as it is stored; None if there is none."""
    if is_subclass(type(thing), type) or type(thing) is types.FunctionType:
        return None
    try:
        return object.__getattribute__(thing, "__dict__")
    except AttributeError:
        return None


def _free_variable(function: Any, cell: Any) -> str:
    names = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return next((name for name, each in names if each is cell), "?")


def _key_text(key: Any) -> str:
    if isinstance(key, Enum):
        return f"{type(key).__name__}.{key.name}"
    if type(key) in (str, int, float, bool, bytes, type(None)):
        text = repr(key)
        return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"
    return f"<{type_name(type(key))}>"


def _is_bounded(objects: list[Any]) -> bool:
    """Returns whether the last of the first objects of a chain has a limit of its length."""
    holder = objects[-1]
    # torch caches the memory that loader workers share, and drops dead entries now and then. The
    # module re keeps a number of patterns.
    if type(holder) is SharedCache or holder is getattr(re, "_cache", None):
        return True
    if is_subclass(type(holder), deque):
        return deque.maxlen.__get__(holder) is not None
    limit = _cache_limit(holder)
    # The entries of a cache are in a dict, which its function may have returned instead.
    if limit is None and type(holder) is dict and len(objects) > 1:
        limit = _cache_limit(objects[-2])
        return limit is not None and len(holder) <= limit
    return limit is not None


def _cache_limit(thing: Any) -> int | None:
    is_cache = type(thing) is functools._lru_cache_wrapper
    limit: int | None = thing.cache_info().maxsize if is_cache else None
    return limit


_FILE_TYPES = (io.TextIOWrapper, io.BufferedReader, io.BufferedWriter, io.BufferedRandom, io.FileIO)


def describe_object(thing: Any) -> str:
    """Returns what an object is, in a few words."""
    tensor = tensor_label(thing)
    if tensor is not None:
        return f"a tensor {tensor}"
    name = type_name(type(thing))
    size = _length_of(thing)
    if size is not None:
        return f"a {name} of {size:,}"
    if type(thing) is types.FunctionType:
        return f"the function {thing.__qualname__}"
    if is_subclass(type(thing), threading.Thread):
        return f"the thread {_key_text((_dict_of(thing) or {}).get('_name'))}"
    if type(thing) in _FILE_TYPES:
        with suppress(AttributeError, ValueError):  # without a name; detached
            return f"an open file, {_key_text(thing.name)}"
    return f"an object of type {name}"
