import tempfile
from pathlib import Path

import pytest

from ignite_hooks import ResumeCheckpoint
from tests.checkpoint.damage.training import trainer_of
from tests.distributed.launch import with_torchrun

pytestmark = [pytest.mark.distributed, pytest.mark.exhaustive]

STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in memory if possible: a disk takes seconds for so many checkpoints."""
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() else tmp_path_factory.mktemp("checkpoints")
    with tempfile.TemporaryDirectory(dir=place) as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def findings(folder):
    trainer_of(folder / "of one", resumes=False).run(max_steps=1)
    # Nothing that ranks agree on may depend on the order of a set: it differs between their hashes.
    return with_torchrun("checkpoints", folder, limit=120)


@pytest.mark.parametrize(
    "check", ["resume_at_every_step", "resume_at_every_step_in_the_background"]
)
def test_resuming_from_every_step_ends_in_the_same_bits(findings, check):
    for finding in findings.of(check):
        assert finding["steps"] == [1, 2, 3, 4, 5, 6]
        assert all(finding["exact"])
        assert finding["references"]


def test_both_processes_load_the_best_weights_or_neither(findings):
    for finding in findings.of("best_weights"):
        assert finding["step"] == 4
        assert finding["same"]
        assert finding["others"]
        assert "is damaged: model.safetensors has" in finding["damaged"][1]
        assert finding["kept"]


def test_each_process_restores_its_own_handlers_and_objects(findings):
    first, second = findings.of("each_process_gets_its_own_states_back")
    for finding in (first, second):
        assert finding["sums"] == finding["expected"]
        assert finding["shared"] == 10
    assert first["expected"] != second["expected"]
    assert first["restored"] != second["restored"]


FAILURES = {
    "failure_on_the_first": 0,
    "failure_on_the_second": 1,
    "failure_on_the_second_in_the_background": 1,
}


@pytest.mark.parametrize("check", FAILURES)
def test_failed_write_on_one_process_raises_on_both_cleanly(findings, check):
    failing = FAILURES[check]
    found = findings.of(check)
    for rank, finding in enumerate(found):
        ((kind, text),) = finding["errors"]
        assert "No space left on device" in text
        if rank == failing:
            assert kind == "OSError"
        else:
            assert kind == "RuntimeError"
            assert f"process {failing}: OSError" in text
        assert finding["there"] == ["step_00000001"]
        # In the background the failure is raised by the next save: the one of step 2 is lost.
        steps = [1, 3, 4, 5, 6] if "background" in check else [1, 2, 3, 4, 5, 6]
        assert finding["steps"] == steps, "the save that failed is made up, later ones work"
        assert finding["folders"] == len(steps)
        assert finding["same"]


@pytest.mark.parametrize("check", ["signal_to_one", "signal_to_one_in_the_background"])
def test_signal_to_one_process_stops_both_at_the_same_step(findings, check):
    for finding in findings.of(check):
        assert finding["reason"] == "SIGTERM on rank 1"
        assert finding["stopped"] == [3, 5], "it comes in step 2, and is obeyed after the next"
        assert finding["steps"] == [3]
        assert finding["restored"]
        assert finding["exact"]


def test_busy_directory_is_refused_and_waited_for_on_both(findings):
    for finding in findings.of("busy_directory"):
        text, iteration = finding["refused"]
        assert "must be written to by one run at a time" in text
        assert iteration == 0
        assert finding["stopped"] == ["SIGTERM on rank 1", 0]
        assert finding["steps"] == [1, 2]


def test_clock_of_one_process_makes_both_save(findings):
    for finding in findings.of("clock_of_one"):
        assert finding["steps"] == [3, 6], "after the step that follows"


def test_a_checkpoint_of_one_process_is_an_error_on_two(findings):
    for finding in findings.of("other_number_of_processes"):
        assert "was saved by 1 processes, and this run has 2" in finding["text"]
        assert finding["same"]


def test_a_checkpoint_of_two_processes_is_an_error_on_one(findings, folder, tmp_path):
    findings.of("resume_at_every_step")
    trainer = trainer_of(tmp_path, resumes=False)
    with pytest.raises(ValueError, match="was saved by 2 processes, and this run has 1"):
        ResumeCheckpoint(folder / "every step checkpoints").attach(trainer)


DAMAGE = {
    "damage_to_the_model": "model.safetensors has",
    "damage_to_the_second": "rank_00001.pt has",
    "damage_to_the_second_unverified": "rank_00001.pt",
}


@pytest.mark.parametrize("check", DAMAGE)
def test_checkpoint_damaged_for_one_process_is_skipped_by_both(findings, check):
    for finding in findings.of(check):
        assert finding["from"] == STEPS - 1
        (text,) = finding["warned"]
        assert f"step_{STEPS:08d}" in text
        assert DAMAGE[check] in text
        assert finding["exact"]


@pytest.mark.parametrize(
    "check", ["pruned_before_the_second_has_read", "pruned_after_the_second_has_read"]
)
def test_both_read_the_next_if_a_checkpoint_is_pruned_meanwhile(findings, check):
    for finding in findings.of(check):
        assert finding["from"] == STEPS
        assert finding["warned"] == []
        assert finding["exact"]


def test_network_failure_on_rank_0_is_an_error_on_both(findings):
    kinds = []
    for finding in findings.of("network_that_fails"):
        kind, text = finding["told"]
        kinds.append(kind)
        assert "SourceError" in f"{kind}: {text}"
        assert "gone" in text
        assert finding["same"]
    assert sorted(kinds) == ["RuntimeError", "SourceError"]


def test_one_process_of_each_machine_downloads_or_verifies(findings):
    first, second = findings.of("downloads_of_two_machines")
    assert first["together"] == first["apart"] == [True]
    assert second["together"] == []
    assert second["apart"] == [True]


def test_all_processes_return_or_fail_together(findings):
    first, second = findings.of("agreement")
    for finding in (first, second):
        assert finding["size"] == 2
        assert finding["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert finding["agreed"] == ["returned", ["well 0", "well 1"]]
        assert finding["first alone"] == ["returned", "by 0"]
        assert finding["flags"] == [True, False, True]
        assert finding["afterwards"] == [0, 1]
    told = "OSError: [Errno 5] gone"
    assert first["fails on 1"] == ["RuntimeError", f"process 1: {told}"]
    assert second["fails on 1"] == ["OSError", "[Errno 5] gone"]
    assert first["first fails"] == ["OSError", "[Errno 5] gone"]
    assert second["first fails"] == ["RuntimeError", f"process 0: {told}"]


def test_generators_and_averages_of_each_process_are_restored(findings):
    first, second = findings.of("generators_and_averages_of_each_process")
    for finding in (first, second):
        assert finding["exact"] == finding["told"] == [True] * (STEPS - 1)
    assert first["average"] != second["average"]


def test_unsaved_state_of_one_process_is_in_both_reports(findings):
    for finding in findings.of("unknown_on_the_second_alone"):
        at_once, at_the_start = finding["parts"]
        assert at_once["handlers"].startswith("unknown (on process 1: <lambda>.seen changed")
        assert "exists now, but was not saved" in at_once["random generators"]
        assert at_the_start == at_once


def test_refusal_on_one_process_leaves_both_trainers_unchanged(findings):
    for finding in findings.of("a_check_fails_on_one_process"):
        for kind, text, is_same in finding["found"]:
            assert kind in ("ValueError", "RuntimeError")
            assert "x: is odd" in text
            assert is_same
