"""Tests that readers of YAML 1.1 and 1.2 read the same, with both of PyYAML's safe loaders."""

import math

import pytest
import yaml
from hypothesis import example
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from ignite_hooks.config import ConfigError
from ignite_hooks.config import yaml_format
from ignite_hooks.config.yaml_format import dumps
from ignite_hooks.config.yaml_format import make_loader

LOADERS = [make_loader(yaml.SafeLoader), make_loader(yaml.CSafeLoader)]

STRINGS = [
    "on", "yes", "no", "off", "y", "n", "On", "NO", "Yes", "OFF", "Y", "N", "tRUE", "nULL",
    "1:30", "1:30.5", "190:20:30", "012", "-012", "0o14", "0x1F", "0b1", "1_000", "1_0.5",
    "1.5_0", "08", "00", "0.1.2", "2020-01-01", "2020-1-1", "2020-01-01T10:00:00Z", "inf",
    "-inf", "nan", "Infinity", ".Nan", "-.nan", ".iNF", "+.nan", "e3", "1e", "1e+", ".", "+",
    ".e3", "1e3.5", "++1", "1.2.3", "=", "<<<",
]  # fmt: skip
NUMBERS = {
    "0": 0, "-0": 0, "+1": 1, "12": 12, "-7": -7, "1e-3": 0.001, "1E5": 100000.0, "1e3": 1000.0,
    ".5": 0.5, "1.": 1.0, "-1.5": -1.5, "+.5e+1": 5.0, "0.0": 0.0, "-0.0": -0.0,
    ".inf": math.inf, "-.Inf": -math.inf, "+.INF": math.inf, ".nan": math.nan, ".NaN": math.nan,
}  # fmt: skip
OTHERS = {
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
    "null": None, "Null": None, "NULL": None, "~": None, "": None,
}  # fmt: skip
LOOK_LIKE_OTHERS = [*STRINGS, *NUMBERS, *OTHERS, "<<", "-", "- a", "? a", "a: b", "a:", "#", "a #b",
                    "&a", "*a", "!a", "!!str a", "%TAG", "---", "...", "--- a", "[a]", "{a}", "'a'",
                    '"', "\\", "|", ">", "@", "`", " a", "a ", "a\nb", "\n", "\ta", "a\r\n b",
                    "\x00", "\x07", "\x7f", "\x85", "\xa0", "\u2028", "\u2029", "\ufeff", "\ue000",
                    "\ufffe", "\U0001f600", "\U0010ffff"]  # fmt: skip

looks = st.sampled_from(LOOK_LIKE_OTHERS)
controls = st.characters(categories=["Cc", "Zl", "Zp", "Zs", "Cf", "Co", "Cn", "Nd", "Po"])
strings = (
    looks
    | st.lists(looks, max_size=3).map("".join)
    | st.text(controls, max_size=8)
    | st.text(max_size=8)
)
scalars = strings | st.none() | st.booleans() | st.integers() | st.floats()
documents = st.recursive(
    scalars,
    lambda items: st.lists(items, max_size=3) | st.dictionaries(strings, items, max_size=3),
    max_leaves=6,
)


@pytest.fixture(params=LOADERS, ids=["Python", "libyaml"])
def loads(request):
    return lambda text: yaml_format.loads(text, request.param)


def check_reads_the_same(data):
    """Checks that a reader of YAML 1.1 and this package read the same."""
    text = dumps(data)
    assert repr(yaml.safe_load(text)) == repr(data)
    for loader in LOADERS:
        assert repr(yaml_format.loads(text, loader)) == repr(data)


@given(strings)
@settings(max_examples=100, deadline=None)
@example("k" * 2000)
def test_any_string_is_read_the_same_by_all_readers(string):
    check_reads_the_same({string: string, "list": [string, {string: [string]}]})


@pytest.mark.parametrize("string", LOOK_LIKE_OTHERS)
def test_ambiguous_looking_string_reads_the_same_in_all_parsers(string):
    check_reads_the_same({string: string, "list": [string]})
    check_reads_the_same(string)


@given(documents)
@settings(max_examples=100, deadline=None)
def test_any_data_is_read_the_same_by_all_readers(data):
    check_reads_the_same(data)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, 1e-3, 1e16, 1e300, -0.0, 2**70])
def test_any_number_is_read_the_same_by_all_readers(number):
    check_reads_the_same({"a": number, "b": [number]})


def test_output_is_readable_by_people():
    assert dumps({"b": 1, "a": ["é 1", "no"], "c": None}) == "b: 1\na:\n- é 1\n- 'no'\nc: null\n"
    assert dumps({"a": "word " * 100 + "."}).count("\n") == 1


def test_shared_value_is_written_twice():
    shared = [1]
    check_reads_the_same({"a": shared, "b": {"c": shared}})


@pytest.mark.parametrize("text", STRINGS)
def test_scalar_special_in_yaml_1_1_is_read_as_a_string(loads, text):
    assert loads(f"a: {text}\nb: [{text}]") == {"a": text, "b": [text]}
    assert loads(f"{text}: a") == {text: "a"}


@pytest.mark.parametrize(("text", "value"), [*NUMBERS.items(), *OTHERS.items()])
def test_a_plain_scalar_is_what_yaml_1_2_says(loads, text, value):
    assert repr(loads(f"a: {text}\nb:\n- {text}")) == repr({"a": value, "b": [value]})


@pytest.mark.parametrize("text", [*NUMBERS, *OTHERS, "<<"])
def test_quoted_scalar_is_a_string(loads, text):
    assert loads(f"a: '{text}'\n\"{text}\": 1") == {"a": text, text: 1}
    assert loads(f"a: |-\n  {text}\n") == {"a": text}


@pytest.mark.parametrize("text", ["a: 1e999", "a: -1e999"])
def test_number_that_is_too_large_for_a_float_is_refused(loads, text):
    with pytest.raises(ValueError, match=r"must be at most 1\.8e308"):
        loads(text)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: 1\nb: 2\na: 1", "line 3, column 1"),
        ("x: {a: 1, 'a': 2}", "line 1, column 11"),
        ("- ? a\n  : 1\n- b: {c: 1}\n  d: 1\n- a: 1\n  a: 2", "line 6, column 3"),
        ('a: 1\n"\\x61": 1', "line 2, column 1"),
    ],
)
def test_duplicate_key_is_refused_with_its_position(loads, text, place):
    with pytest.raises(
        ValueError, match=f"{place}: a key must be unique in its mapping, 'a' is given twice"
    ):
        loads(text)


@pytest.mark.parametrize("text", ["? [a]\n: 1", "{{a: 1}: 2}", "? - a\n: 1"])
def test_key_that_is_a_container_is_refused(loads, text):
    with pytest.raises(ValueError, match=r"line 1, column .: a key must be a string"):
        loads(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system [echo]",
        "!!python/name:os.system",
        "!!python/module:this",
        "a: !!python/object/new:os.system {}",
        "a: !unknown 1",
        "a: ! 1",
        "a: !!str 1",
        "!!int 1: a",
        "a: !!binary aGk=",
        "a: !!set {b}",
        "a: !<tag:yaml.org,2002:int> 1",
        "- !x [a]",
    ],
)
def test_tags_are_refused(loads, text):
    with pytest.raises(ValueError, match=r"line 1, column .: tags must not be used, got "):
        loads(text)


@pytest.mark.parametrize("before", ["", "\ufeff", "# no\n", "a\n...\n", "%YAML 1.1\n", "a: b\r"])
def test_the_directive_for_tags_is_refused(loads, before):
    with pytest.raises(ValueError, match="tags must not be used, got the directive %TAG"):
        loads(f"{before}%TAG ! tag:yaml.org,2002:\n--- a")


def test_text_that_looks_like_the_directive_is_a_string(loads):
    assert loads("a: '%TAG'\nb: |\n  %TAG\n'%TAG': x%TAG") == {
        "a": "%TAG",
        "b": "%TAG\n",
        "%TAG": "x%TAG",
    }


@pytest.mark.parametrize("text", ["a: &x 1", "&x a: 1", "- &x [a]", "- &x {}", "a: *x", "*x : 1"])
def test_anchors_and_aliases_are_refused(loads, text):
    with pytest.raises(ValueError, match=r"line 1, column .: anchors and aliases must not be used"):
        loads(text)


@pytest.mark.parametrize("text", ["<<: {a: 1}", "a: {<<: [{b: 1}]}", "a: <<", "- <<"])
def test_merge_keys_are_refused(loads, text):
    with pytest.raises(ValueError, match=r"line 1, column .: merge keys must not be used"):
        loads(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [1", "line 2?1?, column .: .*expected ',' or ']'"),
        ("a: 'x", "line 1, column 6: .*found unexpected end of stream"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed"),
        ("a: @b", "line 1, column 4: .*that cannot start any token"),
        ("a:\n\t- b", "line 2, column 1: .*that cannot start any token"),
        ("--- a\n--- b", "line 2, column 1: expected a single document .* found another"),
        ("a: \x01", "control characters|special characters"),
    ],
)
def test_malformed_yaml_is_a_value_error_with_its_position(loads, text, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        loads(text)
    assert not isinstance(caught.value, ConfigError)


def test_text_that_is_empty_is_none(loads):
    assert loads("") is loads("# nothing\n") is None


DEEP = {
    "flow lists": ("[", "]", "1"),
    "flow mappings": ("{a: ", "}", "1"),
    "flow lists and mappings": ("[a: ", "]", ""),
    "compact block lists": ("- ", "", "1"),
    "compact keys": ("? ", "", "1"),
    "compact lists of keys": ("- ? ", "", "1"),
    "keys that are lists": ("? [", "", ""),
    "flow keys": ("{? ", "", ""),
}


@pytest.mark.parametrize(("opening", "closing", "innermost"), list(DEEP.values())[:2])
def test_a_depth_of_32_is_read_and_of_33_is_refused(loads, opening, closing, innermost):
    assert loads(opening * 32 + innermost + closing * 32)
    with pytest.raises(ConfigError, match="at most 32 deep"):
        loads(opening * 33 + innermost + closing * 33)


@pytest.mark.parametrize("line", ["{}a:\n", "{}-\n"])
def test_a_depth_of_32_in_lines_is_read_and_of_33_is_refused(loads, line):
    lines = [line.format(" " * depth) for depth in range(33)]
    assert loads("".join(lines[:32]))
    with pytest.raises(ConfigError, match="at most 32 deep"):
        loads("".join(lines))


def test_a_depth_of_32_in_one_line_is_read_and_of_33_is_refused(loads):
    assert loads("- " * 31 + "a: 1")
    with pytest.raises(ConfigError, match="at most 32 deep"):
        loads("- " * 32 + "a: 1")


@pytest.mark.parametrize("name", DEEP)
def test_extreme_depth_is_no_recursion_error(loads, name):
    with pytest.raises(ValueError, match=r"at most 32 deep|line \d+, column \d+: "):
        loads(DEEP[name][0] * 50_000)


def test_siblings_do_not_count_as_depth(loads):
    assert loads("- a: [[]]\n" * 100) == [{"a": [[]]}] * 100


def test_pyyaml_itself_is_unchanged():
    assert yaml.safe_load("a: on\nb: 012") == {"a": True, "b": 10}
    assert yaml.safe_dump({"a": "x\ny", "b": "1e-3"}) == "a: 'x\n\n  y'\nb: 1e-3\n"


def test_too_many_values_are_refused(loads, monkeypatch):
    monkeypatch.setattr(yaml_format, "MAX_NODES", 5)
    assert loads("a: [1, {}]") == {"a": [1, {}]}
    with pytest.raises(ValueError, match="line 1, column 12: YAML must have at most 5 values"):
        loads("a: [1, {}, 2]")
