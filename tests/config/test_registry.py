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
from ignite_hooks.config.registry import not_data_message
from ignite_hooks.config.registry import registered_classes
from ignite_hooks.config.registry import registered_subclasses
from ignite_hooks.config.registry import tag_of
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.rules import did_you_mean
from tests.config.aliases import NUMBERS
from tests.config.strategies import OURS
from tests.ids import stable_id


@pytest.fixture(autouse=True)
def restored_registry():
    """Undoes what a test registers."""
    before = dict(registry._classes)
    yield
    registry._classes.clear()
    registry._classes.update(before)


def sample(**fields):
    """Makes a class with fields of these types and defaults; ``...`` means no default."""
    values = {name: value for name, (_, value) in fields.items() if value is not ...}
    annotations = {name: annotation for name, (annotation, _) in fields.items()}
    return dataclass(type("Sample", (), {"__annotations__": annotations, **values}))


def test_tags_of_this_package_are_class_names_in_snake_case():
    for tag, cls in OURS.items():
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()
        assert tag == ("run" if cls is RunSettings else words)


def test_registered_class_has_tag_and_is_listed_under_its_bases():
    @register("my_collector")
    @dataclass(frozen=True)
    class MyCollector(GarbageCollector):
        pass

    assert tag_of(MyCollector) == "my_collector"
    assert registered_subclasses(GarbageCollector)["my_collector"] is MyCollector
    assert registered_subclasses(Handler)["my_collector"] is MyCollector
    assert "my_collector" not in registered_subclasses(GradientClipping)
    assert tag_of(GarbageCollector) == "garbage_collector"


def test_subclass_does_not_inherit_the_tag():
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
    with pytest.raises(
        TypeError, match=r"'mine' must be a checked dataclass, .* is not: put @checked_dataclass"
    ):
        register("mine")(cls)


def test_a_subclass_that_is_not_decorated_itself_is_refused():
    class Undecorated(ClearCache):
        more: int = 0

    with pytest.raises(TypeError, match="Undecorated is not"):
        register("mine")(Undecorated)


def test_a_tag_that_another_class_has_is_refused():
    with pytest.raises(
        ValueError, match=r"'clear_cache' belongs to ignite_hooks\.memory.*\.ClearCache"
    ):
        register("clear_cache")(sample())
    assert registered_classes()["clear_cache"] is ClearCache


def test_class_of_the_same_name_replaces_the_old_one():
    first, second = sample(), sample()
    register("mine")(first)
    register("mine")(second)
    assert registered_classes()["mine"] is second
    assert tag_of(first) is None


def test_second_tag_for_a_class_is_refused():
    cls = register("mine")(sample())
    assert register("mine")(cls) is cls
    with pytest.raises(ValueError, match="Sample must have one tag, it has 'mine', got 'other'"):
        register("other")(cls)


def test_field_called_type_is_refused():
    with pytest.raises(ValueError, match="no field of Sample must be called 'type'"):
        register("mine")(sample(type=(str, "")))


@pytest.mark.parametrize(
    ("annotation", "default", "shown"),
    [(int | None, 3, "3"), (int | None, ..., "no default"), (Literal[None, 1], 1, "1")],
)
def test_field_admitting_none_with_another_default_is_refused(annotation, default, shown):
    with pytest.raises(ValueError, match=f"`x` of Sample admits None, .* got {shown}: TOML"):
        register("mine")(sample(x=(annotation, default)))


@pytest.mark.parametrize(("annotation", "default"), [(int | None, None), (int, 3), (int, ...)])
def test_fields_with_allowed_defaults_are_accepted(annotation, default):
    register("mine")(sample(x=(annotation, default)))


@pytest.mark.parametrize(
    "annotation", [object, int, str, None, int | str, "Handler", list[int], NUMBERS]
)
def test_other_annotations_have_no_registered_subclasses(annotation):
    assert registered_subclasses(annotation) == {}


def test_refusal_names_the_field_and_the_remedy():
    class Mine(Validation):
        pass

    for cls in (Validation, Mine):
        assert f"a {cls.__name__} cannot be written" in not_data_message(cls)
        assert "`evaluate` and `data` are objects" in not_data_message(cls)
        assert "pass the objects to build()" in not_data_message(cls)
    assert '@register("…")' in not_data_message(Handler)


def test_similar_names_are_suggested_otherwise_all_names():
    names = ["clear_cache", "max_ram"]
    assert did_you_mean("clear_cach", names) == "did you mean `clear_cache`?"
    assert did_you_mean("xyz", names) == "there are `clear_cache`, `max_ram`"
    assert did_you_mean("xyz", []) == "there are none"
