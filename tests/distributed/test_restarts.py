"""torchrun starts all processes again after one has failed, and each of them resumes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.programs.restarting import BROKEN_AT
from tests.distributed.programs.restarting import STEPS

pytestmark = [pytest.mark.distributed, pytest.mark.exhaustive]

PROGRAM = Path(__file__).parent / "programs" / "restarting.py"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENVIRONMENT = {
    "PYTHONPATH": str(PROGRAM.parents[3]),
    "OMP_NUM_THREADS": "1",
    # Without it the ranks meet in a store that still has the addresses of those that failed.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}


def restarted(folder, *arguments, limit=90):
    """Runs the program with one restart; returns its output."""
    command = [sys.executable, *TORCHRUN, "--max-restarts", "1", PROGRAM, folder, *arguments]
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **ENVIRONMENT},
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"it took longer than {limit} s:\n{output[-4000:]}")
    assert process.returncode == 0, output[-4000:]
    return output


def found(folder):
    return [json.loads((folder / f"found.{rank}.json").read_text()) for rank in range(2)]


def batches(folder, rank, attempt):
    return (folder / f"batches.{rank}.{attempt}").read_text().splitlines()


def assert_ended_as_unbroken(folder, step):
    for rank, finding in enumerate(found(folder)):
        assert finding["attempt"] == 1
        assert finding["resumed"] == step
        assert finding["differing"] == []
        assert finding["warnings"] == []
        assert set(finding["parts"].values()) == {"exact"}
        expected = finding["batches"]
        before, after = batches(folder, rank, 0), batches(folder, rank, 1)
        assert before == expected[: len(before)]
        assert after == expected[len(expected) - len(after) :]
        assert len(before) + len(after) >= len(expected)
    saved = sorted(path.name for path in (folder / "checkpoints").glob("step_*"))
    assert saved == [f"step_{step:08d}" for step in range(STEPS - 2, STEPS + 1)]


IN_THE_SAVE = BROKEN_AT - 1
"""The step of the newest checkpoint if the next one is broken off."""


@pytest.mark.parametrize(
    ("way", "rank", "step"),
    [
        ("raises", 0, BROKEN_AT),
        ("raises", 1, BROKEN_AT),
        ("killed", 0, BROKEN_AT),
        ("killed", 1, BROKEN_AT),
        ("killed_as_it_writes_a_file", 0, IN_THE_SAVE),
        ("killed_as_it_writes_a_file", 1, IN_THE_SAVE),
        ("killed_before_the_commit", 0, IN_THE_SAVE),
    ],
)
def test_run_is_exact_after_a_restart(tmp_path, way, rank, step):
    output = restarted(tmp_path, way, rank)
    assert ("ArithmeticError: this rank has had it" in output) == (way == "raises")
    assert_ended_as_unbroken(tmp_path, step)
