"""Reads the record that ``MetricsLog`` writes."""

from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any
from warnings import warn

from ignite_hooks.core.rules import did_you_mean
from ignite_hooks.observe.record_lines import MAGIC
from ignite_hooks.observe.record_lines import REPORTS
from ignite_hooks.observe.record_lines import VERSION
from ignite_hooks.observe.record_lines import decoded
from ignite_hooks.observe.record_lines import number_in
from ignite_hooks.observe.record_lines import split_lines
from ignite_hooks.observe.record_lines import writer_of_newer_format

if TYPE_CHECKING:
    import pandas

__all__ = ["MetricsRecord", "parsed_time", "read_metrics"]

_POSITION = ("step", "epoch", "iteration", "seconds", "time")


def read_metrics(path: str | Path) -> "MetricsRecord":
    """Reads the record of a run, which may be in progress.

    ::

        record = read_metrics("runs/a/metrics.jsonl")
        record.columns["loss"]
        record.to_pandas().plot("step", "loss")

    A last line without a line end is ignored, because it is just being written. Damaged lines are
    left out, with one warning.

    Args:
        path: the file that ``MetricsLog`` has written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no record, or was written by a newer version of this package.
    """
    path = Path(path).expanduser()
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"`path` must be a record that MetricsLog has written, got {path}, which does not exist"
        ) from error
    except IsADirectoryError as error:
        raise ValueError(
            f"`path` must be a file, got the folder {path}: add the name of the file, for example "
            "metrics.jsonl"
        ) from error
    lines, damaged = [], []
    for line in split_lines(content):
        if line.content is None:
            damaged.append(line.number)
            continue
        _check_version(path, line.content)
        lines.append({key: decoded(value) for key, value in line.content.items()})
    if not lines and not MAGIC.startswith(content[: len(MAGIC)]):
        raise ValueError(f"`path` must be a record that MetricsLog has written, got {path}")
    if damaged:
        numbers = ", ".join(map(str, damaged[:5])) + (", …" if len(damaged) > 5 else "")
        warn(f"{path} has damaged lines, which are left out: {numbers}", stacklevel=2)
    return MetricsRecord(path, lines)


@dataclass(frozen=True)
class MetricsRecord:
    """The contents of a record.

    Attributes:
        path: the file.
        lines: all lines in order, each as a dict. docs/concepts/record.md describes their keys.
    """

    path: Path
    lines: list[dict[str, Any]] = field(repr=False)

    @property
    def events(self) -> list[dict[str, Any]]:
        """All lines except the reports by step and at the end of the run."""
        return [line for line in self.lines if line["event"] not in ("step", "end")]

    @cached_property
    def columns(self) -> dict[str, list[Any]]:
        """The position and the metrics of each step with a report, as columns of equal length.

        The first columns are "step", "epoch", "iteration", "seconds" (of training) and "time". A
        metric that was not reported at a step is None there. Several reports at one step, for
        example by step and after a validation, are one row, unless they have values of the same
        metric. A metric that has the name of one of the first columns has "metrics." before it.
        """
        rows = list(self._rows())
        names = dict.fromkeys(name for _, metrics in rows for name in metrics)
        columns = {key: [line.get(key) for line, _ in rows] for key in _POSITION}
        columns["time"] = [parsed_time(each) for each in columns["time"]]
        for name in names:
            column = f"metrics.{name}" if name in _POSITION else name
            columns[column] = [metrics.get(name) for _, metrics in rows]
        return columns

    @property
    def metrics(self) -> list[str]:
        """The names of the columns with metrics, in the order of their first reports."""
        return [name for name in self.columns if name not in _POSITION]

    def points(self, metric: str, x: str = "step") -> tuple[list[Any], list[float]]:
        """Returns the curve of a metric: where it was reported as a number, and its values.

        Args:
            metric: the name of the metric.
            x: the name of the column for the first list.

        Raises:
            ValueError: there is no such metric.
        """
        for name, known in ((metric, self.metrics), (x, [*_POSITION, *self.metrics])):
            if name not in known:
                argument = "metric" if name == metric else "x"
                raise ValueError(
                    f"`{argument}` must be in the record {self.path}, got {name!r}: "
                    f"{did_you_mean(name, known)}"
                )
        pairs = zip(self.columns[x], self.columns[metric], strict=True)
        numbers = [(at, number_in(value)) for at, value in pairs if at is not None]
        points = [(at, value) for at, value in numbers if value is not None]
        return [at for at, _ in points], [value for _, value in points]

    def to_pandas(self) -> "pandas.DataFrame":
        """Returns ``columns`` as a pandas frame, in which a missing number is NaN.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "to_pandas() needs pandas, which is not installed: pip install pandas, or use "
                "`columns`, a dict of lists"
            ) from error
        return pandas.DataFrame(self.columns)

    def _rows(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yields the last line and all metrics of each row."""
        row: tuple[dict[str, Any], dict[str, Any]] | None = None
        for line in self.lines:
            metrics = line.get("metrics")
            if line["event"] not in REPORTS or not isinstance(metrics, dict):
                continue
            if row is not None:
                is_same_step = row[0].get("step") == line.get("step")
                if is_same_step and not row[1].keys() & metrics.keys():
                    row = line, {**row[1], **metrics}
                    continue
                yield row
            row = line, metrics
        if row is not None:
            yield row


def _check_version(path: Path, content: dict[str, Any]) -> None:
    written_by = writer_of_newer_format(content)
    if written_by is not None:
        raise ValueError(
            f"`path` must be a record of format {VERSION} or lower, got {path} of format "
            f"{content['format']}, written by ignite-hooks {written_by}: upgrade with pip install "
            "-U ignite-hooks"
        )


def parsed_time(text: Any) -> datetime | None:
    """Returns the time in a line; None if the text is not a time."""
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
