"""Tests that data and numbers beyond the limits are refused."""

import math

import pytest

from ignite_hooks.config import ConfigError
from ignite_hooks.config import from_dict
from ignite_hooks.config.bounds import MAX_DEPTH
from ignite_hooks.config.bounds import MAX_SIZE
from ignite_hooks.config.bounds import check_depth
from ignite_hooks.config.bounds import check_size
from ignite_hooks.config.bounds import parse_float


def nested(depth, wrap, innermost):
    """Returns ``depth`` containers nested in one another, the last of which is ``innermost``."""
    data = innermost
    for _ in range(depth - 1):
        data = wrap(data)
    return data


WRAPS = [
    lambda data: [data],
    lambda data: (1, data),
    lambda data: {"a": data, "b": 1},
    lambda data: [{"a": 1}, data, data],
]


def test_limits_are_those_of_the_documentation():
    assert (MAX_SIZE, MAX_DEPTH) == (1_048_576, 32)


def test_text_of_a_mebibyte_is_allowed_and_a_byte_more_is_not():
    check_size(MAX_SIZE)
    with pytest.raises(
        ConfigError, match="must be at most 1048576 bytes, got 1048577: check that it"
    ):
        check_size(MAX_SIZE + 1)


@pytest.mark.parametrize("innermost", [[], [1], {}, {"a": 1}, (), {1}, frozenset()])
@pytest.mark.parametrize("wrap", WRAPS)
def test_a_depth_of_32_is_allowed_and_of_33_is_not(wrap, innermost):
    check_depth(nested(32, wrap, innermost))
    with pytest.raises(ConfigError, match="nested at most 32 deep, got more: flatten them"):
        check_depth(nested(33, wrap, innermost))


@pytest.mark.parametrize("data", [None, 1, "[[[[" * 100, b"[[", [], {}, {"a": [1, "b"]}])
def test_flat_data_is_allowed(data):
    check_depth(data)


def test_extreme_depth_is_no_recursion_error():
    data = nested(100_000, lambda data: [data], [])
    with pytest.raises(ConfigError, match="at most 32 deep"):
        from_dict(data)


def test_self_containing_data_is_too_deep():
    data = {}
    data["itself"] = data
    with pytest.raises(ConfigError, match="at most 32 deep"):
        from_dict(data)


def test_self_containing_data_is_checked_in_bounded_time():
    data = []
    data += [data, data, data]
    with pytest.raises(ConfigError, match="at most 32 deep"):
        check_depth(data)


def test_shared_data_is_allowed():
    check_depth(nested(32, lambda data: [data, data, data], []))


# Numbers.


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-3", 0.001), ("-0.0", -0.0), ("1.7e308", 1.7e308), ("1e-400", 0.0), ("1_0.5", 10.5)],
)
def test_text_of_a_number_becomes_the_float(text, number):
    assert repr(parse_float(text)) == repr(number)


@pytest.mark.parametrize("text", ["inf", "+inf", "-inf", "INF", "nan"])
def test_named_infinities_and_nan_are_read(text):
    assert repr(parse_float(text)) == repr(float(text))
    assert not math.isfinite(parse_float(text))


@pytest.mark.parametrize("text", ["1e309", "-1e309", "9" * 400])
def test_number_that_is_too_large_for_a_float_is_refused(text):
    with pytest.raises(
        ValueError, match=r"must be at most 1\.8e308, got .*: write inf if infinity is meant"
    ):
        parse_float(text)


def test_message_for_a_long_number_is_short():
    with pytest.raises(ValueError, match=r"got 9{80}:"):
        parse_float("9" * 100_000)
