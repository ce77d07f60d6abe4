import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.processes import BASES
from tests.benchmarks.processes import BATCHES
from tests.benchmarks.processes import WAYS
from tests.benchmarks.processes import table

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
    rows = [line for line in done.stdout.splitlines() if re.match(r"\| [`a]|\| the same", line)]
    of_contestants, of_endings = rows[: len(BASES)], rows[len(BASES) :]
    assert [row.split("`")[1] for row in of_contestants] == list(BASES)
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
    rows = list(table(16, 1, (seconds, collectives, equal)))
    ours = next(row for row in rows if row.startswith("| `ours_bare`"))
    assert ours.startswith("| `ours_bare` | 2.000 | `raw` | 1.500 to 2.500 |")
    assert ours.endswith("| 3 all_reduce, 1 broadcast | equal |")
    assert rows[-1].startswith("| `ours_wired` | 1.000 |")
    assert rows[-1].endswith("| differ |")
