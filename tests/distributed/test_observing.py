import pytest

from ignite_hooks.observe.value_text import number_text
from tests.distributed.launch import on_two_processes

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return on_two_processes("observing", tmp_path_factory.mktemp("observing"))


def mean(*losses):
    return sum(losses) / len(losses)


def test_mean_loss_is_that_of_both_processes(findings):
    one, other = findings.of("mean_loss")
    # Seven batches on each process make three steps of two batches and one of the last batch.
    expected = [mean(*one["losses"][:4], *other["losses"][:4])]
    expected += [mean(*one["losses"][4:], *other["losses"][4:])]
    for found in (one, other):
        assert found["reports"][0] is None
        assert found["reports"][1:3] == pytest.approx([expected[0]] * 2, rel=1e-15)
        assert found["reports"][3] == pytest.approx(expected[1], rel=1e-15)
        assert found["exchanges"] == 2
    assert one["reports"] == other["reports"]


def test_resumed_mean_loss_is_that_of_both_processes(findings):
    for found, unbroken in zip(
        findings.of("resumed_mean_loss"), findings.of("mean_loss"), strict=True
    ):
        assert found["reports"] == unbroken["reports"][3:]


def test_throughput_is_that_of_both_processes(findings):
    one, other = findings.of("throughput")
    assert one == other
    # Four steps an epoch: three of two batches and one of one batch. A batch takes 1 s on one
    # process and 2 s on the other, and has 2 samples on each.
    assert one["samples_per_second"] == pytest.approx(4 / 1.5)
    assert one["items_per_second"] == pytest.approx(21 / 1.5)
    assert one["remaining_seconds"] == 0.0


def test_time_ledger_is_that_of_its_own_process(findings):
    one, other = findings.of("time_ledger")
    # Seven batches on each process make four steps.
    assert one["seconds"] == {"forward": 7.0, "validation": 2.0}
    assert other["seconds"] == {"forward": 14.0, "validation": 4.0}
    for found in (one, other):
        assert found["shares"] == pytest.approx(1.0)
        assert found["collectives"] == 0


def test_rank_0_alone_writes_the_record(findings):
    one, other = findings.of("metrics_log")
    assert one == other
    assert [(line["event"], line["step"]) for line in one["lines"]] == [
        ("start", 0),
        ("step", 2),
        ("checkpoint", 3),
        ("findings", 3),
        ("stop", 3),
        ("resume", 3),
        ("step", 4),
        ("epoch", 4),
        ("findings", 4),
        ("checkpoint", 4),
        ("stop", 4),
    ]
    assert one["lines"][0]["machine"]["processes"] == 2
    assert one["lines"][1]["metrics"]["loss"] == findings.of("mean_loss")[0]["reports"][1]
    findings_of_rank_0 = {"Finder": {"rank": 0}}
    assert [each["findings"] for each in one["lines"] if "findings" in each] == [
        findings_of_rank_0,
        findings_of_rank_0,
    ]
    assert one["exact"]
    assert one["collectives"] == 0


def test_record_of_another_run_is_an_error_on_all_ranks(findings):
    for found in findings.of("busy_log"):
        assert "another run writes to" in found["error"]


def test_rank_0_alone_makes_the_page(findings):
    one, other = findings.of("training_report")
    assert one["files"] == ["metrics.jsonl", "report.html"]
    assert other["files"] == []
    for found in (one, other):
        assert found["exact"]
        assert found["collectives"] == 0


def test_mean_output_of_plain_engines_is_that_of_both_processes(findings):
    for found in findings.of("mean_output"):
        assert found["loss"] == 3.5


def test_only_the_main_process_shows_a_bar_of_steps(findings):
    one, other = findings.of("progress_bar")
    assert "Step: [4/4] 100%" in one["shown"]
    assert other["shown"] == ""


def test_console_of_rank_0_shows_the_run_of_all(findings):
    one, other = findings.of("console")
    assert other["shown"] == other["resumed"] == ""
    assert "8 samples a step (2 × 4)" in one["shown"]
    assert "2 processes" in one["shown"]
    assert "run finished at step 6 (max_steps)" in one["shown"]
    assert "run continues after step 6, up to step 8 (max_epochs=2)" in one["resumed"]
    both = findings.of("mean_loss")
    loss = mean(*(each for found in both for each in found["losses"]))
    assert f" {number_text(loss)}* " in one["shown"]


def test_rank_0_alone_sends_metrics(findings):
    one, other = findings.of("sent")
    # Seven batches on each process make four steps an epoch.
    assert [[step for step, _ in points] for points in one["points"]] == [[2, 4], [6, 8]]
    assert one["points"][1][-1][1] == one["loss"] == other["loss"]
    assert one["settings"] == [1, 0]
    assert other["points"] == [[], []]
    assert other["settings"] == [0, 0]


def test_growth_is_that_of_the_named_rank(findings):
    one, other = findings.of("growth")
    assert (one["warnings"], one["collectives"]) == ([], 0)
    (text,) = other["warnings"]
    assert text.startswith("rank 1: ")
    assert "growth() in observing.py" in text
    assert "kept is a list of " in text
    assert other["collectives"] == 0
