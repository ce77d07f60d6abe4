"""Metrics that gather predictions equal those of one process, whatever each rank has."""

import pytest

from tests.distributed.launch import on_two_processes
from tests.distributed.programs.gathering_metrics import SIZES

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return on_two_processes("gathering_metrics", tmp_path_factory.mktemp("gathering_metrics"))


@pytest.mark.parametrize("size", SIZES)
def test_gathering_metric_equals_that_of_one_process(findings, size):
    for found in findings.of("compared"):
        of_size = found[str(size)]
        assert of_size["found"].keys() == of_size["expected"].keys()
        for name, value in of_size["expected"].items():
            if isinstance(value, list):
                parts = zip(of_size["found"][name], value, strict=True)
                assert all(part == pytest.approx(other, abs=1e-12) for part, other in parts)
            else:
                assert of_size["found"][name] == pytest.approx(value, abs=1e-12), name


def test_metrics_on_a_rank_without_a_sample(findings):
    assert [found["1"]["iterations"] for found in findings.of("compared")] == [1, 0]


def test_ranks_that_compute_alone_keep_one_group_with_timeout(findings):
    for found in findings.of("compared"):
        assert [found[str(size)]["groups"] for size in SIZES] == [[], [], [], [20]]


def test_sample_counts_are_exchanged_only_if_they_may_be_zero(findings):
    for found in findings.of("of_each_run"):
        before, between, after = found["gathered"]
        assert between > before == after


def test_failure_is_raised_on_the_rank_without_a_sample(findings):
    one, other = findings.of("failing")
    assert one["error"] == "ArithmeticError: too hard"
    assert other["error"].endswith("could not compute: ArithmeticError: too hard")
    assert (one["left"], other["left"]) == (False, False)


def test_metrics_of_a_user_are_not_changed(findings):
    one, other = findings.of("of_users")
    assert (one["total"], one["own"]) == (1, 1)
    assert other["total"] == 1
    assert one.keys() - other.keys() == {"own", "of Ignite"}
