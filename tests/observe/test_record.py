"""Tests of reading records. Most of them read a record that the test has written."""

import json
import math
import sys
from datetime import datetime
from datetime import timezone

import pytest

from ignite_hooks import MeanLoss
from ignite_hooks import MetricsLog
from ignite_hooks import Validation
from ignite_hooks.observe import read_metrics
from tests.reference import batches_of
from tests.reference import make_trainer

START = {"format": 1, "event": "start", "step": 0, "validation_prefixes": ["val_"]}


def line_of(step, event="step", **metrics):
    return {
        "event": event,
        "step": step,
        "epoch": 1,
        "iteration": 2 * step,
        "seconds": step / 2,
        "time": f"2026-01-02T03:04:{step:02}.500+00:00",
        "metrics": metrics,
    }


def written(path, *lines):
    texts = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines]
    path.write_bytes(b"".join(text + b"\n" for text in texts))
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_record_of_a_run_is_read_as_columns(path):
    trainer = make_trainer(
        batches_of(5),
        handlers=[MeanLoss(every_steps=2), MetricsLog(path, every_steps=2)],
        validation=Validation(lambda: {"accuracy": 0.5}, every_steps=4),
    )
    trainer.run()
    record = read_metrics(path)
    assert record.metrics == ["loss", "val_accuracy"]
    assert record.columns["step"] == record.columns["iteration"] == [2, 4, 5]
    assert record.columns["epoch"] == [1, 1, 1]
    assert record.columns["val_accuracy"] == [None, 0.5, None]
    assert record.columns["loss"][-1] == trainer.state.metrics["loss"]
    assert all(map(math.isfinite, record.columns["loss"]))
    assert [line["event"] for line in record.events] == ["start", "validation", "epoch", "stop"]
    assert record.lines[0]["settings"]["accumulation"] == 1


def test_reports_of_one_step_are_one_row_unless_values_would_be_lost(path):
    lines = [
        line_of(1, loss=1.0),
        line_of(2, loss=2.0),
        line_of(2, "validation", val_loss=3.0),
        line_of(2, "epoch", accuracy=0.5),
        line_of(2, "end", loss=4.0),
    ]
    columns = read_metrics(written(path, START, *lines)).columns
    assert columns["step"] == [1, 2, 2]
    assert columns["loss"] == [1.0, 2.0, 4.0]
    assert columns["val_loss"] == [None, 3.0, None]
    assert columns["accuracy"] == [None, 0.5, None]
    assert columns["seconds"] == [0.5, 1.0, 1.0]
    assert columns["time"][0] == datetime(2026, 1, 2, 3, 4, 1, 500_000, timezone.utc)


def test_values_are_read_as_they_were(path):
    metrics = {"a": "NaN", "b": "-Infinity", "c": ["Infinity", 1], "d": {"e": "NaN"}, "f": "text"}
    columns = read_metrics(written(path, START, line_of(1, **metrics))).columns
    assert math.isnan(columns["a"][0])
    assert columns["b"] == [-math.inf]
    assert columns["c"] == [[math.inf, 1]]
    assert math.isnan(columns["d"][0]["e"])
    assert columns["f"] == ["text"]


def test_metric_with_the_name_of_a_position_has_its_own_column(path):
    line = line_of(1)
    line["metrics"] = {"step": 7.0, "time": 8.0}
    record = read_metrics(written(path, START, line))
    assert record.columns["step"] == [1]
    assert record.columns["metrics.step"] == [7.0]
    assert record.metrics == ["metrics.step", "metrics.time"]


@pytest.mark.parametrize("content", [b"", b'{"format": 1, "event": "sta'])
def test_record_without_a_whole_line_is_empty(path, content):
    path.write_bytes(content)
    record = read_metrics(path)
    assert record.lines == []
    assert record.columns == {key: [] for key in ("step", "epoch", "iteration", "seconds", "time")}


@pytest.mark.parametrize(
    "damage",
    [b"", b"\x00\xff", b'{"event": "st', b"[1]", b"{}", b'{"event": []}', b"[" * 100_000],
    ids=["empty", "bytes", "part", "list", "no event", "odd event", "deep"],
)
def test_damaged_lines_are_left_out_with_one_warning(path, damage):
    written(path, START, line_of(1, loss=1.0), damage, line_of(3, loss=3.0), damage)
    with pytest.warns(UserWarning, match="has damaged lines, which are left out: 3, 5") as caught:
        record = read_metrics(path)
    assert len(caught) == 1
    assert record.columns["step"] == [1, 3]


def test_line_that_is_being_written_is_left_out(path):
    written(path, START, line_of(1, loss=1.0))
    with path.open("ab") as file:
        file.write(json.dumps(line_of(2)).encode()[:-5])
    assert read_metrics(path).columns["step"] == [1]


def newer(path):
    written(path, {**START, "format": 2, "versions": {"ignite-hooks": "9.1"}}, line_of(1))


def foreign(path):
    path.write_text("step,loss\n1,2\n")


def foreign_without_a_line_end(path):
    path.write_text('{"loss": 1}')


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path: None, FileNotFoundError, "which does not exist"),
        (lambda path: path.mkdir(), ValueError, "must be a file, got the folder"),
        (foreign, ValueError, "must be a record that MetricsLog has written"),
        (foreign_without_a_line_end, ValueError, "must be a record that MetricsLog has written"),
        (newer, ValueError, "of format 2, written by ignite-hooks 9.1: upgrade with pip install"),
    ],
)
def test_other_files_are_errors(path, make, error, message):
    make(path)
    with pytest.raises(error, match=message):
        read_metrics(path)


def test_points_of_a_metric_are_those_with_a_number(path):
    lines = [line_of(1, a=1), line_of(2, b=2.0), line_of(3, a="NaN"), line_of(4, a="none")]
    lines += [line_of(5, a=True), line_of(6, a=-(10**400))]
    record = read_metrics(written(path, START, *lines))
    steps, values = record.points("a")
    assert steps == [1, 3, 6]
    assert values[0] == 1.0
    assert math.isnan(values[1])
    assert values[2] == -math.inf
    assert record.points("b", x="seconds") == ([1.0], [2.0])
    with pytest.raises(ValueError, match=r"`metric` must be in the record .*, got 'c'"):
        record.points("c")
    with pytest.raises(ValueError, match=r"`x` must be in the record .*, got 'stp'"):
        record.points("a", x="stp")


def test_frame_has_the_columns(path):
    pandas = pytest.importorskip("pandas")
    lines = [line_of(1, loss=1.0), line_of(2, note="text")]
    frame = read_metrics(written(path, START, *lines)).to_pandas()
    assert list(frame.columns) == ["step", "epoch", "iteration", "seconds", "time", "loss", "note"]
    assert frame["loss"].dtype == float
    assert list(frame["loss"].isna()) == [False, True]
    assert pandas.api.types.is_datetime64_any_dtype(frame["time"])
    assert len(read_metrics(written(path)).to_pandas()) == 0


def test_missing_pandas_is_an_error_that_says_what_to_install(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    record = read_metrics(written(path, START))
    with pytest.raises(ImportError, match="pip install pandas, or use `columns`"):
        record.to_pandas()
