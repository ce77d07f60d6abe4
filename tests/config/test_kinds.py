import collections.abc
from collections import deque
from dataclasses import field
from enum import Enum
from typing import Annotated
from typing import Any
from typing import Literal
from typing import NewType
from typing import TypeVar

import pytest
from pydantic.dataclasses import dataclass

from ignite_hooks import ClearCache
from ignite_hooks.config.kinds import admits_none
from ignite_hooks.config.kinds import bare
from ignite_hooks.config.kinds import choices_of
from ignite_hooks.config.kinds import class_of
from ignite_hooks.config.kinds import fields_of
from ignite_hooks.config.kinds import is_class
from ignite_hooks.config.kinds import items_of
from ignite_hooks.config.kinds import members_of
from ignite_hooks.config.kinds import name_of
from tests.config.aliases import NUMBERS
from tests.ids import stable_id

Name = NewType("Name", str)
T = TypeVar("T")
Bound = TypeVar("Bound", bound=int)


class Color(Enum):
    RED = "red"
    ONE = 1


@dataclass
class Sample:
    required: int
    optional: "int | None" = None
    made: list[int] = field(default_factory=lambda: [1])
    counted: int = field(default=0, init=False)


def test_fields_match_constructor_arguments_types_and_defaults():
    fields = fields_of(Sample)
    assert list(fields) == ["required", "optional", "made"]
    assert fields["required"].is_required
    assert (fields["optional"].kind, fields["optional"].default) == (int | None, None)
    assert fields["made"].default == [1]
    assert not fields["optional"].is_required


def test_bare_strips_annotations_from_a_type():
    assert bare(Annotated[Annotated[int, "a"], "b"]) is int
    assert bare(Name) is str
    assert bare(T) is Any
    assert bare(Bound) is int
    assert bare(Annotated[Name, "x"]) is str
    assert bare(list[int]) == list[int]


def test_members_of_a_union_are_all_but_none():
    assert members_of(int) == [int]
    assert members_of(int | None) == [int]
    assert members_of(int | Annotated[str | None, "x"]) == [int, str]
    assert members_of(None) == []


@pytest.mark.parametrize("kind", [None, int | None, Name | None, Literal["a", None], type(None)])
def test_kind_admits_none(kind):
    assert admits_none(kind)
    assert admits_none(Annotated[kind, "x"])


@pytest.mark.parametrize("kind", [int, Any, int | str, Literal["None"], list[None]])
def test_kind_without_none_does_not_admit_it(kind):
    assert not admits_none(kind)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (list[int], (list, [int])),
        (list, (list, [Any])),
        (NUMBERS, (list, [int])),
        (tuple[int, ...], (list, [int])),
        (tuple[int, str], (list, [int, str])),
        (tuple, (list, [Any])),
        (set[int], (list, [int])),
        (frozenset[str], (list, [str])),
        (deque[int], (list, [int])),
        (collections.abc.Sequence[int], (list, [int])),
        (dict[str, int], (dict, [int])),
        (dict, (dict, [Any])),
        (collections.abc.Mapping[str, float], (dict, [float])),
        (int, None),
        (str, None),
        (bytes, None),
        (Any, None),
        (Literal["a"], None),
    ],
    ids=stable_id,
)
def test_what_contains_others_is_a_list_or_a_dict(kind, expected):
    assert items_of(kind) == expected


def test_a_class_has_fields_of_its_own_if_pydantic_made_them():
    assert class_of(ClearCache) is ClearCache
    assert class_of(int) is None
    assert class_of(ClearCache | None) is None
    assert class_of(NUMBERS) is None


@pytest.mark.parametrize("kind", [list, int, Color, Sample, collections.abc.Sequence, type(None)])
def test_is_class_accepts_classes(kind):
    assert is_class(kind)


@pytest.mark.parametrize("kind", [list[int], NUMBERS, int | str, Literal["a"], "int", None])
def test_another_annotation_is_no_class(kind):
    assert not is_class(kind)


def test_parameterized_generic_counts_as_a_class_on_python_3_10():
    assert isinstance(NUMBERS, type)
    with pytest.raises(TypeError, match="cannot be a parameterized generic"):
        issubclass(int, NUMBERS)


def test_the_choices_of_a_kind_are_as_data_has_them():
    assert choices_of(Literal["a", 1]) == ["a", 1]
    assert choices_of(Color) == ["red", 1]
    assert choices_of(int) is None
    assert choices_of(NUMBERS) is None


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (int, "an integer"),
        (bool, "True or False"),
        (Literal["a", 1], "one of 'a', 1"),
        (Color, "one of 'red', 1"),
        (list[int], "a list"),
        (NUMBERS, "a list"),
        (dict[str, int], "a mapping"),
        (ClearCache, "a ClearCache"),
    ],
    ids=stable_id,
)
def test_a_value_is_called_what_its_kind_says(kind, name):
    assert name_of(kind) == name
