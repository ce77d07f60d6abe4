"""Tests that public handlers with any valid values survive every format."""

import dataclasses
import inspect
import json
import math
from typing import Any
from typing import get_args
from typing import get_type_hints

import jsonschema
import pytest
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

import ignite_hooks
from ignite_hooks import GarbageCollector
from ignite_hooks import GradientClipping
from ignite_hooks.config import ConfigError
from ignite_hooks.config import dumps
from ignite_hooks.config import equal
from ignite_hooks.config import from_dict
from ignite_hooks.config import load
from ignite_hooks.config import loads
from ignite_hooks.config import register
from ignite_hooks.config import replace
from ignite_hooks.config import save
from ignite_hooks.config import to_dict
from ignite_hooks.config.schema import json_schema
from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.handler import Handler
from tests.config.strategies import OURS
from tests.config.strategies import handlers

FORMATS = ("json", "yaml", "toml")
HOLD_OBJECTS = ["HookContext", "Hooks", "OptimizerStep", "Validation"]

quick = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.filter_too_much]
)


def test_every_public_handler_is_data_or_known_to_hold_objects():
    without = []
    for name in ignite_hooks.__all__:
        value = getattr(ignite_hooks, name)
        is_handler = inspect.isclass(value) and (
            issubclass(value, Handler) or dataclasses.is_dataclass(value)
        )
        if is_handler and value not in OURS.values():
            without.append(name)
    assert without == HOLD_OBJECTS


@pytest.mark.parametrize("cls", OURS.values())
@given(st.data())
@quick
def test_a_handler_survives_every_format(cls, data):
    handler = data.draw(handlers(cls))
    assert equal(from_dict(to_dict(handler)), handler)
    for format in FORMATS:
        text = dumps(handler, format)
        read = loads(text, format)
        assert type(read) is cls
        assert equal(read, handler)
        assert dumps(read, format) == text


@pytest.mark.parametrize("cls", OURS.values())
@given(st.data(), st.booleans(), st.booleans())
@quick
def test_omitted_defaults_and_none_come_back(cls, data, exclude_defaults, exclude_none):
    handler = data.draw(handlers(cls))
    left = to_dict(handler, exclude_defaults, exclude_none)
    assert equal(from_dict(left), handler)
    assert not exclude_none or None not in left.values()
    whole = to_dict(handler)
    assert list(left) == [name for name in whole if name in left]  # in the order of the fields
    if not exclude_defaults and not exclude_none:
        fields = [field.name for field in dataclasses.fields(handler)]
        assert list(whole) == ["type", *fields]


@pytest.mark.parametrize("cls", OURS.values())
@given(st.data())
@quick
def test_output_is_valid_under_the_schema(cls, data):
    validator = jsonschema.Draft202012Validator(json_schema(cls))
    validator.validate(json.loads(dumps(data.draw(handlers(cls)))))


@pytest.mark.parametrize("cls", OURS.values())
def test_a_field_that_admits_none_has_it_as_its_default(cls):
    defaults = {name: field.default for name, field in inspect.signature(cls).parameters.items()}
    for name, annotation in get_type_hints(cls).items():
        if name in defaults and type(None) in get_args(annotation):
            assert defaults[name] is None, name


@register("round_trips.sample")
@checked_dataclass
class Sample(Handler):
    """A handler with fields of many types."""

    number: float = 1.0
    whole: int = 2
    flag: bool = True
    text: str = ""
    either: int | str = 0
    numbers: tuple[float, ...] = ()
    by_name: dict[str, float] = dataclasses.field(default_factory=dict)
    anything: Any = None
    inner: GradientClipping | None = None
    collector: GarbageCollector | None = None
    several: tuple[Handler, ...] = ()
    named: dict[str, GradientClipping] = dataclasses.field(default_factory=dict)


@given(handlers(Sample))
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_custom_handler_survives_or_is_refused(sample):
    """Refused are values that a format cannot express.

    JSON writes inf as the string "inf", so a field that admits both is ambiguous. TOML has no None.
    """
    assert equal(from_dict(to_dict(sample)), sample)
    assert equal(loads(dumps(sample, "yaml"), "yaml"), sample)
    # TOML leaves out a field that is None.
    leaves = [] if sample.anything is None else list(_leaves(sample.anything))
    survives("json", sample, math.inf not in leaves and -math.inf not in leaves)
    survives("toml", sample, None not in leaves)


def survives(format, handler, should):
    try:
        text = dumps(handler, format)
    except ConfigError:
        assert not should
    else:
        assert should
        assert equal(loads(text, format), handler)


def _leaves(data):
    if isinstance(data, dict | list):
        for each in data.values() if isinstance(data, dict) else data:
            yield from _leaves(each)
    else:
        yield data


@pytest.mark.parametrize("suffix", ["json", "yaml", "yml", "toml", "JSON"])
def test_all_handlers_survive_a_file(tmp_path, suffix):
    needed = {
        "max_norm": 1.0,
        "directory": "runs",
        "source": "runs",
        "number": 2.5,
        "path": "a.html",
    }
    made = {
        tag: cls(**{name: needed[name] for name in needed if name in cls.__annotations__})
        for tag, cls in OURS.items()
    }
    save(made, tmp_path / f"all.{suffix}")
    assert equal(load(tmp_path / f"all.{suffix}"), made)
    assert {"run", "save_checkpoint"} < set(made)


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("json", '{"type": "save_checkpoint", "directory": "runs"}'),
        ("toml", 'type = "save_checkpoint"\ndirectory = "runs"'),
        ("yaml", "type: save_checkpoint\ndirectory: runs"),
    ],
)
def test_written_path_is_independent_of_the_working_directory(tmp_path, monkeypatch, format, text):
    """A relative path in a file is made absolute when the file is read."""
    monkeypatch.chdir(tmp_path)
    handler = loads(text, format)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for again in (loads(dumps(handler, format), format), replace(handler, every_steps=2)):
        assert again.directory == handler.directory == str(tmp_path / "runs")
