import pytest
import torch
from torch.utils.data import DataLoader

from tests.distributed.launch import on_two_processes
from tests.distributed.programs.stepping import samples
from tests.reference import make_model
from tests.reference import train_by_hand
from tests.reference import weights

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return on_two_processes("stepping", tmp_path_factory.mktemp("stepping"))


def test_the_scheduler_moves_once_a_committed_step(findings):
    for found in findings.of("scheduler_moves_once_a_step"):
        assert found["steps"] == 3
        assert found["rates"] == [0.05, 0.025, 0.0125]


def test_a_scheduler_prepared_with_accelerate_keeps_its_rule(findings):
    for found in findings.of("prepared_scheduler_keeps_the_rule_of_accelerate"):
        assert found["steps"] == 3
        assert found["rate"] == 0.1 * 0.5 ** (2 * 3)


def test_two_processes_train_like_one_on_whole_batches(findings):
    model = make_model(0.0).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train_by_hand(model, optimizer, DataLoader(samples(), batch_size=4), accumulation=2, epochs=2)
    for found in findings.of("trains_as_one_process_does"):
        assert found["steps"] == 6
        # The mean over the processes adds in another order than the mean over the batch.
        torch.testing.assert_close(
            torch.tensor(found["weights"], dtype=torch.float64), weights(model), rtol=0, atol=1e-14
        )


def test_validation_in_the_middle_changes_nothing(findings):
    for found in findings.of("validation_changes_nothing"):
        assert found["with"] == found["without"]
        assert found["steps with"] == found["steps without"] == 4


@pytest.mark.parametrize("kind", ["a_failure", "max_steps"])
def test_run_continues_where_it_stopped(findings, kind):
    for found in findings.of(f"goes_on_after_{kind}"):
        unbroken = found.pop("None")
        assert found.pop("references")
        assert [at for at, weights in found.items() if weights != unbroken] == []


def test_the_weights_are_the_same_on_all_processes(findings):
    one, other = findings.of("trains_as_one_process_does")
    assert one["weights"] == other["weights"]


def test_processes_with_different_seeds_share_each_pass(findings):
    one, other = findings.of("shuffles_alike_with_different_seeds")
    for mine, theirs in zip(one["passes"], other["passes"], strict=True):
        assert sorted(mine + theirs) == list(range(10))
    assert len({str(each) for each in one["passes"]}) == 3


def test_gradients_are_reduced_once_per_window(findings):
    for found in findings.of("gradients_are_reduced_once_a_window"):
        assert found["reductions"] == [3, 5, 8, 10]
        assert found["steps"] == 4


def test_number_of_collectives_per_window(findings):
    for found in findings.of("collectives"):
        for name, steps in (("known", 7), ("known, windows", 3), ("loader", 7)):
            assert found[name]["steps"] == steps
            # Stops, before the first window, after each and at the end of the epoch instead of
            # after the last; the length, as the pass begins; the parameters, once.
            assert found[name]["all"] == {
                "asynchronous all_reduce": steps - 1,
                "all_reduce": 3,
                "all_gather_object": 1,
            }


def test_unknown_length_needs_one_further_collective_per_window(findings):
    for found in findings.of("collectives"):
        for name, steps in (("unknown", 7), ("unknown, windows", 3), ("generator, windows", 3)):
            assert found[name]["steps"] == steps
            assert found[name]["all"] == {
                "asynchronous all_reduce": steps - 1,
                "all_reduce": steps + 3,
                "all_gather_object": 1,
            }


def test_no_loader_stays_active(findings):
    for check in (
        "scheduler_moves_once_a_step",
        "validation_changes_nothing",
        "goes_on_after_a_failure",
        "goes_on_after_max_steps",
    ):
        assert all(found["references"] for found in findings.of(check))
