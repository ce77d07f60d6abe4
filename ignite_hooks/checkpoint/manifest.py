"""The manifest: the file that makes a folder a checkpoint, and describes its content."""

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

__all__ = ["SCHEMA", "FileRecord", "Manifest", "is_unrelated_json", "with_checksum"]

SCHEMA = 2
"""The version of the layout. A resume needs this version; loading weights accepts older ones, too.

New in version 2: random states are tensors; the manifest has settings, command line and contents.
"""

# A pattern of bytes, because the checksum is computed from the bytes of the file.
_CHECKSUM = re.compile(rb'("manifest_checksum": ")([0-9a-f]*)(")')

_model_config = ConfigDict(
    extra="ignore", frozen=True, strict=True, ser_json_inf_nan="strings", defer_build=True
)


def _check_within_folder(name: str) -> str:
    """Checks that a file lies within the folder, because files in a manifest are read and deleted.

    Raises:
        ValueError: the path leads out of the folder.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"a file of a checkpoint must lie within its folder, got {name!r}")
    return name


class FileRecord(BaseModel):
    """The size and the checksum of a file when it was written.

    Attributes:
        size: the size in bytes.
        checksum: the XXH3 hash, 128 bits, in hexadecimal digits.
    """

    model_config = _model_config

    size: NonNegativeInt
    checksum: str


class Manifest(BaseModel):
    """The content of a checkpoint, and the position in the run at which it was saved.

    Attributes:
        version: the version of the layout, ``SCHEMA``.
        number: the number of the checkpoint in its directory, counted from 1 in the order of
            completed saves. The newest checkpoint has the largest number, but not always the
            largest step, because a run may have started again from step 0.
        training: the identifier of the run. A trainer that resumes keeps the identifier, or gets a
            new one if it begins a branch (``lineage.py``).
        saved_at: the time of the save, with its time zone.
        step: the number of committed optimizer steps.
        epoch: the number of complete epochs.
        iteration: the number of batches that the engine was given in the whole run.
        data_pass: the number of complete passes over the data.
        batches: the number of batches that the engine was given in the incomplete pass.
        world_size: the number of processes that saved the checkpoint.
        metric: the name of the metric that decides which checkpoint is best, if any.
        metric_value: the value of the metric at the time of the save.
        metric_mode: whether "max" or "min" of the metric is best; None without a metric.
        ended_by: the name of the handler that finished the run before its limit, if any.
        global_batch: the number of samples in the batches of all processes together, if known.
        settings: the settings of the run by name. Their values are converted to plain data.
        contents: the names of the saved objects, by kind: modules, handlers, metrics and so on.
        command_line: the command line of the program; values that look like secrets are redacted.
        versions: the versions of packages, by the name of the package.
        files: the record of each file, by its path in the folder, with ``/`` as separator.
        manifest_checksum: the checksum of the JSON text in which this field is an empty string.
    """

    model_config = _model_config

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
    # Not strict, so that a string is accepted: JSON has no NaN, so NaN is written as "NaN".
    metric_value: Annotated[float, Field(strict=False)] | None = None
    metric_mode: Literal["max", "min"] | None = None
    ended_by: str | None = None
    global_batch: PositiveInt | None = None
    settings: Annotated[dict[str, Any], BeforeValidator(plain_data)] = Field(default_factory=dict)
    contents: dict[str, list[str]] = Field(default_factory=dict)
    command_line: list[str] = Field(default_factory=list)
    versions: dict[str, str]
    files: dict[Annotated[str, AfterValidator(_check_within_folder)], FileRecord]
    manifest_checksum: str = ""

    def dumps(self) -> bytes:
        """Returns the manifest as JSON, one line for each field and file, with its checksum."""
        return with_checksum(self.model_dump_json(indent=1).encode())

    @classmethod
    def loads(cls, text: bytes) -> "Manifest":
        """Reads a manifest from its JSON.

        Raises:
            ValueError: the JSON, a field or the checksum is wrong.
        """
        manifest = cls.model_validate_json(text)
        if len(_CHECKSUM.findall(text)) != 1 or text != with_checksum(text):
            raise ValueError(
                "`manifest_checksum` must be the checksum of the manifest, whose text has changed"
            )
        return manifest.model_copy(update={"manifest_checksum": ""})


def is_unrelated_json(text: bytes) -> bool:
    """Returns whether another program has written a ``manifest.json``.

    False for a damaged manifest of a checkpoint. Two field names are looked for, because one of
    them may be damaged. A file that is not JSON counts as a damaged manifest.
    """
    if b'"manifest_checksum"' in text or b'"data_pass"' in text:
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def with_checksum(text: bytes) -> bytes:
    """Returns the JSON of a manifest, with its checksum in the field ``manifest_checksum``."""
    without = _CHECKSUM.sub(rb"\1\3", text)
    checksum = xxh3_128_hexdigest(without).encode()
    return _CHECKSUM.sub(lambda found: found[1] + checksum + found[3], without)
