"""Tests of signals to all processes of a job: loader workers live until the state is saved."""

from signal import SIGINT
from signal import SIGTERM
from signal import SIGUSR1

import pytest

from tests.checkpoint.damage.training import folders
from tests.checkpoint.damage.training import whole_steps

JOBS = {
    "fork": (SIGTERM, {}),
    "fork, Ctrl-C": (SIGINT, {"persistent_workers": True}),
    "fork, a signal of the scheduler's own": (SIGUSR1, {"prefetch_factor": 1}),
    "spawn": (SIGTERM, {"persistent_workers": True}),
    "fork server": (SIGTERM, {}),
    "fork server, Ctrl-C": (SIGINT, {"persistent_workers": True}),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_signal_to_the_group_saves_at_the_next_boundary(nursery, quick_path, job):
    number, loading = JOBS[job]
    method = job.partition(",")[0].replace(" ", "")
    task = {"directory": str(quick_path), "pauses": [3, 4], "signals": [number.name], **loading}
    task["patience"] = 30 if method == "fork" else 240
    with nursery.child("train_with_workers", method=method, **task) as child:
        for _ in range(2):  # the second signal comes before the first is handled
            child.wait_for("at")
            child.send_to_group(number)
            child.resume()
        assert child.wait() == 0, child.reported("traceback")
    assert (child.reported("stop_reason"), child.reported("step")) == ([number.name], [2])
    assert whole_steps(quick_path) == [2]


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_killed_by_the_signal_end_the_run_at_a_boundary(nursery, quick_path, persistent):
    task = {"dies": True, "pauses": [3], "signals": ["SIGTERM"], "prefetch_factor": 1}
    task["persistent_workers"] = persistent
    with nursery.child("train_with_workers", directory=str(quick_path), **task) as child:
        assert child.wait_for("at") == "iteration 3"
        child.send_to_group(SIGTERM)
        child.resume()
        assert child.wait() == 0, child.reported("traceback")
    assert child.reported("stop_reason") == ["SIGTERM"]
    (step,) = whole_steps(quick_path)
    assert step == child.reported("step")[0]
    assert step in (1, 2)  # batches that were loaded before may suffice for one more step


@pytest.mark.parametrize("persistent", [False, True])
def test_ctrl_c_without_a_save_raises_keyboard_interrupt(nursery, quick_path, persistent):
    task = {"directory": str(quick_path), "pauses": [3], "persistent_workers": persistent}
    with nursery.child("train_with_workers", signals=["SIGTERM"], **task) as child:
        assert child.wait_for("at") == "iteration 3"
        child.send_to_group(SIGINT)
        assert child.wait() == 1
    assert child.reported("failure") == ["KeyboardInterrupt: "]
    assert child.reported("stop_reason") == ["exception"]
    assert folders(quick_path) == []
