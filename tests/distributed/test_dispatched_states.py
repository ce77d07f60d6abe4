"""Rank 0 reads a stream for all processes and saves its state; the others follow rank 0."""

import pytest

from tests.distributed.launch import on_two_processes

pytestmark = pytest.mark.distributed

PADDED = "the samples that Accelerate repeats to fill the last batch of this pass are the first"


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dispatched_states")
    return on_two_processes("dispatched_states", folder, limit=240)


def test_dispatched_stream_resumes_without_a_replay(findings):
    of_reader, of_other = findings.of("exact")
    for name in of_reader.keys() - {"references"}:
        assert (of_reader[name]["wrong"], of_other[name]["wrong"]) == ([], []), name
        drops_last = "drop_last" in name
        assert [each.startswith(PADDED) for each in of_reader[name]["said"]] == [True][drops_last:]
        assert of_other[name]["said"] == []
        drawn = of_reader[name]["drawn"]
        if not name.startswith(("workers", "a worker")):  # which draw in their own processes
            assert drawn == sorted({*drawn}, reverse=True)
        assert {*of_other[name]["drawn"]} == {0}


def test_stream_with_split_batches_resumes(findings):
    for found in findings.of("split"):
        assert found["wrong"] == []


def test_samples_that_fill_the_last_batch_are_reported(findings):
    reader, other = findings.of("padded")
    assert other["wrong"]  # the last batch of a pass that has 15 samples
    (said,) = reader["said"]
    assert said.startswith(PADDED)


def test_workers_of_each_process_resume(findings):
    for found in findings.of("shards"):
        assert found["wrong"] == []


def test_run_is_resumed_at_each_step(findings):
    for found in findings.of("trained"):
        assert found["exact"] == [True] * 7
        assert found["said"] == ["exact"]


def test_run_is_resumed_with_another_batch_size(findings):
    for found in findings.of("trained"):
        # 16 samples in all make 4 steps of 2 samples on each process, and 8 of one.
        assert found["steps"] == [15, 14, 13, 12, 11, 10, 9]
