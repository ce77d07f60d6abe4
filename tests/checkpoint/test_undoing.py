from types import SimpleNamespace

import pytest
import torch

from ignite_hooks.checkpoint.undoing import undone_on_failure


class Box:
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state_dict):
        self.value = state_dict["value"]


class Stubborn(Box):
    def load_state_dict(self, state_dict):
        raise ValueError("no")


def fill(boxes, state, failure=None):
    for box in boxes:
        box.value += 1
    state.metrics["a"] = 2
    state.metrics["b"] = 3
    state.alpha, state.beta = 5, 6
    if failure is not None:
        raise failure


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_all_as_it_was_also_behind_one_that_refuses(failure):
    boxes = [Box(torch.zeros(2)), Stubborn(1), Box(3)]
    state = SimpleNamespace(metrics={"a": 1}, alpha=4)
    metrics = state.metrics
    with pytest.raises(failure), undone_on_failure(boxes, state):
        fill(boxes, state, failure)
    assert torch.equal(boxes[0].value, torch.zeros(2))
    assert boxes[2].value == 3
    assert vars(state) == {"metrics": {"a": 1}, "alpha": 4}
    assert state.metrics is metrics


def test_without_one_it_stays():
    boxes = [Box(torch.zeros(2)), Box(3)]
    state = SimpleNamespace(metrics={"a": 1}, alpha=4)
    with undone_on_failure(boxes, state):
        fill(boxes, state)
    assert torch.equal(boxes[0].value, torch.ones(2))
    assert boxes[1].value == 4
    assert vars(state) == {"metrics": {"a": 2, "b": 3}, "alpha": 5, "beta": 6}
