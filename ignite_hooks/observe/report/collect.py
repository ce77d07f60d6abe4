"""Collects the data of a page from the records of runs."""

from collections.abc import Sequence
from datetime import datetime
from datetime import timezone
from pathlib import Path
from typing import Any
from typing import cast
from typing import get_args

from ignite_hooks.observe.panels import PanelCurve
from ignite_hooks.observe.panels import labels_of
from ignite_hooks.observe.panels import panels_of
from ignite_hooks.observe.report.find_record import find_record
from ignite_hooks.observe.report.page_data import PageData
from ignite_hooks.observe.report.page_data import Panel
from ignite_hooks.observe.report.page_data import Section
from ignite_hooks.observe.report.run_reader import RunLimits
from ignite_hooks.observe.report.run_reader import RunReader
from ignite_hooks.observe.report.settings import differences_of
from ignite_hooks.observe.report.thinned_curve import PointBudget

__all__ = ["collect"]


def collect(paths: Sequence[Path]) -> PageData:
    """Reads the records of runs, which may be in progress, and returns what a page shows of them.

    A record is read line by line, and curves are thinned at once, so memory does not grow with the
    length of a run. As JSON without spaces, the data stays below 3.5 MB. A record that cannot be
    read is no error: ``problem`` of its run says why, and what to do.

    Args:
        paths: the records, or the folders that have them.
    """
    limits, budget = RunLimits.for_runs(len(paths)), PointBudget()
    found = [find_record(path) for path in paths]
    readers = [_reader_of(path, problem, limits, budget) for path, problem in found]
    found_panels = panels_of(
        (metric for reader in readers for metric in reader.curves),
        (prefix for reader in readers for prefix in reader.prefixes),
    )
    panels = _sorted_panels(found_panels, readers)
    curves = {curve.metric: curve for each in panels for curve in found_panels[each["title"]]}
    labels = labels_of([path for path, _ in found])
    runs = [reader.as_data(label, curves) for reader, label in zip(readers, labels, strict=True)]
    data: PageData = {
        "made_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "runs": runs,
        "panels": panels,
        "differences": differences_of(runs),
    }
    return cast(PageData, _encodable(data))


def _reader_of(
    path: Path, problem: str | None, limits: RunLimits, budget: PointBudget
) -> RunReader:
    """Returns a reader that has read the record, or has a problem and nothing else."""
    if problem is None:
        reader = RunReader(path, limits, budget)
        reader.read()
        problem = reader.problem
    return reader if problem is None else RunReader(path, limits, budget, problem)


def _sorted_panels(
    panels: dict[str, list[PanelCurve]], readers: Sequence[RunReader]
) -> list[Panel]:
    """Returns the panels in the order of their sections."""
    described: list[Panel] = []
    for title, curves in panels.items():
        reader = next(each for each in readers if curves[0].metric in each.curves)
        section, unit = reader.kinds.section_of(curves[0].metric)
        metrics = [each.metric for each in curves]
        described.append({"title": title, "section": section, "unit": unit, "metrics": metrics})
    order = get_args(Section)
    return sorted(described, key=lambda panel: order.index(panel["section"]))


def _encodable(value: Any) -> Any:
    """Returns a copy of data in which UTF-8 can encode each text.

    JSON and the names of files may have lone surrogates, which are escaped here.
    """
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(each) for key, each in value.items()}
    return [_encodable(each) for each in value] if isinstance(value, list) else value
