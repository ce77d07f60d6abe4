"""Tests of SIGTERM from outside, at known points of a run: it saves and ends cleanly."""

from signal import SIGTERM

import pytest
import torch

from tests.checkpoint.damage.training import STEPS
from tests.checkpoint.damage.training import assert_resumes_exactly
from tests.checkpoint.damage.training import folders
from tests.checkpoint.damage.training import whole_steps

NOTHING_DUE = {"every_steps": None, "at_end": False}

POINTS = {
    "between two batches of a window": (("iteration", 7), 4, {}),
    "at the first batch": (("iteration", 1), 1, {}),
    "at the last batch of an epoch": (("iteration", 10), 6, {}),
    "in a validation": (("validation", 2), 3, {}),
    "in a validation at the end of an epoch": (("validation", 3), 4, {}),
    "in a save": (("save", 4), 5, {"every_steps": 4}),
    "in a save in the background": (("save", 4), 5, {"every_steps": 4, "background": True}),
    "in the background": (("iteration", 7), 4, {"background": True}),
}


@pytest.mark.parametrize("point", POINTS)
def test_signal_saves_at_the_next_step_boundary_and_ends_run(nursery, quick_path, final, point):
    pause, step, saving = POINTS[point]
    task = {"directory": str(quick_path), "pauses": [pause], **NOTHING_DUE, **saving}
    with nursery.child("train_with_pauses", **task) as child:
        assert child.wait_for("at") == f"{pause[0]} {pause[1]}"
        child.send(SIGTERM)
        child.resume()
        assert child.wait() == 0, child.reported("traceback")
    assert child.reported("stop_reason") == ["SIGTERM"]
    (message,) = (each for each in child.messages if "step" in each)
    assert message["is_restored"]
    stopped_at = message["step"]
    if "background" not in saving:
        assert stopped_at == step
    assert whole_steps(quick_path)[-1] == stopped_at
    assert child.reported("saved")[-1] == stopped_at
    # While the background thread writes, training may come to the next scheduled save.
    scheduled = range(4, stopped_at + 1, 4) if "save" in pause else ()
    assert whole_steps(quick_path) == sorted({*scheduled, stopped_at})
    assert len(folders(quick_path)) == len(whole_steps(quick_path))
    assert_resumes_exactly(quick_path, stopped_at, final)


def test_signal_in_the_last_validation_saves_the_finished_run(nursery, quick_path, final):
    task = {"directory": str(quick_path), "pauses": [("validation", STEPS)], **NOTHING_DUE}
    with nursery.child("train_with_pauses", **task) as child:
        assert child.wait_for("at") == f"validation {STEPS}"
        child.send(SIGTERM)
        child.resume()
        assert child.wait() == 0, child.reported("traceback")
    assert child.reported("stop_reason") == ["SIGTERM"]
    assert torch.equal(torch.tensor(child.reported("weights")[0]), final)
    assert whole_steps(quick_path) == [STEPS]
    assert_resumes_exactly(quick_path, STEPS, final)


@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
def test_second_signal_kills_and_older_checkpoints_stay_whole(
    nursery, quick_path, final, background
):
    pauses = [("iteration", 7), ("save", 4)]
    task = {"directory": str(quick_path), "pauses": pauses, "background": background}
    task["grace_seconds"] = 0
    with nursery.child("train_with_pauses", **task) as child:
        assert child.wait_for("at") == "iteration 7"
        child.send(SIGTERM)
        child.resume()
        assert child.wait_for("at") == "save 4"
        child.send(SIGTERM)
        assert child.wait() == -SIGTERM
    assert whole_steps(quick_path) == [1, 2, 3]
    assert_resumes_exactly(quick_path, 3, final)


def test_second_signal_reaches_the_previous_handler(nursery, quick_path, final):
    pauses = [("iteration", 7), ("save", 4)]
    task = {"directory": str(quick_path), "pauses": pauses, "has_user_handler": True, **NOTHING_DUE}
    task["grace_seconds"] = 0
    with nursery.child("train_with_pauses", **task) as child:
        for _ in pauses:
            child.wait_for("at")
            child.send(SIGTERM)
            child.resume()
        assert child.wait() == 0, child.reported("traceback")
    (message,) = (each for each in child.messages if "own" in each)
    assert (message["own"], message["is_restored"], message["step"]) == (1, True, 4)
    assert whole_steps(quick_path) == [4]
    assert_resumes_exactly(quick_path, 4, final)


def test_without_signal_nothing_is_saved_and_handler_is_restored(nursery, quick_path):
    child = nursery.run(
        "train_with_pauses",
        directory=str(quick_path),
        pauses=[],
        has_user_handler=True,
        **NOTHING_DUE,
    )
    assert child.status == 0, child.reported("traceback")
    assert child.reported("stop_reason") == ["max_epochs"]
    assert child.reported("is_restored") == [True]
    assert folders(quick_path) == []
