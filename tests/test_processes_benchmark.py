import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.processes import BASES
from tests.benchmarks.processes import BATCHES
from tests.benchmarks.processes import LABELS
from tests.benchmarks.processes import WAYS
from tests.benchmarks.processes import rows

ROOT = Path(__file__).parents[1]


@pytest.mark.distributed
@pytest.mark.exhaustive
def test_benchmark_of_processes_runs_and_finds_equal_weights():
    arguments = ["--rounds", "1", "--width", "16", "--accumulation", "4", "--limit", "20"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.processes", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    of_contestants, of_endings = lines[2 : 2 + len(BASES)], lines[4 + len(BASES) :]
    begin = [f"| 16, 4 | {LABELS[name]} | " for name in BASES]
    assert all(map(str.startswith, of_contestants, begin))
    assert all(row.endswith("| equal |") for row in of_contestants)
    # DDP averages once a step; what else there is, is the trainer's.
    counted = re.search(r"(\d+) all_reduce", of_contestants[0])
    assert int(counted[1]) == BATCHES // 4
    assert [row.split(" | ")[0].strip("| ") for row in of_endings] == list(WAYS)
    took = re.compile(r" \d+\.\d\d | not ended within 20 s ")
    assert all(took.search(row) for row in of_endings)


def test_other_weights_and_kinds_of_collectives_show_in_the_table():
    seconds = {name: [1.0, 2.0, 4.0] for name in BASES} | {"ours_bare": [2.0, 6.0, 4.0]}
    collectives = {name: {"broadcast": 1, "all_reduce": 3} for name in BASES}
    equal = {name: name != "ours_wired" for name in BASES}
    found = list(rows(16, 1, (seconds, collectives, equal)))
    ours = next(row for row in found if "| the trainer, bare |" in row)
    assert ours.startswith("| 16, 1 | the trainer, bare | 2.000 | 1.500 to 2.500 |")
    assert ours.endswith("| 3 all_reduce, 1 broadcast | equal |")
    assert found[-1].startswith("| 16, 1 | the trainer, wired | 1.000 |")
    assert found[-1].endswith("| differ |")
