"""Tests of what the private members of torch's schedulers mean."""

import pytest
import torch
from torch.optim.lr_scheduler import ChainedScheduler
from torch.optim.lr_scheduler import LinearLR
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.lr_scheduler import SequentialLR
from torch.optim.lr_scheduler import StepLR

from ignite_hooks.core.torch_schedulers import child_schedulers
from ignite_hooks.core.torch_schedulers import child_states
from ignite_hooks.core.torch_schedulers import milestones_of
from ignite_hooks.core.torch_schedulers import nested_schedulers
from ignite_hooks.core.torch_schedulers import one_cycle_constants


def make_optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)


def test_the_schedulers_within_are_those_that_were_given():
    optimizer = make_optimizer()
    first, second = LinearLR(optimizer), StepLR(optimizer, 3)
    sequence = SequentialLR(optimizer, [first, second], [4])
    assert child_schedulers(sequence) == [first, second]
    assert milestones_of(sequence) == [4]
    assert child_states(sequence.state_dict())[1]["step_size"] == 3
    chain = ChainedScheduler([sequence])
    assert [*nested_schedulers(chain)] == [chain, sequence, first, second]
    assert child_schedulers(first) == child_states(first.state_dict()) == []


@pytest.mark.parametrize("pct_start", [0.3, 0.25])
@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("anneal_strategy", ["cos", "linear"])
def test_one_cycle_constants_are_its_arguments(pct_start, three_phase, anneal_strategy):
    arguments = {
        "pct_start": pct_start,
        "three_phase": three_phase,
        "anneal_strategy": anneal_strategy,
    }
    scheduler = OneCycleLR(make_optimizer(), 0.1, total_steps=40, **arguments)
    assert one_cycle_constants(scheduler) == arguments
