"""A few rounds of the campaign, one of each kind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoint.damage.campaign import KINDS
from tests.checkpoint.damage.campaign import Kind
from tests.checkpoint.damage.campaign import main

ROOT = Path(__file__).parents[3]


@pytest.mark.exhaustive
@pytest.mark.parametrize("interruption", ["kill", "term", "storm"])
def test_interrupted_runs_of_each_kind_end_in_identical_bits(tmp_path, interruption):
    kinds = [kind for kind in KINDS if kind.interruption == interruption]
    options = ["--seed", "1", "--kills", str(len(kinds)), "--only", interruption]
    found = subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.damage.campaign", *options, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert all(str(kind) in found.stdout for kind in kinds)
    assert f"{len(kinds)} interruptions of" in found.stdout
    assert list(tmp_path.iterdir()) == []


def test_kind_that_there_is_not_is_an_error_that_lists_them(capsys):
    with pytest.raises(SystemExit):
        main(["--only", "lightning"])
    assert str(Kind(2, True, 2, "storm")) in capsys.readouterr().err
