import copy

import pytest
import torch
from torch.optim.lr_scheduler import StepLR

from ignite_hooks.checkpoint.trace import Trace
from tests.reference import batches_of
from tests.reference import make_trainer


def traced(*, change=None, at=3, **options):
    trainer = make_trainer(lr_scheduler=lambda optimizer: StepLR(optimizer, 2), **options)
    if change is not None:
        event, act = change
        trainer.add_event_handler(event(once=at), lambda: act(trainer))
    trace = Trace(trainer)
    torch.manual_seed(5)
    trainer.run(batches_of(5))
    return trace


def test_two_trainings_that_are_the_same_have_no_difference():
    assert traced().first_difference(traced()) is None


def test_all_iterations_are_noted_and_each_thing_in_them():
    trace = traced()
    assert list(trace.iterations) == [1, 2, 3, 4, 5]
    for sums in trace.iterations.values():
        assert list(sums)[:4] == [
            "the place (epoch, step)",
            "the batch",
            "the random generators",
            "the loss",
        ]
        assert list(sums)[4:] == [
            "model.0.weight after the step",
            "model.0.bias after the step",
            "model.3.weight after the step",
            "model.3.bias after the step",
            "the optimizer's state",
            "the scheduler's state",
        ]


def differing(what, iteration=3):
    """The same trace but for one sum."""
    trace = traced()
    other = copy.copy(trace)
    other.iterations = copy.deepcopy(trace.iterations)
    other.iterations[iteration][what] = "another"
    return trace.first_difference(other)


@pytest.mark.parametrize("what", list(traced().iterations[1]))
def test_each_thing_that_differs_is_named(what):
    assert differing(what) == f"{what} of iteration 3"


def test_only_iterations_that_both_have_are_compared():
    one, other = traced(), traced()
    del one.iterations[2]
    other.iterations[2] = {}
    assert one.first_difference(other) is None
