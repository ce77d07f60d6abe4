"""Parameters outside of the model are trained on several processes as on one."""

import pytest

from tests.distributed.launch import on_two_processes

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return on_two_processes("trained_apart", tmp_path_factory.mktemp("trained_apart"))


def test_parameters_of_a_function_are_trained_equally(findings):
    for found in findings.of("compared"):
        for name in found.keys() - {"references"}:
            assert found[name]["of ranks"] == 0, name
            assert found[name]["by hand"] < 1e-14, name


def test_function_can_hold_the_model(findings):
    for found in findings.of("holding_the_model"):
        assert found["of ranks"] == 0
        assert found["by hand"] < 1e-14


def test_parameters_of_a_function_are_resumed(findings):
    for found in findings.of("resumed"):
        assert found["exact"] == [True] * 3


def test_sparse_gradient_outside_of_the_model_is_refused(findings):
    for found in findings.of("sparse"):
        assert "make the embedding with sparse=False" in found["error"]


def test_parameters_added_in_a_run_are_trained_equally(findings):
    for found in findings.of("changing"):
        assert found["of ranks"] == 0
        assert found["trained"]


def test_buffers_of_rank_0_are_used_at_the_start(findings):
    for found in findings.of("keeping_buffers"):
        assert found["at start"] == 0 < found["trained"]


def test_step_exchanges_only_what_ddp_does_not(findings):
    for found in findings.of("exchanged"):
        # 6 numbers of float64, one of float32, and for each parameter whether it has a gradient.
        mixed = {"all_reduce": [6 + 3, 1 + 1], "broadcast": [4]}
        assert found["of two dtypes"] == found["frozen"] == mixed
        assert found["not trained"] == found["in DDP"] == {"all_reduce": [], "broadcast": []}
        # A layer and a norm of two features each, whose statistics have 40 bytes.
        assert found["holding the model"] == {"all_reduce": [10 + 4], "broadcast": [40]}
