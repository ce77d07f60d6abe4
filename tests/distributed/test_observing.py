import pytest

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


def test_mean_output_of_plain_engines_is_that_of_both_processes(findings):
    for found in findings.of("mean_output"):
        assert found["loss"] == 3.5


def test_only_the_main_process_shows_a_bar_of_steps(findings):
    one, other = findings.of("progress_bar")
    assert "Step: [4/4] 100%" in one["shown"]
    assert other["shown"] == ""
