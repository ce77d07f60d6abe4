"""Chooses the numbers at the top of a page, and the results by which runs are compared."""

from collections.abc import Sequence
from typing import NamedTuple

from ignite_hooks.observe.report.page_data import Panel
from ignite_hooks.observe.report.page_data import Run
from ignite_hooks.observe.report.page_data import Summary
from ignite_hooks.observe.report.page_text import count_text
from ignite_hooks.observe.report.page_text import number_text

__all__ = ["KeyNumber", "Result", "compared_results", "key_numbers"]

MAX_METRICS = 4
"""The largest number of metrics at the top of a page, beside the speed and the memory."""


class KeyNumber(NamedTuple):
    """A number at the top of a page.

    Attributes:
        metric: the name of the metric.
        value: the value to show.
        unit: the unit; None for a number without one.
        note: which value of the metric the number is, for example "last".
    """

    metric: str
    value: float
    unit: str | None
    note: str


class Result(NamedTuple):
    """The best values of a metric in several runs.

    Attributes:
        metric: the name of the metric.
        best: "lowest" or "highest".
        values: the best value of each run; None for a run that does not have the metric.
        winner: the best of ``values``.
    """

    metric: str
    best: str
    values: list[float | None]
    winner: float


def key_numbers(run: Run, panels: Sequence[Panel]) -> list[KeyNumber]:
    """Returns the best values of the first metrics, the last speed, and the highest memory.

    Metrics of validations come first. Of a loss and its validation, only the validation is shown.
    A metric of which it is not known which value is best, and which no validation has measured, is
    shown only if all metrics are of this kind.
    """
    summaries = {each["metric"]: each for each in run["summaries"]}
    validated = _validated(run)
    metrics: list[tuple[bool, bool, KeyNumber]] = []
    others: dict[str, KeyNumber] = {}
    for panel in panels:
        shown = [name for name in panel["metrics"] if name in summaries]
        if not shown:
            continue
        section, unit = panel["section"], panel["unit"]
        name = next((name for name in shown if name in validated), shown[0])
        number = _key_number(summaries[name], section, unit)
        if number is None:
            continue
        if section == "metrics":
            metrics.append((summaries[name]["best"] is None, name not in validated, number))
        elif section in ("speed", "memory"):
            others.setdefault(section, number)
    metrics.sort(key=lambda each: each[:2])
    # The others have no best value, and are not of a validation.
    chosen = [each for each in metrics if not all(each[:2])] or metrics
    return [number for *_, number in chosen[:MAX_METRICS]] + [*others.values()]


def _key_number(summary: Summary, section: str, unit: str | None) -> KeyNumber | None:
    metric, last, best = summary["metric"], summary["last"], summary["best"]
    if section == "memory" and summary["highest"] is not None:
        return KeyNumber(metric, summary["highest"]["value"], unit, "highest")
    extreme = None if best is None else summary[best]
    if extreme is not None:
        step = count_text(extreme["at"]["step"])
        note = f"{best}, at step {step}; last {number_text(last)}"
        return KeyNumber(metric, extreme["value"], unit, note)
    return None if last is None else KeyNumber(metric, last, unit, "last")


def compared_results(runs: Sequence[Run]) -> list[Result]:
    """Returns the metrics of which it is known whether low or high is better, validations first."""
    rows = [{each["metric"]: each for each in run["summaries"]} for run in runs]
    bests = {name: each["best"] for row in rows for name, each in row.items()}
    validated = {metric for run in runs for metric in _validated(run)}
    found = []
    for name, best in sorted(bests.items(), key=lambda item: item[0] not in validated):
        if best is None:
            continue
        extremes = [row[name][best] if name in row else None for row in rows]
        values = [None if each is None else each["value"] for each in extremes]
        finite = [each for each in values if each is not None]
        if finite:
            winner = min(finite) if best == "lowest" else max(finite)
            found.append(Result(name, best, values, winner))
    return found


def _validated(run: Run) -> set[str]:
    """Returns the metrics that validations have measured."""
    return {each["metric"] for each in run["curves"] if each["is_validation"]}
