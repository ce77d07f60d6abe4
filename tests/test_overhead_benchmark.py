import re

import pytest
import torch

from tests.benchmarks.entries import CONTESTANTS
from tests.benchmarks.entries import Entry
from tests.benchmarks.overhead import main
from tests.benchmarks.overhead import table
from tests.benchmarks.rounds import Rounds
from tests.benchmarks.rounds import difference

NAMES = ["raw", "ours_bare", "ours_wired"]


@pytest.mark.exhaustive
def test_benchmark_of_overhead_runs_and_finds_equal_weights(capsys):
    main(["--rounds", "1", "--iterations", "100", "--contestants", *NAMES])
    output = capsys.readouterr().out.splitlines()
    header, line, *rows = [each for each in output if each.startswith("|")]
    assert header.count("|") == line.count("|") == 7
    labels = [row.split(" | ")[0].removeprefix("| ") for row in rows]
    assert sorted(labels) == sorted(CONTESTANTS[name].label for name in NAMES)
    number = r"\d+\.\d{3}"
    form = rf"\| [\w, ]+ \| {number} \| {number} to {number} \| \d+ \| [+-]\d+ \| equal \|"
    assert all(re.fullmatch(form, row) for row in rows)


def rounds_of(weights):
    rounds = Rounds(["raw", *weights], "linear", 1, 100)
    rounds.weights = {"raw": {"weight": torch.ones(2)}, **weights}
    rounds.found = {name: [[1.0, 2.0], [3.0, 2.0]] for name in rounds.names}
    return rounds


def test_contestant_with_other_weights_is_not_ranked():
    *_, raw, ours, other = rounds_of(
        {
            "fabric": {"weight": torch.tensor([1.0, 1.0 + 2**-20])},
            "ours_bare": {"weight": torch.ones(2)},
        }
    ).table()
    assert raw.startswith("| a plain PyTorch loop | 1.000 ")
    assert ours.endswith("| equal |")
    assert other.startswith("| Lightning Fabric |")
    assert other.endswith("| differ by 9.5e-07: not ranked |")


def test_contestant_that_cannot_run_is_left_out_and_says_why():
    rounds = rounds_of({})
    rounds.names.append("mmengine")
    rounds.missing["mmengine"] = "mmengine is not installed"
    assert rounds.table()[-1] == "| MMEngine | | | | | left out: mmengine is not installed |"


@pytest.mark.exhaustive
def test_table_of_a_page_lacks_no_contestant(monkeypatch):
    monkeypatch.setitem(CONTESTANTS, "fabric", Entry("Fabric", "absent", ("absent_package",)))
    with pytest.raises(RuntimeError, match="fabric: absent_package is not installed"):
        table("linear", 1, rounds=1, contestants=["fabric"], iterations=100)


def test_without_raw_there_is_no_table():
    rounds = rounds_of({})
    rounds.missing["raw"] = "it broke"
    with pytest.raises(RuntimeError, match="it broke"):
        rounds.table()


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"a": torch.zeros(2)}, 0.0),
        ({"a": torch.tensor([0.0, -0.5])}, 0.5),
        ({"b": torch.zeros(2)}, float("inf")),
    ],
)
def test_difference_of_weights(weights, expected):
    assert difference(weights, {"a": torch.zeros(2)}) == expected


def test_a_table_of_an_unknown_contestant_is_refused():
    with pytest.raises(ValueError, match="no contestants ours_wird"):
        table("linear", 1, rounds=1, contestants=["ours_wired", "ours_wird"])
