"""The types of the fields that only the settings of a run have."""

from typing import Annotated
from typing import Literal

from pydantic import WithJsonSchema

from ignite_hooks.core.fields import must_be
from ignite_hooks.core.rules import is_count
from ignite_hooks.core.rules import is_integer

__all__ = ["Accumulation", "MaxCount", "Precision", "SchedulerAt", "Seed"]

_PRECISIONS = ("no", "fp16", "bf16", "fp8")

Seed = Annotated[
    int,
    must_be(
        "an integer from 0 to 2**32 - 1",
        lambda value: is_integer(value) and 0 <= value < 2**32,
        "leave it out to seed nothing",
    ),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 2**32 - 1}),
]
"""What random generators begin with."""

Precision = Annotated[
    Literal["no", "fp16", "bf16", "fp8"],
    must_be(
        f"one of {', '.join(_PRECISIONS)}",
        lambda value: value in _PRECISIONS,
        "leave it out for what the accelerator has",
    ),
]
"""As Accelerate calls them."""

Accumulation = Annotated[
    int,
    must_be("an integer >= 1", is_count, "1 steps after each batch"),
    WithJsonSchema({"type": "integer", "minimum": 1}),
]
"""Batches of a step."""

MaxCount = Annotated[
    int,
    must_be("an integer >= 1", is_count, "leave it out for no such limit"),
    WithJsonSchema({"type": "integer", "minimum": 1}),
]
"""What ends a run."""

SchedulerAt = Annotated[
    Literal["step", "epoch"],
    must_be(
        '"step" or "epoch"',
        lambda value: value in ("step", "epoch"),
        "it says when the learning rate scheduler moves",
        may_be_none=False,
    ),
]
"""When a scheduler moves."""
