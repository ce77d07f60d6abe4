"""Tests of the figures of records, by what matplotlib is given to draw."""

import math
import sys

import pytest

from ignite_hooks.observe import plot_metrics
from ignite_hooks.observe import read_metrics
from tests.observe.test_record import START
from tests.observe.test_record import line_of
from tests.observe.test_record import written


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib")


def curves_of(axes):
    """Returns (line style, x, y) of each curve; NaN as None."""
    return [
        (line.get_linestyle(), list(line.get_xdata()), [_plain(y) for y in line.get_ydata()])
        for line in axes.lines
    ]


def _plain(value):
    return None if math.isnan(value) else float(value)


def titles_of(figure):
    return [axes.get_title() for axes in figure.axes if axes.axison]


def legend_of(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


@pytest.fixture
def path(tmp_path):
    lines = [
        START,
        line_of(1, loss=3.0, note="text"),
        line_of(2, loss=2.0, lr=0.1),
        line_of(2, "validation", val_loss=2.5, val_f1=0.5),
        {**line_of(2), "event": "resume"},
        line_of(3, loss=1.0),
    ]
    return written(tmp_path / "metrics.jsonl", *lines)


def test_training_and_validation_of_a_metric_share_a_panel(path, matplotlib):
    figure = plot_metrics(path)
    assert titles_of(figure) == ["loss", "lr", "val_f1"]
    loss, lr, _ = figure.axes[:3]
    assert curves_of(loss) == [
        ("-", [1, 2, 3], [3.0, 2.0, 1.0]),
        ("--", [2], [2.5]),
        (":", [2, 2], [0.0, 1.0]),  # the resume
    ]
    assert curves_of(lr)[0] == ("-", [2], [0.1])
    assert loss.get_xlabel() == "step"
    assert legend_of(figure) == ["training", "validation", "resumed"]


@pytest.mark.parametrize("metrics", ["loss", "val_loss", ["val_loss"], ["loss", "val_loss"]])
def test_chosen_metrics_are_drawn(path, matplotlib, metrics):
    assert titles_of(plot_metrics(path, metrics)) == ["loss"]


@pytest.mark.parametrize(
    ("x", "label", "values"),
    [
        ("iteration", "iteration", [2, 4, 6]),
        ("seconds", "training time, s", [0.5, 1.0, 1.5]),
        ("time", "time, UTC", None),
    ],
)
def test_x_axis_can_be_chosen(path, matplotlib, x, label, values):
    figure = plot_metrics(path, "loss", x=x)
    (axes,) = figure.axes
    assert axes.get_xlabel() == label
    assert curves_of(axes)[0][1] == (values or read_metrics(path).columns["time"])
    figure.savefig(path.with_suffix(".png"))


@pytest.mark.parametrize(("scale", "unit"), [(60, "s"), (600, "min"), (36_000, "h")])
def test_long_times_are_in_minutes_or_hours(tmp_path, matplotlib, scale, unit):
    lines = [{**line_of(step, loss=1.0), "seconds": scale * step / 2} for step in (1, 4)]
    figure = plot_metrics(written(tmp_path / "a", START, *lines), x="seconds")
    assert figure.axes[0].get_xlabel() == f"training time, {unit}"
    seconds = {"s": 1, "min": 60, "h": 3600}[unit]
    assert curves_of(figure.axes[0])[0][1] == [scale / 2 / seconds, 2 * scale / seconds]


def test_values_that_are_not_finite_are_gaps_with_marks(tmp_path, matplotlib):
    values = [1.0, "NaN", 2.0, "Infinity", 3.0]
    lines = [line_of(step, loss=value) for step, value in enumerate(values, 1)]
    figure = plot_metrics(written(tmp_path / "a", START, *lines))
    curve, marks = figure.axes[0].lines
    assert [_plain(y) for y in curve.get_ydata()] == [1.0, None, 2.0, None, 3.0]
    assert list(curve.get_markevery()) == [0, 1, 2, 3, 4]
    assert list(marks.get_xdata()) == [2, 4]
    assert legend_of(figure) == ["not finite"]


def test_point_between_two_gaps_of_a_long_curve_has_a_marker(tmp_path, matplotlib):
    values = [1.0] * 60
    values[30] = values[32] = "NaN"
    lines = [line_of(step, loss=value) for step, value in enumerate(values)]
    figure = plot_metrics(written(tmp_path / "a", START, *lines))
    assert list(figure.axes[0].lines[0].get_markevery()) == [31]


def runs(folder):
    paths = [folder / name / "metrics.jsonl" for name in ("one", "two")]
    for number, path in enumerate(paths, 1):
        path.parent.mkdir()
        written(path, START, line_of(1, loss=float(number)), line_of(1, val_loss=5.0))
    return paths


@pytest.mark.parametrize("how", [list, tuple, lambda paths: [read_metrics(p) for p in paths]])
def test_several_runs_have_a_color_each(tmp_path, matplotlib, how):
    figure = plot_metrics(how(runs(tmp_path)), "loss")
    lines = figure.axes[0].lines
    assert [line.get_color() for line in lines] == ["C0", "C0", "C1", "C1"]
    assert [line.get_linestyle() for line in lines] == ["-", "--", "-", "--"]
    assert legend_of(figure) == ["one", "two", "training", "validation"]


def test_labels_of_runs_can_be_given(tmp_path, matplotlib):
    one, two = runs(tmp_path)
    assert legend_of(plot_metrics({"a": one, "b": two}, "loss"))[:2] == ["a", "b"]
    assert legend_of(plot_metrics([one, one], "loss"))[0] == f"1: {one}"


def test_runs_in_the_present_folder_are_named_by_it(tmp_path, matplotlib, monkeypatch):
    runs(tmp_path)
    monkeypatch.chdir(tmp_path / "one")
    figure = plot_metrics(["metrics.jsonl", "../two/metrics.jsonl"], "loss")
    assert legend_of(figure)[:2] == ["one", "two"]


def test_names_are_drawn_as_they_are(tmp_path, matplotlib):
    name = "$a_{$ and _b"
    path = written(tmp_path / "a", START, line_of(1, **{name: 1.0}))
    figure = plot_metrics({name: path, "other": path})
    assert titles_of(figure) == [name]
    figure.savefig(path.with_suffix(".png"))  # matplotlib would read the name as a formula


def test_each_of_many_runs_has_its_color_and_fits_into_the_figure(tmp_path, matplotlib):
    path = written(tmp_path / "a", START, line_of(1, loss=1.0))
    figure = plot_metrics({f"a run with quite a long name {number}": path for number in range(14)})
    colors = [line.get_color() for line in figure.axes[0].lines]
    assert len(set(colors)) == 14
    figure.savefig(path.with_suffix(".png"))
    whole, legend = figure.bbox, figure.legends[0].get_window_extent()
    assert whole.x0 <= legend.x0 <= legend.x1 <= whole.x1
    assert figure.axes[0].get_window_extent().height > whole.height / 4


def test_axis_of_one_point_shows_its_step(tmp_path, matplotlib):
    figure = plot_metrics(written(tmp_path / "a", START, line_of(5, loss=1.0)))
    assert [tick for tick in figure.axes[0].get_xticks() if tick % 1] == []


def test_twelve_metrics_fill_a_grid(tmp_path, matplotlib):
    metrics = {f"metric_{number}": 1.0 for number in range(11)}
    figure = plot_metrics(written(tmp_path / "a", START, line_of(1, **metrics)))
    assert len(figure.axes) == 12
    assert len(titles_of(figure)) == 11


def test_figure_leaves_pyplot_alone(path, matplotlib):
    backend = matplotlib.rcParams._get_backend_or_none()
    plot_metrics(path).savefig(path.with_suffix(".png"))
    assert path.with_suffix(".png").stat().st_size > 1000
    assert "matplotlib.pyplot" not in sys.modules
    assert matplotlib.rcParams._get_backend_or_none() == backend


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ([], {}, ValueError, "`runs` must have a run, got none"),
        (3, {}, TypeError, "`runs` must be paths of records, .* got int"),
        ("record", {"metrics": "los"}, ValueError, r"got 'los', .*: did you mean `loss`"),
        ("record", {"metrics": "note"}, ValueError, "must be metrics that are numbers, got 'note'"),
        ("record", {"metrics": []}, ValueError, "`metrics` must have a name, got none"),
        ("record", {"x": "epoch"}, ValueError, "`x` must be an axis, got 'epoch'"),
        ("empty", {}, ValueError, "`runs` must have metrics that are numbers, got .*empty"),
    ],
)
def test_wrong_arguments_are_errors(path, matplotlib, arguments, options, error, message):
    if arguments == "record":
        arguments = path
    elif arguments == "empty":
        arguments = written(path.with_name("empty"))
    with pytest.raises(error, match=message):
        plot_metrics(arguments, **options)


def test_missing_matplotlib_is_an_error_that_says_what_to_install(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.dates", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plot_metrics(path)
