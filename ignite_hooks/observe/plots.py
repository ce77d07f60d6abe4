"""Draws the curves of records as a matplotlib figure."""

import math
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

from ignite_hooks.core.rules import did_you_mean
from ignite_hooks.core.rules import is_number
from ignite_hooks.core.rules import shown_type
from ignite_hooks.observe.panels import PanelCurve
from ignite_hooks.observe.panels import labels_of
from ignite_hooks.observe.panels import panels_of
from ignite_hooks.observe.record import MetricsRecord
from ignite_hooks.observe.record import parsed_time
from ignite_hooks.observe.record import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_metrics"]

MAX_MARKED_POINTS = 30
"""A curve of at most this many points has a marker at each of them."""

MAX_COLUMNS = 3

MAX_CYCLE = 10
"""The number of colors in matplotlib's default cycle, "C0" to "C9"."""

_X_AXES = ("step", "iteration", "seconds", "time")


Run = str | Path | MetricsRecord


def plot_metrics(
    runs: Run | Sequence[Run] | Mapping[str, Run],
    metrics: str | Sequence[str] | None = None,
    *,
    x: str = "step",
) -> "Figure":
    """Draws the metrics of one or several runs, each metric in a panel of its own.

    ::

        plot_metrics("runs/a/metrics.jsonl").savefig("curves.png")
        plot_metrics({"lr 0.1": "runs/a/metrics.jsonl", "lr 0.2": "runs/b/metrics.jsonl"}, "loss")

    A metric and its counterpart from a validation, such as ``loss`` and ``val_loss``, share a
    panel. Values that are not finite are marked at the lower edge. If there is one run, dotted
    lines mark its resumes. Values that are not numbers are left out.

    The figure does not use pyplot, so it needs no display, and does not stay in memory. ``savefig``
    writes the figure to a file. A notebook shows the figure if it is the value of a cell, and an
    earlier line is ``%matplotlib inline``.

    Args:
        runs: the path of a record, or its ``MetricsRecord``; several of them; or a dict that maps
            the label of each run to its record.
        metrics: the names of the metrics to draw. Default: all.
        x: what the horizontal axis shows: "step", "iteration", "seconds" of training, or "time" of
            day.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: ``runs`` is something else.
        ValueError: there are no runs, no such metrics, or no numbers to draw.
    """
    try:
        from matplotlib.dates import AutoDateLocator
        from matplotlib.dates import ConciseDateFormatter
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError(
            "plot_metrics() needs matplotlib, which is not installed: pip install matplotlib"
        ) from error
    if x not in _X_AXES:
        raise ValueError(f"`x` must be an axis, got {x!r}: {did_you_mean(str(x), _X_AXES)}")
    records = _labelled(runs)
    panels = _chosen(_panels(records.values()), metrics, records)
    width = min(MAX_COLUMNS, len(panels))
    height = -(-len(panels) // width)
    handles = _legend_handles(panels, records)
    columns = _legend_columns(handles, 4.4 * width)
    legend_height = 0.2 + 0.2 * -(-len(handles) // columns)
    figure = Figure(figsize=(4.4 * width, 2.8 * height + legend_height), layout="constrained")
    grid = [*figure.subplots(height, width, squeeze=False).flat]
    unit, divisor = _time_unit(records.values()) if x == "seconds" else ("", 1.0)
    for axes, (title, curves) in zip(grid, panels.items(), strict=False):
        _draw_panel(axes, curves, records, x, divisor)
        axes.set_title(title, parse_math=False)  # a name may contain "$"
        axes.grid(alpha=0.3)
        if x == "seconds":
            axes.set_xlabel(f"training time, {unit}")
        elif x == "time":
            axes.set_xlabel("time, UTC")
            locator = AutoDateLocator()
            axes.xaxis.set_major_locator(locator)
            axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        else:
            axes.set_xlabel(x)
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    for axes in grid[len(panels) :]:  # the last row may be shorter
        axes.set_axis_off()
    if handles:
        legend = figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, frameon=False
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def _labelled(runs: Any) -> dict[str, MetricsRecord]:
    """Returns the records by their labels."""
    if isinstance(runs, str | Path | MetricsRecord):
        runs = [runs]
    if isinstance(runs, Mapping):
        labels, given = [str(label) for label in runs], list(runs.values())
    elif isinstance(runs, Iterable):
        labels, given = [], list(runs)
    else:
        labels, given = [], [runs]
    for each in given:
        if not isinstance(each, str | Path | MetricsRecord):
            raise TypeError(
                f"`runs` must be paths of records, or what read_metrics() returns, got "
                f"{shown_type(each)}"
            )
    if not given:
        raise ValueError("`runs` must have a run, got none: give the path of a record")
    records = [each if isinstance(each, MetricsRecord) else read_metrics(each) for each in given]
    return dict(zip(labels or labels_of([each.path for each in records]), records, strict=True))


def _panels(records: Iterable[MetricsRecord]) -> dict[str, list[PanelCurve]]:
    """Returns the curves of each panel, by the title of the panel."""
    names: list[str] = []
    prefixes: list[str] = []
    for record in records:
        names += [each for each in record.metrics if any(map(is_number, record.columns[each]))]
        for line in record.lines:
            prefixes += line.get("validation_prefixes") or ()
    return panels_of(names, prefixes)


def _chosen(
    panels: dict[str, list[PanelCurve]],
    metrics: str | Sequence[str] | None,
    records: Mapping[str, MetricsRecord],
) -> dict[str, list[PanelCurve]]:
    """Returns the panels that show ``metrics``.

    Raises:
        ValueError: there is nothing to show.
    """
    paths = ", ".join(str(each.path) for each in records.values())
    if not panels:
        raise ValueError(f"`runs` must have metrics that are numbers, got {paths}, which have none")
    if metrics is None:
        return panels
    titles = {curve.metric: title for title, curves in panels.items() for curve in curves}
    found = {}
    for name in [metrics] if isinstance(metrics, str) else metrics:
        if name not in titles:
            raise ValueError(
                f"`metrics` must be metrics that are numbers, got {name!r}, which is not in "
                f"{paths}: {did_you_mean(str(name), titles)}"
            )
        found[titles[name]] = panels[titles[name]]
    if not found:
        raise ValueError("`metrics` must have a name, got none: leave it out to draw all metrics")
    return found


def _time_unit(records: Iterable[MetricsRecord]) -> tuple[str, float]:
    """Returns the unit for the seconds of training, and its length in seconds."""
    longest = max(
        (each for record in records for each in record.columns["seconds"] if is_number(each)),
        default=0.0,
    )
    for unit, seconds in (("s", 1.0), ("min", 60.0)):
        if longest <= 120 * seconds:
            return unit, seconds
    return "h", 3600.0


def _color(number: int, count: int, *, is_validation: bool = False) -> Any:
    """Returns the color of a curve: one for each run, or one for each kind if there is one run.

    Args:
        number: the number of the run, counted from 0.
        count: the number of runs.
        is_validation: whether a validation has measured the metric.
    """
    from matplotlib import colormaps

    if count == 1:
        return f"C{int(is_validation)}"
    return f"C{number}" if count <= MAX_CYCLE else colormaps["turbo"](number / (count - 1))


def _draw_panel(
    axes: Any,
    curves: list[PanelCurve],
    records: Mapping[str, MetricsRecord],
    x: str,
    divisor: float,
) -> None:
    is_one_run = len(records) == 1
    for number, record in enumerate(records.values()):
        for curve in curves:
            if curve.metric in record.columns:
                color = _color(number, len(records), is_validation=curve.is_validation)
                _draw_curve(axes, record, curve, x, divisor, color)
        if is_one_run:
            for at in _resumes(record, x):
                axes.axvline(at / divisor if x == "seconds" else at, color="gray", linestyle=":")


def _draw_curve(
    axes: Any, record: MetricsRecord, curve: PanelCurve, x: str, divisor: float, color: str
) -> None:
    at, values = record.points(curve.metric, x)
    if x == "seconds":
        at = [each / divisor for each in at]
    # matplotlib leaves a gap at NaN, but would draw a line to infinity.
    finite = [value if math.isfinite(value) else math.nan for value in values]
    axes.plot(
        at,
        finite,
        color=color,
        linestyle="--" if curve.is_validation else "-",
        linewidth=1.3,
        marker="o",
        markersize=3,
        markevery=_marked(finite),
    )
    lost = [each for each, value in zip(at, finite, strict=True) if math.isnan(value)]
    if lost:
        lower_edge = axes.get_xaxis_transform()
        axes.plot(lost, [0.02] * len(lost), "x", color=color, markersize=5, transform=lower_edge)


def _marked(values: list[float]) -> list[int]:
    """Returns the indices of the points with a marker: all if they are few, or those alone."""
    if len(values) <= MAX_MARKED_POINTS:
        return [*range(len(values))]
    around = [math.nan, *values, math.nan]
    return [
        index
        for index in range(len(values))
        if math.isnan(around[index]) and math.isnan(around[index + 2])
    ]


def _resumes(record: MetricsRecord, x: str) -> list[Any]:
    """Returns the positions of the resumes on the horizontal axis."""
    found = [line.get(x) for line in record.lines if line["event"] == "resume"]
    if x == "time":
        found = [parsed_time(each) for each in found]
    return [each for each in found if each is not None]


def _legend_handles(
    panels: Mapping[str, list[PanelCurve]], records: Mapping[str, MetricsRecord]
) -> list[Any]:
    """Returns the entries of the legend: runs by color, training and validation by style."""
    from matplotlib.lines import Line2D

    is_one_run = len(records) == 1
    handles = []
    for number, name in enumerate([] if is_one_run else records):
        handles.append(Line2D([], [], color=_color(number, len(records)), label=name))
    kinds = {curve.is_validation for curves in panels.values() for curve in curves}
    if len(kinds) == 2:
        for is_validation, label in ((False, "training"), (True, "validation")):
            color, style = "gray", "--" if is_validation else "-"
            if is_one_run:
                color = _color(0, 1, is_validation=is_validation)
            handles.append(Line2D([], [], color=color, linestyle=style, label=label))
    shown = [curve.metric for curves in panels.values() for curve in curves]
    if any(_has_lost(record, shown) for record in records.values()):
        label = "not finite"
        handles.append(Line2D([], [], color="gray", marker="x", linestyle="", label=label))
    if is_one_run and any(_resumes(record, "step") for record in records.values()):
        handles.append(Line2D([], [], color="gray", linestyle=":", label="resumed"))
    return handles


def _legend_columns(handles: list[Any], width: float) -> int:
    """Returns the number of columns in which the legend fits into a width in inches."""
    longest = max((len(each.get_label()) for each in handles), default=0)
    return max(1, min(len(handles), int(width / (0.7 + 0.085 * longest))))


def _has_lost(record: MetricsRecord, metrics: Iterable[str]) -> bool:
    """Returns whether a metric has a value that is not finite."""
    known = [each for each in metrics if each in record.columns]
    return any(not math.isfinite(value) for each in known for value in record.points(each)[1])
