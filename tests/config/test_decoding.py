import math
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Annotated
from typing import Any
from typing import Literal

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from ignite_hooks import ClearCache
from ignite_hooks import CudaGarbageCollector
from ignite_hooks import GarbageCollector
from ignite_hooks import GradientClipping
from ignite_hooks import SaveCheckpoint
from ignite_hooks.config import ConfigError
from ignite_hooks.config import RunSettings
from ignite_hooks.config import ValidationSchedule
from ignite_hooks.config import register
from ignite_hooks.config.decoding import decode
from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.fields import Every
from ignite_hooks.core.handler import Handler
from tests.ids import stable_id


class Color(Enum):
    RED = "red"
    ONE = 1


@dataclass
class Part:
    size: int


@register("decoding.sample")
@checked_dataclass
class Sample(Handler):
    number: float = 0.0
    whole: int = 0
    flag: bool = False
    text: str = ""
    choice: Literal[0, 1, "a"] = 0
    color: Color = Color.RED
    path: Path = Path()
    day: date = date(2000, 1, 1)
    either: int | str | None = None
    number_or_text: float | str = 0.0
    numbers: list[float] = Field(default_factory=list)
    pair: tuple[int, str] = (0, "")
    unique: frozenset[int] = frozenset()
    by_name: dict[str, list[int]] = Field(default_factory=dict)
    small: Annotated[int, Field(le=3)] = 0
    anything: Any = None
    part: Part | None = None
    part_or_clipping: Part | GradientClipping | None = None
    clipping: GradientClipping | None = None
    collector: GarbageCollector | None = None
    any_handler: Handler | None = None
    handler_or_numbers: Handler | list[int] | None = None
    handlers: tuple[Handler, ...] = ()
    schedules: dict[str, ValidationSchedule] = Field(default_factory=dict)
    every: Every | None = None
    none: None = None


def read(**fields):
    return decode({"type": "decoding.sample", **fields})


def problems(data):
    with pytest.raises(ConfigError) as raised:
        decode(data)
    return {problem.path: problem.message for problem in raised.value.problems}


def problem(**fields):
    """Returns the path and message of the only problem of a sample with these fields."""
    (found,) = problems({"type": "decoding.sample", **fields}).items()
    return found


@pytest.mark.parametrize(
    ("field", "data", "expected"),
    [
        ("number", 1, 1.0),
        ("number", 1.5, 1.5),
        ("number", "inf", math.inf),
        ("number", "-inf", -math.inf),
        ("whole", 2**70, 2**70),
        ("flag", True, True),
        ("text", "inf", "inf"),
        ("text", "1", "1"),
        ("choice", 1, 1),
        ("choice", "a", "a"),
        ("color", "red", Color.RED),
        ("color", 1, Color.ONE),
        ("path", "a/b", Path("a/b")),
        ("day", "2020-01-02", date(2020, 1, 2)),
        ("day", date(2020, 1, 2), date(2020, 1, 2)),
        ("either", "1", "1"),
        ("either", 1, 1),
        ("number_or_text", "inf", "inf"),
        ("number_or_text", 1.5, 1.5),
        ("either", None, None),
        ("numbers", [1, "-inf", 2.5], [1.0, -math.inf, 2.5]),
        ("numbers", (1,), [1.0]),
        ("pair", [1, "a"], (1, "a")),
        ("unique", [1, 2, 1], {1, 2}),
        ("by_name", {"type": [1], "b": []}, {"type": [1], "b": []}),
        ("anything", {"type": "clear_cache"}, {"type": "clear_cache"}),
        ("anything", {"type": "nonsense", "x": [1, "inf"]}, {"type": "nonsense", "x": [1, "inf"]}),
        ("every", 3, 3),
        ("handler_or_numbers", [1, 2], [1, 2]),
    ],
)
def test_value_of_the_right_type_is_accepted(field, data, expected):
    value = getattr(read(**{field: data}), field)
    assert value == expected
    assert type(value) is type(expected) or isinstance(expected, set)


def test_nan_is_read_from_a_string():
    assert math.isnan(read(number="nan").number)


@pytest.mark.parametrize(
    ("field", "data", "rule"),
    [
        ("number", True, "must be a number, got True"),
        ("number", "1", "must be a number, got '1'"),
        ("number", "1e-3", "must be a number, got '1e-3'"),
        ("number", "Infinity", "must be a number, got 'Infinity'"),
        ("number", "+inf", "must be a number"),
        ("number", None, "must be a number, got None"),
        ("number", [1.0], "must be a number"),
        ("whole", True, "must be an integer, got True"),
        ("whole", 1.0, "must be an integer, got 1.0"),
        ("whole", "1", "must be an integer, got '1'"),
        ("whole", "inf", "must be an integer"),
        ("flag", 1, "must be True or False, got 1"),
        ("flag", "true", "must be True or False, got 'true'"),
        ("flag", "no", "must be True or False"),
        ("text", 1, "must be a string, got 1"),
        ("text", date(2020, 1, 2), "must be a string"),
        ("choice", True, "must be one of 0, 1, 'a', got True"),
        ("choice", 1.0, "must be one of 0, 1, 'a', got 1.0"),
        ("choice", "b", "must be one of 0, 1, 'a', got 'b'"),
        ("color", True, "must be one of 'red', 1, got True"),
        ("color", "RED", "must be one of 'red', 1, got 'RED'"),
        ("path", 3, "path"),
        ("day", "yesterday", "date"),
        ("either", 1.5, "must be an integer or a string, got 1.5"),
        ("either", True, "must be an integer or a string, got True"),
        ("numbers", "123", "must be a list, got '123'"),
        ("numbers", {"a": 1}, "must be a list"),
        ("by_name", [1], "must be a mapping, got [1]"),
        ("by_name", {1: [2]}, "must have strings as keys, got 1"),
        ("small", 4, "less than or equal to 3, got 4"),
        ("part", 3, "must be a mapping, got 3"),
        ("clipping", 3, "must be a mapping, got 3"),
        ("clipping", [], "must be a mapping, got []"),
        ("any_handler", "clear_cache", "must be a mapping with `type`, got 'clear_cache'"),
        ("handlers", {"type": "clear_cache"}, "must be a list"),
        ("handler_or_numbers", 3, "must be a Handler or a list, got 3"),
        ("every", 0, "`every` must be an integer >= 1, got 0; leave it out"),
        ("none", 3, "must be None, got 3"),
        ("none", {"a": 1}, "must be None, got {'a': 1}"),
        ("every", "3", "`every` must be an integer >= 1, got '3', a string (write 3, without"),
    ],
)
def test_wrong_value_is_refused_with_its_path_and_the_rule(field, data, rule):
    path, message = problem(**{field: data})
    assert path == field
    assert rule in message


@pytest.mark.parametrize(
    ("fields", "path", "rule"),
    [
        ({"numbers": [1, "x"]}, "numbers[1]", "must be a number, got 'x'"),
        ({"by_name": {"a": [1, 2.5]}}, "by_name.a[1]", "must be an integer, got 2.5"),
        ({"by_name": {"a b": [None]}}, 'by_name["a b"][0]', "must be an integer, got None"),
        ({"pair": [1, 2]}, "pair[1]", "must be a string, got 2"),
        ({"part": {"size": "1"}}, "part.size", "must be an integer, got '1'"),
        ({"part": {"size": 1, "sise": 2}}, "part.sise", "did you mean `size`?"),
        ({"part": {}}, "part.size", "`size` must be given"),
        ({"clipping": {"max_norm": 0}}, "clipping.max_norm", "must be a number > 0, got 0"),
        ({"clipping": {"maxnorm": 1}}, "clipping.maxnorm", "did you mean `max_norm`?"),
        ({"clipping": {}}, "clipping", "exactly one of `max_norm` and `clip_value`"),
        ({"clipping": {"type": "clear_cache"}}, "clipping.type", "allowed here, got 'clear_cache'"),
        ({"clipping": {"type": 3}}, "clipping.type", "must be a tag that is registered, got 3"),
        ({"any_handler": {}}, "any_handler", "`type` must be a tag that is registered, got None"),
        (
            {"any_handler": {"type": "run"}},
            "any_handler.type",
            "must name a class that is allowed here, got 'run'",
        ),
        ({"handlers": [{"type": "clear_cach"}]}, "handlers[0].type", "did you mean `clear_cache`"),
        (
            {"handlers": [{"type": "clear_cache"}, {"type": "clear_cache", "every_steps": 0.5}]},
            "handlers[1].every_steps",
            "`every_steps` must be an integer >= 1, got 0.5",
        ),
        ({"schedules": {"a": {"at_start": 1}}}, "schedules.a.at_start", "True or False, got 1"),
        ({"part_or_clipping": {"size": 1.5}}, "part_or_clipping.size", "must be an integer"),
        ({"nunber": 1.0}, "nunber", "`decoding.sample` has no field 'nunber'; did you mean"),
        ({3: 1.0}, "3", "has no field 3"),
    ],
    ids=stable_id,
)
def test_nested_problem_has_its_whole_path(fields, path, rule):
    (found,) = problems({"type": "decoding.sample", **fields}).items()
    assert found[0] == path
    assert rule in found[1]


def test_tag_may_be_left_out_where_a_field_has_one_class():
    for tag in ({}, {"type": "gradient_clipping"}):
        sample = read(clipping={**tag, "max_norm": 1.0})
        assert type(sample.clipping) is GradientClipping
        assert sample.clipping.max_norm == 1.0
    assert read(part={"size": 3}).part.size == 3
    assert read(part_or_clipping={"size": 3}).part_or_clipping == Part(3)
    assert type(read(handler_or_numbers={"type": "clear_cache"}).handler_or_numbers) is ClearCache
    assert read(part_or_clipping={"clip_value": 3}).part_or_clipping.clip_value == 3.0


def test_subclass_is_chosen_by_its_tag():
    @register("decoding.timed_collector")
    @checked_dataclass
    class TimedCollector(GarbageCollector):
        limit: float = 1.0

    assert type(read(collector={"verbose": True}).collector) is GarbageCollector
    cuda = read(collector={"type": "cuda_garbage_collector", "generation": 1}).collector
    assert (type(cuda), cuda.generation) == (CudaGarbageCollector, 1)
    timed = read(collector={"type": "decoding.timed_collector", "limit": 2, "every_steps": 3})
    assert type(timed.collector) is TimedCollector
    assert (timed.collector.limit, timed.collector.every_steps) == (2.0, 3)


def test_all_problems_are_reported_at_once():
    found = problems(
        {
            "type": "run",
            "seed": -1,
            "max_epoch": 3,
            "grad_clip": {"max_norm": "x", "norm_type": True},
            "handlers": [{"type": "clear_cache", "every_steps": 0}, 5, {"type": "nonsense"}],
            "checkpoint": {"keep_last": 0},
        }
    )
    assert set(found) == {
        "seed",
        "max_epoch",
        "grad_clip.max_norm",
        "grad_clip.norm_type",
        "handlers[0].every_steps",
        "handlers[1]",
        "handlers[2].type",
        "checkpoint.keep_last",
        "checkpoint.directory",
    }


def test_combinations_are_not_checked_while_a_field_is_wrong():
    assert set(problems({"type": "gradient_clipping", "max_norm": "x"})) == {"max_norm"}
    assert set(problems({"type": "gradient_clipping", "max_nrom": 1.0})) == {"max_nrom"}
    assert set(problems({"type": "gradient_clipping"})) == {""}


def test_error_of_post_init_is_reported():
    data = {"type": "save_checkpoint", "directory": "a", "also": {"ema": 3}}
    assert "`also` must be a dict of objects" in problems(data)[""]


def test_list_and_mapping_of_handlers_are_read():
    (first, second) = decode([{"type": "clear_cache"}, {"type": "run"}])
    assert (type(first), type(second)) == (ClearCache, RunSettings)
    by_name = decode({"type": {"type": "clear_cache"}, "b": [{"type": "clear_cache"}]})
    assert type(by_name["type"]) is ClearCache
    assert type(by_name["b"][0]) is ClearCache
    assert decode([]) == []
    assert decode({}) == {}


@pytest.mark.parametrize("data", [None, "null", 3, 1.5, True, b"a"], ids=stable_id)
def test_top_level_must_be_handlers(data):
    message = problems(data)[""]
    assert message.startswith(
        "must be a mapping with `type`, or a list or mapping of such mappings, got"
    )
    assert "`type: run`" in message
    assert set(problems({"a": [data]})) == {"a[0]"}


def test_names_of_handlers_must_be_strings():
    assert problems({"a": {1: {"type": "clear_cache"}}}) == {
        "a": "must have strings as keys, got 1"
    }


def test_message_for_an_integer_python_cannot_print():
    assert problem(whole=2**20000) == (
        "whole",
        "must have at most 8192 bits, got an integer of 20001 bits",
    )
    assert "must be a string, got an integer of 20001 bits" in problem(text=2**20000)[1]
    assert read(whole=2**8191).whole == 2**8191
    assert "an integer of 20001 bits" in problems({"x": 2**20000})["x"]


@pytest.mark.parametrize(
    "tag",
    ["os.system", "ignite_hooks.ClearCache", "ClearCache", "builtins.eval", "", "clear cache"],
)
def test_class_paths_and_unknown_tags_are_refused(tag):
    assert "`type` must be a tag that is registered" in problems({"type": tag})["type"]


def test_decoding_makes_no_folder(tmp_path):
    handler = decode({"type": "save_checkpoint", "directory": str(tmp_path / "new")})
    assert type(handler) is SaveCheckpoint
    assert not (tmp_path / "new").exists()
