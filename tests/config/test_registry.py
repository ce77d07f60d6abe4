import re
from dataclasses import dataclass as plain_dataclass
from typing import Literal

import pytest
from pydantic.dataclasses import dataclass

from ignite_hooks import ClearCache
from ignite_hooks import GarbageCollector
from ignite_hooks import GradientClipping
from ignite_hooks import Hooks
from ignite_hooks import Validation
from ignite_hooks.config import RunSettings
from ignite_hooks.config import register
from ignite_hooks.config import registry
from ignite_hooks.config.registry import all_tagged
from ignite_hooks.config.registry import tag_of
from ignite_hooks.config.registry import tagged
from ignite_hooks.config.registry import why_it_is_no_data
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.rules import did_you_mean
from tests.config.aliases import NUMBERS
from tests.config.strategies import OURS
from tests.ids import stable_id


@pytest.fixture(autouse=True)
def as_it_was():
    """What a test registers is forgotten."""
    before = dict(registry._classes)
    yield
    registry._classes.clear()
    registry._classes.update(before)


def sample(**fields):
    """A class with fields of these types and defaults; ``...`` is no default."""
    values = {name: value for name, (_, value) in fields.items() if value is not ...}
    kinds = {name: kind for name, (kind, _) in fields.items()}
    return dataclass(type("Sample", (), {"__annotations__": kinds, **values}))


def test_our_tags_are_the_names_of_the_classes_in_lower_case():
    for tag, cls in OURS.items():
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()
        assert tag == ("run" if cls is RunSettings else words)


def test_registered_class_has_tag_and_is_listed_under_its_bases():
    @register("my_collector")
    @dataclass(frozen=True)
    class MyCollector(GarbageCollector):
        pass

    assert tag_of(MyCollector) == "my_collector"
    assert tagged(GarbageCollector)["my_collector"] is MyCollector
    assert tagged(Handler)["my_collector"] is MyCollector
    assert "my_collector" not in tagged(GradientClipping)
    assert tag_of(GarbageCollector) == "garbage_collector"


def test_a_class_below_a_registered_one_has_no_tag_of_its_own():
    class Silent(ClearCache):
        pass

    assert tag_of(Silent) is None


@pytest.mark.parametrize(
    "tag", ["", "Clear", "1st", "a b", "ä", None, 3, ClearCache], ids=stable_id
)
def test_invalid_tag_is_refused(tag):
    with pytest.raises(ValueError, match="`tag` must be lower case letters"):
        register(tag)


@pytest.mark.parametrize(
    "cls", [lambda: None, 3, Hooks, plain_dataclass(type("Plain", (), {})), NUMBERS]
)
def test_class_that_is_no_pydantic_dataclass_is_refused(cls):
    with pytest.raises(TypeError, match=r"'mine' must be a pydantic dataclass, .* is none: put @"):
        register("mine")(cls)


def test_a_subclass_that_is_not_decorated_itself_is_refused():
    class Undecorated(ClearCache):
        more: int = 0

    with pytest.raises(TypeError, match="Undecorated is none"):
        register("mine")(Undecorated)


def test_a_tag_that_another_class_has_is_refused():
    with pytest.raises(ValueError, match=r"'clear_cache' is of ignite_hooks\.memory.*\.ClearCache"):
        register("clear_cache")(sample())
    assert all_tagged()["clear_cache"] is ClearCache


def test_a_class_that_is_made_again_replaces_that_of_before():
    first, second = sample(), sample()
    register("mine")(first)
    register("mine")(second)
    assert all_tagged()["mine"] is second
    assert tag_of(first) is None


def test_second_tag_for_a_class_is_refused():
    cls = register("mine")(sample())
    assert register("mine")(cls) is cls
    with pytest.raises(ValueError, match="Sample must have one tag, it has 'mine': 'other'"):
        register("other")(cls)


def test_a_field_called_like_the_key_of_tags_is_refused():
    with pytest.raises(ValueError, match="no field of Sample must be called 'type'"):
        register("mine")(sample(type=(str, "")))


@pytest.mark.parametrize(
    ("kind", "default", "has"),
    [(int | None, 3, "3"), (int | None, ..., "none"), (Literal[None, 1], 1, "1")],
)
def test_field_admitting_none_with_another_default_is_refused(kind, default, has):
    with pytest.raises(ValueError, match=f"`x` of Sample admits None, .* it has {has}: TOML"):
        register("mine")(sample(x=(kind, default)))


@pytest.mark.parametrize(("kind", "default"), [(int | None, None), (int, 3), (int, ...)])
def test_fields_with_allowed_defaults_are_accepted(kind, default):
    register("mine")(sample(x=(kind, default)))


@pytest.mark.parametrize("kind", [object, int, str, None, int | str, "Handler", list[int], NUMBERS])
def test_nothing_of_ours_stands_where_something_else_is_to_be(kind):
    assert tagged(kind) == {}


def test_refusal_names_the_field_and_the_remedy():
    class Mine(Validation):
        pass

    for cls in (Validation, Mine):
        assert f"a {cls.__name__} cannot be written" in why_it_is_no_data(cls)
        assert "`evaluate` and `data` are objects" in why_it_is_no_data(cls)
        assert "pass them to build()" in why_it_is_no_data(cls)
    assert '@register("…")' in why_it_is_no_data(Handler)


def test_a_name_that_is_close_is_suggested_and_else_all_are():
    names = ["clear_cache", "max_ram"]
    assert did_you_mean("clear_cach", names) == "did you mean `clear_cache`?"
    assert did_you_mean("xyz", names) == "there are `clear_cache`, `max_ram`"
    assert did_you_mean("xyz", []) == "there are none"
