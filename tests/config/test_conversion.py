import math
from typing import Any

import pytest
from pydantic.dataclasses import dataclass

from ignite_hooks import ClearCache
from ignite_hooks import GradientClipping
from ignite_hooks import Validation
from ignite_hooks.config import ConfigError
from ignite_hooks.config import RunSettings
from ignite_hooks.config import equal
from ignite_hooks.config import from_dict
from ignite_hooks.config import register
from ignite_hooks.config import replace
from ignite_hooks.config import to_dict
from ignite_hooks.core.checked_dataclass import handler_config
from ignite_hooks.core.fields import Every
from ignite_hooks.core.handler import Handler


@register("conversion.open")
@dataclass(kw_only=True, eq=False, config=handler_config)
class Open(Handler):
    """Not frozen: its fields can be set."""

    every: Every | None = None
    anything: Any = None


def test_handler_becomes_a_dict_with_its_tag_and_back():
    data = {"type": "gradient_clipping", "max_norm": 1.0, "clip_value": None, "norm_type": 2.0}
    assert to_dict(GradientClipping(max_norm=1)) == data
    made = from_dict(data)
    assert type(made) is GradientClipping
    assert equal(made, GradientClipping(max_norm=1.0))
    assert to_dict(made, exclude_defaults=True) == {"type": "gradient_clipping", "max_norm": 1.0}
    assert "clip_value" not in to_dict(made, exclude_none=True)
    assert to_dict(made, exclude_none=True)["norm_type"] == 2.0


def test_lists_and_mappings_of_handlers_are_converted():
    handlers = {"type": [ClearCache()], "b": {"c": ClearCache(every_steps=2)}}
    data = to_dict(handlers, exclude_defaults=True)
    clear = {"type": "clear_cache"}
    assert data == {"type": [clear], "b": {"c": {**clear, "every_steps": 2}}}
    assert equal(from_dict(data), handlers)


def test_infinity_stays_a_number():
    assert to_dict(GradientClipping(max_norm=math.inf))["max_norm"] == math.inf


def test_handler_that_became_invalid_is_not_written():
    handler = Open(every=3)
    handler.every = 0
    with pytest.raises(ConfigError, match=r"^every: `every` must be an integer >= 1, got 0"):
        to_dict(handler)
    frozen = ClearCache()
    with pytest.raises(AttributeError):
        frozen.every_steps = 0
    object.__setattr__(frozen, "every_steps", 0)
    with pytest.raises(ConfigError, match=r"handlers\[0\]\.every_steps: `every_steps` must be"):
        to_dict(RunSettings(handlers=[frozen]))


@pytest.mark.parametrize(
    ("value", "path"),
    [(ClearCache(), "anything"), ({"a": [ClearCache()]}, "anything.a[0]"), ({1, 2}, "anything")],
    ids=["a handler", "one within", "a set"],
)
def test_value_that_would_not_round_trip_is_refused(value, path):
    with pytest.raises(
        ConfigError, match="must be the same after writing and reading, but"
    ) as raised:
        to_dict(Open(anything=value))
    assert raised.value.problems[0].path == path


def test_mapping_in_a_field_may_have_the_key_type():
    handler = Open(anything={"type": "clear_cache", "x": {"type": 3}})
    assert equal(from_dict(to_dict(handler)), handler)


def test_data_that_contains_itself_is_too_deep():
    data = {"type": "conversion.open"}
    data["anything"] = [data, data]
    with pytest.raises(ConfigError, match="at most 32 deep"):
        from_dict(data)


def test_from_dict_does_not_change_the_data():
    data = [{"type": "run", "grad_clip": {"type": "gradient_clipping", "max_norm": "inf"}}]
    from_dict(data)
    assert data == [{"type": "run", "grad_clip": {"type": "gradient_clipping", "max_norm": "inf"}}]


def test_a_copy_has_the_changes_and_is_checked():
    first = ClearCache(every_steps=3, garbage_collection=True)
    second = replace(first, every_steps=5)
    assert (second.every_steps, second.garbage_collection) == (5, True)
    assert first.every_steps == 3
    assert replace(first) is not first
    with pytest.raises(ValueError, match="`every_steps` must be an integer >= 1, got 0"):
        replace(first, every_steps=0)
    with pytest.raises(ValueError, match="exactly one of"):
        replace(GradientClipping(max_norm=1.0), clip_value=1.0)


def test_copy_has_the_objects_of_the_original():
    def evaluate(model):
        return {}

    copy = replace(Validation(evaluate, every_steps=3), prefix="test_")
    assert copy.evaluate is evaluate
    assert (copy.every_steps, copy.prefix) == (3, "test_")


def test_unknown_field_cannot_be_replaced():
    with pytest.raises(TypeError, match="got `every_step`; did you mean `every_steps`"):
        replace(ClearCache(), every_step=1)
