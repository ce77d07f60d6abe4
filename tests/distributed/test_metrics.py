import pytest
import torch
from torch.nn.functional import mse_loss

from tests.distributed.launch import on_two_processes
from tests.distributed.programs.metrics import KINDS
from tests.distributed.programs.metrics import SIZES
from tests.distributed.programs.metrics import own_model
from tests.distributed.programs.metrics import samples

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return on_two_processes("metrics", tmp_path_factory.mktemp("metrics"))


@pytest.mark.parametrize("kind", [kind.__name__ for kind in KINDS])
def test_each_sample_is_evaluated_once_by_one_process(findings, kind):
    one, other = findings.of(f"of_{kind}")
    for size in SIZES:
        for mine, theirs in zip(one[str(size)], other[str(size)], strict=True):
            assert sorted(mine["seen"] + theirs["seen"]) == list(range(size))


@pytest.mark.parametrize("kind", [kind.__name__ for kind in KINDS])
def test_metrics_equal_the_one_process_value(findings, kind):
    for size in SIZES:
        x, y = samples(size).tensors
        torch.manual_seed(0)
        expected = float(mse_loss(own_model()(x), y).detach())
        for found in findings.of(f"of_{kind}"):
            for metrics in found[str(size)]:
                # Ignite adds up in another order than the mean over all samples.
                assert metrics["mse"] == pytest.approx(expected, rel=1e-6)
                assert metrics["mean"] == float(y.mean())
            assert found["references"]


def test_validation_within_training_has_the_one_process_value(findings):
    for found in findings.of("validation"):
        assert found["steps"] == 4
        assert found["means"][0] == [None, None, None]
        assert found["means"][-1] == [2.0, 1.0, 3.0]
        assert found["references"]
