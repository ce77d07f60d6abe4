"""A run from settings is seeded alike on all ranks, but for what is to differ."""

import pytest

from tests.distributed.launch import on_two_processes
from tests.distributed.programs.seeds import SIZE

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return on_two_processes("seeds", tmp_path_factory.mktemp("seeds"))


def test_each_process_makes_the_same_model(findings):
    one, other = findings.of("plain")
    assert one["made"] == other["made"]


def test_each_process_draws_numbers_of_its_own(findings):
    one, other = findings.of("plain")
    for drawn, others in zip(one["drawn"], other["drawn"], strict=True):
        assert all(each != another for each, another in zip(drawn, others, strict=True))


@pytest.mark.parametrize("check", ["plain", "seedable"])
def test_each_sample_is_given_to_one_process(findings, check):
    one, other = findings.of(check)
    steps = SIZE // 4
    for epoch in range(2):
        given = [
            sample
            for found in (one, other)
            for batch in found["given"][epoch * steps : (epoch + 1) * steps]
            for sample in batch
        ]
        assert sorted(given) == [*range(SIZE)]
    assert one["given"][:steps] != one["given"][steps:]


def test_a_run_is_resumed_with_the_numbers_of_each_process(findings):
    for found in findings.of("resumed"):
        assert found["exact"] == [True] * 3
