"""Ignite's metrics with each usage, on trainers and evaluators, as on Ignite's own engines."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from ignite import metrics
from ignite.engine import Events
from ignite.metrics import regression
from ignite.metrics.metric import BatchFiltered
from ignite.metrics.metric import BatchWise
from ignite.metrics.metric import EpochWise
from ignite.metrics.metric import RunningBatchWise
from ignite.metrics.metric import RunningEpochWise
from ignite.metrics.metric import SingleEpochRunningBatchWise

from tests.as_in_ignite.sides import on_both_sides

USAGES = {
    "epoch": EpochWise,
    "running epoch": RunningEpochWise,
    "batch": BatchWise,
    "running batch": RunningBatchWise,
    "running batch of an epoch": SingleEpochRunningBatchWise,
    "every second batch": lambda: BatchFiltered(every=2),
}


def drawn(make, number=4):
    """Returns batches that ``make`` draws from a generator."""
    generator = torch.Generator().manual_seed(5)
    return [make(generator) for _ in range(number)]


def class_batch(g):
    return torch.randn(6, 3, generator=g).softmax(1), torch.randint(0, 3, (6,), generator=g)


def binary_batch(g):
    return torch.rand(8, generator=g), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])


def label_batch(g):
    return tuple(torch.randint(0, 2, (6, 3), generator=g) for _ in range(2))


def number_batch(g):
    return torch.rand(6, generator=g) + 0.5, torch.rand(6, generator=g) + 0.5


def vector_batch(g):
    return torch.randn(6, 4, generator=g), torch.randn(6, 4, generator=g)


def distribution_batch(g):
    return torch.randn(6, 4, generator=g), torch.randn(6, 4, generator=g).softmax(1)


def image_batch(g):
    return torch.rand(2, 3, 16, 16, generator=g), torch.rand(2, 3, 16, 16, generator=g)


def matrix(**options):
    return metrics.ConfusionMatrix(3, **options)


METRICS = {
    # the batches of (y_pred, y), and how the metric is made
    "Accuracy": (class_batch, metrics.Accuracy),
    "AveragePrecision": (binary_batch, metrics.AveragePrecision),
    "Bleu": (None, metrics.Bleu),
    "ClassificationReport": (class_batch, lambda: metrics.ClassificationReport(output_dict=True)),
    "CohenKappa": (class_batch, lambda: metrics.CohenKappa(output_transform=hard_classes)),
    "ConfusionMatrix": (class_batch, matrix),
    "CosineSimilarity": (vector_batch, metrics.CosineSimilarity),
    "DiceCoefficient": (class_batch, lambda: metrics.DiceCoefficient(matrix())),
    "Entropy": (class_batch, metrics.Entropy),
    "EpochMetric": (
        number_batch,
        lambda: metrics.EpochMetric(lambda y_pred, y: float((y_pred * y).sum())),
    ),
    "Fbeta": (class_batch, lambda: metrics.Fbeta(2.0)),
    "HSIC": (vector_batch, metrics.HSIC),
    "IoU": (class_batch, lambda: metrics.IoU(matrix())),
    "JSDivergence": (distribution_batch, metrics.JSDivergence),
    "JaccardIndex": (class_batch, lambda: metrics.JaccardIndex(matrix())),
    "KLDivergence": (distribution_batch, metrics.KLDivergence),
    "Loss": (class_batch, lambda: metrics.Loss(F.cross_entropy)),
    "MatthewsCorrCoef": (class_batch, lambda: metrics.MatthewsCorrCoef()),
    "MaximumMeanDiscrepancy": (vector_batch, metrics.MaximumMeanDiscrepancy),
    "MeanAbsoluteError": (number_batch, metrics.MeanAbsoluteError),
    "MeanPairwiseDistance": (vector_batch, metrics.MeanPairwiseDistance),
    "MeanSquaredError": (number_batch, metrics.MeanSquaredError),
    "MetricGroup": (
        class_batch,
        lambda: metrics.MetricGroup({"accuracy": metrics.Accuracy(), "recall": metrics.Recall()}),
    ),
    "MetricsLambda": (class_batch, lambda: metrics.Precision(average=True) + metrics.Accuracy()),
    "MultiLabelConfusionMatrix": (label_batch, lambda: metrics.MultiLabelConfusionMatrix(3)),
    "MutualInformation": (class_batch, metrics.MutualInformation),
    "PSNR": (image_batch, lambda: metrics.PSNR(data_range=1.0)),
    "PrecisionAndRecall": (class_batch, lambda: metrics.Precision() * metrics.Recall()),
    "PrecisionRecallCurve": (binary_batch, metrics.PrecisionRecallCurve),
    "ROC_AUC": (binary_batch, metrics.ROC_AUC),
    "RocCurve": (binary_batch, metrics.RocCurve),
    "RootMeanSquaredError": (number_batch, metrics.RootMeanSquaredError),
    "Rouge": (None, lambda: metrics.Rouge(variants=["L", 2], multiref="best")),
    "SSIM": (image_batch, lambda: metrics.SSIM(data_range=1.0)),
    "TopKCategoricalAccuracy": (class_batch, lambda: metrics.TopKCategoricalAccuracy(k=2)),
    "mIoU": (class_batch, lambda: metrics.mIoU(matrix())),
    **{
        name: (number_batch, getattr(regression, name))
        for name in (
            "CanberraMetric",
            "FractionalAbsoluteError",
            "FractionalBias",
            "GeometricMeanAbsoluteError",
            "GeometricMeanRelativeAbsoluteError",
            "ManhattanDistance",
            "MaximumAbsoluteError",
            "MeanAbsoluteRelativeError",
            "MeanError",
            "MeanNormalizedBias",
            "MedianAbsoluteError",
            "MedianAbsolutePercentageError",
            "MedianRelativeAbsoluteError",
            "PearsonCorrelation",
            "R2Score",
            "WaveHedgesDistance",
        )
    },
}
TEXTS = [
    ([["the", "cat", "sat", "on", "the", "mat"]], [[["a", "cat", "sat", "on", "the", "mat"]]]),
    ([["it", "is", "raining"]], [[["it", "rains"], ["it", "was", "raining", "all", "day"]]]),
] * 2


def hard_classes(output):
    return output[0].argmax(1), output[1]


def batches_for(make_batch):
    return TEXTS if make_batch is None else drawn(make_batch)


def plain(value):
    """Returns a value of a metric as numbers and lists, which can be compared."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    return "nan" if isinstance(value, float) and math.isnan(value) else value


def measured(engine, make, data):
    """Returns the values of the metric at each iteration and epoch, for each usage."""
    seen = []
    for name, usage in USAGES.items():
        make().attach(engine, name, usage())

    @engine.on(Events.ITERATION_COMPLETED | Events.EPOCH_COMPLETED)
    def note(engine):
        values = {name: plain(value) for name, value in engine.state.metrics.items()}
        seen.append((engine.state.iteration, values))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some metrics warn of the few samples of a batch
        engine.run(data, max_epochs=2)
    return seen


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_of_a_trainer(name):
    make_batch, make = METRICS[name]

    def script(side):
        return measured(side.engine(), make, batches_for(make_batch))

    seen = on_both_sides(script)
    assert len(seen) == 2 * (4 + 1)
    assert USAGES.keys() <= seen[-1][1].keys()


@pytest.mark.parametrize("name", [name for name in METRICS if METRICS[name][0] is not None])
def test_a_metric_of_an_evaluator(name):
    make_batch, make = METRICS[name]

    def script(side):
        evaluator = side.evaluator(torch.nn.Identity())
        return measured(evaluator, make, batches_for(make_batch))

    assert len(on_both_sides(script)) == 2 * (4 + 1)
