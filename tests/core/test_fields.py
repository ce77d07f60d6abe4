import math
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch
from pydantic.dataclasses import dataclass

from ignite_hooks import GradientClipping
from ignite_hooks import Validation
from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.fields import Backend
from ignite_hooks.core.fields import Directory
from ignite_hooks.core.fields import Every
from ignite_hooks.core.fields import Flag
from ignite_hooks.core.fields import Fraction
from ignite_hooks.core.fields import Function
from ignite_hooks.core.fields import Generation
from ignite_hooks.core.fields import Limit
from ignite_hooks.core.fields import MetricName
from ignite_hooks.core.fields import NormType
from ignite_hooks.core.fields import Seconds
from ignite_hooks.core.fields import SourcePath
from ignite_hooks.core.fields import must_be
from ignite_hooks.core.rules import short_repr
from tests.ids import stable_id


@checked_dataclass
class Example:
    every: Every | None = None
    limit: Limit | None = None
    norm_type: NormType = 2.0
    flag: Flag = False
    fraction: Fraction | None = None
    generation: Generation = 2
    seconds: Seconds = 1.0
    backend: Backend = "auto"
    name: MetricName = "ram_mib"
    function: Function | None = None


NOT_NUMBERS = [True, False, "1", "", b"1", [1], (1,), {}, 1j, torch.tensor(1), object]
NOT_COUNTS = [0, -1, 1.0, 0.5, math.nan, math.inf, np.float64(2.0), *NOT_NUMBERS]
NOT_POSITIVE = [0, 0.0, -0.0, -1, -0.5, -math.inf, math.nan, np.float64("nan"), *NOT_NUMBERS]


def assert_refused(cls, name, value, rule, remedy, **others):
    with pytest.raises(ValueError, match=f"`{name}` must be {rule}, got ") as raised:
        cls(**{name: value}, **others)
    message = str(raised.value)
    assert message.startswith(f"`{name}` must be {rule}, got {short_repr(value)}")
    assert f"; {remedy}" in message


@pytest.mark.parametrize("value", [1, "os.system", torch.tensor(1)], ids=stable_id)
def test_a_function_must_be_callable(value):
    assert_refused(Example, "function", value, "a function", "give a function of one argument")
    assert Example(function=len).function is len


@pytest.mark.parametrize("value", NOT_COUNTS, ids=stable_id)
def test_every_must_be_an_integer_above_zero(value):
    remedy = "leave it out to have no such schedule"
    assert_refused(Example, "every", value, "an integer >= 1", remedy)


@pytest.mark.parametrize("value", NOT_COUNTS, ids=stable_id)
@pytest.mark.parametrize("name", ["every_steps", "every_epochs"])
def test_schedule_of_a_handler_must_be_an_integer_above_zero(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be an integer >= 1, got ") as raised:
        Validation(lambda: None, **{name: value})
    assert f"got {value!r}" in str(raised.value)
    assert "; leave it out" in str(raised.value)


@pytest.mark.parametrize("value", NOT_POSITIVE, ids=stable_id)
def test_a_limit_must_be_a_number_above_zero(value):
    remedy = "leave the clipping out to have none"
    assert_refused(Example, "limit", value, "a number > 0", remedy)
    assert_refused(GradientClipping, "max_norm", value, "a number > 0", remedy)
    assert_refused(GradientClipping, "clip_value", value, "a number > 0", remedy)


@pytest.mark.parametrize("value", NOT_POSITIVE, ids=stable_id)
def test_a_norm_type_must_be_a_number_above_zero_or_inf(value):
    remedy = "2.0 is the Euclidean norm, inf the largest absolute value"
    assert_refused(Example, "norm_type", value, "a number > 0 or inf", remedy)
    assert_refused(
        GradientClipping, "norm_type", value, "a number > 0 or inf", remedy, max_norm=1.0
    )


NOT_SECONDS = [*NOT_POSITIVE, None, math.inf, 10**400]


@pytest.mark.parametrize("value", NOT_SECONDS, ids=stable_id)
def test_seconds_must_be_a_finite_time(value):
    assert_refused(
        Example, "seconds", value, "a finite number of seconds > 0", "write 60.0 for one minute"
    )


@pytest.mark.parametrize("value", [0, 1, None, "True", "yes", [], np.bool_(True)], ids=stable_id)
def test_a_flag_must_be_true_or_false(value):
    assert_refused(Example, "flag", value, "True or False", "it is a switch")


@pytest.mark.parametrize(
    "value", [-0.1, 1.1, 2, -1, math.nan, math.inf, -math.inf, *NOT_NUMBERS], ids=stable_id
)
def test_a_fraction_must_be_a_number_from_zero_to_one(value):
    remedy = "leave it out to have no such condition"
    assert_refused(Example, "fraction", value, "a number from 0 to 1", remedy)


@pytest.mark.parametrize("value", [-1, 3, 1.0, math.nan, None, *NOT_NUMBERS], ids=stable_id)
def test_a_generation_must_be_one_of_the_three(value):
    assert_refused(Example, "generation", value, "0, 1 or 2", "2 is a full collection")


@pytest.mark.parametrize("value", ["fast", "", "Auto", "kernel ", None, 1, True, ["auto"], b"auto"])
def test_a_backend_must_be_one_of_the_three(value):
    rule = 'one of "auto", "kernel" and "sampler"'
    assert_refused(Example, "backend", value, rule, '"auto" takes the best that works')


@pytest.mark.parametrize("value", ["", None, 1, True, b"name", ["name"], object], ids=stable_id)
def test_metric_name_must_be_a_string_that_is_not_empty(value):
    rule, remedy = "a string that is not empty", "leave it out for the usual name"
    assert_refused(Example, "name", value, rule, remedy)


@pytest.mark.parametrize("value", [1, 1e-9, 0.5, 1e300, np.float64(0.5)])
def test_seconds_accept_numbers(value):
    example = Example(seconds=value)
    assert example.seconds == value
    assert isinstance(example.seconds, float)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("flag", [True, False]),
        ("fraction", [None, 0, 0.0, 0.25, 1, 1.0, np.float64(0.5)]),
        ("generation", [0, 1, 2]),
        ("backend", ["auto", "kernel", "sampler"]),
        ("name", ["a", " ", "peak_mib", "été"]),
    ],
)
def test_valid_value_is_accepted_unchanged(name, values):
    assert [getattr(Example(**{name: value}), name) for value in values] == values


@pytest.mark.parametrize("value", [1, 7, 10**12])
def test_every_accepts_integers(value):
    assert Example(every=value).every == value


@pytest.mark.parametrize("value", [1, 0.5, 1e-30, math.inf, np.float64(0.5)])
def test_limits_and_norm_types_accept_numbers_and_infinity(value):
    example = Example(limit=value, norm_type=value)
    assert example.limit == example.norm_type == value
    assert isinstance(example.limit, float)


def test_none_means_no_schedule_and_no_limit():
    example = Example(every=None, limit=None)
    assert (example.every, example.limit, example.norm_type) == (None, None, 2.0)


def test_field_cannot_be_set_after_construction():
    example = Example(every=1)
    with pytest.raises(AttributeError):
        example.every = 0


@dataclass
class Parities:
    even: Annotated[int | None, must_be("even", lambda value: value % 2 == 0, "double it")] = 0
    odd: Annotated[
        int | None, must_be("odd", lambda value: value % 2, "add one", may_be_none=False)
    ] = 1


def test_a_message_has_field_rule_value_and_remedy():
    with pytest.raises(ValueError, match="`even` must be even, got 3; double it"):
        Parities(even=3)


def test_none_is_accepted_only_where_allowed():
    assert Parities(even=None).even is None
    with pytest.raises(TypeError):
        Parities(odd=None)


# Paths


@checked_dataclass
class Places:
    directory: Directory | None = None
    source: SourcePath | None = None


@pytest.mark.parametrize("cls", [str, Path])
@pytest.mark.parametrize("name", ["directory", "source"])
def test_a_path_is_absolute_and_of_the_type_given(tmp_path, monkeypatch, name, cls):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/of/user")
    for given, expected in (("runs", tmp_path / "runs"), ("~/runs", Path("/home/of/user/runs"))):
        found = getattr(Places(**{name: cls(given)}), name)
        assert (Path(found), isinstance(found, str)) == (expected, cls is str)


def test_none_is_accepted_for_paths():
    assert (Places().directory, Places(source=None).source) == (None, None)


@pytest.mark.parametrize("url", ["s3://bucket/runs", "memory://runs", "zip://a::s3://bucket/b.zip"])
def test_a_url_is_a_source_and_no_directory(url):
    assert Places(source=url).source == url
    remedy = "writing to URLs is not built yet: write to a local folder, and copy that folder"
    assert_refused(Places, "directory", url, "a folder on this machine", remedy)


@pytest.mark.parametrize("url", ["file:///my%20runs", "file:/my runs", Path("file:///my runs")])
def test_a_file_url_as_directory_is_refused_with_its_path(url):
    with pytest.raises(
        ValueError, match=r"`directory` must be .*; give the path itself, '/my runs'"
    ):
        Places(directory=url)


@pytest.mark.parametrize("place", [Path("s3://bucket/runs"), "s3:/bucket/runs"])
def test_a_url_without_its_slashes_is_refused(place):
    with pytest.raises(ValueError, match=r"`directory` must be .*, got .s3:/bucket/runs.; writing"):
        Places(directory=place)
    with pytest.raises(ValueError, match=r"`source` must be .*; give the URL as a str, .s3:"):
        Places(source=place)


def test_an_existing_folder_is_no_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:" / "b").mkdir(parents=True)
    places = Places(directory="a://b", source="a://b")
    assert places.directory == places.source == str(tmp_path / "a:" / "b")


@pytest.mark.parametrize("value", ["", "a\0b", 5, b"runs", [], True])
@pytest.mark.parametrize(("name", "rule"), [("directory", "a path"), ("source", "a path or a URL")])
def test_value_that_is_not_a_path_is_refused(name, rule, value):
    with pytest.raises(ValueError, match=f"`{name}` must be {rule}, got "):
        Places(**{name: value})


def test_unknown_home_directory_is_refused():
    with pytest.raises(
        ValueError, match=r"`directory` must be a path .*, got .~no-such-user., whose"
    ):
        Places(directory="~no-such-user")
