import math
import re

import numpy as np
import pytest

from ignite_hooks.core.rules import check_count
from ignite_hooks.core.rules import is_count
from ignite_hooks.core.rules import is_integer
from ignite_hooks.core.rules import is_number


@pytest.mark.parametrize("value", [True, False, "1", None, [1], 1j])
def test_is_number_rejects_other_values(value):
    assert not is_number(value)
    assert not is_integer(value)
    assert not is_count(value)


@pytest.mark.parametrize("value", [1.0, -0.5, math.inf, math.nan, np.float64(2)])
def test_is_integer_rejects_other_numbers(value):
    assert is_number(value)
    assert not is_integer(value)
    assert not is_count(value)


@pytest.mark.parametrize(("value", "is_one"), [(-1, False), (0, False), (1, True), (2**70, True)])
def test_a_count_begins_at_one(value, is_one):
    assert is_integer(value)
    assert is_count(value) is is_one


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1000.0, "1000.0, a float (write 1000): "),
        ("7", "'7', a string (write 7, without quotes): "),
        (0.0, "0.0: "),
        (2.5, "2.5: "),
        ("x", "'x': "),
        ("0", "'0': "),
        (True, "True: "),
    ],
)
def test_a_value_that_a_conversion_makes_right_is_named(value, shown):
    with pytest.raises(ValueError, match=re.escape(f"got {shown}leave it out")):
        check_count("length", value, "leave it out")


def test_whole_number_says_what_it_got_and_what_to_do():
    with pytest.raises(ValueError, match=r"`length` must be an integer >= 1, got 2.5: go home"):
        check_count("length", 2.5, "go home")
    check_count("length", 1, "go home")
