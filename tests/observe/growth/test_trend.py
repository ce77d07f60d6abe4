import numpy as np
import pytest

from ignite_hooks.observe.growth.trend import MAX_CHANCE
from ignite_hooks.observe.growth.trend import chance_of_records
from ignite_hooks.observe.growth.trend import growth_rate

STEPS = np.arange(40.0) * 500
NOISE = np.random.default_rng(0).normal(size=40)
LINE = 0.2 * STEPS
CASES = {
    "steady": (LINE, 0.2),
    "with noise": (LINE + 50 * NOISE, 0.2),
    "with peaks": (LINE + 10_000 * (np.arange(40) % 5 == 0), 0.2),
    "given back in part": (LINE + 500 * (np.arange(40) % 2), 0.2),
    "constant": (np.full(40, 7.0), None),
    "noise": (NOISE, None),
    "given back": (500.0 * (np.arange(40) % 10), None),
    "filled cache": (np.minimum(LINE, 2000.0), None),
    "ever slower": (1 - np.exp(-STEPS / 3000), None),
    "one jump": (100.0 * (STEPS > 9000), None),
    "falling": (-LINE, None),
}


@pytest.mark.parametrize(("values", "rate"), CASES.values(), ids=CASES)
def test_only_steady_growth_has_a_rate(values, rate):
    assert growth_rate(STEPS, values) == (rate and pytest.approx(rate, rel=0.1))


def test_ten_looks_are_the_fewest():
    assert growth_rate(STEPS[:9], LINE[:9]) is None
    assert growth_rate(STEPS[:10], LINE[:10]) == pytest.approx(0.2)


def test_noise_gives_false_alarms_no_more_often_than_stated():
    random = np.random.default_rng(1)
    counts = [
        1 + np.count_nonzero(v[:-1] < np.minimum.accumulate(v[::-1])[::-1][1:])
        for v in random.random((20_000, 12))
    ]
    for records in (3, 5, 7):
        share = np.mean(np.array(counts) >= records)
        assert share == pytest.approx(chance_of_records(records, 12), rel=0.15)
    assert chance_of_records(10, 10) == pytest.approx(1 / 3_628_800)
    assert chance_of_records(10, 10) < MAX_CHANCE
