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
"""The version of the layout of a checkpoint.

A resume accepts only this version. A load of the weights alone also accepts older versions. In
version 2, settings, command line and contents were added to the manifest, and random states became
tensors.
"""

# The pattern matches bytes, because the checksum is computed from the bytes of the file.
_CHECKSUM = re.compile(rb'("manifest_checksum": ")([0-9a-f]*)(")')

_model_config = ConfigDict(
    extra="ignore", frozen=True, strict=True, ser_json_inf_nan="strings", defer_build=True
)


def _check_within_folder(name: str) -> str:
    """Checks that the path of a file in a manifest stays within the folder of the checkpoint.

    The paths in a manifest decide which files a load reads, and which files the removal of a
    checkpoint deletes. A wrong path must not reach other files.

    Raises:
        ValueError: the path is empty or invalid, or may lead out of the folder.
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
    """A description of a checkpoint: its content, and the position in the run at the save.

    Attributes:
        version: the version of the layout, ``SCHEMA``.
        number: the number of the checkpoint in its directory, counted from 1 in the order in which
            saves were completed. The newest checkpoint has the largest number, but not always the
            largest step: another run may have started from step 0 in the same directory.
        training: the identifier of the run of training, which includes all its resumes. A trainer
            that resumes keeps the identifier of the checkpoint, unless it begins a branch. A branch
            is a new run from the state of the checkpoint, with a new identifier (``lineage.py``).
        saved_at: the time of the save, with its time zone.
        step: the number of committed optimizer steps: those that the gradient scaler did not skip.
        epoch: the number of complete epochs.
        iteration: the number of batches that the engine was given in the whole run.
        data_pass: the number of complete passes over the data. An epoch may be shorter or longer
            than a pass.
        batches: the number of batches that the engine was given in the present, incomplete pass.
        world_size: the number of processes that saved the checkpoint.
        metric: the name of the metric that decides which checkpoint is best; None if no metric
            decides.
        metric_value: the value of the metric at the time of the save; None if there was no value,
            or only a value that was measured with earlier weights.
        metric_mode: "max" if the largest value is best, "min" if the smallest; None without a
            metric.
        ended_by: the name of the handler, such as "EarlyStopping", that finished the run before its
            limit of epochs or steps; None if no handler has finished the run.
        global_batch: the number of samples in one batch of each process, added up over all
            processes; None if it is not known.
        settings: maps the name of a setting of the run to its value, converted to plain data.
        contents: maps a kind, such as "modules" or "handlers", to the names of the saved objects.
        command_line: the command line of the program; values that look like secrets are redacted.
        versions: maps the name of a package to its version.
        files: maps the path of a file within the folder, with ``/`` as separator, to the size and
            the checksum of the file.
        manifest_checksum: the checksum of the manifest's JSON, computed with this field empty. Only
            the JSON has the checksum: in a ``Manifest`` object the field is empty.
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
    # JSON has no NaN, so a value of NaN is written as the string "NaN". With strict checks pydantic
    # would not accept this string as a number.
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
    """Returns whether a ``manifest.json`` was written by another program.

    Returns False for the manifest of a checkpoint, damaged or not. A file counts as such a manifest
    if it contains "manifest_checksum" or "data_pass" as the name of a field. One of the two is
    enough, because damage may have changed the other. A file that is not JSON counts as a damaged
    manifest, too.

    Args:
        text: the content of the file.
    """
    if b'"manifest_checksum"' in text or b'"data_pass"' in text:
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def with_checksum(text: bytes) -> bytes:
    """Returns the JSON of a manifest with the right checksum in ``manifest_checksum``."""
    without = _CHECKSUM.sub(rb"\1\3", text)
    checksum = xxh3_128_hexdigest(without).encode()
    return _CHECKSUM.sub(lambda found: found[1] + checksum + found[3], without)
