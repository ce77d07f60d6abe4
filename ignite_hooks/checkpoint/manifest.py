"""What a checkpoint says of itself: the file that makes a folder a checkpoint."""

import json
import re
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated
from typing import Any
from typing import Literal

from pydantic import AfterValidator
from pydantic import BaseModel
from pydantic import BeforeValidator
from pydantic import ConfigDict
from pydantic import Field
from pydantic import NonNegativeInt
from pydantic import PositiveInt
from xxhash import xxh3_128_hexdigest

from ignite_hooks.checkpoint.plain_data import plain_data

__all__ = ["SCHEMA", "FileRecord", "Manifest", "is_foreign", "sealed"]

SCHEMA = 2
"""The layout of a checkpoint; a reader refuses another number than its own.

2: random states as tensors; settings, command line and names of the contents in the manifest.
"""

_CHECKSUM = re.compile(rb'("manifest_checksum": ")([0-9a-f]*)(")')

_strict = ConfigDict(
    extra="ignore", frozen=True, strict=True, ser_json_inf_nan="strings", defer_build=True
)


def _within(name: str) -> str:
    """A file of the folder itself: what a manifest lists is read, and deleted one day."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"a file of a checkpoint must lie within its folder, got {name!r}")
    return name


class FileRecord(BaseModel):
    """A file as it was written.

    Args:
        size: in bytes.
        checksum: XXH3, 128 bits, in hexadecimal digits.
    """

    model_config = _strict

    size: NonNegativeInt
    checksum: str


class Manifest(BaseModel):
    """What is in a checkpoint, and where in the training it was taken.

    Args:
        version: the layout, ``SCHEMA``.
        number: counts the checkpoints of a directory in the order of their commits, from 1. The
            newest has the largest, whatever its step: a training may have begun anew.
        training: the name of the run of training. A trainer that resumes takes it over, or begins
            a branch (``lineage.py``).
        saved_at: when it was taken, with its time zone.
        step: committed optimizer steps.
        epoch: complete epochs.
        iteration: batches given to the engine in all.
        data_pass: complete passes over the data.
        batches: batches given in the pass that is not complete.
        world_size: how many processes have saved it.
        metric: the name of the metric that says which is best, if any.
        metric_value: its value then.
        metric_mode: whether "max" or "min" of it is best; None without a metric.
        ended_by: names the handler that had finished the run before its limit, if any.
        global_batch: samples of one batch over all processes, if it is known.
        settings: what the run was trained with, by name; made plain data here.
        contents: the names of what is inside, by kind: modules, handlers, metrics and so on.
        command_line: how the program was started; values that look like secrets are left out.
        versions: those of the packages, by their names.
        files: each file by its path in the folder, with ``/``.
        manifest_checksum: the checksum of all this, with nothing in its own place.
    """

    model_config = _strict

    version: PositiveInt = SCHEMA
    number: PositiveInt
    training: str
    saved_at: datetime
    step: NonNegativeInt
    epoch: NonNegativeInt
    iteration: NonNegativeInt
    data_pass: NonNegativeInt
    batches: NonNegativeInt
    world_size: PositiveInt
    metric: str | None = None
    metric_value: Annotated[float, Field(strict=False)] | None = None  # "NaN" is one
    metric_mode: Literal["max", "min"] | None = None
    ended_by: str | None = None
    global_batch: PositiveInt | None = None
    settings: Annotated[dict[str, Any], BeforeValidator(plain_data)] = Field(default_factory=dict)
    contents: dict[str, list[str]] = Field(default_factory=dict)
    command_line: list[str] = Field(default_factory=list)
    versions: dict[str, str]
    files: dict[Annotated[str, AfterValidator(_within)], FileRecord]
    manifest_checksum: str = ""

    def dumps(self) -> bytes:
        """JSON, one line for each field and file, to be read by people too."""
        return sealed(self.model_dump_json(indent=1).encode())

    @classmethod
    def loads(cls, text: bytes) -> "Manifest":
        """A manifest from its JSON; a ValueError that says what is wrong with it."""
        manifest = cls.model_validate_json(text)
        if len(_CHECKSUM.findall(text)) != 1 or text != sealed(text):
            raise ValueError("`manifest_checksum` must be that of the text, which has changed")
        return manifest.model_copy(update={"manifest_checksum": ""})


def is_foreign(text: bytes) -> bool:
    """Returns whether a file called ``manifest.json`` is another program's, not a damaged one.

    Two names of fields are looked for, because damage may have hit one of them. A file that is
    not JSON may be what is left of a manifest.
    """
    if b'"manifest_checksum"' in text or b'"data_pass"' in text:
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def sealed(text: bytes) -> bytes:
    """A manifest's JSON with the right ``manifest_checksum``."""
    without = _CHECKSUM.sub(rb"\1\3", text)
    checksum = xxh3_128_hexdigest(without).encode()
    return _CHECKSUM.sub(lambda found: found[1] + checksum + found[3], without)
