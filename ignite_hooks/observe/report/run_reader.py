"""Reads the record of one run as a stream, and makes the part of a page about this run."""

from collections.abc import Callable
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any
from typing import NamedTuple

from ignite_hooks.checkpoint.plain_data import plain_text
from ignite_hooks.checkpoint.regular_file import open_regular
from ignite_hooks.observe.panels import DEFAULT_PREFIX
from ignite_hooks.observe.panels import PanelCurve
from ignite_hooks.observe.record_lines import HEADERS
from ignite_hooks.observe.record_lines import MAGIC
from ignite_hooks.observe.record_lines import REPORTS
from ignite_hooks.observe.record_lines import VERSION
from ignite_hooks.observe.record_lines import number_in
from ignite_hooks.observe.record_lines import stream_lines
from ignite_hooks.observe.record_lines import writer_of_newer_format
from ignite_hooks.observe.report.find_record import ANOTHER_PATH
from ignite_hooks.observe.report.find_record import cannot_be_read
from ignite_hooks.observe.report.findings import Findings
from ignite_hooks.observe.report.metric_kinds import MetricKinds
from ignite_hooks.observe.report.page_data import Extreme
from ignite_hooks.observe.report.page_data import Failure
from ignite_hooks.observe.report.page_data import Resume
from ignite_hooks.observe.report.page_data import Run
from ignite_hooks.observe.report.page_data import Summary
from ignite_hooks.observe.report.positions import Epochs
from ignite_hooks.observe.report.positions import LinePosition
from ignite_hooks.observe.report.positions import next_position
from ignite_hooks.observe.report.progress import Progress
from ignite_hooks.observe.report.progress import end_text
from ignite_hooks.observe.report.progress import is_failure
from ignite_hooks.observe.report.progress import short_line
from ignite_hooks.observe.report.resumes import resume_of
from ignite_hooks.observe.report.saved_checkpoints import SavedCheckpoints
from ignite_hooks.observe.report.settings import plain_header
from ignite_hooks.observe.report.settings import scalars_of
from ignite_hooks.observe.report.settings import settings_of_header
from ignite_hooks.observe.report.thinned_curve import PointBudget
from ignite_hooks.observe.report.thinned_curve import ThinnedCurve
from ignite_hooks.observe.report.thinned_marks import ThinnedMarks
from ignite_hooks.observe.value_text import number_text

__all__ = ["RunLimits", "RunReader"]

MAX_DAMAGED = 1000
"""The number of damaged lines at the beginning, after which a file is taken as no record."""

MAX_NAME = 300
"""The length of the name of a metric. A metric with a longer name is left out."""

MAX_NAMES = 10_000
"""The number of metrics whose kind is remembered, which makes reading faster."""

_Target = Callable[[Any, LinePosition], None]


class RunLimits(NamedTuple):
    """The amount of data about one run that a page can hold."""

    curves: int
    marks: int
    """Of each kind."""
    checkpoints: int
    resumes: int
    settings: int
    traceback: int
    """In characters."""
    findings: int

    @classmethod
    def for_runs(cls, count: int) -> "RunLimits":
        """Returns the limits for each of a number of runs on one page."""

        def share(all_runs: int, most: int, least: int) -> int:
            return max(least, min(most, all_runs // max(1, count)))

        return cls(
            curves=share(600, 600, 4),
            marks=share(700, 300, 4),
            checkpoints=share(800, 100, 3),
            resumes=share(200, 50, 3),
            settings=share(3000, 500, 20),
            traceback=share(100_000, 20_000, 1000),
            findings=share(100, 50, 3),
        )


class RunReader:
    """Reads one record.

    Args:
        path: the record.
        limits: how much of the run the page can hold.
        budget: the number of points of the curves.
        problem: why there is nothing to show; None if the record can be read.

    Attributes:
        curves: the curves by the names of their metrics, in the order of their first values.
        kinds: what is known about the metrics.
        prefixes: the prefixes of validations.
        problem: why there is nothing to show; None if there is something.
    """

    def __init__(
        self, path: Path, limits: RunLimits, budget: PointBudget, problem: str | None = None
    ) -> None:
        self.curves: dict[str, ThinnedCurve] = {}
        self.kinds = MetricKinds()
        self.prefixes: dict[str, None] = {}
        self.problem = problem
        self._path, self._limits, self._budget = path, limits, budget
        self._targets: dict[str, _Target] = {}  # what takes the values of a metric
        self._without_numbers: dict[str, None] = {}  # names of metrics
        self._has_too_many_curves = self._has_too_long_names = False
        self._notes: list[str] = []
        self._damaged = 0
        self._header = plain_header({})
        self._has_lines = False
        self._started: str | None = None
        self._epochs = Epochs()
        self._progress = Progress()
        self._marks = ThinnedMarks(limits.marks)
        self._checkpoints = SavedCheckpoints(limits.checkpoints)
        self._resumes: list[tuple[LinePosition, Resume]] = []
        self._findings = Findings()

    def read(self) -> None:
        """Reads the record to its present end."""
        try:
            with open_regular(self._path) as file:
                self._read(file)
        except OSError as error:
            problem = cannot_be_read(error)
            if self._has_lines:
                self._notes.append(f"The end of the run is missing here. {problem}")
            else:
                self.problem = problem
        for curve in self.curves.values():
            curve.close()

    def _read(self, file: BufferedReader) -> None:
        is_record = MAGIC.startswith(file.peek(len(MAGIC))[: len(MAGIC)])
        for line in stream_lines(file):
            content = line.content
            if content is None:
                self._damaged += 1
                if not is_record and self._damaged == MAX_DAMAGED:
                    break
                continue
            is_record = self._has_lines = True
            is_header = content["event"] in HEADERS
            if is_header and (writer := writer_of_newer_format(content)) is not None:
                self.problem = (
                    f"The record has format {short_line(str(content['format']))}, written by "
                    f"ignite-hooks {short_line(writer)}, and this version reads formats up to "
                    f"{VERSION}: upgrade with pip install -U ignite-hooks."
                )
                return
            self._add_line(content)
        if not is_record:
            self.problem = f"The file is no record: {ANOTHER_PATH}."
        elif not self._has_lines:
            self.problem = "The record has no lines yet: wait until the run has begun."

    def _add_line(self, content: dict[str, Any]) -> None:
        event, progress = content["event"], self._progress
        at = progress.last = next_position(content, progress.last)
        if event in HEADERS:
            self._add_header(content, at)
        self._epochs.add_line(content.get("epoch"), at.iteration, is_end=event == "epoch")
        if event in REPORTS:
            progress.continue_at(at)
            self._add_report(event, content.get("metrics"), at)
        elif event == "checkpoint":
            self._add_checkpoint(content.get("checkpoint"), at)
        elif event == "findings":
            self._findings.add(content.get("findings"))
        elif event == "skip":
            self._marks.add("skip", "The loss scaler has skipped a step", at)
        elif event in ("stop", "error"):
            progress.end(content)
            self._marks.add("error" if is_failure(content) else "stop", end_text(content), at)

    def _add_header(self, content: dict[str, Any], at: LinePosition) -> None:
        self._header = plain_header(content)
        self.kinds.add_handlers(self._header["handlers"])
        prefixes = content.get("validation_prefixes")
        if isinstance(prefixes, list):
            self.prefixes |= {each: None for each in prefixes[:20] if isinstance(each, str)}
        self._progress.begin(self._header["limits"], at)
        self._epochs.length = self._progress.limits.get("epoch_length")
        self._findings.begin()  # all findings are written again after a header
        if content["event"] == "resume":
            resume = resume_of(content, self._epochs.position(at))
            self._resumes = [*self._resumes, (at, resume)][-self._limits.resumes :]
            place = resume["checkpoint"] or "in the same process"
            self._marks.add("resume", short_line(place), at)
        else:
            self._started = self._started or at.time
        previous = content.get("previous_record")
        if isinstance(previous, str):
            self._notes.append(short_line(f"The record of an earlier run is in {previous}."))

    def _add_report(self, event: str, metrics: Any, at: LinePosition) -> None:
        if not isinstance(metrics, dict):
            return
        target_of = self._targets.get
        for name, value in metrics.items():
            (target_of(name) or self._new_target(name, value))(value, at)
        if event == "validation":
            self._marks.add("validation", self._validation_text(metrics), at)

    def _validation_text(self, metrics: dict[str, Any]) -> str:
        """Returns the first results of a validation, whose line may have other metrics, too."""
        prefixes = (DEFAULT_PREFIX, *self.prefixes)
        measured = {name: each for name, each in metrics.items() if name.startswith(prefixes)}
        numbers = {name: number_in(each) for name, each in (measured or metrics).items()}
        texts = [
            f"{name} {number_text(number)}"
            for name, number in numbers.items()
            if number is not None and self.kinds.time_part(name) is None
        ]
        return short_line(", ".join(texts[:4]) or "no numbers")

    def _new_target(self, name: str, value: Any) -> _Target:
        """Returns the function that takes the values of a metric from now on."""
        target: _Target = _ignore
        part = self.kinds.time_part(name)
        if len(name) > MAX_NAME:
            self._has_too_long_names = True
        elif part is not None:
            target = partial(_call_with_value, partial(self._findings.set_share, part))
        elif name in self.curves:
            target = self.curves[name].add
        elif number_in(value) is None:
            if len(self._without_numbers) < MAX_NAMES:
                self._without_numbers[name] = None
            return _ignore  # the next value may be a number
        elif len(self.curves) < self._limits.curves:
            self.curves[name] = curve = ThinnedCurve(self._budget)
            self._budget.add_curve()
            target = curve.add
        else:
            self._has_too_many_curves = True
        if len(self._targets) < MAX_NAMES:
            self._targets[name] = target
        return target

    def _add_checkpoint(self, described: Any, at: LinePosition) -> None:
        if isinstance(described, dict):
            at = self._checkpoints.add(described, at)
            self.kinds.add_mode(described.get("metric"), described.get("metric_mode"))
            self._marks.add("checkpoint", short_line(str(described.get("path"))), at)

    def as_data(self, label: str, curves: dict[str, PanelCurve]) -> Run:
        """Returns the run on a page.

        Args:
            label: the label of the run.
            curves: what is known about the curves of the panels, by metric, in their order.
        """
        header, progress, epochs = self._header, self._progress, self._epochs
        settings = settings_of_header(header)
        shown_settings = dict([*settings.items()][: self._limits.settings])
        for curve in self.curves.values():
            curve.thin()
        metrics = [metric for metric in curves if metric in self.curves]
        status = progress.status(epochs)
        if self.problem is not None:
            status = {"state": "empty", "text": self.problem, "done": None, "seconds_left": None}
        return {
            "label": label,
            "path": str(self._path),
            "problem": self.problem,
            "notes": self._all_notes(len(settings) - len(shown_settings)),
            "status": status,
            "started": self._started,
            "at": epochs.position(progress.last) if self._has_lines else None,
            "summaries": [self._summary(metric) for metric in metrics],
            "curves": [
                self.curves[each].as_data(each, epochs, is_validation=curves[each].is_validation)
                for each in metrics
            ],
            "marks": self._marks.as_data(epochs),
            "times": self._findings.times(),
            "growth": self._findings.growth(self._limits.findings),
            "checkpoints": self._checkpoints.as_data(epochs),
            "resumes": [
                # The fraction of the epoch may have become known since.
                {**resume, "at": epochs.position(at)}
                for at, resume in self._resumes
            ],
            "failure": self._failure(),
            "settings": shown_settings,
            "versions": scalars_of(header["versions"]),
            "machine": scalars_of(header["machine"]),
            "command": [str(each) for each in header["command"]],
            "folder": header["folder"],
        }

    def _all_notes(self, hidden_settings: int) -> list[str]:
        notes = self._notes[-3:]
        if self._damaged:
            lines = "1 damaged line" if self._damaged == 1 else f"{self._damaged:,} damaged lines"
            notes.append(f"The record has {lines}, left out here.")
        if self.problem is None and not self.curves:
            notes.append("The record has no metrics yet.")
        if self._has_too_many_curves:
            count = len(self.curves)
            notes.append(f"The first {count:,} metrics are shown; the others are left out.")
        if self._has_too_long_names:
            notes.append(f"Metrics with names of more than {MAX_NAME} characters are left out.")
        if texts := [each for each in self._without_numbers if each not in self.curves]:
            shown = ", ".join(texts[:5]) + (", …" if len(texts) > 5 else "")
            notes.append(short_line(f"Metrics that are no numbers are left out: {shown}"))
        if hidden_settings:
            notes.append(f"{hidden_settings:,} settings are left out.")
        return notes

    def _summary(self, metric: str) -> Summary:
        curve = self.curves[metric]
        return {
            "metric": metric,
            "last": curve.last,
            "lowest": self._extreme(curve.lowest),
            "highest": self._extreme(curve.highest),
            "best": self.kinds.best_of(metric),
            "reports": curve.reports,
            "not_finite": curve.not_finite,
        }

    def _extreme(self, found: tuple[float, LinePosition] | None) -> Extreme | None:
        return None if found is None else {"value": found[0], "at": self._epochs.position(found[1])}

    def _failure(self) -> Failure | None:
        error, length = self._progress.error, self._limits.traceback
        if error is None:
            return None
        lines = str(error.get("traceback") or "")
        return {
            "type": short_line(str(error.get("type"))),
            "message": plain_text(error.get("message") or "", length // 4),
            # The end of a traceback says where the error was raised.
            "traceback": lines if len(lines) <= length else f"…{lines[-length:]}",
            "at": self._epochs.position(self._progress.last),
        }


def _ignore(value: Any, at: LinePosition) -> None:
    """Ignores a value of a metric that the page leaves out."""


def _call_with_value(target: Callable[[Any], None], value: Any, at: LinePosition) -> None:
    """Calls ``target`` with a value, without the position."""
    target(value)
