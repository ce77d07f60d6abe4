"""Tests of TOML, and of limits that tomllib does not have."""

import math
import sys

import pytest
from hypothesis import assume
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from ignite_hooks.config import ConfigError
from ignite_hooks.config.toml_format import dumps
from ignite_hooks.config.toml_format import loads

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

marks = st.lists(st.sampled_from([*"\"'\\.#[]{}=,\n\r\ta"]), max_size=8)
tricky = st.text(max_size=8) | marks.map("".join)
scalars = st.booleans() | st.integers() | st.floats(allow_nan=False) | tricky
values = st.recursive(
    scalars,
    lambda items: st.lists(items, max_size=3) | st.dictionaries(tricky, items, max_size=3),
    max_leaves=6,
)
too_many_parts = pytest.raises(ValueError, match="a key must have at most 32 parts, line")


@given(st.dictionaries(tricky, values, max_size=3))
@settings(max_examples=100, deadline=None)
def test_output_reads_the_same_with_other_parsers(data):
    text = dumps(data)
    assert repr(_sorted(loads(text))) == repr(_sorted(tomllib.loads(text))) == repr(_sorted(data))


def _sorted(data):
    """Returns data with sorted keys: tables are written after other values."""
    if isinstance(data, dict):
        return {key: _sorted(data[key]) for key in sorted(data)}
    return [_sorted(each) for each in data] if isinstance(data, list) else data


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_infinity_and_nan_are_written_as_numbers(number):
    text = dumps({"a": [number], "b": number})
    assert text == f"a = [\n    {number},\n]\nb = {number}\n"
    assert repr(loads(text)) == repr({"a": [number], "b": number})


def test_keys_stay_in_their_order():
    assert list(loads(dumps({"b": 1, "a": 2, "c": 3}))) == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"a": None}, "a"),
        ({"a": [1, None]}, "a[1]"),
        ({"a": {"b.c": [{"d": None}]}}, 'a["b.c"][0].d'),
    ],
)
def test_none_within_a_value_is_an_error_with_its_path(data, path):
    with pytest.raises(ConfigError, match=r"must have no None .*: use YAML or JSON") as caught:
        dumps(data)
    assert [problem.path for problem in caught.value.problems] == [path]


def test_list_at_the_top_is_refused():
    with pytest.raises(
        ConfigError, match="a mapping at its top, got a list: give each handler a name"
    ):
        dumps([{"a": 1}])


@pytest.mark.parametrize("text", ["a = 1e999", "a = [-1e999]"])
def test_number_that_is_too_large_for_a_float_is_refused(text):
    with pytest.raises(ValueError, match=r"must be at most 1\.8e308"):
        loads(text)


@pytest.mark.parametrize(
    "text", ["a = 1\na = 1", "[a]\n[a]", "a = {b = 1, b = 2}", "a.b = 1\na.b = 2", 'a = 1\n"a" = 1']
)
def test_duplicate_key_is_refused(text):
    with pytest.raises(ValueError, match=r"at line|at end"):
        loads(text)


@pytest.mark.parametrize("text", ["null", "a = ", "a = [1", 'a = "x', "[a", "a = 'x\n'", "\ufeffa"])
def test_malformed_toml_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"\(at (line|end)"):
        loads(text)


@pytest.mark.parametrize(
    "place",
    [
        "{} = 1",
        "y = 1.5\n{} = 1",
        "[{}]",
        "[[{}]]",
        "x = {{ {} = 1 }}",
        "x = [{{ {} = 1 }}]",
        "x = {{ y = 1, {} = 1 }}",
    ],
)
@pytest.mark.parametrize("dot", [".", " . ", "\t.  "])
def test_key_may_have_up_to_32_parts(place, dot):
    for part in ["a", '"a"', "'a'", '"."', "'\"'", r'"\""', "'#'", '"["', '""']:
        assert loads(place.format(dot.join([part] * 32)))
        with too_many_parts:
            loads(place.format(dot.join([part] * 33)))


def test_key_of_a_mebibyte_is_refused_with_its_line():
    with pytest.raises(ValueError, match="at most 32 parts, line 3 has more"):
        loads("a = 1\n\n" + "a." * 2**19)


@pytest.mark.parametrize(
    "text",
    [
        'a = "{dots}"',
        "a = '{dots}'",
        'a = """\n{dots}"""',
        "a = '''\n{dots}'''",
        '"{dots}" = 1',
        "'{dots}' = 1",
        "a = 1 # {dots}",
        "# {dots}\na = 1",
        r'a = "\"{dots}\\"',
        r"a = '\{dots}\'",
        'a = """""{dots}"""""',
        "a = '''''{dots}'''''",
        'a = """\\"""{dots}\\"""  """',
        "a = [1.5{floats}]",
        "a = {{ b0 = 1.5{pairs} }}",
        "{lines}",
    ],
)
def test_dots_outside_of_keys_do_not_count(text):
    written = text.format(
        dots="." * 100,
        floats=", 1.5" * 100,
        pairs="".join(f", b{index} . c = 1.5" for index in range(1, 100)),
        lines="\n".join(f"a.b.c{index} = 1.5" for index in range(100)),
    )
    assert loads(written) == tomllib.loads(written)


pieces = st.sampled_from([*"\"'#.[{=,a\n", '\\"', "\\\\", '""', "''", "\\", "\\n"])


@given(st.sampled_from(['"', "'", '"""', "'''"]), st.lists(pieces, max_size=8).map("".join))
@settings(max_examples=100, deadline=None)
def test_dots_and_brackets_count_after_any_string(quote, text):
    value = f"x = {quote}{text}{quote}\n"
    try:
        tomllib.loads(value)
    except tomllib.TOMLDecodeError:
        assume(False)
    assert loads(value)
    with too_many_parts:
        loads(value + "a" + ".a" * 32)
    with pytest.raises(ConfigError, match="at most 32 deep"):
        loads(value + "a = " + "[" * 33)


@pytest.mark.parametrize("quote", ['"', "'"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_quotes_at_the_end_of_a_multiline_string(quote, count):
    string = quote * 3 + "a" + quote * (count + 3)
    assert loads(f"x = [{string}, [1.5]]") == {"x": ["a" + quote * count, [1.5]]}
    with pytest.raises(ConfigError, match="at most 32 deep"):
        loads(f"x = [{string}, {'[' * 32}")
    with too_many_parts:
        loads(f"x = {{ y = {string}, {'.'.join('a' * 33)} = 1 }}")


def nested(depth, opening, closing):
    return "x = " + opening * depth + "1" + closing * depth


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a=", "}"), ("[0,\n", ",]")])
def test_a_depth_of_32_is_read_and_of_33_is_refused(opening, closing):
    assert loads(nested(32, opening, closing))
    with pytest.raises(ConfigError, match="at most 32 deep"):
        loads(nested(33, opening, closing))


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 100_000,
        "x = " + "{a=" * 100_000,
        "x = " + "{a.b={a.b=[" * 30_000,
        "x = " + "[{a=" * 100_000,
        "x = " + "[ # ]\n" * 100_000,
        "x = " + "['\"'," * 100_000,
        "[" * 100_000,
    ],
)
def test_extreme_depth_is_no_recursion_error(text):
    with pytest.raises(ConfigError, match="at most 32 deep"):
        loads(text)


def test_siblings_do_not_count_as_depth():
    assert len(loads("[[a.b]]\n" * 100 + "[c]\nd = [" + "{e = []}," * 100 + "]")["a"]["b"]) == 100
