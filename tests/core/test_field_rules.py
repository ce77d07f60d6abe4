import math
from typing import Annotated

import numpy as np
import pytest
from pydantic.dataclasses import dataclass

from ignite_hooks.core.field_rules import is_count
from ignite_hooks.core.field_rules import is_integer
from ignite_hooks.core.field_rules import is_number
from ignite_hooks.core.field_rules import must_be


@dataclass
class Example:
    even: Annotated[int | None, must_be("even", lambda value: value % 2 == 0, "double it")] = 0
    odd: Annotated[
        int | None, must_be("odd", lambda value: value % 2, "add one", may_be_none=False)
    ] = 1


def test_a_message_has_field_rule_value_and_remedy():
    with pytest.raises(ValueError, match="`even` must be even, got 3; double it"):
        Example(even=3)


def test_none_is_let_through_or_is_a_value_like_others():
    assert Example(even=None).even is None
    with pytest.raises(TypeError):
        Example(odd=None)


@pytest.mark.parametrize("value", [True, False, "1", None, [1], 1j])
def test_what_is_no_number(value):
    assert not is_number(value)
    assert not is_integer(value)
    assert not is_count(value)


@pytest.mark.parametrize("value", [1.0, -0.5, math.inf, math.nan, np.float64(2)])
def test_what_is_no_integer(value):
    assert is_number(value)
    assert not is_integer(value)
    assert not is_count(value)


@pytest.mark.parametrize(("value", "is_one"), [(-1, False), (0, False), (1, True), (2**70, True)])
def test_a_count_begins_at_one(value, is_one):
    assert is_integer(value)
    assert is_count(value) is is_one
