"""A run resumed from any step, in another process, equals the unbroken run bit by bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "programs" / "exactness.py"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """The outcomes of the unbroken runs, and those of all resumed runs, by kind of run."""
    folder = tmp_path_factory.mktemp("exactness")
    unbroken = outcome(start_program("save", folder))
    parts = [start_program("resume", folder, part, 2) for part in range(2)]
    return unbroken, {kind: each for part in parts for kind, each in outcome(part).items()}


def start_program(*arguments):
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def outcome(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output)


@pytest.mark.exhaustive
def test_every_run_was_saved_and_resumed_at_every_step(outcomes):
    unbroken, resumed = outcomes
    assert len(unbroken) == 22
    for kind, whole in unbroken.items():
        assert len(resumed[kind]) == whole["steps"] >= 6


@pytest.mark.exhaustive
def test_resumed_runs_continue_like_the_unbroken_run(outcomes):
    unbroken, resumed = outcomes
    for kind, whole in unbroken.items():
        for number, each in enumerate(resumed[kind], start=1):
            iterations = list(whole["iterations"])
            left = iterations[len(iterations) - len(each["iterations"]) :]
            assert list(each["iterations"]) == left
            for iteration in left:
                for what, value in whole["iterations"][iteration].items():
                    where = f"{kind}, resumed at step {number}: {what}, iteration {iteration}"
                    assert each["iterations"][iteration][what] == value, where


@pytest.mark.exhaustive
def test_handlers_and_metrics_end_as_in_the_unbroken_run(outcomes):
    unbroken, resumed = outcomes
    for kind, whole in unbroken.items():
        for each in resumed[kind]:
            for what in ("loss", "patience", "steps"):
                assert each[what] == whole[what], kind
