"""A number in a text is what it says, or an error."""

import math

import pytest

from ignite_hooks.config.numbers import finite


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-3", 0.001), ("-0.0", -0.0), ("1.7e308", 1.7e308), ("1e-400", 0.0), ("1_0.5", 10.5)],
)
def test_digits_are_the_float_that_they_stand_for(text, number):
    assert repr(finite(text)) == repr(number)


@pytest.mark.parametrize("text", ["inf", "+inf", "-inf", "INF", "nan"])
def test_what_is_said_not_to_be_finite_is_read(text):
    assert repr(finite(text)) == repr(float(text))
    assert not math.isfinite(finite(text))


@pytest.mark.parametrize("text", ["1e309", "-1e309", "9" * 400])
def test_a_number_that_would_become_inf_is_refused(text):
    with pytest.raises(ValueError, match=r"must be at most 1\.8e308, got .*: inf says what it is"):
        finite(text)


def test_of_a_long_number_the_message_has_the_beginning():
    with pytest.raises(ValueError, match=r"got 9{80}:"):
        finite("9" * 100_000)
