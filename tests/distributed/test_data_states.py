"""The state of the data of each process is saved and restored."""

import pytest

from tests.distributed.launch import on_two_processes

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return on_two_processes("data_states", tmp_path_factory.mktemp("data_states"), limit=240)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_stream_of_each_process_resumes(findings, accumulation):
    for found in findings.of("streams"):
        of_all = found[str(accumulation)]
        assert (of_all["wrong"], of_all["said"]) == ([], [])
        # Batches of a window, and one, are fetched ahead.
        whole, *others = of_all["drawn"]
        assert others == [whole - accumulation * number for number, _ in enumerate(others, start=1)]


def test_position_in_the_next_pass_is_resumed(findings):
    for found in findings.of("of_equal_length"):
        assert (found["wrong"], found["said"]) == ([], [])


def test_pass_ended_by_another_process_is_reported(findings):
    shorter, longer = findings.of("of_unequal_length")
    assert (shorter["wrong"], shorter["said"]) == ([], [])
    (said,) = longer["said"]
    assert said.startswith("the previous pass was left before its end")


def test_stream_read_by_all_processes_resumes(findings):
    padded = "the samples that Accelerate repeats to fill the last batch of this pass are the first"
    for found in findings.of("shared"):
        assert (found["True"]["wrong"], found["True"]["said"]) == ([], [])
        (said,) = found["False"]["said"]
        assert said.startswith(padded)
        assert found["True"]["drawn"][1] < found["True"]["drawn"][0]


def test_samplers_that_draw_ahead_resume(findings):
    for found in findings.of("samplers"):
        for kind in found.keys() - {"references"}:
            of_kind = found[kind]
            assert (of_kind["wrong"], of_kind["said"]) == ([], []), kind
            assert of_kind["places"] > 5
