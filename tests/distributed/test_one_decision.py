import pytest

from tests.distributed.launch import on_two_processes
from tests.distributed.programs.one_decision import EVENTS
from tests.distributed.programs.one_decision import LENGTH

pytestmark = pytest.mark.distributed

PLACES = {
    "STARTED": [0, 0, 0],
    "EPOCH_STARTED": [2, LENGTH + 2, LENGTH + 2],
    "ITERATION_STARTED": [1, 4, 4],
    "OPTIMIZER_STEP_STARTED": [1, 5, 5],  # it counts the steps before it
    "STEP_COMPLETED": [1, 4, 4],
    "last batch but one": [1, LENGTH, LENGTH],
    "last batch": [1, LENGTH, LENGTH],
    "EPOCH_COMPLETED": [1, LENGTH, LENGTH],
}
"""Epoch, iteration and step where both ranks stop: one step after that of the request."""


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return on_two_processes("one_decision", tmp_path_factory.mktemp("one_decision"), limit=120)


def of_both(findings, check):
    """Returns the finding of both ranks, which must be equal."""
    one, other = findings.of(check)
    assert one == other
    return one


@pytest.mark.parametrize("event", EVENTS)
def test_stop_by_one_rank_stops_both_and_names_it(findings, event):
    found = of_both(findings, "terminated_at_events")[event]
    assert found["place"] == PLACES[event]
    assert found["reason"] == "terminate on rank 1"
    assert found["ended_by"] == "terminate() in terminate on rank 1"
    assert found["ends"] == [[found["place"][1]], [found["place"][1]]]


@pytest.mark.parametrize(("name", "place"), [("windows", [1, 4, 2]), ("seldom", [1, 5, 5])])
def test_interval_counts_windows_not_batches(findings, name, place):
    assert of_both(findings, "terminated_windows")[name]["place"] == place


@pytest.mark.parametrize(
    ("name", "reason", "place", "is_finished"),
    [
        ("flag", "terminate on rank 1", [1, 4, 4], True),
        ("nan", "TerminateOnNan on rank 1", [1, 4, 4], True),
        ("time", "TimeLimit on rank 1", [1, 2, 2], False),
        ("early", "EarlyStopping on rank 1", [2, 2 * LENGTH, 2 * LENGTH], True),
        ("withdrawn", "max_epochs", [3, 3 * LENGTH, 3 * LENGTH], False),
    ],
)
def test_a_handler_on_one_rank_stops_both(findings, name, reason, place, is_finished):
    found = of_both(findings, "stopped_by_handlers")[name]
    assert (found["reason"], found["place"]) == (reason, place)
    assert (found["ended_by"] is not None) == is_finished


@pytest.mark.parametrize("limit", [3, LENGTH])
def test_a_stop_in_the_last_step_of_a_run_is_obeyed(findings, limit):
    found = of_both(findings, "stopped_at_limits")[str(limit)]
    assert found["place"] == [1, limit, limit]
    assert found["reason"] == "terminate on rank 1"
    assert found["ended_by"] == "terminate() in terminate on rank 1"


def test_stop_by_all_ranks_names_no_rank(findings):
    found = of_both(findings, "stopped_by_all")
    assert (found["reason"], found["place"]) == ("terminate", [1, 4, 4])


@pytest.mark.parametrize("final", ["0", "1"])
def test_of_two_stops_the_final_one_counts(findings, final):
    found = of_both(findings, "stopped_by_two")[final]
    assert found["reason"] == f"terminate on rank {final}"
    assert found["ended_by"] == f"terminate() in stop on rank {final}"


@pytest.mark.parametrize("epoch", [1, 3])
def test_stop_at_the_save_of_an_epoch_does_not_affect_the_next(findings, epoch):
    found = of_both(findings, "stopped_at_a_save")[str(epoch)]
    assert found["place"] == [epoch, epoch * LENGTH, epoch * LENGTH]
    assert found["reason"] == "terminate on rank 1"


def test_stop_without_completed_applies_to_both(findings):
    found = of_both(findings, "stopped_without_completed")
    assert (found["place"], found["completed"]) == ([1, 4, 4], [])


def test_a_stop_at_started_leaves_no_rank_alone_in_a_validation(findings):
    found = of_both(findings, "stopped_before_a_validation_at_start")
    assert (found["place"], found["metrics"]) == ([0, 0, 0], ["val_loss"])


def test_data_of_different_lengths_stop_at_the_same_step(findings):
    assert of_both(findings, "streams_that_end_elsewhere")["place"] == [1, 4, 2]


@pytest.mark.parametrize(
    ("name", "lengths"),
    [("first", [2, 2 + LENGTH, 2 + 2 * LENGTH]), ("last", [LENGTH, 2 * LENGTH, 3 * LENGTH])],
)
def test_only_the_terminated_epoch_is_cut_on_both(findings, name, lengths):
    assert of_both(findings, "epochs_cut")[name]["lengths"] == lengths


def test_no_epoch_is_cut_before_it_has_begun(findings):
    error = of_both(findings, "epochs_cut")["not in an epoch"]
    assert error.startswith("terminate_epoch() must be called within an epoch")


def test_interrupt_by_one_rank_interrupts_both(findings):
    found = of_both(findings, "interrupted")
    assert found["places"] == [4, 4]
    assert (found["iteration"], found["equal"]) == (3 * LENGTH, True)


def test_both_continue_after_a_stop_of_one(findings):
    found = of_both(findings, "continued")
    assert (found["stopped"], found["iteration"], found["equal"]) == (4, 3 * LENGTH, True)


@pytest.mark.parametrize(
    ("name", "reason"), [("handler", "terminate on rank 1"), ("signal", "SIGTERM on rank 1")]
)
def test_a_stop_is_saved_once_and_resumed(findings, name, reason):
    found = of_both(findings, "saved")[name]
    assert (found["reason"], found["place"], found["steps"]) == (reason, [1, 4, 4], [4])
    assert found["equal"]


def test_settings_set_the_interval_of_exchanges(findings):
    assert of_both(findings, "settings")["place"] == [1, 5, 5]


def test_pending_exchange_is_dropped_after_a_failure(findings):
    found = of_both(findings, "failed_while_pending")
    assert (found["reason"], found["place"]) == ("terminate on rank 1", [1, 5, 5])


def test_different_handlers_on_ranks_are_an_error_on_all(findings):
    error = of_both(findings, "other_handlers")["error"]
    assert error.startswith("every rank must have the same handlers that can stop or save a run")
    assert "[1, 2], by rank" in error


def test_number_of_collectives_in_an_epoch(findings):
    # After the last step the exchange is that of the end of the epoch; the other is of lengths.
    expected = {"asynchronous all_reduce": LENGTH - 1, "all_reduce": 2}
    assert of_both(findings, "collectives")["epoch"] == expected
