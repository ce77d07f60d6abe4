import json

import jsonschema
import pytest

from ignite_hooks import CudaGarbageCollector
from ignite_hooks import GarbageCollector
from ignite_hooks import GradientClipping
from ignite_hooks import SaveCheckpoint
from ignite_hooks.config import RunSettings
from ignite_hooks.config import register
from ignite_hooks.config import to_dict
from ignite_hooks.config.schema import json_schema
from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.handler import Handler
from tests.ids import stable_id


@register("schema.tree")
@checked_dataclass
class Tree(Handler):
    """A handler that can contain itself.

    Args:
        weight: how heavy it is, in
            kilograms: all of it.
        below: more of them.
    """

    weight: float = 1.0
    below: tuple[Handler, ...] = ()


@register("schema.group")
@checked_dataclass
class Group(Handler):
    collector: GarbageCollector | None = None


@register("schema.special_group")
@checked_dataclass
class SpecialGroup(Group):
    more: int = 0


def validator(cls):
    schema = json.loads(json.dumps(json_schema(cls), allow_nan=False))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_schema_is_valid_under_its_draft():
    schema = RunSettings.json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["properties"]["type"] == {"const": "run"}
    assert validator(RunSettings).is_valid({"type": "run"})
    assert not validator(RunSettings).is_valid({})  # the class is not known
    assert not validator(RunSettings).is_valid({"type": "clear_cache"})


@pytest.mark.grid(7)
@pytest.mark.parametrize(
    ("fields", "is_valid"),
    [
        ({"seed": 0, "max_epochs": 1, "mixed_precision": "bf16"}, True),
        ({"seed": -1}, False),
        ({"seed": 1.5}, False),
        ({"max_epochs": 0}, False),
        ({"mixed_precision": "fp32"}, False),
        ({"scheduler_at": "iteration"}, False),
        ({"on_peer_failure": "wait"}, True),
        ({"on_peer_failure": "stay"}, False),
        ({"epochs": 3}, False),
        ({"grad_clip": {"max_norm": 1.0}}, True),
        ({"grad_clip": {"type": "gradient_clipping", "max_norm": "inf"}}, True),
        ({"grad_clip": {"type": "clear_cache"}}, False),
        ({"grad_clip": {"max_norm": "big"}}, False),
        ({"grad_clip": {"max_norm": 0}}, False),
        ({"grad_clip": None}, True),
        ({"handlers": [{"type": "clear_cache", "min_fragmentation": 0.5}]}, True),
        ({"handlers": [{"type": "clear_cache", "min_fragmentation": 1.5}]}, False),
        ({"handlers": [{"every_steps": 3}]}, False),
        ({"handlers": [{"type": "max_ram"}]}, False),  # no handler
        ({"validation": {"every_epochs": 1, "at_start": True, "prefix": ""}}, True),
        ({"validation": {"at_start": 1}}, False),
        ({"checkpoint": {"directory": "a", "keep_last": "all", "on_signals": []}}, True),
        ({"checkpoint": {"directory": "a", "keep_last": "some"}}, False),
        ({"checkpoint": {"directory": "a", "also": {"ema": 1}}}, False),
        ({"checkpoint": {}}, False),
        ({"resume_from": {"source": "a", "on_missing": "start"}}, True),
        ({"resume_from": {"source": "a", "on_missing": "ignore"}}, False),
        ({"resume_from": {"source": "a", "trust_pickle": False}}, True),
        ({"resume_from": {"source": "a", "trust_pickle": True}}, False),
    ],
    ids=stable_id,
)
def test_schema_accepts_exactly_what_can_be_read(fields, is_valid):
    assert validator(RunSettings).is_valid({"type": "run", **fields}) is is_valid


def test_fields_have_their_descriptions_and_defaults():
    schema = json_schema(Tree)
    tree = schema["$defs"]["Tree"]
    assert tree["description"] == "A handler that can contain itself."
    assert tree["properties"]["weight"]["description"] == (
        "how heavy it is, in kilograms: all of it."
    )
    assert tree["properties"]["weight"]["default"] == 1.0
    fields = json_schema(SaveCheckpoint)["properties"]
    assert [name for name, field in fields.items() if "description" not in field] == ["type"]


def test_a_class_that_can_contain_itself_has_a_schema():
    tree = Tree(below=[Tree(weight=float("inf")), GradientClipping(max_norm=1.0)])
    data = to_dict(tree)
    data["below"][0]["weight"] = "inf"
    validator(Tree).validate(data)
    data["below"][0]["below"] = [{"type": "schema.tree", "weight": "heavy"}]
    assert not validator(Tree).is_valid(data)


def test_subclasses_of_a_field_are_distinguished_by_their_tags():
    group = validator(Group)
    cuda = {"type": "cuda_garbage_collector", "generation": 1}
    assert group.is_valid({"type": "schema.group", "collector": cuda})
    assert group.is_valid({"type": "schema.group", "collector": {"generation": 1}})
    assert not group.is_valid({"type": "schema.group", "collector": {**cuda, "generation": 3}})
    assert not group.is_valid({"type": "schema.group", "collector": {"type": "clear_cache"}})
    assert validator(CudaGarbageCollector).is_valid(cuda)


def test_document_must_have_exactly_the_class():
    assert validator(Group).is_valid({"type": "schema.group"})
    assert not validator(Group).is_valid({"type": "schema.special_group", "more": 1})
    assert validator(SpecialGroup).is_valid({"type": "schema.special_group", "more": 1})
