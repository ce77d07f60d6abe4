from datetime import datetime
from datetime import timezone
from math import nan
from pathlib import Path

import pytest

from ignite_hooks.checkpoint.choice import best_of_each_run
from ignite_hooks.checkpoint.choice import select_checkpoints
from ignite_hooks.checkpoint.manifest import Manifest
from ignite_hooks.checkpoint.source import source_at
from ignite_hooks.checkpoint.source_interface import CheckpointCandidate

LOCAL = source_at(Path("runs"), Path("unused"))


def candidates(*entries, mode="max"):
    """Returns candidates, newest first, from tuples ``(step, run, metric value)``."""
    found = []
    for number, (step, run, value) in enumerate(reversed(entries), 1):
        manifest = Manifest(
            number=number,
            training=run,
            saved_at=datetime(2026, 1, 2, tzinfo=timezone.utc),
            step=step,
            epoch=0,
            iteration=step,
            data_pass=0,
            batches=0,
            world_size=1,
            metric=None if value is None else "acc",
            metric_value=value,
            metric_mode=None if value is None else mode,
            versions={},
            files={},
        )
        found.insert(0, CheckpointCandidate(f"runs/step_{step:08d}", manifest))
    return found


@pytest.mark.parametrize(
    ("entries", "mode", "best"),
    [
        ([(3, "a", 0.5), (2, "a", 0.9), (1, "a", 0.7)], "max", {"a": 2}),
        ([(3, "a", 0.5), (2, "a", 0.9), (1, "a", 0.7)], "min", {"a": 3}),
        ([(3, "a", 0.9), (2, "a", 0.9)], "max", {"a": 3}),
        ([(3, "a", nan), (2, "a", 0.1)], "max", {"a": 2}),
        ([(3, "a", nan)], "max", {}),
        ([(3, "a", None), (2, "a", 0.1)], "max", {"a": 2}),
        ([(4, "a", 0.1), (3, "b", 0.9), (2, "a", 0.2), (1, "c", None)], "max", {"a": 2, "b": 3}),
        ([], "max", {}),
    ],
)
def test_best_of_each_run_is_found(entries, mode, best):
    found = best_of_each_run(candidates(*entries, mode=mode))
    assert {run: each.manifest.step for run, each in found.items()} == best


@pytest.mark.parametrize(
    ("which", "step"),
    [
        *[("last", 4), ("best", 2), (3, 3), ("step_00000002", 2), ("runs/step_00000003", 3)],
        *[("./runs/../runs/step_00000003/", 3), (Path("runs/step_00000003").absolute(), 3)],
    ],
)
def test_checkpoint_is_selected_by_best_last_step_name_or_path(which, step):
    found = candidates((4, "a", 0.1), (3, "b", 0.9), (2, "a", 0.2))
    assert select_checkpoints(found, which, LOCAL, "runs")[0].manifest.step == step


@pytest.mark.parametrize("place", ["runs/step_00000004", "./runs/step_00000004/"])
def test_best_of_a_single_checkpoint_is_that_checkpoint(place):
    assert (
        select_checkpoints(candidates((4, "a", None)), "best", LOCAL, place)[0].manifest.step == 4
    )


@pytest.mark.parametrize(
    ("entries", "which", "message"),
    [
        ([], "last", "must have a checkpoint, got runs"),
        ([(2, "a", None)], "best", r"has 1 checkpoint\(s\) of the run: they were saved"),
        ([(2, "a", nan)], "best", "none of them has a value of acc"),
        ([(2, "a", None)], 7, "a step that was saved, got 7; runs has 2: name one"),
        ([(2, "a", None)], "²", "name or path of a checkpoint in `source`, got '²'; runs has step"),
        ([(n, "a", None) for n in range(10, 0, -1)], 0, "and 2 more: name"),
    ],
)
def test_absent_checkpoint_is_an_error_that_lists_the_others(entries, which, message):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        select_checkpoints(candidates(*entries), which, LOCAL, "runs")
