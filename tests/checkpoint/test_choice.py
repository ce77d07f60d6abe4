from datetime import datetime
from datetime import timezone
from math import nan

import pytest

from ignite_hooks.checkpoint.candidates import Candidate
from ignite_hooks.checkpoint.choice import best_of_each_run
from ignite_hooks.checkpoint.choice import chosen
from ignite_hooks.checkpoint.manifest import Manifest


def candidates(*entries, mode="max"):
    """Newest first, of ``(step, run, metric value)``."""
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
        found.insert(0, Candidate(f"runs/step_{step:08d}", manifest))
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
    ("which", "step"), [("last", 4), ("best", 2), ("3", 3), ("03", 3), ("step_00000002", 2)]
)
def test_one_is_chosen_by_what_names_it(which, step):
    found = candidates((4, "a", 0.1), (3, "b", 0.9), (2, "a", 0.2))
    assert chosen(found, which, "runs").manifest.step == step


def test_one_alone_is_the_best_without_a_metric():
    assert chosen(candidates((4, "a", None)), "best", "runs").manifest.step == 4


@pytest.mark.parametrize(
    ("entries", "which", "message"),
    [
        ([], "last", "no checkpoint in runs"),
        ([(2, "a", None), (1, "a", None)], "best", "no value of a metric"),
        ([(2, "a", None)], "7", r"got 7; runs has the steps 2 \(step_00000002\)$"),
        ([(2, "a", None)], "²", "got ²; runs has the steps 2"),
        ([(n, "a", None) for n in range(10, 0, -1)], "0", "and 2 more$"),
    ],
)
def test_what_is_not_there_is_an_error_that_says_what_is(entries, which, message):
    with pytest.raises(ValueError, match=message):
        chosen(candidates(*entries), which, "runs")
