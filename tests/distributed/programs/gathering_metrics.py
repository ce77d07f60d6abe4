"""Metrics that gather all predictions, on samples divided unevenly over two processes."""

from contextlib import contextmanager

import ignite.distributed as idist
import numpy as np
import torch
from ignite.exceptions import NotComputableError
from ignite.metrics import ROC_AUC
from ignite.metrics import EpochMetric
from ignite.metrics import Metric
from ignite.metrics import Precision
from ignite.metrics import PrecisionRecallCurve
from ignite.metrics import Recall
from ignite.metrics import RunningAverage
from ignite.metrics.metric import EpochWise
from ignite.metrics.regression import MedianAbsoluteError
from sklearn.metrics import precision_recall_curve
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from ignite_hooks import create_supervised_evaluator
from tests.distributed.programs.checks import accelerator
from tests.distributed.programs.checks import run
from tests.distributed.programs.stepping import counting_collectives

SIZES = (38, 37, 4, 1)  # evenly, with another last batch, one batch each, one rank without any


def samples(size):
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(size, generator=generator, dtype=torch.float64)
    return TensorDataset(x, (torch.arange(size) + 1) % 2)


def rounded(output):
    return output[0].round().long(), output[1]


def median_distance(predicted, wanted):
    return float((predicted - wanted).abs().median())


def metrics():
    precision, recall = (
        kind(output_transform=rounded, average=False) for kind in (Precision, Recall)
    )
    return {
        "median": EpochMetric(median_distance, check_compute_fn=False),
        "median error": MedianAbsoluteError(),
        "curve": PrecisionRecallCurve(check_compute_fn=False),
        "area": ROC_AUC(),
        "precision": precision,  # by itself too
        "f": precision * recall * 2 / (precision + recall + 1e-20),
    }


def expected(size):
    """Computes the metrics from all samples in one process."""
    x, y = samples(size)[:]
    said, both = x.round().long(), int((x.round() * y).sum())
    found = {
        "median": median_distance(x, y),
        "median error": float(np.median((x - y).abs())),
        "curve": [part.tolist() for part in precision_recall_curve(y.numpy(), x.numpy())],
        "precision": both / max(1, int(said.sum())),
        "f": 2 * both / max(1, int(said.sum() + y.sum())),
    }
    if size > 1:  # an area needs two classes
        found["area"] = float(roc_auc_score(y.numpy(), x.numpy()))
    return found


def plain(value):
    return [part.tolist() for part in value] if isinstance(value, tuple) else float(value)


def evaluated(ours, size, wanted):
    chosen = {name: metric for name, metric in metrics().items() if name in wanted}
    evaluator = create_supervised_evaluator(torch.nn.Identity(), chosen, accelerator=ours)
    loader = DataLoader(samples(size), 2)
    state = evaluator.run(loader)
    first = {name: plain(value) for name, value in state.metrics.items()}
    again = evaluator.run(loader, max_epochs=1)
    assert first == {name: plain(value) for name, value in again.metrics.items()}
    return first, state.iteration


@contextmanager
def noting_groups():
    """Notes the timeout of each new process group, in seconds."""
    seconds, original = [], torch.distributed.new_group

    def noted(*ranks, **options):
        if ranks:  # Ignite makes one of all
            seconds.append(options["timeout"].total_seconds())
        return original(*ranks, **options)

    torch.distributed.new_group = noted
    try:
        yield seconds
    finally:
        torch.distributed.new_group = original


def compared():
    ours, before = accelerator(), vars(idist).copy()
    found = {}
    for size in SIZES:
        wanted = expected(size)
        with noting_groups() as groups:
            values, iterations = evaluated(ours, size, wanted)
        found[str(size)] = {
            "found": values,
            "expected": wanted,
            "iterations": iterations,
            "groups": groups,
        }
    assert vars(idist) == before
    return found


def gathered(evaluator, size):
    """Returns the number of object gathers in a run."""
    with counting_collectives() as counts:
        evaluator.run(DataLoader(samples(size), 2))
    return counts["all_gather_object"]


def of_each_run():
    """A run in which all ranks have samples exchanges nothing for those that have none."""
    evaluator = create_supervised_evaluator(
        torch.nn.Identity(), {"error": MedianAbsoluteError()}, accelerator=accelerator()
    )
    return {"gathered": [gathered(evaluator, size) for size in (38, 1, 38)]}


class Counted(Metric):
    """A metric of a user with its own reduction."""

    def reset(self):
        self.samples = 0

    def update(self, output):
        self.samples += len(output[0])

    def compute(self):
        total = torch.tensor(self.samples)
        torch.distributed.all_reduce(total)
        return int(total)


class OnOneRank(Counted):
    def compute(self):
        return self.samples


class Last(RunningAverage):
    """Computes as Ignite does, without another rank."""

    def __init__(self):
        super().__init__(output_transform=lambda output: output)

    def update(self, output):
        self._value = len(output[0])


def of_users():
    """Computes a user's metric on each rank separately, also on one without a sample."""
    ours = accelerator()
    evaluator = create_supervised_evaluator(
        torch.nn.Identity(), {"total": Counted()}, accelerator=ours
    )
    if ours.is_main_process:
        OnOneRank().attach(evaluator, "own")
        Last().attach(evaluator, "of Ignite", EpochWise())
    return dict(evaluator.run(DataLoader(samples(1), 2)).metrics)


def failing():
    """Raises an error in a metric; the rank without a sample must raise it too."""

    def fail(predicted, wanted):
        raise ArithmeticError("too hard")

    ours = accelerator()
    metric = EpochMetric(fail, check_compute_fn=False)
    evaluator = create_supervised_evaluator(
        torch.nn.Identity(), {"failing": metric}, accelerator=ours
    )
    try:
        evaluator.run(DataLoader(samples(1), 2))
    except (ArithmeticError, NotComputableError) as error:
        return {"error": f"{type(error).__name__}: {error}", "left": "compute" in vars(metric)}
    return {"error": "", "left": False}


if __name__ == "__main__":
    run(compared, of_each_run, of_users, failing)
