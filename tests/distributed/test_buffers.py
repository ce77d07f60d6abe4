"""Evaluation on several processes is that of the model that is saved: rank 0's buffers."""

import pytest

from tests.distributed.launch import on_two_processes

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return on_two_processes("buffers", tmp_path_factory.mktemp("buffers"))


@pytest.mark.parametrize("evaluate", ["ours", "Ignite's"])
def test_validation_uses_the_buffers_of_rank_0(findings, evaluate):
    for found in findings.of("sent"):
        of_kind = found[evaluate]
        assert of_kind["found"] == pytest.approx(of_kind["expected"], rel=1e-6)
        assert of_kind["kept"] == [True, True]


def test_ranks_keep_different_buffers(findings):
    both = findings.of("not_sent")
    for found in both:
        of_kind = found["ours"]
        assert of_kind["found"] == pytest.approx(of_kind["expected"], rel=1e-6)
        assert of_kind["kept"] == [True, True]
    assert both[0]["ours"]["statistics"] != both[1]["ours"]["statistics"]


def test_callable_validation_uses_the_buffers_of_rank_0(findings):
    one, other = (found["a callable"] for found in findings.of("not_sent"))
    assert one["found"] == other["found"]
    assert one["statistics"] != other["statistics"]


def test_evaluator_without_trainer_uses_the_buffers_of_rank_0(findings):
    for found in findings.of("evaluated"):
        assert found["found"] == pytest.approx(found["expected"], rel=1e-6)
        assert found["kept"] == [True, True]


def test_buffers_are_sent_once_for_all_evaluators(findings):
    for found in findings.of("sent_once"):
        assert found["for two"] == found["for one"] > 0


def test_buffer_with_another_shape_on_each_rank_is_kept(findings):
    for rank, found in enumerate(findings.of("unequal_shapes")):
        assert found["sizes"] == [3 + rank, 6, 6]
        assert found["seen"]
        assert all(found["seen"])
