import pytest

from ignite_hooks.checkpoint.differences import Comparison
from ignite_hooks.checkpoint.differences import Difference
from ignite_hooks.checkpoint.differences import Part
from ignite_hooks.checkpoint.differences import Row

SAME = Part(3, [])


@pytest.mark.parametrize(
    ("parts", "rows", "is_equal"),
    [
        ({}, {}, True),
        ({"model": SAME}, {"settings": []}, True),
        ({"model": SAME, "ema": Part(3, [Difference("w", 0.0, 0.0)])}, {}, False),
        ({"model": SAME}, {"settings": [Row("lr", 1, 2)]}, False),
    ],
)
def test_checkpoints_are_equal_where_nothing_differs(parts, rows, is_equal):
    assert Comparison(parts, rows).is_equal == is_equal
