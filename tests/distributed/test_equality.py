"""Training on several ranks equals that of one process on batches of all ranks together."""

import math

import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Subset

from tests.distributed.launch import on_processes
from tests.distributed.programs.equality import CLIPS
from tests.distributed.programs.equality import EPOCHS
from tests.distributed.programs.equality import SAMPLE
from tests.distributed.programs.equality import SIZE
from tests.distributed.programs.equality import cases_for
from tests.distributed.programs.equality import model_and_optimizer
from tests.distributed.programs.equality import samples
from tests.reference import train_by_hand
from tests.reference import weights

pytestmark = pytest.mark.distributed

# The mean over the ranks adds in another order than the mean over a batch. Weights are below 1,
# where a float32 is rounded by up to 3e-8, in up to 24 steps; 9e-8 is the most that was found.
TOLERANCE = {"float64": 1e-12, "float32": 1e-6}


def one_process(case, ranks):
    """Trains in plain PyTorch on batches of ``SIZE * ranks``; returns the weights and the steps.

    Accelerate fills the last batches of several ranks with samples from the beginning.
    """
    whole = SIZE * ranks
    batches = case.length // whole if case.drop_last else math.ceil(case.length / whole)
    is_filled = ranks > 1 or case.drop_last
    taken = batches * whole if is_filled else case.length
    order = [number % case.length for number in range(taken)]
    model, optimizer = model_and_optimizer(case)
    steps, clipped = [], []

    def clip(parameters):
        parameters = list(parameters)
        before = [each.grad.clone() for each in parameters]
        if case.clip == "norm":
            torch.nn.utils.clip_grad_norm_(parameters, **CLIPS["norm"])
        else:
            torch.nn.utils.clip_grad_value_(parameters, **CLIPS["value"])
        pairs = zip(before, parameters, strict=True)
        clipped.append(not all(torch.equal(one, other.grad) for one, other in pairs))

    train_by_hand(
        model,
        optimizer,
        DataLoader(Subset(samples(case), order), whole),
        accumulation=case.accumulation,
        epochs=EPOCHS,
        clip=None if case.clip == "unclipped" else clip,
        after_step=lambda: steps.append(1),
    )
    assert case.clip == "unclipped" or any(clipped)
    return weights(model).double(), len(steps)


def differences(folder, ranks, every):
    """Returns the largest difference of a weight from training on one process, by case."""
    findings = on_processes("equality", folder, str(every), count=ranks, limit=240)
    every_rank, found = findings.of("equality"), {}
    for case in cases_for(ranks, every):
        expected, steps = one_process(case, ranks)
        first, *others = (of_rank[str(case)] for of_rank in every_rank)
        assert all(other == first for other in others), case
        assert first["steps"] == steps, case
        distance = torch.tensor(first["weights"], dtype=torch.float64) - expected
        found[case] = float(distance.abs().max())
    return found


@pytest.mark.parametrize(
    ("ranks", "every"),
    [
        (2, SAMPLE),
        (3, SAMPLE),
        *(pytest.param(ranks, 1, marks=pytest.mark.exhaustive) for ranks in (1, 2, 3)),
    ],
)
def test_ranks_train_like_one_process_on_whole_batches(tmp_path, ranks, every):
    found = differences(tmp_path, ranks, every)
    assert len(found) > 100 // every
    assert {
        str(case): distance for case, distance in found.items() if distance > TOLERANCE[case.dtype]
    } == {}
