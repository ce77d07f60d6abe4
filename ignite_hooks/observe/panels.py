"""The panels of a chart, and the labels of the runs in them, by the names of metrics and files."""

import os
from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["DEFAULT_PREFIX", "PanelCurve", "labels_of", "panels_of"]

DEFAULT_PREFIX = "val_"
DEFAULT_STEM = "metrics"


class PanelCurve(NamedTuple):
    """A metric that a panel shows.

    Attributes:
        metric: the name of the metric.
        is_validation: whether a validation has measured the metric.
    """

    metric: str
    is_validation: bool


def panels_of(metrics: Iterable[str], prefixes: Iterable[str]) -> dict[str, list[PanelCurve]]:
    """Returns the curves of each panel, by the title of the panel.

    A metric and its counterpart from a validation, such as ``loss`` and ``val_loss``, share a
    panel.

    Args:
        metrics: the names of the metrics.
        prefixes: the prefixes of the validations, besides ``DEFAULT_PREFIX``.
    """
    names = dict.fromkeys(metrics)
    known = [each for each in dict.fromkeys([DEFAULT_PREFIX, *prefixes]) if each]
    panels: dict[str, list[PanelCurve]] = {}
    for name in names:
        bases = [name.removeprefix(each) for each in known if name.startswith(each)]
        base = next((each for each in bases if each in names), None)
        curve = PanelCurve(name, is_validation=bool(bases))
        panels.setdefault(name if base is None else base, []).append(curve)
    return panels


def labels_of(paths: Sequence[Path]) -> list[str]:
    """Returns a short label for each path: names of files or folders, if these differ."""
    stems = [each.stem for each in paths]
    folders = [os.path.basename(os.path.realpath(each.parent)) or str(each) for each in paths]
    if stems == [DEFAULT_STEM]:
        return folders
    for labels in (stems, folders):
        if len(set(labels)) == len(paths):
            return labels
    return [f"{number}: {path}" for number, path in enumerate(paths, 1)]
