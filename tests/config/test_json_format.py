"""Tests that only standard JSON without duplicate keys is written and read."""

import json
import math

import pytest
from hypothesis import example
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from ignite_hooks.config.json_format import dumps
from ignite_hooks.config.json_format import loads

tricky = st.text() | st.lists(st.sampled_from([*'"\\[]{}/a', "\\\\", '\\"'])).map("".join)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | tricky
)
documents = st.recursive(
    scalars, lambda items: st.lists(items) | st.dictionaries(tricky, items), max_leaves=8
)


def strictly(text):
    """Reads a text as a parser does that accepts standard JSON only."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.exhaustive
@given(documents)
@settings(max_examples=100, deadline=None)
def test_output_reads_the_same_with_other_parsers(data):
    text = dumps(data)
    assert repr(loads(text)) == repr(strictly(text)) == repr(data)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_infinity_and_nan_are_written_as_strings(number):
    text = dumps({"a": [number, {"b": number}], "c": number})
    name = str(number)
    assert strictly(text) == {"a": [name, {"b": name}], "c": name}


def test_output_is_readable_by_people():
    assert dumps({"b": 1, "a": ["é"]}) == '{\n  "b": 1,\n  "a": [\n    "é"\n  ]\n}\n'


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}'])
def test_infinity_and_nan_as_numbers_are_refused(text):
    with pytest.raises(ValueError, match=r'JSON must have no -?(NaN|Infinity), .*: write "inf"'):
        loads(text)


@pytest.mark.parametrize("text", ["1e999", "[-1e999]"])
def test_number_that_is_too_large_for_a_float_is_refused(text):
    with pytest.raises(ValueError, match=r"must be at most 1\.8e308"):
        loads(text)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "x": 2, "\\u0061": 3}}]'])
def test_duplicate_key_is_refused(text):
    with pytest.raises(ValueError, match="'a' is given twice"):
        loads(text)


@pytest.mark.parametrize(
    "text", ["", "{", '{"a": 1', '{"a"', '"a', "[1,", "tru", "{} {}", "{'a': 1}"]
)
def test_malformed_json_is_a_value_error(text):
    with pytest.raises(ValueError, match="line 1 column"):
        loads(text)


def nested(depth, opening, closing):
    return opening * depth + "1" + closing * depth


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ("[0,", ",0]")])
def test_a_depth_of_32_is_read_and_of_33_is_refused(opening, closing):
    assert loads(nested(32, opening, closing))
    with pytest.raises(ValueError, match="at most 32 deep"):
        loads(nested(33, opening, closing))


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":', '["[",', '["\\"",', "[\n"])
def test_extreme_depth_is_no_recursion_error(opening):
    with pytest.raises(ValueError, match="at most 32 deep"):
        loads(opening * 100_000)


def test_siblings_do_not_count_as_depth():
    assert loads("[" + "[{}]," * 100 + "[]]")


@given(tricky)
@example('"' * 40)
@settings(max_examples=100, deadline=None)
def test_brackets_within_strings_do_not_count_as_depth(text):
    string = json.dumps(text + "[" * 40 + "{" * 40)
    assert loads(f"[{string}]")
    with pytest.raises(ValueError, match="at most 32 deep"):
        loads(f"[{string}, {'[' * 32}")
