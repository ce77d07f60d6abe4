import math

import pytest

from ignite_hooks.config import RunSettings


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("seed", -1, "an integer from 0 to 2**32 - 1, got -1"),
        ("seed", 2**32, "an integer from 0 to 2**32 - 1"),
        ("seed", True, "an integer from 0 to 2**32 - 1"),
        ("mixed_precision", "fp32", "one of no, fp16, bf16, fp8, got 'fp32'"),
        ("mixed_precision", False, "one of no, fp16, bf16, fp8, got False"),
        ("gradient_accumulation_steps", 0, "an integer >= 1"),
        ("max_epochs", 0, "an integer >= 1"),
        ("max_steps", math.inf, "an integer >= 1"),
        ("scheduler_at", None, '"step" or "epoch", got None'),
    ],
)
def test_a_wrong_value_is_named_with_the_rule(name, value, rule):
    with pytest.raises(ValueError, match="must be") as raised:
        RunSettings(**{name: value})
    assert f"`{name}` must be {rule}" in str(raised.value)
