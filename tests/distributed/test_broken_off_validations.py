import tempfile
from pathlib import Path

import pytest

from tests.distributed.launch import on_two_processes

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() else tmp_path_factory.mktemp("checkpoints")
    with tempfile.TemporaryDirectory(dir=place) as directory:
        yield on_two_processes("broken_off", Path(directory), limit=120)


@pytest.mark.parametrize(
    ("check", "place"),
    [
        ("by_epoch", [0, 5]),
        ("by_step", [0, 4]),
        ("without_length", [0, 5]),
        ("a_process_without_a_batch", [0, 5]),
    ],
)
def test_both_processes_break_off_at_the_same_batch(findings, check, place):
    for finding in findings.of(check):
        assert finding["references"]
        for each in finding["found"]:
            assert each == {
                "reason": f"SIGTERM on rank {each['rank']}",
                "rank": each["rank"],
                "validations": 0,
                "saved": [place],
                "same": True,
                "exact": True,
            }
