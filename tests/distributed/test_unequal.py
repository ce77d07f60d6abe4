import pytest
import torch
import torch.nn.functional as F

from tests.distributed.launch import on_two_processes
from tests.distributed.programs.unequal import COUNTS
from tests.distributed.programs.unequal import KINDS
from tests.distributed.programs.unequal import batches_of
from tests.distributed.programs.unequal import samples
from tests.ids import stable_id
from tests.reference import make_model
from tests.reference import weights

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return on_two_processes("unequal", tmp_path_factory.mktemp("unequal"))


def one_process(pairs, accumulation, epochs):
    """Trains on pairs of batches, one of each process: a step takes the mean of all its losses."""
    model = make_model(0.0).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    steps = 0
    for _ in range(epochs):
        for first in range(0, len(pairs), accumulation):
            window = [batch for pair in pairs[first : first + accumulation] for batch in pair]
            for x, y in window:
                (F.mse_loss(model(x), y) / len(window)).backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
    return weights(model), steps


def assert_trained(findings, pairs, accumulation, epochs):
    expected, steps = one_process(pairs, accumulation, epochs)
    assert [found["steps"] for found in findings] == [steps, steps]
    assert [found["iterations"] for found in findings] == [epochs * len(pairs)] * 2
    assert findings[0]["weights"] == findings[1]["weights"]
    # The mean over the processes adds in another order than the mean over the window.
    found = torch.tensor(findings[0]["weights"], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("counts", COUNTS, ids=stable_id)
@pytest.mark.parametrize("kind", KINDS)
def test_processes_use_the_smallest_number_of_batches(findings, kind, counts, accumulation):
    both = [found[f"{kind} {counts} {accumulation}"] for found in findings.of("by_hand")]
    pairs = list(zip(batches_of(0, counts), batches_of(1, counts), strict=False))
    assert_trained(both, pairs, accumulation, epochs=1 if iter in KINDS[kind] else 2)


@pytest.mark.parametrize(("kind", "number"), [("lists", "2"), ("unsized", "at least 1")])
def test_left_out_batches_are_reported_once(findings, kind, number):
    poorer, richer = findings.of("surplus")
    assert poorer[kind] == []
    (said,) = richer[kind]
    assert (
        f"rank 1 has more batches in a pass than another rank ({number} more): the surplus" in said
    )


@pytest.mark.parametrize("accumulation", [1, 3])
def test_loader_prepared_with_uneven_batches(findings, accumulation):
    x, y = samples(9).tensors
    batches = [(x[first : first + 2], y[first : first + 2]) for first in range(0, 8, 2)]
    both = findings.of("uneven_loader")
    pairs = [tuple(batches[:2]), tuple(batches[2:])]
    assert_trained([found[str(accumulation)] for found in both], pairs, accumulation, epochs=2)
    assert not any(found[f"{accumulation} kept"] for found in both)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_loader_of_uneven_batches_without_length(findings, accumulation):
    x, y = samples(10).tensors
    batches = [(x[first : first + 2], y[first : first + 2]) for first in range(0, 8, 2)]
    both = findings.of("uneven_loader_without_length")
    pairs = [tuple(batches[:2]), tuple(batches[2:])]
    assert_trained([found[str(accumulation)] for found in both], pairs, accumulation, epochs=2)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_run_continues_after_a_stop(findings, accumulation):
    for found in findings.of("stops_and_goes_on"):
        assert found[f"broken {accumulation}"] == found[f"unbroken {accumulation}"]


@pytest.mark.parametrize("kind", ["lists", "generators", "unsized"])
def test_one_process_without_a_batch_is_an_error_on_all(findings, kind):
    for found in findings.of("one_is_empty"):
        assert found[kind].startswith("`data` gave no batch in pass 1, it must give at least one")


def test_whole_epoch_follows_one_terminated_on_all_processes(findings):
    both = findings.of("terminated_epochs")
    # The request in the first window is obeyed after the second.
    assert [found["iterations"] for found in both] == [4 + 5, 4 + 5]
    assert [found["steps"] for found in both] == [2 + 3, 2 + 3]
    assert both[0]["weights"] == both[1]["weights"]


def test_no_loader_stays_active(findings):
    for check in ("by_hand", "uneven_loader", "stops_and_goes_on", "one_is_empty"):
        assert all(found["references"] for found in findings.of(check))
