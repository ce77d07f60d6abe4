"""Forked ranks have the environment of torchrun's ranks, and their failures are reported."""

import contextlib
import signal

import psutil
import pytest

from tests.distributed.launch import on_processes
from tests.distributed.launch import on_two_processes
from tests.distributed.launch import with_torchrun

pytestmark = pytest.mark.distributed

BY_AGENT = {  # another one for each start, or for the agent's own ways
    "MASTER_PORT",
    "TORCHELASTIC_ERROR_FILE",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_SIGNALS_TO_HANDLE",
    "TORCHINDUCTOR_CACHE_DIR",
}


def found_by(start, folder):
    folder.mkdir()
    found = start("launched", folder).of("surroundings")
    for rank, of_rank in enumerate(found):
        assert of_rank.pop("arguments") == [of_rank["main"], str(folder)]
        assert of_rank["places"] == [rank, rank, len(found)]
        of_rank["environment"] = {
            name: value for name, value in of_rank["environment"].items() if name not in BY_AGENT
        }
    drawn = [number for of_rank in found for number in of_rank.pop("drawn")]
    assert len({*drawn}) == len(drawn), "generators are seeded for each rank"
    return found


def test_forked_ranks_have_the_environment_of_torchrun(tmp_path):
    forked = found_by(on_two_processes, tmp_path / "forked")
    assert forked == found_by(with_torchrun, tmp_path / "torchrun")
    assert all(each["is_of_cpus"] and each["backend"] == "gloo" for each in forked)


@pytest.mark.parametrize("count", [1, 3])
def test_other_numbers_of_ranks(tmp_path, count):
    found = found_by(
        lambda program, folder: on_processes(program, folder, count=count), tmp_path / "ranks"
    )
    assert len(found) == count


def failure_of(tmp_path, text, **options):
    """Returns the message with which a test that runs the script fails."""
    script = tmp_path / "script.py"
    script.write_text(f"import os, sys, time\nprint('rank', os.environ['RANK'])\n{text}")
    with pytest.raises(pytest.fail.Exception) as caught:
        on_processes(script.with_suffix(""), tmp_path, count=2, **options)
    return str(caught.value)


def test_failure_shows_the_output_of_each_rank(tmp_path):
    told = failure_of(tmp_path, "1 / int(os.environ['RANK'])")
    assert "rank 0 ended with 1 and wrote:\nrank 0\nTraceback" in told
    assert "ZeroDivisionError" in told
    assert "rank 1 ended with 0 and wrote:\nrank 1\n" in told


def test_rank_waiting_for_a_dead_rank_is_ended(tmp_path):
    told = failure_of(tmp_path, "os.abort() if os.environ['RANK'] == '1' else time.sleep(600)")
    assert f"rank 1 ended with {-signal.SIGABRT}" in told
    assert f"rank 0 ended with {-signal.SIGKILL}" in told


def test_hanging_rank_prints_its_stack(tmp_path):
    told = failure_of(tmp_path, "time.sleep(600)", limit=1)
    assert "took longer than 1 s" in told
    assert told.count('script.py", line 3 in <module>') == 2


def test_remaining_process_is_a_failure(tmp_path):
    told = failure_of(
        tmp_path,
        "import subprocess\n"
        "if os.environ['RANK'] == '1':\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    open(sys.argv[1] + '/child', 'w').write(str(child.pid))",
    )
    child = (tmp_path / "child").read_text()
    assert f"left processes behind: ['{child} " in told
    with contextlib.suppress(psutil.NoSuchProcess):
        assert psutil.Process(int(child)).status() == psutil.STATUS_ZOMBIE
