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
from ignite_hooks.config.annotations import admits_none
from ignite_hooks.config.annotations import allowed_values
from ignite_hooks.config.annotations import container_and_items
from ignite_hooks.config.annotations import dataclass_or_none
from ignite_hooks.config.annotations import describe_values
from ignite_hooks.config.annotations import fields_of
from ignite_hooks.config.annotations import is_class
from ignite_hooks.config.annotations import union_members
from ignite_hooks.config.annotations import unwrap
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
    assert (fields["optional"].annotation, fields["optional"].default) == (int | None, None)
    assert fields["made"].default == [1]
    assert not fields["optional"].is_required


def test_unwrap_returns_the_type_behind_aliases():
    assert unwrap(Annotated[Annotated[int, "a"], "b"]) is int
    assert unwrap(Name) is str
    assert unwrap(T) is Any
    assert unwrap(Bound) is int
    assert unwrap(Annotated[Name, "x"]) is str
    assert unwrap(list[int]) == list[int]


def test_union_members_leave_out_none():
    assert union_members(int) == [int]
    assert union_members(int | None) == [int]
    assert union_members(int | Annotated[str | None, "x"]) == [int, str]
    assert union_members(None) == []


@pytest.mark.parametrize(
    "annotation", [None, int | None, Name | None, Literal["a", None], type(None)]
)
def test_annotation_that_names_none_admits_none(annotation):
    assert admits_none(annotation)
    assert admits_none(Annotated[annotation, "x"])


@pytest.mark.parametrize("annotation", [int, Any, int | str, Literal["None"], list[None]])
def test_annotation_without_none_does_not_admit_none(annotation):
    assert not admits_none(annotation)


@pytest.mark.parametrize(
    ("annotation", "expected"),
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
def test_container_is_a_list_or_dict_in_data(annotation, expected):
    assert container_and_items(annotation) == expected


def test_only_pydantic_dataclasses_are_dataclasses():
    assert dataclass_or_none(ClearCache) is ClearCache
    assert dataclass_or_none(int) is None
    assert dataclass_or_none(ClearCache | None) is None
    assert dataclass_or_none(NUMBERS) is None


@pytest.mark.parametrize(
    "annotation", [list, int, Color, Sample, collections.abc.Sequence, type(None)]
)
def test_is_class_accepts_classes(annotation):
    assert is_class(annotation)


@pytest.mark.parametrize("annotation", [list[int], NUMBERS, int | str, Literal["a"], "int", None])
def test_is_class_rejects_other_annotations(annotation):
    assert not is_class(annotation)


def test_parameterized_generic_counts_as_a_class_on_python_3_10():
    assert isinstance(NUMBERS, type)
    with pytest.raises(TypeError, match="cannot be a parameterized generic"):
        issubclass(int, NUMBERS)


def test_allowed_values_are_those_of_data():
    assert allowed_values(Literal["a", 1]) == ["a", 1]
    assert allowed_values(Color) == ["red", 1]
    assert allowed_values(int) is None
    assert allowed_values(NUMBERS) is None


@pytest.mark.parametrize(
    ("annotation", "name"),
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
def test_values_are_described_by_their_annotation(annotation, name):
    assert describe_values(annotation) == name
