import json
import math
from datetime import datetime
from datetime import timezone

import pytest

from ignite_hooks.checkpoint.manifest import FileRecord
from ignite_hooks.checkpoint.manifest import Manifest
from ignite_hooks.checkpoint.manifest import with_checksum
from tests.ids import stable_id


def manifest(**fields):
    return Manifest(
        **{
            "number": 1,
            "training": "ours",
            "saved_at": datetime(2026, 1, 2, tzinfo=timezone.utc),
            "step": 3,
            "epoch": 1,
            "iteration": 7,
            "data_pass": 1,
            "batches": 2,
            "world_size": 1,
            "versions": {"torch": "2.13.0"},
            "files": {"model.safetensors": FileRecord(size=5, checksum="0f")},
            **fields,
        }
    )


def edited(**fields):
    return with_checksum(json.dumps({**json.loads(manifest().dumps()), **fields}).encode())


@pytest.mark.parametrize("value", [None, 0.5, math.inf, -math.inf])
def test_manifest_round_trips(value):
    written = manifest(metric="accuracy", metric_value=value)
    assert Manifest.loads(written.dumps()) == written


def test_nan_is_written_as_strict_json_and_read_as_nan():
    text = manifest(metric="loss", metric_value=math.nan).dumps()
    json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert math.isnan(Manifest.loads(text).metric_value)


def test_unknown_fields_are_ignored():
    assert Manifest.loads(edited(later=1)) == manifest()


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "", "a\\b", "a\0b", ".."])
def test_file_outside_of_the_folder_is_an_error(name):
    with pytest.raises(ValueError, match="must lie within its folder"):
        Manifest.loads(edited(files={name: {"size": 1, "checksum": "0"}}))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        manifest().dumps()[:-3],
        b"\xff\xfe",
        edited(step="3"),
        edited(step=-1),
        edited(step=True),
        edited(number=0),
        edited(world_size=None),
        edited(files={"a": {"size": 1}}),
        edited(files=["a"]),
    ],
    ids=stable_id,
)
def test_invalid_manifest_is_a_value_error(text):
    with pytest.raises(ValueError, match="Manifest"):
        Manifest.loads(text)
