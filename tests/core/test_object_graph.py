"""Tests that the search finds objects wherever they are held, and runs none of their code."""

import functools
import itertools
import operator
import sys
import threading
import types
import weakref
from collections import ChainMap
from collections import OrderedDict
from collections import defaultdict
from collections import deque
from dataclasses import dataclass
from typing import Any
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from ignite_hooks.core.object_graph import ObjectSearch
from ignite_hooks.core.object_graph import is_library_code
from ignite_hooks.core.object_graph import stored_values


class Wanted:
    """The object that the tests search for."""

    def call(self):
        """Does nothing."""


class Holder:
    def __init__(self, **attributes):
        vars(self).update(attributes)

    def call(self):
        """Does nothing."""


class Slots:
    __slots__ = ("empty", "held")

    def __init__(self, held):
        self.held = held


class MoreSlots(Slots):
    __slots__ = ("other",)


@dataclass(slots=True)
class Record:
    number: int
    held: Any


class Pair(NamedTuple):
    number: int
    held: Any


class OwnList(list):
    def __iter__(self):
        raise AssertionError("its own iteration is not called")


class OwnDict(dict):
    def items(self):
        raise AssertionError("its own items are not asked for")

    __iter__ = __getitem__ = keys = values = items


def closure(held):
    def inner():
        return held

    return inner


def nested_closure(held):
    return closure(closure(held))


def default(held):
    def function(first, second=held):
        return first, second

    return function


def keyword_default(held):
    def function(*, second=held):
        return second

    return function


def attribute_of_function(held):
    def function():
        """Does nothing."""

    function.held = held
    return function


def wrapped(held):
    @functools.wraps(closure(held))
    def function():
        """Does nothing."""

    return function


def instance_with_class_attributes(**attributes):
    return type("Made", (), attributes)()


def with_base(held):
    return type("Derived", (type("Base", (), {"held": held}),), {})()


def with_metaclass(held):
    return type("Meta", (type,), {"held": held})("Made", (), {})()


def function_with_global(held, source, name="some_module", **others):
    """Returns the function ``f`` that ``source`` defines, in a module with the global HELD."""
    module = types.ModuleType(name)
    vars(module).update(HELD=held, **others)
    exec(source, vars(module))
    return module.f


def module_with(held):
    module = types.ModuleType("held_module")
    module.held = held
    return module


def running_generator(held):
    def generate():
        kept = held
        yield 1
        yield kept

    generator = generate()
    next(generator)
    return generator


def cached_result(held):
    results = [held]
    cached = functools.lru_cache(maxsize=None)(results.pop)
    cached()
    return cached


def thread_variable(held):
    local = threading.local()
    local.held = held
    return local


def object_array(held):
    array = np.empty((2, 2), dtype=object)
    array[1, 0] = held
    return array


def submodule(held):
    model = torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(300)))
    model[299].rng = held
    return model


def referred_weakly(held):
    return Holder(weak=weakref.ref(held), strong=(1, [held]))


PLACES = {
    "attribute": (lambda held: Holder(held=held), "root.held"),
    "list": (lambda held: [1, held], "root.1"),
    "long list": (lambda held: [0] * 5000 + [held], "root.5000"),
    "long list of holders": (
        lambda held: [Holder() for _ in range(5000)] + [held],
        "root.5000",
    ),
    "tuple in a list": (lambda held: [(1, 2), (3, held)], "root.1.1"),
    "set": (lambda held: {1, held}, "root.{Wanted}"),
    "frozenset": (lambda held: frozenset([1, held]), "root.{Wanted}"),
    "deque": (lambda held: deque([1, held]), "root.1"),
    "dict": (lambda held: {"a": 1, "b": held}, "root.b"),
    "dict by numbers": (lambda held: {1: 1, 2: held}, "root.2"),
    "dict by tuples": (lambda held: {(1, "a"): held}, "root.(1, a)"),
    "dict by objects": (lambda held: {Holder: held}, "root.type"),
    "key of a dict": (lambda held: {held: 1}, "root.key Wanted"),
    "ordered dict": (lambda held: OrderedDict(a=held), "root.a"),
    "default dict": (lambda held: defaultdict(int, a=held), "root.a"),
    "factory of a default dict": (
        lambda held: defaultdict(closure(held)),
        "root.default_factory.held",
    ),
    "chain of maps": (lambda held: ChainMap({}, {"a": held}), "root.maps.1.a"),
    "proxy of a dict": (lambda held: types.MappingProxyType({"a": held}), "root.0.a"),
    "own list": (lambda held: OwnList([1, held]), "root.1"),
    "own dict": (lambda held: OwnDict(a=held), "root.a"),
    "named tuple": (lambda held: Pair(1, held), "root.1"),
    "slots": (Slots, "root.held"),
    "inherited slots": (MoreSlots, "root.held"),
    "dataclass with slots": (lambda held: Record(1, held), "root.held"),
    "simple namespace": (lambda held: types.SimpleNamespace(held=held), "root.held"),
    "array of objects": (object_array, "root.0.1.0"),
    "structured array": (
        lambda held: np.array([(1, held)], dtype=[("a", int), ("b", object)]),
        "root.0.0.1",
    ),
    "bound method": (lambda held: held.call, "root.__self__"),
    "bound built-in method": (lambda held: [held].append, "root.self.0"),
    "partial": (lambda held: functools.partial(print, held), "root.args.0"),
    "keyword of a partial": (
        lambda held: functools.partial(print, held=held),
        "root.keywords.held",
    ),
    "partial of a method": (lambda held: functools.partial(held.call), "root.func.__self__"),
    "partial method": (
        lambda held: instance_with_class_attributes(f=functools.partialmethod(print, held)),
        "root.Made.f.args.0",
    ),
    "closure": (closure, "root.held"),
    "closure in a closure": (nested_closure, "root.held.held"),
    "default": (default, "root.second"),
    "keyword default": (keyword_default, "root.second"),
    "attribute of a function": (attribute_of_function, "root.held"),
    "wrapped function": (wrapped, "root.__wrapped__.held"),
    "cached function": (lambda held: functools.lru_cache(closure(held)), "root.__wrapped__.held"),
    "result in a cache": (cached_result, "root.0.()"),
    "variable of this thread": (thread_variable, "root.held"),
    "global": (lambda held: function_with_global(held, "def f(): return HELD.x"), "root.HELD"),
    "global of a lambda in a function": (
        lambda held: function_with_global(held, "def f(): return [lambda: HELD]"),
        "root.HELD",
    ),
    "global of a function that is called": (
        lambda held: function_with_global(held, "def g(): return HELD\ndef f(): return g()"),
        "root.g.HELD",
    ),
    "attribute of a module": (
        lambda held: function_with_global(0, "def f(): return m.held.x", m=module_with(held)),
        "root.m.held",
    ),
    "attribute of a module in a module": (
        lambda held: function_with_global(
            0,
            "def f(): return m.held.held.x",
            m=module_with(module_with(held)),
        ),
        "root.m.held.held",
    ),
    "global of a class that is named": (
        lambda held: function_with_global(held, "class C:\n x = HELD\ndef f(): return C.x"),
        "root.C.x",
    ),
    "module as an attribute": (lambda held: Holder(m=module_with(held)), "root.m.held"),
    "class attribute": (lambda held: instance_with_class_attributes(held=held), "root.Made.held"),
    "class attribute of a base": (with_base, "root.Derived.Base.held"),
    "attribute of a metaclass": (with_metaclass, "root.Made.Meta.held"),
    "method": (lambda held: instance_with_class_attributes(f=closure(held)), "root.Made.f.held"),
    "special method": (
        lambda held: instance_with_class_attributes(__call__=closure(held)),
        "root.Made.__call__.held",
    ),
    "static method": (
        lambda held: instance_with_class_attributes(f=staticmethod(closure(held))),
        "root.Made.f.__func__.held",
    ),
    "class method": (
        lambda held: instance_with_class_attributes(f=classmethod(closure(held))),
        "root.Made.f.__func__.held",
    ),
    "property": (
        lambda held: instance_with_class_attributes(f=property(closure(held))),
        "root.Made.f.fget.held",
    ),
    "cached property": (
        lambda held: instance_with_class_attributes(f=functools.cached_property(closure(held))),
        "root.Made.f.func.held",
    ),
    "generator that runs": (running_generator, "root.kept"),
    "iterator": (lambda held: iter([held]), "root.0.0"),
    "endless iterator": (lambda held: itertools.repeat(held), "root.0"),
    "weak reference": (referred_weakly, "root.weak"),
    "submodule": (submodule, "root.299.rng"),
    "subset of a data set": (lambda held: Subset(Holder(held=held), [1, 2]), "root.dataset.held"),
}


def names_by_id(thing, **settings):
    search = ObjectSearch({"root": thing}, **settings)
    names = {id(each): name for name, each in search}
    assert search.is_complete
    return names


@pytest.mark.parametrize("place", PLACES)
def test_an_object_is_found_wherever_it_is_held(place):
    make, name = PLACES[place]
    wanted = Wanted()
    thing = make(wanted)
    assert names_by_id(thing)[id(wanted)] == name


class RefusesCalls:
    """Raises an error in every method: only its stored values can be read."""

    def __init__(self, held):
        object.__setattr__(self, "held", held)

    def refuse(self, *arguments):
        raise AssertionError("called")

    __getattribute__ = __getattr__ = __setattr__ = __eq__ = __hash__ = __bool__ = refuse
    __iter__ = __len__ = __repr__ = __str__ = __call__ = __get__ = __instancecheck__ = refuse
    __class__ = property(refuse)
    prop = property(refuse)


class RefusingMetaclass(type):
    def refuse(cls, *arguments):
        raise AssertionError("called")

    __getattribute__ = __eq__ = __hash__ = __instancecheck__ = __subclasscheck__ = refuse


def test_no_code_of_the_objects_runs():
    wanted = Wanted()
    odd = type.__call__(RefusingMetaclass, "Odd", (), {"held": wanted})
    thing = [RefusesCalls(wanted), 1], {1: RefusesCalls(odd), 2: RefusesCalls(type.__call__(odd))}
    assert names_by_id(thing)[id(wanted)] == "root.0.0.held"


def test_an_empty_cell_and_an_empty_slot_hold_nothing():
    def outer():
        def inner():
            return later

        yield inner
        later = 1

    slots = Slots.__new__(Slots)
    assert names_by_id([next(outer()), slots])[id(slots)] == "root.1"


def test_each_object_is_yielded_once_by_its_shortest_name():
    shared, cycle = Wanted(), []
    cycle += [Holder(deep=Holder(shared=shared, cycle=cycle)), shared]
    names = [name for name, _ in ObjectSearch({"root": cycle})]
    assert names[:4] == ["root", "root.0", "root.1", "root.0.deep"]
    assert len(names) == len(set(names))


def test_closed_objects_are_not_searched():
    wanted = Wanted()
    closed = Holder(wanted=wanted)
    assert names_by_id([closed], excluded=[closed]).keys().isdisjoint({id(wanted), id(closed)})


PLAIN_DATA = {
    "samples of an image folder": lambda: [(f"{i}.png", i % 10) for i in range(100_000)],
    "numbers": lambda: list(range(100_000)),
    "lists of numbers": lambda: [[i, [i]] for i in range(20_000)],
    "records": lambda: [{"text": "a", "tokens": [1, 2], "box": {"x": 1.0}} for _ in range(20_000)],
    "named tuples": lambda: [Pair(i, "a") for i in range(20_000)],
    "arrays": lambda: [np.zeros(1) for _ in range(20_000)],
    "tensors": lambda: [torch.zeros(1)] * 20_000,
    "a dict": lambda: {i: (i, "a") for i in range(20_000)},
    "classes of a library": lambda: [torch.nn.Linear, np, np.ndarray, len] * 5000,
    "an array of texts": lambda: np.array(["a"] * 20_000, dtype=object),
    "buffers": lambda: torch.nn.Linear(10, 10),
}


@pytest.mark.parametrize("data", PLAIN_DATA)
def test_plain_data_does_not_count(data):
    wanted = Wanted()
    holder = Holder(data=PLAIN_DATA[data](), wanted=wanted)
    assert id(wanted) in names_by_id(holder, max_objects=8)


@pytest.mark.parametrize("data", ["samples of an image folder", "records", "named tuples"])
def test_plain_data_costs_no_python_call_per_element(data):
    """The interpreter's own loops go through the data, whatever its length."""
    samples, calls = PLAIN_DATA[data](), []
    sys.setprofile(lambda frame, event, _: event == "call" and calls.append(frame.f_code))
    try:
        names_by_id(samples)
    finally:
        sys.setprofile(None)
    assert len(calls) < 1000


def test_a_large_model_is_searched_completely():
    wanted = Wanted()
    model = torch.nn.Sequential(
        *(torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU()) for _ in range(1000))
    )
    model[999][1].rng = wanted
    assert names_by_id(model)[id(wanted)] == "root.999.1.rng"


def linked_list(length):
    first = None
    for _ in range(length):
        first = Holder(next=first)
    return first


def nested_list(length):
    first = [Wanted()]
    for _ in range(length):
        first = [first]
    return first


@pytest.mark.parametrize("make", [linked_list, nested_list])
def test_the_search_of_a_deep_structure_stops_at_the_limit(make):
    thing = make(100_000)
    search = ObjectSearch({"root": thing})
    assert sum(1 for _ in search) == 10_000
    assert not search.is_complete
    while isinstance(thing, list):  # Python itself recurses when it deletes what is nested
        thing = thing.pop() if thing else None


def test_a_search_that_the_limit_ends_is_incomplete():
    things = [Holder() for _ in range(100)]
    search = ObjectSearch({"root": things}, max_objects=50)
    assert len(list(search)) == 50
    assert not search.is_complete
    search = ObjectSearch({"root": things}, max_objects=104)  # list, class, methods
    assert len(list(search)) == 104
    assert search.is_complete


def test_library_code_is_skipped_and_library_data_is_not():
    wanted = Wanted()
    source = "def g(): return HELD\ndef f(): return g()"
    assert id(wanted) not in names_by_id(function_with_global(wanted, source, "torch.some"))
    assert is_library_code(torch.nn.Linear)
    assert is_library_code(functools.wraps)
    assert is_library_code(np.random)
    assert not is_library_code(Holder)
    assert names_by_id(torch.nn.Sequential(submodule(wanted)))[id(wanted)] == "root.0.299.rng"


def test_keys_of_any_kind_have_short_names():
    keys = ["a" * 1000, 10**5000, Holder, (1, (2.5, None)), b"a", True]
    names = names_by_id({key: Wanted() for key in keys}).values()
    assert max(map(len, names)) < 120
    assert {"root.int", "root.(1, (2.5, None))", "root.b'a'", "root.True"} <= set(names)


def changeable_object():
    """Returns an object, and functions that each change what it holds, by name."""
    thing = Holder(number=1, later=None, texts=["a"], nested={"a": [{}]}, slots=Slots(None))
    thing.model = torch.nn.Sequential(torch.nn.Linear(1, 1))
    thing.objects, thing.many = [Holder()], list(range(2000))
    thing.pairs, thing.by_name = [(1, "a")] * 2000, {n: [1] for n in range(2000)}
    thing.huge = [0] * 20_000
    thing.closure, thing.function = (
        closure([]),
        function_with_global(None, "def f(): return HELD, NEW"),
    )
    thing.made, thing.cell = instance_with_class_attributes(held=None), later_cell()
    new = Wanted()
    return thing, {
        "an attribute": lambda: setattr(thing, "later", new),
        "a new attribute": lambda: setattr(thing, "new", new),
        "a list of texts": lambda: thing.texts.append(new),
        "a dict deep in plain data": lambda: thing.nested["a"][0].update(new=new),
        "a slot": lambda: setattr(thing.slots, "held", new),
        "a submodule": lambda: thing.model.add_module("new", torch.nn.ReLU()),
        "a hook": lambda: thing.model[0].register_forward_hook(closure(new)),
        "an object in place of its like": lambda: operator.setitem(thing.objects, 0, Holder()),
        "the length of a long list": lambda: thing.many.append(0),
        "an element of a long list": lambda: operator.setitem(thing.many, 5, new),
        "a tuple of a long list": lambda: operator.setitem(thing.pairs, 5, (new, "a")),
        "a value of a long dict": lambda: operator.setitem(thing.by_name, 5, [new]),
        "a key of a long dict": lambda: thing.by_name.update({new: thing.by_name.pop(5)}),
        "an element of a huge list": lambda: operator.setitem(thing.huge, 5, new),
        "what a closure holds": lambda: thing.closure().append(new),
        "a closure's variable": lambda: thing.cell(new),
        "a global": lambda: thing.function.__globals__.update(HELD=new),
        "a new global": lambda: thing.function.__globals__.update(NEW=new),
        "a class attribute": lambda: setattr(type(thing.made), "held", new),
        "an attribute of a function": lambda: setattr(thing.function, "new", new),
        "a removed object": lambda: delattr(thing, "slots"),
    }


def later_cell():
    held = None

    def function(new=None):
        nonlocal held
        held = new

    return function


@pytest.mark.parametrize("change", changeable_object()[1])
def test_a_change_is_seen_without_another_search(change):
    thing, changes = changeable_object()
    search = ObjectSearch({"root": thing})
    assert len(list(search)) > 10
    thing.number, thing.texts[0], thing.many[7] = 2, "b", 3.0
    assert not search.has_changed()
    changes[change]()
    assert search.has_changed()


def test_has_changed_takes_few_calls_and_keeps_nothing():
    holder = Holder(model=torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(100))))
    holder.output = Holder(tensor=torch.zeros(1))
    search, calls = ObjectSearch({"root": holder}), []
    assert len(list(search)) > 100
    sys.setprofile(lambda _, event, __: calls.append(event))
    try:
        assert not search.has_changed()
    finally:
        sys.setprofile(None)
    assert len(calls) < 150
    gone = weakref.ref(holder.output)
    del holder.output
    assert gone() is None
    assert search.has_changed()


def test_parts_of_selects_the_parts_to_search():
    left, right = Wanted(), Wanted()
    holder = Holder(left=left, right=right)
    search = ObjectSearch(
        {"a": holder}, parts_of=lambda each: [("x", right)] if each is holder else None
    )
    assert {name: each for name, each in search if isinstance(each, Wanted)} == {"a.x": right}


def test_a_change_is_seen_in_selected_parts_only():
    """Changes of the parts that ``parts_of`` leaves out are ignored."""
    parts, holder, closed = [Wanted()], Holder(), Holder(left=Wanted())

    def parts_of(thing):
        if type(thing) is Wanted:
            return ()
        return {id(closed): (), id(holder): [("x", parts[0])]}.get(id(thing))

    things = [holder, closed, Wanted()]
    search = ObjectSearch({"things": things}, parts_of=parts_of)
    assert len([*search]) == 5  # and the part of the holder
    holder.other, closed.left = Wanted(), Wanted()
    assert not search.has_changed()
    parts.insert(0, Wanted())
    assert search.has_changed()
    del parts[0]
    assert not search.has_changed()
    things.pop()
    things.append(Wanted())  # often at the same address
    assert search.has_changed()


def test_stored_values_of_functions_classes_and_instances():
    def function(default=1):
        return closed_over

    class Slotted:
        __slots__ = ("slot",)
        number = 2

        def method(self):
            """Is code, not a value."""

    closed_over, slotted = 3, Slotted()
    slotted.slot = 4
    function.attribute = 5
    values = dict(stored_values(function))
    assert (values["default"], values["closed_over"], values["attribute"]) == (1, 3, 5)
    assert dict(stored_values(Holder(a=6))) == {"a": 6}
    assert dict(stored_values(slotted)) == {"slot": 4}
    assert dict(stored_values(Slotted))["number"] == 2
    assert "method" not in dict(stored_values(Slotted))


def test_objects_of_another_search_are_passed_over():
    wanted = Wanted()
    search = ObjectSearch({"root": [Holder(rng=wanted)]})
    assert len(list(search)) > 1
    assert names_by_id([search]).keys().isdisjoint({id(search), id(wanted)})


def test_frames_of_a_kept_exception_are_not_searched():
    class Keeper:
        error = None

    keeper = Keeper()
    try:
        raise ValueError("kept", np.random.default_rng(1))
    except ValueError as error:
        keeper.error = error
    search = ObjectSearch({"keeper": keeper})
    found = list(search)
    assert any(isinstance(each, np.random.Generator) for _, each in found)
    assert len(found) < 20
    assert not search.has_changed()
