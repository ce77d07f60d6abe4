"""Tests that run a few rounds of the campaign, one of each scenario."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoint.damage.campaign import SCENARIOS
from tests.checkpoint.damage.campaign import Scenario
from tests.checkpoint.damage.campaign import main

ROOT = Path(__file__).parents[3]


@pytest.mark.exhaustive
@pytest.mark.parametrize("interruption", ["kill", "term", "storm"])
def test_interrupted_runs_of_each_kind_end_in_identical_bits(tmp_path, interruption):
    scenarios = [scenario for scenario in SCENARIOS if scenario.interruption == interruption]
    options = ["--seed", "1", "--kills", str(len(scenarios)), "--only", interruption]
    result = subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.damage.campaign", *options, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert all(str(scenario) in result.stdout for scenario in scenarios)
    assert f"{len(scenarios)} interruptions of" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_kind_is_an_error_that_lists_the_kinds(capsys):
    with pytest.raises(SystemExit):
        main(["--only", "lightning"])
    assert str(Scenario(2, True, 2, "storm")) in capsys.readouterr().err
