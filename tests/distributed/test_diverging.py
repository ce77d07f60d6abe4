"""Ranks that train different models are reported, at the first step and at each save."""

import pytest

from tests.distributed.launch import on_two_processes

pytestmark = pytest.mark.distributed

STEPS = 5


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return on_two_processes("diverging", tmp_path_factory.mktemp("diverging")).of("told")


def test_equal_parameters_are_not_reported(findings):
    for found in findings:
        assert found["same"] == {"error": "", "said": [], "steps": STEPS}


@pytest.mark.parametrize(
    ("name", "parameter", "steps"),
    [
        ("around the wrapper", "model.0.weight", 1),
        ("at the first step", "model.2.weight", 1),
        ("at a save", "model.2.weight", 3),
        ("not a number", "model.2.bias", 1),
    ],
)
def test_different_model_on_a_rank_is_an_error(findings, name, parameter, steps):
    for found in findings:
        assert f"another {parameter} on rank 1" in found[name]["error"]
        assert "`batch_processor`" in found[name]["error"]
        assert found[name]["steps"] == steps


def test_rounding_difference_warns_once(findings):
    for found in findings:
        (said,) = found["rounding"]["said"]
        assert "differ in some bits, by up to 1.0e-12" in said
        assert (found["rounding"]["error"], found["rounding"]["steps"]) == ("", STEPS)


def test_different_number_of_parameters_is_an_error(findings):
    for found in findings:
        assert "got [6, 8] parameters on the ranks" in found["another number"]["error"]
